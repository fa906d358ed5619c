"""GSM8K (Cobbe et al., arXiv:2110.14168), from a local file in the data set's own format.

One JSON object a line: ``{"question": ..., "answer": "... <<48/2=24>>24 ...\\n#### 72"}``.
"""

from __future__ import annotations

from pathlib import Path

from stabledllm.tasks.files import read_jsonl, text_field


def load(path: Path) -> list[dict]:
    """``{"prompt", "response", "origin"}`` per line, the answer as it stands in the file.

    Raises:
        UserError: missing or empty file, broken line, missing or empty field.
    """
    rows = []
    for origin, record in read_jsonl(path):
        prompt, response = text_field(record, "question", origin), text_field(record, "answer", origin)
        rows.append({"prompt": prompt, "response": response, "origin": origin})
    return rows

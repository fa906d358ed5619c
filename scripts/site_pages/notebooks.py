"""A notebook as a page: its text, its cells, and what they printed when it was last executed."""

from __future__ import annotations

import html
import json
from pathlib import Path


def page(path: Path) -> str:
    """The Markdown of a notebook's page."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts = [part for cell in notebook["cells"] for part in _cell(cell)]
    how = f"The notebook is `notebooks/{path.name}` of the repository; the tests execute it."
    return "\n\n".join([parts[0], how, *parts[1:]]) + "\n"


def _cell(cell: dict) -> list[str]:
    source = _text(cell["source"])
    if cell["cell_type"] == "markdown":
        title, *rest = source.split("\n\n", 1)
        return [title, *rest] if source.startswith("# ") else [source]
    outputs = "".join(_output(output) for output in _joined(cell["outputs"]))
    shown = [f'<div class="cell-output">{outputs}</div>'] if outputs else []
    return [f"```python\n{source}\n```", *shown]


def _joined(outputs: list[dict]) -> list[dict]:
    """The outputs, with what was printed in a row as one."""
    joined: list[dict] = []
    for output in outputs:
        if joined and output["output_type"] == joined[-1]["output_type"] == "stream":
            joined[-1] = output | {"text": _text(joined[-1]["text"]) + _text(output["text"])}
        else:
            joined.append(output)
    return joined


def _output(output: dict) -> str:
    """The HTML of one output; no blank line in it, which would end a block of HTML in Markdown."""
    if output["output_type"] == "stream":
        return _printed(_text(output["text"]))
    data = output["data"]
    if "text/html" in data:
        return _text(data["text/html"]).replace("\n", " ")
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{_text(data["image/png"]).strip()}">'
    return _printed(_text(data["text/plain"]))


def _printed(text: str) -> str:
    return "<pre><code>" + html.escape(text.rstrip("\n")).replace("\n\n", "\n&#8203;\n") + "</code></pre>"


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)

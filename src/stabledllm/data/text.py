"""Plain text for pre-training: documents end to end in rows of one length, every token maskable.

Source: LLaDA's pre-training (arXiv:2502.09992, section 2.2 and appendix B.1): full rows, 1 % of them of random length.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from stabledllm.data.rows import Encoded, TokenRow
from stabledllm.errors import UserError
from stabledllm.tasks.files import read_jsonl, text_field

KIND = "text"


def load_documents(path: Path, fields: Sequence[str]) -> list[dict]:
    """``{"text", "origin"}`` for each document: a .txt file, each .txt file below a folder, or each line of a .jsonl.

    Args:
        fields: of a .jsonl's line, joined by line breaks.

    Raises:
        UserError: nothing there, another kind of file, or an empty or broken document.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.txt") if file.is_file())
        if not files:
            raise UserError(f"{path}: expected .txt files in this folder, found none.")
        return [_document(file) for file in files]
    if not path.is_file():
        raise UserError(f"{path}: expected a .txt or .jsonl file or a folder of .txt files, found nothing.")
    if path.suffix == ".txt":
        return [_document(path)]
    if path.suffix == ".jsonl":
        return [
            {"text": "\n".join(text_field(record, name, origin) for name in fields), "origin": origin}
            for origin, record in read_jsonl(path)
        ]
    raise UserError(f"{path}: expected a .txt or .jsonl file or a folder of .txt files, found '{path.suffix}'.")


def _document(file: Path) -> dict:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: expected UTF-8 text, found a byte that is not ({error.reason}).") from None
    return {"text": text_field({"text": text}, "text", str(file)), "origin": str(file)}


def pack_documents(
    documents: Sequence[dict], tokenizer, *, length: int, short_share: float = 0.0, seed: int = 0
) -> Encoded:
    """Rows that hold the documents' tokens end to end, an end token after each; no token is lost or repeated.

    Documents are dealt in an order drawn from ``seed``, cut wherever a row is full, and see each other within a row,
    as is usual in pre-training. A ``short_share`` of the rows, drawn from ``seed``, has a length uniform on 1 to
    ``length`` in place of ``length``; the last row holds what is left.

    Raises:
        UserError: no documents.
    """
    if not documents:
        raise UserError("data: expected at least one document, found none.")
    rng = random.Random(f"pack/{seed}")
    order = list(documents)
    rng.shuffle(order)
    stream: list[int] = []
    for document in order:
        stream += [*tokenizer.encode(document["text"]), tokenizer.eos_token_id]
    rows, start = [], 0
    while start < len(stream):
        size = rng.randint(1, length) if rng.random() < short_share else length
        rows.append(TokenRow(stream[start : start + size], 0, origin=f"text row {len(rows)}"))
        start += size
    return Encoded(rows, [])

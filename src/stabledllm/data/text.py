"""Plain text for pre-training: documents packed end to end into rows of one length, every token maskable.

Source: LLaDA's pre-training (arXiv:2502.09992, section 2.2 and appendix B.1): full rows, 1 % of them of random length.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from stabledllm.data.containers import ENDINGS, ending_of
from stabledllm.data.ids import refuse_ids
from stabledllm.data.rows import Encoded
from stabledllm.data.token_rows import RowsBuilder, TokenRow
from stabledllm.errors import UserError
from stabledllm.tasks.examples import Examples, Mapped, Stored
from stabledllm.tasks.files import text_field
from stabledllm.tasks.text_files import files_below, has_ending, read_text

KIND = "text"


def load_documents(path: Path, fields: Sequence[str]) -> Examples:
    """Load ``{"text", "origin"}`` of each document: a .txt file, each .txt file of a folder, or each line of a .jsonl.

    Args:
        fields: the keys of a .jsonl's line whose texts are joined by line breaks.

    Raises:
        UserError: nothing there, another kind of file, or an empty or broken document.
    """
    if path.is_dir():
        files = files_below(path, [".txt"])
        if not files:
            raise UserError(f"{path}: expected .txt files in this folder, found none.")
        return _documents(files)
    if not path.is_file():
        raise UserError(f"{path}: expected a .txt or .jsonl file or a folder of .txt files, found nothing.")
    if has_ending(path, ".txt"):
        return _documents([path])
    if has_ending(path, ".jsonl"):
        return Stored(path, partial(_joined, fields))
    raise UserError(f"{path}: expected a .txt or .jsonl file or a folder of .txt files, found '{path.suffix}'.")


def is_plain(path: Path) -> bool:
    """Whether :func:`load_documents` reads a path: .txt files, JSON lines, or what is not there, to be refused."""
    if path.is_dir():
        return bool(files_below(path, [".txt"])) or not files_below(path, ENDINGS)
    return not path.is_file() or has_ending(path, ".txt", ".jsonl") or not ending_of(path)


def _documents(files: list[Path]) -> Examples:
    documents = Mapped(files, _document)
    for _ in documents:
        pass  # a bad file is refused now, not in the middle of a run
    return documents


def _document(file: Path) -> dict:
    return {"text": text_field({"text": read_text(file)}, "text", str(file)), "origin": str(file)}


def _joined(fields: Sequence[str], record: dict, origin: str) -> list[dict]:
    return [{"text": "\n".join(text_field(record, name, origin) for name in fields), "origin": origin}]


def pack_documents(documents: Examples, tokenizer, *, length: int, short_share: float = 0.0, seed: int = 0) -> Encoded:
    """Pack the documents' tokens end to end into rows, an end token after each; no token is lost or repeated.

    Documents come in an order drawn from ``seed``, are cut wherever a row is full, and attend to each other within a
    row, as is usual in pre-training. A ``short_share`` of the rows, drawn from ``seed``, has a length uniform on 1 to
    ``length`` instead of ``length``; the last row holds what is left.

    Raises:
        UserError: no documents, or one whose tokens no row may hold.
    """
    if not documents:
        raise UserError("data: expected at least one document, found none.")
    rng = random.Random(f"pack/{seed}")
    order = list(range(len(documents)))
    rng.shuffle(order)
    rows, waiting, size = RowsBuilder(), [], None
    for place in order:
        document = documents[place]
        ids = tokenizer.encode(document["text"])
        refuse_ids(ids, tokenizer, document.get("origin", f"document {place}"))
        waiting += [*ids, tokenizer.eos_token_id]
        start = 0
        while start < len(waiting):
            # A row's length is drawn when its first token is placed.
            if size is None:
                size = rng.randint(1, length) if rng.random() < short_share else length
            if start + size > len(waiting):
                break
            rows.add(TokenRow(waiting[start : start + size], 0, origin=f"text row {len(rows)}"))
            start, size = start + size, None
        waiting = waiting[start:]
    if waiting:
        rows.add(TokenRow(waiting, 0, origin=f"text row {len(rows)}"))
    return Encoded(rows.rows(), [])

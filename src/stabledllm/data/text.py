"""Plain text for pre-training: documents packed end to end into rows of one length, every token maskable.

Source: LLaDA's pre-training (arXiv:2502.09992, section 2.2 and appendix B.1): full rows, 1 % of them of random length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def are_documents(examples: Examples) -> bool:
    """Whether examples are documents, which are packed."""
    return bool(examples) and "text" in examples[0]


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
    places = packing_order(documents, seed)
    encoded = (encode_documents([documents[place]], tokenizer)[0] for place in places)
    rows = packed(encoded, length=length, short_share=short_share, seed=seed, documents=len(places))
    return Encoded(RowsBuilder(rows).rows(), [])


def packing_order(documents: Examples, seed: int) -> list[int]:
    """The places of the documents in the order in which they are packed.

    Raises:
        UserError: no documents.
    """
    if not documents:
        raise UserError("data: expected at least one document, found none.")
    order = list(range(len(documents)))
    random.Random(f"pack/{seed}").shuffle(order)
    return order


def encode_documents(documents: Sequence[dict], tokenizer) -> list[list[int]]:
    """The ids of each document, with an end token behind them.

    Raises:
        UserError: an id that no row may hold.
    """
    encoded = []
    for document in documents:
        ids = tokenizer.encode(document["text"])
        refuse_ids(ids, tokenizer, document.get("origin", "a document"))
        encoded.append([*ids, tokenizer.eos_token_id])
    return encoded


def packed(
    encoded: Iterable[Sequence[int]], *, length: int, short_share: float, seed: int, documents: int
) -> Iterator[TokenRow]:
    """The rows that documents' ids make, see :func:`pack_documents`."""
    rng = random.Random(f"pack/{seed}")
    rng.shuffle(list(range(documents)))  # the lengths are drawn behind the order
    packer = Packer(lambda _: rng.randint(1, length) if rng.random() < short_share else length)
    for ids in encoded:
        yield from packer.add(ids)
    yield from packer.rest()


class Packer:
    """Lays documents' ids end to end and cuts them into rows.

    Args:
        length_of: the length of a row, given the number of rows before it; asked once for each, in their order, when
            its first token is there. rows: number of rows made before. waiting: ids before, which fill no row yet.
    """

    def __init__(self, length_of: Callable[[int], int], rows: int = 0, waiting: Sequence[int] = ()):
        self._length_of, self.rows, self.waiting = length_of, rows, list(waiting)
        self._length: int | None = None

    def add(self, ids: Sequence[int]) -> list[TokenRow]:
        """The rows that are full once another document's ids follow."""
        self.waiting += ids
        start, rows = 0, []
        while start < len(self.waiting):
            if self._length is None:
                self._length = self._length_of(self.rows)
            if start + self._length > len(self.waiting):
                break
            rows.append(self._row(start, start + self._length))
            start += len(rows[-1])
        self.waiting = self.waiting[start:]
        return rows

    def rest(self) -> list[TokenRow]:
        """The last row, which holds what is left; none where nothing is."""
        rows = [self._row(0, len(self.waiting))] if self.waiting else []
        self.waiting = []
        return rows

    def _row(self, start: int, end: int) -> TokenRow:
        row = TokenRow(self.waiting[start:end], 0, origin=f"text row {self.rows}")
        self.rows, self._length = self.rows + 1, None
        return row

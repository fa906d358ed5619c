"""Small files to stream rows from, and streams of them."""

from __future__ import annotations

import json
from pathlib import Path

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import encoding_options
from stabledllm.data.row_stream import RowStream, open_stream
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.training.streaming import StreamedRows


def write_lines(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def answers(start: int, rows: int) -> list[dict]:
    """Questions and answers of unequal length; each is told by its number."""
    return [
        {"prompt": f"What is {i}?", "response": f"It is {'very ' * (i % 4)}{i}"} for i in range(start, start + rows)
    ]


def documents(start: int, rows: int) -> list[dict]:
    return [{"text": f"document {i} " + "and so on " * (i % 5)} for i in range(start, start + rows)]


def write_folder(folder: Path, make=answers, files: int = 4, rows: int = 15) -> Path:
    """A folder of files of the same number of rows, numbered on from file to file."""
    for file in range(files):
        write_lines(folder / f"part-{file}.jsonl", make(file * rows, rows))
    return folder


def settings_of(train: Path | str, **more) -> DataSettings:
    return DataSettings.model_validate({"train": str(train), "streaming": True, "max_len": 64, **more})


def stream_of(train: Path | str, **more) -> RowStream:
    """The stream of a file or folder, tokenised by bytes."""
    settings = settings_of(train, **more)
    return open_stream(settings, ByteTokenizer(), encoding_options(settings))


def rows_of_steps(folder: Path, steps: int, batch: int) -> StreamedRows:
    """The rows of a run on documents of a folder, with a buffer of less than a file."""
    stream = stream_of(folder, shuffle_buffer=10, max_len=40, short_share=0.3)
    return StreamedRows(stream, seed=5, steps=steps, batch=batch)

"""How soon training begins on streamed rows, and in how much memory. Target: seconds, however many rows there are.

Each start is a process of its own that streams generated documents of 200 tokens from one file and takes one step with
the tiny model; memory is that process's peak above the same start on 64 documents. Beside it: the peak of a process
that reads the whole file once, and the seconds to the first row when a run goes on behind 9 of 10 rows of the file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path

from common import save
from token_cache import LENGTH, start


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--folder", type=Path, help="where the rows lie; a temporary folder without it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        held, small, data = (folder / f"{part}.jsonl" for part in ("held", "small", "data"))
        for path, rows in ((held, 20), (small, 64), (data, asked.rows)):
            write(path, rows)
        streamed = {"streaming": True, "validation": f"text:{held}", "max_len": LENGTH}
        base = start(folder, small, streamed | {"train": f"text:{small}"})["mib"]
        first = start(folder, data, streamed | {"train": f"text:{data}"})
        read = apart(_read, streamed | {"train": f"text:{data}"}, asked.rows)
        told = {
            "first step, seconds": first["seconds"],
            "first step, MiB above the model": first["mib"] - base,
            "a whole pass, MiB above its beginning": read["mib"],
            "a whole pass, rows per second": read["rows per second"],
            "first row behind 9 of 10, seconds": read["behind"],
        }
    save("streaming", told, rows=asked.rows, length=LENGTH)


def write(path: Path, rows: int) -> None:
    """Documents of 200 tokens of the byte tokenizer, its end token among them."""
    rng = random.Random(path.name)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = f"{path.stem} {number} {rng.getrandbits(6400):x}"[: LENGTH - 1]
            file.write(json.dumps({"text": text}) + "\n")


def apart(function, *arguments) -> dict:
    """What a function sends from a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=function, args=(its, *arguments))
    process.start()
    result = ours.recv()
    process.join()
    print(function.__name__, result, flush=True)
    return result


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _read(out, data: dict, rows: int) -> None:
    from stabledllm.config.settings import DataSettings
    from stabledllm.data.bundle import encoding_options
    from stabledllm.data.row_stream import open_stream
    from stabledllm.data.stream import Place
    from stabledllm.models.byte_tokenizer import ByteTokenizer

    settings = DataSettings.model_validate(data | {"short_share": 0})
    stream = open_stream(settings, ByteTokenizer(), encoding_options(settings))
    before, began = _peak(), time.perf_counter()
    read = sum(1 for _ in islice(stream.read(0), rows))
    seconds, mib = time.perf_counter() - began, _peak() - before
    began = time.perf_counter()
    next(stream.read(0, Place(read=rows * 9 // 10)))
    out.send({"mib": mib, "rows per second": read / seconds, "behind": time.perf_counter() - began})


if __name__ == "__main__":
    main()

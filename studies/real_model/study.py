"""A real pretrained model through the whole machine: which conversion, its noise, and fine-tuning with every method.

    python -m studies.real_model.study                      everything, resumable; some 6 hours on one core
    python -m studies.real_model.study --only adapt         one part: models, adapt, noise, finetune or page
    python -m studies.real_model.study --gguf PATH          the model's GGUF file, instead of fetching it
    python -m studies.real_model.study --earlier FILE       a results.json of another machine: what it holds is not
                                                          made again
    python -m studies.real_model.study --rehearse           a random model of 2 layers, everything, in about a minute

SmolLM2-135M-Instruct (Apache-2.0) comes from the package index, as in `make real`; its text from reasoning-gym
(`pip install 'stabledllm[train,gguf,reasoning-gym]'`). What is done is not done again: run it again after a kill. Where
a GPU is found, more rows, steps and seeds are taken; --device cpu does without it. Everything is written below --out;
results.json, the pictures and the tables of README.md come back here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

from scripts.real_model import Stopped, fetch
from studies.real_model.earlier import earlier_of
from studies.real_model.parts import Item, Study, in_float32
from studies.real_model.sizes import CPU, GPU, REHEARSAL, Sizes

from stabledllm.errors import UserError
from stabledllm.runtime.device import ask_for
from stabledllm.runtime.files import read_json, write_json
from stabledllm.runtime.showing import duration

PARTS = ("models", "adapt", "noise", "finetune")
NEWER = ("familiar",)
"""Sizes that folders from before them do not say, and that nothing of theirs depends on."""


def main(words: Sequence[str] | None = None) -> int:
    """Make what is not there yet, then the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real_model"), help="folder for everything it makes")
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf, where it is there already")
    parser.add_argument("--only", choices=(*PARTS, "page"), help="one part, of which the parts before it are done")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU where there is one")
    parser.add_argument("--jobs", type=int, help="commands at the same time; 1 on a CPU unless given")
    parser.add_argument("--earlier", type=Path, help="results.json of another machine: what it holds is not made again")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes: does every step run?")
    given = parser.parse_args(words)
    _take_device(given.device)
    try:
        if given.jobs is not None and given.jobs < 1:
            raise Stopped(f"--jobs: expected at least 1, found {given.jobs}")
        size = sizes(rehearse=given.rehearse)
        earlier = earlier_of(given.out, given.earlier, size)
        study = prepare(given.out, given.gguf, size)
        study = replace(study, jobs=given.jobs or study.sizes.jobs, earlier=earlier)
        for part in PARTS:
            if given.only in (None, part):
                make(study, part)
        if given.only in (None, "page"):
            write(study)
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    except FileNotFoundError as error:
        print(
            f"study: expected {error.filename} of an earlier part, found none; run the parts in order.", file=sys.stderr
        )
        return 1
    except Stopped as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"study: a command ended with exit code {error.returncode}; run this again to go on.", file=sys.stderr)
        return 1
    return 0


def _take_device(name: str) -> None:
    """Every command of the study computes on the same device; ``decompose`` would stay on the CPU unless told."""
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if torch.cuda.is_available():
        ask_for("cuda")


def sizes(*, rehearse: bool) -> Sizes:
    """How much is done on this machine."""
    import torch

    return REHEARSAL if rehearse else GPU if torch.cuda.is_available() else CPU


def prepare(out: Path, gguf: Path | None, sizes: Sizes) -> Study:
    """The study, with the model that it starts from."""
    _keep_to(out, sizes)
    if sizes is REHEARSAL:
        from studies.near_arm import checkpoint

        if not (out / "random" / "config.json").is_file():
            checkpoint.write(out / "random")
        return Study(out, sizes, out / "random")
    file = gguf or out / "package" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if gguf and not gguf.is_file():
        raise Stopped(f"--gguf: expected a file, found none at {gguf}")
    if not file.is_file():
        fetch(file)
    return Study(out, sizes, file)


def _keep_to(out: Path, sizes: Sizes) -> None:
    """Refuse a folder that holds a study of other sizes, whose parts would not be of one study."""
    here = {"jobs": None, "precision": "float32" if in_float32("") else "bfloat16"}
    file, own = out / "sizes.json", json.loads(json.dumps(asdict(sizes) | here))
    if not file.is_file():
        write_json(file, own)
    elif (found := here | {key: own[key] for key in NEWER} | read_json(file) | {"jobs": None}) != own:
        keys = ", ".join(key for key in own if found.get(key) != own[key])
        raise Stopped(f"{out}: expected a study of the same sizes, found others ({keys}); take another --out.")


def write(study: Study) -> None:
    """Write the page here; a rehearsal's stays in its own folder."""
    from studies.real_model.page import HERE, write_page

    folder = study.out / "page" if study.sizes is REHEARSAL else HERE
    write_page(study, folder)
    print(f"wrote {folder / 'README.md'}, results.json and the pictures", flush=True)


def make(study: Study, part: str) -> None:
    """Make the items of a part that are not there, with a line of progress for each; a stage's at the same time."""
    items = study.items(part)
    started, made, left = time.monotonic(), 0.0, sum(item.cost for item in items if not item.done)

    def make_one(number: int, item: Item) -> None:
        nonlocal made
        head = f"[{part} {number}/{len(items)}] {item.name}"
        if item.done:
            print(f"{head}: {'kept from the earlier results' if item.kept else 'done before'}", flush=True)
            return
        print(head, flush=True)
        begun = time.monotonic()
        item.run()
        made += item.cost
        now = time.monotonic()
        print(f"{head}: {duration(now - begun)}; {_left(left - made, (now - started) / made)}", flush=True)

    for _, stage in groupby(enumerate(items, 1), key=lambda numbered: numbered[1].stage):
        together = list(stage)
        if study.jobs == 1 or len(together) == 1:  # what is no command of its own stays in the main thread
            for number, item in together:
                make_one(number, item)
            continue
        with ThreadPoolExecutor(study.jobs) as pool:
            for done in [pool.submit(make_one, number, item) for number, item in together]:
                done.result()


def _left(cost: float, seconds_per_cost: float) -> str:
    return f"about {duration(cost * seconds_per_cost)} left of this part" if cost > 0.01 else "the part is done"


if __name__ == "__main__":
    sys.exit(main())

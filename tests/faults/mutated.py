"""Stored files that were damaged: every command on them ends with a sentence, never a traceback, never a hang."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp

from tests.faults.cases import CASES, RUN
from tests.faults.events import Faults
from tests.faults.forked import command

_SECONDS = 90
_EVAL = (
    "eval", "--model", "run/model", "--out", "eval", "--rows", "2", "--length", "8", "--steps", "2", "--beside", "none",
)  # fmt: skip
_BEGUN = (*_EVAL[:4], "begun", *_EVAL[5:])
_EXPERIMENT = next(case for case in CASES if case.name == "experiment").arguments
_GENERATE = ("generate", "2+2=?", "--model", "run/model", "--length", "8", "--steps", "2")


def _train(out: str, *more: str) -> tuple[str, ...]:
    return ("train", "recipe.yaml", f"out={out}", *RUN, *more)


_TARGETS = {
    "run/run.json": (_train("run"),),
    "cut/trained.json": (_train("cut"),),
    "cut/checkpoint-4/stabledllm.json": (_train("cut"),),
    "half/checkpoint-2/stabledllm.json": (_train("half"),),
    "half/checkpoint-2/trainer_state.json": (_train("half"),),
    "half/checkpoint-2/model.safetensors": (_train("half"),),
    "half/checkpoint-2/optimizer.pt": (_train("half"),),
    "run/model/config.json": (_EVAL, _GENERATE, _train("more", "model=run/model")),
    "run/model/model.safetensors": (_EVAL, _GENERATE),
    "recipe.yaml": (("validate", "recipe.yaml"), _train("new")),
    "out/experiment.json": (_EXPERIMENT,),
    "out/untuned.json": (_EXPERIMENT,),
    "out/results.json": (("report", "out"), ("power", "--from", "out", "--difference", "0.1")),
    "out/p_of_t_ppots.json": (_EXPERIMENT, ("report", "out")),
    "out/runs/standard/seed-1/run.json": (_EXPERIMENT,),
    "fit/p_of_t.json": (("report", "fit"), _train("fitted", "method=ppots", "p_of_t=fit/p_of_t.json")),
    "decompose/decomposition.json": (("report", "decompose"), ("recommend", "--from", "decompose")),
    "eval/eval.json": (_EVAL,),
    "begun/journal/completions-0.jsonl": (_BEGUN,),
}
"""Files, and the commands that read them."""


def work(names: tuple[str, ...] = ("",)) -> list[tuple[str, Callable[[], str]]]:
    """Every damage of every file whose name begins so, read by every command that reads it."""
    found = []
    for target, commands in _TARGETS.items():
        if not target.startswith(names):
            continue
        content = (folder() / target).read_bytes()
        for what, damaged in damages(content, target):
            for arguments in commands:
                found.append((f"{target} {what}, {arguments[0]}", partial(_wrong, target, damaged, arguments)))
    return found


def damages(content: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """What becomes of a file: cut, emptied, no text, and each value in it, for JSON, missing or of another kind."""
    yield "empty", b""
    yield "cut in half", content[: len(content) // 2]
    yield "without its last byte", content[:-1]
    yield "no UTF-8", b"\xff\xfe" + content
    yield "of zeros", bytes(len(content))
    if name.endswith((".json", ".jsonl")):
        for other in ("null", "[]", "{}", "3", '"text"', "NaN", "[" * 100_000):
            yield f"holding {other[:10]}", other.encode()
    if name.endswith(".json"):
        yield from _of_values(json.loads(content))


def _of_values(tree: dict) -> Iterator[tuple[str, bytes]]:
    """One value at a time, drawn among all of them, so that each level of the tree is met."""
    places, draw = list(_places(tree)), random.Random(0)
    for place in draw.sample(places, min(12, len(places))):
        for other in (None, [], "text", -1, 10**30):
            yield f"with {'.'.join(map(str, place))} = {other!r}", _put(tree, place, other)


def _places(tree: object, at: tuple = ()) -> Iterator[tuple]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from _places(value, (*at, key))


def _put(tree: dict, place: tuple, value: object) -> bytes:
    copy = json.loads(json.dumps(tree))
    holder = copy
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return json.dumps(copy).encode()


def _wrong(target: str, content: bytes, arguments: tuple[str, ...]) -> str:
    place = Path(mkdtemp(prefix="faults-mutated-")).resolve()
    try:
        shutil.copytree(folder(), place, dirs_exist_ok=True)
        (place / target).write_bytes(content)
        ended = command(*arguments, cwd=place, seconds=_SECONDS)
        if ended.code not in (0, 2, 3) or "Traceback" in ended.printed:
            return f"ended with code {ended.code}: {ended.last[:300]}"
        return ""
    finally:
        shutil.rmtree(place, ignore_errors=True)


@cache
def folder() -> Path:
    """A folder with something finished, begun and killed of each kind."""
    home = Path(mkdtemp(prefix="faults-stored-")).resolve()
    recipe = Path(__file__).parents[2] / "src" / "stabledllm" / "recipes" / "sft-synthetic.yaml"
    shutil.copyfile(recipe, home / "recipe.yaml")
    probe = ("ppots.rows=2", "ppots.rates=4", "ppots.masks=2", "ppots.starts=1")
    small = ("rows=4", "rates=2", "masks=2", "steps=4", "probe.rows=2", "probe.rates=4", "probe.masks=2")
    for arguments in (
        _train("run"),
        _EVAL,
        _EXPERIMENT,
        ("fit", "--out", "fit", *probe),
        ("decompose", "--out", "decompose", "--methods", "standard", *small),
    ):
        ended = command(*arguments, cwd=home)
        assert ended.code == 0, ended.printed
    for arguments, made in (
        (_train("cut"), "cut/trained.json"),
        (_train("half"), "half/checkpoint-2/stabledllm.json"),
        (_BEGUN, "begun/journal/completions-0.jsonl"),
    ):
        _killed_after(home, arguments, made)
    return home


def _killed_after(home: Path, arguments: tuple[str, ...], made: str) -> None:
    """Run a command that is killed at the first event after a file is there."""
    faults = Faults(home, kind="kill", after=home / made)
    command(*arguments, cwd=home, before=faults.install)
    assert (home / made).is_file(), made

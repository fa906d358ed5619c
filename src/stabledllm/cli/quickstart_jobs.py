"""The quickstarts: everything from measuring to the report, on a shipped model; each can be resumed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from stabledllm.cli import decompose, experiment, fit
from stabledllm.cli.beside import beside
from stabledllm.cli.printing import answer, say
from stabledllm.runtime.files import copy, read_json
from stabledllm.runtime.locks import writing
from stabledllm.runtime.sameness import Differences, differences

_SMALL_LAB = {"rows": 8, "rates": 4, "masks": 2, "steps": 6, "probe": {"rows": 6, "rates": 6, "masks": 2}}
_SMALL_PROBE = {"rows": 6, "rates": 6, "masks": 2, "starts": 3}
_SMALL_RUNS = (
    "base.steps=4", "base.eval_every=2", "base.save_every=2", "base.log_every=1", "base.data.validation_rows=8",
    "base.data.test_rows=4", "base.data.train_rows=64",
    *(f"base.ppots.{name}={value}" for name, value in _SMALL_PROBE.items()),
)  # fmt: skip


@dataclass(frozen=True)
class Quickstart:
    """One quickstart: what it measures, fits and trains."""

    recipe: str
    """Name of the shipped experiment."""
    common: dict
    """Settings that all parts share: model, data, objective."""
    methods: Sequence[str]
    """Methods that are measured."""
    fitted: Sequence[str]
    """Methods whose p(t) is fitted and drawn before the experiment uses it."""
    small_runs: Sequence[str] = ()
    """Further overrides of the experiment in the reduced run."""


TEXT = Quickstart(
    recipe="quickstart",
    common={"data": {"train": "synthetic:hard", "pad_response_to": 40}},
    methods=("standard", "ppots", "mirror", "ppots+mirror", "strats", "fixedcount", "lowdisc+fixedcount", "clipped"),
    fitted=("ppots", "ppots+mirror"),
)
IMAGES = Quickstart(
    recipe="quickstart-images",
    common={
        "model": "tiny-mmada",
        "data": {"train": "scenes", "image": {}},
        "objective": {"weighting": "cosine"},
    },
    methods=("standard", "ppots", "mirror", "ppots+mirror", "strats", "lowdisc"),
    fitted=("ppots+mirror",),
    small_runs=("base.image_decoding.steps=3",),
)


def run(job: Quickstart, out: Path, *, small: bool) -> None:
    """Measure, fit, train, evaluate and report; parts that are done already are not repeated."""
    with writing(out, "quickstart"):
        _run(job, out, small=small)


def _run(job: Quickstart, out: Path, *, small: bool) -> None:
    import torch

    started = time.perf_counter()
    common = deepcopy(job.common)
    if "image" in common["data"]:
        common["data"]["image"]["cache"] = str(out / "codes")
    lab = {"methods": list(job.methods), "out": str(out / "decompose")} | (_SMALL_LAB if small else {})
    measured = _is_there(out / "decompose" / "decomposition.json", deepcopy(common) | lab)
    fits = _unfitted(job, common, out, small)
    threads = torch.get_num_threads()
    spare = 0 if measured else _spare(job, threads)
    training = job.recipe, _overrides(job, common, out, small)
    torch.set_num_threads(max(1, threads - spare))
    with beside(threads=spare) if spare else nullcontext() as other:
        if other:
            fitting = other.start(_fit, job, fits, out)
            other.start(_begin_training, *training)
        say("1/4 where the noise comes from, and what each method does to it")
        if not measured:
            decompose.run(deepcopy(common) | lab, [])
        say("2/4 the densities p(t)")
        if other:
            say(fitting.printed().rstrip("\n"))
        else:
            _fit(job, fits, out)
        say("3/4 training: methods x seeds, at equal compute")
        if other:
            say("the process that fitted the densities makes runs as well, and has begun")
        experiment.run(*training)
    torch.set_num_threads(threads)
    say("4/4 the report")
    from stabledllm.reports.html import write_report

    answer(f"report: {write_report(out).resolve()} ({time.perf_counter() - started:.0f} s)")


def _spare(job: Quickstart, threads: int) -> int:
    """The threads of a process that fits and trains beside the measurement; 0 for none.

    Images share a folder of codes, for which it would only wait.
    """
    return 0 if "image" in job.common["data"] else threads // 2


def _fit_folder(out: Path, method: str) -> Path:
    return out / "fit" / method.replace("+", "_")


def _unfitted(job: Quickstart, common: dict, out: Path, small: bool) -> list[dict]:
    """The settings of every fit that is not done already."""
    probe = _SMALL_PROBE if small else {"rows": 32, "rates": 24, "masks": 4}
    return [
        deepcopy(common) | {"method": method, "ppots": probe, "out": str(_fit_folder(out, method))}
        for method in job.fitted
        if not _is_there(_fit_folder(out, method) / "p_of_t.json", probe)
    ]


def _fit(job: Quickstart, fits: Sequence[dict], out: Path) -> None:
    """Make the fits, and place the densities of all of them where the experiment looks for them."""
    for settings in fits:
        fit.run(settings, [])
    for folder in (_fit_folder(out, method) for method in job.fitted):
        copy(folder / "p_of_t.json", out / "experiment" / f"p_of_t_{folder.name}.json")


def _begin_training(recipe: str, overrides: Sequence[str]) -> None:
    """Make the experiment's runs that nobody else is at; whoever calls for all of them waits for these."""
    experiment.run(recipe, overrides, wait=False)


def _overrides(job: Quickstart, common: dict, out: Path, small: bool) -> list[str]:
    """The experiment's settings beside its recipe."""
    overrides = ["out=" + str(out / "experiment"), *([*_SMALL_RUNS, *job.small_runs] if small else [])]
    if "image" in common["data"]:
        overrides.append(f"base.data.image.cache={out / 'codes'}")
    return overrides


def _is_there(path: Path, settings: dict) -> bool:
    """Whether a part of the job is done already.

    Raises:
        UserError: it was done with other settings; names the first that differs.
    """
    if not path.is_file():
        return False
    saved = read_json(path).get("config", {})
    differing = differences(saved, settings).differing
    differing.pop("out", None)  # the whole folder may have been moved
    Differences(differing, []).refuse(path, "a quickstart of the same size", "take another folder with --out")
    return True

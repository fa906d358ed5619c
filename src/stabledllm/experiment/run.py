"""The runs of an experiment: each in its own folder, resumable after a kill, finished ones never repeated."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from stabledllm.config.build import build_decoding, build_method, build_model, build_objective
from stabledllm.config.recipe import check
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.bundle import DataBundle, load_bundle
from stabledllm.data.pictures import settled
from stabledllm.errors import UserError
from stabledllm.evaluation.generated import can_be_scored, decoded_by, journal_name, score_generated
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.validation import validation_nll
from stabledllm.experiment.board import Board
from stabledllm.experiment.claims import attempt, failure, finished, forget_failures, is_free
from stabledllm.experiment.statements import statements
from stabledllm.experiment.summary import summarise
from stabledllm.experiment.workers import POLL, train_all
from stabledllm.files import read_json, write_json
from stabledllm.folders import remove_empty, sweep, writable_folder
from stabledllm.locks import waiting_for
from stabledllm.measure import LossMeter
from stabledllm.models.loading import LoadedModel
from stabledllm.objective import Objective
from stabledllm.ppots.density import canonical
from stabledllm.provenance import device_name, versions
from stabledllm.saying import say as print_line
from stabledllm.training.density import probe_and_fit
from stabledllm.training.run import SCHEMA as RUN_SCHEMA
from stabledllm.training.run import set_form, train

SCHEMA = "stabledllm/results/1"
PLAN = "experiment.json"
UNTUNED = "untuned"
Say = Callable[[str], None]


def run_experiment(
    settings: ExperimentSettings,
    say: Say = print_line,
    jobs: int = 1,
    *,
    devices: Sequence[str] = (),
    wait: bool = True,
) -> dict:
    """Run what is not finished yet and write ``results.json`` after every run.

    Any number of processes, on any machines that share the folder, may call it at the same time: each run is done by
    one of them, and by another if that one is killed. A run that fails does not stop the others.

    Args:
        jobs: runs at the same time, each in a process of its own; 1 trains in this one.
        devices: accelerators by number, dealt to the jobs.
        wait: in the end for runs that other processes are at.

    Raises:
        UserError: bad settings, a folder that holds an experiment with other settings, or, after all others, runs that
            failed.
    """
    if jobs < 1:
        raise UserError(f"experiment: expected at least 1 job, found {jobs}.")
    settings = settings.model_copy(update={"base": settled(settings.base)})
    out = Path(settings.out)
    methods = [build_method(name, settings.base.method_options).name for name in settings.methods]
    for name in methods:
        build_method(name, settings.base.method_options).under(build_objective(settings.base.objective))
        rows_per_step(name, settings)
    build_decoding(settings.base.decoding)
    remove_empty(writable_folder(out))
    for place in (out, out / UNTUNED):  # the runs' folders are swept by those who do them
        sweep(place)
    _claim(out, settings)
    loaded = build_model(settings.base)
    for name in methods:
        loaded.check_method(build_method(name, settings.base.method_options))
    set_form(loaded, settings.base)
    data = load_bundle(settings.base.data, loaded.tokenizer, say)
    with waiting_for(out / "setup.lock", say):  # of several processes the first makes what all need
        untuned = _untuned(out, settings.base, loaded, data, say)
        densities = {name: _density(out, settings, name, loaded, data, say) for name in methods}
    planned = [_run_settings(settings, name, seed, densities[name]) for seed in settings.seeds for name in methods]
    forget_failures([run for run in planned if is_free(run)])

    def ended() -> dict:
        return collect(out, settings, untuned)

    if jobs > 1 or devices:
        with Board(planned, say) as board:
            train_all(planned, jobs, board, devices=devices, wait=wait, ended=ended)
    else:
        _one_by_one(planned, data, wait, ended, say)
    results = ended()
    failed = [run for run in planned if failure(run) is not None]
    if failed:
        raise UserError(
            f"{out}: expected {len(planned)} runs to finish, found {len(failed)} that failed, the first "
            f"{failed[0].method} with seed {failed[0].seed} ({failure(failed[0])}); the same command tries them again."
        )
    return results


def _one_by_one(
    planned: list[TrainSettings], data: DataBundle, wait: bool, ended: Callable[[], object], say: Say
) -> None:
    """Every run that is free, in this process; then those that come free while others are at them."""
    left = list(planned)
    with tqdm(total=len(planned), desc="experiment", unit="run") as bar:
        while left:
            for run in list(left):
                bar.set_postfix_str(f"{run.method}, seed {run.seed}")
                attempt(run, lambda settings: train(settings, data=data, say=say))
                if finished(run) or failure(run) is not None:
                    left.remove(run)
                    bar.update()
                    ended()
            if not wait and not any(is_free(run) for run in left):
                break
            if left:
                time.sleep(POLL)


def rows_per_step(method: str, settings: ExperimentSettings) -> int:
    """Rows of an optimizer step: with ``equal: compute`` a K-view method gets 1 / K of the batch.

    Raises:
        UserError: the batch does not divide by the number of views.
    """
    views = build_method(method, settings.base.method_options).views.count
    if settings.equal == "steps":
        return settings.base.batch
    if settings.base.batch % views:
        raise UserError(
            f"key 'base.batch': expected a multiple of the {views} views of '{method}', found {settings.base.batch}."
        )
    return settings.base.batch // views


def collect(out: Path, settings: ExperimentSettings, untuned: dict | None) -> dict:
    """``results.json`` from the finished runs' own files."""
    records = [
        read_json(path, RUN_SCHEMA)
        for name in settings.methods
        for seed in settings.seeds
        if (path := run_folder(out, build_method(name, settings.base.method_options).name, seed) / "run.json").is_file()
    ]
    kept = ("method", "seed", "metrics", "forward_passes", "probe_forward_passes", "steps", "seconds", "history")
    runs = [{key: record[key] for key in kept} for record in records]
    results = {
        "schema": SCHEMA,
        "config": settings.model_dump(),
        "versions": versions(),
        "device": records[0]["device"] if records else device_name(),
        "status": {"finished": len(runs), "planned": len(settings.methods) * len(settings.seeds)},
        "untuned": untuned,
        "runs": runs,
        "summary": (summary := summarise(runs, settings.baselines)),
        "statements": statements(runs, summary),
        "notes": _notes(settings, runs),
    }
    write_json(out / "results.json", results)
    return results


def run_folder(out: Path, method: str, seed: int) -> Path:
    """Where one run lives."""
    return out / "runs" / method / f"seed-{seed}"


def _notes(settings: ExperimentSettings, runs: list[dict]) -> list[str]:
    what = {
        "compute": "Every method made the same number of training forward passes: K views take 1/K of the rows.",
        "steps": "Every method took the same rows and steps; one with K views made K times the forward passes.",
    }
    notes = [what[settings.equal]]
    if any("ppots" in name for name in settings.methods):
        probes = {r["method"]: r["probe_forward_passes"] for r in runs if r["probe_forward_passes"]}
        told = ", ".join(f"{method} {count:,}" for method, count in probes.items()) or "not made yet"
        notes.append(
            f"On top of that, P-POTS's probe, once a method and shared by its seeds, took forward passes: {told}."
        )
    return notes


def _claim(out: Path, settings: ExperimentSettings) -> None:
    """Remember the settings in the folder; seeds and methods may be added later, nothing else may change."""
    free = {"methods", "seeds", "out", "baselines"}
    mine = {k: v for k, v in settings.model_dump().items() if k not in free}
    path = out / PLAN
    if path.is_file():
        # Keys that are newer than the folder had their defaults then.
        theirs = check(read_json(path)["settings"], ExperimentSettings, str(path)).model_dump()
        for key, value in mine.items():
            if theirs.get(key) != value:
                raise UserError(f"{path}: expected the experiment that is there, found other settings under '{key}'.")
    else:
        write_json(path, {"settings": mine})


def _untuned(out: Path, base: TrainSettings, loaded: LoadedModel, data: DataBundle, say: Say) -> dict:
    path = out / "untuned.json"
    if path.is_file():
        return read_json(path)
    own = build_objective(base.objective)
    objectives = {"validation_nll": Objective()} | ({"validation_objective": own} if own.counts == "cosine" else {})
    ids = {"mask_id": loaded.mask_id, "pad_id": loaded.pad_id}
    metrics = {
        name: validation_nll(
            LossMeter(loaded.model, data.validation, objective, block_size=base.block_size, **ids), base.eval_draws
        ).as_dict()
        for name, objective in objectives.items()
    }
    if can_be_scored(data.test):
        decoded = {"model": base.model} | decoded_by(base, data.test)
        journal = Journal(out / "untuned_journal", journal_name(data.test), decoded)
        metrics |= score_generated(loaded, data.test, base, journal, out / UNTUNED)[0]
    say("untuned: " + ", ".join(f"{name} {value['value']:.4f}" for name, value in metrics.items()))
    write_json(path, {"metrics": metrics})
    shutil.rmtree(out / "untuned_journal", ignore_errors=True)
    return {"metrics": metrics}


def _density(
    out: Path, settings: ExperimentSettings, name: str, loaded: LoadedModel, data: DataBundle, say: Say
) -> Path | None:
    """p(t) of a method: a property of model, data and method, so it is fitted once for all seeds."""
    base = settings.base
    method = build_method(name, base.method_options)
    if not method.needs_p:
        return None
    path = out / f"p_of_t_{canonical(name).replace('+', '_')}.json"
    if not path.is_file():
        density = probe_and_fit(
            loaded,
            data.train,
            method,
            build_objective(base.objective),
            base.ppots,
            0,
            rows_per_step(name, settings),
            block_size=base.block_size,
        )
        density.save(path)
        say(density.summary())
        if density.fallback:
            say(f"note: {density.fallback}")
    return path


def _run_settings(settings: ExperimentSettings, name: str, seed: int, density: Path | None) -> TrainSettings:
    return settings.base.model_copy(
        update={
            "method": name,
            "seed": seed,
            "batch": rows_per_step(name, settings),
            "out": str(run_folder(Path(settings.out), name, seed)),
            "p_of_t": str(density) if density else None,
        }
    )

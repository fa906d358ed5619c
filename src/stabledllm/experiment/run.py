"""Makes the runs of an experiment, each in its own folder, resumable after a kill and never repeated."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stabledllm.build import build_objective
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.bundle import DataBundle
from stabledllm.data.images import with_image_defaults
from stabledllm.data.row_stream import known_rows
from stabledllm.errors import UserError
from stabledllm.evaluation.generated import can_be_scored, decoded_by, journal_name, score_generated
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.progress import shared_bar
from stabledllm.evaluation.ranks import ALONE
from stabledllm.evaluation.validation import row_forwards, validation_nll
from stabledllm.experiment.board import Board
from stabledllm.experiment.budget import rows_per_step, run_share
from stabledllm.experiment.checks import Checked, check_experiment
from stabledllm.experiment.claims import attempt, divergence, failure, finished, forget_failures, is_free
from stabledllm.experiment.compared import of_responses
from stabledllm.experiment.compute_saved import compute_saved
from stabledllm.experiment.duration import telling_time
from stabledllm.experiment.grid import run_folder, title_of
from stabledllm.experiment.notes import notes
from stabledllm.experiment.plan import claim
from stabledllm.experiment.planned import Planned
from stabledllm.experiment.reference import multiple_of
from stabledllm.experiment.results import over_methods, over_rates
from stabledllm.experiment.workers import POLL, train_all
from stabledllm.forward.blocks import loss_meter
from stabledllm.lab.fit import fitted_for, save_fit
from stabledllm.models.loading import LoadedModel
from stabledllm.models.names import in_own_blocks
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.ppots.fitted_for import canonical
from stabledllm.ppots.record import FittedDensity
from stabledllm.reports.spikes import outlier_steps
from stabledllm.runtime.files import read_json, write_json
from stabledllm.runtime.folders import remove_empty, sweep, writable_folder
from stabledllm.runtime.locks import waiting_for
from stabledllm.runtime.provenance import device_name, versions
from stabledllm.runtime.saying import say as print_line
from stabledllm.runtime.showing import bar
from stabledllm.training.diverged import diverged
from stabledllm.training.earlier import SCHEMA as RUN_SCHEMA
from stabledllm.training.run import train
from stabledllm.training.screen import QUIET

SCHEMA = "stabledllm/results/1"
_KEPT = ("method", "seed", "status", "diverged", "metrics", "forward_passes", "probe_forward_passes", "steps")
_KEPT += ("rollout_forward_rows", "seconds", "history", "averages", "learning_rate", "max_grad_norm", "outlier_steps")
UNTUNED = "untuned"
Say = Callable[[str], None]


def run_experiment(
    settings: ExperimentSettings,
    say: Say = print_line,
    jobs: int = 1,
    *,
    devices: Sequence[str] = (),
    wait: bool = True,
    coarse: str | None = None,
) -> dict:
    """Make the runs that are not finished, write ``results.json`` after each, and return its content.

    Any number of processes, on any machines that share the folder, may call this at the same time: each run is done by
    one of them, and by another if that one is killed. A run that fails does not stop the others; one that diverges is
    finished, and counted as diverged.

    Args:
        jobs: number of runs at the same time, each in a process of its own; 1 trains in this process.
        devices: accelerators by number, dealt to the jobs.
        wait: whether to wait at the end for runs that other processes are making.
        coarse: why the results are too coarse to advise anything, which then stands in place of advice.

    Raises:
        UserError: the settings are bad, the folder holds another experiment, or, once all others have ended, some runs
            have failed.
    """
    if jobs < 1:
        raise UserError(f"experiment: expected at least 1 job, found {jobs}.")
    settings = settings.model_copy(update={"base": in_own_blocks(with_image_defaults(settings.base))})
    out = Path(settings.out)
    remove_empty(writable_folder(out))
    for place in (out, out / UNTUNED):  # each run's folder is swept by the process that makes it
        sweep(place)
    checked = check_experiment(settings, say)
    data = checked.data
    with waiting_for(out / "setup.lock", say):  # the first of several processes makes what all need
        untuned, densities = _set_up(out, settings, checked, say)
    planned = _all_runs(settings, checked.runs, densities, data)
    forget_failures([run for run in planned if is_free(run)])

    def ended() -> dict:
        return collect(out, settings, checked.runs, untuned, coarse)

    if jobs > 1 or devices:
        with Board(planned, say, jobs=jobs) as board:
            train_all(planned, jobs, board, devices=devices, wait=wait, ended=ended)
    else:
        _one_by_one(planned, data, wait, ended, say)
    results = ended()
    failed = [run for run in planned if failure(run) is not None]
    if failed:
        first = f"{title_of(failed[0]).replace(', seed', ' with seed')} ({failure(failed[0])})"
        raise UserError(
            f"{out}: expected {len(planned)} runs to finish, found {len(failed)} that failed, the first {first}; the "
            f"same command tries them again."
        )
    return results


def _one_by_one(
    planned: list[TrainSettings], data: DataBundle, wait: bool, ended: Callable[[], object], say: Say
) -> None:
    """Make every free run in this process, then the runs that become free because their process was killed."""
    left = list(planned)
    with bar(len(planned), "experiment", "run") as shown, telling_time(planned, say):
        while left:
            for run in list(left):
                attempt(run, lambda settings: train(settings, data=data, say=say, screen=QUIET, untuned=False))
                if finished(run) or failure(run) is not None:
                    if end := divergence(run):
                        say(f"{title_of(run)}: diverged {end}")
                    left.remove(run)
                    shown.update()
                    ended()
            if not wait and not any(is_free(run) for run in left):
                break
            if left:
                time.sleep(POLL)


def collect(
    out: Path, settings: ExperimentSettings, planned: Sequence[Planned], untuned: dict | None, coarse: str | None = None
) -> dict:
    """Write ``results.json`` from the finished runs' own files, and return its content.

    Args:
        planned: one run of every method, at every learning rate or budget.
    """
    records = [
        record
        for run in planned
        for seed in settings.seeds
        if (record := _record(out, settings, run, seed)) is not None
    ]
    count = sum(diverged(record) is not None for record in records)
    lost = {"diverged": count} if count else {}
    every = [{key: record[key] for key in _KEPT if key in record} for record in records]
    runs, reference = ([r for r in every if (multiple_of(r["method"]) is not None) == other] for other in (False, True))
    compared = over_rates(runs, settings) if settings.learning_rates else over_methods(runs, settings)
    results = {
        "schema": SCHEMA,
        "config": settings.model_dump(),
        "versions": versions(),
        "device": records[0]["device"] if records else device_name(),
        "status": {"finished": len(every), "planned": len(planned) * len(settings.seeds)} | lost,
        "untuned": untuned,
        "runs": runs,
        **compared,
        "notes": notes("budget" if of_responses(settings.base) else settings.equal, records),
    }
    if settings.standard_at:
        results |= {"reference_runs": reference, "compute_saved": compute_saved(runs, reference)}
    if coarse:
        results["advice"] = [coarse]
    write_json(out / "results.json", results)
    return results


def _record(out: Path, settings: ExperimentSettings, run: Planned, seed: int) -> dict | None:
    """The record of a finished run; its outlier steps are counted where learning rates are compared."""
    folder = run_folder(out, run.name, seed, run.cell)
    if not (folder / "run.json").is_file():
        return None
    own = {"method": run.name} | run.cell.values  # a record names the method, not a published estimator
    if settings.learning_rates:
        own["outlier_steps"] = len(outlier_steps(folder))
    return read_json(folder / "run.json", RUN_SCHEMA) | own


def _set_up(
    out: Path, settings: ExperimentSettings, checked: Checked, say: Say
) -> tuple[dict | None, dict[str, tuple[Path, FittedDensity] | None]]:
    """Claim the folder, evaluate the untuned model if that is wanted, and fit p(t) for every method that needs one.

    If that fails, everything it wrote is deleted, so that the corrected command can start afresh.
    """
    before = set(out.iterdir())
    new = claim(out, settings, checked.data, say)
    try:
        untuned = _untuned(out, settings.base, checked.loaded, checked.data, say)
        return untuned, {run.name: _density(out, settings, run.method, checked, say) for run in checked.runs}
    except UserError:
        for path in set(out.iterdir()) - before if new else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _untuned(out: Path, base: TrainSettings, loaded: LoadedModel, data: DataBundle, say: Say) -> dict | None:
    path = out / "untuned.json"
    if path.is_file():  # kept where a later command asks for no such evaluation
        return read_json(path)
    if not base.untuned:
        return None
    own = build_objective(base.objective)
    objectives = {"validation_nll": Objective()}
    if not own.is_bound and not loaded.autoregressive:
        objectives["validation_objective"] = own
    metrics = {}
    for name, objective in objectives.items() if len(data.validation) else ():
        meter = loss_meter(loaded, data.validation, objective, block_size=base.block_size, as_trained=objective is own)
        with bar(row_forwards(meter, base.eval_draws), "untuned model", "forward") as shown:
            meter.progress = shown.update
            metrics[name] = validation_nll(meter, base.eval_draws).as_dict()
    if can_be_scored(data.test):
        identity = {"model": base.model} | decoded_by(base, data.test)
        journal = Journal(out / "untuned_journal", journal_name(data.test), identity)
        with shared_bar(len(data.test), "untuned model", "problem", ALONE) as progress:
            scored = score_generated(loaded, data.test, base, journal, out / UNTUNED, progress=progress)
        metrics |= scored[0]
    say("untuned: " + ", ".join(f"{name} {value['value']:.4f}" for name, value in metrics.items()))
    write_json(path, {"metrics": metrics})
    shutil.rmtree(out / "untuned_journal", ignore_errors=True)
    return {"metrics": metrics}


def _density(
    out: Path, settings: ExperimentSettings, method: Method, checked: Checked, say: Say
) -> tuple[Path, FittedDensity] | None:
    """The p(t) of a method, fitted once for all seeds, since it depends on model, data and method only."""
    base = settings.base
    if not method.needs_p:
        return None
    path = out / f"p_of_t_{canonical(method.name).replace('+', '_')}.json"
    if not path.is_file():
        own = base.model_copy(update={"seed": 0, "batch": rows_per_step(method, settings)})
        save_fit(fitted_for(own, method, checked.loaded, known_rows(checked.data.train, own.ppots.rows)), path, say)
    return path, FittedDensity.load(path)


def _all_runs(
    settings: ExperimentSettings,
    runs: Sequence[Planned],
    densities: dict[str, tuple[Path, FittedDensity] | None],
    data: DataBundle,
) -> list[TrainSettings]:
    """The settings of every run, seed by seed, so that runs of one seed are there to be compared early."""
    shares: dict[tuple[str, int], dict] = {}  # counted once, since a learning rate changes no forward
    out = []
    for seed in settings.seeds:
        for run in runs:
            path, fitted = densities[run.name] or (None, None)
            if (key := (run.name, seed)) not in shares:
                sampler = fitted.sampler if fitted else None
                shares[key] = run_share(run.method, seed, settings, sampler, data.train, run.multiple)
            trainer = shares[key].get("trainer", run.settings.trainer) | run.cell.values
            folder = run_folder(Path(settings.out), run.name, seed, run.cell)
            own = {"seed": seed, "out": str(folder), "p_of_t": str(path) if path else None}
            out.append(run.settings.model_copy(update=own | shares[key] | {"trainer": trainer}))
    return out

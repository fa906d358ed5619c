"""Ends a training run: saves the model, evaluates it in a way that survives a kill, and writes ``run.json``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from stabledllm.build import build_objective, loading_options
from stabledllm.config.settings import TrainSettings
from stabledllm.data.bundle import DataBundle
from stabledllm.errors import Diverged, NotFinite
from stabledllm.evaluation.generated import can_be_scored, decoded_by, journal_name, score_generated
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.progress import shared_bar
from stabledllm.evaluation.ranks import Ranks, whole_models
from stabledllm.evaluation.validation import mean_over_rows
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.noise.objective import Objective
from stabledllm.ppots.record import FittedDensity
from stabledllm.runtime.files import write_json
from stabledllm.runtime.folders import sweep
from stabledllm.runtime.provenance import device_name, versions
from stabledllm.runtime.showing import busy
from stabledllm.training.averages.ending import keep_averages
from stabledllm.training.averages.places import AVERAGES
from stabledllm.training.checkpoints import STAMP, stamp
from stabledllm.training.devices import AgreeingModel, is_sharded, save_whole
from stabledllm.training.earlier import MODEL, RUN, SCHEMA, TRAINED
from stabledllm.training.history import evaluated_in, figures_in
from stabledllm.training.parts import published
from stabledllm.training.trainer import MDMTrainer
from stabledllm.training.untuned import beside_untuned, side_by_side, told_of

JOURNAL = "journal"
_OF_THE_END = ("out", "allow_changed", "data", "eval_draws", "decoding", "image_decoding", "clip", "generate_batch")
"""Settings that still act after the last step."""
Say = Callable[[str], None]


def finish(
    settings: TrainSettings,
    trainer: MDMTrainer,
    loaded: LoadedModel,
    data: DataBundle,
    density: FittedDensity | None,
    identity: dict,
    say: Say,
) -> dict:
    """Save the model, then evaluate it; ``run.json`` comes last, so that its presence means a finished run.

    ``trained.json`` holds what is known before completions are decoded; a run killed after that is not trained again.
    """
    out = Path(settings.out)
    metrics, beside, last = {}, {}, None
    if len(data.validation):
        metrics, beside, last = _evaluation_losses(settings, trainer, data, say)
    for line in trainer.said_at_the_end():
        say(line)
    for name, each in trainer.further_metrics().items():
        say(f"{name.replace('_', ' ')} {each}")
        metrics[name] = each.as_dict()
    if trainer.is_world_process_zero():
        (out / MODEL / STAMP).unlink(
            missing_ok=True
        )  # the record of an earlier model, which is about to be overwritten
    with busy(f"saving the model in {out / MODEL}"):
        save_whole(trainer, out / MODEL)
    averages = keep_averages(trainer, out, identity, last, _own_objective(settings, trainer), say)
    sharded, ranks = is_sharded(trainer), Ranks.launched(cpu=trainer.args.device.type == "cpu")
    _journal(settings, identity, data.test, ranks).remove()  # of an earlier run in this folder
    record = run_record(settings, trainer, data, density, identity) | {"metrics": metrics, **beside}
    record |= {"averages": averages} if averages else {}
    if ranks.rank == 0:
        with busy(f"checking the model in {out / MODEL}"):
            stamp(out / MODEL, identity, trainer.density_file)
        write_json(out / TRAINED, record)
    if sharded:
        loaded, ranks = replace(loaded, model=AgreeingModel(loaded.model)), ranks.acting_together()

    @contextmanager
    def averaged(name: str) -> Iterator[LoadedModel]:
        with trainer.averages.in_place(name):
            yield loaded

    return _evaluate(settings, loaded, data, record, ranks, say, averaged)


def _evaluation_losses(
    settings: TrainSettings, trainer: MDMTrainer, data: DataBundle, say: Say
) -> tuple[dict, dict, Tensor]:
    """The metrics of the trained model, what stands beside them of the untuned one, and each held-out row's NLL."""
    unchanged = not settings.callbacks and not trainer.args.load_best_model_at_end
    values = trainer.nll_of_rows_at_the_end(unchanged=unchanged)
    nll, beside = (
        mean_over_rows(values),
        beside_untuned(Path(settings.out), data.validation, values, settings.eval_draws),
    )
    for line in side_by_side(nll, beside):
        say(line)
    metrics = {"validation_nll": nll.as_dict()}
    if objective := _own_objective(settings, trainer):
        own_loss = trainer.validation(objective)
        say(f"validation loss of the objective that was trained {own_loss}")
        metrics["validation_objective"] = own_loss.as_dict()
    return metrics, beside or {}, values


def _own_objective(settings: TrainSettings, trainer: MDMTrainer) -> Objective | None:
    """The objective that is trained, where that is another one than the bound on the NLL."""
    objective = build_objective(settings.objective)
    return None if objective.is_bound or trainer.method.autoregressive else objective


def run_record(
    settings: TrainSettings,
    trainer: MDMTrainer,
    data: DataBundle,
    density: FittedDensity | None,
    identity: dict,
) -> dict:
    """The record of a run whose training has ended, without its metrics."""
    parts = trainer.parts
    return {
        "schema": SCHEMA,
        "method": identity["method"],
        "seed": settings.seed,
        "identity": identity,
        "status": "finished",
        "metrics": {},
        **trainer.statistics.totals(),
        "probe_forward_passes": density.forward_passes if density else 0,
        "steps": trainer.state.global_step,
        "seconds": sum(part["seconds"] for part in parts),
        "history": _history(trainer.state.log_history),
        "adaptive": trainer.adaptive.history if trainer.adaptive else None,
        "data_notes": data.notes,
        "config": _config(settings, parts),
        "parts": published(parts),
        "versions": versions(),
        "device": device_name(trainer.args.device),
    }


def evaluate_saved(
    settings: TrainSettings, data: DataBundle | Callable[..., DataBundle], record: dict, say: Say
) -> dict:
    """Finish a run that was killed after its training: evaluate the model in its folder, whole on each rank.

    It decodes with the weights as they were saved, in the recipe's ``dtype``.
    """
    if (now := versions()) != record["versions"]:
        say(f"note: {settings.out} was trained with other packages; its evaluation is made with those that are here")
        record = record | {"evaluated_with": now}
    for line in told_of(record):
        say(line)
    with whole_models():
        ranks = Ranks.launched(cpu=bool(settings.trainer.get("use_cpu")))
        loaded = _as_saved(settings, MODEL, ranks)
        if callable(data):
            data = data(loaded.tokenizer)

        @contextmanager
        def averaged(name: str) -> Iterator[LoadedModel]:
            yield _as_saved(settings, record["averages"][name]["model"], ranks)

        return _evaluate(settings, loaded, data, record, ranks, say, averaged)


def _as_saved(settings: TrainSettings, name: str, ranks: Ranks) -> LoadedModel:
    """The model in a folder of the run, on this rank's device."""
    # A model that was new at the start has saved weights now.
    loading = loading_options(settings) | {"init_seed": None}
    loaded = load_model(str(Path(settings.out) / name), quantised=settings.quantised, **loading)
    if not settings.quantised:
        loaded.model.to(ranks.device)
    return loaded


def _evaluate(
    settings: TrainSettings,
    loaded: LoadedModel,
    data: DataBundle,
    record: dict,
    ranks: Ranks,
    say: Say,
    averaged: Callable[[str], AbstractContextManager[LoadedModel]],
) -> dict:
    """Generate for the test rows into the journal, then write ``run.json``; ranks but the first return {}.

    Args:
        averaged: the model with an average's weights, by its name, while a context is open.
    """
    out, metrics, averages = Path(settings.out), dict(record["metrics"]), dict(record.get("averages") or {})
    if can_be_scored(data.test):
        scored, sentence = _decoded(settings, loaded, data, record, ranks)
        metrics |= scored
        say(sentence)
        for name, kept in averages.items():
            with averaged(name) as model:
                scored, sentence = _decoded(settings, model, data, record, ranks, name)
            averages[name] = kept | {"metrics": kept["metrics"] | scored}
            say(f"average {name}: {sentence}")
    if ranks.rank > 0:
        return {}
    record = record | {"metrics": metrics} | ({"averages": averages} if averages else {})
    write_json(out / RUN, record)
    remove_leftovers(out)
    say(f"wrote {out / RUN} and the model in {out / MODEL}")
    return record


def _decoded(
    settings: TrainSettings, loaded: LoadedModel, data: DataBundle, record: dict, ranks: Ranks, average: str = ""
) -> tuple[dict[str, dict], str]:
    """What a model generates for the test rows, scored, and a line on it; an average has a journal of its own."""
    out = Path(settings.out) / AVERAGES / average if average else Path(settings.out)
    if average and ranks.rank == 0:
        sweep(out)
    journal = _journal(settings, record["identity"], data.test, ranks, average)
    try:
        with shared_bar(len(data.test), "generate", "problem", ranks) as progress:
            return score_generated(loaded, data.test, settings, journal, out, ranks=ranks, progress=progress)
    except NotFinite as error:
        raise Diverged(f"what the trained model decodes is not finite ({error})", record["steps"]) from None


def remove_leftovers(out: Path) -> None:
    """Delete what only an unfinished run needs, which a kill right after ``run.json`` leaves behind."""
    (out / TRAINED).unlink(missing_ok=True)
    shutil.rmtree(out / JOURNAL, ignore_errors=True)


def _config(settings: TrainSettings, parts: list[dict]) -> dict:
    """The settings of the last steps and, for keys that act after them, those of the evaluation."""
    now = settings.model_dump()
    last = parts[-1]["config"] if parts else None
    return now if last is None else last | {key: now[key] for key in _OF_THE_END}


def _journal(settings: TrainSettings, identity: dict, test: list[dict], ranks: Ranks, average: str = "") -> Journal:
    journal_identity = {"run": identity} | decoded_by(settings, test)
    return Journal(Path(settings.out) / JOURNAL / average, journal_name(test), journal_identity, ranks)


def _history(log: list[dict]) -> list[dict]:
    """The training log with the names that results.json uses."""
    entries: dict[int, dict] = {}
    for line in log:
        entry = entries.setdefault(line["step"], {"step": line["step"]})
        entry |= figures_in(line)
        if "eval_loss" in line:
            entry |= evaluated_in(line)
    return [entry for entry in entries.values() if len(entry) > 1]

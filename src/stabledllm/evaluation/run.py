"""``stabledllm eval``: writes a model's NLL and accuracy on test rows, beside the untuned model's, to ``eval.json``.

A killed evaluation continues, on any number of ranks; a finished one is not repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from stabledllm.build import build_decoding, build_objective, loading_options, take_block
from stabledllm.config.likelihoods import MEANING
from stabledllm.config.run_folder import model_in
from stabledllm.config.settings import EvalSettings
from stabledllm.data.data_key import WITHOUT_EFFECT
from stabledllm.data.images import of_images, with_image_defaults
from stabledllm.data.rows import Encoded
from stabledllm.decoding import refuse_unsuited
from stabledllm.errors import UserError
from stabledllm.evaluation.completing import without_effect
from stabledllm.evaluation.generated import COMPLETIONS, can_be_scored, decoded_by, journal_name, score_generated
from stabledllm.evaluation.identity import fingerprint, refuse_other
from stabledllm.evaluation.images import LINES
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.likelihoods import measure_likelihoods, refuse_unmeasurable
from stabledllm.evaluation.progress import shared_bar
from stabledllm.evaluation.ranks import Ranks, whole_models
from stabledllm.evaluation.rows import EvaluatedRows, evaluated_rows
from stabledllm.evaluation.untuned import difference, tuned_from
from stabledllm.evaluation.validation import mean_over_rows, row_nll, shares
from stabledllm.forward.blocks import loss_meter
from stabledllm.forward.meter import LossMeter
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.noise.objective import Objective
from stabledllm.runtime.files import read_json, write_json, write_jsonl
from stabledllm.runtime.locks import in_its_folder
from stabledllm.runtime.provenance import device_name, versions
from stabledllm.runtime.saying import say as print_line
from stabledllm.runtime.saying import silent
from stabledllm.tasks.files import read_jsonl

SCHEMA = "stabledllm/eval/1"
RESULT, NLLS, OBJECTIVE = "eval.json", "nll.jsonl", "objective.jsonl"
JOURNAL, UNTUNED = "journal", "untuned"
_NLL_RUN = 8
"""Rows whose NLL is measured between two writes to the journal; their views fill a forward pass."""
_WITHOUT_EFFECT = {"validation", "validation_share", "train_rows", "validation_rows", "test_rows", "every_turn"}
_WITHOUT_EFFECT |= {"delimiters", "syntax", "image", *WITHOUT_EFFECT}
"""Keys of the data that do not affect an evaluation; the parts of ``image`` that do stand beside the decoding."""
Say = Callable[[str], None]


@in_its_folder("eval")
def evaluate(settings: EvalSettings, say: Say = print_line) -> dict:
    """Evaluate, or continue a killed evaluation, and return the content of ``eval.json``, on every rank.

    Raises:
        UserError: the settings, the model or the data are bad, or the folder holds another evaluation.
    """
    with whole_models():
        ranks = Ranks.launched()
        say = say if ranks.rank == 0 else silent
        record = _evaluate(settings, ranks, say)
        ranks.leave()
        return record


def _evaluate(settings: EvalSettings, ranks: Ranks, say: Say) -> dict:
    out = Path(settings.out)
    build_decoding(settings.decoding)
    settings = with_image_defaults(settings.model_copy(update={"model": model_in(settings.model)}))
    rows = evaluated_rows(settings, say)
    identity = identity_of(settings, rows)
    refuse_unlike(out, identity, say)
    # What is needed only at the end is checked at the start, before the long work.
    beside = _beside(settings, rows, say)
    was_there = (out / RESULT).is_file()
    record = measure(settings, identity, rows, ranks, say)
    if beside is None:
        if not was_there:
            say(f"wrote {out / RESULT}")
        return record
    where, other = beside
    if other is not None:
        say(f"untuned model: {other.model}")
        theirs = measure(other, identity_of(other, rows), rows, ranks, lambda line: say(f"untuned: {line}"))
    else:
        theirs = read_json(where / RESULT, SCHEMA)
    record = record | {"untuned": _untuned(theirs, where, out), "difference": _differences(out, where)}
    for name, value in record["difference"].items():
        say(f"{name} minus the untuned model's: {in_words(value)}")
    if ranks.rank == 0:
        write_json(out / RESULT, record)
    say(f"wrote {out / RESULT}")
    return record


@in_its_folder("eval")
def measure(settings: EvalSettings, identity: dict, rows: EvaluatedRows, ranks: Ranks, say: Say) -> dict:
    """One model's record with its NLL and accuracy; read from ``eval.json`` where it is finished already."""
    out = Path(settings.out)
    if (out / RESULT).is_file():
        say(f"{out}: already evaluated")
        record = read_json(out / RESULT, SCHEMA)
        # A kill may have left a journal; removing it also lets all ranks read before one writes.
        Journal(out / JOURNAL, "", {}, ranks).remove()
        return record
    loaded = load_model(settings.model, base=settings.base, **loading_options(settings))
    take_block(loaded, settings.decoding.block, given="block" in settings.decoding.model_fields_set)
    if rows.scored and not of_images(rows.scored):
        refuse_unsuited(loaded.model, build_decoding(settings.decoding))
    refuse_unmeasurable(loaded, settings)
    loaded.model.to(ranks.device).eval()
    metrics: dict = {}
    others: dict[str, str] = {}
    scored = rows.scored
    if rows.encode is not None:
        encoded = rows.encode(loaded.tokenizer)
        for measured in (_measure_nll, measure_likelihoods):
            nlls, more = measured(loaded, encoded, settings, identity, ranks, say)
            metrics |= nlls
            others |= more
    if can_be_scored(scored):
        for note in without_effect(settings.decoding, loaded):
            say(note)
        if (batches := -(-len(scored) // settings.generate_batch)) < ranks.count:
            say(f"note: {batches} batches for {ranks.count} devices: some wait; a smaller --batch gives each its share")
        journal = Journal(out / JOURNAL, journal_name(scored), identity, ranks)
        with shared_bar(len(scored), "generate", "problem", ranks) as progress:
            scores, sentence = score_generated(loaded, scored, settings, journal, out, ranks=ranks, progress=progress)
        metrics |= scores
        others |= journal.other_versions
        say(sentence)
    if others:
        packages = ", ".join(f"{name} {version}" for name, version in others.items())
        say(f"note: {out} was begun with other packages ({packages}): last digits may differ")
    record = {
        "schema": SCHEMA,
        "model": settings.model,
        "data": settings.data.train if settings.held_out else settings.data.test or settings.data.train,
        "metrics": metrics,
        "trained_on": rows.trained_on,
        "untuned": None,
        "difference": None,
        "identity": identity,
        "config": settings.model_dump(),
        "versions": versions(),
        "device": device_name(ranks.device),
        "devices": ranks.count,
    } | ({"begun_with": others} if others else {})
    if ranks.rank == 0:
        write_json(out / RESULT, record)
    Journal(out / JOURNAL, "", {}, ranks).remove()
    return record


def identity_of(settings: EvalSettings, rows: EvaluatedRows) -> dict:
    """Everything that decides an evaluation's results; the model's folder, batches and devices do not."""
    loading = {name: getattr(settings, name) for name in ("family", "dtype", "attention", "end_token")}
    loading |= {} if settings.mask_token_id is None else {"mask_token_id": settings.mask_token_id}
    weights = {"model": settings.model, "weights": fingerprint(settings.model, settings.base)}
    return weights | loading | _shared_identity(settings, rows)


def _shared_identity(settings: EvalSettings, rows: EvaluatedRows) -> dict:
    """The part of the identity that two evaluations must share to be compared."""
    data = settings.data.model_dump()
    shared = {
        "data": {name: value for name, value in data.items() if name not in _WITHOUT_EFFECT},
        "rows": settings.rows if "rows" in settings.model_fields_set or not settings.held_out else None,
        "draws": settings.draws,
        "content": rows.content,
    }
    if settings.held_out:
        shared["held_out"] = True
    if not build_objective(settings.objective).is_bound:
        shared["objective"] = settings.objective.keys
    if settings.likelihood.kinds:
        shared["likelihood"] = settings.likelihood.model_dump()
    if of_images(rows.scored):
        return shared | decoded_by(settings, rows.scored)
    return shared | {"decoding": settings.decoding.model_dump(), "examples": rows.examples}


def refuse_unlike(out: Path, identity: dict, say: Say) -> None:
    """Refuse a folder whose finished evaluation is another one; print a note on what an older one did not record."""
    if (out / RESULT).is_file() and (note := refuse_other(out, _saved_identity(out), identity)):
        say(note)


def _saved_identity(folder: Path) -> dict:
    saved = read_json(folder / RESULT, SCHEMA).get("identity")
    if not isinstance(saved, dict):
        raise UserError(f"{folder / RESULT}: expected an evaluation with its 'identity', found one without.")
    return saved


def _beside(settings: EvalSettings, rows: EvaluatedRows, say: Say) -> tuple[Path, EvalSettings | None] | None:
    """The folder of the untuned model's evaluation, with its settings unless it is given as finished; None for none."""
    if settings.beside == "none":
        return None
    given = Path(settings.beside).expanduser()
    if settings.beside != "auto" and (given / RESULT).is_file():
        saved, common = _saved_identity(given), _shared_identity(settings, rows)
        if note := refuse_other(given, {key: saved[key] for key in common if key in saved}, common):
            say(note)
        return given, None
    name = tuned_from(settings.model, settings.base) if settings.beside == "auto" else model_in(settings.beside)
    if name is None:
        return None
    where = Path(settings.out) / UNTUNED
    other = settings.model_copy(update={"model": name, "base": None, "beside": "none", "out": str(where)})
    refuse_unlike(where, identity_of(other, rows), say)
    return where, other


def _measure_nll(
    loaded: LoadedModel, encoded: Encoded, settings: EvalSettings, identity: dict, ranks: Ranks, say: Say
) -> tuple[dict, dict[str, str]]:
    """The NLL, the own loss of an objective that is not the bound, and the packages that began the work."""
    say(encoded.summary(settings.data.max_len))
    measured = {"validation_nll": ("nll", "NLL", Objective())}
    if not (own := build_objective(settings.objective)).is_bound:
        measured["validation_objective"] = ("objective", "loss of the objective", own)
    metrics, others = {}, {}
    for name, (file, words, objective) in measured.items():
        journal = Journal(Path(settings.out) / JOURNAL, file, identity, ranks)
        meter = loss_meter(
            loaded, encoded.rows, objective, block_size=getattr(loaded.model.config, "block_size", None),
            as_trained=objective is own,
        )  # fmt: skip
        values = _row_losses(meter, settings, journal)
        others |= journal.other_versions
        if ranks.rank == 0:
            pairs = zip(encoded.rows, values, strict=True)
            write_jsonl(Path(settings.out) / f"{file}.jsonl", [{"origin": r.origin, "nll": v} for r, v in pairs])
        estimate = mean_over_rows(torch.tensor(values, dtype=torch.float64), share=shares(meter))
        say(f"{words} {estimate}")
        metrics[name] = estimate.as_dict()
    return metrics, others


def _row_losses(meter: LossMeter, settings: EvalSettings, journal: Journal) -> list[float]:
    def measured(run: range) -> list[dict]:
        return [{"nll": value} for value in row_nll(meter, settings.draws, run).tolist()]

    with shared_bar(len(meter.rows), journal.name, "row", journal.ranks) as progress:
        return [row["nll"] for row in journal.collect(len(meter.rows), _NLL_RUN, measured, progress)]


def _untuned(theirs: dict, where: Path, out: Path) -> dict:
    folder = where.relative_to(out) if where.is_relative_to(out) else where
    return {"model": theirs["model"], "folder": str(folder), "metrics": theirs["metrics"]}


def in_words(difference: dict) -> str:
    """A paired difference with its interval, which a single row has not.

    >>> in_words({"value": 0.5, "ci_low": math.nan, "ci_high": math.nan})
    '+0.5 (paired)'
    """
    low, high = difference["ci_low"], difference["ci_high"]
    known = f"95 % {low:+.3g} to {high:+.3g}, " if math.isfinite(low + high) else ""
    changes = f", {difference['gained']} gained, {difference['lost']} lost" if "gained" in difference else ""
    return f"{difference['value']:+.4g} ({known}paired{changes})"


def _differences(ours: Path, theirs: Path) -> dict:
    kinds = (
        ("validation_nll", NLLS, "nll", "nats/token"),
        ("validation_objective", OBJECTIVE, "nll", "nats/token"),
        *((f"{kind}_nll", f"{kind}.jsonl", "nll", "nats/token") for kind in MEANING),
        ("accuracy", COMPLETIONS, "correct", "share"),
        ("credit", COMPLETIONS, "credit", "share"),
        ("accuracy", LINES, "correct", "share"),
        ("clip_score", LINES, "clip_score", "CLIP score"),
    )
    out = {}
    for name, file, key, unit in kinds:
        if (ours / file).is_file() and key in (mine := _lines(ours / file))[0]:
            out[name] = difference(mine, _lines(theirs / file), key, unit)
    return out


def _lines(path: Path) -> list[dict]:
    return [record for _, record in read_jsonl(path)]

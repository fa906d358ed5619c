"""Checks everything that an experiment could be refused for before its folder is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stabledllm.build import build_decoding, build_model, set_form
from stabledllm.config.settings import ExperimentSettings
from stabledllm.data.bundle import DataBundle, load_bundle
from stabledllm.data.row_stream import known_rows, longest_of
from stabledllm.data.rows import marks_in
from stabledllm.data.splits import refuse_few_rows
from stabledllm.data.streamable import refuse_unstreamable
from stabledllm.data.token_rows import TokenRow
from stabledllm.decoding import left_to_right
from stabledllm.errors import UserError
from stabledllm.evaluation.generated import can_be_scored
from stabledllm.experiment.budget import steps_at
from stabledllm.experiment.needed import NOTHING_TO_COMPARE
from stabledllm.experiment.plan import refuse_other
from stabledllm.experiment.planned import Planned, runs_of
from stabledllm.experiment.rate_checks import check_varied
from stabledllm.experiment.reference import other_multiples, refuse_equal_budgets
from stabledllm.experiment.validation import validate_run
from stabledllm.lab.measure.probe_and_fit import check_probe
from stabledllm.method_checks import check_marks, check_model
from stabledllm.models.loading import LoadedModel
from stabledllm.planning.environment import fitting_views, refuse_too_large
from stabledllm.training.arguments import training_arguments


@dataclass(frozen=True)
class Checked:
    """The runs of one seed, the model and the data of an experiment that has passed its checks."""

    runs: list[Planned]
    loaded: LoadedModel
    data: DataBundle


def check_experiment(settings: ExperimentSettings, say: Callable[[str], None]) -> Checked:
    """Check every method with the settings, the model and the data of its runs; nothing is written.

    Raises:
        UserError: names the first thing wrong, such as a folder that holds another experiment.
    """
    base = settings.base
    if base.p_of_t:
        raise UserError(f"key 'base.p_of_t': expected none, as an experiment fits its own, found '{base.p_of_t}'.")
    refuse_unstreamable(base, settings.equal)
    check_varied(settings)
    runs = runs_of(settings)
    _refuse_repeated("methods", [run.name for run in runs if run.cell == runs[0].cell])
    _refuse_repeated("seeds", settings.seeds)
    for run in runs:
        validate_run(run)
        training_arguments(run.settings)
        refuse_too_large(run.settings, longest=1)
    refuse_other(Path(settings.out), settings)
    loaded = build_model(base)
    for run in runs:
        check_model(run.method, loaded.name, loaded.autoregressive)
    if loaded.autoregressive:
        left_to_right(build_decoding(base.decoding))
    set_form(loaded, base)
    data = load_bundle(base.data, loaded.tokenizer, say)
    if base.objective.kind != "grpo" and not len(data.validation) and not can_be_scored(data.test):
        raise UserError(f"experiment: {NOTHING_TO_COMPARE}")
    if others := other_multiples(settings):
        refuse_equal_budgets({multiple: steps_at(multiple, base, data.train) for multiple in (1.0, *others)})
    known = known_rows(data.train, base.ppots.rows)
    for run in runs:
        _check_rows(run, known, longest_of(data.train))
    refuse_other(Path(settings.out), settings, data)
    return Checked(runs, loaded, data)


def _refuse_repeated(key: str, values: Sequence) -> None:
    """Refuse a value that is given twice: its run would count twice in every mean."""
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise UserError(f"key '{key}': expected each once, found {value} {count} times.")


def _check_rows(run: Planned, rows: Sequence[TokenRow], longest: int) -> None:
    settings = run.settings
    if not settings.data.streaming or len(rows) < settings.ppots.rows:  # all rows, then
        refuse_few_rows(settings.batch, len(rows), joined=not rows[0].prompt_length)
    refuse_too_large(settings, longest=longest)
    fitting_views(settings, longest=longest)
    check_marks(run.method, marks_in(rows))
    if run.method.needs_p:
        check_probe(run.method, len(rows), settings.ppots.rows, settings.block_size)

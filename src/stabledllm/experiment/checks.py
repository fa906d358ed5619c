"""Everything that an experiment could be refused for, checked before its folder is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stabledllm.build import build_decoding, build_method, build_model, set_form
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.data.bundle import DataBundle, load_bundle
from stabledllm.data.rows import require_marks
from stabledllm.data.token_rows import lengths_of
from stabledllm.decoding import left_to_right
from stabledllm.errors import UserError
from stabledllm.experiment.budget import rows_per_step
from stabledllm.experiment.plan import refuse_other
from stabledllm.experiment.validation import validate_run
from stabledllm.lab.probe_and_fit import check_probe
from stabledllm.models.loading import LoadedModel
from stabledllm.planning.environment import fitting_views, refuse_too_large
from stabledllm.training.arguments import training_arguments


@dataclass(frozen=True)
class Checked:
    """What is loaded once the experiment is in order."""

    methods: list[str]
    """By the names that :class:`~stabledllm.noise.methods.Method` gives them."""
    loaded: LoadedModel
    data: DataBundle


def check_experiment(settings: ExperimentSettings, say: Callable[[str], None]) -> Checked:
    """Check every method with the settings, the model and the data of its runs; nothing is written.

    Raises:
        UserError: the first thing wrong, or a folder that holds another experiment.
    """
    base = settings.base
    if base.p_of_t:
        raise UserError(f"key 'base.p_of_t': expected none, as an experiment fits its own, found '{base.p_of_t}'.")
    methods = [build_method(name, base.method_options).name for name in settings.methods]
    _refuse_repeated("methods", methods)
    _refuse_repeated("seeds", settings.seeds)
    runs = [base.model_copy(update={"method": name, "batch": rows_per_step(name, settings)}) for name in methods]
    for run in runs:
        validate_run(run)
        training_arguments(run)
        refuse_too_large(run, longest=1)
    refuse_other(Path(settings.out), settings)
    loaded = build_model(base)
    for run in runs:
        loaded.check_method(build_method(run.method, run.method_options))
    if loaded.autoregressive:
        left_to_right(build_decoding(base.decoding))
    set_form(loaded, base)
    data = load_bundle(base.data, loaded.tokenizer, say)
    for run in runs:
        _check_rows(run, data)
    refuse_other(Path(settings.out), settings, data)
    return Checked(methods, loaded, data)


def _refuse_repeated(key: str, values: Sequence) -> None:
    """The same run twice would count twice in every mean."""
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise UserError(f"key '{key}': expected each once, found {value} {count} times.")


def _check_rows(run: TrainSettings, data: DataBundle) -> None:
    method, longest = build_method(run.method, run.method_options), max(lengths_of(data.train))
    refuse_too_large(run, longest=longest)
    fitting_views(run, longest=longest)
    require_marks(data.train, method)
    if method.needs_p:
        check_probe(method, len(data.train), run.ppots.rows, run.block_size)

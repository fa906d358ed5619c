"""Every mistake that a recipe's text, its names and the files beside it show, told in one list before torch is loaded.

What needs a model, a tokenizer, all rows or the machine is refused later, where it is used. The commands that take no
recipe are in :mod:`stabledllm.experiment.commands_at_once`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from stabledllm.config.checking import Read
from stabledllm.config.decoding_fit import refuse_unfit
from stabledllm.config.recipe import read_recipe
from stabledllm.config.settings import DataSettings, ExperimentSettings, ModelSettings, TrainSettings
from stabledllm.config.trainer_rules import refuse_idle
from stabledllm.data.first_row import check_data
from stabledllm.data.kinds import kind_of
from stabledllm.errors import Gathered, UserError
from stabledllm.experiment.needed import check_comparable, check_evaluated, check_needed
from stabledllm.models.adapter_base import named_base
from stabledllm.models.names import check_model_name, is_adapter
from stabledllm.models.shapes import known_shape
from stabledllm.noise.fits import check_blocks, check_model, check_p_of_t
from stabledllm.noise.parts import OfParts
from stabledllm.noise.weightings import power_of

Checks = Iterator[tuple[str, Callable[[], object]]]
"""Checks, each with the keys that it reads, separated by blanks; a group stands for all its keys."""
DECODED, WEIGHED = "decoding.length decoding.steps decoding.block", "objective.weighting objective.power"
SPLITS = ("train", "validation", "test")


def load_checked(
    name: str,
    overrides: Sequence[str] = (),
    *,
    repeated: bool = False,
    reads_data: bool = True,
    also: Iterable[Callable[[], object]] = (),
    say: Callable[[str], None] = lambda _: None,
) -> TrainSettings | ExperimentSettings:
    """The settings of a recipe that is to be run here.

    Args:
        repeated: whether a finished run in its folder is only to be said, for which its model need not be there.
        reads_data: whether the command reads the rows, which must then be named and be there.
        also: checks of the command's own options, told in the same list.
        say: gets a line on the settings that come from the run whose folder is the model.

    Raises:
        UserError: no such recipe, or broken YAML.
        Mistakes: all that is wrong with its keys, values, methods, model names, files, columns and trainer keys.
    """
    gathered = Gathered()
    for check in also:
        with gathered.check():
            check()
    read = read_recipe(name, overrides)
    gather(gathered, read, lambda settings: _of_recipe(name, settings, repeated, reads_data))
    gathered.refuse()
    for line in read.told:
        say(line)
    return read.settings


def gather(gathered: Gathered, read: Read, checks_of: Callable[..., Checks]) -> None:
    """Gather what was wrong with settings as they were read, and what the checks of the others find."""
    gathered.sentences += read.sentences
    if read.settings is None:
        return
    wrong = {key.removeprefix("base.") for key in read.wrong}
    for keys, check in checks_of(read.settings):
        # A value that was wrong has been replaced by its default, which is nobody's mistake.
        if not any(_touches(key, one) for key in keys.split() for one in wrong):
            with gathered.check():
                check()


def refuse_contradictions(run: TrainSettings, method: OfParts) -> None:
    """Refuse a method, decoding, data, quantisation or adapter that cannot be, as far as names tell.

    Raises:
        Mistakes: names each.
    """
    gathered = Gathered()
    for _, check in (*of_method(run, method.name), *_of_run(run)):
        with gathered.check():
            check()
    gathered.refuse()


def _touches(key: str, wrong: str) -> bool:
    return f"{wrong}.".startswith(f"{key}.") or f"{key}.".startswith(f"{wrong}.")


def _of_recipe(name: str, settings: TrainSettings | ExperimentSettings, repeated: bool, reads_data: bool) -> Checks:
    of_one = isinstance(settings, TrainSettings)
    run, methods = (settings, [settings.method]) if of_one else (settings.base, settings.methods)
    for method in methods:
        yield from of_method(run, method)
    yield from _of_run(run)
    yield "trainer eval_every save_every", partial(refuse_idle, run)
    if not (repeated and (Path(run.out) / "run.json").is_file()):
        yield from of_model(run)
    if reads_data:
        yield "data.train data.train_rows batch", partial(check_needed, name, run)
        yield "data trainer", partial(check_evaluated, run)
        if not of_one:
            yield "data", partial(check_comparable, settings)
        yield from of_data(run.data)


def of_method(run: TrainSettings, name: str) -> Checks:
    """The checks of a method for a run's model, density and blocks."""
    method = OfParts(name)
    yield "method methods", lambda: method.parts
    shape = known_shape(run.model)
    causal = shape.causal if shape else run.family == "arm" if run.family != "auto" else None
    if causal is not None:
        yield "method methods model family", partial(check_model, method, run.model, causal)
    if run.p_of_t:
        yield "method methods p_of_t", partial(check_p_of_t, method)
    if run.block_size:
        yield "method methods block_size packing", partial(check_blocks, method, packing=run.packing)


def of_model(settings: ModelSettings, base: str | None = None) -> Checks:
    """The checks of a model's name.

    Args:
        base: given for an adapter's base, which may have moved.
    """
    yield "model", partial(check_model_name, settings.model)
    if base is not None:
        yield "base", partial(_check_base, settings.model, base)
    elif is_adapter(settings.model):
        yield "model", lambda: check_model_name(named_base(Path(settings.model).expanduser()))


def of_data(data: DataSettings, splits: Sequence[str] = SPLITS) -> Checks:
    """The checks of the data of these splits, where they are given."""
    for split in splits:
        if spec := getattr(data, split):
            yield f"data.{split} data.format data.columns", partial(check_data, spec, split, data)


def _of_run(run: TrainSettings) -> Checks:
    objective, decoding, lora = run.objective, run.decoding, run.lora
    yield WEIGHED, partial(power_of, objective.weighting, objective.power)
    yield (
        f"{DECODED} block_size",
        partial(refuse_unfit, decoding.length, decoding.steps, decoding.block),
    )
    for split in SPLITS:
        if spec := getattr(run.data, split):
            yield f"data.{split}", partial(kind_of, spec)
    yield "quantised lora", partial(_check_quantised, run)
    if lora and (shape := known_shape(run.model)):
        yield "lora model", partial(shape.targets, lora.target_modules)


def _check_base(model: str, base: str) -> None:
    if not is_adapter(model):
        raise UserError(f"model '{model}': expected an adapter's folder to take base '{base}', found none.")
    check_model_name(base)


def _check_quantised(run: TrainSettings) -> None:
    if run.quantised and not run.lora and not is_adapter(run.model):
        raise UserError(f"key 'quantised': expected 'lora' beside it, found a run that trains all of {run.model}.")


def check_jobs(jobs: str) -> None:
    """Refuse a number of runs at the same time that is none.

    Raises:
        UserError: ``jobs`` is neither ``auto`` nor a whole number of at least 1.
    """
    if jobs != "auto" and (not jobs.isdecimal() or int(jobs) < 1):
        raise UserError(f"experiment: expected --jobs auto or a number of at least 1, found '{jobs}'.")


def check_devices(devices: str | None) -> list[str]:
    """The accelerators that ``0,1,2`` names; none without it.

    Raises:
        UserError: anything else.
    """
    numbers = [number.strip() for number in devices.split(",")] if devices is not None else []
    if not all(numbers):
        raise UserError(f"experiment: expected --devices such as 0,1,2, found '{devices}'.")
    return numbers

"""Every mistake that a recipe's text, its names and the files beside it show, told in one list before torch is loaded.

What needs a model, a tokenizer, all rows or the machine is refused later, where it is used. The commands that take no
recipe are in :mod:`stabledllm.experiment.commands_at_once`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from stabledllm.config.recipe import read_recipe
from stabledllm.config.settings import DataSettings, ExperimentSettings, TrainSettings
from stabledllm.config.trainer_rules import refuse_idle
from stabledllm.data.first_row import check_data
from stabledllm.data.splits import refuse_few_rows
from stabledllm.data.streamable import refuse_unstreamable
from stabledllm.errors import Gathered, UserError
from stabledllm.experiment.check_list import OF_STREAMED_DATA, SPLITS, Checks, gather
from stabledllm.experiment.compared import refuse_estimator, runs_compared
from stabledllm.experiment.grid import counted
from stabledllm.experiment.idle import Run, idle_overrides
from stabledllm.experiment.needed import check_comparable, check_evaluated, check_needed, check_views
from stabledllm.experiment.other_work import checks_of_out
from stabledllm.experiment.rate_checks import check_varied
from stabledllm.experiment.response_checks import of_density
from stabledllm.experiment.run_checks import (
    check_clip,
    check_out,
    is_known,
    of_method,
    of_model,
    of_run,
    refuse_density,
)
from stabledllm.noise.of_parts import OfParts

_OF_STREAMS = (
    f"{OF_STREAMED_DATA} data.validation data.validation_share steps group_by_length equal "
    "trainer.dataloader_num_workers"
)


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

    def checks(settings: TrainSettings | ExperimentSettings) -> Checks:
        yield from _of_recipe(settings, repeated)
        yield from _of_overrides(settings, overrides)
        if reads_data:
            yield from _of_rows(name, settings)
            yield from checks_of_out(settings)

    gather(gathered, read, checks)
    gathered.refuse()
    for line in read.told:
        say(line)
    return read.settings


def refuse_contradictions(run: TrainSettings, method: OfParts) -> None:
    """Refuse a method, decoding, data, quantisation or adapter that cannot be, as far as names tell.

    Raises:
        Mistakes: names each.
    """
    gathered = Gathered()
    for _, check in (*of_method(run, method.name), *of_run(run)):
        with gathered.check():
            check()
    gathered.refuse()


def runs_in(settings: TrainSettings | ExperimentSettings) -> list[Run]:
    """The run of a training recipe, or one of every method of an experiment, by its settings and its method's parts."""
    return [Run(run, OfParts(run.method)) for run in runs_compared(settings)]


def in_words(settings: TrainSettings | ExperimentSettings) -> str:
    """A few words on what a recipe is."""
    if isinstance(settings, TrainSettings):
        return f"a training run of {settings.model} with method {settings.method}"
    return f"an experiment of {counted(settings)} x {_counted(settings.seeds, 'seed')} with {settings.base.model}"


def _counted(things: list, what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def _base(settings: TrainSettings | ExperimentSettings) -> TrainSettings:
    return settings if isinstance(settings, TrainSettings) else settings.base


def _of_recipe(settings: TrainSettings | ExperimentSettings, repeated: bool) -> Checks:
    run = _base(settings)
    yield "out", partial(check_out, settings.out)
    for each in runs_compared(settings):
        if isinstance(settings, ExperimentSettings):
            yield from of_method(each.model_copy(update={"p_of_t": None}), each.method)  # refused below, once
            if is_known(each.method):
                yield "methods batch method_options equal", partial(check_views, settings, OfParts(each.method))
        else:
            yield from of_method(run, run.method)
        yield from of_density(each, each.method)
    if isinstance(settings, ExperimentSettings):
        yield "p_of_t", partial(refuse_density, run)
        yield "grpo.estimator", partial(refuse_estimator, run)
        keys = "standard_at learning_rates max_grad_norms methods objective block_schedule data"
        yield keys, partial(check_varied, settings)
    yield from of_run(run)
    yield _OF_STREAMS, partial(refuse_unstreamable, run, getattr(settings, "equal", "steps"))
    yield "trainer eval_every save_every", partial(refuse_idle, run)
    if not (repeated and (Path(run.out) / "run.json").is_file()):
        yield from of_model(run)
        if run.clip:
            yield "clip", partial(check_clip, run.clip)


def _of_overrides(settings: TrainSettings | ExperimentSettings, overrides: Sequence[str]) -> Checks:
    methods = [run.method for run in runs_compared(settings)]
    yield from of_typed(overrides, methods, lambda override: idle_overrides(settings, runs_in(settings), [override]))


def of_typed(overrides: Sequence[str], methods: Sequence[str], refuse: Callable[[str], object]) -> Checks:
    """The checks of typed keys that may do nothing, where the methods by which that is told are known ones."""
    if not all(map(is_known, methods)):
        return
    for override in overrides:
        key = override.partition("=")[0].removeprefix("base.")
        if key != "init_seed":  # refused with the model, typed or not
            yield f"{key} method methods", partial(refuse, override)


def _of_rows(name: str, settings: TrainSettings | ExperimentSettings) -> Checks:
    run = _base(settings)
    yield "data.train data.train_rows batch", partial(check_needed, name, run)
    yield "data trainer", partial(check_evaluated, run)
    if isinstance(settings, ExperimentSettings):
        yield "data", partial(check_comparable, settings)
    counted: dict[str, int | None] = {}
    yield from of_data(run.data, counted=counted)
    yield "batch data", partial(_refuse_few, run.batch, counted)


def of_data(data: DataSettings, splits: Sequence[str] = SPLITS, counted: dict[str, int | None] | None = None) -> Checks:
    """The checks of the data of these splits, where they are given.

    Args:
        counted: takes the number of rows of each, where all of them were looked at.
    """
    for split in splits:
        if spec := getattr(data, split):
            yield f"data.{split} data.format data.columns", partial(_check_split, spec, split, data, counted)


def _check_split(spec: str, split: str, data: DataSettings, counted: dict[str, int | None] | None) -> None:
    rows = check_data(spec, split, data)
    if counted is not None:
        counted[split] = rows


def _refuse_few(batch: int, counted: dict[str, int | None]) -> None:
    """Refuse a step of more rows than the file holds; those that are held out or too long come off later."""
    if (rows := counted.get("train")) is not None:
        refuse_few_rows(batch, rows)


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

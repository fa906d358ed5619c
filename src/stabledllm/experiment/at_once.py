"""Every mistake that a recipe's text, its names and the files beside it show, told in one list before torch is loaded.

What needs a model, a tokenizer, the rows or the machine is refused later, where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from stabledllm.config.decoding_fit import refuse_unfit
from stabledllm.config.recipe import read_recipe
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.config.trainer_rules import refuse_idle
from stabledllm.data.kinds import check_is_there, kind_of
from stabledllm.data.streamable import refuse_unstreamable
from stabledllm.errors import Gathered, UserError
from stabledllm.models.adapter_base import ADAPTER_CONFIG
from stabledllm.models.shapes import known_shape
from stabledllm.models.shipped import check_name
from stabledllm.noise.fits import check_blocks, check_model, check_p_of_t
from stabledllm.noise.parts import OfParts
from stabledllm.noise.weightings import power_of

Checks = Iterator[tuple[str, Callable[[], None]]]
"""Checks, each with the keys that it reads, separated by blanks; a group stands for all its keys."""
_OF_STREAMS = (
    "data.streaming data.train data.validation data.train_rows data.few_shot data.cache steps group_by_length equal "
    "trainer.dataloader_num_workers"
)


def load_checked(
    name: str, overrides: Sequence[str] = (), *, repeated: bool = False
) -> TrainSettings | ExperimentSettings:
    """The settings of a recipe that is to be run here.

    Args:
        repeated: whether a finished run in its folder is only to be said, for which its model need not be there.

    Raises:
        UserError: no such recipe, or broken YAML.
        Mistakes: all that is wrong with its keys, values, methods, model names, files and trainer keys.
    """
    read, gathered = read_recipe(name, overrides), Gathered()
    gathered.sentences += read.sentences
    if read.settings is not None:
        wrong = {key.removeprefix("base.") for key in read.wrong}
        for keys, check in _of_recipe(read.settings, repeated):
            # A value that was wrong has been replaced by its default, which is nobody's mistake.
            if not any(_touches(key, one) for key in keys.split() for one in wrong):
                with gathered.check():
                    check()
    gathered.refuse()
    return read.settings


def refuse_contradictions(run: TrainSettings, method: OfParts) -> None:
    """Refuse a method, decoding, data, quantisation or adapter that cannot be, as far as names tell.

    Raises:
        Mistakes: names each.
    """
    gathered = Gathered()
    for _, check in (*_of_method(run, method.name), *_of_run(run)):
        with gathered.check():
            check()
    gathered.refuse()


def _touches(key: str, wrong: str) -> bool:
    return f"{wrong}.".startswith(f"{key}.") or f"{key}.".startswith(f"{wrong}.")


def _of_recipe(settings: TrainSettings | ExperimentSettings, repeated: bool) -> Checks:
    of_one = isinstance(settings, TrainSettings)
    run, methods = (settings, [settings.method]) if of_one else (settings.base, settings.methods)
    for name in methods:
        yield from _of_method(run, name)
    yield from _of_run(run, "steps" if of_one else settings.equal)
    yield "trainer eval_every save_every", partial(refuse_idle, run)
    if not (repeated and (Path(run.out) / "run.json").is_file()):
        yield "model", partial(_check_model_name, run.model)
    for key in ("train", "validation", "test"):
        if spec := getattr(run.data, key):
            yield f"data.{key}", partial(check_is_there, spec)


def _of_method(run: TrainSettings, name: str) -> Checks:
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


def _of_run(run: TrainSettings, equal: str = "steps") -> Checks:
    objective, decoding, lora = run.objective, run.decoding, run.lora
    yield "objective", partial(power_of, objective.weighting, objective.power)
    yield "decoding block_size", partial(refuse_unfit, decoding.length, decoding.steps, decoding.block)
    for key in ("train", "validation", "test"):
        if spec := getattr(run.data, key):
            yield f"data.{key}", partial(kind_of, spec)
    yield _OF_STREAMS, partial(refuse_unstreamable, run, equal)
    yield "quantised lora", partial(_check_quantised, run)
    if lora and (shape := known_shape(run.model)):
        yield "lora model", partial(shape.targets, lora.target_modules)


def _check_model_name(name: str) -> None:
    name = name.removeprefix("new:")
    if not Path(name).expanduser().is_dir():
        check_name(name)


def _check_quantised(run: TrainSettings) -> None:
    if run.quantised and not run.lora and not (Path(run.model) / ADAPTER_CONFIG).is_file():
        raise UserError(f"key 'quantised': expected 'lora' beside it, found a run that trains all of {run.model}.")


def check_jobs(jobs: str) -> None:
    """Refuse a number of runs at the same time that is none.

    Raises:
        UserError: ``jobs`` is neither ``auto`` nor a whole number of at least 1.
    """
    if jobs != "auto" and (not jobs.isdecimal() or int(jobs) < 1):
        raise UserError(f"experiment: expected --jobs auto or a number of at least 1, found '{jobs}'.")

"""The checks of one training run, as far as its settings, names and files tell; none loads torch."""

from __future__ import annotations

import re
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from stabledllm.config.changeable import refuse_unchangeable
from stabledllm.config.decoding_fit import refuse_unfit
from stabledllm.config.settings import ModelSettings, TrainSettings
from stabledllm.config.settings.policy import PUBLISHED
from stabledllm.data.kinds import kind_of
from stabledllm.errors import UserError
from stabledllm.experiment.check_list import DECODED, SPLITS, WEIGHED, Checks
from stabledllm.experiment.readable import is_known, own_blocks_of
from stabledllm.experiment.response_checks import of_pairs, of_policy
from stabledllm.method_checks import check_block_choices, check_blocks, check_model, check_p_of_t, check_probed
from stabledllm.models.adapter_base import named_base
from stabledllm.models.choices import check_attention, check_family
from stabledllm.models.mask_choice import check_mask_choice
from stabledllm.models.moe_shapes import MoEShape
from stabledllm.models.names import check_model_name, is_adapter, is_known_here
from stabledllm.models.new import is_new
from stabledllm.models.shapes import known_shape
from stabledllm.models.shipped import check_name
from stabledllm.noise.bell import check_shape
from stabledllm.noise.names import find_part
from stabledllm.noise.of_parts import OfParts
from stabledllm.noise.parts import STANDARD
from stabledllm.noise.takes import check_tokens_in_blocks
from stabledllm.noise.weightings import power_of
from stabledllm.objective_checks import check_objective
from stabledllm.policy_checks import check_policy_method
from stabledllm.ppots.fitted_for import SCHEMA, refuse_other
from stabledllm.preference_checks import check_pair_method
from stabledllm.runtime.files import read_json
from stabledllm.runtime.nearby import nearby
from stabledllm.training.block_schedule import check_block_schedule

_MOST_VIEWS = 64


def of_method(run: TrainSettings, name: str) -> Checks:
    """The checks of a method for a run's model, density and blocks."""
    method, run = OfParts(name), own_blocks_of(run)
    yield "method methods", partial(_check_parts, method)
    if not is_known(name):
        return
    yield "method_options", partial(_check_options, run, method)
    shape = known_shape(run.model)
    causal = shape.causal if shape else run.family == "arm" if run.family != "auto" else None
    if causal is not None:
        yield "method methods model family", partial(check_model, method, run.model, causal)
    check = partial(_check_density, method, run) if run.p_of_t else partial(check_probed, method, run.objective)
    yield "method methods p_of_t objective block_size", check
    yield "method methods block_size block_schedule p_of_t", partial(check_block_schedule, run, method)
    yield "method methods objective", partial(method.refuse_unless_it_takes, run.objective)
    yield "method methods objective dpo", partial(check_pair_method, run, method)
    yield "method methods objective grpo", partial(check_policy_method, run, method)
    if run.block_size:
        yield "method methods block_size", partial(check_blocks, method)
        yield "objective block_size", partial(check_tokens_in_blocks, run.objective.tokens)
    if is_known_here(run.model):
        chosen = partial(check_block_choices, method, run.block_size, run.block_t, run.block_start)
        yield "method methods model block_size block_t block_start", chosen


def of_model(settings: ModelSettings, base: str | None = None) -> Checks:
    """The checks of a model's name and of how it is loaded.

    Args:
        base: given for an adapter's base, which may have moved.
    """
    yield "model", partial(check_model_name, settings.model)
    yield "family", partial(check_family, settings.family)
    yield "attention", partial(check_attention, settings.attention)
    if settings.init_seed is not None and not is_new(settings.model):
        yield "init_seed model", partial(_refuse_seed, settings.model)
    if settings.mask_token_id is not None:
        adapted = isinstance(settings, TrainSettings) and bool(settings.lora)
        yield (
            "mask_token_id model lora",
            partial(check_mask_choice, settings.mask_token_id, settings.model, adapted=adapted),
        )
    if base is not None:
        yield "base", partial(_check_base, settings.model, base)
    elif is_adapter(settings.model):
        yield "model", lambda: check_model_name(named_base(Path(settings.model).expanduser()))


def of_run(run: TrainSettings) -> Checks:
    """The checks of a run's objective, decoding, data's kinds, batch, blocks, adapters and callbacks."""
    run = own_blocks_of(run)
    objective, decoding, lora = run.objective, run.decoding, run.lora
    yield WEIGHED, partial(check_objective, objective)
    yield from of_pairs(run)
    yield from of_policy(run)
    yield f"{DECODED} block_size", partial(_check_decoding, run)
    numbers = (decoding.length, decoding.steps, decoding.block, run.block_size, decoding.sub_block)
    fits = partial(refuse_unfit, *numbers)
    yield f"{DECODED} block_size", fits
    for split in SPLITS:
        if spec := getattr(run.data, split):
            yield f"data.{split}", partial(kind_of, spec)
    yield "batch micro_batch", partial(_check_batch, run)
    yield "quantised lora", partial(_check_quantised, run)
    if lora and (shape := known_shape(run.model)):
        yield "lora model", partial(shape.targets, lora.target_modules)
    if run.router.bias_rate or run.router.loss:
        yield "router model lora", partial(_check_router, run)
    if run.trainer.get("torch_compile"):
        yield "trainer.torch_compile model", partial(_check_compiled, run)
    if lora and is_new(run.model):
        yield "lora model", partial(_refuse_adapters, run.model)
    yield "allow_changed", partial(refuse_unchangeable, run.allow_changed)
    for name in dict.fromkeys(run.callbacks):
        yield "callbacks", partial(_check_callback, name)
    if twice := next((name for name in run.callbacks if run.callbacks.count(name) > 1), None):
        yield "callbacks", partial(_refuse_twice, twice)


def _check_parts(method: OfParts) -> None:
    """Refuse a method that is written otherwise than as parts joined by ``+``, with how it is written."""
    name = method.name
    if name.strip("[] ").lower() in ("", "null", "none", "default"):
        raise UserError(f"method '{name}': expected parts joined by '+', found none; write standard.")
    if name.strip().lower() in ("lora", "qlora"):
        raise UserError(f"method '{name}': expected how masks are drawn, found an adapter; write RECIPE+lora.")
    if name in PUBLISHED:
        raise UserError(
            f"method '{name}': expected parts joined by '+', found a published estimator, which goes with "
            f"objective.kind=grpo; write method=standard grpo.estimator={name} for 'train', or "
            f"grpo.presets=[{name}] for 'decompose'."
        )
    named = [part for part in re.split(r"[\s,;+\[\]'\"]+", name) if part]
    once = list(dict.fromkeys(named))
    if STANDARD in once and once != [name] and all(part == STANDARD or find_part(part) for part in once):
        raise UserError(
            f"method '{name}': expected one method, found {STANDARD}, which stands alone, beside others; write one of "
            f"them, or methods: [...] in a YAML for 'stabledllm experiment' to compare them."
        )
    if all(map(find_part, once)) and (len(once) < len(named) or "[" in name or "" in name.split("+")):
        found = "one twice" if len(once) < len(named) else "them written otherwise"
        raise UserError(f"method '{name}': expected parts joined by '+', found {found}; write {'+'.join(once)}.")
    for part in method.parts:
        if part.part.number and not 2 <= part.views <= _MOST_VIEWS:
            raise UserError(f"{part.part.name}: expected 2 to {_MOST_VIEWS} views, found {part.views}.")


def _check_options(run: TrainSettings, method: OfParts) -> None:
    low, high = run.method_options.clip_low, run.method_options.clip_high
    if method.has("clipped") and not 0 <= low < high <= 1:
        raise UserError(f"clipped: expected an interval 0 <= low < high <= 1, found low={low:g}, high={high:g}.")
    if method.has("bell"):
        check_shape(run.method_options.bell)


def _check_decoding(run: TrainSettings) -> None:
    if run.block_size and run.decoding.block != run.block_size:
        raise UserError(
            f"key 'decoding.block': expected block_size = {run.block_size}, found {run.decoding.block}; leave it out, "
            f"or write decoding.block={run.block_size}."
        )


def _check_batch(run: TrainSettings) -> None:
    if run.micro_batch and run.batch % run.micro_batch:
        fitting = max(rows for rows in range(1, run.micro_batch + 1) if run.batch % rows == 0)
        raise UserError(
            f"key 'batch': expected a multiple of micro_batch = {run.micro_batch}, found {run.batch}; write "
            f"micro_batch={fitting}, or batch={-(-run.batch // run.micro_batch) * run.micro_batch}."
        )


def _check_quantised(run: TrainSettings) -> None:
    if run.quantised and not run.lora and not is_adapter(run.model):
        raise UserError(
            f"key 'quantised': expected 'lora' beside it, found a run that trains all of {run.model}; write "
            f"RECIPE+lora."
        )


def _check_router(run: TrainSettings) -> None:
    """Refuse to balance what a model whose shape is known does not have; loading tells it of any other."""
    shape, router = known_shape(run.model), run.router
    if shape is None:
        return
    if not isinstance(shape, MoEShape):
        key = "bias_rate" if router.bias_rate else "loss"
        raise UserError(f"key 'router.{key}': expected a model with experts, found '{run.model}', which has none.")
    if router.bias_rate and run.lora:
        raise UserError(
            "key 'router.bias_rate': expected a model that is trained whole, found 'lora', whose files do not hold the "
            "biases; write router.loss instead, or leave out 'lora'."
        )


def _check_compiled(run: TrainSettings) -> None:
    """Refuse to compile experts in blocks: a graph takes all noisy blocks, and their load is counted of those with
    masked tokens."""
    shape = known_shape(run.model)
    if isinstance(shape, MoEShape) and shape.in_blocks:
        raise UserError(
            f"key 'trainer.torch_compile': expected false for a model with experts that is trained in blocks, found "
            f"true with '{run.model}'; leave the key out."
        )


def _refuse_adapters(model: str) -> None:
    raise UserError(f"key 'lora': expected a trained model to adapt, found the new one '{model}'.")


def _refuse_seed(model: str) -> None:
    raise UserError(
        f"key 'init_seed': expected a new model (new:tiny or new:FOLDER), found '{model}'; write model=new:{model}, or "
        f"leave it out."
    )


def _check_base(model: str, base: str) -> None:
    if not is_adapter(model):
        raise UserError(f"model '{model}': expected an adapter's folder to take base '{base}', found none.")
    check_model_name(base)


def _check_density(method: OfParts, run: TrainSettings) -> None:
    name = run.p_of_t
    check_p_of_t(method)
    path = Path(name).expanduser()
    if not path.is_file():
        found = f"the folder '{name}'" if path.is_dir() else f"nothing at '{name}'"
        inside = f"; write p_of_t={path / 'p_of_t.json'}" if (path / "p_of_t.json").is_file() else ""
        near = inside or nearby(path, [".json"])
        raise UserError(f"key 'p_of_t': expected a file that 'stabledllm fit' wrote, found {found}{near}.")
    record, objective = read_json(path, SCHEMA), run.objective.keys
    objective["power"] = power_of(run.objective.weighting, run.objective.power)
    parts = {"method": str, "config": dict, "objective": dict}
    if all(isinstance(record.get(part), kind) for part, kind in parts.items()):  # else refused where it is read whole
        refuse_other(record, method.name, objective, name, run.block_size, run.block_t, run.objective.kind)


def refuse_density(base: TrainSettings) -> None:
    """Refuse a fitted density for the runs of an experiment.

    Raises:
        UserError: there is one.
    """
    if base.p_of_t is not None:
        raise UserError("key 'base.p_of_t': expected none, since an experiment fits one for each of its methods.")


def check_out(out: str) -> None:
    """Refuse a folder for results that is a file, or lies below one.

    Raises:
        UserError: names the file.
    """
    path = Path(out).expanduser()
    there = next((place for place in (path, *path.parents) if place.exists()), None)
    if there is not None and not there.is_dir():
        on_the_way = "" if there == path else f" on the way to it, {there}"
        raise UserError(f"{out}: expected a folder, found a file{on_the_way}.")


def check_clip(name: str) -> None:
    """Refuse the name of a CLIP model that is no folder and cannot be on the hub.

    Raises:
        UserError: such a name.
    """
    if not Path(name).expanduser().is_dir():
        check_name(name, "CLIP model", ())


def _refuse_twice(callback: str) -> None:
    raise UserError(f"key 'callbacks': expected each class once, found '{callback}' twice.")


def _check_callback(name: str) -> None:
    """Refuse a callback that cannot be imported, without importing it: it may bring torch."""
    example = "such as my_callbacks.SaveSamples"
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        raise UserError(f"key 'callbacks': expected dotted names of classes, {example}, found '{name}'.")
    package = name.partition(".")[0]
    if package in sys.stdlib_module_names:
        raise UserError(f"key 'callbacks': expected a class of your own, {example}, found '{name}'.")
    if not any(Path(place).exists() for place in (package, f"{package}.py")) and find_spec(package) is None:
        near = nearby(Path(f"{package}.py"), [".py"])
        raise UserError(
            f"key 'callbacks': expected '{name}' in a module of the working directory or an installed one, found no "
            f"module '{package}'{near}."
        )

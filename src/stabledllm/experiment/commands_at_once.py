"""Every mistake in what a command without a recipe is given, told in one list before torch is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from stabledllm.config.checking import read_settings
from stabledllm.config.decoding_fit import refuse_unfit
from stabledllm.config.from_run import naming_run, with_run
from stabledllm.config.likelihoods import check_likelihoods
from stabledllm.config.recipe import apply_overrides, merge
from stabledllm.config.reward_names import check_rewards, refuse_files_of_recipes
from stabledllm.config.settings import (
    ConvertSettings,
    DecomposeSettings,
    EvalSettings,
    ExperimentSettings,
    GenerateSettings,
    MergeSettings,
    ModelSettings,
    RescoreSettings,
    TrainSettings,
)
from stabledllm.config.settings.policy import OF_THE_POLICY
from stabledllm.data.streamable import refuse_unstreamable_data
from stabledllm.errors import Gathered, UserError
from stabledllm.experiment.at_once import SPLITS, load_checked, of_data, of_typed
from stabledllm.experiment.check_list import DECODED, OF_STREAMED_DATA, WEIGHED, Checks, gather
from stabledllm.experiment.given_files import check_adapter, check_convertible_model, check_file, check_gguf, check_rows
from stabledllm.experiment.idle import idle_in_decompose, idle_in_eval, idle_in_fit
from stabledllm.experiment.readable import is_known
from stabledllm.experiment.response_checks import of_fit_to_pairs, of_rows
from stabledllm.experiment.run_checks import check_clip, check_out, of_method, of_model
from stabledllm.method_checks import check_fitted, check_fixed, check_measured
from stabledllm.models.names import check_model_name, trained_block
from stabledllm.noise.of_parts import OfParts
from stabledllm.noise.parts import STANDARD
from stabledllm.objective_checks import check_objective
from stabledllm.planning.layout import Layout, parse_memory
from stabledllm.policy_checks import check_policy_to_measure
from stabledllm.preference_checks import check_pairs_to_measure
from stabledllm.runtime.folders import refuse_used
from stabledllm.tasks.registry import task_named

Decodes = TypeVar("Decodes", EvalSettings, GenerateSettings)
NEITHER = ("auto", "none")
"""What ``--beside`` may say besides a model or the folder of an evaluation."""


def check_command(
    command: str,
    tree: dict,
    overrides: Sequence[str] = (),
    *,
    also: Sequence[Callable[[], object]] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> BaseModel:
    """The settings of a command: ``fit``, ``decompose``, ``recommend``, ``eval``, ``generate``,
    ``convert``, ``merge``, ``rescore``.

    Args:
        tree: the command's options as a tree of keys of its settings. overrides: what was typed as KEY=VALUE.
        also: checks of options that are no settings, told in the same list.
        tell: takes a line on what comes with the run whose folder is the model.

    Raises:
        Mistakes: all that is wrong with keys, values, methods, model names, files and columns, with what to write.

    >>> check_command("fit", {"model": "tny"}, ["metod=ppots", "data.train=jsonl:missing.jsonl"])
    Traceback (most recent call last):
    stabledllm.errors.Mistakes: 4 mistakes; nothing was loaded or written:
      1. fit: unknown key 'metod' (did you mean 'method'?); write method.
      ...
    """
    kind, checks_of, refuse_idle = COMMANDS[command]

    def checks(settings: BaseModel) -> Checks:
        yield from checks_of(settings)
        if refuse_idle:
            methods = getattr(settings, "methods", None) or [getattr(settings, "method", STANDARD)]
            yield from of_typed(overrides, methods, lambda override: refuse_idle(settings, [override]))

    gathered = Gathered()
    for check in also:
        with gathered.check():
            check()
    tree = merge({}, tree)  # the caller's stays as it is
    with gathered.check():
        apply_overrides(tree, overrides)
    told: list[str] = []
    if issubclass(kind, ModelSettings):
        with gathered.check():
            tree, told = with_run(tree, kind)
    refuse_files_of_recipes(tree, gathered)
    read = read_settings(tree, kind, command)
    gather(gathered, read, checks)
    gathered.refuse()
    for line in told:
        tell(line)
    return read.settings


def check_plan(
    recipe: str, overrides: Sequence[str], memory: str | None, devices: int, sharding: str, longest: int | None
) -> tuple[TrainSettings | ExperimentSettings, Layout, float | None]:
    """The settings of a recipe whose memory is to be estimated, the layout, and the bytes of a device that it is given.

    Raises:
        UserError: no such recipe, or broken YAML.
        Mistakes: all that is wrong with it and with the options.
    """
    layout = partial(Layout, devices, sharding, longest)
    limit = partial(parse_memory, memory) if memory else lambda: None
    return load_checked(recipe, overrides, reads_data=False, also=[limit, layout]), layout(), limit()


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse to generate where there is no prompt, or one that is empty or not UTF-8.

    Raises:
        UserError: names the first such prompt by its number.
    """
    if not prompts:
        raise UserError(
            "generate: expected at least one prompt, --file FILE, or - for the lines of standard input, found none."
        )
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise UserError(f"generate: prompt {number}: expected some text, found an empty one.")
        if any("\ud800" <= c <= "\udfff" for c in prompt):
            raise UserError(f"generate: prompt {number}: expected UTF-8 text, found a byte that is not.")


def in_trained_blocks(settings: Decodes) -> Decodes:
    """The settings with the decoding in the blocks that the model was trained in, where no block was given."""
    block = trained_block(settings.base or settings.model)
    return settings.model_copy(update={"decoding": settings.decoding.in_blocks_of(block)})


def _of_fit(settings: TrainSettings) -> Checks:
    if settings.objective.kind == "grpo":
        yield WEIGHED, _refuse_policy
        return
    yield from of_method(settings, settings.method)
    if is_known(settings.method):
        yield "method", partial(check_fitted, OfParts(settings.method))
    yield from of_fit_to_pairs(settings)
    yield "out", partial(check_out, settings.out)
    yield WEIGHED, partial(check_objective, settings.objective)
    yield from of_model(settings)
    yield from _of_rows(settings, ["train"])
    yield OF_STREAMED_DATA, partial(refuse_unstreamable_data, settings.data)


def _refuse_policy() -> None:
    raise UserError(
        "fit: expected rows or pairs, found objective.kind=grpo, whose log-ratios are 0 in the first step of every "
        "round, so that no density of t can be fitted; train with method=lowdisc+fixedcount."
    )


def _of_decompose(settings: DecomposeSettings) -> Checks:
    yield f"{WEIGHED} dpo methods data.format", partial(check_pairs_to_measure, settings)
    yield f"{WEIGHED} grpo methods data.format", partial(check_policy_to_measure, settings)
    yield from of_rows(settings.objective.kind, settings.data)
    if settings.objective.kind == "grpo":
        yield "grpo.reward grpo.reward_weights", partial(check_rewards, settings.grpo)
        for key in ("old", "reference"):
            if (name := getattr(settings.grpo, key)) and name not in OF_THE_POLICY:
                yield f"grpo.{key}", partial(check_model_name, name)
    if settings.objective.kind == "dpo" and settings.dpo.reference:
        yield "dpo.reference", partial(check_model_name, settings.dpo.reference)
    run = TrainSettings(model=settings.model, family=settings.family)
    # The methods that are compared by default are left out where the model or the objective cannot take them.
    for name in settings.methods if "methods" in settings.model_fields_set else []:
        yield from of_method(run, name)
        if is_known(name):
            yield "methods", partial(check_fixed, OfParts(name))
    yield "out", partial(check_out, settings.out)
    yield WEIGHED, partial(check_objective, settings.objective)
    if settings.objective.kind == "masked":
        yield f"{WEIGHED} gradient", partial(check_measured, settings.objective, settings.gradient)
    yield from of_model(settings)
    yield from _of_rows(settings, ["train"])
    yield OF_STREAMED_DATA, partial(refuse_unstreamable_data, settings.data)


def _of_rows(settings: TrainSettings | DecomposeSettings | EvalSettings, splits: Sequence[str]) -> Checks:
    """The checks of the data, whose refusals name the run that they came with."""

    def named(check: Callable[[], object]) -> None:
        try:
            check()
        except UserError as error:
            raise naming_run(error, settings.model, settings.data) from None

    for keys, check in of_data(settings.data, splits):
        yield keys, partial(named, check)


def _of_eval(settings: EvalSettings) -> Checks:
    yield from of_model(settings, settings.base)
    yield "beside", partial(_check_beside, settings.beside)
    if settings.held_out:
        yield from _of_rows(settings, [name for name in SPLITS if getattr(settings.data, name)])
    else:
        yield from _of_rows(settings, ["test"] if settings.data.test else ["train"])
    yield "out", partial(check_out, settings.out)
    yield WEIGHED, partial(check_objective, settings.objective)
    yield f"{DECODED} model", partial(_check_decoding, settings)
    asked = settings.likelihood
    yield "likelihood decoding", partial(check_likelihoods, asked.kinds, asked.orders, settings.decoding)
    if settings.clip:
        yield "clip", partial(check_clip, settings.clip)


def _of_generate(settings: GenerateSettings) -> Checks:
    yield from of_model(settings, settings.base)
    yield f"{DECODED} model", partial(_check_decoding, settings)


def _of_convert(settings: ConvertSettings) -> Checks:
    path = Path(settings.model)
    if settings.model.lower().endswith(".gguf"):
        yield "model", partial(check_gguf, path)
    else:
        yield "model", partial(check_convertible_model, settings.model)
    yield "out", partial(refuse_used, Path(settings.out))


def _of_merge(settings: MergeSettings) -> Checks:
    yield "adapter", partial(check_adapter, settings.adapter)
    if settings.base:
        yield "base", partial(check_model_name, settings.base)
    yield "out", partial(refuse_used, Path(settings.out))


def _of_rescore(settings: RescoreSettings) -> Checks:
    yield "rows", partial(check_rows, Path(settings.rows))
    yield "task", partial(task_named, settings.task)
    yield "out", partial(check_file, Path(settings.out))


COMMANDS: dict[str, tuple[type[BaseModel], Callable[..., Checks], Callable[..., object] | None]] = {
    "fit": (TrainSettings, _of_fit, idle_in_fit),
    "decompose": (DecomposeSettings, _of_decompose, idle_in_decompose),
    "recommend": (DecomposeSettings, _of_decompose, idle_in_decompose),
    "eval": (EvalSettings, _of_eval, idle_in_eval),
    "generate": (GenerateSettings, _of_generate, None),
    "convert": (ConvertSettings, _of_convert, None),
    "merge": (MergeSettings, _of_merge, None),
    "rescore": (RescoreSettings, _of_rescore, None),
}
"""For each command its settings, their checks, and what refuses a typed key that does nothing in it."""


def _check_decoding(settings: EvalSettings | GenerateSettings) -> None:
    decoding, trained = in_trained_blocks(settings).decoding, trained_block(settings.base or settings.model)
    refuse_unfit(decoding.length, decoding.steps, decoding.block, trained, decoding.sub_block)


def _check_beside(name: str) -> None:
    if name not in NEITHER and not (Path(name).expanduser() / "eval.json").is_file():
        check_model_name(name)

"""Decoding options from ``--model_args`` and from a task's ``generation_kwargs``; none is dropped silently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stabledllm.build import build_decoding
from stabledllm.config.from_run import with_run
from stabledllm.config.recipe import check
from stabledllm.config.run_folder import run_of
from stabledllm.config.settings import DecodingSettings, GenerateSettings, ModelSettings
from stabledllm.decoding import DecodingOptions
from stabledllm.errors import UserError

LENGTH = 256
"""Number of new tokens where a task gives none, as in the harness's own models."""
_LENGTHS = ("max_gen_toks", "max_new_tokens")
# Without sampling these have no effect.
_OF_SAMPLING = ("temperature", "top_p", "top_k")


def with_run_decoding(given: dict, decoding: dict, tokens_per_step: int | None) -> tuple[dict, dict, int, list[str]]:
    """The keys of loading, the decoding and its tokens per step, with those of a run beneath the given ones.

    Of a run's decoding its length does not come with it, since each task has its own; nor does its system prompt, which
    the harness has an option for.

    Args:
        given: ``model`` and what else is given on how to load it. decoding: the given settings of decoding.
        tokens_per_step: as given; None for the run's, or 1.

    Returns:
        the keys of loading, the settings of decoding, the tokens per step, and lines to tell the user.

    Raises:
        UserError: a run that has not ended or left no model.
    """
    run = run_of(str(given["model"]))
    tree, _ = with_run(given | {"decoding": decoding}, GenerateSettings)
    data, whole = tree.pop("data", {}), dict(tree.pop("decoding"))
    loading = {name: value for name, value in tree.items() if name in ModelSettings.model_fields}
    length, steps = (whole.pop(name, None) for name in ("length", "steps"))
    block = int(whole.get("block", DecodingSettings().block))
    if tokens_per_step is None:
        own = length // steps if length and steps and length % steps == 0 else 1
        tokens_per_step = own if block % own == 0 else 1
    if run is None:
        return loading, whole, tokens_per_step, []
    words = [f"{name}={value}" for name, value in {**loading, **whole}.items() if name not in given]
    told = [f"from {run.name}: {', '.join([*words, f'tokens_per_step={tokens_per_step}'])}", *run.notes]
    if data.get("system_prompt"):
        told.append("note: it was trained behind a system prompt; give it as --system_instruction")
    return loading, whole, tokens_per_step, told


def decoding(
    given: dict, tokens_per_step: int, length: int | None, request: dict
) -> tuple[DecodingOptions, int, list[str]]:
    """The options, the largest number of tokens to keep, and the strings at which the text is cut.

    Args:
        given: the user's decoding settings, without length and steps.
        tokens_per_step: tokens decided by a model call.
        length: the user's number of new tokens; None for the task's, rounded up to whole blocks.
        request: a task's generation_kwargs. ``do_sample`` draws at its temperature, 1 where it gives none; without it
            the user's settings hold.

    Raises:
        UserError: a generation argument that this library does not support, or settings that contradict each other.
    """
    request = dict(request)
    until = request.pop("until", None) or []
    until = [until] if isinstance(until, str) else list(until)
    sample = bool(request.pop("do_sample", False))
    most = next((int(request[name]) for name in _LENGTHS if request.get(name) is not None), LENGTH)
    sampling = {name: request.pop(name) for name in _OF_SAMPLING if name in request}
    if request.pop("num_beams", 1) != 1 or (sample and sampling.get("top_k")):
        raise UserError("lm_eval: generation_kwargs: expected no top_k and no num_beams, which masked models lack.")
    for name in _LENGTHS:
        request.pop(name, None)
    if request:
        raise UserError(f"lm_eval: generation_kwargs: expected none that decoding lacks, found {sorted(request)[0]!r}.")
    tree = dict(given)
    if sample:
        tree |= {"temperature": float(sampling.get("temperature", 1.0)), "top_p": float(sampling.get("top_p", 1.0))}
    block = int(tree.get("block", DecodingSettings().block))
    most = length or most
    # A last block that is only partly needed is decoded whole and cut.
    whole = -(-most // block) * block
    if length and whole != length:
        raise UserError(f"lm_eval: expected a length of whole blocks of {block}, found {length}.")
    if block % tokens_per_step:
        raise UserError(f"lm_eval: expected tokens_per_step that divide a block of {block}, found {tokens_per_step}.")
    tree |= {"block": block, "length": whole, "steps": whole // tokens_per_step}
    return build_decoding(check(tree, DecodingSettings, "lm_eval model_args")), most, until


def cut(text: str, until: list[str]) -> str:
    """The text before the first of the strings."""
    return text[: min((text.index(stop) for stop in until if stop and stop in text), default=len(text))]


def same_arguments(requests: Sequence, batch: int) -> Iterator[range]:
    """The ranges of at most ``batch`` successive requests with the same generation arguments, in order."""
    start = 0
    for i in range(1, len(requests) + 1):
        if i == len(requests) or i - start == batch or requests[i].args[1] != requests[start].args[1]:
            yield range(start, i)
            start = i

"""Decoding options from ``--model_args`` and from a task's ``generation_kwargs``; none is dropped silently."""

from __future__ import annotations

from stabledllm.build import build_decoding
from stabledllm.config.recipe import check
from stabledllm.config.settings import DecodingSettings
from stabledllm.decoding import DecodingOptions
from stabledllm.errors import UserError

LENGTH = 256
"""Number of new tokens where a task gives none, as in the harness's own models."""
_LENGTHS = ("max_gen_toks", "max_new_tokens")
# Without sampling these have no effect.
_OF_SAMPLING = ("temperature", "top_p", "top_k")


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

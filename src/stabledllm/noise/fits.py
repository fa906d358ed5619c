"""Whether a method fits what it is asked to train or measure: every refusal, one sentence each.

What is known of models and data comes in as plain values, so that this knows neither.
"""

from __future__ import annotations

from collections.abc import Collection

from stabledllm.errors import UserError
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.parts import AUTOREGRESSIVE, FOLLOWED

_MARKED = {"delimiter": "data.delimiters in their responses", "syntax": "data.syntax tokens in their prompts"}
"""What rows hold that have the marks."""


def check_model(method: Method, model: str, autoregressive: bool) -> None:
    """Masks are for masked diffusion models, next-token prediction for autoregressive ones.

    Raises:
        UserError: the other way round.
    """
    if autoregressive != method.autoregressive:
        kind = "an autoregressive model" if autoregressive else "a masked diffusion model"
        wanted = f"method '{AUTOREGRESSIVE}'" if autoregressive else "a method that masks tokens"
        raise UserError(f"model '{model}' is {kind}: expected {wanted}, found '{method.name}'.")


def check_autoregressive(objective: Objective) -> None:
    """An autoregressive model masks nothing: what weighs mask ratios has no meaning there.

    Raises:
        UserError: a weighting, power or eps other than the default.
    """
    if objective != Objective(normalization=objective.normalization):
        raise UserError(
            f"key 'objective': expected nothing but 'normalization' for an autoregressive model, which has no mask "
            f"ratio to weigh, found weighting={objective.weighting} and eps={objective.eps:g}."
        )


def check_marks(method: Method, marks: Collection[str]) -> None:
    """A method whose marks are nowhere in the data would silently be another method.

    Args:
        marks: those that some row has, ``delimiter`` or ``syntax``.

    Raises:
        UserError: ISAD without any answer delimiter, or SyRM without any syntax token.
    """
    for name in sorted(method.marks.difference(marks)):
        raise UserError(f"method '{method.name}': expected rows with {_MARKED[name]}, found none.")


def check_blocks(method: Method, *, packing: bool = False) -> None:
    """Whether a method has a meaning in blocks.

    Args:
        packing: whether rows are laid end to end.

    Raises:
        UserError: ``syrm``, whose prompt tokens lie in no block; ``ema``, whose baseline is of whole rows at one t;
            ``autoregressive``, which masks nothing; a density fitted to gradients; packed rows.
    """
    if packing:
        raise UserError("key 'packing': packed rows and block_size contradict: a row in blocks is two copies.")
    if method.syrm:
        raise UserError(f"method '{method.name}': 'syrm' and block_size contradict: the prompt is in no block.")
    if method.autoregressive:
        raise UserError(f"method '{method.name}' and block_size contradict: an autoregressive model masks no blocks.")
    if method.ema:
        raise UserError(f"method '{method.name}': 'ema' and block_size contradict: its baseline takes one t per row.")
    if method.signal not in (None, "loss"):
        raise UserError(f"method '{method.name}': a density fitted to gradients and block_size contradict; use ppots.")


def check_finite_variance(method: Method, what: str) -> None:
    """At eps = 0 the bound's weight 1 / t has no second moment under independent masks, whatever bounded p(t).

    Args:
        what: the command that measures the variance.

    Raises:
        UserError: such a method.
    """
    if method.masker.independent and method.objective.eps == 0 and method.objective.power == 0:
        raise UserError(
            f"{what}: expected objective.eps above 0, found 0: the variance of method '{method.name}', whose masks are "
            f"independent, is infinite there."
        )


def check_fixed(method: Method) -> None:
    """A variance is that of a density that stands still.

    Raises:
        UserError: a method whose density follows training.
    """
    if method.adaptive:
        alike = "+".join(FOLLOWED.get(named.text, named.text) for named in method.parts)
        raise UserError(
            f"method '{method.name}': expected a density that is fixed, found one that follows training; "
            f"it tends to that of '{alike}'."
        )


def check_fitted(method: Method) -> None:
    """A p(t) can be fitted for the methods that need one.

    Raises:
        UserError: another method.
    """
    if not method.needs_p:
        raise UserError(f"fit: expected a method with 'ppots', found '{method.name}'.")


def check_p_of_t(method: Method) -> None:
    """A fitted p(t) may be given to a method that draws from it, or starts from it.

    Raises:
        UserError: another method.
    """
    if not (method.needs_p or method.adaptive):
        raise UserError(f"key 'p_of_t': expected a method with ppots or adaptive, found '{method.name}'.")


def check_elbo(method: Method) -> None:
    """Whether a method estimates the bound from its arguments alone.

    Raises:
        UserError: a method that is autoregressive or biased, follows a training run, or has a part without effect.
    """
    if method.autoregressive:
        raise UserError(f"elbo: expected a method that masks tokens, found '{method.name}', which estimates no bound.")
    if not method.unbiased:
        raise UserError(f"elbo: expected an unbiased method, found '{method.name}', which estimates another objective.")
    if method.adaptive:
        raise UserError(
            f"elbo: expected a method whose density stands still, found '{method.name}', which learns it in training; "
            f"a fitted one takes ppots and density."
        )
    if method.ema:
        raise UserError(f"elbo: '{method.name}': ema steadies training's reported loss and does nothing here.")


def check_own_loop(method: Method, *, p_of_t: bool) -> None:
    """Whether a method works in a training loop of one's own.

    Args:
        p_of_t: whether a fitted density is given.

    Raises:
        UserError: a part that needs the Trainer or the tokenizer, or a density that the method does not use.
    """
    for part in ("adaptive", "ema", "syrm"):
        if method.has(part):
            raise UserError(f"Noise: expected a method without '{part}', found '{method.name}'.")
    if p_of_t and not method.needs_p:
        raise UserError(f"Noise: expected no p_of_t for '{method.name}', which draws t without one.")

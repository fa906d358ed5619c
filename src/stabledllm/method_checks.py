"""Checks that a method fits the model, the data and the command; each refusal is one sentence.

Facts about models and data are passed in as plain values, so that this file imports neither, and no torch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from stabledllm.errors import UserError
from stabledllm.noise.of_parts import OfParts
from stabledllm.noise.parts import AUTOREGRESSIVE, FOLLOWED, STANDARD
from stabledllm.noise.weightings import power_of

if TYPE_CHECKING:
    from stabledllm.noise.methods import Method
    from stabledllm.noise.objective import Objective

_MARKED = {"delimiter": "data.delimiters in their responses", "syntax": "data.syntax tokens in their prompts"}
"""How the refusal describes rows with each kind of marks."""
_COUNTED = ("fixedcount", "complement")
"""Parts whose masks have an exact number of tokens; the masks of all others are independent."""


def check_model(method: OfParts, model: str, autoregressive: bool) -> None:
    """Refuse masks for an autoregressive model, and next-token prediction for a masked diffusion model.

    Raises:
        UserError: such a pair.

    >>> check_model(OfParts("standard"), "gpt2", autoregressive=True)
    Traceback (most recent call last):
    stabledllm.errors.UserError: model 'gpt2' is an autoregressive model: expected method 'autoregressive', ...
    """
    if autoregressive != method.autoregressive:
        kind = "an autoregressive model" if autoregressive else "a masked diffusion model"
        expected = f"method '{AUTOREGRESSIVE}'" if autoregressive else "a method that masks tokens"
        raise UserError(f"model '{model}' is {kind}: expected {expected}, found '{method.name}'.")


def check_autoregressive(objective: Objective) -> None:
    """Refuse settings that weigh mask ratios for an autoregressive model, which masks nothing.

    Raises:
        UserError: a weighting, power, eps or window other than the default, or a mean over masked tokens.

    >>> from stabledllm.noise.objective import Objective
    >>> check_autoregressive(Objective(normalization="token"))
    >>> check_autoregressive(Objective("unweighted"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'objective': expected nothing but 'normalization' for an autoregressive model, ...
    """
    if objective.normalization == "masked" or objective != type(objective)(normalization=objective.normalization):
        window = f", window={list(objective.window)}" if objective.window else ""
        masked = ", normalization=masked" if objective.normalization == "masked" else ""
        masked += f", tokens={objective.tokens}" if objective.tokens != "all" else ""
        raise UserError(
            f"key 'objective': expected nothing but 'normalization' for an autoregressive model, which has no mask "
            f"ratio to weigh, found weighting={objective.weighting}{masked}{window} and eps={objective.eps:g}."
        )


def check_marks(method: OfParts, marks: Collection[str]) -> None:
    """Refuse a method whose marks no row of the data has: it would silently be another method.

    Args:
        marks: those that some row has, ``delimiter`` or ``syntax``.

    Raises:
        UserError: ISAD without any answer delimiter, or SyRM without any syntax token.

    >>> check_marks(OfParts("isad"), {"syntax"})
    Traceback (most recent call last):
    stabledllm.errors.UserError: method 'isad': expected rows with data.delimiters in their responses, found none.
    """
    for name in sorted(method.marks.difference(marks)):
        raise UserError(f"method '{method.name}': expected rows with {_MARKED[name]}, found none.")


def check_blocks(method: OfParts) -> None:
    """Refuse a method that has no meaning in block diffusion.

    Raises:
        UserError: ``syrm``, whose prompt tokens lie in no block; ``ema``, whose baseline takes one t per row;
            ``autoregressive``, which masks nothing; a density fitted to gradients.

    >>> check_blocks(OfParts("syrm"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: method 'syrm': 'syrm' and block_size contradict: the prompt is in no block.
    """
    if method.syrm:
        raise UserError(f"method '{method.name}': 'syrm' and block_size contradict: the prompt is in no block.")
    if method.autoregressive:
        raise UserError(f"method '{method.name}' and block_size contradict: an autoregressive model masks no blocks.")
    if method.ema:
        raise UserError(f"method '{method.name}': 'ema' and block_size contradict: its baseline takes one t per row.")
    if method.signal not in (None, "loss"):
        raise UserError(f"method '{method.name}': a density fitted to gradients and block_size contradict; use ppots.")


def check_block_choices(method: OfParts, block_size: int | None, block_t: str, block_start: str) -> None:
    """Refuse choices on blocks where there are none, and one t for a row's blocks where single blocks' losses decide.

    Raises:
        UserError: ``block_t`` or ``block_start`` without ``block_size``; ``block_t=row`` with ``adaptive``.

    >>> check_block_choices(OfParts("mirror"), None, "row", "noisy")
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'block_t': expected block_size beside 'row', found none; write block_size=32 ...
    """
    for key, value, usual in (("block_start", block_start, "noisy"), ("block_t", block_t, "own")):
        if value != usual and not block_size:
            raise UserError(
                f"key '{key}': expected block_size beside '{value}', found none; write block_size=32 too, or leave out "
                f"{key}."
            )
    if block_t == "row" and method.adaptive:
        raise UserError(
            f"key 'block_t': expected 'own' with method '{method.name}', whose density follows the losses of single "
            f"blocks, found 'row'."
        )


def check_finite_variance(method: Method, what: str) -> None:
    """Refuse independent masks at eps = 0: the bound's weight 1 / t then has no second moment, for any bounded p(t).

    Args:
        what: the command that measures the variance.

    Raises:
        UserError: such a method.

    >>> from stabledllm.noise.methods import Method
    >>> from stabledllm.noise.objective import Objective
    >>> check_finite_variance(Method.parse("standard", objective=Objective(eps=0.0)), "fit")
    Traceback (most recent call last):
    stabledllm.errors.UserError: fit: expected objective.eps above 0, found 0: the variance of method 'standard', ...
    """
    if method.masker.independent:
        _refuse_unbounded(method.objective, method.name, what)


def check_probed(method: OfParts, objective: Objective) -> None:
    """Refuse, before anything is loaded, a density that would be fitted where the variance is infinite.

    Args:
        objective: or its settings.

    Raises:
        UserError: such a method.

    >>> from stabledllm.noise.objective import Objective
    >>> check_probed(OfParts("ppots+fixedcount"), Objective(eps=0.0))
    >>> check_probed(OfParts("ppots"), Objective(eps=0.0))
    Traceback (most recent call last):
    stabledllm.errors.UserError: ppots: expected objective.eps above 0, found 0: the variance of method 'ppots', ...
    """
    if method.needs_p and not any(map(method.has, _COUNTED)):
        _refuse_unbounded(objective, method.name, "ppots")


def check_measured(objective: Objective, gradient: bool) -> None:
    """Refuse an objective of which ``decompose`` cannot measure Standard's noise.

    Args:
        objective: or its settings.

    Raises:
        UserError: an infinite variance; or the gradient's noise under ``cosine``.

    >>> from stabledllm.noise.objective import Objective
    >>> check_measured(Objective("cosine"), gradient=True)
    Traceback (most recent call last):
    stabledllm.errors.UserError: decompose: gradient=true and objective.weighting 'cosine' contradict; write ...
    """
    if objective.weighting != "cosine":
        _refuse_unbounded(objective, STANDARD, "decompose")
    elif gradient:  # its masks are counted, so that none are Standard's
        raise UserError(
            "decompose: gradient=true and objective.weighting 'cosine' contradict; write gradient=false for the noise "
            "of the loss alone."
        )


def _refuse_unbounded(objective: Objective, method: str, what: str) -> None:
    low, bell = (objective.window or (0.0, 1.0))[0], objective.bell or (1.0, 1.0)
    unbounded = low == 0 and objective.eps == 0 and power_of(objective.weighting, objective.power) == 0
    if unbounded and bell[0] == 1:  # under a bell of a > 1 t has no mass at 0
        raise UserError(
            f"{what}: expected objective.eps above 0, found 0: the variance of method '{method}', whose masks are "
            f"independent, is infinite there."
        )


def check_fixed(method: OfParts) -> None:
    """Refuse a method whose density follows training: a variance is measured under a density that is fixed.

    Raises:
        UserError: such a method.

    >>> check_fixed(OfParts("adaptive+mirror"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: method 'adaptive+mirror': ...; it tends to that of 'ppots+mirror'.
    """
    if method.adaptive:
        raise UserError(
            f"method '{method.name}': expected a density that is fixed, found one that follows training; "
            f"it tends to that of '{standing_still(method)}'."
        )


def standing_still(method: OfParts) -> str:
    """The method's name with the density that it tends to in the place of one that follows training.

    >>> standing_still(OfParts("lowdisc+adaptive+fixedcount"))
    'lowdisc+ppots+fixedcount'
    """
    return "+".join(FOLLOWED.get(named.text, named.text) for named in method.parts) or STANDARD


def check_fitted(method: OfParts) -> None:
    """Refuse to fit a p(t) for a method that needs none.

    Raises:
        UserError: such a method.

    >>> check_fitted(OfParts("standard"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: fit: expected a method with 'ppots', found 'standard'.
    """
    if not method.needs_p:
        raise UserError(f"fit: expected a method with 'ppots', found '{method.name}'.")


def check_p_of_t(method: OfParts) -> None:
    """Refuse a fitted p(t) for a method that neither draws t from it nor starts from it.

    Raises:
        UserError: such a method.

    >>> check_p_of_t(OfParts("standard"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'p_of_t': expected a method with ppots or adaptive, found 'standard'.
    """
    if not (method.needs_p or method.adaptive):
        raise UserError(f"key 'p_of_t': expected a method with ppots or adaptive, found '{method.name}'.")


def check_elbo(method: OfParts) -> None:
    """Refuse a method that cannot estimate the bound outside of training.

    Raises:
        UserError: a method that is autoregressive or biased, follows a training run, or has a part without effect.

    >>> check_elbo(OfParts("clipped"))
    Traceback (most recent call last):
    stabledllm.errors.UserError: elbo: expected an unbiased method, found 'clipped', which estimates another objective.
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


def check_own_loop(method: OfParts, *, p_of_t: bool, tokens: str = "all") -> None:
    """Refuse a method that does not work in the user's own training loop.

    Args:
        p_of_t: whether a fitted density is given. tokens: ``objective.tokens``.

    Raises:
        UserError: a part that needs the Trainer or the tokenizer, a choice of tokens that needs the model, or a density
            that the method does not use.

    >>> check_own_loop(OfParts("ema"), p_of_t=False)
    Traceback (most recent call last):
    stabledllm.errors.UserError: Noise: expected a method without 'ema', found 'ema'.
    """
    for part in ("adaptive", "ema", "syrm"):
        if method.has(part):
            raise UserError(f"Noise: expected a method without '{part}', found '{method.name}'.")
    if tokens in ("lift", "gift"):
        raise UserError(f"Noise: expected objective.tokens all or cart, found {tokens}, which asks the model first.")
    if p_of_t and not method.needs_p:
        raise UserError(f"Noise: expected no p_of_t for '{method.name}', which draws t without one.")

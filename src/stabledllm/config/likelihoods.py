"""What each likelihood is, and which settings have none; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stabledllm.errors import UserError

MEANING = {
    "elbo": "upper bound of the NLL",
    "duel": "exact for the decoder",
    "multisample": "upper bound of the NLL, tighter",
    "stepmerge": "upper bound of the NLL of parallel steps",
    "tube": "lower bound of the NLL",
}
"""What the negative of each log-likelihood is, in expectation over its random orders."""
OF_ORDERS = ("multisample", "tube")
"""The kinds that are computed from the same forwards."""


def check_likelihoods(kinds: Sequence[str], orders: int, decoding: Any, key: str = "likelihood.kinds") -> None:
    """Refuse likelihoods that these settings have not, or that say nothing new.

    Args:
        decoding: settings or options of decoding.
        key: what the user calls the kinds.

    Raises:
        UserError: a kind that is given twice, ``elbo`` without guidance, ``tube`` of an odd number of orders, or a
            decoder that :func:`check_duel` refuses.
    """
    if twice := next((kind for kind in kinds if list(kinds).count(kind) > 1), None):
        raise UserError(f"key '{key}': expected each likelihood once, found '{twice}' twice.")
    if "elbo" in kinds and not decoding.guidance:
        raise UserError(
            f"key '{key}': expected decoding.guidance above 0 for 'elbo', which without it is validation_nll, found "
            f"{decoding.guidance:g}."
        )
    if "tube" in kinds:
        check_halves(orders, "key 'likelihood.orders'")
    if "duel" in kinds:
        check_duel(decoding, key)


def check_halves(orders: int, what: str) -> None:
    """Refuse a number of orders for ``tube`` of which one half cannot bound the other.

    Raises:
        UserError: an odd number.
    """
    if orders % 2:
        raise UserError(
            f"{what}: expected an even number of orders for 'tube', of which half bound half, found {orders}."
        )


def check_duel(decoding: Any, key: str = "likelihood.kinds") -> None:
    """Refuse a decoder that has no exact likelihood, or one that gives answers the probability 0.

    Raises:
        UserError: positions that are drawn at random or depend on drawn tokens, or tokens that are never drawn.
    """
    drawn = decoding.temperature > 0
    if decoding.order == "random" or decoding.schedule == "origin":
        what, found = "an order that draws no positions at random", f"decoding.order={decoding.order}"
    elif drawn and (decoding.order == "confidence" or decoding.confidence_eos_eot_inf):
        what = "an order that looks at no drawn token (margin, entropy, sequential, or temperature 0)"
        by = "confidence_eos_eot_inf" if decoding.order != "confidence" else f"order={decoding.order}"
        found = f"decoding.{by} at decoding.temperature={decoding.temperature:g}"
    elif decoding.top_p < 1:
        what, found = "all tokens to be drawn", f"decoding.top_p={decoding.top_p:g}, which gives most answers none"
    elif decoding.logits_eos_inf:
        what, found = "all tokens to be drawn", "decoding.logits_eos_inf, which gives answers that end none"
    else:
        return
    raise UserError(f"key '{key}': expected for 'duel' {what}, found {found}; 'multisample' needs no decoder.")

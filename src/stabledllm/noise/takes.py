"""Which parts of a method are defined for which objective, as one sentence where they are not. Loads no torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from stabledllm.errors import UserError
from stabledllm.noise.parts import MASKER, PARTS, STANDARD

if TYPE_CHECKING:
    from stabledllm.noise.objective import Objective
    from stabledllm.noise.of_parts import OfParts

EXACT = "fixedcount"
PAIRS = ("complement",)
"""Parts for the bound's masks only that weigh all tokens of a view alike: what a bell, ``cart`` and ``lift`` need."""
OF_GRADIENTS = ("ppots-gradient", "ppots-head")
"""Densities fitted to gradients, which take counts to decide the law of a mask: not so where a model chooses it."""


def objection(method: OfParts, objective: Objective) -> str | None:
    """Why a method cannot estimate an objective, as a sentence; None where it can.

    Args:
        objective: or its settings.

    >>> from stabledllm.noise.objective import Objective
    >>> from stabledllm.noise.of_parts import OfParts
    >>> objection(OfParts("fixedcount"), Objective(tokens="gift"))[:72]
    "method 'fixedcount' and objective.tokens=gift contradict: it masks each "
    """
    parts = [named.part for named in method.parts]
    if objective.weighting in ("cosine", "bell") or objective.window:
        key = f"window {list(objective.window)}" if objective.window else f"weighting '{objective.weighting}'"
        whole = objective.weighting == "bell" and not objective.window  # all counts, so that P - k is one of them
        fitted = OF_GRADIENTS if objective.weighting != "cosine" else ()
        if sentence := _bound_only(method, key, (*(PAIRS if whole else ()), *fitted)):
            return sentence
    if objective.tokens == "all":
        return None
    defined = {"cart": (*PAIRS, *OF_GRADIENTS), "lift": PAIRS, "gift": ()}[objective.tokens]
    if sentence := _bound_only(method, f"tokens={objective.tokens}", defined):
        return sentence
    begin = f"method '{method.name}' and objective.tokens={objective.tokens} contradict"
    if objective.tokens == "gift" and any(MASKER in part.fills for part in parts):
        return (
            f"{begin}: it masks each token with a probability of its own; expected a method of independent masks, such "
            f"as standard, lowdisc or ppots+mirror."
        )
    if objective.tokens in ("lift", "gift") and objective.weighting == "cosine":
        return f"{begin} under weighting 'cosine', which has no masking probability; expected another weighting."
    counted = any(name in ("fixedcount", "complement") for name in (part.name for part in parts))
    if objective.tokens == "lift" and objective.weighting == "bell" and counted:
        return (
            f"{begin} under weighting 'bell', where the mask ratio behind an exact count has no simple law; expected "
            f"a method of independent masks, or another weighting."
        )
    return None


def exact_or_standard(objective: Objective) -> str:
    """The masker of least noise that an objective takes, as a part: exact counts, or Standard's independent masks.

    >>> from stabledllm.noise.objective import Objective
    >>> exact_or_standard(Objective()), exact_or_standard(Objective(tokens="gift"))
    ('fixedcount', 'standard')
    """
    from stabledllm.noise.of_parts import OfParts

    return EXACT if objection(OfParts(EXACT), objective) is None else STANDARD


def check_tokens_in_blocks(tokens: str) -> None:
    """Refuse weights or choices of single tokens in block diffusion, for which none is defined.

    Raises:
        UserError: another value of ``objective.tokens`` than ``all``.

    >>> check_tokens_in_blocks("cart")
    Traceback (most recent call last):
    stabledllm.errors.UserError: objective.tokens: expected all beside block_size, found cart; leave one of them out.
    """
    if tokens != "all":
        raise UserError(f"objective.tokens: expected all beside block_size, found {tokens}; leave one of them out.")


def _bound_only(method: OfParts, key: str, but: Collection[str] = ()) -> str | None:
    """The refusal of parts that are defined for the bound's masks only, but for some."""
    if not any(named.part.bound_only and named.part.name not in but for named in method.parts):
        return None
    *others, last = (part.name for part in PARTS.values() if not part.bound_only or part.name in but)
    return f"method '{method.name}' and objective.{key} contradict: expected parts of {', '.join(others)} and {last}."

"""What takes the weight of a draw away: an exact count, or P-POTS, where the method has not got them."""

from __future__ import annotations

from stabledllm.errors import UserError
from stabledllm.noise.methods import Method
from stabledllm.training.replay.parts import OfRow, Part

EXACT, FITTED = "fixedcount", "ppots"
_LESS = 1.5
"""How many times more the masked tokens weigh together than under an exact count, at the least, for it to be told."""


def with_part(method: Method, part: str) -> Method | None:
    """The method with a part more; None where it has it, or one in its place that contradicts it.

    >>> with_part(Method.parse("lowdisc"), "fixedcount").name, with_part(Method.parse("complement"), "fixedcount")
    ('lowdisc+fixedcount', None)
    """
    if method.has(part):
        return None
    try:
        return Method.parse(f"{method.name}+{part}" if method.parts else part, method.options, method.objective)
    except UserError:
        return None


def remedy(part: OfRow | Part, method: Method) -> str:
    """What makes a draw of few masked tokens weigh less; what an exact count makes of it is drawn, not estimated."""
    largest = part.largest
    exact = None if largest.exact_weight is None else with_part(method, EXACT)
    if exact and part.weight * largest.masked <= _LESS * largest.exact_weight * largest.exact_masked:
        exact = None
    fitted = None if method.needs_p or method.adaptive else with_part(method, FITTED)
    if exact:
        tokens = "token" if largest.exact_masked == 1 else "tokens"
        begin = f"an exact count makes it {largest.exact_masked} masked {tokens} at weight {largest.exact_weight:.3g}"
        if fitted:
            return f"{begin}, and P-POTS lowers it too (method={exact.name}, method={fitted.name})"
        return f"{begin} (method={exact.name})"
    if fitted:
        return f"P-POTS lowers it, which draws such t more often and weighs them less (method={fitted.name})"
    return "more rows per step make it count less, and trainer.max_grad_norm bounds what one step can do"

"""How length, block and steps of decoding fit together: blocks divide the length and share the steps evenly."""

from __future__ import annotations

from collections.abc import Iterable

from stabledllm.errors import UserError


def fitting_block(length: int, usual: int) -> int:
    """The divisor of ``length`` nearest to ``usual`` by ratio, the smaller of two; itself where it divides.

    Where none lies between half and twice ``usual``, the whole length: one block, as Dream decodes.
    """
    near = [d for d in _divisors(length) if usual <= 2 * d <= 4 * usual]
    return min(near, key=lambda d: max(d / usual, usual / d), default=length)


def fitting_steps(length: int, block: int, usual: int) -> int:
    """The steps nearest to ``usual`` that the blocks share evenly; itself where they do.

    Any other number is at most ``length``, since a step that has no token left to decide does nothing.
    """
    blocks = length // block
    if usual % blocks == 0:
        return usual
    return min(length, max(1, round(usual / blocks)) * blocks)


def calls_of(length: int, steps: int, schedule: str) -> int:
    """The steps in which something is decided: where they share the tokens evenly, at most one for each."""
    return min(length, steps) if schedule == "even" else steps


def refuse_unfit(length: int, steps: int, block: int, trained: int | None = None, sub_block: int | None = None) -> None:
    """Refuse numbers that cannot be decoded with, with the nearest that can.

    Args:
        trained: tokens of the blocks that the model is trained in, None for one of whole responses: only the length can
            be chosen then.

    Raises:
        UserError: ``block`` does not divide ``length``, ``sub_block`` not the block, or they cannot share ``steps``
            evenly.
    """
    if min(length, steps, block, 1 if sub_block is None else sub_block) < 1:
        raise UserError("decoding: length, steps, block and sub_block must be at least 1.")
    if length % block:
        blocks = _either(_around(block, _divisors(length)))
        lengths = _either(_around(length, _multiples(length, block)))
        if block == trained:
            raise UserError(
                f"decoding: length: expected a multiple of {block}, the tokens of a block that the model is trained "
                f"in, found {length}; write {lengths}."
            )
        raise UserError(
            f"decoding: block {block} does not divide length {length}; block {blocks} does, and so it does a length of "
            f"{lengths}. Without block one that fits is taken."
        )
    if sub_block and block % sub_block:
        fitting = _either(_around(sub_block, _divisors(block)))
        raise UserError(
            f"decoding.sub_block: expected a divisor of the block's {block} tokens, found {sub_block}; write {fitting}."
        )
    parts, name = length // (sub_block or block), "sub_block" if sub_block else "block"
    if steps % parts:
        fitting = _either(_around(steps, _multiples(steps, parts)))
        raise UserError(
            f"decoding: steps {steps} do not divide over {parts} {name.replace('_', '-')}s (length {length}, {name} "
            f"{sub_block or block}); steps {fitting} do. Without steps a number that fits is taken."
        )


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _multiples(near: int, of: int) -> list[int]:
    return [m for m in (near // of * of, (near // of + 1) * of) if m]


def _around(value: int, allowed: Iterable[int]) -> list[int]:
    """The nearest allowed numbers below and above a value, those that there are."""
    allowed = list(allowed)
    below, above = [a for a in allowed if a < value], [a for a in allowed if a > value]
    return [*below[-1:], *above[:1]]


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))

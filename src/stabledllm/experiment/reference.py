"""Standard at other budgets: the runs off which an experiment reads how much of Standard's compute a method needs.

They are runs of the experiment as those of its methods are, in folders ``runs/standard@1.5x/seed-S``; at 1 times its
forwards Standard is the method itself. Loads no torch.
"""

from __future__ import annotations

import re

from stabledllm.config.settings import ExperimentSettings
from stabledllm.errors import UserError
from stabledllm.noise.parts import STANDARD
from stabledllm.reports.labels import exact

_NAME = re.compile(rf"{STANDARD}@(\d.*)x")


def name_at(multiple: float) -> str:
    """The name of Standard's runs at a multiple of its forward passes, also that of their folder.

    >>> name_at(1.5), name_at(1.0)
    ('standard@1.5x', 'standard')
    """
    return STANDARD if multiple == 1 else f"{STANDARD}@{exact(multiple)}x"


def multiple_of(name: str) -> float | None:
    """The multiple that a name of Standard's runs at another budget stands for; None for the name of a method.

    >>> multiple_of("standard@1.5x"), multiple_of("standard")
    (1.5, None)
    """
    found = _NAME.fullmatch(name)
    return float(found[1]) if found else None


def other_multiples(settings: ExperimentSettings) -> list[float]:
    """The multiples other than 1 at which Standard is trained, the least first."""
    return sorted(multiple for multiple in settings.standard_at if multiple != 1)


def check_reference(settings: ExperimentSettings) -> None:
    """Refuse budgets of Standard that make no curve, in an experiment without Standard, or of forwards not to stretch.

    Raises:
        UserError: says what to write.

    >>> check_reference(ExperimentSettings(methods=["mirror"], standard_at=[2]))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'standard_at': expected 'standard' among methods, ...
    """
    if not settings.standard_at:
        return
    if not other_multiples(settings):
        raise UserError(
            "key 'standard_at': expected multiples of Standard's forwards beside 1, which its own runs are, found [1]; "
            "add some, such as 0.75 and 1.5, or leave it out."
        )
    base = settings.base
    if STANDARD not in settings.methods:
        raise UserError(
            f"key 'standard_at': expected 'standard' among methods, whose runs are those at 1 times its forwards, "
            f"found {', '.join(settings.methods)}; add it, or leave standard_at out."
        )
    if base.objective.kind == "grpo":
        raise UserError(
            "key 'standard_at': expected none beside objective.kind=grpo, whose forward passes leave out those of "
            "decoding the responses, so that they are not what a run costs; leave it out."
        )
    if base.block_schedule:
        raise UserError(
            "key 'standard_at': expected none beside base.block_schedule, whose sizes last a number of steps that is "
            "not stretched with a run; leave one of the two out."
        )


def refuse_equal_budgets(steps: dict[float, int]) -> None:
    """Refuse multiples so close to each other, or to 1, that their runs would have the same steps.

    Args:
        steps: the optimizer steps of Standard at each multiple, 1 among them.

    Raises:
        UserError: names the first two.
    """
    first: dict[int, float] = {}
    for multiple, count in sorted(steps.items()):
        if count in first:
            raise UserError(
                f"key 'standard_at': expected budgets that differ by a step, found {first[count]:g} and {multiple:g}, "
                f"both {count:,} optimizer step{'s' * (count > 1)}; leave one out, or train for more steps."
            )
        first[count] = multiple

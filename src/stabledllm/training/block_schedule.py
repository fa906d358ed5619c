"""The block size of each step: a function of the step alone, so that a resumed run goes on with the same bits.

Source: LLaDA2.0's warm-up, stable and decay phases over the block size (arXiv:2512.15745).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.noise.of_parts import OfParts


@dataclass(frozen=True)
class BlockSizes:
    """Block sizes in their order, and the number of steps of each but the last.

    >>> sizes = BlockSizes((1, 4096, 32), (100, 50))
    >>> [sizes.at(step) for step in (0, 99, 100, 149, 150, 10_000)]
    [1, 1, 4096, 4096, 32, 32]
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...] = ()

    @classmethod
    def of(cls, settings: TrainSettings) -> BlockSizes:
        """Those of a run in blocks."""
        if schedule := settings.block_schedule:
            return cls(tuple(schedule.sizes), tuple(schedule.steps))
        return cls((settings.block_size,))

    @property
    def last(self) -> int:
        """The size that the model is saved, evaluated and decoded in."""
        return self.sizes[-1]

    def at(self, step: int) -> int:
        """The size in the step that follows ``step`` steps."""
        return self.sizes[sum(end <= step for end in accumulate(self.steps))]

    def in_words(self) -> str:
        """The sizes with the steps at which they end.

        >>> BlockSizes((1, 64, 32), (100, 50)).in_words()
        'blocks of 1 token to step 100, of 64 to step 150, then of 32'
        """
        ends = list(accumulate(self.steps))
        parts = [f"of {size} to step {end:,}" for size, end in zip(self.sizes, ends, strict=False)]
        first = parts[0].replace(" to", " tokens to" if self.sizes[0] > 1 else " token to", 1)
        return f"blocks {', '.join([first, *parts[1:]])}, then of {self.last}"


def check_block_schedule(settings: TrainSettings, method: OfParts) -> None:
    """Refuse a schedule of block sizes that is not whole, or that the method has no meaning under.

    Raises:
        UserError: fewer than two sizes, not one number of steps fewer than sizes, another last size than
            ``block_size``, or a density that was fitted before training, to blocks of one size.
    """
    schedule = settings.block_schedule
    if schedule is None:
        return
    if len(schedule.sizes) < 2:
        raise UserError(
            f"key 'block_schedule.sizes': expected at least two sizes, such as [1,4096,32], found {schedule.sizes}; "
            f"write block_size for one."
        )
    if len(schedule.steps) != len(schedule.sizes) - 1:
        raise UserError(
            f"key 'block_schedule.steps': expected a number for each of the {len(schedule.sizes)} sizes but the last, "
            f"which stays to the end, found {len(schedule.steps)}."
        )
    if settings.block_size != schedule.sizes[-1]:
        raise UserError(
            f"key 'block_schedule.sizes': expected the last one to be block_size={settings.block_size}, in which the "
            f"model is saved, evaluated and decoded, found {schedule.sizes[-1]}."
        )
    if method.needs_p or settings.p_of_t:
        raise UserError(
            f"key 'block_schedule': expected a method whose p(t) is fitted to no blocks before training, found "
            f"'{method.name}'; adaptive follows the blocks as they change."
        )


def check_reached(settings: TrainSettings, steps: int) -> None:
    """Refuse a run that ends before the last block size, in which its model is saved.

    Raises:
        UserError: such a run.
    """
    if settings.block_schedule and (before := sum(settings.block_schedule.steps)) >= steps:
        raise UserError(
            f"key 'block_schedule.steps': expected fewer than the run's {steps} steps, so that its last size is "
            f"trained too, found {before} in all."
        )

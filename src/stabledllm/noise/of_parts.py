"""What a method's parts decide, known from its name alone: what it needs, whether it is unbiased. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stabledllm.errors import UserError
from stabledllm.noise.names import Named, read_parts
from stabledllm.noise.parts import AUTOREGRESSIVE, STANDARD
from stabledllm.noise.takes import objection

if TYPE_CHECKING:
    from stabledllm.noise.objective import Objective


@dataclass(frozen=True)
class OfParts:
    """What the parts of a method decide, known from its name alone.

    >>> OfParts("strats+ppots+mirror").signal
    'loss'
    """

    name: str = STANDARD
    """The parts in canonical order, joined by ``+``."""

    @property
    def parts(self) -> tuple[Named, ...]:
        """The parts in canonical order; none for ``standard``."""
        return read_parts(self.name)

    def has(self, name: str) -> bool:
        """Whether the method has the part of that name."""
        return any(named.part.name == name for named in self.parts)

    def reads(self, option: str) -> bool:
        """Whether one of the parts reads that option."""
        return any(option in named.part.options for named in self.parts)

    @property
    def signal(self) -> str | None:
        """The quantity whose second moment p is fitted to before training; None where no p is fitted.

        One of ``loss``, ``gradient`` and ``output layer`` (the gradient of the output layer alone).
        """
        return next((named.part.fitted_to for named in self.parts if named.part.fitted_to), None)

    @property
    def needs_p(self) -> bool:
        """Whether t is drawn from a fitted density."""
        return self.signal is not None

    @property
    def adaptive(self) -> bool:
        """Whether the density of t follows the losses during training."""
        return any(named.part.tends_to for named in self.parts)

    @property
    def marks(self) -> set[str]:
        """The marks that rows must have for this method."""
        return {named.part.marks for named in self.parts} - {None}

    @property
    def syrm(self) -> bool:
        """Whether the prompt's syntax tokens may be masked too."""
        return self.has("syrm")

    @property
    def ema(self) -> bool:
        """Whether a baseline steadies the reported loss."""
        return self.has("ema")

    @property
    def autoregressive(self) -> bool:
        """Whether it is next-token prediction, for autoregressive models only."""
        return self.has(AUTOREGRESSIVE)

    @property
    def unbiased(self) -> bool:
        """Whether the mean of the loss and its gradient are the standard objective's."""
        return all(named.part.unbiased for named in self.parts)

    def takes(self, objective: Objective) -> bool:
        """Whether every part is defined for the objective, or its settings."""
        return objection(self, objective) is None

    def refuse_unless_it_takes(self, objective: Objective) -> None:
        """Refuse an objective that a part is not defined for.

        Raises:
            UserError: such an objective.

        >>> from stabledllm.noise.objective import Objective
        >>> OfParts("complement").refuse_unless_it_takes(Objective(window=(0.3, 0.8)))
        Traceback (most recent call last):
        stabledllm.errors.UserError: method 'complement' and objective.window [0.3, 0.8] contradict: expected parts ...
        """
        if sentence := objection(self, objective):
            raise UserError(sentence)

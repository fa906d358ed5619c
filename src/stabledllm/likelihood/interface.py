"""What an estimator of the log-likelihood of responses is: draws that any model may be asked about, and their values.

A masked diffusion model gives no log-likelihood. Every estimate in use is a sum of log-probabilities of tokens over
some forward passes with some tokens masked, each times a known number. So the values are linear in the
log-probabilities, and the gradient of any loss of the values can be taken one forward at a time.

Legend: B responses, R replicates (independent estimates), T tokens of the longest response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from stabledllm.data.rows import TokenRow


class Draws(Protocol):
    """The draws of some responses: policy, old policy and reference are asked about the same ones."""

    @property
    def tokens(self) -> Tensor:
        """Response tokens of each, shape (B,)."""
        ...

    @property
    def passes(self) -> int:
        """Forward passes of each model that is asked."""
        ...

    @property
    def forward_rows(self) -> int:
        """Rows that go through each model that is asked, in all passes."""
        ...

    @property
    def scored(self) -> Tensor | None:
        """The response tokens that have a value of their own, shape (B, T); None where a response has one."""
        ...

    def values(self, model) -> Tensor:
        """The estimates in nats without a graph: of each response, shape (B, R), or of its tokens, (B, T).

        Values of tokens that are not scored, and those behind a response's end, are 0.
        """
        ...

    def parts(self, model, slopes: Tensor) -> Iterator[Tensor]:
        """Scalars, one for each forward pass, whose gradients add up to that of ``sum(slopes * values)``.

        With a backward after each, one pass's graph is in memory; the gradient is that of the joint loss.
        """
        ...


class Estimator(Protocol):
    """How the log-likelihood of a response is estimated, from a fixed number of forwards.

    The noise of a response is a function of seed, step and its number: neither the others of a batch, nor the model,
    nor the split over devices change it.
    """

    of_tokens: bool
    """Whether it gives a value for each token, else one for the response."""

    def draw(self, model, responses: Sequence[TokenRow], numbers: Sequence[int], *, seed: int, step: int = 0) -> Draws:
        """The draws of some responses, of which no forward has been made.

        Args:
            model: of which only the mask token, the blocks and the device are asked.
            numbers: the number of each response, at least 0.
        """
        ...

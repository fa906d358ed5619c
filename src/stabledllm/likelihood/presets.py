"""The estimators of published algorithms of policy gradients, as sums over views.

Each takes the mask ratios and masks of every response from keys of its own, where the published code draws them for a
batch: a response then has the same noise however the batch is divided over passes and devices.

Legend: B responses, L positions, P tokens of a response.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from stabledllm.data.rows import TokenRow
from stabledllm.likelihood.responses import Responses
from stabledllm.likelihood.views import ViewDraws
from stabledllm.noise.streams import Stream

_LOW, _HIGH = 0.2, 0.8  # the mask ratios of coupled-GRPO


@dataclass(frozen=True)
class Preset(ABC):
    """The base of published estimators: what all of them have, and the views of a draw, which each defines.

    Args:
        draws: independent repetitions of the published estimate, of which the mean is taken.
        of_tokens: whether there is a value for each token, else one for each response.
        tokens_per_forward: padded tokens of one forward pass.
        packing: whether its rows go through the model end to end.
    """

    draws: int = 1
    of_tokens: bool = False
    tokens_per_forward: int = 8192
    packing: bool = field(default=False, kw_only=True)

    @property
    def forwards(self) -> int:
        """The forwards of a response, but for views that hide nothing and make none."""
        return self.draws

    def draw(
        self, model, responses: Sequence[TokenRow], numbers: Sequence[int], *, seed: int, step: int = 0
    ) -> ViewDraws:
        """The draws of some responses, of which no forward has been made, see :class:`Estimator`.

        Raises:
            UserError: as :meth:`Responses.of` and :meth:`Responses.draws` do.
        """
        given = Responses.of(model, responses, numbers, seed=seed, step=step)
        masks, weights = zip(*self.views(given), strict=True)
        layout = {"tokens_per_forward": self.tokens_per_forward, "packing": self.packing}
        return given.draws(masks, weights, of_tokens=self.of_tokens, **layout)

    @abstractmethod
    def views(self, given: Responses) -> list[tuple[Tensor, Tensor | float]]:
        """The mask of each view, shape (B, L), and the weights of what it hides, (B, L) or (B, 1), or one number."""


@dataclass(frozen=True)
class ESPO(Preset):
    """ESPO's ELBO from pairs of complementary exact counts; unbiased, for models in blocks too.

    ``1/2 [(P + 1) / k sum_M log p + (P + 1) / (P - k) sum_notM log p]`` with k uniform on 0..P; a draw is two forwards,
    or one where k is 0 or P. Source: arXiv:2512.03759. As published the counts are stratified, over ``strata``
    responses: those whose numbers follow each other, which are a prompt's group. Their lattice has an offset of its own
    in every group and draw, so that the counts of different prompts stay independent.

    Args:
        strata: the responses of a group; with 1 the counts are independent.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> group = [TokenRow([1, 2, 3, 4], prompt_length=1)] * 4
    >>> draws = ESPO(strata=4).draw(model, group, range(4), seed=0)
    >>> sorted(draws.mask[:, 0].sum(1).tolist())  # one response at each count from 0 to 3
    [0, 1, 2, 3]
    """

    strata: int = 1

    @property
    def forwards(self) -> int:
        return 2 * self.draws

    def views(self, given: Responses) -> list[tuple[Tensor, Tensor | float]]:
        found, size = [], given.size
        for draw in range(self.draws):
            offset = given.key.row_uniforms(Stream.RATE, given.number // self.strata, draw)
            place = (offset + (given.number % self.strata).double() / self.strata) % 1.0
            k = (place * (size + 1)).long().minimum(size)
            first = given.first(k, draw)
            for mask, count in ((first, k), (given.maskable & ~first, size - k)):
                weight = (size + 1).double() / (2 * self.draws * count.clamp(min=1))
                found.append((mask, weight[:, None]))
        return found


@dataclass(frozen=True)
class Coupled(Preset):
    """Coupled-GRPO's values of tokens: the mean of one with everything masked and one from two complementary views.

    ``1/2 [log p(all masked) + log p(M) / t or log p(not M) / (1 - t)]``, t uniform on [0.2, 0.8], each token in M with
    probability t. A draw is three forwards, of which that with everything masked is made once for all draws. Source:
    arXiv:2506.20639. Each of the two views is the method ``clipped`` (at eps = 0) at t and 1 - t, with mirrored
    uniforms.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> Coupled().draw(model, [TokenRow([1, 2, 3, 4], 1)], [0], seed=0).mask.sum(1)  # twice for each token
    tensor([[0, 2, 2, 2]])
    >>> Coupled(2).forwards
    5
    """

    @property
    def forwards(self) -> int:
        return 1 + 2 * self.draws

    def views(self, given: Responses) -> list[tuple[Tensor, Tensor | float]]:
        found = [(given.maskable, 0.5)]
        for draw in range(self.draws):
            t = (_LOW + (_HIGH - _LOW) * given.uniform(draw))[:, None]
            first = (given.uniforms(draw) < t) & given.maskable
            found += [(first, 0.5 / t / self.draws), (given.maskable & ~first, 0.5 / (1 - t) / self.draws)]
        return found


@dataclass(frozen=True)
class OneStep(Preset):
    """The one-step estimate of d1 (diffu-GRPO): ``log p`` of every token with the whole response masked.

    A share of the prompt's tokens is masked too, each by itself. A draw is one forward. Source: arXiv:2504.12216.
    Without masks of the prompt it is the method ``standard`` at t = 1, and has no noise.

    Args:
        prompt_share: the probability that a token of the prompt is masked, 0.15 in the paper; its code's default is
            0.3.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> OneStep(prompt_share=0.0).draw(model, [TokenRow([1, 2, 3], 1)], [0], seed=0).mask
    tensor([[[False,  True,  True]]])
    """

    prompt_share: float = 0.15

    def views(self, given: Responses) -> list[tuple[Tensor, Tensor | float]]:
        return [
            (given.maskable | given.prompt & (given.uniforms(draw) < self.prompt_share), 1 / self.draws)
            for draw in range(self.draws)
        ]


@dataclass(frozen=True)
class UniGRPO(Preset):
    """UniGRPO's ``log p`` of the tokens that one mask hides, its mask ratio another one in every inner step.

    In the first of ``inner`` steps on a response the ratio r is uniform; step j of them has r + (1 - r) j / (inner -
    1), so that the last masks everything. Each token is masked with that probability, and nothing may be. A draw is one
    forward. Source: arXiv:2505.15809, algorithm 1. A response's value is ``P / |M| sum_M log p``, the masked mean times
    P: given that anything is masked, in the first step the method ``fixedcount`` at eps = 0.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> how = UniGRPO(inner=3, of_tokens=True)
    >>> how.draw(model, [TokenRow([1, 2, 3, 4], 1)], [0], seed=0, step=2).scored  # the last step of the first round
    tensor([[True, True, True]])
    """

    inner: int = 1

    def views(self, given: Responses) -> list[tuple[Tensor, Tensor | float]]:
        place = given.key.step % self.inner
        start = replace(given, key=replace(given.key, step=given.key.step - place))
        masks = []
        for draw in range(self.draws):
            r = start.uniform(draw)
            t = r + (1 - r) * (place / max(self.inner - 1, 1))
            masks.append((given.uniforms(draw) < t[:, None]) & given.maskable)
        if self.of_tokens:  # the mean over the views that hide a token
            weights = [1.0 / sum(mask.double() for mask in masks).clamp(min=1)] * self.draws
        else:
            weights = [(given.size / mask.sum(1).clamp(min=1) / self.draws)[:, None] for mask in masks]
        return list(zip(masks, weights, strict=True))

"""A method string names its parts: ``strats+ppots+mirror``. Source x density x masker x views.

Legend: B rows, K views, L positions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stabledllm.errors import UserError, did_you_mean
from stabledllm.noise.densities import Clipped, TSampler, Uniform
from stabledllm.noise.maskers import ISAD, Bernoulli, Complement, FixedCount, Masker, MaskInput, NextToken
from stabledllm.noise.sources import IID, LowDiscrepancy, Source, Stratified
from stabledllm.noise.streams import Key
from stabledllm.noise.views import ComplementPair, Mirror, MultiSample, Partition, Single, Views

if TYPE_CHECKING:  # objective itself imports the schedule from here
    from stabledllm.noise.objective import Objective

_SLOTS = {
    "strats": ("source of u",),
    "lowdisc": ("source of u",),
    "ppots": ("density of t",),
    "ppots-gradient": ("density of t",),
    "ppots-head": ("density of t",),
    "adaptive": ("density of t",),
    "clipped": ("density of t",),
    "fixedcount": ("masker",),
    "complement": ("masker", "views"),
    "isad": ("masker",),
    "isad-exact": ("masker",),
    "mirror": ("views",),
    "multisample": ("views",),
    "partition": ("views",),
    "syrm": ("maskable set",),
    "ema": ("reported loss",),
}
PARTS = tuple(_SLOTS)
"""Every part, in canonical order; at most one per slot."""
AUTOREGRESSIVE = "autoregressive"
"""The method of autoregressive models; it stands alone."""
SIGNALS = {"ppots": "loss", "ppots-gradient": "gradient", "ppots-head": "output layer"}
"""Densities that are fitted before training, and what to."""
_VIEWS = {"multisample": 2, "partition": 3}
"""Parts that take a number of views, ``partition4``, and how many they have without one."""


@dataclass(frozen=True)
class MethodOptions:
    """Settings of the parts; each has an effect only where its part is named."""

    strata: int | None = None
    clip_low: float = 0.3
    clip_high: float = 0.8
    isad_delta: float = 0.2
    mirror_below: float = 1.0
    ema_bins: int = 10


@dataclass(frozen=True)
class Rows:
    """The rows of one micro-batch, as the noise sees them."""

    position: Tensor
    """Position of each row in the step's global batch, int64, shape (B,)."""
    step_rows: int
    """Number of true rows in the whole step, over all ranks and accumulation."""
    maskable: Tensor
    """Bool, shape (B, L)."""
    token_index: Tensor
    """Index of each token in its unpadded row, shape (L,) or (B, L)."""
    delimiter: Tensor | None = None


@dataclass(frozen=True)
class Draw:
    """One draw of the noise of a micro-batch."""

    t: Tensor
    """Mask ratios, float64, shape (B,)."""
    weight: Tensor
    """Importance weights, shape (B,)."""
    mask: Tensor
    """Bool, shape (B, K, L)."""
    coefficient: Tensor
    """What each masked token's CE is multiplied by before the average over views, (B, K, L)."""
    active: Tensor
    """Views that are used, bool, shape (B, K)."""
    hides: bool = field(default=True, kw_only=True)
    """Whether what carries loss is hidden from the model, as all but next-token prediction does."""

    def row(self, i: int) -> Draw:
        """The noise of one row alone."""
        return replace(self, **{k: v[i : i + 1] for k, v in vars(self).items() if isinstance(v, Tensor)})

    def noisy(self, input_ids: Tensor, mask_token_id: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Flatten the active views into forward rows.

        Returns:
            noisy ids (N, L), their masks (N, L), and the row each came from (N,).
        """
        source = self.active.nonzero()[:, 0]
        mask, ids = self.mask[self.active], input_ids[source]
        return torch.where(mask, mask_token_id, ids) if self.hides else ids, mask, source


@dataclass(frozen=True)
class Method:
    """A combination of parts that draws t and masks. Build it with :meth:`parse`."""

    name: str = "standard"
    source: Source = field(default_factory=IID)
    density: str = "uniform"
    masker: Masker = field(default_factory=Bernoulli)
    views: Views = field(default_factory=Single)
    syrm: bool = False
    ema: bool = False
    options: MethodOptions = field(default_factory=MethodOptions)

    @classmethod
    def parse(cls, text: str, options: MethodOptions | None = None) -> Method:
        """The method named by ``text``, for example ``standard`` or ``strats+ppots+mirror``.

        Raises:
            UserError: an unknown part, a part given twice, or two parts for one slot.
        """
        options = options or MethodOptions()
        if text.strip() == AUTOREGRESSIVE:
            return cls(name=AUTOREGRESSIVE, masker=NextToken(), options=options)
        chosen = _read_parts(text)
        sources = {"strats": Stratified(options.strata), "lowdisc": LowDiscrepancy()}
        maskers = {
            "fixedcount": FixedCount(),
            "complement": Complement(),
            "isad": ISAD(options.isad_delta),
            "isad-exact": ISAD(options.isad_delta, exact=True),
        }
        views, count = _split_number(chosen.get("views", ""))
        couplings = {
            "mirror": lambda: Mirror(options.mirror_below),
            "multisample": lambda: MultiSample(count),
            "partition": lambda: Partition(count),
            "complement": ComplementPair,
        }
        method = cls(
            name="+".join(dict.fromkeys(chosen.values())) or "standard",
            source=sources.get(chosen.get("source of u"), IID()),
            density=chosen.get("density of t", "uniform"),
            masker=maskers.get(chosen.get("masker"), Bernoulli()),
            views=couplings.get(views, Single)(),
            syrm="maskable set" in chosen,
            ema="reported loss" in chosen,
            options=options,
        )
        if method.density == "clipped":
            Clipped(options.clip_low, options.clip_high)
        return method

    @property
    def masking(self) -> str:
        """The parts that say which tokens are masked given t, masker and views with their number, as a string."""
        kept = [part for part in self.name.split("+") if {"masker", "views"} & set(_slots_of(part))]
        return "+".join(kept) or "standard"

    @property
    def needs_p(self) -> bool:
        """Whether t is drawn from a fitted density."""
        return self.density in SIGNALS

    @property
    def signal(self) -> str:
        """Whose second moment p is fitted to: the loss's, the gradient's, or that of the output layer's gradient."""
        return SIGNALS.get(self.density, "loss")

    @property
    def adaptive(self) -> bool:
        """Whether the density of t follows the losses during training."""
        return self.density == "adaptive"

    @property
    def autoregressive(self) -> bool:
        """Whether it is next-token prediction, for autoregressive models only."""
        return isinstance(self.masker, NextToken)

    @property
    def unbiased(self) -> bool:
        """Whether the mean of the loss and its gradient are the standard objective's."""
        return self.masker.unbiased and self.density != "clipped" and not self.syrm

    def takes(self, objective: Objective) -> bool:
        """Whether every part has a meaning under the objective."""
        counted = isinstance(self.masker, Bernoulli | FixedCount)
        return objective.counts == "linear" or (counted and self.density != "clipped" and self.signal == "loss")

    def under(self, objective: Objective) -> Method:
        """The same method with the masks that the objective asks for.

        MMaDA's ``cosine`` counts its masked tokens, so that independent masks become counted ones there.

        Raises:
            UserError: ``cosine`` with a part that is defined for the bound's masks only.
        """
        if objective.counts == "linear":
            return self
        if not self.takes(objective):
            raise UserError(
                f"method '{self.name}' and objective.weighting 'cosine' contradict: expected parts of strats, lowdisc, "
                f"ppots, adaptive, fixedcount, mirror, multisample, partition, syrm and ema."
            )
        return replace(self, masker=FixedCount(objective.counts))

    def mean_forwards(self, sampler: TSampler, size: Tensor, block_size: int | None = None) -> float:
        """Forwards that a row pays on average, exactly: what a meter counts; see the views."""
        return self.views.mean_forwards(sampler, size, block_size)

    def sampler(self, fitted: TSampler | None = None) -> TSampler:
        """The density of t: ``fitted`` for P-POTS, for ``adaptive`` the one it starts from, else the name's own.

        Raises:
            UserError: P-POTS without a fitted density.
        """
        if self.density == "clipped":
            return Clipped(self.options.clip_low, self.options.clip_high)
        if not self.needs_p:
            return fitted if self.adaptive and fitted else Uniform()
        if fitted is None:
            raise UserError(f"method '{self.name}': ppots needs a fitted p(t), found none; run 'stabledllm fit' first.")
        return fitted

    def draw(self, key: Key, rows: Rows, sampler: TSampler, objective: Objective) -> Draw:
        """t and masks of the given rows; a pure function of ``key`` and each row's position."""
        u = self.source.uniforms(key, rows.step_rows, rows.position.device)[rows.position]
        return self.draw_at(sampler.icdf(u), key, rows, sampler, objective)

    def draw_at(self, t: Tensor, key: Key, rows: Rows, sampler: TSampler, objective: Objective) -> Draw:
        """Masks at given ratios; with ``Uniform()`` the weights are those of the unweighted t."""
        given = MaskInput(
            t=t,
            uniforms=self.views.uniforms(key, rows.position, rows.token_index),
            views=self.views,
            maskable=rows.maskable,
            sampler=sampler,
            eps=objective.eps,
            power=objective.power or 0.0,
            delimiter=rows.delimiter,
        )
        mask, coefficient, weight = self.under(objective).masker(given)
        active = self.views.active(t, rows.maskable.sum(1))
        return Draw(
            t=t, weight=weight, mask=mask, coefficient=coefficient, active=active, hides=not self.autoregressive
        )


def _read_parts(text: str) -> dict[str, str]:
    """The part chosen for each slot, in canonical order."""
    names = [part.strip() for part in text.split("+")]
    if names == ["standard"]:
        return {}
    chosen: dict[str, str] = {}
    for name in names:
        base, _ = _split_number(name)
        if base in ("standard", AUTOREGRESSIVE):
            raise UserError(f"method '{text}': '{base}' stands alone, found it combined with other parts.")
        if base not in _SLOTS:
            raise UserError(
                f"method '{text}': unknown part '{name}'{did_you_mean(name, ('standard', AUTOREGRESSIVE, *PARTS))}."
            )
        for slot in _SLOTS[base]:
            if slot in chosen:
                raise UserError(f"method '{text}': '{chosen[slot]}' and '{name}' contradict: both choose the {slot}.")
            chosen[slot] = name
    if chosen.get("density of t") == "clipped" and chosen.get("masker") == "complement":
        raise UserError(
            f"method '{text}': 'clipped' and 'complement' contradict: the second view has 1 - t, outside the interval."
        )
    order = dict.fromkeys(slot for slots in _SLOTS.values() for slot in slots)
    return {slot: chosen[slot] for slot in order if slot in chosen}


def _slots_of(part: str) -> tuple[str, ...]:
    return _SLOTS.get(_split_number(part)[0], ())


def _split_number(name: str) -> tuple[str, int]:
    """``partition4`` as ``("partition", 4)``; other names as they are, with the part's own number of views or 1."""
    if (match := re.fullmatch(r"([a-z]+)(\d+)", name)) and match[1] in _VIEWS:
        return match[1], int(match[2])
    return name, _VIEWS.get(name, 1)

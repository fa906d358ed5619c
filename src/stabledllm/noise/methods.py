"""Methods: a source of u, a density of t, a masker and views, named by their parts (``strats+ppots+mirror``).

Legend: B rows, K views, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.densities import TSampler, Uniform
from stabledllm.noise.maskers import Bernoulli, Complement, FixedCount, Masker, MaskInput
from stabledllm.noise.names import read_parts
from stabledllm.noise.objective import Objective
from stabledllm.noise.of_parts import OfParts
from stabledllm.noise.parts import MASKER, STANDARD, VIEWS, MethodOptions
from stabledllm.noise.rows import Rows
from stabledllm.noise.sources import IID, Source
from stabledllm.noise.streams import Key
from stabledllm.noise.views import ComplementPair, Single, Views
from stabledllm.noise.windows import placed


@dataclass(frozen=True)
class Draw:
    """One draw of the noise of a micro-batch: mask ratios, masks, coefficients and weights.

    >>> one = torch.ones(1)
    >>> draw = Draw(one, one, torch.tensor([[[False, True]]]), torch.ones(1, 1, 2), torch.tensor([[True]]))
    >>> draw.noisy(torch.tensor([[7, 8]]), mask_token_id=0)[0]
    tensor([[7, 0]])
    """

    t: Tensor
    """Mask ratios, float64, shape (B,); under a window or bell the places in it (``Objective.ratio``)."""
    weight: Tensor
    """Importance weights, shape (B,)."""
    mask: Tensor
    """Bool, shape (B, K, L)."""
    coefficient: Tensor
    """The factor of each masked token's CE before the average over views, (B, K, L)."""
    active: Tensor
    """Whether each view goes through the model, bool, shape (B, K)."""
    hides: bool = field(default=True, kw_only=True)
    """Whether the tokens that have a loss are hidden from the model; False for next-token prediction only."""
    forwards: int = field(default=0, kw_only=True)
    """Forwards that were made to choose the masks (``forward/chosen.py``); they count like any other."""

    def row(self, i: int) -> Draw:
        """The noise of row i alone."""
        return replace(self, **{k: v[i : i + 1] for k, v in vars(self).items() if isinstance(v, Tensor)})

    def noisy(self, input_ids: Tensor, mask_token_id: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Turn the active views into the N rows of a forward.

        Returns:
            the noisy ids (N, L), their masks (N, L), and the index of the row that each came from (N,).
        """
        source = self.active.nonzero()[:, 0]
        mask, ids = self.mask[self.active], input_ids[source]
        return torch.where(mask, mask_token_id, ids) if self.hides else ids, mask, source


@dataclass(frozen=True)
class Method(OfParts):
    """A combination of parts that draws t and masks for one objective. Build it with :meth:`parse`."""

    source: Source = field(default_factory=IID)
    density: TSampler = field(default_factory=Uniform)
    """The density of t if none is fitted."""
    masker: Masker = field(default_factory=Bernoulli)
    views: Views = field(default_factory=Single)
    options: MethodOptions = field(default_factory=MethodOptions)
    objective: Objective = field(default_factory=Objective)

    @classmethod
    def parse(cls, text: str, options: MethodOptions | None = None, objective: Objective | None = None) -> Method:
        """The method named by ``text``, for example ``standard`` or ``strats+ppots+mirror``, under an objective.

        MMaDA's ``cosine`` is an objective of fixed counts: it always takes the fixed-count masker.

        >>> method = Method.parse("mirror+strats")
        >>> method.name, method.views.count
        ('strats+mirror', 2)

        Raises:
            UserError: an unknown part, a part given twice, two parts for one slot, a bad option of a part that is
                named, or, under ``cosine`` or a window, a part that is defined for the bound's masks only.
        """
        options, objective = options or MethodOptions(), objective or Objective()
        parts = read_parts(text)
        name = "+".join(named.text for named in parts) or STANDARD
        made: dict[str, object] = {}
        for named in parts:
            made |= named.part.objects(placed(options, named.part, objective), named.views)
        if objective.counts == "cosine" or isinstance(made.get(MASKER), FixedCount):
            made[MASKER] = FixedCount(objective.counts)
        if objective.has_places and isinstance(made.get(MASKER), Complement):
            made |= {MASKER: Complement(objective.counts), VIEWS: ComplementPair(objective.counts)}
        method = cls(name=name, options=options, objective=objective, **made)
        method.refuse_unless_it_takes(objective)
        return method

    def sampler(self, fitted: TSampler | None = None) -> TSampler:
        """The sampler of t: the ``fitted`` one for P-POTS and as the start of ``adaptive``, else the method's own.

        Raises:
            UserError: P-POTS without a fitted density.
        """
        if self.needs_p and fitted is None:
            raise UserError(f"method '{self.name}': ppots needs a fitted p(t), found none; run 'stabledllm fit' first.")
        return fitted if fitted is not None and (self.needs_p or self.adaptive) else self.density

    def draw(self, key: Key, rows: Rows, sampler: TSampler) -> Draw:
        """Draw t and the masks of the given rows, where ``maskable`` lies; a pure function of ``key`` and positions."""
        u = self.source.uniforms(key, rows.step_rows, rows.maskable.device)[rows.position]
        return self.draw_at(sampler.icdf(u), key, rows, sampler)

    def draw_at(self, t: Tensor, key: Key, rows: Rows, sampler: TSampler) -> Draw:
        """Draw the masks of the given rows at given t, with the weights of t drawn from ``sampler``."""
        uniforms = self.views.uniforms(key, rows.position.to(t.device), rows.token_index.to(t.device))
        mask, coefficient, weight = self.masker(MaskInput(t, uniforms, self.views, rows, sampler, self.objective))
        active = self.views.active(t, rows.maskable.sum(1))
        return Draw(t, weight, mask, coefficient * self.objective.scale, active, hides=not self.autoregressive)

"""What A of the gradient is made of: how many tokens are masked, which are targets, and which context they see.

Given its count k the gradient of a row is ``c_k G_M`` with ``G_M = sum_M grad CE_i``, and M is a uniform subset of k of
the P tokens. Of its variance ``V_k`` over M the *targets* are the part of the best sum over single tokens,
``sum_M a_i``: the first-order term of Hoeffding's decomposition for samples without replacement. It cancels wherever
all tokens are masked equally often. The *context* is the rest: how the gradient of a token depends on which others
are masked with it. Both are parts of an orthogonal sum, so that neither is negative
(docs/mathematics.md#what-a-is-made-of).

Legend: a rows, b cells of t, Q blocks of coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from stabledllm.gradient.bounded import ends_within, not_negative
from stabledllm.gradient.components import UNIT, ratio_of
from stabledllm.gradient.floor import MeanOfRows, mean_in_cells
from stabledllm.gradient.nested_masks import NestedMasks
from stabledllm.gradient.predicted import data_noise
from stabledllm.gradient.profile import GradientProfile
from stabledllm.gradient.projected import estimate
from stabledllm.stats.estimate import Estimate
from stabledllm.stats.intervals import Ends


@dataclass(frozen=True)
class MaskSplit:
    """The split of A of Standard's gradient, and the least noise of each class of estimator, with intervals.

    Those of shares are Fieller's within [0, 1]. Few rows often show too little of a part and of the least noise: theirs
    have the upper end of what cannot be negative.

    >>> from stabledllm.gradient.example import example_nested
    >>> split = split_masks(example_nested())
    >>> abs(split.share_of_count.value + split.share_of_targets.value + split.share_of_context.value - 1) < 1e-9
    True
    """

    count: Estimate
    """The part of how many tokens are masked, which exact counts remove for free."""
    targets: Estimate
    """The part of which tokens are masked, each by itself; views that mask all tokens equally often remove it."""
    context: Estimate
    """The part of which tokens are masked together; only more forwards lower it."""
    share_of_count: Estimate
    share_of_targets: Estimate
    share_of_context: Estimate
    least_one_view: Estimate
    """Least noise at equal compute over Standard's of one view a row: exact counts, any source of t, one density for
    all rows."""
    least_balanced: Estimate
    """The same of views that mask all tokens equally often and are otherwise independent. Both leave out all noise of t
    and what views of one row cost in data noise. Of few rows they are somewhat low, as roots of noisy means are."""
    least_partition: Estimate
    """The same of partitions, k tokens in each of P / k views at one t, with that cost and the noise of t that a source
    leaves; as if P / k were whole, and with the context's odd orders in full, which a partition lowers. Comparable with
    the floor of low discrepancy, that of one view."""
    forwards: int

    def as_dict(self) -> dict:
        """JSON form."""
        return {
            one.name: value.as_dict() if isinstance(value, Estimate) else value
            for one in fields(self)
            for value in (getattr(self, one.name),)
        }


def split_masks(nested: NestedMasks) -> MaskSplit:
    """The parts of A, their shares and the least noise of each class; jackknife errors over rows.

    >>> from stabledllm.gradient.example import example_nested
    >>> split = split_masks(example_nested())
    >>> split.least_balanced.value <= split.least_one_view.value
    True
    """
    profile = nested.profile
    rows, parts = len(profile.rows), {name: getattr(nested, name) for name in ("count", "targets", "context")}
    whole = sum(parts.values())

    def mean(part: Tensor) -> Estimate:
        return not_negative(estimate(lambda keep: [part[:, keep].mean(1)], rows, UNIT))

    def share(part: Tensor) -> Estimate:
        found = estimate(lambda keep: [part[:, keep].mean(1), whole[:, keep].mean(1)], rows, "of A", ratio_of)
        return replace(found, value=min(max(found.value, 0.0), 1.0), ends=ends_of_share(part, whole))

    def least(cells: Tensor) -> Estimate:
        def over_standard(cell: Tensor, standard: Tensor) -> float:
            return ratio_of((cell.clamp(min=0).sqrt() @ profile.width) ** 2, standard)

        def parts_of(keep: Tensor) -> list[Tensor]:
            return [cells[:, keep].mean(1), standard(keep)]

        return not_negative(estimate(parts_of, rows, "of Standard's", over_standard))

    def standard(keep: Tensor) -> Tensor:
        return (whole + nested.rate)[:, keep].mean(1)

    def least_partition() -> Estimate:
        data, shared, own = data_noise(profile), MeanOfRows(profile, mean_in_cells(profile)), _square_of_cells(profile)

        def over_standard(cell: Tensor, mean: Tensor, views: Tensor, c: Tensor, standard: Tensor) -> float:
            return ratio_of(((views * (cell - mean)).clamp(min=0).sqrt() @ profile.width) ** 2 - c, standard)

        def parts_of(keep: Tensor) -> list[Tensor]:
            views = nested.views[None, keep].mean(1)
            cell = (nested.in_partition + own)[:, keep].mean(1)
            return [cell, shared(keep), views, data(keep), standard(keep)]

        return not_negative(estimate(parts_of, rows, "of Standard's", over_standard))

    return MaskSplit(
        **{name: mean(part) for name, part in parts.items()},
        **{f"share_of_{name}": share(part) for name, part in parts.items()},
        least_one_view=least(nested.exact),
        least_balanced=least(nested.exact_context),
        least_partition=least_partition(),
        forwards=nested.forwards,
    )


def ends_of_share(part: Tensor, whole: Tensor) -> Ends:
    """Fieller's interval of the share of one mean over rows in another, of which it is a part; from values (Q, a).

    It holds the shares r at which the mean of ``part - r whole`` may be 0, and so the estimate, both cut to [0, 1]; all
    of [0, 1] where the whole itself may be 0. NaN for a single row and for values that are not finite.

    >>> part, whole = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[3.0, 4.0, 5.0, 8.0]])
    >>> [round(end, 2) for end in ends_of_share(part, whole)]
    [0.25, 0.63]
    """
    both = torch.stack([part, whole]).double()
    mean, (blocks, rows) = both.mean((1, 2)), part.shape
    if rows < 2 or not mean.isfinite().all():
        return math.nan, math.nan
    error = both.mean(1).cov() / rows
    if blocks > 1:
        error = error + both.mean(2).cov() / blocks
    return ends_within(mean, error, rows - 1, (0.0, 1.0))


def _square_of_cells(profile: GradientProfile) -> Tensor:
    """Squared norm of each row's mean gradient over each cell, from pairs of points, (Q, a, b)."""
    cells, count = torch.nn.functional.one_hot(profile.cell).double(), profile.cell.bincount()
    pairs = torch.einsum("qapr,pb,rb->qab", profile.gram, cells, cells) - profile.squares() @ cells
    return pairs / (count * (count - 1))

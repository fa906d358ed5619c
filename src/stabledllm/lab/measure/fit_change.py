"""What a fitted p(t) changes on rows that it was not fitted on, against uniform t, with the error of that change."""

from __future__ import annotations

from stabledllm.noise.densities import Tabulated
from stabledllm.ppots.cells import WeighsBy
from stabledllm.ppots.crossfit import CrossFit, weighted_moment
from stabledllm.ppots.moments import SecondMoments
from stabledllm.stats.estimate import Estimate


def change_of(moments: SecondMoments, crossfit: CrossFit, unit: str, weighs_by: WeighsBy | None = None) -> Estimate:
    """``E[l^2 w^2]`` under the cross-fitted densities less that under uniform t, paired by row; for independent t.

    The mean of the loss is the same under both, so that this is the change of its variance too. The pairing takes off
    what rows have in common, which makes the error far smaller than those of the two variances.

    >>> import torch
    >>> moments = SecondMoments(edges=torch.tensor([0.0, 0.5, 1.0]).double(), cost=torch.ones(2).double(),
    ...                         moment=torch.tensor([[1.0, 9.0], [1.0, 9.0]]).double())
    >>> print(change_of(moments, [(Tabulated([0.5, 1.5]), torch.arange(2))], "nats²"))  # (1 / 0.5 + 9 / 1.5) / 2 - 5
    -1 ± 0 nats² (n=2)
    """
    uniform = [(Tabulated([1.0]), rows) for _, rows in crossfit]
    change = weighted_moment(moments, crossfit, weighs_by) - weighted_moment(moments, uniform, weighs_by)
    change = change.view(-1, moments.together).mean(1)
    n = len(change)
    return Estimate(value=float(change.mean()), stderr=float(change.std()) / n**0.5, n=n, unit=unit)

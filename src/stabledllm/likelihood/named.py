"""The estimators that ``grpo.estimator`` names."""

from __future__ import annotations

from stabledllm.config.settings.policy import GRPOSettings
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.likelihood.interface import Estimator
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS

DEFAULT_RATIO = {"method": "mean", "espo": "mean", "coupled": "token", "one-step": "token", "unigrpo": "token"}
"""The ratio of policy to old policy that each estimator is published with, see ``grpo.ratio``."""


def ratio_of(grpo: GRPOSettings) -> str:
    """The ratio of these settings: the one given, else the estimator's own.

    >>> ratio_of(GRPOSettings(estimator="coupled")), ratio_of(GRPOSettings(estimator="coupled", ratio="mean"))
    ('token', 'mean')
    """
    return grpo.ratio or DEFAULT_RATIO[grpo.estimator]


def estimator_of(
    grpo: GRPOSettings, method: str | Method, density: TSampler | None = None, eps: float = EPS
) -> Estimator:
    """The estimator of these settings, with values of tokens where the ratio is one of tokens.

    Args:
        method, density, eps: those of the run, for the estimator ``method``; the others have their own.

    Raises:
        UserError: a budget that the estimator does not take.

    >>> estimator_of(GRPOSettings(budget=4), "lowdisc+fixedcount").budget
    4
    """
    of_tokens = ratio_of(grpo) == "token"
    return BoundEstimator(
        method, grpo.budget, density=density, eps=eps, tokens_per_batch=grpo.tokens_per_forward, of_tokens=of_tokens
    )

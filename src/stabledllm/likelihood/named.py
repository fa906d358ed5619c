"""The estimators that ``grpo.estimator`` names."""

from __future__ import annotations

from stabledllm.config.settings.policy import FORWARDS, GRPOSettings
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.likelihood.interface import Estimator
from stabledllm.likelihood.presets import ESPO, Coupled, OneStep, UniGRPO
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS
from stabledllm.policy_checks import check_estimator

PRESETS = {"espo": ESPO, "coupled": Coupled, "one-step": OneStep, "unigrpo": UniGRPO}
"""The estimators of published algorithms."""


def estimator_of(
    grpo: GRPOSettings,
    method: str | Method,
    density: TSampler | None = None,
    eps: float = EPS,
    block_size: int | None = None,
    *,
    packing: bool = False,
) -> Estimator:
    """The estimator of these settings, with values of tokens where the ratio is one of tokens.

    Args:
        method, density, eps: those of the run, for the estimator ``method``; the others have their own.
        block_size: of a model that is trained in blocks.
        packing: whether the rows of a pass go through the model end to end.

    Raises:
        UserError: as :func:`~stabledllm.policy_checks.check_estimator` does.

    >>> estimator_of(GRPOSettings(budget=4), "lowdisc+fixedcount").budget
    4
    >>> estimator_of(GRPOSettings(estimator="coupled", budget=4), "standard")
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'grpo.budget': expected a multiple of 3 with grpo.estimator=coupled, ...
    """
    name, of_tokens = grpo.estimator, grpo.ratio_in_force == "token"
    if name == "method":
        return BoundEstimator(
            method,
            grpo.budget,
            density=density,
            eps=eps,
            tokens_per_batch=grpo.tokens_per_forward,
            of_tokens=of_tokens,
            packing=packing,
        )
    check_estimator(grpo, block_size)
    own = {"espo": {"strata": grpo.group}, "unigrpo": {"inner": grpo.inner}}.get(name, {})
    return PRESETS[name](grpo.budget // FORWARDS[name], of_tokens, grpo.tokens_per_forward, packing=packing, **own)

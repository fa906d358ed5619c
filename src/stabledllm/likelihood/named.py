"""The estimators that ``grpo.estimator`` names."""

from __future__ import annotations

from stabledllm.config.settings.policy import FORWARDS, GRPOSettings
from stabledllm.errors import UserError
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.likelihood.interface import Estimator
from stabledllm.likelihood.presets import ESPO, Coupled, OneStep, UniGRPO
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.schedule import EPS

DEFAULT_RATIO = {"method": "mean", "espo": "mean", "coupled": "token", "one-step": "token", "unigrpo": "token"}
"""The ratio of policy to old policy that each estimator is published with, see ``grpo.ratio``."""

PRESETS = {"espo": ESPO, "coupled": Coupled, "one-step": OneStep, "unigrpo": UniGRPO}
"""The estimators of published algorithms."""


def ratio_of(grpo: GRPOSettings) -> str:
    """The ratio of these settings: the one given, else the estimator's own.

    >>> ratio_of(GRPOSettings(estimator="coupled")), ratio_of(GRPOSettings(estimator="coupled", ratio="mean"))
    ('token', 'mean')
    """
    return grpo.ratio or DEFAULT_RATIO[grpo.estimator]


def estimator_of(
    grpo: GRPOSettings,
    method: str | Method,
    density: TSampler | None = None,
    eps: float = EPS,
    block_size: int | None = None,
) -> Estimator:
    """The estimator of these settings, with values of tokens where the ratio is one of tokens.

    Args:
        method, density, eps: those of the run, for the estimator ``method``; the others have their own.
        block_size: of a model that is trained in blocks.

    Raises:
        UserError: a budget that the estimator does not take, or masks of the prompt with a model in blocks.

    >>> estimator_of(GRPOSettings(budget=4), "lowdisc+fixedcount").budget
    4
    >>> estimator_of(GRPOSettings(estimator="coupled", budget=4), "standard")
    Traceback (most recent call last):
    stabledllm.errors.UserError: grpo.budget: expected a multiple of 3 with grpo.estimator=coupled, found 4; write ...
    """
    name, of_tokens = grpo.estimator, ratio_of(grpo) == "token"
    if name == "method":
        return BoundEstimator(
            method, grpo.budget, density=density, eps=eps, tokens_per_batch=grpo.tokens_per_forward, of_tokens=of_tokens
        )
    if grpo.budget % (each := FORWARDS[name]):
        raise UserError(
            f"grpo.budget: expected a multiple of {each} with grpo.estimator={name}, found {grpo.budget}; write "
            f"grpo.budget={grpo.budget + -grpo.budget % each}."
        )
    if name == "one-step" and block_size:
        raise UserError(
            f"grpo.estimator: expected a model that sees whole rows for 'one-step', which masks tokens of the prompt, "
            f"found one in blocks of {block_size} tokens; write method, espo, coupled or unigrpo."
        )
    own = {"espo": {"strata": grpo.group}, "unigrpo": {"inner": grpo.inner}}.get(name, {})
    return PRESETS[name](grpo.budget // each, of_tokens, grpo.tokens_per_forward, **own)

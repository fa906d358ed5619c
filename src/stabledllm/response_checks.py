"""What no run that learns from whole responses takes, pairs and policy gradients alike. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stabledllm.errors import UserError

if TYPE_CHECKING:
    from stabledllm.config.settings import TrainSettings

_MEANINGLESS = ("group_by_length", "views_per_forward", "block_schedule")


def check_responses(run: TrainSettings, *, form: str, hold: str, beside: str, does: str) -> None:
    """Refuse rows of another form, and keys that mean nothing where a loss is one of estimated log-likelihoods.

    Args:
        form: of the rows. hold: what a forward holds. beside: the other model, which must see the same noise.
        does: what the loss does with log-likelihoods.

    Raises:
        UserError: such keys.
    """
    kind = f"objective.kind={run.objective.kind}"
    if run.data.format != form:
        raise UserError(f"data.format: expected {form} for {kind}, found '{run.data.format}'; leave it out.")
    for key in _MEANINGLESS:
        if value := getattr(run, key):
            off = "false" if value is True else "null"
            raise UserError(
                f"key '{key}': expected {off} beside {kind}, whose forwards hold {hold}, found it given; leave it out."
            )
    if run.data.streaming:
        raise UserError(f"data.streaming: expected false beside {kind}, found true; leave it out.")
    if run.router.bias_rate or run.router.loss:
        raise UserError(f"key 'router': expected none beside {kind}, found it given; leave it out.")
    if run.block_t != "own":
        raise UserError(
            f"key 'block_t': expected own beside {kind}, whose bounds draw a t for each block, found "
            f"'{run.block_t}'; write block_t=own."
        )
    if alpha := run.trainer.get("neftune_noise_alpha"):
        raise UserError(
            f"key 'trainer.neftune_noise_alpha': expected none beside {kind}, since its noise would not be that of the "
            f"{beside}, found {alpha}; leave it out."
        )
    if run.objective.keys != type(run.objective)(eps=run.objective.eps).keys:
        raise UserError(
            f"key 'objective': expected nothing but kind and eps for {kind}, which {does} the log-likelihood, found "
            f"another weighting or mean; leave them out."
        )
    if run.lora and run.lora.dropout:
        raise UserError(
            f"key 'lora.dropout': expected 0 beside {kind}, since its noise would not be that of the {beside}, found "
            f"{run.lora.dropout:g}."
        )

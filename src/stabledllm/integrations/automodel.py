"""NeMo Automodel's corruption with any of this library's methods: a strategy whose noise spans the optimizer step.

The lines to change are two of Python, before the recipe is made, and the ``dllm`` section of its YAML::

    from nemo_automodel.recipes.dllm.strategy import DLLM_STRATEGIES, MDLMStrategy
    DLLM_STRATEGIES["less_noise"] = type("LessNoise", (AutomodelNoise, MDLMStrategy), {})

    dllm: {mode: less_noise, method: ppots+mirror, p_of_t: fit/p_of_t.json, noise_seed: 42}
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.integrations.noise import Noise
from stabledllm.integrations.step import step_positions
from stabledllm.integrations.weighted import of_rows, weighted_rows
from stabledllm.noise.objective import Objective


class AutomodelNoise:
    """A mixin to the left of NeMo Automodel's ``MDLMStrategy``: the same mean loss, with less noise.

    The recipe corrupts row by row, each with a generator of its own, so that t cannot be spread over a step there; this
    draws in ``pre_step``, which has all of the step's micro-batches. Its loss divides each cross-entropy by ``p_mask``
    and their sum by the supervised tokens of the whole step: ``p_mask`` here is the mask probability times p(t), or in
    general the inverse of the token's weight. A method of several views hands on as many rows; a row without supervised
    tokens counts as 0, as there, and is left out.

    The draws are a function of (``noise_seed``, step, position of the row in the step), the latter as the recipe's own
    sampler deals rows to data-parallel ranks. Validation keeps the recipe's noise.

    Raises:
        UserError: in ``setup_extra`` a method that cannot be used here or whose density is missing or another's, or a
            strategy that divides by another number.
    """

    def create_loss_fn(self, dllm_cfg):
        """The strategy's own loss. This is where a strategy sees its section of the YAML, and so reads it."""
        self._asked = {
            "method": dllm_cfg.get("method", "standard"),
            "p_of_t": dllm_cfg.get("p_of_t", None),
            "seed": int(dllm_cfg.get("noise_seed", 42)),
        }
        return super().create_loss_fn(dllm_cfg)

    def setup_extra(self, recipe) -> None:
        """Build the noise, once the recipe knows the mask token and eps."""
        super().setup_extra(recipe)
        if self.normalization_mode != "supervised":
            raise UserError(
                f"AutomodelNoise: expected a strategy normalised by 'supervised', found '{self.normalization_mode}'."
            )
        # The recipe's mean is over the supervised tokens of the step.
        objective = Objective(normalization="token", eps=recipe.dllm_eps)
        self.noise = Noise(mask_id=recipe.mask_token_id, objective=objective, **self._asked)

    def pre_step(self, recipe, batches: list[dict]) -> tuple[int, int]:
        """Draw the step's noise, put it into the batches, and count masked and supervised tokens.

        Returns:
            masked tokens (of all views), and supervised tokens (of the rows, each once), of this rank.
        """
        if not recipe.model_parts[0].training:
            return super().pre_step(recipe, batches)
        ranks = {"rank": 0, "ranks": 1}
        if dist.is_available() and dist.is_initialized():
            ranks = {"rank": recipe._get_dp_rank(), "ranks": recipe._get_dp_group_size()}
        positions, step_rows = step_positions([len(b["input_ids"]) for b in batches], strided=True, **ranks)
        masked = supervised = 0
        for batch, position in zip(batches, positions, strict=True):
            supervised += int(batch["loss_mask"].sum())
            masked += self._corrupt(batch, int(recipe.step_scheduler.step), position, step_rows)
        return masked, supervised

    def _corrupt(self, batch: dict, step: int, position: Tensor, step_rows: int) -> int:
        """Put the noise of one micro-batch into it; the number of masked tokens."""
        ids = batch["input_ids"]
        # The recipe divides by the supervised tokens, so that the weight of the step is 1 here.
        taken = weighted_rows(self.noise, ids, batch["loss_mask"].bool(), step, position, step_rows, step_weight=1.0)
        weights = taken.weights.float()
        batch.update(of_rows(batch, taken.source, len(ids)))
        batch["_noisy_input_ids"], batch["_noise_mask"] = taken.input_ids, taken.mask
        batch["_p_mask"] = torch.where(taken.mask, 1.0 / weights, 1.0)
        batch["_clean_input_ids"] = taken.targets
        return int(taken.mask.sum())

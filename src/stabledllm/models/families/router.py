"""LLaDA2's router: sigmoid scores, a limit on groups of experts, a bias that chooses experts and weighs none.

The published choice, from LLaDA2.0's own code: experts lie in equal groups; a group's score is the sum of its two best
biased scores; only experts of the best groups are chosen; and the shares are the *unbiased* scores of the chosen,
divided by their sum and scaled.

Legend: T tokens, D width, E experts, G groups, K experts of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stabledllm.models.families.llada2_config import LLaDA2MoeConfig
from stabledllm.models.families.routing import Routing

_TINY = 1e-20
"""Added to the sum of the chosen scores, as published."""


class SigmoidRouter(nn.Module):
    """Chooses each token's experts and their shares, in float32 (or wider) whatever the weights' precision.

    The expert bias is a buffer: no gradient reaches it; training may move it by the experts' load.
    """

    bias_only_chooses = True
    """The bias changes which experts are chosen, and no share; so it may be moved to balance their load."""

    def __init__(self, config: LLaDA2MoeConfig):
        super().__init__()
        self.count, self.normalised = config.num_experts_per_tok, config.norm_topk_prob
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        nn.init.normal_(self.weight, std=config.initializer_range)
        if config.moe_router_enable_expert_bias:
            self.register_buffer("expert_bias", torch.zeros(config.num_experts))
        self.routing = Routing(config.num_experts)

    @property
    def bias(self) -> Tensor | None:
        """The bias of each expert, (E,); None for a router without."""
        return self._buffers.get("expert_bias")

    @property
    def gate_weight(self) -> Tensor:
        """The weight that scores the experts, (E, D)."""
        return self.weight

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen experts and their shares, both (T, K)."""
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            score_TE = nn.functional.linear(x_TD.to(wide), self.weight.to(wide)).sigmoid()
        choice_TE = score_TE.detach() if self.bias is None else score_TE.detach() + self.bias
        if self.kept_groups < self.groups:
            choice_TE = choice_TE.masked_fill(~self._of_best_groups(choice_TE), -torch.inf)
        chosen_TK = choice_TE.topk(self.count, dim=-1).indices
        self.routing.record(score_TE, chosen_TK)
        share_TK = score_TE.gather(1, chosen_TK)
        if self.normalised and self.count > 1:
            share_TK = share_TK / (share_TK.sum(-1, keepdim=True) + _TINY)
        return chosen_TK, share_TK * self.scale

    def _of_best_groups(self, choice_TE: Tensor) -> Tensor:
        """Whether each expert is of one of its token's best groups, (T, E)."""
        grouped = choice_TE.view(len(choice_TE), self.groups, -1)
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.kept_groups, dim=-1).indices
        kept_TG = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter(1, best, True)
        return kept_TG.repeat_interleave(grouped.shape[-1], dim=1)

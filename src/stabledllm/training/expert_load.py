"""The load of a model's experts while it trains: logged, and balanced where a run asks for it.

Two ways to balance, both of DeepSeek-V3 (arXiv:2412.19437, section 2.1.2), which LLaDA2 follows:

- ``bias_rate``: after each optimizer step every expert's bias, which only chooses, moves by this much, up where its
  load was below its layer's mean and down where it was above. No gradient and no loss is changed.
- ``loss``: this times ``sum_e f_e P_e`` is added to each row's loss: f_e is E / K times the share of the row's tokens
  that chose expert e, P_e the mean of its normalised score. It is 1 where all experts are equally loaded, and a mean
  over layers. Since it is taken row by row, a step may be split as one likes.

Legend: B rows, N forward rows, L positions, T tokens of the forward, R routers, E experts, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.trainer_callback import ExportableState, TrainerCallback

from stabledllm.errors import UserError
from stabledllm.forward.packing import Packing
from stabledllm.models.families.routing import Routing, recorded, routers
from stabledllm.models.families.two_copies import TwoCopies
from stabledllm.noise.methods import Draw


class ExpertLoad(TrainerCallback, ExportableState):
    """Counts which experts the tokens of a step chose, over micro-batches and ranks; its state is in every checkpoint.

    Padding, and rows that only even out ranks, count nowhere. Logged over the steps since the last line:
    ``expert_load_max``, the largest load of an expert over the mean of its layer (1: balanced), ``experts_unused``, the
    share of the experts that no token chose, and with a balancing loss ``balance_loss``, before its weight.

    Args:
        bias_rate: step of the biases; 0: they stay. loss: weight of the balancing loss; 0: none.
    """

    def __init__(self, bias_rate: float = 0.0, loss: float = 0.0):
        self.bias_rate, self.loss = bias_rate, loss
        self.window: list[list[float]] = []
        """Tokens that chose each expert since the last line of the log, router by router."""
        self.losses = [0.0, 0.0]
        """The balancing losses since then, and how many steps they are of."""
        self._step: Tensor | None = None
        self._step_loss: Tensor | float = 0.0
        self._seen: list[list[tuple[Tensor, Tensor]]] = []
        self._trains: list[bool] = []
        """Whether each router's scores depend on a parameter that is trained."""

    def state(self) -> dict:
        """The state from which the Trainer recreates this object at a checkpoint; biases are a part of the model."""
        return {
            "args": {"bias_rate": self.bias_rate, "loss": self.loss},
            "attributes": {"window": self.window, "losses": self.losses},
        }

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """The context of a forward pass."""
        if self.loss and not self._trains:
            self._trains = _trains(model)
        with recorded(model) as self._seen:
            yield

    def take(self, inputs: dict, draw: Draw, active: Tensor, packing: bool) -> Tensor | float:
        """Count the forward that was watched, and return each row's weighted balancing loss (B,), or 0 without one.

        Args:
            draw: of the whole micro-batch. active: the views that the forward was of, bool, (B, K).
        """
        if self.loss:
            self._check_gradients()
        source = active.nonzero()[:, 0]
        # Without rows a row that counts nowhere went through the model.
        nowhere = self._seen[0][0][0].new_full(self._seen[0][0][0].shape[:1], -1, dtype=torch.long)
        row_T = _rows_of_tokens(inputs, draw, active, packing) if len(source) else nowhere
        of_row_NT = row_T == torch.arange(len(source), device=row_T.device)[:, None]
        chosen_RNE, losses_RN = [], []
        for ((score_TE, chosen_TK),) in self._seen:
            wide = torch.promote_types(score_TE.dtype, torch.float32)
            choices_TE = torch.zeros_like(score_TE, dtype=wide).scatter_(1, chosen_TK, 1.0)
            chosen_RNE.append(of_row_NT.to(wide) @ choices_TE)
            if self.loss:
                losses_RN.append(_balance(score_TE.to(wide), chosen_RNE[-1], of_row_NT.to(wide), chosen_TK.shape[1]))
        self._seen = []
        load = (torch.stack(chosen_RNE) * inputs["counted"][source][:, None]).sum(1).double()
        self._step = load if self._step is None else self._step + load
        if not self.loss:
            return 0.0
        per_row = losses_RN[0].new_zeros(len(active)).index_add(0, source, torch.stack(losses_RN).mean(0))
        per_row = per_row / draw.active.sum(1).clamp(min=1)
        part = (per_row.detach() * inputs["row_weight"]).sum() / inputs["step_weight"]
        self._step_loss = self._step_loss + part
        return self.loss * per_row

    def _check_gradients(self) -> None:
        """Refuse a layer that was computed without a graph, to be made a second time with one."""
        scores = [score for ((score, _),) in self._seen]
        if any(trains and not score.requires_grad for trains, score in zip(self._trains, scores, strict=True)):
            raise UserError(
                "key 'trainer.gradient_checkpointing_kwargs': expected use_reentrant false beside router.loss, whose "
                "gradient does not reach the routers otherwise, found true; leave the key out."
            )

    def finish_step(self, model: nn.Module, add_up) -> None:
        """Merge the ranks' counts of the step that just ended, and move the biases; every rank ends alike.

        Args:
            add_up: adds a tensor up over the ranks.
        """
        load_RE = add_up(self._step)
        if self.bias_rate:
            for router, load_E in zip(routers(model), load_RE, strict=True):
                router.bias.add_(self.bias_rate * (load_E.mean() - load_E).sign().to(router.bias))
        before = torch.tensor(self.window, dtype=torch.float64) if self.window else torch.zeros(load_RE.shape).double()
        self.window = (before + load_RE.cpu()).tolist()
        if self.loss:
            self.losses = [self.losses[0] + float(add_up(torch.as_tensor(self._step_loss))), self.losses[1] + 1]
        self._step, self._step_loss = None, 0.0

    def flush(self) -> dict[str, float]:
        """The figures for the log, over the steps since the last flush."""
        if not self.window:
            return {}
        load_RE = torch.tensor(self.window, dtype=torch.float64)
        figures = {
            "expert_load_max": float((load_RE.amax(1) / load_RE.mean(1)).max()),
            "experts_unused": float((load_RE == 0).double().mean()),
        }
        if self.losses[1]:
            figures["balance_loss"] = self.losses[0] / self.losses[1]
        self.window, self.losses = [], [0.0, 0.0]
        return figures


def expert_load_of(model: nn.Module, name: str, bias_rate: float, loss: float) -> ExpertLoad | None:
    """The callback for a model with experts; None for a dense one.

    Raises:
        UserError: balancing for a model without experts, or biases to move where there are none that only choose, or
            where an adapter is trained, which could not keep them.
    """
    found = routers(model)
    if not found:
        if bias_rate or loss:
            key = "bias_rate" if bias_rate else "loss"
            raise UserError(f"key 'router.{key}': expected a model with experts, found '{name}', which has none.")
        return None
    if bias_rate and not all(router.bias_only_chooses and router.bias is not None for router in found):
        raise UserError(
            f"key 'router.bias_rate': expected a router whose bias only chooses experts, as LLaDA2's, found '{name}' "
            f"without one; write router.loss instead."
        )
    if bias_rate and hasattr(model, "peft_config"):
        raise UserError(
            "key 'router.bias_rate': expected a model that is trained whole, found adapters, whose files do not hold "
            "the biases; write router.loss instead, or leave out 'lora'."
        )
    return ExpertLoad(bias_rate, loss)


def _trains(model: nn.Module) -> list[bool]:
    """Whether each router, or anything before it in the model, is trained: under LoRA often only what is before it."""
    found, trained = [], False
    for module in model.modules():
        trained = trained or any(weight.requires_grad for weight in module.parameters(recurse=False))
        if isinstance(getattr(module, "routing", None), Routing):
            found.append(trained or module.gate_weight.requires_grad)
    return found


def _balance(score_TE: Tensor, chosen_NE: Tensor, of_row_NT: Tensor, count: int) -> Tensor:
    """sum_e f_e P_e of each forward row, (N,)."""
    tokens_N1 = of_row_NT.sum(1, keepdim=True).clamp(min=1)
    share_TE = score_TE / score_TE.sum(1, keepdim=True).clamp(min=torch.finfo(score_TE.dtype).tiny)
    mean_NE = of_row_NT @ share_TE / tokens_N1
    return (chosen_NE * (chosen_NE.shape[1] / count) / tokens_N1 * mean_NE).sum(1)


def _rows_of_tokens(inputs: dict, draw: Draw, active: Tensor, packing: bool) -> Tensor:
    """The forward row of each of the forward's tokens, -1 at padding; int64, shape (T,)."""
    source = active.nonzero()[:, 0]
    if "block_ids" in inputs:
        return TwoCopies.of(draw.mask[active], inputs["block_ids"][source], packed=packing).row.flatten()
    real = inputs["attention_mask"][source].bool()
    if packing:
        bins = Packing.of(real)
        return (bins.place // real.shape[1]).masked_fill(~bins.real, -1).flatten()
    numbers = torch.arange(len(real), device=real.device)[:, None].expand(real.shape)
    return numbers.masked_fill(~real, -1).flatten()

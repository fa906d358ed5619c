"""The gradient of one row's loss straight from autograd, which the meters of gradients must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.data.rows import collate
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.streams import Key
from tests.fakes.tiny import MASK, PAD


def autograd(net, data, index: int, t: float, method: Method, key: Key, place: int, sampler: TSampler) -> Tensor:
    """Flat gradient of one row's loss: every view's weighted cross-entropies, in plain loops over all logits."""
    batch = collate([data[index]], PAD, syrm=method.syrm)
    noise = Rows(torch.tensor([place]), 1, batch["maskable"], torch.arange(len(data[index])), batch["delimiter"])
    draw = method.draw_at(torch.tensor([t], dtype=torch.float64), key, noise, sampler)
    net.zero_grad()
    total, used = 0.0, int(draw.active.sum())
    for view in draw.active[0].nonzero()[:, 0].tolist():
        ids = batch["input_ids"][0].clone()
        ids[draw.mask[0, view]] = MASK
        logits = net(ids[None], batch["attention_mask"]).logits[0]
        for i in draw.mask[0, view].nonzero()[:, 0].tolist():
            nll = -logits[i].log_softmax(-1)[batch["input_ids"][0, i]]
            total = total + draw.coefficient[0, view, i] * nll / used
    if torch.is_tensor(total):
        total.backward()
    zeros = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return torch.cat([g.flatten() for g in zeros]).clone()

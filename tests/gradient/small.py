"""A small random float64 model with rows of unequal length, and its gradients straight from autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from stabledllm.data.rows import EncodingOptions, collate, encode_examples
from stabledllm.data.sources import load_examples
from stabledllm.forward.meter import MeteredModel
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key

MASK, PAD = 256, 257


def model(width: int = 16) -> TinyMDM:
    torch.manual_seed(0)
    config = TinyMDMConfig(num_hidden_layers=2, hidden_size=width, num_attention_heads=2, intermediate_size=2 * width)
    return TinyMDM(config).double()


def metered(network: TinyMDM) -> MeteredModel:
    return MeteredModel(network, MASK, PAD)


def rows(n: int = 6):
    examples = load_examples("synthetic:easy", split="train", n=n, seed=0)
    return encode_examples(examples, ByteTokenizer(), EncodingOptions(syntax="code")).rows


def autograd(net, data, index: int, t: float, method: Method, key: Key, place: int, sampler: TSampler) -> Tensor:
    """Flat gradient of one row's loss: every view's weighted cross-entropies, in plain loops over all logits."""
    batch = collate([data[index]], PAD, syrm=method.syrm)
    noise = Rows(torch.tensor([place]), 1, batch["maskable"], torch.arange(len(data[index])), batch["delimiter"])
    draw = method.draw_at(torch.tensor([t], dtype=torch.float64), key, noise, sampler, Objective())
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

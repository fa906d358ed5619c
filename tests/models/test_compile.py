"""torch.compile: the same gradients, and hardly a recompilation while the number of masked tokens changes."""

from __future__ import annotations

import pytest
import torch

from stabledllm.models.tiny import TinyMDM, TinyMDMConfig

STEPS = 100


@pytest.mark.long
def test_masked_counts_that_change_recompile_at_most_three_times():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = TinyMDM(
        TinyMDMConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=264)
    )
    compiled = torch.compile(model, backend="aot_eager")  # what is captured and when again; no C++ compiler needed
    ids = torch.randint(0, 250, (2, 16), generator=torch.Generator().manual_seed(1))
    attention = torch.arange(16)[None] < torch.tensor([[16], [11]])
    counters = torch._dynamo.utils.counters
    counters.clear()
    selections = torch.rand(STEPS, 2, 16, generator=torch.Generator().manual_seed(2)) < torch.rand(STEPS, 1, 1)
    first = None
    for step, selected in enumerate(selections & attention):
        weights = torch.rand(int(selected.sum()))
        compiled(ids, attention, selected=selected, targets=ids, nll_weights=weights).nll @ weights
        if step == 0:
            first = counters["stats"]["unique_graphs"]
    assert first > 0, "or nothing was compiled"
    again = counters["stats"]["unique_graphs"] - first
    assert again <= 3, f"{again} recompilations in {STEPS} steps"
    found = []
    for module in (model, compiled):
        model.zero_grad()
        selected = selections[3] & attention
        weights = torch.ones(int(selected.sum()))
        module(ids, attention, selected=selected, targets=ids, nll_weights=weights).nll.sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for plain, own in zip(*found, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-6)

"""The common forward: padding, packing, shifted logits, selection, checkpointing, compilation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stabledllm.data.rows import TokenRow
from stabledllm.forward.meter import MeteredModel
from stabledllm.gradient.per_row import RowGradients
from stabledllm.models.families.llada_moe import LLaDAMoEModelLM
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.models.families.cases import CASES, load, random_ids

NATIVE = ["llada-grouped", "mmada", "dream", "llada-moe-mixed", "a2d-qwen3", "sdar", "fast-dllm-7b"]


@pytest.fixture(scope="module", params=NATIVE)
def model(request, tmp_path_factory):
    return load(CASES[request.param].checkpoint(tmp_path_factory.mktemp(request.param), std=0.2)).double()


@torch.no_grad()
def test_padding_changes_nothing(model):
    ids = random_ids(3, 20)
    attention = torch.ones(3, 20, dtype=torch.bool)
    attention[1, 13:] = attention[2, 5:] = False
    together = model(ids, attention).logits
    for row, length in ((0, 20), (1, 13), (2, 5)):
        alone = model(ids[row : row + 1, :length]).logits[0]
        torch.testing.assert_close(together[row, :length], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_packed_rows_are_what_they_are_alone(model, attention):
    """Segments of 7, 5 and 4 tokens and 3 of padding in one row; one of 11 and padding in the other."""
    model.set_attn_implementation(attention)
    lengths = [[7, 5, 4], [11]]
    ids = random_ids(2, 19)
    segment, position, real = torch.zeros(2, 19).long(), torch.zeros(2, 19).long(), torch.zeros(2, 19).bool()
    for row, parts in enumerate(lengths):
        start = 0
        for number, length in enumerate(parts):
            own = slice(start, start + length)
            segment[row, own], position[row, own], real[row, own] = number + 1, torch.arange(length), True
            start += length
    packed = model(ids, real, segment_ids=segment, position_ids=position).logits
    assert packed.isfinite().all()
    for row, parts in enumerate(lengths):
        start = 0
        for length in parts:
            alone = model(ids[row : row + 1, start : start + length]).logits[0]
            torch.testing.assert_close(packed[row, start : start + length], alone, rtol=1e-5, atol=1e-6)
            start += length
    model.set_attn_implementation("sdpa")


def test_selected_positions_give_the_cross_entropies_of_all_logits(model):
    ids, targets = random_ids(3, 11), random_ids(3, 11, seed=2)
    selected = torch.rand(3, 11, generator=torch.Generator().manual_seed(3)) < 0.5
    selected[:, 0] = True  # the first position predicts itself where logits are shifted
    logits = model(ids).logits
    torch.testing.assert_close(model(ids, selected=selected).logits, logits[selected], rtol=1e-12, atol=1e-12)
    nll = model(ids, selected=selected, targets=targets).nll
    assert nll.dtype == torch.float64
    torch.testing.assert_close(nll, F.cross_entropy(logits[selected], targets[selected], reduction="none"))


def test_only_dream_and_fast_dllm_shift_their_logits(model):
    """Position i is predicted by the hidden state at i - 1, the first of each segment by its own."""
    ids = random_ids(2, 10)
    segment = torch.tensor([[1] * 4 + [2] * 6, [1] * 10])
    position = torch.cat((torch.arange(4), torch.arange(6)))[None].expand(2, -1).clone()
    position[1] = torch.arange(10)
    hidden = model.hidden_states(ids, None, segment, position)
    plain = model.get_output_embeddings()(hidden)
    if model.config.model_type in ("Dream", "Fast_dLLM_Qwen"):
        first = torch.cat((plain[0, :1], plain[0, :3], plain[0, 4:5], plain[0, 4:9]))
        plain = torch.stack((first, torch.cat((plain[1, :1], plain[1, :-1]))))
    torch.testing.assert_close(model(ids, segment_ids=segment, position_ids=position).logits, plain)


def test_no_selected_position_gives_a_zero_with_a_gradient(model):
    ids = random_ids(2, 6)
    out = model(ids, selected=torch.zeros(2, 6, dtype=torch.bool), targets=ids)
    assert out.nll.shape == (0,)
    out.nll.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    model.zero_grad()


def test_gradient_checkpointing_gives_the_same_gradients(model):
    ids, selected = random_ids(2, 9), random_ids(2, 9) % 2 == 0

    def gradients():
        model.zero_grad()
        model.train()
        model(ids, selected=selected, targets=ids).nll.sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    inner = next(m for m in model.layers()[0].modules() if isinstance(m, torch.nn.Linear))
    passes = []
    inner_handle = inner.register_forward_hook(lambda *_: passes.append(1))
    plain = gradients()
    assert len(passes) == 1
    model.gradient_checkpointing_enable()
    checkpointed = gradients()
    assert len(passes) == 3, "forward, and once more in the backward pass"
    model.gradient_checkpointing_disable()
    inner_handle.remove()
    model.zero_grad()
    model.eval()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-10, atol=1e-12)


def test_every_parameter_gets_a_gradient(model):
    ids = random_ids(2, 9)
    model(ids, selected=torch.ones(2, 9, dtype=torch.bool), targets=ids).nll.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    few = "experts."  # of the experts, only those that a token is sent to
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if few not in name)
    chosen = [p for name, p in model.named_parameters() if few in name]
    assert not chosen or sum(p.grad.abs().sum() > 0 for p in chosen) >= len(chosen) / 2
    model.zero_grad()


@pytest.mark.slow
@torch.no_grad()
def test_the_body_compiles_to_one_graph(model):
    """With padding and with packing; the head's selection is what needs a graph of its own."""
    if model.config.model_type == "mmada":
        pytest.skip("the body is LLaDA's")
    ids, real = random_ids(2, 12), torch.ones(2, 12, dtype=torch.bool)
    real[1, 8:] = False
    segment = torch.tensor([[1] * 6 + [2] * 6, [1] * 12])
    torch._dynamo.reset()
    body = torch.compile(model.hidden_states, backend="eager", fullgraph=True)  # what is captured; nothing is lowered
    torch.testing.assert_close(body(ids, real)[real], model.hidden_states(ids, real)[real], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        body(ids, real, segment)[real], model.hidden_states(ids, real, segment)[real], rtol=1e-6, atol=1e-8
    )


def test_row_gradients_layer_by_layer_are_those_row_by_row(model):
    """The fast path of the gradient's decomposition knows the families' own layers."""
    rows = [TokenRow(random_ids(1, 12 + i, seed=i)[0].clamp(max=255).tolist(), 4) for i in range(3)]
    t, found = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64), []
    for fast in (True, False):
        meter = RowGradients(MeteredModel(model, model.config.mask_token_id, 256), rows, Objective(), vectorised=fast)
        ((_, _, gradients, _),) = meter.gradients(torch.arange(3), t, Method(), Key(0, 0))
        assert (meter.layers is not None) == (fast and not isinstance(model, LLaDAMoEModelLM))
        found.append(gradients.clone())
    assert float((found[0] - found[1]).norm()) < 1e-6 * float(found[1].norm())

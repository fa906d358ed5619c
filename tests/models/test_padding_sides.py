"""A row's value is its own: whichever side its padding is on, alone, with others, or packed with them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from stabledllm import elbo
from stabledllm.data.rows import TokenRow, collate
from stabledllm.errors import UserError
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.forward.nll import forward_nll
from stabledllm.loss import row_losses
from stabledllm.models.alignment import padding_last
from stabledllm.models.families import causal_lm
from stabledllm.models.loading import load_model
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.fakes.block_models import write_fast_dllm, write_sdar
from tests.fakes.converted import write_a2d
from tests.fakes.hub_models import write_dream, write_llada, write_llada_moe, write_mmada
from tests.models.families.test_masked_lm import KINDS
from tests.models.families.test_masked_lm import write as write_masked_lm

# An empty prompt: Dream predicts its first token at its own place, which must not be that of padding.
ROWS = [TokenRow([5, 9, 11, 30, 31, 32, 40], 3), TokenRow([50, 8, 7], 0), TokenRow([4, 21, 22, 23, 24], 1)]
NATIVE = {
    "llada": write_llada,
    "dream": write_dream,
    "mmada": write_mmada,
    "llada-moe": write_llada_moe,
    "a2d": write_a2d,
    "sdar": write_sdar,
    "fast-dllm": write_fast_dllm,
}
MODELS = [*NATIVE, *KINDS, "tiny"]


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    if name in NATIVE:
        NATIVE[name](folder, std=0.2)
    elif name in KINDS:
        write_masked_lm(folder, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model("tiny" if name == "tiny" else str(folder)).model.double().eval()


def sides(pad: int = 0) -> dict[str, dict[str, Tensor]]:
    """The same rows with their padding on the right, on the left, and on both."""
    right = {name: value for name, value in collate(ROWS, pad).items() if name != "delimiter"}
    width = right["input_ids"].shape[1]

    def moved(before: list[int], width: int) -> dict[str, Tensor]:
        out = {}
        for name, value in right.items():
            out[name] = torch.full((len(ROWS), width), pad if name == "input_ids" else 0, dtype=value.dtype)
            for i, row in enumerate(ROWS):
                out[name][i, before[i] : before[i] + len(row)] = value[i, : len(row)]
        return out

    left = moved([width - len(row) for row in ROWS], width)
    return {"right": right, "left": left, "both": moved([2, 5, 1], 13)}


@pytest.mark.parametrize("pad", [0, 3])
@torch.no_grad()
def test_elbo_is_the_rows_own(model, pad):
    values = {side: elbo(model, rows, seed=3).value for side, rows in sides(pad).items()}
    assert values["right"].isfinite().all()
    assert values["right"].diff().abs().min() > 0.01, "rows that are alike would hide an exchange"
    for side in ("left", "both"):
        torch.testing.assert_close(values[side], values["right"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(elbo(model, ROWS, seed=3).value, values["right"], rtol=1e-9, atol=1e-9)
    first = elbo(model, ROWS[:1], seed=3).value
    torch.testing.assert_close(first, values["right"][:1], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_forward_is_the_rows_own(model):
    """Cross-entropies and logits of the model itself, called with either side."""
    found, whole = {}, {}
    for side, rows in sides().items():
        ids, real = rows["input_ids"], rows["attention_mask"]
        found[side] = model(ids, real, selected=rows["maskable"], targets=ids).nll
        whole[side] = model(ids, real).logits[real]
    for side in ("left", "both"):
        # Rotations are computed in float32 at the places that the rows have.
        torch.testing.assert_close(found[side], found["right"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(whole[side], whole["right"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_measuring_is_elbos_value_and_packing_changes_nothing(model):
    """The paths of training and evaluation, which pad on the right or pack, on the masks of one draw."""
    batch = collate(ROWS, 0)
    rows = Rows(torch.arange(3), 3, batch["maskable"], torch.arange(batch["input_ids"].shape[1]))
    draw = Method.parse("fixedcount").draw(Key(1, 0), rows, Uniform())
    mask_id = model.config.mask_token_id
    padded, _ = forward_nll(model, batch, draw, mask_id)
    meter = LossMeter(MeteredModel(model, mask_id, 0), ROWS, Objective(), tokens_per_batch=8)
    losses = meter.losses(torch.arange(3), draw.t, Method.parse("fixedcount"), Key(1, 0), Uniform())
    expected = row_losses(padded, draw.mask, draw.coefficient, draw.active)
    torch.testing.assert_close(losses, expected.double(), rtol=1e-6, atol=1e-6)
    if type(model).__name__.endswith("ForMaskedLM"):
        with pytest.raises(UserError, match="packing: expected a native family"):
            forward_nll(model, batch, draw, mask_id, packing=True)
        return
    packed, _ = forward_nll(model, batch, draw, mask_id, packing=True)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_autoregressive_model_with_absolute_positions():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).double().eval()
    nn.init.normal_(model.transformer.wpe.weight)
    model = causal_lm.adapt(model)
    found = {}
    for side, rows in sides().items():
        selected, ids = rows["maskable"].clone(), rows["input_ids"]
        selected[1] = False  # no token before the first predicts it
        found[side] = model(ids, rows["attention_mask"], selected=selected, targets=ids).nll
    for side in ("left", "both"):
        torch.testing.assert_close(found[side], found["right"])


def test_roberta_has_fewer_positions_than_its_table(tmp_path):
    """The first of its 40 are those of padding: a row of 39 tokens would look outside of the table."""
    write_masked_lm(tmp_path, "roberta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(str(tmp_path)).model
    assert model(torch.full((1, 38), 7)).logits.shape == (1, 38, 64)
    with pytest.raises(UserError, match="at most the model's 38 positions, found 39"):
        model(torch.full((1, 39), 7))


def test_padding_last():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 1, 0, 1]])
    assert padding_last(mask).tolist() == [[2, 3, 0, 1], [0, 1, 2, 3], [1, 3, 0, 2]]
    assert padding_last(mask[1:2]) is None

"""The autoregressive baseline against transformers' own loss, logits and decoding."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
)

from stabledllm.data.rows import TokenRow, collate
from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.errors import UserError
from stabledllm.evaluation.validation import row_nll
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.forward.nll import forward_nll
from stabledllm.forward.packing import Packing
from stabledllm.loss import nll_weights, reduce_loss, token_losses
from stabledllm.models.families.causal_lm import adapt
from stabledllm.models.loading import load_model
from stabledllm.models.loss_head import OutputLayer
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from tests.fakes.hub_models import write_llama, write_qwen2

METHOD, PLAIN = Method.parse("autoregressive"), Objective()
ROWS = [
    TokenRow([7, 3, 9, 40, 41, 42, 43], 3),
    TokenRow([11, 12, 13], 1),
    TokenRow([5, 6, 7, 8, 60, 61, 62, 63, 64, 65, 66], 4),
    TokenRow([1, 2, 70], 2),
]


@pytest.fixture(params=["qwen2", "llama"])
def folder(request, tmp_path):
    write = {"qwen2": write_qwen2, "llama": write_llama}[request.param]
    return write(tmp_path / request.param, shards=2, std=0.2)


@pytest.fixture
def loaded(folder):
    found = load_model(str(folder), torch.float64)
    assert found.autoregressive
    assert found.mask_id is None
    return found


def draw(batch: dict):
    given = Rows(torch.arange(len(batch["maskable"])), len(batch["maskable"]), batch["maskable"], torch.arange(11))
    return METHOD.draw(Key(3, 5), given, Uniform())


def loss_of(model, rows, objective: Objective = PLAIN, packing: bool = False):
    """The library's own path from rows to a step's loss."""
    batch = collate(rows, 0)
    drawn = draw(batch)
    weight = objective.row_weight(batch["maskable"])
    hints = nll_weights(drawn.mask, drawn.coefficient, drawn.active, weight)
    nll, forwards = forward_nll(model, batch, drawn, None, weights=hints, packing=packing)
    assert forwards == len(rows)
    losses = token_losses(nll, drawn.mask, drawn.coefficient, drawn.active).sum(dim=(1, 2))
    return reduce_loss(losses, weight, float(weight.sum()))


def of_transformers(model, rows, normalization: str):
    """Its ``labels`` loss, in float32: one row at a time for the mean over rows, all together for that over tokens."""

    def loss(some):
        batch = collate(some, 0)
        labels = batch["input_ids"].masked_fill(~batch["maskable"], -100)
        return model(batch["input_ids"], attention_mask=batch["attention_mask"].long(), labels=labels).loss

    return loss(rows) if normalization == "token" else torch.stack([loss([row]) for row in rows]).mean()


@pytest.mark.parametrize("normalization", ["row", "token"])
@pytest.mark.parametrize("packing", [False, True])
def test_loss_and_every_gradient_are_transformers_own(loaded, folder, normalization, packing):
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ours = loss_of(loaded.model, ROWS, Objective(normalization=normalization), packing)
    theirs = of_transformers(plain, ROWS, normalization)
    assert ours.item() == pytest.approx(theirs.item(), abs=2e-6)
    ours.backward()
    theirs.backward()
    expected = dict(plain.named_parameters())
    for name, parameter in loaded.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_do_not_see_each_other(folder, attention):
    model = load_model(str(folder), torch.float64, attention=attention).model
    batch = collate(ROWS, 0)
    assert len(Packing.of(batch["attention_mask"]).real) < len(ROWS)
    padded, _ = forward_nll(model, batch, draw(batch), None)
    packed, _ = forward_nll(model, batch, draw(batch), None, packing=True)
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-12)


def test_a_response_is_predicted_from_the_token_before_it(loaded):
    """At the border the last prompt token predicts the first response token, and no later token is seen."""
    row = ROWS[0]
    logits = loaded.model(torch.tensor([row.input_ids])).logits[0]
    expected = [-logits[i - 1].log_softmax(-1)[row.input_ids[i]] for i in range(row.prompt_length, len(row))]
    batch = collate([row], 0)
    nll, _ = forward_nll(loaded.model, batch, draw(batch), None)
    torch.testing.assert_close(nll, torch.stack(expected), rtol=0, atol=1e-12)
    changed = collate([TokenRow([*row.input_ids[:-1], 99], row.prompt_length)], 0)
    other, _ = forward_nll(loaded.model, changed, draw(changed), None)
    torch.testing.assert_close(other[:-1], nll[:-1], rtol=0, atol=1e-12)
    assert other[-1] != nll[-1]


def test_nothing_is_hidden_and_nothing_random():
    batch = collate(ROWS, 0)
    first = draw(batch)
    noisy, mask, source = first.noisy(batch["input_ids"], None)
    assert torch.equal(noisy, batch["input_ids"])
    assert torch.equal(source, torch.arange(4))
    assert torch.equal(mask, batch["maskable"])
    assert bool((first.weight == 1).all())
    torch.testing.assert_close(first.coefficient.sum(-1)[:, 0], torch.ones(4, dtype=torch.float64))


def test_the_first_token_of_a_text_carries_no_loss(loaded):
    """It has nothing before it, and its own hidden state would give it away."""
    rows = [TokenRow([4, 5, 6, 7], 0)]
    labels = torch.tensor([[4, 5, 6, 7]])
    expected = loaded.model(labels, labels=labels).loss.item()
    assert loss_of(loaded.model, rows).item() == pytest.approx(expected, abs=2e-6)


def test_evaluation_is_exact_and_needs_one_forward_a_row(loaded):
    meter = LossMeter(MeteredModel(loaded.model, None, 0), ROWS, Objective())
    values = row_nll(meter, draws=4)
    assert meter.forwards == len(ROWS)
    for row, value in zip(ROWS, values, strict=True):
        expected = of_transformers(loaded.model, [row], "row").item()
        assert value.item() == pytest.approx(expected, abs=2e-6)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 200, (n,), generator=generator).tolist() for n in (3, 9, 1, 5, 7, 2, 4, 6)]


def decode(loaded, given, first: int = 0, eos: int | None = None, **options):
    stats = DecodingStats()
    eos = loaded.eos_id if eos is None else eos
    found = DecodingOptions(**({"length": 12, "steps": 12, "block": 12} | options))
    out = generate(loaded.model, given, found, mask_id=None, eos_id=eos, pad_id=loaded.pad_id, first=first, stats=stats)
    return out, stats


@pytest.mark.parametrize("batch", [1, 8])
def test_greedy_decoding_is_that_of_transformers(loaded, folder, batch):
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    given, ended = prompts(), 0
    # A token that some rows do reach ends them here, so that rows leave the batch at different times.
    eos = decode(loaded, given[:1])[0][0][4]
    for start in range(0, len(given), batch):
        ours, _ = decode(loaded, given[start : start + batch], eos=eos)
        for prompt, found in zip(given[start : start + batch], ours, strict=True):
            rules = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=eos, pad_token_id=0)
            theirs = plain.generate(torch.tensor([prompt]), generation_config=rules)[0, len(prompt) :].tolist()
            ended += eos in theirs
            assert found == (theirs[: theirs.index(eos)] if eos in theirs else theirs)
    assert 0 < ended < len(given)


def test_settings_beside_the_weights_change_no_completion(loaded, folder):
    """Qwen2.5 publishes a repetition penalty and sampling; a comparison of methods is greedy all the same."""
    before, _ = decode(loaded, prompts())
    rules = {"do_sample": True, "repetition_penalty": 5.0, "temperature": 0.7, "top_k": 3, "eos_token_id": 258}
    (folder / "generation_config.json").write_text(json.dumps(rules))
    assert decode(load_model(str(folder), torch.float64), prompts())[0] == before


def test_drawn_tokens_depend_on_the_place_and_the_seed_alone(loaded):
    given = prompts()
    together, _ = decode(loaded, given, temperature=1.0, seed=5)
    alone = [decode(loaded, [p], first=i, temperature=1.0, seed=5)[0][0] for i, p in enumerate(given)]
    assert together == alone
    assert together != decode(loaded, given, temperature=1.0, seed=6)[0]
    assert together != decode(loaded, given)[0]


def test_model_calls_are_tokens_and_ended_rows_cost_nothing(loaded):
    given = prompts()
    out, stats = decode(loaded, given, eos=decode(loaded, given[:1])[0][0][4])
    longest = max(len(ids) for ids in out)
    assert stats.model_calls == min(12, longest + 1)
    assert stats.tokens == sum(len(ids) for ids in out)
    assert stats.forward_rows == sum(min(12, len(ids) + 1) for ids in out)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("guidance", 1.0), ("threshold", 0.9), ("order", "sequential"), ("schedule", "dream"), ("cache", "prefix"),
        ("sub_block", 2), ("first_token", "ahead"),
    ],
)  # fmt: skip
def test_options_of_masked_decoding_are_refused(loaded, option, value):
    with pytest.raises(UserError, match=rf"decoding\.{option}: expected a masked diffusion model"):
        decode(loaded, prompts(), **{option: value})


def test_what_is_saved_is_what_transformers_loads(loaded, folder, tmp_path):
    loaded.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == json.loads((folder / "config.json").read_text())["architectures"]
    assert "mask_token_id" not in config
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    torch.testing.assert_close(plain(ids).logits, loaded.model(ids).logits)


def gemma() -> Gemma2ForCausalLM:
    """Its logits are capped, and every other layer attends to a window."""
    config = Gemma2Config(
        vocab_size=120, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=4, final_logit_softcapping=2.0, initializer_range=0.3,
    )  # fmt: skip
    return Gemma2ForCausalLM(config)


def cohere() -> Cohere2ForCausalLM:
    """Its logits are scaled."""
    config = Cohere2Config(
        vocab_size=120, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, logit_scale=0.3, initializer_range=0.3,
    )  # fmt: skip
    return Cohere2ForCausalLM(config)


@pytest.mark.parametrize("make", [gemma, cohere])
def test_a_head_that_does_more_than_multiply_is_run_as_it_is(make):
    torch.manual_seed(1)
    model = make().double().eval()
    expected = of_transformers(model, ROWS, "row")
    adapted = adapt(model)
    assert not adapted.plain_head
    assert not isinstance(adapted.get_output_embeddings(), OutputLayer)
    assert loss_of(adapted, ROWS).item() == pytest.approx(expected.item(), abs=2e-6)
    assert type(adapted).__name__ == make().__class__.__name__


def test_packing_needs_full_attention():
    with pytest.raises(UserError, match="key 'packing': expected a model with full attention"):
        loss_of(adapt(gemma().double()), ROWS, packing=True)


def test_code_beside_the_weights_is_not_taken_for_an_autoregressive_model(tmp_path):
    folder = write_qwen2(tmp_path / "q", config={"auto_map": {"AutoModelForCausalLM": "modeling.Other"}})
    with pytest.raises(UserError, match="expected one of the families"):
        load_model(str(folder))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shard"])
def test_weights_are_those_of_the_config(tmp_path, change):
    folder = write_qwen2(tmp_path / "q", shards=2, config={"tie_word_embeddings": False})
    config = json.loads((folder / "config.json").read_text())
    if change == "shard":
        (folder / "model-00002-of-00002.safetensors").unlink()
    else:
        layers = {"missing": 3, "unexpected": 1}[change]
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    expected = {"missing": "missing weight", "unexpected": "unexpected weight", "shard": "00002-of-00002"}[change]
    with pytest.raises(UserError, match=expected):
        load_model(str(folder))

"""SDAR and Fast-dLLM v2: the doubled forward is the definition, and what config.json leaves out."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from stabledllm.errors import UserError
from stabledllm.models.loading import load_model
from stabledllm.noise.blocks import Blocks
from tests.fakes.block_models import MASK_ID, write_fast_dllm, write_sdar
from tests.models.families.cases import config_of, load, stored
from tests.models.families.published_blocks import training_logits

WRITERS = {"sdar": write_sdar, "fast-dllm": write_fast_dllm}


def rows(size: int):
    """Clean ids, real tokens, response and mask of three rows; prompts end within a block or at its end."""
    clean = torch.randint(0, 256, (3, 21), generator=torch.Generator().manual_seed(2))
    real = torch.arange(21) < torch.tensor([[21], [19], [size + 1]])
    response = real & (torch.arange(21) >= torch.tensor([[5], [size], [2]]))
    mask = response & (torch.rand(3, 21, generator=torch.Generator().manual_seed(3)) < 0.6)
    mask[1, size - 1 + 4 :] |= response[1, size - 1 + 4 :]
    return clean, real, response, mask


def outputs(model, size: int, attention: str):
    clean, real, response, mask = rows(size)
    model.set_attn_implementation(attention)
    blocks = Blocks.of(model, size).ids(response, real)
    noisy = torch.where(mask, MASK_ID, clean)
    return model(noisy, real, selected=mask, targets=clean, block_ids=blocks).nll


def by_definition(folder, size: int, start: str):
    clean, real, _, mask = rows(size)
    out = []
    for row in range(len(clean)):
        own, hidden = clean[row][real[row]], mask[row][real[row]]
        noisy = torch.where(hidden, MASK_ID, own)
        logits = training_logits(stored(folder), config_of(folder), size, noisy, own, start)
        out.append(F.cross_entropy(logits[hidden], own[hidden], reduction="none"))
    return torch.cat(out)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "start", "training"),
    [("sdar", "none", True), ("fast-dllm", "noisy", True), ("fast-dllm", "clean", True), ("fast-dllm", "noisy", False)],
)
def test_all_blocks_at_once_are_the_blocks_one_by_one(tmp_path, name, start, training, attention):
    """In evaluation mode the clean copy predicts a block's first token, as in decoding, whatever training does."""
    folder, size = WRITERS[name](tmp_path, std=0.3), {"sdar": 4, "fast-dllm": 8}[name]
    model = load(folder).train(training)
    model.config.block_start = start
    with torch.no_grad():
        found = outputs(model, size, attention)
    expected = by_definition(folder, size, start if training else "clean")
    assert expected.std() > 0.5
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    if name == "fast-dllm":
        other = by_definition(folder, size, "noisy" if start == "clean" or not training else "clean")
        assert (other - expected).abs().max() > 0.1


@pytest.mark.parametrize("name", WRITERS)
@torch.no_grad()
def test_a_clean_row_alone_is_its_own_past(tmp_path, name):
    """A row whose last block is masked has there, in one copy, the logits that it has beside its clean copy."""
    model = load(WRITERS[name](tmp_path, std=0.3)).double()
    size = model.config.block_size
    clean = torch.randint(0, 256, (2, 2 * size), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(2 * size).expand(2, -1) >= size
    noisy, ids = torch.where(mask, MASK_ID, clean), torch.arange(2 * size).expand(2, -1) // size
    two = model(noisy, selected=mask, targets=clean, block_ids=ids).nll
    for one in (model(noisy, selected=mask), model(noisy, selected=mask, block_ids=ids)):
        torch.testing.assert_close(F.cross_entropy(one.logits, clean[mask], reduction="none"), two)


@pytest.mark.parametrize("name", WRITERS)
def test_mixed_precision_is_near_the_weights_own(tmp_path, name):
    """The mask is made in the precision of the products, which SDPA asks for."""
    model = load(WRITERS[name](tmp_path, std=0.1)).train()
    exact = outputs(model, 4, "sdpa")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = outputs(model, 4, "sdpa")
    mixed.mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", WRITERS)
def test_what_config_json_leaves_out(tmp_path, name):
    folder = WRITERS[name](tmp_path)
    loaded = load_model(str(folder))
    assert loaded.mask_id == MASK_ID, "by its name in the tokenizer"
    keys = config_of(folder)
    keys.pop("bd_size", None)
    (folder / "config.json").write_text(json.dumps(keys))
    assert load_model(str(folder)).model.config.block_size == {"sdar": 4, "fast-dllm": 32}[name]


@pytest.mark.parametrize("name", WRITERS)
def test_another_block_size_is_saved_by_the_layouts_key(tmp_path, name):
    loaded = load_model(str(WRITERS[name](tmp_path / "hub")))
    loaded.model.config.block_size = 16
    loaded.save(tmp_path / "saved")
    before, after = config_of(tmp_path / "hub"), config_of(tmp_path / "saved")
    key = {"sdar": "block_size", "fast-dllm": "bd_size"}[name]
    assert after[key] == 16
    assert {k: v for k, v in after.items() if k not in (key, "dtype")} == {k: v for k, v in before.items() if k != key}
    assert load_model(str(tmp_path / "saved")).model.config.block_size == 16


REFUSED = {
    "window": (write_sdar, {"use_sliding_window": True}, {}, "use_sliding_window: expected False or None, found True"),
    "layers": (write_fast_dllm, {"layer_types": ["sliding_attention"] * 2}, {}, "expected full_attention in every"),
    "size": (write_fast_dllm, {"bd_size": 0}, {}, "bd_size: expected a whole number of at least 1, found 0"),
    "word": (write_sdar, {"block_size": "4"}, {}, "block_size: expected a whole number of at least 1, found '4'"),
    "flash": (write_sdar, {}, {"attention": "flash_attention_2"}, "flash"),
    "experts": (write_sdar, {"model_type": "sdar_moe"}, {}, "found SDAR with experts, such as SDAR-30B-A3B, which is"),
    "other": (write_sdar, {}, {"family": "fast-dllm"}, "expected family 'fast-dllm', found one of 'sdar'"),
    "trado": (write_sdar, {}, {"family": "trado"}, "family: unknown 'trado'; write sdar"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path, case):
    write, config, options, sentence = REFUSED[case]
    with pytest.raises(UserError, match=sentence) as error:
        load_model(str(write(tmp_path, config=config)), **options)
    assert "\n" not in str(error.value)


def test_a_vocabulary_without_the_mask_token(tmp_path):
    folder = write_sdar(tmp_path)
    stored_tokens = json.loads((folder / "tokenizer.json").read_text())
    stored_tokens["added_tokens"] = [t for t in stored_tokens["added_tokens"] if t["id"] != MASK_ID]
    (folder / "tokenizer.json").write_text(json.dumps(stored_tokens))
    with pytest.raises(UserError, match=r"expected mask_token_id in config\.json or a mask token in the tokenizer"):
        load_model(str(folder))

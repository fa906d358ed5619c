"""A converted model has the original's numbers: a causal run of it is the original, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from stabledllm.errors import UserError
from stabledllm.models.conversion.convert import convert
from stabledllm.models.conversion.options import ConversionOptions
from stabledllm.models.loading import load_model
from tests.fakes.converted import ORIGINALS, write_a2d
from tests.models.conversion.cases import converted, original_of, some_ids
from tests.models.families.cases import config_of, stored

LLAMA3 = {
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 16,
        "rope_type": "llama3",
    }
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("original", "config"),
    [
        ("llama", {}),
        ("llama", LLAMA3),
        ("llama", {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
    ids=["llama", "llama-scaled", "llama-tied", "qwen2", "qwen2-tied", "qwen3", "qwen3-tied"],
)
@torch.no_grad()
def test_a_causal_run_gives_the_originals_next_token_logits_exactly(tmp_path, original, config, attention):
    model = converted(tmp_path, original, config=config).model.eval()
    model.set_attn_implementation(attention)
    theirs, ids = original_of(tmp_path, attn_implementation=attention), some_ids()
    expected = theirs(ids).logits
    with model.causal():
        assert torch.equal(model.get_output_embeddings()(model.hidden_states(ids)), expected)
        shifted = model(ids).logits
    # The token at a position is predicted by the state before it: position 1 by the next-token logits of position 0.
    torch.testing.assert_close(shifted[:, 1:], expected[:, :-1], rtol=1e-6, atol=1e-6)
    assert (model(ids).logits - shifted).abs().max() > 0.1, "attention is full outside of the causal run"


def test_the_weights_are_the_originals_name_by_name(tmp_path):
    converted(tmp_path, "qwen3")
    before, after = stored(tmp_path / "original"), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("shift", "moved"), [(True, 1), (False, 0)])
@torch.no_grad()
def test_the_shift_is_kept_or_dropped(tmp_path, shift, moved):
    model = converted(tmp_path, "llama", shift=shift).model.eval()
    ids = some_ids()
    plain = model.get_output_embeddings()(model.hidden_states(ids))
    torch.testing.assert_close(model(ids).logits[:, moved:], plain[:, : plain.shape[1] - moved], rtol=1e-6, atol=1e-6)
    assert config_of(tmp_path / "out")["shift_logits"] == shift


def test_the_layout_is_dllms(tmp_path):
    """Keys, names and files as dllm's own conversion writes them, in the form that transformers 4 reads."""
    converted(tmp_path, "qwen3", config=LLAMA3)
    ours = config_of(tmp_path / "out")
    theirs = config_of(write_a2d(tmp_path / "theirs", "qwen3", config=LLAMA3))
    own = {"shift_logits", "mask_token_id", "dtype"}
    old = {"torch_dtype", "transformers_version"}
    assert ours.keys() == (theirs.keys() | own) - old
    assert {key: ours[key] for key in ours.keys() - own} == {key: theirs[key] for key in theirs.keys() - old}
    assert ours["architectures"] == ["A2DQwen3LMHeadModel"]
    assert ours["rope_scaling"] == LLAMA3["rope_scaling"]
    named = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (named["mask_token"], named["tokenizer_class"]) == ("<|mask|>", "PreTrainedTokenizerFast")
    assert json.loads((tmp_path / "out" / "special_tokens_map.json").read_text())["mask_token"] == "<|mask|>"


def test_the_form_of_transformers_5_is_read_and_written_as_that_of_4(tmp_path):
    """Its configs say rope_parameters and dtype; the result is the same."""
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "dtype": "float32"}
    folder = ORIGINALS["llama"](tmp_path / "original", std=0.3)
    keys = config_of(folder)
    for key in ("rope_theta", "rope_scaling", "torch_dtype"):
        del keys[key]
    (folder / "config.json").write_text(json.dumps(keys | new))
    (tmp_path / "out").mkdir()
    assert convert(str(folder), tmp_path / "out")["largest_difference"] == 0
    written = config_of(tmp_path / "out")
    assert (written["rope_theta"], written["rope_scaling"], written["dtype"]) == (5e5, None, "float32")
    assert "rope_parameters" not in written


@torch.no_grad()
def test_what_dllm_saved_is_loaded_with_the_tokenizers_mask_and_saved_alike(tmp_path):
    for original in ORIGINALS:
        folder = write_a2d(tmp_path / original, original, config={"tie_word_embeddings": True})
        assert "lm_head.weight" in load_file(folder / "model.safetensors")
        loaded = load_model(str(folder))
        assert (loaded.mask_id, loaded.model.config.shift_logits) == ({"llama": 260}.get(original, 259), False)
        loaded.save(tmp_path / f"{original}-saved")
        again = load_model(str(tmp_path / f"{original}-saved"))
        assert again.mask_id == loaded.mask_id
        assert torch.equal(again.model(some_ids()).logits, loaded.model(some_ids()).logits)


@torch.no_grad()
def test_what_dllms_conversion_wrote_and_nobody_trained_has_its_mask_behind_the_tokenizers_ids(tmp_path):
    """No file names a mask token: dllm's get_tokenizer adds it when it loads, and so gives it the first free id."""
    folder = write_a2d(tmp_path / "theirs", mask=None)
    with pytest.warns(UserWarning, match="no file of it names a mask token; id 259, the first behind"):
        loaded = load_model(str(folder))
    assert loaded.mask_id == 259
    assert loaded.tokenizer.encode("<|mask|>") == list(b"<|mask|>"), "text is never the token"
    loaded.save(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    assert again.mask_id == 259
    ids = some_ids().index_fill(1, torch.tensor([3, 8]), 259)
    assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)


def test_dllms_conversion_without_a_row_for_the_mask_is_refused(tmp_path):
    folder = write_a2d(tmp_path, config={"vocab_size": 259}, mask=None)
    with pytest.raises(UserError, match=r"or a spare row of the embedding for one, found neither behind its 259 tok"):
        load_model(str(folder))


def test_an_output_layer_that_is_not_the_embedding_it_should_be(tmp_path):
    folder = write_a2d(tmp_path, config={"tie_word_embeddings": True})
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"expected lm_head.weight to be the embedding, as tie_word_embeddings"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["<|MASK|>", "<|mask|>"])
def test_a_mask_token_that_no_file_names_is_found_by_its_name(tmp_path, name):
    folder = write_a2d(tmp_path, mask=name)
    (folder / "special_tokens_map.json").unlink()
    assert load_model(str(folder)).mask_id == 259


@torch.no_grad()
def test_fewer_layers_evenly_spaced(tmp_path):
    loaded = converted(tmp_path, "llama", config={"num_hidden_layers": 7}, layers=3)
    before, after = stored(tmp_path / "original"), stored(tmp_path / "out")
    for place, number in enumerate((0, 3, 6)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(after[name.format(place)], before[name.format(number)])
    assert len([name for name in after if name.endswith("mlp.up_proj.weight")]) == 3
    assert loaded.model.config.num_hidden_layers == 3
    assert json.loads((tmp_path / "out" / "stabledllm_conversion.json").read_text())["kept_layers"] == [0, 3, 6]


def test_dtype_of_the_files_or_another(tmp_path):
    folder = str(ORIGINALS["qwen2"](tmp_path / "original"))  # its config says bfloat16
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        (tmp_path / dtype).mkdir()
        convert(folder, tmp_path / dtype, ConversionOptions(dtype=dtype))
        assert {value.dtype for value in stored(tmp_path / dtype).values()} == {expected}

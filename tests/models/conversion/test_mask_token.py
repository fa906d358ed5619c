"""Which token a converted model reads as a mask, and its rows of the embedding and the output layer."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from stabledllm.data.rows import TokenRow
from stabledllm.data.token_rows import refuse_masked_rows
from stabledllm.errors import UserError
from stabledllm.models.conversion.convert import convert
from stabledllm.models.conversion.mask_token import choose_mask
from stabledllm.models.loading import load_model
from tests.fakes.converted import CHATML, ORIGINALS, add_mask
from tests.fakes.hub_models import EMBEDDING_ROWS, QWEN_SPECIAL, write_tokenizer
from tests.models.conversion.cases import converted, original_of, some_ids
from tests.models.families.cases import config_of, stored

FULL = 259
"""Rows of an embedding without a spare one, for Qwen's tokens."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tokenizer_with(folder, *more: str, mask: str | None = None):
    """Qwen's tokens, and more special ones behind them."""
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | ({"mask_token": mask} if mask else {})
    special = QWEN_SPECIAL | {name: 259 + i for i, name in enumerate(more)}
    write_tokenizer(folder, special, named, CHATML)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize(
    ("more", "rows", "wanted", "expected"),
    [
        ([], 272, "auto", ("<|mask|>", 259, "spare")),
        ([], 272, "spare", ("<|mask|>", 259, "spare")),
        (["<|mask|>"], 272, "spare", ("<|MASK|>", 260, "spare")),
        (["<a>", "<b>"], 261, "auto", ("<b>", 260, "special")),
        (["<a>", "<b>"], 272, "special", ("<b>", 260, "special")),
        (["<a>", "<reserved_0>", "<reserved_1>", "<b>"], 263, "auto", ("<reserved_0>", 260, "special")),
        (["<a>", "<b>"], 272, "<a>", ("<a>", 259, "special")),
        (["<a>"], 260, "new", ("<|mask|>", 260, "new")),
    ],
    ids=["auto-spare", "spare", "name-taken", "auto-special", "special", "reserved", "named", "new"],
)
def test_which_token(tmp_path, more, rows, wanted, expected):
    mask = choose_mask(tokenizer_with(tmp_path, *more), rows, wanted, [256], "model 'x'")
    assert (mask.name, mask.id, mask.kind) == expected


def test_the_tokenizers_own_mask_token_comes_first(tmp_path):
    mask = choose_mask(tokenizer_with(tmp_path, "<a>", "<m>", "<b>", mask="<m>"), 272, "auto", [], "model 'x'")
    assert (mask.name, mask.id, mask.kind) == ("<m>", 260, "own")


@pytest.mark.parametrize(
    ("more", "rows", "wanted", "words"),
    [
        (
            [],
            FULL,
            "auto",
            "expected a free token .*, found no spare row .* and no special token that nothing uses;",
        ),
        ([], FULL, "spare", "found no spare row of the embedding; --mask-token new adds a row"),
        ([], 272, "special", "no special token that nothing uses; --mask-token spare takes a spare row"),
        ([], FULL, "special", "no special token that nothing uses; --mask-token new adds a row"),
        (["<a>"], 272, "new", "expected no spare row .*, found 12; take --mask-token spare"),
        (["<empty>"], 272, "<emty>", r"found '<emty>' \(did you mean '<empty>'\?\)"),
        ([], 272, "<|im_end|>", r"found '<\|im_end\|>', which is in use or part of texts"),
        ([], 272, "a", "found 'a', which is in use or part of texts"),
    ],
    ids=[
        "nothing-free",
        "no-spare",
        "no-special",
        "neither",
        "new-beside-spare",
        "misspelt",
        "in-use",
        "text",
    ],
)
def test_no_such_token_is_one_sentence(tmp_path, more, rows, wanted, words):
    with pytest.raises(UserError, match=words) as error:
        choose_mask(tokenizer_with(tmp_path, *more), rows, wanted, [256], "model 'x'")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_new_row_is_the_mean_of_the_others_in_embedding_and_head(tmp_path, tied):
    loaded = converted(tmp_path, config={"vocab_size": FULL, "tie_word_embeddings": tied}, mask_token="new")
    before, after, model = stored(tmp_path / "original"), stored(tmp_path / "out"), loaded.model.eval()
    assert (loaded.mask_id, config_of(tmp_path / "out")["vocab_size"]) == (FULL, FULL + 1)
    for name in [EMBEDDING] if tied else [EMBEDDING, HEAD]:
        assert torch.equal(after[name][:FULL], before[name])
        torch.testing.assert_close(after[name][FULL], before[name].mean(0))
    assert (HEAD in after) != tied
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    ids = some_ids()
    with model.causal():
        logits = model.lm_head(model.hidden_states(ids))
    assert logits.shape[-1] == FULL + 1
    torch.testing.assert_close(logits[..., :FULL], original_of(tmp_path)(ids).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_spare_row_is_kept_or_set_to_the_mean_of_the_tokens(tmp_path, tied):
    (tmp_path / "kept").mkdir()
    (tmp_path / "mean").mkdir()
    config = {"tie_word_embeddings": tied}
    kept = converted(tmp_path / "kept", config=config)
    mean = converted(tmp_path / "mean", config=config, mask_embedding="mean")
    assert kept.mask_id == mean.mask_id == FULL
    before, first, second = (stored(tmp_path / place) for place in ("kept/original", "kept/out", "mean/out"))
    assert torch.equal(first[EMBEDDING], before[EMBEDDING])
    torch.testing.assert_close(second[EMBEDDING][FULL], before[EMBEDDING][:FULL].mean(0))
    others = torch.arange(EMBEDDING_ROWS) != FULL
    assert torch.equal(second[EMBEDDING][others], before[EMBEDDING][others])
    if not tied:
        assert torch.equal(second[HEAD], before[HEAD])


def test_padding_that_is_the_end_token(tmp_path):
    """SmolLM2's and many others' way: rows end with the token that pads them, which is then trained once."""
    folder = ORIGINALS["qwen2"](tmp_path / "original", std=0.3)
    named = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "out").mkdir()
    convert(str(folder), tmp_path / "out")
    loaded = load_model(str(tmp_path / "out"))
    assert loaded.pad_id == loaded.eos_id == 258
    assert loaded.tokenizer.padding_id is None
    assert loaded.tokenizer.chat([{"role": "user", "content": "hi <|mask|>"}]).count(loaded.mask_id) == 0


def test_a_mask_id_that_occurs_in_the_data_is_refused(tmp_path):
    loaded = converted(tmp_path)
    row = TokenRow([1, 2, loaded.mask_id, 4], 1)
    with pytest.raises(UserError, match="mask"):
        refuse_masked_rows([row], loaded.mask_id)


def test_a_tokenizer_with_the_mask_is_read_by_transformers_as_well(tmp_path):
    """As dllm reads it: the class that the file names, mask token included, and texts as before."""
    converted(tmp_path, "qwen3")
    before = PreTrainedTokenizerFast.from_pretrained(tmp_path / "original")
    after = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert (after.mask_token, after.mask_token_id, after.pad_token, after.eos_token) == (
        "<|mask|>", 259, before.pad_token, before.eos_token,
    )  # fmt: skip
    text = "Tom has 3 apples<|im_end|>, \u00e9."
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.chat_template == before.chat_template
    assert after("a<|mask|>b")["input_ids"] == [97, 259, 98]


def test_an_existing_special_token_becomes_the_mask(tmp_path):
    folder = ORIGINALS["qwen2"](tmp_path / "o", std=0.3, config={"vocab_size": 260})
    add_mask(folder, "<empty_output>")
    (tmp_path / "out").mkdir()
    record = convert(str(folder), tmp_path / "out")
    assert record["mask"] == {"name": "<empty_output>", "id": 259, "kind": "special"}
    loaded = load_model(str(tmp_path / "out"))
    assert (loaded.mask_id, loaded.model.config.vocab_size) == (259, 260)

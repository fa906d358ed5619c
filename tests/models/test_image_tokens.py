"""Ids of image tokens: by name, by MMaDA's published numbers, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from stabledllm.errors import UserError
from stabledllm.models.image_tokens import ImageTokens
from stabledllm.models.loading import load_model
from tests.fakes.hub_models import EMBEDDING_ROWS, LLADA_SPECIAL, write_mmada, write_tokenizer

NAMES = ["<|soi|>", "<|eoi|>", "<|t2i|>", "[iPAD]"]
TEXT = 256 + len(LLADA_SPECIAL)


def tokenizer(folder, extra=(), **named) -> PreTrainedTokenizerFast:
    special = dict(LLADA_SPECIAL) | {token: TEXT + i for i, token in enumerate(extra)}
    named = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"} | named
    write_tokenizer(folder, special, {k: v for k, v in named.items() if v}, None)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def config(**keys) -> SimpleNamespace:
    return SimpleNamespace(**({"codebook_size": 16, "embedding_rows": 300} | keys))


class Published:
    """LLaDA's tokenizer as far as it is asked: 126349 tokens, of which 126080 on are special."""

    bos_token_id, eos_token_id = 126080, 126081

    def __init__(self, special: bool = True, reserved: int = 126080):
        self.added_tokens_decoder = {i: AddedToken(f"<|{i}|>", special=special) for i in range(reserved, 126349)}

    def __len__(self) -> int:
        return 126349

    def get_vocab(self) -> dict[str, int]:
        return {"<|soi|>": 5} | {str(token): i for i, token in self.added_tokens_decoder.items()}


def test_marks_are_found_by_their_names(tmp_path):
    found = ImageTokens.of(tokenizer(tmp_path, [NAMES[2], NAMES[0], NAMES[3], NAMES[1]]), config(), "small")
    assert found == ImageTokens(
        soi=TEXT + 1,
        eoi=TEXT + 3,
        t2i=TEXT,
        ipad=TEXT + 2,
        bos=260,
        eos=256,
        first=TEXT + 4,
        codebook_size=16,
    )


def test_mmadas_published_ids():
    """The numbers of ``Gen-Verse/MMaDA-8B-Base``; one mark's name alone does not count."""
    found = ImageTokens.of(Published(), config(codebook_size=8192, embedding_rows=134656), "mmada")
    assert found == ImageTokens(126084, 126085, 126088, 126093, 126080, 126081, first=126349, codebook_size=8192)


def test_the_config_of_a_loaded_model(tmp_path):
    loaded = load_model(str(write_mmada(tmp_path / "model")))
    found = ImageTokens.of(tokenizer(tmp_path / "tokenizer", NAMES), loaded.model.config, "small")
    assert (found.first, found.codebook_size) == (TEXT + 4, 16)
    assert loaded.model.config.embedding_rows == EMBEDDING_ROWS + 16


@pytest.mark.parametrize("extra", [(), NAMES[:3], NAMES[1:]])
def test_a_tokenizer_without_the_marks_is_refused(tmp_path, extra):
    missing = next(name.replace("|", r"\|").replace("[", r"\[") for name in NAMES if name not in extra)
    with pytest.raises(UserError, match=f"model 'small': expected a tokenizer with .* no {missing}"):
        ImageTokens.of(tokenizer(tmp_path, extra), config(), "small")


@pytest.mark.parametrize("other", [Published(special=False), Published(reserved=126094)])
def test_published_ids_must_be_special_tokens(other):
    with pytest.raises(UserError, match="reserved ids"):
        ImageTokens.of(other, config(codebook_size=8192, embedding_rows=134656), "mmada")


@pytest.mark.parametrize("end", ["bos", "eos"])
def test_a_tokenizer_without_an_end_is_refused(tmp_path, end):
    with pytest.raises(UserError, match=f"model 'small': expected {end}_token in its tokenizer, found none."):
        ImageTokens.of(tokenizer(tmp_path, NAMES, **{f"{end}_token": None}), config(), "small")


@pytest.mark.parametrize("size", [None, 0])
def test_a_config_without_a_codebook_is_refused(tmp_path, size):
    with pytest.raises(UserError, match=rf"codebook_size of at least 1 in config.json, found {size}\."):
        ImageTokens.of(tokenizer(tmp_path, NAMES), config(codebook_size=size), "small")


def test_the_embedding_must_hold_every_code(tmp_path):
    made = tokenizer(tmp_path, NAMES)
    rows = len(made) + 16
    ImageTokens.of(made, config(embedding_rows=rows), "small")
    with pytest.raises(UserError, match=f"at least {len(made)} text and 16 image tokens, found {rows - 1} rows"):
        ImageTokens.of(made, config(embedding_rows=rows - 1), "small")


def test_ids_follow_the_text_and_refuse_codes_outside_the_codebook():
    tokens = ImageTokens(1, 2, 3, 4, 5, 6, first=100, codebook_size=16)
    codes = torch.arange(16).view(2, 8)
    assert torch.equal(tokens.ids(codes), codes + 100)
    for wrong in (-1, 16):
        with pytest.raises(UserError, match=f"picture: expected codes 0 to 15, found {wrong}"):
            tokens.ids(torch.tensor([3, wrong]))

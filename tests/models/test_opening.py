"""A model's files opened without its weights say what loading the model says."""

from __future__ import annotations

import pytest

from stabledllm.config.settings import ModelSettings
from stabledllm.errors import UserError
from stabledllm.models.loading import load_model
from stabledllm.models.opening import open_model
from tests.fakes.block_models import write_fast_dllm, write_sdar
from tests.fakes.hub_models import write_dream, write_llada, write_llama, write_mmada

WRITERS = {
    "llada": write_llada, "dream": write_dream, "mmada": write_mmada, "arm": write_llama, "sdar": write_sdar,
    "fast-dllm": write_fast_dllm,
}  # fmt: skip


@pytest.mark.parametrize("family", WRITERS)
def test_the_same_as_loading(tmp_path, family):
    name = str(WRITERS[family](tmp_path / family))
    opened, loaded = open_model(ModelSettings(model=name)), load_model(name)
    assert (opened.family, opened.autoregressive) == (family, loaded.autoregressive)
    assert opened.tokenizer.vocab_size == loaded.tokenizer.vocab_size
    assert opened.tokenizer.identity == loaded.tokenizer.identity
    assert opened.tokenizer.chat_template, "as the line of validate --load says"
    assert opened.tokenizer.mask_token_id == loaded.tokenizer.mask_token_id
    distinct = {p.data_ptr(): p.numel() for p in loaded.model.parameters()}
    assert opened.weights in (sum(distinct.values()), sum(p.numel() for p in loaded.model.parameters()))


def test_shipped_and_new_ones():
    assert open_model(ModelSettings(model="tiny")).weights == 920_704
    assert open_model(ModelSettings(model="new:tiny")).weights is None
    assert open_model(ModelSettings(model="tiny-mmada")).family == "mmada"


def test_what_cannot_be_loaded_is_refused(tmp_path):
    folder = write_llada(tmp_path / "model")
    with pytest.raises(UserError, match="expected family 'dream'"):
        open_model(ModelSettings(model=str(folder), family="dream"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="expected a tokenizer"):
        open_model(ModelSettings(model=str(folder)))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError):
        open_model(ModelSettings(model=str(folder)))

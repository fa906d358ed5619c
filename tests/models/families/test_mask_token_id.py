"""The mask token that a user names: used, saved and read back; refused where it is none, in the data or not sayable."""

from __future__ import annotations

import json

import pytest

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.models.loading import load_model
from stabledllm.training.run import train
from tests.cli.runner import assert_refused, in_process
from tests.fakes.block_models import write_fast_dllm, write_sdar
from tests.fakes.hub_models import EMBEDDING_ROWS, write_llada
from tests.fakes.llada2 import write_llada2
from tests.models.families.cases import config_of

WRITERS = {"sdar": write_sdar, "fast-dllm": write_fast_dllm, "llada2": write_llada2, "llada": write_llada}
SPARE = EMBEDDING_ROWS - 1
"""A row of the embedding that no token of the tokenizer has."""
SMALL = {
    "data": {"train": "synthetic:easy", "train_rows": 8, "validation_rows": 2, "test_rows": 1},
    "batch": 4, "steps": 1, "decoding": {"length": 32}, "method": "lowdisc+fixedcount",
}  # fmt: skip


def quiet(_: str) -> None:
    """Says nothing."""


@pytest.mark.parametrize("name", ["sdar", "fast-dllm", "llada2"])
def test_it_is_trained_with_and_saved(tmp_path, name):
    hub = WRITERS[name](tmp_path / "hub")
    assert load_model(str(hub)).mask_id != SPARE
    keys = SMALL | {"model": str(hub), "out": str(tmp_path / "run"), "mask_token_id": SPARE}
    record = train(TrainSettings.model_validate(keys), say=quiet)
    assert record["config"]["mask_token_id"] == SPARE
    saved = config_of(tmp_path / "run" / "model")
    assert saved == config_of(hub) | {"mask_token_id": SPARE, "dtype": "float32"}
    assert load_model(str(tmp_path / "run")).mask_id == SPARE


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_no_token_is_refused(tmp_path, name):
    hub = WRITERS[name](tmp_path / "hub")
    with pytest.raises(UserError, match=f"mask_token_id to be a token below the embedding's .*, found {10**6}"):
        load_model(str(hub), mask_token_id=10**6)


@pytest.mark.parametrize("name", ["sdar", "fast-dllm", "llada2"])
def test_a_token_of_the_data_is_refused(tmp_path, name):
    """One of texts at once, which would lose it; one that the chat template writes where the rows are read."""
    hub = WRITERS[name](tmp_path / "hub")
    tokenizer = load_model(str(hub)).tokenizer
    digit, closing = tokenizer.encode("1")[0], tokenizer.eos_token_id
    with pytest.raises(UserError, match=rf"to be a token that no text has .*, found {digit}, which is '1'"):
        load_model(str(hub), mask_token_id=digit)
    keys = SMALL | {"model": str(hub), "out": str(tmp_path / "run"), "mask_token_id": closing}
    with pytest.raises(UserError, match=rf"expected no mask token within the row, found its id {closing}"):
        train(TrainSettings.model_validate(keys), say=quiet)


def test_where_no_file_could_say_it(tmp_path):
    hub = write_sdar(tmp_path / "hub")
    keys = SMALL | {"model": str(hub), "out": str(tmp_path / "run"), "lora": {"rank": 2}}
    with pytest.raises(UserError, match="key 'mask_token_id': expected none beside 'lora'"):
        train(TrainSettings.model_validate(keys | {"mask_token_id": SPARE}), say=quiet)
    train(TrainSettings.model_validate(keys), say=quiet)
    with pytest.raises(UserError, match="key 'mask_token_id': expected none for the adapter"):
        load_model(str(tmp_path / "run" / "model"), mask_token_id=SPARE)
    with pytest.raises(UserError, match="expected no mask_token_id for the reference model"):
        load_model("tiny", mask_token_id=SPARE)


def test_commands_take_it(tmp_path):
    write_llada2(tmp_path / "hub")
    asked = ["--model", "hub", "--length", "32", "--steps", "1", "--mask-token-id"]
    assert in_process("generate", "1+1", *asked, str(SPARE), cwd=tmp_path).returncode == 0
    assert_refused(in_process("generate", "1+1", *asked, "many", cwd=tmp_path), "mask_token_id", "'many'")
    told = in_process(
        "train", "sft-synthetic", "model=hub", f"mask_token_id={SPARE}", "block_size=8", "--dry-run", cwd=tmp_path
    )
    assert told.returncode == 0, told.stderr
    path = tmp_path / "hub" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_token_id": 261}))
    loaded = load_model(str(tmp_path / "hub"), mask_token_id=SPARE)
    assert loaded.mask_id == SPARE, "instead of the one that config.json says"

"""Steps and block follow the length unless given; a given value that cannot be is refused with the nearest that can."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabledllm.build import build_decoding
from stabledllm.config.decoding_fit import fitting_block, fitting_steps
from stabledllm.config.recipe import load_recipe
from stabledllm.config.settings import (
    DecodingSettings,
    EvalSettings,
    GenerateSettings,
    ShortDecodingSettings,
    TrainSettings,
)
from stabledllm.errors import UserError
from stabledllm.experiment.at_once import load_checked
from stabledllm.experiment.commands_at_once import check_command, in_trained_blocks
from tests.fakes.llada2 import write_llada2

KINDS = pytest.mark.parametrize("kind", [DecodingSettings, ShortDecodingSettings])


@KINDS
@given(length=st.integers(1, 3000))
def test_every_length_can_be_decoded(kind, length):
    options = build_decoding(kind(length=length))
    assert options.length == length
    assert options.steps <= max(length, kind.usual_steps)


@KINDS
def test_lengths_that_worked_before_keep_their_steps_and_block(kind):
    for length in range(1, 3000):
        before = length % kind.usual_block == 0 and kind.usual_steps % (length // kind.usual_block) == 0
        if before:
            settings = kind(length=length)
            assert (settings.steps, settings.block) == (kind.usual_steps, kind.usual_block), length


@pytest.mark.parametrize(
    ("length", "block", "steps"), [(120, 8, 60), (100, 10, 60), (40, 8, 40), (127, 127, 64), (2, 2, 64), (1024, 8, 128)]
)
def test_what_is_not_given_is_the_nearest_that_fits(length, block, steps):
    assert fitting_block(length, 8) == block
    assert fitting_steps(length, block, 64) == steps


def test_what_is_given_stays():
    assert DecodingSettings(length=120, steps=15, block=8).steps == 15
    assert DecodingSettings(length=120, block=8).steps == 120
    assert EvalSettings().decoding.model_dump() == ShortDecodingSettings(length=64, steps=64, block=8).model_dump()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"length": 100, "block": 8}, "block 5 or 10 does, and so it does a length of 96 or 104"),
        ({"length": 4, "block": 8}, "block 4 does, and so it does a length of 8"),
        ({"length": 120, "block": 8, "steps": 64}, "steps 60 or 75 do"),
        ({"length": 120, "block": 8, "steps": 3}, "steps 15 do"),
        ({"length": 64, "block": 8, "sub_block": 3}, "divisor of the block's 8 tokens, found 3; write 2 or 4"),
        ({"length": 64, "block": 8, "sub_block": 2, "steps": 48}, "over 32 sub-blocks .*; steps 32 or 64 do"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_nearest_that_can(values, words):
    with pytest.raises(UserError, match=words):
        build_decoding(DecodingSettings(**values))


def test_a_recipe_may_leave_them_out_or_take_them_back():
    typed = ["decoding.length=120", "decoding.steps=null", "decoding.block=null"]
    decoding = load_recipe("sft-synthetic", typed).decoding
    assert (decoding.length, decoding.steps, decoding.block) == (120, 128, 30)


def test_a_run_in_blocks_is_decoded_in_them_unless_told_otherwise():
    assert TrainSettings(block_size=4).decoding.block == 4
    assert TrainSettings(block_size=4, decoding=DecodingSettings(length=12)).decoding.steps == 12
    assert TrainSettings(block_size=4, decoding=DecodingSettings(block=8)).decoding.block == 8
    assert "decoding" not in TrainSettings(block_size=4).model_fields_set


def test_steps_fit_sub_blocks_unless_given():
    assert ShortDecodingSettings(length=96, block=32, sub_block=8).steps == 60
    assert ShortDecodingSettings(length=96, block=32).steps == 63, "three blocks share them, twelve sub-blocks do not"
    whole = DecodingSettings(length=96, sub_block=8).in_blocks_of(48)
    assert (whole.block, whole.sub_block, whole.steps) == (48, 8, 96)


def test_generate_decodes_in_the_blocks_that_the_model_was_trained_in(tmp_path):
    def write(name: str, file: str, content: dict) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(content))
        return str(tmp_path / name)

    base = write("base", "config.json", {"block_size": 4})
    adapter = write("adapter", "adapter_config.json", {"base_model_name_or_path": base})
    moved = write("moved", "adapter_config.json", {"base_model_name_or_path": str(tmp_path / "gone")})

    def block_of(model: str, base: str | None = None, **given: int) -> int:
        return in_trained_blocks(
            GenerateSettings(model=model, base=base, decoding={"length": 64} | given)
        ).decoding.block

    assert block_of(base) == 4
    assert block_of(adapter) == 4
    assert block_of(moved) == 8
    assert block_of(moved, base) == 4
    assert block_of(base, block=16) == 16
    assert block_of(write("none", "config.json", {"block_size": "4"})) == 8
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "base").rename(run / "model")
    assert block_of(str(run)) == 4, "the model in a run's folder"


@pytest.mark.parametrize("command", ["eval", "generate", "train"])
def test_the_blocks_of_a_model_are_not_the_users_to_choose(tmp_path, command):
    """Without a block none that fits is taken there: only the length can be another."""
    folder = str(write_llada2(tmp_path))
    words = r"decoding: length: expected a multiple of 32, .* found 48; write 32 or 64\.$"
    check = {
        "train": lambda length: load_checked("sft", [f"model={folder}", length], reads_data=False),
        "eval": lambda length: check_command("eval", {"model": folder}, [length]),
        "generate": lambda length: check_command("generate", {"model": folder}, [length]),
    }[command]
    with pytest.raises(UserError, match=words):
        check("decoding.length=48")

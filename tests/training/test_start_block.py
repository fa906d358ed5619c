"""The block before the first step says what is trained, on what and how; within 80 columns, whatever the data hold."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from stabledllm.build import build_method, build_model, set_form
from stabledllm.config.parts_in_words import DOES, OBJECTIVES, in_words
from stabledllm.config.recipe import load_recipe
from stabledllm.config.settings import TrainSettings
from stabledllm.data.bundle import load_bundle
from stabledllm.data.images import with_image_defaults
from stabledllm.models.families.registry import family_of
from stabledllm.models.loading import load_model
from stabledllm.noise.parts import PARTS, STANDARD
from stabledllm.noise.weightings import WEIGHTINGS
from stabledllm.training import run, start_block
from stabledllm.training.arguments import training_arguments
from stabledllm.training.screen import QUIET, Screen, plain
from stabledllm.training.start_block import StartBlock, steps_of
from tests.fakes.hub_models import write_dream, write_llada, write_llada_moe, write_qwen2
from tests.fakes.run import merged, small_run, train


def block_of(settings: dict | TrainSettings, **change) -> StartBlock:
    if isinstance(settings, dict):
        settings = TrainSettings.model_validate(merged(settings, change))
    settings = with_image_defaults(settings)
    method, loaded = build_method(settings.method, settings), build_model(settings)
    set_form(loaded, settings)
    data = load_bundle(settings.data, loaded.tokenizer)
    rows = data.train
    return StartBlock(settings, training_arguments(settings), method, loaded, data, rows[0], len(rows))


def rows_of(block: StartBlock) -> dict[str, str]:
    """The last text under each label."""
    return {label: text.plain.strip() for label, text in block.lines() if label}


def test_a_run_on_text(tmp_path):
    block = block_of(small_run(tmp_path), method="lowdisc+fixedcount", micro_batch=2)
    said = rows_of(block)
    parameters = sum(p.numel() for p in block.loaded.model.parameters())
    assert said["model"] == f"{tmp_path}/base, family tiny: {parameters:,} parameters, all trained"
    assert (
        said["rows"] == f"10 to train on, 3 held out (data.validation={block.settings.data.validation}); none dropped"
    )
    assert said["  prompt"] == "<user>0+0=?<assistant>"
    assert said["  response"] == "It is 0 and on<eos>"
    assert said["method"].startswith("lowdisc+fixedcount: spreads t over the rows of a step")
    assert said["steps"] == "4 of 4 rows each (2 at once x 2 accumulated), 1.33 epochs"
    assert re.fullmatch(r"cpu, \d+ threads?, weights in float32", said["device"])
    assert said["folder"] == str(tmp_path / "run")
    assert "first row" in said
    assert "train.jsonl:1" in said["first row"]


def test_swapped_columns_are_seen(tmp_path):
    settings = small_run(tmp_path)
    path = tmp_path / "swapped.jsonl"
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    path.write_text("".join(json.dumps({"prompt": r["response"], "response": r["prompt"]}) + "\n" for r in rows))
    said = rows_of(block_of(settings, data={"train": f"jsonl:{path}"}))
    assert said["  prompt"] == "<user>It is 0 and on<assistant>"
    assert said["  response"] == "0+0=?<eos>"


def test_dropped_and_held_out_rows_are_told_with_their_reason(tmp_path):
    settings = small_run(tmp_path)
    block = block_of(settings, data={"validation": None, "validation_share": 0.3, "max_len": 33})
    text = plain(block)
    held_out, left = len(block.data.validation), len(block.data.train)
    assert 0 < held_out + left < 10
    assert f"{left} to train on, {held_out} held out (data.validation_share=0.3)" in text
    assert "none dropped" not in text
    assert re.search(r"train: \d rows; dropped \d longer than max_len=33", text)


def test_adapters(tmp_path):
    block = block_of(small_run(tmp_path), lora={"rank": 2})
    trained = sum(p.numel() for p in block.loaded.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in block.loaded.model.parameters())
    assert 0 < trained < total
    assert rows_of(block)["model"].endswith(f"{total:,} parameters, {trained:,} trained ({trained / total:.2%})")


def test_blocks_and_another_objective(tmp_path):
    block = block_of(
        small_run(tmp_path), block_size=8, decoding={"block": 8, "length": 16, "steps": 16},
        objective={"weighting": "unweighted"}, method="clipped", trainer={"bf16": True},
    )  # fmt: skip
    said = rows_of(block)["method"]
    assert "another objective than Standard's" in said
    assert "In blocks of 8 tokens, each with its own t." in said
    assert rows_of(block)["objective"].startswith(
        "unweighted: every masked token weighs the same; the mean over the rows"
    )
    assert "weights in float32, computed in bfloat16" in rows_of(block)["device"]


@pytest.mark.parametrize("emulated", [False, True])
def test_a_precision_that_the_cpu_emulates(tmp_path, monkeypatch, emulated):
    monkeypatch.setattr(start_block, "emulates", lambda dtype: emulated and dtype == torch.bfloat16)
    slow = "; this CPU has no instructions for bfloat16: several times slower than float32" if emulated else ""
    for number, (precision, ends) in enumerate(
        (
            ({"trainer": {"bf16": True}}, f"weights in float32, computed in bfloat16{slow}"),
            ({"dtype": "bfloat16"}, f"weights in bfloat16{slow}"),
            ({}, "weights in float32"),
        )
    ):
        assert rows_of(block_of(small_run(tmp_path / str(number)), **precision))["device"].endswith(ends)


def test_a_run_on_images(tmp_path):
    small = ["data.train_rows=4", "data.validation_rows=2", "data.test_rows=2", "batch=2", "steps=2"]
    block = block_of(load_recipe("sft-scenes", [*small, f"data.image.cache={tmp_path}", f"out={tmp_path / 'run'}"]))
    said = rows_of(block)
    assert "family mmada" in said["model"]
    assert "<|t2i|>" in said["  prompt"]
    assert "circle" in said["  prompt"] or "square" in said["  prompt"] or "triangle" in said["  prompt"]
    assert said["  response"] == f"[{block.data.train[0].response_length} image tokens]"
    assert said["  given"] == "<|eoi|>"


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(tmp_path, width):
    settings = small_run(tmp_path)
    path = tmp_path / "wide.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"{i} " + "w" * 200, "response": "問" * 150}) + "\n" for i in range(3))
    )
    block = block_of(settings, data={"train": f"jsonl:{path}"}, out=str(tmp_path / ("deep/" * 30)))
    for name, lines in (("plain", plain(block, width).splitlines()), ("colours", _coloured(block, width))):
        assert all(_columns(line) <= width for line in lines), name
        joined = re.sub(r"\s+", "", "".join(lines))
        assert "w" * 200 in joined
        assert "deep/" * 29 in joined
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", plain(block, width))


def _coloured(block: StartBlock, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    console.print(block)
    text = console.file.getvalue()
    assert "\x1b[" in text, "there are colours"
    return re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()


def _columns(line: str) -> int:
    return sum(2 if ord(c) > 0x2E80 else 1 for c in line)


def test_rows_that_are_read_as_they_come_are_not_counted(tmp_path):
    said = rows_of(replace(block_of(small_run(tmp_path)), rows=None))
    assert said["rows"].startswith("read as they come, 3 held out")
    assert said["steps"] == "4 of 4 rows each"


@pytest.mark.parametrize(
    ("write", "name"),
    [(write_llada, "llada"), (write_llada_moe, "llada-moe"), (write_dream, "dream"), (write_qwen2, "arm (qwen2)")],
    ids=["llada", "llada-moe", "dream", "arm"],
)
def test_a_model_s_family_is_that_of_its_key(tmp_path, write, name):
    folder = write(tmp_path)
    assert family_of(load_model(str(folder)).model) == name
    if " " not in name:
        assert family_of(load_model(str(folder), family=name).model) == name


def test_every_part_of_a_method_is_said_in_words():
    assert set(DOES) == {STANDARD, *PARTS}
    assert set(OBJECTIVES) == set(WEIGHTINGS)
    for name in DOES:
        sentence = in_words([name], unbiased=True)
        assert sentence == f"{DOES[name]}."
        assert "another objective" in in_words([name], unbiased=False)


EPOCHS = [{"steps": None, "epochs": 1.4}, {"steps": None, "epochs": 2, "batch": 3}, {}]


@pytest.mark.parametrize("change", EPOCHS, ids=str)
def test_the_steps_are_those_that_the_trainer_makes(tmp_path, change):
    settings = merged(small_run(tmp_path), change)
    record, _ = train(settings)
    assert record["steps"] == steps_of(TrainSettings.model_validate(settings), 10)
    assert record["steps"] == (settings["steps"] or math.ceil(settings["epochs"] * math.ceil(10 / settings["batch"])))


def test_a_run_tells_the_block_once_and_before_its_first_step(tmp_path):
    settings = small_run(tmp_path)
    _, said = train(settings, log_every=1)
    blocks = [place for place, text in enumerate(said) if "first row" in text]
    first_step = next(place for place, text in enumerate(said) if re.match(r" +1 ", text))
    assert len(blocks) == 1
    assert blocks[0] < first_step
    assert not any("none longer than" in text for text in said), "the block tells of the rows"


def test_a_resumed_run_says_how_many_steps_are_done(tmp_path, monkeypatch):
    settings = small_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda *_: {})
        train(settings)
    (tmp_path / "run" / "checkpoint-4").rename(tmp_path / "elsewhere")
    _, said = train(settings)
    assert any("4 of 4 rows each, 1.33 epochs; 2 are done" in text for text in said)


def test_a_quiet_run_tells_results_alone_and_a_terminal_gets_the_block_itself(tmp_path):
    settings, said, shown = TrainSettings.model_validate(small_run(tmp_path)), [], []
    run.train(settings, say=said.append, screen=QUIET)
    assert [text.split(" ")[0] for text in said ] == [
        "validation", "untuned", "difference", "wrote",
    ]  # fmt: skip
    again = settings.model_copy(update={"out": str(tmp_path / "again")})
    run.train(again, say=said.append, screen=Screen(lines=False, show=shown.append))
    assert [type(each) for each in shown] == [StartBlock]


def test_another_rank_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "is_main_process", lambda: False)
    monkeypatch.setattr(run.Screen, "tell", None)
    said = []
    run.train(TrainSettings.model_validate(small_run(tmp_path)), say=said.append)
    assert said == []


def test_many_epochs_are_a_number_as_people_write_it(tmp_path):
    assert rows_of(block_of(small_run(tmp_path), steps=30_000))["steps"] == "30,000 of 4 rows each, 10,000 epochs"

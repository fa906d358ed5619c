"""A run's folder typed wherever a command takes a model, and ``generate`` from and to files."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from stabledllm.cli import prompt_files as prompts
from stabledllm.config.settings import DataSettings
from stabledllm.errors import UserError
from stabledllm.evaluation import completing
from tests.cli.runner import assert_refused, in_process
from tests.fakes.runs import train_briefly, write_questions

LAB = [
    "rows=4", "rates=2", "masks=2", "steps=4", "forwards=4", "probe.rows=4", "probe.rates=4", "probe.masks=2",
    "probe.starts=2",
]  # fmt: skip
PROBE = ["ppots.rows=4", "ppots.rates=4", "ppots.masks=2", "ppots.starts=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LoRA run on rows of one's own, padded to 24, in ``run``; recipes without data that go on from it."""
    folder = tmp_path_factory.mktemp("runs")
    train = write_questions(folder / "own.jsonl", 24)
    data = {"train": train, "pad_response_to": 24, "system_prompt": "Add.", "validation_share": 0.2}
    decoding = {"length": 16, "steps": 8, "block": 8}
    train_briefly(folder / "run", data=data, decoding=decoding, lora={"rank": 2}, save_every=1)
    (folder / "more.yaml").write_text("model: run\nsteps: 1\nbatch: 4\nout: more\n")
    (folder / "many.yaml").write_text(
        "base: {model: run, steps: 1, batch: 4}\nmethods: [standard]\nseeds: [1]\nout: many\n"
    )
    return folder


@pytest.mark.parametrize(
    ("command", "written", "told"),
    [
        (["decompose", "--model", "run", "--methods", "standard", *LAB], "runs/decompose/decomposition.json", "data"),
        (["fit", "--model", "run", *PROBE], "runs/fit/p_of_t.json", "data"),
        (["eval", "--model", "run"], "runs/eval/eval.json", "data"),
        (["eval", "--model", "run/checkpoint-1", "--out", "eval-1"], "eval-1/eval.json", "data"),
        (["train", "more.yaml"], "more/run.json", "data"),
        (["experiment", "many.yaml", "--jobs", "1"], "many/results.json", "data"),
        (["merge", "run", "--out", "merged"], "merged/config.json", None),
    ],
    ids=lambda value: value[0] + ("" if len(value) < 4 else value[2][3:]) if isinstance(value, list) else "",
)
def test_every_command_takes_the_folder_of_a_run(folder, command, written, told):
    result = in_process(*command, cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (folder / written).is_file()
    if told:
        (line,) = (line for line in result.stdout.splitlines() if line.startswith("from run"))
        assert "padding 24" in line
        assert "data.system_prompt=Add." in line
        assert f"data jsonl:{folder / 'own.jsonl'}" in line
    if told and command[0] != "fit":
        assert re.search(r'"pad_response_to": 24\b', (folder / written).read_text())


def test_recommend_measures_on_the_rows_of_the_run(folder, monkeypatch):
    given = []

    def run(tree: dict, *_, **__) -> Path:
        given.append(tree)
        raise UserError("measured no further")

    monkeypatch.setattr("stabledllm.cli.decompose.run", run)
    assert_refused(in_process("recommend", "--model", "run", cwd=folder), "measured no further")
    assert given[0].get("data", {}) == {}, "nothing that would replace the run's"


def test_the_model_alone_brings_nothing_and_says_what_its_run_would(folder):
    result = in_process("generate", "What is 3 + 1?", "--model", "run/model", "--length", "8", cwd=folder)
    assert result.returncode == 0
    (note,) = (line for line in result.stderr.splitlines() if line.startswith("note:"))
    would = "decoding blocks of 8, data.system_prompt=Add."
    assert note == f"note: run/model is the model alone; run would bring {would}"


def test_a_run_is_asked_as_it_was_trained(folder, monkeypatch):
    shown = []

    def keep(loaded, conversations, options, *_, **__):
        shown.append((conversations, options.length, options.steps))
        return ["4"] * len(conversations)

    monkeypatch.setattr("stabledllm.evaluation.answering.complete", keep)
    result = in_process("generate", "What is 3 + 1?", "--model", "run", cwd=folder)
    assert result.stdout == "What is 3 + 1?\n4\n\n"
    assert result.stderr.startswith("from run: decoding 16 tokens in 8 steps, blocks of 8, data.system_prompt=Add.\n")
    system, user = {"role": "system", "content": "Add."}, {"role": "user", "content": "What is 3 + 1?"}
    assert shown == [([[system, user]], 16, 8)]


@dataclass
class Files:
    """A text file of four prompts, and the same as rows of JSON lines."""

    folder: Path
    text: str = "prompts.txt"
    rows: str = "prompts.jsonl"

    def lines(self, out: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / out).read_text().splitlines()]


@pytest.fixture
def files(tmp_path):
    prompts = [f"{i}+1=?" for i in range(4)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n\n")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"id": p, "prompt": p}) + "\n" for p in prompts))
    return Files(tmp_path)


SHORT = ["--length", "16", "--steps", "16", "--set", "temperature=0.9", "--set", "seed=3"]


def test_prompts_of_a_file_are_printed_or_written_whatever_the_batches(files):
    typed = in_process("generate", *[f"{i}+1=?" for i in range(4)], *SHORT, cwd=files.folder)
    printed = in_process("generate", "--file", files.text, *SHORT, "--batch", "3", cwd=files.folder)
    assert typed.returncode == printed.returncode == 0, printed.stderr
    assert printed.stdout == typed.stdout
    written = in_process("generate", "--file", files.rows, *SHORT, "--batch", "1", "--out", "a.jsonl", cwd=files.folder)
    assert written.returncode == 0, written.stderr
    assert "wrote 4 completions to a.jsonl" in written.stdout
    assert [line["prompt"] for line in files.lines("a.jsonl")] == [line["id"] for line in files.lines("a.jsonl")]
    told = "".join(f"{line['prompt']}\n{line['completion']}\n\n" for line in files.lines("a.jsonl"))
    assert told == typed.stdout
    assert files.lines("a.jsonl")[2]["origin"] == "prompts.jsonl:3"
    assert sorted(path.name for path in files.folder.iterdir()) == ["a.jsonl", "prompts.jsonl", "prompts.txt"]


def test_a_killed_command_continues_and_decodes_nothing_twice(files, monkeypatch):
    command = ["generate", "--file", files.text, *SHORT, "--batch", "1", "--out"]
    assert in_process(*command, "whole.jsonl", cwd=files.folder).returncode == 0
    complete, places = completing.complete, []

    def stopping(*arguments, **more):
        if more["first"] == 2 and 2 not in places:
            places.append(2)
            raise KeyboardInterrupt
        places.append(more["first"])
        return complete(*arguments, **more)

    monkeypatch.setattr(completing, "complete", stopping)
    killed = in_process(*command, "a.jsonl", cwd=files.folder)
    assert killed.returncode == 130
    assert not (files.folder / "a.jsonl").exists()
    other = in_process(*command, "a.jsonl", "--set", "temperature=0.5", cwd=files.folder)
    assert_refused(other, "decoding.temperature")
    again = in_process(*command, "a.jsonl", cwd=files.folder)
    assert again.returncode == 0, again.stderr
    assert places == [0, 1, 2, 2, 3]
    assert (files.folder / "a.jsonl").read_bytes() == (files.folder / "whole.jsonl").read_bytes()
    assert_refused(in_process(*command, "a.jsonl", cwd=files.folder), "expected a new file", "name another")
    assert_refused(in_process(*command, ".", cwd=files.folder), "expected a file to write, found a folder")


def test_a_prompt_that_is_the_name_of_a_file_is_refused_where_nobody_can_be_asked(files):
    result = in_process("generate", "What?", files.text, cwd=files.folder)
    assert_refused(result, "found the name of a file", "write --file prompts.txt")
    assert_refused(in_process("generate", cwd=files.folder), "expected at least one prompt, --file FILE")
    assert_refused(in_process("generate", "a", "--file", files.text, cwd=files.folder), "expected prompts or --file")
    assert_refused(in_process("generate", "--file", "none.txt", cwd=files.folder), "none.txt: expected a file")
    (files.folder / "mine" / "model").mkdir(parents=True)
    (files.folder / "mine" / "config.json").write_text("{}")
    assert_refused(in_process("generate", "mine", "What?", cwd=files.folder), "write --model mine")
    assert_refused(in_process("generate", "What?", "device=cpu", cwd=files.folder), "write --device NAME")
    for command in ("eval", "decompose", "fit"):
        assert_refused(in_process(command, "mine", cwd=files.folder), "a model is named by model=mine")


@pytest.mark.parametrize("is_meant", [True, False])
def test_a_person_at_a_terminal_is_asked_what_the_name_of_a_file_means(files, monkeypatch, is_meant):
    asked = []

    def confirm(text: str, **_) -> bool:
        asked.append(text)
        return is_meant

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(prompts.typer, "confirm", confirm)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.chdir(files.folder)
    read = prompts.read_prompts(["What?", files.text], None, DataSettings())
    assert asked == ["'prompts.txt' is a file. Read the prompts from it?"]
    of_file = [f"{i}+1=?" for i in range(4)] if is_meant else [files.text]
    assert [prompt.text for prompt in read] == ["What?", *of_file]
    assert len(prompts.read_prompts(["What is a file?", "x" * 5000, "\0"], None, DataSettings())) == 3


def test_captions_of_a_file_are_drawn(tmp_path):
    (tmp_path / "captions.csv").write_text("caption\na red circle\ntwo blue squares\n")
    command = ["generate", "--image", "--file", "captions.csv", "--steps", "1", "--out", "drawn"]
    result = in_process(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3, "one of each, and the sheet"


def test_prompts_without_a_user_turn_are_refused(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"text": "once"}\n')
    with pytest.raises(UserError, match="expected a prompt under messages"):
        prompts.read_prompts([], str(tmp_path / "p.jsonl"), DataSettings())

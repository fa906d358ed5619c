"""Every row of docs/data.md is read as the format beside it, and every command of the page runs."""

from __future__ import annotations

import gzip
import json
import re
import shlex

import pyarrow
import pytest
from pyarrow import parquet

from stabledllm.data.formats import BY_NAME, FORMATS, FormatOptions, examples_of
from stabledllm.data.rows import EncodingOptions, collate, encode_examples
from stabledllm.models.byte_tokenizer import ByteTokenizer
from tests.cli.runner import ROOT, in_process

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = re.findall(r"(?m)^\| `([\w-]+)` \| `(\{.*\})` \|$", PAGE)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line]
SMALL = {
    "train": ["steps=2", "eval_every=1", "save_every=1", "batch=2", "data.validation_rows=2", "data.test_rows=2"],
    "decompose": [
        "rows=4",
        "rates=2",
        "masks=2",
        "steps=4",
        "forwards=4",
        "probe.rows=4",
        "probe.rates=4",
        "probe.masks=2",
        "probe.starts=3",
        "data.train_rows=8",
    ],
    "pretrain/text": [
        "trainer.warmup_steps=0",
        "trainer.lr_scheduler_kwargs.num_decay_steps=0",
        "data.validation_share=0.3",
    ],
}


def test_every_format_has_a_row():
    assert {name for name, _ in ROWS} == set(FORMATS)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_is_read_as_the_page_says(name, row):
    asked = name if name in BY_NAME else None  # of no run on single answers
    form, examples = examples_of(json.loads(row), "data.md", FormatOptions(asked))
    assert form.name == name
    assert len(examples) == 1


def test_the_flagged_turn_is_not_trained():
    (row,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    _, examples = examples_of(json.loads(row), "data.md", FormatOptions())
    rows = encode_examples(examples, ByteTokenizer(), EncodingOptions()).rows
    batch = collate(rows, 0)
    trained = [ByteTokenizer().decode(batch["input_ids"][i][m].tolist()) for i, m in enumerate(batch["maskable"])]
    assert trained == ["5, sorry."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the page's commands name."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [(f"Add {i} and 2.", f"#### {i + 2}") for i in range(24)]
    (folder / "chats.jsonl").write_text(
        "".join(
            json.dumps({"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": reply}]}) + "\n"
            for ask, reply in pairs
        )
    )
    alpaca = [{"instruction": ask, "input": "", "output": reply} for ask, reply in pairs]
    parquet.write_table(pyarrow.Table.from_pylist(alpaca), folder / "alpaca.parquet")
    (folder / "foreign.csv").write_text("Q,A\n" + "".join(f"{ask},{reply}\n" for ask, reply in pairs))
    (folder / "folder").mkdir()
    (folder / "folder" / "train.json").write_text(json.dumps(alpaca[:16]))
    (folder / "folder" / "test.json").write_text(json.dumps(alpaca[16:]))
    documents = "".join(json.dumps({"text": f"{ask} {reply} " * 40}) + "\n" for ask, reply in pairs)
    (folder / "documents.jsonl.gz").write_bytes(gzip.compress(documents.encode()))
    (folder / "held_out.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} held out " * 40}) + "\n" for n in range(4))
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(folder, command):
    words = shlex.split(command)[1:]
    result = in_process(*words, *SMALL[words[0]], *SMALL.get(words[1], []), cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    assert re.search(r"read \d+ rows as \w+", result.stdout + result.stderr), "what was read is said"

"""Rows are the same from every container and place; broken files are refused in one sentence with file and row."""

from __future__ import annotations

import gzip
import json
import sys
import types
from datetime import datetime
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import load_bundle
from stabledllm.data.data_key import stored_files
from stabledllm.data.formats import FormatOptions
from stabledllm.data.kinds import kind_of
from stabledllm.data.reading import Files, Reading
from stabledllm.data.sources import load_examples, own_splits
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.runtime.failures import sentence

ROWS = [{"instruction": f"Add {i} and 2.", "input": "", "output": f"It is {i + 2}: ≈é\u2028."} for i in range(5)]


def as_lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv_of(rows) -> bytes:
    quoted = [[f'"{cell}"' for cell in (row["instruction"], row["input"], row["output"])] for row in rows]
    return "\n".join(map(",".join, [["instruction", "input", "output"], *quoted])).encode()


CONTENTS = {
    "rows.jsonl": as_lines(ROWS),
    "rows.NDJSON": as_lines(ROWS),
    "list.json": json.dumps(ROWS, indent=1).encode(),
    "data.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "lines.json": as_lines(ROWS),
    "one.json": as_lines(ROWS[:1]),
    "rows.jsonl.gz": gzip.compress(as_lines(ROWS[:3])) + gzip.compress(as_lines(ROWS[3:])),
    "list.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "rows.jsonl.zst": zstandard.compress(as_lines(ROWS[:3])) + zstandard.compress(as_lines(ROWS[3:])),
    "rows.csv": csv_of(ROWS),
    "marked.csv.gz": gzip.compress(b"\xef\xbb\xbf" + csv_of(ROWS)),
}


def load(path, notes=None, split="train", **settings):
    say = [] if notes is None else notes
    return load_examples(str(path), split=split, n=0, seed=0, settings=DataSettings(**settings), note=say.append)


def contents(examples) -> list[dict]:
    return [{key: value for key, value in e.items() if key != "origin"} for e in examples]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    path = tmp_path_factory.mktemp("wanted") / "rows.jsonl"
    path.write_bytes(as_lines(ROWS))
    return contents(load(path))


@pytest.mark.parametrize("name", CONTENTS)
def test_every_container_holds_the_same_rows(name, tmp_path, wanted):
    path, notes = tmp_path / name, []
    path.write_bytes(CONTENTS[name])
    examples = load(path, notes)
    n = 1 if name == "one.json" else 5
    assert contents(examples) == wanted[:n]
    assert notes == [f"read {n} row{'s' * (n > 1)} as alpaca from {path}"]
    assert [examples[i] for i in reversed(range(n))] == list(examples)[::-1], "in any order"
    lines = "jsonl" in name.lower() or name in ("rows.NDJSON", "lines.json", "one.json")
    assert examples[0]["origin"] == (f"{path}:1" if lines else f"{path} row 0")


def test_parquet_with_conversations_and_the_nulls_of_a_table(tmp_path):
    rows = [
        {"conversations": [{"from": "human", "value": "a", "weight": None}, {"from": "gpt", "value": "b", "weight": 1}],
         "system": None},
        {"conversations": [{"from": "human", "value": "c", "weight": None}, {"from": "gpt", "value": "d", "weight": 1}],
         "system": "s"},
    ]  # fmt: skip
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    examples = load(path)
    assert [[m["content"] for m in e["messages"]] for e in examples] == [["a", "b"], ["s", "c", "d"]]
    assert examples[1]["origin"] == f"{path} row 1"
    assert contents(load(f"sharegpt:{path}")) == contents(examples)


def test_json_lines_that_begin_with_a_key_data_are_no_list(tmp_path):
    (tmp_path / "lines.json").write_bytes(as_lines([ROWS[0] | {"data": [{"prompt": "a", "response": "b"}]}, ROWS[1]]))
    assert [e["messages"][0]["content"] for e in load(tmp_path / "lines.json")] == ["Add 0 and 2.", "Add 1 and 2."]


def test_a_long_cell_is_read(tmp_path):
    (tmp_path / "long.csv").write_text(f"prompt,response\na,{'b' * 200_000}\n")
    assert len(load(tmp_path / "long.csv")[0]["messages"][1]["content"]) == 200_000


def test_a_time_in_a_table_is_text(tmp_path):
    rows = [
        {"messages": [{"role": role, "content": "a", "at": datetime(2026, 1, 2)} for role in ("user", "assistant")]}
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [m["at"] for m in load(tmp_path / "rows.parquet")[0]["messages"]] == ["2026-01-02 00:00:00"] * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    (tmp_path / "list.json").write_text(json.dumps(ROWS))
    with pytest.raises(OSError, match="No space left") as caught:
        load(tmp_path / "list.json")
    assert sentence(caught.value, "run").startswith(f"{tmp_path}: expected room on the disk, found none")


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path, wanted):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "last.jsonl.gz").write_bytes(gzip.compress(as_lines(ROWS[3:])))
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:3]))
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.json").write_text("[]")
    notes: list[str] = []
    assert contents(load(tmp_path, notes)) == wanted
    assert notes == [f"read 5 rows as alpaca from {tmp_path} (2 files)"]


def test_a_folder_with_splits_is_never_read_as_one(tmp_path, wanted):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.jsonl").write_bytes(as_lines(ROWS[:4]))
    (tmp_path / "data" / "test-00000-of-00001.jsonl").write_bytes(as_lines(ROWS[4:]))
    assert own_splits(str(tmp_path)) == own_splits(f"alpaca:{tmp_path}") == ("train", "test")
    assert contents(load(tmp_path)) == wanted[:4]
    notes: list[str] = []
    assert contents(load(tmp_path, notes, split="test")) == wanted[4:]
    assert notes == [f"read 1 row as alpaca from {tmp_path} (test)"]
    with pytest.raises(UserError, match="expected a split of train, test, found 'validation'"):
        load(tmp_path, split="validation")
    (tmp_path / "data" / "more.jsonl").write_bytes(as_lines(ROWS))
    with pytest.raises(UserError, match=r"more\.jsonl: expected every file of a folder with splits to be named after"):
        load(tmp_path)


def test_a_lone_train_file_is_no_folder_of_splits(tmp_path, wanted):
    (tmp_path / "train.jsonl").write_bytes(as_lines(ROWS))
    assert own_splits(str(tmp_path)) == ()
    assert contents(load(tmp_path)) == wanted


def test_a_reading_streams_and_names_its_files(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_lines(ROWS) + b"broken\n")
    reading = Reading(Files(path), FormatOptions())
    first = next(iter(reading))
    assert (str(first[0]), first[0].row, first[1]["origin"]) == (f"{path}:1", 1, f"{path}:1")
    assert [(f.path, f.size) for f in reading.files()] == [(str(path), path.stat().st_size)]
    with pytest.raises(UserError, match=r"rows\.jsonl:6: expected a JSON object, found broken JSON"):
        list(reading)


def test_documents_for_pretraining_come_from_every_container(tmp_path):
    path = tmp_path / "docs.jsonl.gz"
    path.write_bytes(gzip.compress(as_lines([{"text": "one", "title": "t"}, {"text": "two", "title": "u"}])))
    documents = load_examples(f"text:{path}", split="train", n=0, seed=0, text_fields=["title", "text"])
    assert [d["text"] for d in documents] == ["t\none", "u\ntwo"]


def test_the_data_of_a_run_are_the_same_from_every_container(tmp_path):
    rows = [{"question": f"What is {i} times 7?", "answer": f"#### {7 * i}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_bytes(as_lines(rows))
    (tmp_path / "rows.jsonl.zst").write_bytes(zstandard.compress(as_lines(rows)))
    plain, packed = (
        load_bundle(DataSettings(train=str(tmp_path / name)), ByteTokenizer())
        for name in ("rows.jsonl", "rows.jsonl.zst")
    )
    assert plain.digests == packed.digests
    assert [r.input_ids for r in plain.train] == [r.input_ids for r in packed.train]
    assert any(note.startswith("read 40 rows as question-answer from ") for note in packed.notes)


GZ, ZST = gzip.compress(as_lines(ROWS * 50)), zstandard.compress(as_lines(ROWS * 50))


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


# file: (its content, what is said)
BROKEN = {
    "short.jsonl.gz": (GZ[:-30], "expected a whole .gz file, found a broken one (Compressed file ended"),
    "flipped.jsonl.gz": (flipped(GZ, len(GZ) - 6), "expected a whole .gz file, found a broken one (CRC"),
    "plain.jsonl.gz": (as_lines(ROWS), "expected a whole .gz file, found a broken one (Not a gzipped file"),
    "short.jsonl.zst": (ZST[:-7], "expected a whole .zst file, found a broken one (it ends before"),
    "plain.jsonl.zst": (as_lines(ROWS), "expected a whole .zst file, found a broken one"),
    "no.parquet": (b"PAR1 and more", "expected a whole Parquet file, found a broken one"),
    "latin.jsonl": ('{"prompt": "é", "response": "b"}'.encode("latin-1"), "expected UTF-8 text"),
    "latin.csv": ("prompt,response\né,b".encode("latin-1"), "expected UTF-8 text"),
    "wide.json": ("[]".encode("utf-16"), "found UTF-16; save the file as UTF-8"),
    "empty.jsonl": (b"", "expected at least one row, found an empty file"),
    "empty.json": (b"", "expected at least one row, found an empty file"),
    "none.json": (b" [ ] ", "expected at least one row, found an empty file"),
    "empty.jsonl.gz": (gzip.compress(b""), "expected at least one row, found an empty file"),
    "header.csv": (b"prompt,response\n", "expected at least one row, found an empty file"),
    "twice.json": (b'[{"prompt": "a", "response": "b"}, {"a": 1, "a": 2}]', "row 1: expected every key once"),
    "twice.csv": (b"prompt,prompt\na,b\n", "expected every column once, found 'prompt' twice"),
    "ragged.csv": (b"prompt,response\na,b\nc\n", "row 1: expected 2 cells as in the header, found 1"),
    "quote.csv": (b'prompt,response\n"a,b\n', "expected CSV, found a broken line"),
    "object.json": (b'{\n "prompt": "a"\n}', "found one object with keys ['prompt']"),
    "text.json": (b"hello", "found a file that begins with 'hello'"),
    "cut.json": (b'[{"prompt": "a", "response": "b"}, {"prom', "row 1: expected a JSON object, found broken JSON"),
    "later.json": (
        b'[{"prompt": "a", "response": "b"},\n{"prom',
        "found broken JSON (Unterminated string starting at, line 2)",
    ),
    "deep.json": (b'[{"prompt": ' + b"[" * 200_000, "row 0: expected a JSON object, found one nested too deeply"),
    "long.json": (b'[{"prompt": ' + b"1" * 5000 + b"}]", "row 0: expected a JSON object, found a number too long"),
    "nan.json": (b'[{"prompt": NaN}]', "row 0: expected finite numbers, found nan"),
    "open.json": (b'[{"prompt": "a", "response": "b"}', "row 0: expected ',' or ']' after it, found the end of the"),
    "more.json": (b'[{"prompt": "a", "response": "b"}] x', "expected nothing after the list, found 'x'"),
    "numbers.json": (b"[1, 2]", "row 0: expected a JSON object, found int"),
    "row.json": (b'[{"prompt": "a", "response": "b"}, {"prompt": "a"}]', "row 1: expected text beside 'prompt'"),
    "rows.xlsx": (b"x", "expected a file that ends in .jsonl, .ndjson, .json, .csv, .parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_sentence_with_its_name(name, tmp_path):
    content, says = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert says in message
    assert "\n" not in message


def test_parquet_that_is_cut_short(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"rows\.parquet: expected a whole Parquet file, found a broken one"):
        load(path)


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "a.parquet"), ("zstandard", "a.jsonl.zst")])
def test_a_missing_package_is_one_sentence(package, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{name}: expected the package '{package}'.*stabledllm\[formats\]"):
        load(tmp_path / name)


def test_paths_and_kinds(tmp_path):
    assert kind_of("my/data.parquet") == ("file", "my/data.parquet")
    assert kind_of("sharegpt:x.json") == ("sharegpt", "x.json")
    for spec, says in (
        ("shargpt:x.json", "unknown kind 'shargpt' .did you mean 'sharegpt'"),
        ("nothing", "or the path of a file or folder, found the unknown kind 'nothing'"),
        ("hub:", "expected hub:OWNER/NAME, found no name"),
        ("alpaca:", "expected alpaca:PATH with a local file, found no path"),
        ("here/nothing.jsonl", "expected a file or a folder, found nothing"),
    ):
        with pytest.raises(UserError, match=says):
            load(spec)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A ``datasets`` with one data set, which records how it is asked."""
    calls, fake = [], types.ModuleType("datasets")

    class Rows(list):
        cache_files = [{"filename": str(tmp_path / "part.arrow")}]

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if kwargs["split"] != "train_sft":
            raise ValueError(f"Unknown split {kwargs['split']!r}. Should be one of ['train_sft'].")
        return Rows([{"Q": "q", "A": f"a{i}", "note": None} for i in range(3)])

    (tmp_path / "part.arrow").write_bytes(b"12345")
    fake.load_dataset, fake.calls = load_dataset, calls
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


def test_a_hub_data_set_with_split_subset_and_columns(hub):
    columns, notes = {"question": "Q", "answer": "A"}, []
    examples = load_examples(
        "hub:me/set", split="train", n=0, seed=0, note=notes.append,
        settings=DataSettings(split="train_sft", subset="en", columns=columns),
    )  # fmt: skip
    assert [e["messages"][1]["content"] for e in examples] == ["a0", "a1", "a2"]
    assert examples[2]["origin"] == "me/set train_sft row 2"
    assert notes == ["read 3 rows as question-answer from me/set train_sft"]
    assert hub.calls[0] == (("me/set",), {"split": "train_sft", "name": "en"})
    (file,) = stored_files("hub:me/set", "train", DataSettings(split="train_sft"))
    assert file.name == "part.arrow", "by whose content tokenised rows are known"
    named = load_examples("hub:me/set:train_sft", split="test", n=0, seed=0, settings=DataSettings(columns=columns))
    assert named == examples


def test_a_hub_that_cannot_answer_is_one_sentence(hub, monkeypatch):
    with pytest.raises(UserError, match=r"its split 'train' \(data\.split\).*HF_HUB_OFFLINE=0.*one of \['train_sft'\]"):
        load("hub:me/set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"data 'hub:me/set': expected the package 'datasets'.*stabledllm\[hub\]"):
        load("hub:me/set")

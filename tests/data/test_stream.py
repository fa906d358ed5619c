"""Streamed rows: those in memory, in an order of the seed and the files alone, from any place on, never far ahead."""

from __future__ import annotations

import gzip
import json
import sys
import types
from itertools import islice

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from stabledllm.data import stream as stream_module
from stabledllm.data import worker_pool
from stabledllm.data.bundle import load_bundle, load_rows
from stabledllm.data.containers import rows_in
from stabledllm.data.stream import Place
from stabledllm.data.stream_files import StreamFiles, stream_files
from stabledllm.data.text import pack_documents, packing_order
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.noise.streams import Key
from tests.checks.statistics import assert_mean
from tests.fakes.streams import answers, documents, settings_of, stream_of, write_folder, write_lines

TOKENIZER = ByteTokenizer()


def taken(stream, rows: int, seed: int = 0, start: Place | None = None) -> list:
    reader = stream.read(seed, start)
    found = list(islice(reader, rows))
    reader.close()
    return found


def numbers(rows) -> list[int]:
    return [
        int(TOKENIZER.decode(row.input_ids[: row.prompt_length]).split("What is ")[1].split("?")[0]) for row in rows
    ]


@pytest.mark.long
def test_without_a_buffer_the_rows_are_those_in_memory(tmp_path):
    folder = write_folder(tmp_path / "data")
    settings = settings_of(folder, shuffle_buffer=1)
    rows, _ = load_rows(str(folder), TOKENIZER, settings.model_copy(update={"streaming": False}), "train", None)
    assert taken(stream_of(folder, shuffle_buffer=1), 60) == list(rows)
    assert taken(stream_of(folder, shuffle_buffer=1), 150) == [*rows, *rows, *rows[:30]], "pass after pass"


def test_without_a_buffer_documents_are_packed_as_in_memory(tmp_path):
    """In memory they are shuffled first: the file of the stream has them in that order."""
    given = [record | {"origin": ""} for record in documents(0, 50)]
    rows = pack_documents(given, TOKENIZER, length=32, seed=3).rows
    ordered = [documents(0, 50)[place] for place in packing_order(given, 3)]
    path = write_lines(tmp_path / "a.jsonl", ordered)
    for parts in (64, 7):
        stream = stream_of(f"text:{path}", shuffle_buffer=1, max_len=32, short_share=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream_module, "PART", parts)
            assert taken(stream, len(rows)) == list(rows), "the last row of a pass holds what is left"
            again = taken(stream, 2 * len(rows))[len(rows) :]
        assert [row.input_ids for row in again] == [row.input_ids for row in rows]


def test_every_pass_has_all_rows_in_an_order_of_its_own(tmp_path):
    stream = stream_of(write_folder(tmp_path / "data"), shuffle_buffer=20)
    found = numbers(taken(stream, 180))
    passes = [found[:60], found[60:120], found[120:]]
    assert all(sorted(one) == list(range(60)) for one in passes)
    assert len({tuple(one) for one in [*passes, range(60)]}) == 4
    firsts = [{number // 15 for number in one[:20]} for one in passes]
    assert all(len(files) == 2 for files in firsts), "a buffer holds rows of neighbours alone"
    assert len({frozenset(files) for files in firsts}) > 1, "the order of the files is drawn as well"
    assert numbers(taken(stream, 180)) == found
    assert numbers(taken(stream, 180, seed=1)) != found


def test_all_orders_of_a_buffer_are_equally_likely():
    orders = [tuple(stream_module._permutation(Key(seed, 0), 3, stream_module._ROWS)) for seed in range(1200)]
    for order in [(0, 1, 2), (2, 1, 0), (1, 2, 0)]:
        assert_mean(np.array([float(one == order) for one in orders]), 1 / 6)


def test_a_copy_elsewhere_is_the_same_stream(tmp_path):
    here, there = write_folder(tmp_path / "here"), write_folder(tmp_path / "there")
    assert stream_files(settings_of(here)).digest() == stream_files(settings_of(there)).digest()
    assert numbers(taken(stream_of(here), 60)) == numbers(taken(stream_of(there), 60))
    write_lines(there / "part-0.jsonl", answers(0, 14))
    assert stream_files(settings_of(here)).digest() != stream_files(settings_of(there)).digest()


@pytest.mark.parametrize("make", [answers, documents], ids=["answers", "documents"])
def test_the_rows_from_any_place_on_are_the_same(tmp_path, make):
    """Without reading what lies before it: the files before a place are gone."""
    folder = write_folder(tmp_path / "data", make)
    stream = stream_of(folder, shuffle_buffer=13, max_len=40, short_share=0.3)
    reader = stream.read(7)
    rows = list(islice(reader, 150))
    places = list(reader.places)
    assert len(places) > 8
    assert len({place.epoch for place in places}) > 1
    for place in places:
        follow = rows[place.row : place.row + 25]
        assert taken(stream, len(follow), 7, place) == follow, place
    place = next(place for place in places if place.epoch == 0 and place.file == 2)
    first = stream_module.ExampleStream(stream.files, stream.settings)._file_order(7, 0)[0]
    stream.files.paths[first].unlink()
    assert taken(stream, 10, 7, place) == rows[place.row : place.row + 10]


@pytest.mark.parametrize("make", [answers, documents], ids=["answers", "documents"])
def test_no_more_is_read_than_the_buffer_holds(tmp_path, monkeypatch, make):
    """A source that fails when it is read further ahead, on data without end."""
    folder, allowed, read = write_folder(tmp_path / "data", make, files=1), [10], [0]

    def endless(self, file, skip=0):
        record = make(0, 1)[0]
        while True:
            read[0] += 1
            assert read[0] <= allowed[0], f"row {read[0]} was read before the {allowed[0]} before it were used"
            yield f"row {read[0]}", record

    monkeypatch.setattr(StreamFiles, "rows", endless)
    reader = stream_of(folder, shuffle_buffer=10, max_len=64, short_share=0).read(0)
    examples_of_a_row = 64 / len([*TOKENIZER.encode(make(0, 1)[0].get("text", " " * 63)), 0])
    for row in range(300):
        allowed[0] = 10 * (int((row + 1) * examples_of_a_row) // 10 + 1)
        next(reader)
        assert len(reader.places) <= allowed[0]


def test_long_texts_fill_a_buffer_before_it_has_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "_MOST_CHARACTERS", 100)
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x" * 49}] * 30)
    reader = stream_of(f"text:{path}").read(0)
    list(islice(reader, 10))
    assert {b.read - a.read for a, b in zip(list(reader.places), list(reader.places)[1:], strict=False)} == {3}
    for content, size in (({"input_ids": [1, 2]}, 16), ({"messages": [{"content": "ab"}, {"content": "c"}]}, 3)):
        assert stream_module._characters(content) == size


@pytest.mark.slow
@pytest.mark.processes
def test_several_processes_give_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_pool, "START", "fork")  # test_row_cache.py has processes that start afresh
    folder = write_folder(tmp_path / "data", documents, files=3, rows=60)
    more = {"shuffle_buffer": 50, "max_len": 40, "short_share": 0.2}
    alone, together = stream_of(folder, **more), stream_of(folder, workers=2, **more)
    assert taken(together, 300) == taken(alone, 300)


FILES = ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.jsonl.zst"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_on_from_any_row(tmp_path, name):
    records, path = answers(0, 23), tmp_path / name
    lines = "\n\n".join(json.dumps(record) for record in records)
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=5)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".zst"):
        zstandard = pytest.importorskip("zstandard")
        path.write_bytes(zstandard.compress(lines.encode()))
    elif name.endswith(".csv"):
        path.write_text("prompt,response\n" + "".join(f"{r['prompt']},{r['response']}\n" for r in records))
    else:
        path.write_text(lines if name.endswith("jsonl") else json.dumps(records))
    whole = [(str(origin), record) for origin, record in rows_in(path)]
    assert [record for _, record in whole] == records
    for skip in (0, 1, 5, 7, 22, 23):
        assert [(str(origin), record) for origin, record in rows_in(path, skip=skip)] == whole[skip:]


def test_rows_like_a_validation_or_test_row_are_left_out(tmp_path):
    folder = write_folder(tmp_path / "data")
    dialogue = [
        {"role": role, "content": content}
        for role, content in [("user", "Hi"), ("assistant", "Yes"), ("user", "Sure?"), ("assistant", "3")]
    ]
    write_lines(folder / "more.jsonl", [{"messages": dialogue}])
    held = {"validation": [*answers(2, 3), {"prompt": "hi!", "response": "Hm"}], "test": answers(30, 1)}
    for name, records in held.items():
        write_lines(tmp_path / f"{name}.jsonl", [json.loads(json.dumps(r).replace("What", "WHAT")) for r in records])
    more = {name: str(tmp_path / f"{name}.jsonl") for name in ("validation", "test")}
    said: list[str] = []
    data = load_bundle(settings_of(folder, every_turn=True, **more), TOKENIZER, said.append)
    reader = data.train.read(0)
    found = [TOKENIZER.decode(row.input_ids) for row in islice(reader, 56)]
    assert not [text for text in found for i in (2, 3, 4, 30) if f"What is {i}?" in text]
    assert not [text for text in found if "Hi" in text], "no turn of a dialogue of which one is held out"
    assert reader.counted() == "train: 56 rows were read in 1 pass; dropped 6 like a validation or test row"
    assert any("streamed from" in line and "(5 files" in line and "nothing is stored" in line for line in said)
    assert set(data.digests) == {"train", "validation", "test"}


def test_rows_that_are_too_long_are_told_and_counted(tmp_path):
    records = [*answers(0, 9), {"prompt": "Long?", "response": "so " * 50}]
    stream = stream_of(write_lines(tmp_path / "a.jsonl", records), shuffle_buffer=1)
    said: list[str] = []
    object.__setattr__(stream, "say", said.append)
    reader = stream.read(0)
    list(islice(reader, 18))
    assert said[0] == f"train: rows longer than max_len=64 are dropped; the first is {tmp_path / 'a.jsonl'}:10"
    assert said[1] == "train: all files are read; pass 2 begins"
    assert reader.counted() == "train: 18 rows were read in 2 passes; dropped 2 longer than max_len=64"


def test_text_files_are_a_document_each(tmp_path):
    for number in range(6):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number}.txt").write_text(f"text {number}")
    stream = stream_of(f"text:{tmp_path / 'texts'}", max_len=7, short_share=0)
    found = [TOKENIZER.decode(row.input_ids[:6]) for row in taken(stream, 6)]
    assert sorted(found) == [f"text {number}" for number in range(6)]
    assert stream_of(f"text:{tmp_path / 'texts' / '0.txt'}").files.paths == [tmp_path / "texts" / "0.txt"]


def test_a_folder_with_splits_is_streamed_from_its_training_files(tmp_path):
    folder = tmp_path / "data"
    write_lines(folder / "train-0.jsonl", answers(0, 5))
    write_lines(folder / "validation-0.jsonl", answers(5, 5))
    data = load_bundle(settings_of(folder), TOKENIZER)
    assert sorted(numbers(taken(data.train, 5))) == list(range(5))
    assert sorted(numbers(data.validation)) == list(range(5, 10))


def test_a_share_of_the_rows_of_documents_is_short():
    length, share = 16, 0.25
    length_of = stream_module.short_lengths(3, length, share)
    lengths = [length_of(row) for row in range(8000)]
    assert_mean(np.array([float(one == length) for one in lengths]), 1 - share + share / length)
    assert_mean(np.array([float(one) for one in lengths if one < length]), length / 2)
    assert [length_of(row) for row in (7999, 5, 2048)] == [lengths[row] for row in (7999, 5, 2048)]


def test_measurements_take_the_first_rows(tmp_path):
    folder = write_folder(tmp_path / "data", files=8, rows=200)
    rows, note = load_rows(str(folder), TOKENIZER, settings_of(folder, shuffle_buffer=700), "train", None, wanted=600)
    assert len(rows) == 600
    assert (
        note
        == f"train: read 700 rows as prompt-response from {folder} (8 files), of which the first 600 rows are taken"
    )
    few, note = load_rows(str(folder), TOKENIZER, settings_of(folder), "train", None, wanted=20)
    assert len(few) == 512, "measurements draw their rows from more than they need"
    assert numbers(few) != sorted(numbers(few))
    small = write_folder(tmp_path / "small")
    assert len(load_rows(str(small), TOKENIZER, settings_of(small), "train", None)[0]) == 60


class Streamed(list):
    """What ``datasets`` gives under ``streaming=True``."""

    def skip(self, rows: int):
        return Streamed(self[rows:])


def test_a_data_set_of_the_hub_is_streamed_through_its_library(monkeypatch):
    asked, fake = [], types.ModuleType("datasets")

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return Streamed(answers(0, 12))

    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    stream = stream_of("hub:me/set", split="train_sft", subset="en", shuffle_buffer=5)
    assert not asked, "nothing is read before the first row is wanted"
    reader = stream.read(0)
    rows = list(islice(reader, 20))
    assert sorted(numbers(rows[:12])) == list(range(12))
    assert asked == [(("me/set",), {"split": "train_sft", "name": "en", "streaming": True})] * 2
    place = list(reader.places)[2]
    assert place.read == 10
    assert taken(stream, 10, 0, place) == rows[10:]
    assert "hub:me/set train_sft" in stream.told()
    other = stream_files(settings_of("hub:me/set:other")).digest()
    assert other != stream.files.digest()


def test_a_hub_that_fails_on_the_way_is_one_sentence(monkeypatch):
    def rows():
        yield from answers(0, 3)
        raise ConnectionError("reset by peer.")

    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda *args, **kwargs: rows()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    reader = stream_of("hub:me/set", shuffle_buffer=3).read(0)
    assert len(list(islice(reader, 3))) == 3
    with pytest.raises(UserError, match=r"me/set train row 3: expected a hub that goes on .* \(reset by peer\)"):
        next(reader)


REFUSED = {
    "a broken line": ('{"text": "a"}\n{"text": "b"\n', r"a\.jsonl:2: expected a JSON object, found broken JSON"),
    "an answer among documents": (
        '{"text": "a"}\n{"prompt": "b", "response": "c"}\n',
        r"a\.jsonl:2: expected a row as text, like those before it",
    ),
    "an empty text": ('{"text": " "}\n', r"a\.jsonl:1: expected a non-empty 'text', found an empty one"),
    "an empty file": ("", r"a\.jsonl: expected at least one row, found an empty file"),
    "all too long": (
        json.dumps({"prompt": "a", "response": "b" * 80}) + "\n",
        r"expected at least one row of at most max_len=64 tokens that is in no other split, found none in all files",
    ),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_rows_are_refused_by_file_and_line(tmp_path, content, words):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=words):
        taken(stream_of(tmp_path / "a.jsonl"), 5)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    folder = write_folder(tmp_path / "data", files=2)
    reader = stream_of(folder, shuffle_buffer=5).read(0)
    next(reader)
    for path in folder.iterdir():
        path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match=r"part-\d\.jsonl: expected a file that stays as it is while it is in use"):
        list(islice(reader, 40))


def test_nothing_there_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for spec, words in (
        (tmp_path / "empty", "expected files that end in"),
        (f"text:{tmp_path / 'no.txt'}", "expected a file or a folder, found nothing"),
        (tmp_path / "no.jsonl", "expected a file or a folder, found nothing"),
    ):
        with pytest.raises(UserError, match=words):
            stream_of(spec)


def test_of_a_whole_pass_no_row_is_counted_twice(tmp_path):
    _, told = stream_of(write_folder(tmp_path / "data"), shuffle_buffer=8).first_told(100)
    assert told.startswith("train: read 60 rows as ")
    assert told.endswith("of which the first 60 rows are taken")


def test_every_buffer_has_an_order_of_its_own(tmp_path):
    found = numbers(taken(stream_of(write_folder(tmp_path / "data", files=1), shuffle_buffer=5), 30))
    orders = [tuple(number % 5 for number in found[start : start + 5]) for start in range(0, 30, 5)]
    assert len(set(orders)) > 3


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", answers(0, 15))
    reader = stream_of(path, shuffle_buffer=5).read(0)
    next(reader)
    with path.open("a") as file:
        file.write(json.dumps(answers(15, 1)[0]) + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl: expected a file that stays as it is while it is in use"):
        list(islice(reader, 15))


@pytest.mark.parametrize("place", [0, 9_000], ids=["beginning", "end"])
def test_the_digest_is_of_both_ends_of_a_file(tmp_path, place):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 9_001)
    before = stream_files(settings_of(path)).digest()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"y")
    assert stream_files(settings_of(path)).digest() != before


def test_the_rest_of_a_pass_may_give_no_row(tmp_path):
    """A run that goes on behind the last row that fits refuses nothing: rows came before."""
    long = {"prompt": "Long?", "response": "so " * 50}
    path = write_lines(tmp_path / "a.jsonl", [*answers(0, 5), *[long] * 5])
    stream = stream_of(path, shuffle_buffer=5)
    place = next(p for p in _places(stream, 6) if p.read == 5)
    assert sorted(numbers(taken(stream, 5, 0, place))) == list(range(5))


def _places(stream, rows: int) -> list[Place]:
    reader = stream.read(0)
    list(islice(reader, rows))
    return list(reader.places)

"""GSM8K: the real files where they are at hand, folders, splits, annotations, and the hub."""

import sys
import types

import pytest

from stabledllm.data.rows import EncodingOptions, encode_examples
from stabledllm.data.sources import load_examples, own_splits
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.tasks import gsm8k
from stabledllm.tasks.scoring import parse_answer, score_number
from stabledllm.tasks.task import TaskOptions
from tests.fakes.tasks import gsm8k_folder, gsm8k_row, real_gsm8k, write


@pytest.fixture(scope="module")
def test_file():
    return real_gsm8k("test")


def test_every_row_loads_and_every_gold_answer_scores_itself(test_file):
    rows = gsm8k.TASK.load(str(test_file), "test", TaskOptions())
    assert len(rows) == 1319
    for row in rows:
        assert score_number(row["gold"], row["gold"]).correct is True, row["origin"]
    assert any("," in row["gold"].rpartition("####")[2] for row in rows)
    assert {"," in (parse_answer(row["gold"]) or ",") for row in rows} == {False}


def test_encodes_whole(test_file):
    examples = load_examples(f"gsm8k:{test_file}", split="test", n=0, seed=0)[:100]
    encoded = encode_examples(examples, ByteTokenizer(), EncodingOptions(max_len=700))
    assert len(encoded.rows) + len(encoded.dropped) == 100
    assert all(len(row.delimiter) == 4 for row in encoded.rows)


def test_a_folder_has_the_data_sets_own_splits(tmp_path):
    folder = gsm8k_folder(tmp_path)
    assert own_splits(f"gsm8k:{folder}") == own_splits("gsm8k") == ("train", "test")
    assert own_splits(f"gsm8k:{folder}/test.jsonl") == ()
    counts = {s: len(load_examples(f"gsm8k:{folder}", split=s, n=0, seed=0)) for s in ("train", "test")}
    assert counts == {"train": 40, "test": 10}
    with pytest.raises(UserError, match="expected a split of train, test, found 'validation'"):
        load_examples(f"gsm8k:{folder}", split="validation", n=0, seed=0)


@pytest.mark.parametrize(("annotations", "line"), [("keep", "7+2=<<7+2=9>>9"), ("remove", "7+2=9")])
def test_annotations(annotations, line, tmp_path):
    path = write(tmp_path / "rows.jsonl", [gsm8k_row(7)])
    options = TaskOptions(annotations=annotations)
    (row,) = load_examples(f"gsm8k:{path}", split="train", n=0, seed=0, options=options)
    assert row["messages"][-1]["content"] == f"{line}\n#### 9"
    assert row["gold"] == gsm8k_row(7)["answer"]


def test_no_annotation_is_left_in_the_real_answers():
    options = TaskOptions(annotations="remove")
    rows = gsm8k.TASK.load(str(real_gsm8k("train")), "train", options)
    assert sum("<<" in row["gold"] for row in rows) > 7000
    assert not any("<<" in row["messages"][-1]["content"] for row in rows)


@pytest.fixture
def hub(monkeypatch):
    """A ``datasets`` that records how it is called."""
    calls = []
    fake = types.ModuleType("datasets")

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if fake.offline:
            raise ConnectionError("Couldn't reach the hub\n(offline mode is enabled)")
        return [gsm8k_row(i) for i in range(3)]

    fake.load_dataset, fake.offline, fake.calls = load_dataset, False, calls
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


def test_the_hubs_rows_are_those_of_a_file(hub, tmp_path):
    found = load_examples("gsm8k", split="test", n=0, seed=0)
    assert hub.calls == [(("openai/gsm8k",), {"name": "main", "split": "test"})]
    folder = gsm8k_folder(tmp_path, test=[gsm8k_row(i) for i in range(3)])
    local = load_examples(f"gsm8k:{folder}", split="test", n=0, seed=0)
    assert [r | {"origin": ""} for r in found] == [r | {"origin": ""} for r in local]
    assert found[2]["origin"] == "openai/gsm8k test row 2"


def test_offline_is_one_sentence(hub):
    hub.offline = True
    with pytest.raises(
        UserError, match=r"expected gsm8k:PATH .*HF_HUB_OFFLINE=0.*\(Couldn't reach the hub \(off"
    ) as caught:
        load_examples("gsm8k", split="test", n=0, seed=0)
    assert "\n" not in str(caught.value)


def test_without_datasets_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"expected gsm8k:PATH .*pip install 'stabledllm\[hub\]'"):
        load_examples("gsm8k", split="test", n=0, seed=0)

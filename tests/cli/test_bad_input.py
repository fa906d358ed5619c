"""Bad input: one sentence that names the file, row or key, exit code 2, nothing half-written."""

from __future__ import annotations

import json

import pytest

from tests.cli.runner import assert_refused, stabledllm
from tests.cli.runner import in_process as call

GOOD = {"prompt": "1+1=?", "response": "#### 2"}


@pytest.fixture
def data(tmp_path):
    def write(*lines) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n" if lines else "")
        return f"jsonl:{path}"

    return write


def decompose(tmp_path, spec: str, *more: str):
    return call("decompose", "--data", spec, "--out", str(tmp_path / "out"), *more, cwd=tmp_path)


def refused(tmp_path, result, *words):
    assert_refused(result, *words)
    assert not (tmp_path / "out").exists(), "nothing half-written"


@pytest.mark.processes
def test_a_real_process_exits_with_2_and_one_sentence(tmp_path):
    assert_refused(stabledllm("decompose", "--data", "gsm8k:nowhere.jsonl", cwd=tmp_path), "nowhere.jsonl")


def test_missing_file(tmp_path):
    refused(
        tmp_path,
        decompose(tmp_path, "gsm8k:nowhere.jsonl"),
        "nowhere.jsonl",
        "expected a file or folder",
    )


def test_empty_file(tmp_path, data):
    refused(tmp_path, decompose(tmp_path, data()), "rows.jsonl", "empty file")


def test_broken_line(tmp_path, data):
    refused(tmp_path, decompose(tmp_path, data(GOOD, '{"prompt": ')), "rows.jsonl:2", "broken JSON")


def test_empty_response(tmp_path, data):
    bad = {"prompt": "x", "response": ""}
    refused(tmp_path, decompose(tmp_path, data(GOOD, GOOD, bad)), "rows.jsonl:3", "'response'")


def test_long_row_refused_or_dropped_with_a_summary(tmp_path, data):
    long = {"prompt": "1+1=?", "response": "#### " + "2" * 80}
    spec = data(GOOD, long, *({"prompt": f"{i}+1=?", "response": f"#### {i + 1}"} for i in range(6)))
    refused(
        tmp_path, decompose(tmp_path, spec, "data.max_len=40", "data.over_length=refuse"), "rows.jsonl:2", "max_len=40"
    )
    small = ["rows=4", "rates=2", "masks=2", "steps=4", "probe.rows=4", "probe.rates=4", "probe.masks=2"]
    result = decompose(tmp_path, spec, "data.max_len=40", "--methods", "standard,mirror", *small)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "dropped 1 longer than max_len=40" in result.stdout
    assert "rows.jsonl:2" in result.stdout
    assert json.loads((tmp_path / "out" / "decomposition.json").read_text())["notes"][0].count("dropped 1")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=ppotz", ["unknown part 'ppotz'", "did you mean 'ppots'"]),
        ("method=mirror+multisample", ["'mirror' and 'multisample' contradict"]),
        ("method=strats+lowdisc", ["contradict"]),
        ("method=standard+mirror", ["stands alone"]),
        ("method=multisample1", ["2 to 64 views"]),
        ("method=complement+mirror", ["'complement' and 'mirror' contradict"]),
        ("objective.weighting=power", ["objective.power", "expected a number of at least 0", "found None"]),
        ("objective.power=0.5", ["objective.power", "expected none for weighting 'elbo'", "found 0.5"]),
        ("objective.power=-1", ["key 'objective.power'", "found -1"]),
        ("batch=0", ["key 'batch'"]),
        ("btach=3", ["unknown key 'btach'", "did you mean 'batch'"]),
        ("micro_batch=5", ["key 'batch'", "multiple"]),
        ("trainer.learning_rat=1", ["trainer.learning_rat", "did you mean 'learning_rate'"]),
        ("trainer.max_steps=1", ["trainer.max_steps", "recipe's own keys"]),
        ("steps", ["expected key=value"]),
        ("model=nowhere", ["model 'nowhere'"]),
        ("data.train=synthetic:harder", ["unknown difficulty 'harder'"]),
        ("data.train=gsm9k:x", ["unknown kind 'gsm9k'", "did you mean 'gsm8k'"]),
        ("decoding.block=7", ["block 7 does not divide"]),
    ],
)
def test_bad_settings(tmp_path, override, words):
    result = call("train", "sft-synthetic", override, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert_refused(result, *words)
    assert not list(tmp_path.glob("out/checkpoint-*"))
    assert not (tmp_path / "out" / "run.json").exists()


def test_clipped_interval_reversed(tmp_path):
    arguments = ["method=clipped", "method_options.clip_low=0.8", "method_options.clip_high=0.3"]
    result = call("validate", "sft-synthetic", *arguments, cwd=tmp_path)
    assert_refused(result, "clipped", "low=0.8", "high=0.3")


def test_unknown_recipe_and_wrong_kind(tmp_path):
    assert_refused(call("train", "sft-syntetic", cwd=tmp_path), "did you mean 'sft-synthetic'")
    assert_refused(call("train", "quickstart", cwd=tmp_path), "stabledllm experiment")
    assert_refused(call("experiment", "sft-synthetic", cwd=tmp_path), "use 'train'")


def test_fit_without_ppots(tmp_path):
    assert_refused(call("fit", "--method", "mirror", cwd=tmp_path), "expected a method with 'ppots'")


def test_report_of_nothing(tmp_path):
    result = call("report", str(tmp_path), cwd=tmp_path)
    assert_refused(result, str(tmp_path))


@pytest.mark.parametrize(("method", "key"), [("isad", "data.delimiters"), ("syrm", "data.syntax")])
def test_a_method_whose_marks_are_nowhere_is_refused(tmp_path, data, method, key):
    spec = data(*({"prompt": f"say {i} words", "response": "as you like"} for i in range(40)))
    result = call("train", "sft-synthetic", f"data.train={spec}", f"method={method}", "out=out", cwd=tmp_path)
    refused(tmp_path, result, method, key)


def test_delimiters_of_any_alphabet_are_found():
    from stabledllm.data.rows import EncodingOptions, encode_examples
    from stabledllm.models.byte_tokenizer import ByteTokenizer

    messages = [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "é答案 2"}]
    example = {"messages": messages, "origin": "here"}
    row = encode_examples([example], ByteTokenizer(), EncodingOptions(delimiters=("答案",))).rows[0]
    assert bytes(row.input_ids[i] for i in row.delimiter).decode() == "答案"

"""``eval`` of rows that are prompts alone: completions are scored where there is a right answer; no NLL is made up."""

from __future__ import annotations

import json

import pytest

from stabledllm.config.settings import EvalSettings
from stabledllm.errors import UserError
from stabledllm.evaluation.rows import evaluated_rows
from stabledllm.models.byte_tokenizer import ByteTokenizer


def rows(tmp_path, *given: dict, **more):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    data = {"train": str(path), "format": "prompts"} | more.pop("data", {})
    return evaluated_rows(EvalSettings(data=data, **more), lambda _: None)


def test_right_answers_alone_are_scored(tmp_path):
    found = rows(tmp_path, {"prompt": "1+1?", "gold": 2})
    assert found.encode is None
    assert [example["gold"] for example in found.scored] == [2]


def test_answered_rows_are_measured_too(tmp_path):
    found = rows(tmp_path, {"prompt": "1+1?", "completion": "#### 2", "level": 1})
    assert len(found.encode(ByteTokenizer()).rows) == 1


def test_prompts_alone_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"rows.jsonl:2: expected a row with an answer to evaluate on.* prompt alone"):
        rows(tmp_path, {"prompt": "1+1?", "gold": 2}, {"prompt": "Write a poem."})


@pytest.mark.parametrize("answered", [True, False])
def test_held_out_rows_are_measured_where_all_have_answers(tmp_path, answered):
    given = [{"prompt": f"{i}?", "gold": i} | ({"completion": f"#### {i}"} if answered else {}) for i in range(40)]
    (tmp_path / "test.jsonl").write_text('{"prompt": "a?", "gold": 3}\n')
    found = rows(tmp_path, *given, held_out=True, data={"test": str(tmp_path / "test.jsonl")})
    assert len(found.scored) == 1
    assert (found.encode is not None) == answered
    found = rows(tmp_path, *given, held_out=True)
    assert len(found.scored) > 1
    assert (found.encode is not None) == answered


def test_held_out_prompts_alone_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected a row with an answer to evaluate on"):
        rows(tmp_path, *({"prompt": f"{i}?"} for i in range(40)), held_out=True)

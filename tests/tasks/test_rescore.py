"""``stabledllm rescore``: every row back with its verdict, or one sentence and nothing written."""

import json

import pytest

from stabledllm.evaluation.accuracy import Share
from tests.cli.runner import assert_refused, in_process
from tests.fakes.tasks import write

ROWS = [
    {"completion": "so #### 1,234", "gold": "work\n#### 1234", "id": 7},
    {"completion": "it is 5.", "gold": 5},
    {"completion": "#### 6", "gold": "5"},
    {"completion": "\ud800 nothing", "gold": "#### 5"},
    {"completion": "", "gold": "#### 0"},
]
VERDICTS = [("1234", True, "1234", True), (None, None, "5", True), ("6", False, "6", False), *[(None,) * 4] * 2]
KEYS = ("parsed", "correct", "flexible_parsed", "flexible_correct")


def rescore(tmp_path, *arguments):
    return in_process("rescore", *arguments, cwd=tmp_path)


def test_rows_come_back_with_their_verdicts(tmp_path):
    write(tmp_path / "in.jsonl", ROWS)
    result = rescore(tmp_path, "--task", "gsm8k", "in.jsonl", "--out", "new/out.jsonl")
    assert result.returncode == 0, result.stderr
    back = [json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()]
    assert [tuple(row[key] for key in KEYS) for row in back] == VERDICTS
    assert [{k: v for k, v in row.items() if k not in KEYS} for row in back] == ROWS
    low, high = Share.of([True, False, None, None, None]).interval
    assert f"5 rows; strict 0.2000 correct (95 % {low:.4f} to {high:.4f}; 1 correct, 1 wrong, 3" in result.stdout
    assert "flexible 0.4000 correct" in result.stdout
    # Its own output is rows with completion and gold too.
    assert rescore(tmp_path, "--task", "gsm8k", "new/out.jsonl", "--out", "again.jsonl").returncode == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "new" / "out.jsonl").read_bytes()


def test_openscience(tmp_path):
    write(tmp_path / "in.jsonl", [{"completion": r"\boxed{\text{B}}", "gold": "B"}, {"completion": "B", "gold": "B"}])
    assert rescore(tmp_path, "--task", "openscience", "in.jsonl", "--out", "out.jsonl").returncode == 0
    back = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["parsed"], row["correct"], row["flexible_correct"]) for row in back] == [
        ("B", True, True),
        (None, None, True),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"gold": "5"}, ["in.jsonl:2", "found no 'completion'"]),
        ({"completion": "x"}, ["in.jsonl:2", "found no 'gold'"]),
        ({"completion": None, "gold": "5"}, ["in.jsonl:2", "found no 'completion'"]),
        ({"completion": 5, "gold": "5"}, ["in.jsonl:2", "expected text under 'completion', found int"]),
        ({"completion": "x", "gold": "none"}, ["in.jsonl:2", "expected a gold answer", "'none'"]),
        ({"completion": "x", "gold": ["5"]}, ["in.jsonl:2", "expected a gold answer", "['5']"]),
        ({"completion": "x", "gold": True}, ["in.jsonl:2", "found True"]),
        ({"completion": "x", "gold": float("nan")}, ["in.jsonl:2", "found nan"]),
    ],
)
def test_bad_rows(row, words, tmp_path):
    write(tmp_path / "in.jsonl", [ROWS[0], row])
    (tmp_path / "out.jsonl").write_text("kept\n")
    assert_refused(rescore(tmp_path, "--task", "gsm8k", "in.jsonl", "--out", "out.jsonl"), *words)
    assert (tmp_path / "out.jsonl").read_text() == "kept\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_bad_arguments(tmp_path):
    before = write(tmp_path / "in.jsonl", ROWS).read_bytes()
    assert_refused(rescore(tmp_path, "--task", "gsm8", "in.jsonl", "--out", "o.jsonl"), "did you mean 'gsm8k'")
    assert_refused(
        rescore(tmp_path, "--task", "gsm8k", "none.jsonl", "--out", "o.jsonl"), "none.jsonl", "found nothing"
    )
    assert_refused(rescore(tmp_path, "--task", "gsm8k", "in.jsonl", "--out", "in.jsonl"), "the same one")
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    assert_refused(rescore(tmp_path, "--task", "gsm8k", "link.jsonl", "--out", "in.jsonl"), "the same one")
    assert_refused(rescore(tmp_path, "--task", "gsm8k", "in.jsonl", "--out", "."), "found a folder")
    assert (tmp_path / "in.jsonl").read_bytes() == before

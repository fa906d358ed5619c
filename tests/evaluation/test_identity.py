"""A finished evaluation is never taken for one of other answers, weights or decoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stabledllm.config.settings import EvalSettings
from stabledllm.errors import UserError
from stabledllm.evaluation import journal
from stabledllm.evaluation import run as run_module
from stabledllm.evaluation.identity import refuse_other
from stabledllm.evaluation.run import evaluate
from stabledllm.runtime.sameness import differences
from tests.fakes.run import write_model


def write_problems(path: Path, last: str = "4") -> None:
    rows = [{"question": f"{i}+1=?", "answer": f"Count.\n#### {i + 1}"} for i in range(3)]
    rows.append({"question": "3+1=?", "answer": f"Count.\n#### {last}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("eval")
    write_problems(folder / "test.jsonl")
    settings = {
        "model": str(write_model(folder / "model")),
        "data": {"test": f"gsm8k:{folder / 'test.jsonl'}"},
        "decoding": {"length": 8, "steps": 2, "block": 8},
        "draws": 1,
        "out": str(folder / "out"),
    }
    run(settings)
    return settings


def run(settings: dict) -> list[str]:
    said: list[str] = []
    evaluate(EvalSettings.model_validate(settings), said.append)
    return said


def test_what_was_written_is_said_by_the_one_that_wrote_it(done, tmp_path):
    settings = done | {"out": str(tmp_path / "out")}
    assert run(settings)[-1] == f"wrote {tmp_path / 'out' / 'eval.json'}"
    assert run(settings) == [f"{settings['out']}: already evaluated"]


def test_the_same_again_is_not_repeated(done):
    assert run(done) == [f"{done['out']}: already evaluated"]


@pytest.mark.parametrize(
    ("objective", "told"),
    [({"name": "llada2"}, "with objective='elbo', found objective={'weighting': 'unweighted'"),
     ({"window": [0.2, 0.9]}, "with objective='elbo', found objective=.*'window'")],
)  # fmt: skip
def test_another_objective_is_another_evaluation(done, tmp_path, objective, told):
    """Also where one of the two is the bound, which identities leave out."""
    with pytest.raises(UserError, match=told):
        run(done | {"objective": objective})
    settings = done | {"out": str(tmp_path / "out"), "objective": objective}
    run(settings)
    with pytest.raises(UserError, match=r"with objective=.*, found objective='elbo'"):
        run(done | {"out": str(tmp_path / "out")})


def test_another_mask_token_is_another_evaluation(done):
    saved = json.loads((Path(done["out"]) / "eval.json").read_text())["identity"]
    with pytest.raises(UserError, match="with mask_token_id=None, found mask_token_id=7"):
        refuse_other(Path("there"), saved, saved | {"mask_token_id": 7})


def test_a_prompt_that_looks_like_a_secret_is_no_difference(done, tmp_path, monkeypatch):
    settings = done | {"out": str(tmp_path / "out")}
    settings["data"] = done["data"] | {"system_prompt": "Use API_KEY=abcdefgh."}

    def stopped(*_, **__):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "score_generated", stopped)
        with pytest.raises(InterruptedError):
            run(settings)
    run(settings)
    assert run(settings) == [f"{settings['out']}: already evaluated"]
    assert not any("abcdefgh" in path.read_text() for path in (tmp_path / "out").glob("**/*.json*"))


def test_other_answers_to_the_same_questions_are_refused(done):
    path = Path(done["out"]).parent / "test.jsonl"
    write_problems(path, last="5")
    try:
        with pytest.raises(UserError, match=r"with content='[0-9a-f]+', found content='[0-9a-f]+'.*another folder"):
            run(done)
    finally:
        write_problems(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"draws": 2}, "draws=1, found draws=2"),
        ({"rows": 3}, "rows=128, found rows=3"),
        ({"dtype": "bfloat16"}, "dtype="),
    ],
    ids=str,
)
def test_other_settings_are_refused_by_key(done, change, says):
    with pytest.raises(UserError, match=says):
        run(done | change)


def test_an_older_evaluation_is_taken_and_it_is_said_what_it_does_not_tell(done):
    path = Path(done["out"]) / "eval.json"
    kept = path.read_text()
    record = json.loads(kept)
    del record["identity"]["content"]
    path.write_text(json.dumps(record))
    try:
        said = run(done)
    finally:
        path.write_text(kept)
    assert said[-1] == f"{done['out']}: already evaluated"
    assert "not compared" in said[0]
    assert "content" in said[0]


def test_work_that_was_begun_with_other_packages_goes_on_and_says_so(done, tmp_path, monkeypatch):
    settings, real = done | {"out": str(tmp_path / "out")}, journal.versions
    monkeypatch.setattr(journal, "versions", lambda: real() | {"torch": "1.0"})

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stabledllm.evaluation.run.score_generated", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    monkeypatch.setattr(journal, "versions", real)
    said = run(settings)
    assert f"note: {settings['out']} was begun with other packages (torch 1.0): last digits may differ" in said
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["begun_with"] == {"torch": "1.0"}


def test_differences_are_told_key_by_key():
    saved = {"a": {"b": 1, "c": 2}, "name": "x", "behind": "same", "old": 3, "list": [1]}
    wanted = {"a": {"b": 1, "c": 4, "new": 1, "unused": None}, "name": "y", "behind": "same", "list": [1]}
    found = differences(saved, wanted, {"name": "behind"})
    assert found.differing == {"a.c": (2, 4)}
    assert found.unknown == ["a.new", "old"]
    assert differences(saved, wanted | {"behind": "other"}, {"name": "behind"}).differing.keys() == {
        "a.c",
        "name",
        "behind",
    }
    assert differences({"lora": None}, {"lora": {"rank": 4}}).differing == {"lora": (None, {"rank": 4})}

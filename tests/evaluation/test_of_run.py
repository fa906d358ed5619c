"""``eval`` of a run's folder says what its training said, and how many of the rows it was trained on."""

from __future__ import annotations

import json

import pytest

from stabledllm.data.sources import load_examples
from stabledllm.errors import UserError
from stabledllm.evaluation.run import evaluate
from stabledllm.evaluation.trained_rows import count_trained_on
from stabledllm.experiment.commands_at_once import check_command, in_trained_blocks
from tests.fakes.runs import train_briefly, write_checkpoint, write_questions, write_run

SYNTHETIC = {"train": "synthetic:easy", "train_rows": 12, "validation_rows": 8, "test_rows": 3}
DECODING = {"length": 16, "steps": 8, "block": 8}
RECIPES = {
    "no padding": {},
    "padding": {"data": SYNTHETIC | {"pad_response_to": 40}},
    "adapter": {"lora": {"rank": 2}, "data": SYNTHETIC | {"pad_response_to": 16}},
    "packing": {"packing": True},
    "blocks": {"block_size": 8},
    "power": {"objective": {"weighting": "power", "power": 0.5}},
    "prompts": {"data": SYNTHETIC | {"system_prompt": "Solve.", "few_shot": 1}, "eval_draws": 2},
}


def evaluated(out, told: list | None = None, **given) -> dict:
    """``eval.json`` as the command makes it of the given keys."""
    said: list[str] = [] if told is None else told
    settings = check_command("eval", given | {"out": str(out)}, tell=said.append)
    return evaluate(in_trained_blocks(settings), said.append)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_is_evaluated_to_its_own_final_numbers(tmp_path, recipe):
    settings = {"data": SYNTHETIC, "decoding": DECODING} | RECIPES[recipe]
    trained = train_briefly(tmp_path / "run", **settings)["metrics"]
    metrics = evaluated(tmp_path / "eval", model=str(tmp_path / "run"), beside="none")["metrics"]
    for key in ("value", "stderr", "n"):
        assert metrics["validation_nll"][key] == pytest.approx(trained["validation_nll"][key], rel=1e-6), key
    for key in ("value", "n", "no_answer", "decoding"):
        assert metrics["accuracy"][key] == trained["accuracy"][key]
    told = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    again = [json.loads(line) for line in (tmp_path / "eval" / "completions.jsonl").read_text().splitlines()]
    assert again == told
    assert ("validation_objective" in metrics) == (recipe == "power")


def test_fewer_of_the_held_out_rows_are_evaluated_and_completed(tmp_path):
    train_briefly(tmp_path / "run", data=SYNTHETIC, decoding=DECODING)
    metrics = evaluated(tmp_path / "eval", model=str(tmp_path / "run"), rows=2, beside="none")["metrics"]
    assert (metrics["validation_nll"]["n"], metrics["accuracy"]["n"]) == (2, 2)
    whole = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert len(whole) > 2
    assert (tmp_path / "eval" / "completions.jsonl").read_text().splitlines() == whole[:2]


def test_a_run_on_pictures_under_the_cosine_objective(tmp_path):
    image = {"cache": str(tmp_path / "codes")}
    data = {"train": "scenes", "train_rows": 8, "validation_rows": 4, "test_rows": 2, "image": image}
    settings = {"model": "tiny-mmada", "objective": {"weighting": "cosine"}, "image_decoding": {"steps": 1}}
    trained = train_briefly(tmp_path / "run", data=data, **settings)["metrics"]
    metrics = evaluated(tmp_path / "eval", model=str(tmp_path / "run"), beside="none")["metrics"]
    for name in ("validation_nll", "validation_objective"):
        assert metrics[name]["value"] == pytest.approx(trained[name]["value"], rel=1e-6)
    assert metrics["accuracy"]["value"] == trained["accuracy"]["value"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run on rows of one's own, padded to 24, with files of its training and validation rows beside it."""
    folder = tmp_path_factory.mktemp("own")
    data = {
        "train": write_questions(folder / "train.jsonl", 12),
        "validation": write_questions(folder / "validation.jsonl", 130, first=100),
        "pad_response_to": 24,
    }
    train_briefly(folder / "run", data=data, save_every=1, decoding=DECODING)
    return folder


def test_the_same_rows_in_a_file_give_the_same_number(own, tmp_path):
    trained = json.loads((own / "run" / "run.json").read_text())["metrics"]["validation_nll"]
    rows = f"jsonl:{own / 'validation.jsonl'}"
    told: list[str] = []
    record = evaluated(tmp_path / "a", told, model=str(own / "run"), data={"train": rows}, beside="none")
    assert record["metrics"]["validation_nll"]["value"] == pytest.approx(trained["value"], rel=1e-6)
    assert record["metrics"]["validation_nll"]["n"] == 130, "as many as training evaluates"
    assert told[0].startswith(f"from {own / 'run'}: padding 24, ")
    assert record["trained_on"] == {}
    assert not [line for line in told if "was trained on" in line]
    bare = evaluated(tmp_path / "b", model=str(own / "run" / "model"), data={"train": rows}, rows=130, beside="none")
    assert bare["metrics"]["validation_nll"]["value"] > record["metrics"]["validation_nll"]["value"] + 0.1, (
        "without the padding's end tokens the rows are others"
    )


def test_rows_that_were_trained_on_are_counted_exactly(own, tmp_path):
    rows = (own / "train.jsonl").read_text().splitlines()[:5]
    other_answer = json.dumps(json.loads(rows[0]) | {"answer": "Is not."})
    new = (own / "validation.jsonl").read_text().splitlines()[:3]
    (tmp_path / "mixed.jsonl").write_text("\n".join([*rows, other_answer, *new]) + "\n")
    given = {"data": {"train": f"jsonl:{tmp_path / 'mixed.jsonl'}"}, "beside": "none", "rows": 9}
    for number, model in enumerate(("run", "run/model", "run/checkpoint-1")):
        told: list[str] = []
        record = evaluated(tmp_path / str(number), told, model=str(own / model), **given)
        (note,) = (line for line in told if "was trained on" in line)
        assert "was trained on 5 of these 9 rows" in note
        assert record["trained_on"] == {str(own / "run"): 5}
    assert evaluated(tmp_path / "base", model="tiny", **given)["trained_on"] == {}, "of others nothing is known"


def test_rows_of_the_run_before_count_as_well(own, tmp_path):
    data = {"train": write_questions(tmp_path / "more.jsonl", 12, first=50), "validation_share": 0.3}
    train_briefly(tmp_path / "second", model=str(own / "run" / "model"), data=data)
    told: list[str] = []
    evaluated(
        tmp_path / "eval", told, model=str(tmp_path / "second"), data={"train": f"jsonl:{own / 'train.jsonl'}"},
        beside="none",
    )  # fmt: skip
    assert any(line.startswith(f"note: {own / 'run'} was trained on 12 of these 12 rows") for line in told)


def test_training_rows_that_are_gone_are_said_to_be_unknown(own, tmp_path):
    run = write_run(tmp_path / "moved", config={"data": {"train": "jsonl:gone.jsonl"}})
    told: list[str] = []

    assert count_trained_on(str(run), [{"messages": [], "origin": "x"}], told.append) == {}
    assert told == [
        f"note: whether {run} was trained on these rows is not known (gone.jsonl: expected a file or a folder, found "
        f"nothing)"
    ]


def test_the_runs_own_rows_that_are_gone_or_changed(own, tmp_path, monkeypatch):
    train_briefly(tmp_path / "run", data={"train": write_questions(tmp_path / "t.jsonl", 20), "validation_share": 0.3})
    write_questions(tmp_path / "t.jsonl", 20, answer="Is now {}.")
    told: list[str] = []
    evaluated(tmp_path / "eval", told, model=str(tmp_path / "run"), beside="none")
    assert f"note: the validation rows are others now than when {tmp_path / 'run'} was trained" in told
    (tmp_path / "t.jsonl").unlink()
    with pytest.raises(UserError, match=r"found nothing .*; these are the rows of .*run: name others with --data\."):
        evaluated(tmp_path / "again", model=str(tmp_path / "run"), beside="none")


def test_fewer_rows_and_the_untuned_model_beside(own, tmp_path):
    record = evaluated(tmp_path / "few", model=str(own / "run"), rows=4)
    assert record["metrics"]["validation_nll"]["n"] == 4
    assert record["untuned"]["model"] == "tiny"
    assert record["difference"]["validation_nll"]["n"] == 4
    assert record["config"]["held_out"]
    told: list[str] = []
    assert evaluated(tmp_path / "few", told, model=str(own / "run"), rows=4)["metrics"] == record["metrics"]
    assert f"{tmp_path / 'few'}: already evaluated" in told
    with pytest.raises(UserError, match="expected the evaluation that is there"):
        evaluated(tmp_path / "few", model=str(own / "run"), rows=5)


def test_any_model_can_be_evaluated_on_rows_as_training_holds_them_out(own, tmp_path):
    data = {"train": f"jsonl:{own / 'train.jsonl'}", "validation_share": 0.3}
    record = evaluated(tmp_path / "tiny", model="tiny", data=data, held_out=True)
    assert 0 < record["metrics"]["validation_nll"]["n"] < 12


def test_a_checkpoint_is_evaluated_as_its_run(own, tmp_path):
    last = evaluated(tmp_path / "c", model=str(own / "run" / "checkpoint-2"), beside="none")
    trained = json.loads((own / "run" / "run.json").read_text())["metrics"]["validation_nll"]
    assert last["metrics"]["validation_nll"]["value"] == pytest.approx(trained["value"], rel=1e-6)


def test_a_run_that_has_not_ended_is_refused(tmp_path):
    write_checkpoint(tmp_path / "run", 3)
    with pytest.raises(UserError, match="name its last checkpoint") as refused:
        evaluated(tmp_path / "eval", model=str(tmp_path / "run"), data={"train": "jsonl:missing.jsonl"})
    assert len(refused.value.sentences) == 2, "each mistake once"
    assert "missing.jsonl" in str(refused.value)


def test_streamed_training_rows_are_not_read_again(tmp_path):
    streamed = {"train": "jsonl:own.jsonl", "validation": "jsonl:val.jsonl", "streaming": True}
    told: list[str] = []
    run = write_run(tmp_path / "run", config={"data": streamed})
    assert count_trained_on(str(run), [{"messages": [], "origin": "x"}], told.append) == {}
    assert "is not known (its training rows were streamed" in told[0]


def test_a_run_on_every_row_has_none_to_be_evaluated_on(tmp_path):
    rows = write_questions(tmp_path / "rows.jsonl", 8)
    train_briefly(tmp_path / "run", data={"train": rows, "validation_share": 0})
    with pytest.raises(UserError, match=r"found none; name some with --data\."):
        evaluated(tmp_path / "eval", model=str(tmp_path / "run"), beside="none")
    record = evaluated(tmp_path / "own", model=str(tmp_path / "run"), data={"train": rows}, beside="none")
    assert record["trained_on"] == {str(tmp_path / "run"): 8}


def test_rows_are_compared_as_they_stand_in_their_files(tmp_path):
    """Without the system prompt and the worked examples that the run had before them."""
    rows = write_questions(tmp_path / "train.jsonl", 12)
    data = {"train": rows, "validation_share": 0, "few_shot": 1, "system_prompt": "Solve."}
    run = write_run(tmp_path / "run", config={"data": data})
    examples = load_examples(rows, split="train", n=0, seed=0)
    assert count_trained_on(str(run), examples, lambda _: None) == {str(run): 12}

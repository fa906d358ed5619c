"""Runs of policy gradients through the command's function: what they say, store and refuse; adapters and blocks."""

from __future__ import annotations

import json

import pytest
from transformers import TrainerCallback

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import Diverged, UserError
from stabledllm.evaluation import rollouts
from stabledllm.forward.packing import Packing
from stabledllm.noise.of_parts import OfParts
from stabledllm.policy_checks import check_policy, check_policy_method
from stabledllm.runtime.files import read_json
from stabledllm.training.policy import GRPOTrainer
from stabledllm.training.replay.point import find_point
from stabledllm.training.run import train


def digits(completions, **_):
    """The share of a completion's characters that are digits; ``completions`` are texts, as the data are."""
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}+1=?", "level": i}) + "\n" for i in range(12)))
    return {"train": str(path), "max_len": 100, "validation_share": 0}


def settings(tmp_path, data, **change) -> TrainSettings:
    grpo = {"group": 3, "inner": 2, "rollout": {"length": 8, "steps": 4}} | change.pop("grpo", {})
    plain = {
        "model": "tiny", "data": data, "objective": {"kind": "grpo"}, "method": "lowdisc+fixedcount", "batch": 4,
        "steps": 3, "grpo": grpo, "untuned": False, "trainer": {"learning_rate": 1e-3, "disable_tqdm": True},
        "log_every": 1, "out": str(tmp_path / "run"),
    }  # fmt: skip
    return TrainSettings.model_validate(plain | change)


def test_a_run_says_and_stores_what_it_did(tmp_path, data):
    lines: list[str] = []
    record = train(settings(tmp_path, data), say=lambda line: lines.append(str(line)), rewards=[digits])
    shown = " ".join(" ".join(lines).split())
    assert "12 to train on, none held out" in shown
    assert "3 of 4 prompts with 3 responses each, the same in 2 steps in turn" in shown
    assert "which the model answers" in shown
    assert "by the reward digits;" in shown
    history = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    assert {"reward", "reward_std", "rewards/digits/mean", "ratio/mean", "completions/mean_length"} <= history[0].keys()
    assert "kl" not in history[0], "there is no reference"
    assert record["history"][-1]["reward"] == history[-1]["reward"] == history[-1]["rewards/digits/mean"]
    assert record["rollout_forward_rows"] == history[-1]["rollout_forward_rows"] > 0
    assert record["identity"]["grpo"]["group"] == 3
    assert list(record["identity"]["rewards"]["sources"]) == ["digits"]
    rows = [json.loads(line) for line in (tmp_path / "run/rollouts/round-000000/responses.jsonl").open()]
    assert [row["prompt"] for row in rows[:4]] == [rows[0]["prompt"]] * 3 + [rows[3]["prompt"]]
    assert rows[0]["reward"] == rows[0]["rewards"]["digits"]

    def another(completions, **_):
        return [1.0 for _ in completions]

    with pytest.raises(UserError, match=r"with rewards\.names=\['digits'\], found"):
        train(settings(tmp_path, data), say=lines.append, rewards=[another])


def test_epochs_are_full_rounds(tmp_path, data):
    """Of 12 prompts in steps of 5 an epoch has 2 rounds of 2 steps; the second epoch begins with other prompts."""
    lines: list[str] = []
    run = settings(tmp_path, data, batch=5, micro_batch=5, steps=None, epochs=1.5, generate_batch=15)
    record = train(run, say=lambda line: lines.append(str(line)), rewards=[digits])
    assert record["steps"] == 6
    shown = " ".join(" ".join(lines).split())
    assert "6 of 5 prompts" in shown
    assert "1.5 epochs" in shown
    rounds = [
        {json.loads(line)["origin"] for line in (folder / "responses.jsonl").open()}
        for folder in sorted((tmp_path / "run/rollouts").iterdir())
    ]
    assert [len(each) for each in rounds] == [5, 5, 5]
    assert not rounds[0] & rounds[1]


def test_more_prompts_in_a_step_than_there_are(tmp_path, data):
    with pytest.raises(UserError, match=r"key 'batch': expected at most as many rows per step .*, 12, found 13"):
        train(settings(tmp_path, data, batch=13), rewards=[digits])


class Enlarged(TrainerCallback):
    """Makes weights so large after the first step that predictions overflow, though every weight is finite."""

    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step == 1:
            model.norm.weight.data.fill_(3e38)
            model.get_input_embeddings().weight.data.mul_(1e6)


@pytest.mark.parametrize("inner", [1, 2])
def test_predictions_that_are_not_finite_end_the_run(tmp_path, data, inner):
    """While responses are drawn (in steps of their own), or the policy is asked about those that are there."""
    wild = settings(tmp_path, data, grpo={"inner": inner}, save_every=1)
    with pytest.raises(Diverged, match=r"diverged at step 2: what the model predicts was not finite"):
        train(wild, rewards=[digits], callbacks=[Enlarged()])
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "diverged"
    assert record["diverged"]["checkpoint"] == "checkpoint-1"


def test_answers_of_a_task_are_scored_and_their_bound_is_measured(tmp_path):
    tasks = {"train": "synthetic:easy", "train_rows": 8, "validation_rows": 4, "test_rows": 4}
    run = settings(tmp_path, tasks, eval_draws=1, steps=1, decoding={"length": 8, "steps": 4})
    metrics = train(run)["metrics"]
    assert {"validation_nll", "accuracy"} <= metrics.keys()


def test_rows_without_an_answer_need_a_reward_of_their_own(tmp_path, data):
    with pytest.raises(UserError, match=r"key 'grpo.reward': expected rows with an answer"):
        train(settings(tmp_path, data))


def test_no_density_is_fitted_to_prompts_alone(tmp_path, data):
    with pytest.raises(UserError, match=r"method 'ppots': .* no difference to fit"):
        train(settings(tmp_path, data, method="ppots"), rewards=[digits])


def test_adapters_are_trained_against_the_model_without_them(tmp_path, data):
    how = {"beta": 0.1, "kl": "k2"}
    record = train(settings(tmp_path, data, grpo=how, lora={"rank": 2}, steps=4), rewards=[digits])
    kl = [line["kl"] for line in record["history"]]
    assert kl[0] == 0, "policy and reference are the same model"
    assert kl[-1] > 0
    assert read_json(tmp_path / "run" / "model" / "adapter_config.json")["r"] == 2


def test_another_model_may_be_the_reference(tmp_path, data):
    first = train(settings(tmp_path, data), rewards=[digits])
    how = {"beta": 0.1, "reference": str(tmp_path / "run")}
    again = train(settings(tmp_path, data, grpo=how, steps=1, out=str(tmp_path / "b")), rewards=[digits])
    assert again["history"][0]["kl"] > 0
    assert "grpo_reference" in again["identity"]
    assert "grpo_reference" not in first["identity"]
    how["reference"] = "tiny-mmada"
    with pytest.raises(UserError, match=r"grpo.reference 'tiny-mmada': expected the vocabulary of 'tiny'"):
        train(settings(tmp_path, data, grpo=how, out=str(tmp_path / "c")), rewards=[digits])


@pytest.mark.parametrize("estimator", ["method", "espo"])
def test_packing_changes_no_number(tmp_path, data, estimator, monkeypatch):
    how = {"grpo": {"estimator": estimator, "beta": 0.1}, "method": "standard", "steps": 2}
    packed, found, of = [], [], Packing.of
    monkeypatch.setattr(Packing, "of", lambda attention: packed.append(1) or of(attention))
    for packing in (False, True):
        assert not packed
        out = str(tmp_path / f"packed-{packing}")
        record = train(settings(tmp_path, data, packing=packing, out=out, **how), rewards=[digits])
        found.append([(each["kl"], each["ratio/mean"]) for each in record["history"]])
    assert found[1] == [pytest.approx(each, rel=1e-3, abs=1e-6) for each in found[0]]
    assert packed


def test_in_blocks(tmp_path, data):
    run = settings(tmp_path, data, block_size=4, decoding={"block": 4}, steps=1)
    assert run.grpo.rollout.block == 4
    assert train(run, rewards=[digits])["history"][0]["reward"] >= 0


def test_replay_is_of_single_answers(tmp_path, data):
    train(settings(tmp_path, data, steps=1), rewards=[digits])
    with pytest.raises(UserError, match=r"expected a run on single answers, .* found one on rewards"):
        find_point(tmp_path / "run", 1, from_start=True)


REFUSED = [
    ({"objective": {}}, "key 'grpo': expected objective.kind=grpo beside it", {"format": None}),
    ({"objective": {}}, "data.format: expected objective.kind=grpo for prompts alone", {"format": "prompts"}),
    ({"group_by_length": True}, "key 'group_by_length': expected false beside objective.kind=grpo", {}),
    ({"views_per_forward": 1}, "key 'views_per_forward': expected null", {}),
    ({"lora": {"dropout": 0.1}}, r"key 'lora.dropout': expected 0 beside", {}),
    ({"grpo": {"beta": 0.1, "reference": "adapter"}}, r"key 'grpo.reference': expected 'lora' beside adapter", {}),
    ({"grpo": {"beta": 0.1, "reference": "kept"}}, r"key 'grpo.reference': expected copy, adapter or a model", {}),
    ({"grpo": {"kl": "k1"}}, r"key 'grpo.kl': expected grpo.beta above 0 beside it", {}),
    ({"grpo": {"reference": "tiny"}}, r"key 'grpo.reference': expected grpo.beta above 0 beside it", {}),
    ({"grpo": {"mean": "token"}}, r"key 'grpo.mean': expected response with grpo.ratio=mean", {}),
    (
        {"objective": {"kind": "grpo", "weighting": "unweighted"}},
        "nothing but kind and eps for objective.kind=grpo",
        {},
    ),
    ({"router": {"loss": 0.1}}, "key 'router': expected none", {}),
    ({"block_size": 4, "block_t": "row"}, "key 'block_t': expected own beside objective.kind=grpo", {}),
    ({"trainer": {"neftune_noise_alpha": 5.0}}, "key 'trainer.neftune_noise_alpha': expected none", {}),
    ({}, "data.format: expected prompts for objective.kind=grpo, found 'alpaca'", {"format": "alpaca"}),
]


@pytest.mark.parametrize(("change", "words", "of_data"), REFUSED)
def test_keys_that_do_not_go_together(tmp_path, data, change, words, of_data):
    with pytest.raises(UserError, match=words):
        check_policy(settings(tmp_path, data | of_data, **change))


def test_what_is_given_at_its_default_is_no_contradiction(tmp_path, data):
    check_policy(settings(tmp_path, data, grpo={"kl": "k3", "reference": "auto", "beta": 0.0}))


@pytest.mark.parametrize(
    ("method", "grpo", "words"),
    [
        ("clipped", {}, "expected an unbiased method, found 'clipped'"),
        ("ppots", {}, "no difference to fit"),
        ("adaptive", {}, "no difference to fit"),
        ("ppots-gradient", {}, "no density fitted to their gradient"),
        ("mirror", {"budget": 5}, "key 'grpo.budget': expected a multiple of the 2 views of 'mirror', found 5"),
        ("mirror", {"estimator": "espo"}, "key 'method': expected standard beside grpo.estimator=espo"),
    ],
)
def test_methods_that_cannot_estimate_the_likelihood(tmp_path, data, method, grpo, words):
    with pytest.raises(UserError, match=words):
        check_policy_method(settings(tmp_path, data, method=method, grpo=grpo), OfParts(method))


@pytest.mark.parametrize("fill", ["length", "answers"])
def test_a_response_that_ended_is_filled_as_it_was_drawn(tmp_path, monkeypatch, fill):
    """Up to the length, all of which the model saw as masks; as behind answers with one end token."""
    drawn, real = [], GRPOTrainer.draw
    monkeypatch.setattr(GRPOTrainer, "draw", lambda self, rows, *args: drawn.extend(rows) or real(self, rows, *args))
    monkeypatch.setattr(rollouts, "generate", lambda _, prompts, *args, **kwargs: [[65, 66]] * len(prompts))
    asked = tmp_path / "rows.jsonl"
    asked.write_text('{"prompt": "1+1=?"}\n{"prompt": "1+2=?"}\n')
    settings = TrainSettings.model_validate(
        {
            "model": "tiny", "data": {"train": str(asked), "validation_share": 0}, "objective": {"kind": "grpo"},
            "grpo": {"group": 2, "fill": fill, "rollout": {"length": 8, "steps": 2}}, "batch": 2, "steps": 1,
            "untuned": False, "trainer": {"disable_tqdm": True, "use_cpu": True}, "out": str(tmp_path / "run"),
        }
    )  # fmt: skip

    def same(completions, **_):
        return [1.0] * len(completions)

    train(settings, say=lambda _: None, rewards=[same])
    assert {row.response_length for row in drawn} == {8 if fill == "length" else 3}

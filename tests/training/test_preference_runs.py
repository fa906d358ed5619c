"""Runs on preferences through the command: what they say, store and refuse; killed ones and adapters too."""

from __future__ import annotations

import json

import pytest

from stabledllm.config.settings import TrainSettings
from stabledllm.data.bundle import load_bundle, load_rows
from stabledllm.errors import UserError
from stabledllm.models.loading import load_model
from stabledllm.noise.of_parts import OfParts
from stabledllm.preference.reference import check_reference
from stabledllm.preference_checks import check_pair_method, check_preferences
from stabledllm.runtime.files import read_json
from stabledllm.training.preference_run import KEPT
from stabledllm.training.replay.point import find_point
from stabledllm.training.run import train
from tests.fakes.block_models import write_fast_dllm

MESSAGES = [{"role": "user", "content": "Hi"}]


def rows() -> list[dict]:
    texts = [{"prompt": f"{i}+1=?", "chosen": f"It is {i + 1}.", "rejected": f"It is {i + 2}, so!"} for i in range(12)]
    chats = [
        {"chosen": [*MESSAGES, {"role": "assistant", "content": "Hello."}],
         "rejected": [*MESSAGES, {"role": "assistant", "content": "Go away."}]},
        {"prompt": MESSAGES, "chosen": [{"role": "assistant", "content": "Hey."}],
         "rejected": [{"role": "assistant", "content": "No."}]},
    ]  # fmt: skip
    dropped = [
        {"prompt": "a", "chosen": "same", "rejected": "same"},
        {"prompt": "b", "chosen": "short", "rejected": "long " * 60},
    ]
    return texts + chats + dropped


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return {"train": str(path), "max_len": 100, "validation_share": 0.2, "validation_rows": 4}


def settings(tmp_path, data, **change) -> TrainSettings:
    plain = {
        "model": "tiny", "data": data, "objective": {"kind": "dpo"}, "method": "lowdisc+fixedcount", "batch": 4,
        "steps": 4, "eval_draws": 1, "dpo": {"budget": 4, "correction": "jackknife"}, "untuned": False,
        "trainer": {"learning_rate": 1e-3, "disable_tqdm": True}, "log_every": 1, "out": str(tmp_path / "run"),
    }  # fmt: skip
    return TrainSettings.model_validate(plain | change)


def test_both_answers_become_rows_and_what_is_dropped_is_counted(tmp_path, data):
    tokenizer = load_model("tiny").tokenizer
    bundle = load_bundle(settings(tmp_path, data | {"validation_share": 0}).data, tokenizer)
    assert len(bundle.train) == len(bundle.rejected["train"]) == 14
    for chosen, rejected in zip(bundle.train, bundle.rejected["train"], strict=True):
        cut = chosen.prompt_length
        assert list(chosen.input_ids[:cut]) == list(rejected.input_ids[: rejected.prompt_length])
    said = [tokenizer.decode(list(r[3].input_ids)) for r in (bundle.train, bundle.rejected["train"])]
    assert "It is 4." in said[0]
    assert "It is 5, so!" in said[1]
    (note,) = [note for note in bundle.notes if note.startswith("train:")]
    assert "14 pairs; dropped 1 longer than max_len=100" in note
    assert "dropped 1 whose answers are the same" in note


def test_a_run_says_and_stores_what_it_did(tmp_path, data):
    lines: list[str] = []
    record = train(settings(tmp_path, data), say=lambda line: lines.append(str(line)))
    metrics = record["metrics"]
    assert {"validation_nll", "preference_loss", "preference_accuracy", "preference_margin"} <= metrics.keys()
    assert any("preference accuracy" in line for line in lines)
    shown = " ".join(" ".join(lines).split())
    assert "spreads t over the forwards of a response" in shown
    assert "rejected It is" in shown
    logged = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen", "loss_bias"} <= set().union(*logged)
    assert record["identity"]["dpo"]["budget"] == 4
    assert train(settings(tmp_path, data), say=lines.append)["metrics"] == metrics, "finished already"
    with pytest.raises(UserError, match=r"dpo\.beta"):
        train(settings(tmp_path, data, dpo={"budget": 4, "correction": "jackknife", "beta": 0.5}))


@pytest.mark.parametrize("reference", ["copy", "kept"])
def test_references_give_the_same_run(tmp_path, data, reference):
    how = {"budget": 4, "reference": reference}
    record = train(settings(tmp_path, data, dpo=how, steps=5))  # into the second epoch
    assert (tmp_path / "run" / KEPT).is_file() == (reference == "kept")
    plain = train(settings(tmp_path, data, dpo={"budget": 4}, steps=5, out=str(tmp_path / "plain")))
    for name in ("preference_loss", "validation_nll"):
        assert record["metrics"][name]["value"] == pytest.approx(plain["metrics"][name]["value"], rel=1e-5)
    assert record["identity"] == plain["identity"], "where the reference's values come from changes no number"


def test_kept_values_of_another_seed_are_not_taken(tmp_path, data):
    """A run that goes on under another seed has other draws: the reference must have seen the same."""
    how = {"budget": 4, "reference": "kept"}
    one = settings(tmp_path, data, dpo=how, steps=2, save_every=2)
    train(one)
    before = (tmp_path / "run" / KEPT).read_bytes()
    other = settings(tmp_path, data, dpo=how, steps=3, seed=9, allow_changed=["seed", "steps"])
    kept = train(other)
    assert (tmp_path / "run" / KEPT).read_bytes() != before
    train(settings(tmp_path, data, dpo={"budget": 4}, steps=2, save_every=2, out=str(tmp_path / "copy")))
    again = {"dpo": {"budget": 4}, "steps": 3, "seed": 9, "allow_changed": ["seed", "steps"]}
    copied = train(settings(tmp_path, data, **again, out=str(tmp_path / "copy")))
    same = [each["metrics"]["preference_loss"]["value"] for each in (kept, copied)]
    assert same[0] == pytest.approx(same[1], rel=1e-5)


def test_another_model_may_be_the_reference(tmp_path, data):
    first = train(settings(tmp_path, data))
    how = {"budget": 4, "reference": str(tmp_path / "run")}
    record = train(settings(tmp_path, data, dpo=how, steps=1, trainer={"learning_rate": 0.0}, out=str(tmp_path / "b")))
    margins = [each["metrics"]["preference_margin"]["value"] for each in (first, record)]
    assert margins[1] == pytest.approx(-margins[0], rel=1e-3), "policy and reference have changed places"
    assert "dpo_reference" in record["identity"]
    assert "dpo_reference" not in first["identity"]
    with pytest.raises(UserError, match="dpo_reference"):
        train(settings(tmp_path, data, dpo=how | {"reference": "tiny"}, steps=1, trainer={"learning_rate": 0.0},
                       out=str(tmp_path / "b")))  # fmt: skip


def test_a_reference_of_another_vocabulary_is_refused():
    policy, other = load_model("tiny"), load_model("tiny-mmada")
    check_reference(policy, load_model("tiny"))
    with pytest.raises(UserError, match=r"dpo.reference 'tiny-mmada': expected the vocabulary of 'tiny'"):
        check_reference(policy, other)
    blocks = load_model("tiny")
    blocks.model.config.block_size = 4
    with pytest.raises(UserError, match="expected block_size None as 'tiny' has, found 4"):
        check_reference(policy, blocks)


def test_whole_conversations_beside_their_question(tmp_path):
    """As UltraFeedback's binarized rows are."""

    def said(text):
        return [*MESSAGES, {"role": "assistant", "content": text}]

    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "chosen": said("Hello."), "rejected": said("No.")}) + "\n")
    data = {"train": str(path), "validation_share": 0}
    tokenizer = load_model("tiny").tokenizer
    bundle = load_bundle(settings(tmp_path, data).data, tokenizer)
    for rows, answer in ((bundle.train, "Hello."), (bundle.rejected["train"], "No.")):
        assert tokenizer.decode(list(rows[0].input_ids)) == f"Hi{answer}", "the question stands there once"
        assert tokenizer.decode(list(rows[0].input_ids[rows[0].prompt_length :])) == answer


def test_adapters_are_trained_against_the_model_without_them(tmp_path, data):
    record = train(settings(tmp_path, data, lora={"rank": 2}, trainer={"learning_rate": 1e-2}))
    assert record["metrics"]["preference_margin"]["value"] != 0
    assert read_json(tmp_path / "run" / "model" / "adapter_config.json")["r"] == 2


def test_evaluation_says_that_it_is_of_the_chosen_answers(tmp_path, data):
    asked = settings(tmp_path, data).data
    _, told = load_rows(asked.train, load_model("tiny").tokenizer, asked, "test", None)
    assert "; of each pair the chosen answer alone" in told


def test_replay_is_of_single_answers(tmp_path, data):
    train(settings(tmp_path, data, steps=1))
    with pytest.raises(UserError, match="expected a run on single answers"):
        find_point(tmp_path / "run", 1, from_start=True)


def test_packing_changes_no_number(tmp_path, data):
    found = []
    for packing in (False, True):
        record = train(settings(tmp_path, data, packing=packing, steps=2, out=str(tmp_path / f"packed-{packing}")))
        found.append([each["loss"] for each in record["history"]])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[1] != found[0], "other kernels round otherwise"


def test_in_blocks(tmp_path, data):
    record = train(settings(tmp_path, data, block_size=4, decoding={"block": 4}))
    assert record["metrics"]["preference_loss"]["value"] > 0


REFUSED = [
    ({"objective": {}}, "data.format: expected objective.kind=dpo for rows of preferences", {"format": "preference"}),
    ({"group_by_length": True}, "key 'group_by_length': expected false beside objective.kind=dpo", {}),
    ({"block_size": 4, "block_t": "row"}, "key 'block_t': expected own beside objective.kind=dpo", {}),
    ({"trainer": {"neftune_noise_alpha": 5.0}}, "key 'trainer.neftune_noise_alpha': expected none", {}),
    ({"views_per_forward": 1}, "key 'views_per_forward': expected null", {}),
    ({"lora": {"dropout": 0.1}}, r"key 'lora.dropout': expected 0 beside", {}),
    ({"dpo": {"reference": "adapter"}}, r"key 'dpo.reference': expected 'lora' beside adapter", {}),
    ({"objective": {"kind": "dpo", "weighting": "unweighted"}}, "nothing but kind and eps for objective.kind=dpo", {}),
    ({"objective": {}, "dpo": {"beta": 1.0}}, "key 'dpo': expected objective.kind=dpo beside it", {"format": None}),
    ({}, "data.format: expected preference for objective.kind=dpo, found 'alpaca'", {"format": "alpaca"}),
]


@pytest.mark.parametrize(("change", "words", "of_data"), REFUSED)
def test_keys_that_do_not_go_together(tmp_path, data, change, words, of_data):
    with pytest.raises(UserError, match=words):
        check_preferences(settings(tmp_path, data | of_data, **change))


@pytest.mark.parametrize(
    ("method", "dpo", "words"),
    [
        ("clipped", {}, "expected an unbiased method, found 'clipped'"),
        ("adaptive+ema", {}, "ema steadies training's reported loss"),
        ("mirror", {"budget": 5}, "a multiple of the 2 views of 'mirror', found 5"),
        ("lowdisc+fixedcount", {"budget": 2, "correction": "jackknife"}, r"write dpo.budget=4"),
    ],
)
def test_methods_that_cannot_estimate_the_bounds(tmp_path, data, method, dpo, words):
    run = settings(tmp_path, data, method=method, dpo=dpo)
    with pytest.raises(UserError, match=words):
        check_pair_method(run, OfParts(method))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": "a", "rejected": "b"}, "rows.jsonl:1: expected 'prompt', or 'chosen' and 'rejected' that are"),
        ({"question": "q", "chosen": "a", "rejected": "b"}, r'write "data.columns=\{prompt: question\}"'),
        ({"prompt": "a", "chosen": "b"}, "rejected"),
        ({"prompt": "a", "chosen": [*MESSAGES], "rejected": "b"}, "expected one answer under 'chosen'"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "chosen"),
    ],
)
def test_rows_that_are_no_pair(tmp_path, row, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    data = {"train": str(path), "validation_share": 0}
    with pytest.raises(UserError, match=words):
        load_bundle(settings(tmp_path, data).data, load_model("tiny").tokenizer)


@pytest.mark.parametrize("reference", ["copy", "adapter", "kept"])
def test_both_models_begin_blocks_alike(tmp_path, reference):
    """Fast-dLLM v2's blocks begin otherwise in training than in evaluation mode, in which a reference is."""
    base, pairs = write_fast_dllm(tmp_path / "fast"), tmp_path / "pairs.jsonl"
    row = {"prompt": "1+1=?", "chosen": "a longer answer " * 2, "rejected": "not that one"}
    pairs.write_text("".join(json.dumps(row | {"prompt": f"{i}+1=?"}) + "\n" for i in range(8)))
    plain = {
        "model": str(base), "data": {"train": str(pairs), "max_len": 200, "validation_share": 0}, "batch": 4,
        "objective": {"kind": "dpo"}, "method": "lowdisc+fixedcount", "steps": 1, "untuned": False, "log_every": 1,
        "dpo": {"budget": 2, "reference": reference}, "lora": {"rank": 2} if reference == "adapter" else None,
        "out": str(tmp_path / "run"), "trainer": {"disable_tqdm": True},
    }  # fmt: skip
    record = train(TrainSettings.model_validate(plain), say=lambda line: None)
    assert record["history"][0]["rewards/margins"] == pytest.approx(0, abs=1e-6)

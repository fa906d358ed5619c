"""Another run is never taken for the one that is there: by key, with both values, in all three places."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.noise.methods import Method
from stabledllm.training import run
from stabledllm.training.arguments import DEFAULTS
from stabledllm.training.identity import compare, identity_of
from tests.fakes.run import merged, small_run, train, write_model, write_rows


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Settings of a finished run, and what its run.json holds."""
    settings = small_run(tmp_path_factory.mktemp("done"))
    return settings, train(settings)[0]


@pytest.fixture(params=["finished", "trained", "checkpoint"])
def there(request, done, tmp_path):
    """Settings of a run that is finished, trained and not evaluated, or killed at a checkpoint."""
    settings, out = done[0] | {"out": str(tmp_path / "run")}, tmp_path / "run"
    shutil.copytree(done[0]["out"], out)
    if request.param == "trained":
        (out / "run.json").rename(out / "trained.json")
    elif request.param == "checkpoint":
        (out / "run.json").unlink()
        shutil.rmtree(out / "checkpoint-4")
    return settings


@pytest.fixture(autouse=True)
def never_trained(monkeypatch):
    """What is refused is refused before anything is loaded."""

    def load(*_, **__):
        raise AssertionError("loaded the model")

    monkeypatch.setattr(run, "build_model", load)


CHANGES = [
    ("steps", 4, 6), ("steps", 4, 3), ("batch", 4, 2), ("seed", 42, 43), ("order_seed", None, 1),
    ("packing", False, True), ("group_by_length", False, True), ("eval_draws", 1, 2), ("attention", "sdpa", "eager"),
    ("dtype", "float32", "bfloat16"), ("method", "standard", "mirror"), ("block_size", None, 8),
    ("objective.eps", 1e-3, 1e-2), ("objective.normalization", "row", "token"), ("method_options.strata", None, 2),
    ("objective.tokens", "all", "cart"), ("method_options.bell", 2.0, 3.0),
    ("data.pad_response_to", 1, 4), ("data.max_len", 1024, 1000), ("data.over_length", "drop", "refuse"),
    ("data.train_rows", None, 9), ("data.validation_rows", 256, 2), ("data.system_prompt", None, "Add."),
    ("trainer.learning_rate", 5e-5, 1e-3), ("trainer.weight_decay", 0.1, 0.0), ("trainer.warmup_steps", 0, 2),
    ("trainer.lr_scheduler_type", "linear", "constant"), ("trainer.max_grad_norm", 1.0, 0.5),
    ("trainer.adam_beta2", 0.999, 0.9), ("trainer.adam_epsilon", 1e-8, 1e-6), ("trainer.optim_args", None, "a=1"),
    ("trainer.bf16", False, True), ("trainer.neftune_noise_alpha", None, 5.0),
]  # fmt: skip


def nested(key: str, value: object) -> dict:
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


@pytest.mark.parametrize(("key", "saved", "wanted"), CHANGES, ids=[f"{key}={new}" for key, _, new in CHANGES])
def test_another_value_is_refused_by_its_key_with_both(there, key, saved, wanted):
    change = nested(key, wanted)
    if key == "block_size":
        change["decoding"] = {"block": 8, "length": 128}
    with pytest.raises(UserError) as refused:
        train(there, **change)
    message = str(refused.value)
    assert f"{key}={saved!r}, found {key}={wanted!r}" in message, message
    assert message.count(". ") == 0, "one sentence"


def changed_row(path: Path) -> None:
    path.write_text(path.read_text().replace("It is", "it is", 1))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_other_content_under_the_same_name_is_refused(there, done, split):
    path = Path(done[0]["data"][split].partition(":")[2])
    kept = path.read_text()
    changed_row(path)
    try:
        with pytest.raises(UserError, match=rf"data\.content\.{split}='[0-9a-f]+', found data\.content\.{split}='"):
            train(there)
    finally:
        path.write_text(kept)


def test_other_weights_under_the_same_name_are_refused(there, done):
    path = Path(done[0]["model"]) / "model.safetensors"
    kept = path.read_bytes()
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    try:
        with pytest.raises(UserError, match=r"weights='[0-9a-f]+', found weights='"):
            train(there)
    finally:
        path.write_bytes(kept)


FREE = [
    {"micro_batch": 2}, {"log_every": 1}, {"save_every": 1}, {"generate_batch": 1}, {"eval_every": 2},
    {"views_per_forward": 1}, {"trainer": {"dataloader_num_workers": 1}}, {"trainer": {"logging_first_step": True}},
    {"trainer": {"save_total_limit": 2}}, {"trainer": {"run_name": "mine"}},
    {"trainer": {"gradient_checkpointing": False}}, {"trainer": {"learning_rate": 5e-5}},
    {"trainer": {"weight_decay": 0.1}}, {"epochs": 7}, {"ppots": {"rows": 9}}, {"adaptive": {"every": 9}},
    {"allow_pickle": True}, {"callbacks": ["gone.Callback"]}, {"decoding": {"length": 64}},
    {"image_decoding": {"steps": 9}}, {"clip": "none"}, {"data": {"image": {"cache": "elsewhere"}}},
]  # fmt: skip


@pytest.mark.parametrize("change", FREE, ids=str)
def test_what_decides_no_number_may_differ(done, change):
    settings, record = done
    again, said = train(settings, **change)
    assert again == json.loads(json.dumps(record))
    assert said == [f"{settings['out']}: already finished"]


def test_the_same_data_and_weights_may_lie_elsewhere(done, tmp_path):
    settings, _ = done
    moved = {split: f"jsonl:{tmp_path / split}.jsonl" for split in ("train", "validation")}
    for split, spec in moved.items():
        shutil.copy(settings["data"][split].partition(":")[2], spec.partition(":")[2])
    shutil.copytree(settings["model"], tmp_path / "copy")
    _, said = train(settings, data=moved, model=str(tmp_path / "copy"))
    assert said == [f"{settings['out']}: already finished"]


def test_decoding_counts_where_there_are_rows_to_decode(done):
    def differing(data: dict) -> set[str]:
        one, other = (
            identity_of(TrainSettings.model_validate(done[0] | {"data": data, "decoding": {"length": n}}), Method(), {})
            for n in (64, 128)
        )
        return set(compare(one, other).differing)

    assert differing(done[0]["data"]) == set()
    assert differing(done[0]["data"] | {"test": done[0]["data"]["validation"]}) == {"decoding.length"}
    assert differing({"train": "synthetic"}) == {"decoding.length"}


def test_the_order_of_adapted_modules_is_no_difference(done):
    settings = TrainSettings.model_validate(done[0] | {"lora": {"target_modules": ["a", "b"], "modules_to_save": []}})
    saved, wanted = (
        identity_of(settings.model_copy(update={"lora": settings.lora.model_copy(update={"target_modules": names})}),
                    Method(), {})
        for names in (["a", "b"], ["b", "a"])
    )  # fmt: skip
    assert saved != wanted
    assert not compare(saved, wanted).differing
    assert (
        "lora.target_modules"
        in compare(saved, wanted | {"lora": saved["lora"] | {"target_modules": "all-linear"}}).differing
    )


OLD_KEYS = (
    "method", "method_options", "objective", "adaptive", "model", "init_seed", "lora", "quantised", "end_token",
    "batch", "seed", "order_seed", "block_size", "caption_dropout", "image_tokenizer",
)  # fmt: skip


def as_before(there: dict) -> None:
    """Records as they were written before the content of the data was in the identity."""
    out = Path(there["out"])
    for path in [out / "run.json", out / "trained.json", *out.glob("*/stabledllm.json")]:
        if not path.is_file():
            continue
        record = json.loads(path.read_text())
        new = record.get("identity", record)
        if isinstance(new["data"], str):
            continue
        old = {key: new[key] for key in OLD_KEYS} | {"data": new["data"]["train"], "dtype": None}
        if "identity" in record:
            del record["parts"]
            path.write_text(json.dumps(record | {"identity": old}))
        else:
            path.write_text(json.dumps({"schema": record["schema"], **old}))


def test_an_older_record_is_taken_where_its_keys_agree_and_says_what_it_does_not_know(there, monkeypatch):
    monkeypatch.undo()
    as_before(there)
    record, said = train(there)
    assert record["steps"] == 4
    notes = [line for line in said if line.startswith("note: ") and "not compared" in line]
    assert len(notes) == 1, said
    assert all(word in notes[0] for word in ("data", "weights")), said
    as_before(there)
    with pytest.raises(UserError, match=re.escape("seed=42, found seed=1")):
        train(there, seed=1)


def test_an_older_finished_run_is_compared_by_the_settings_in_it(done, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(done[0]["out"], out)
    as_before({"out": str(out)})
    with pytest.raises(UserError, match=re.escape("trainer.learning_rate=5e-05, found trainer.learning_rate=0.001")):
        train(done[0], out=str(out), trainer={"learning_rate": 1e-3})
    # A recipe's 1e-3 was text then.
    record = json.loads((out / "run.json").read_text())
    record["config"]["trainer"]["learning_rate"] = "1e-3"
    (out / "run.json").write_text(json.dumps(record))
    assert train(done[0], out=str(out), trainer={"learning_rate": 1e-3})[1][-1] == f"{out}: already finished"
    with pytest.raises(UserError, match="steps=4, found steps=5"):
        train(done[0], out=str(out), trainer={"learning_rate": 1e-3}, steps=5)


@pytest.mark.parametrize("name", ["run.json", "trained.json"])
@pytest.mark.parametrize("key", ["identity", "config", "metrics", "versions"])
@pytest.mark.parametrize("value", [None, [], "x"], ids=str)
def test_a_broken_record_is_a_sentence(done, tmp_path, name, key, value):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(json.dumps(done[1] | {key: value}))
    with pytest.raises(UserError, match=rf"{name}: expected an object under '{key}', found {type(value).__name__}"):
        train(done[0], out=str(tmp_path / "run"))


def test_keys_that_a_run_cannot_change_are_refused_by_name(done):
    for key in ("method", "model", "trainer.optim", "stepz"):
        with pytest.raises(UserError, match=f"key 'allow_changed': expected a key .* found '{key}'"):
            train(done[0], allow_changed=[key])


def test_every_setting_is_in_the_identity_or_named_as_free(tmp_path):
    """A setting that is new to the library counts until somebody says that it decides nothing."""
    settings = TrainSettings.model_validate(small_run(tmp_path))
    identity = identity_of(settings, Method(), DEFAULTS)
    dump = settings.model_dump()
    free = {"out", "allow_changed", "micro_batch", "views_per_forward", "generate_batch", "log_every", "save_every"}
    assert set(dump) - set(identity) == free | {"eval_every", "untuned", "allow_pickle", "callbacks", "spikes"}
    assert set(dump["data"]) - set(identity["data"]) == {"cache", "workers"}


@pytest.mark.parametrize("what", ["weights", "density"])
def test_what_lies_behind_a_name_counts(tmp_path, what):
    settings = small_run(tmp_path)
    if what == "density":
        curve = {"schema": "stabledllm/p_of_t/1", "density": [1.0, 1.0], "method": "ppots", "kind": "epr"}
        curve |= {"forward_passes": 1, "signal": "loss"}
        one = {"value": 1.0}
        curve["diagnostics"] = {"kl": None, "pareto_k": None, "relative_ess": 1.0, "fallback": None}
        curve["diagnostics"] |= {"variance_uniform": one, "variance_fitted": one}
        path = tmp_path / "p.json"
        path.write_text(json.dumps(curve))
        settings |= {"method": "ppots", "p_of_t": str(path)}

    def identity() -> dict:
        method = Method.parse(settings.get("method", "standard"))
        return identity_of(TrainSettings.model_validate(settings), method, DEFAULTS)

    before = identity()
    if what == "density":
        path.write_text(json.dumps(curve | {"density": [0.5, 1.5]}))
    else:
        write_model(tmp_path / "base", seed=1)
    after = identity()
    assert {key for key in before if before[key] != after[key]} == {what}


def test_rows_beyond_what_is_read_do_not_count(tmp_path):
    from stabledllm.config.settings import DataSettings
    from stabledllm.data.bundle import choose

    write_rows(tmp_path / "a.jsonl", 8)
    write_rows(tmp_path / "v.jsonl", 3, 100)
    data = {"train": f"jsonl:{tmp_path / 'a.jsonl'}", "validation": f"jsonl:{tmp_path / 'v.jsonl'}"}
    first = choose(DataSettings(**data, train_rows=5)).digests
    write_rows(tmp_path / "a.jsonl", 9)
    assert choose(DataSettings(**data, train_rows=5)).digests == first
    assert choose(DataSettings(**data, train_rows=9)).digests != first
    assert merged({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}


def test_the_keys_to_allow_are_all_that_differ_and_do_what_is_said(done, tmp_path, monkeypatch):
    monkeypatch.undo()
    shutil.copytree(done[0]["out"], tmp_path / "run")
    changed = {"out": str(tmp_path / "run"), "steps": 5, "data": {"system_prompt": "Add.", "max_len": 1000}}
    changed |= {"trainer": {"learning_rate": 1e-3}}
    with pytest.raises(UserError) as refused:
        train(done[0], allow_changed=["steps"], **changed)
    keys = re.search(r"allow_changed=\[(.*?)\]", str(refused.value))[1].split(", ")
    assert keys == ["steps", "data", "trainer.learning_rate"]
    assert train(done[0], allow_changed=keys, **changed)[0]["steps"] == 5
    with pytest.raises(UserError) as refused:
        train(done[0], **changed, dtype="bfloat16")
    assert "allow_changed" not in str(refused.value)

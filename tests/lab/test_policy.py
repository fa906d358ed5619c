"""``decompose objective.kind=grpo``: what it measures, says, stores and refuses, and the recipe that follows."""

from __future__ import annotations

import json

import pytest
import yaml

from stabledllm.config.recipe import check
from stabledllm.config.settings import DecomposeSettings, TrainSettings
from stabledllm.config.settings.policy import GRPOSettings
from stabledllm.errors import UserError
from stabledllm.lab.policy import APART, KIND, RECORD, STANDARD, candidates
from stabledllm.policy_checks import check_policy_to_measure
from stabledllm.reports.policy_noise import policy_table
from stabledllm.reports.stored import read
from tests.cli.runner import assert_refused, in_process

KEYS = ["objective.kind=grpo", "--model", "new:tiny", "--data", "rows.jsonl"]
SMALL = [
    "grpo.reward=[rewards.py:low]", "grpo.rollout.length=4", "grpo.prompts=2", "grpo.group=2", "grpo.repeats=3",
    "grpo.budget=2", "grpo.exact=4", "methods=[fixedcount]", "grpo.presets=[espo,coupled]", "out=noise",
]  # fmt: skip

HOT = "grpo.rollout.temperature=8"


@pytest.fixture
def folder(tmp_path):
    rows = [{"prompt": f"{i}+1=?"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text(
        "def low(completion_ids, **_):\n    return [sum(ids) / 100 for ids in completion_ids]\n\n\n"
        "def same(completions, **_):\n    return [0.5] * len(completions)\n"
    )
    return tmp_path


def test_the_table_its_record_and_the_recipe(folder):
    done = in_process("recommend", *KEYS, *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    record = read(folder / "noise" / RECORD, KIND)
    rows = {row["name"]: row for row in record["methods"]}
    assert list(rows) == [STANDARD, APART, "fixedcount", "espo", "coupled"]
    assert rows["coupled"]["forwards"] == 3, "the nearest that it can"
    assert [name for name, row in rows.items() if row["p_holm"]] == ["fixedcount", "espo"], "no other bound is compared"
    assert rows[STANDARD]["log_ratio"]["value"] == 0, "the old policy is the model itself"
    assert rows[APART]["log_ratio"]["value"] > 0
    assert rows["coupled"]["offset"]["value"] != 0
    printed = " ".join(done.stdout.split())
    for sentence in record["sentences"]:
        assert sentence in printed
    assert "on shared draws every ratio is 1" in printed
    table = done.stdout.partition("Noise of policy gradients")[2].partition("# stabledllm")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "log-ratio" not in policy_table(record).columns, "nothing is said over a noise of 0"
    again = in_process("recommend", "--from", "noise", cwd=folder)
    heading, recipe = again.stdout.rpartition("# stabledllm train recipe.yaml")[2].split("\n", 1)
    assert heading == " 'grpo.reward=[rewards.py:low]'", "a file is typed, since no recipe may name it"
    settings = check(yaml.safe_load(recipe), TrainSettings, "pasted")
    assert (settings.objective.kind, settings.grpo.group, settings.grpo.rollout.length) == ("grpo", 2, 4)
    assert settings.grpo.reward == GRPOSettings().reward


def test_an_old_policy_gives_ratios_with_noise(folder):
    small = [*SMALL, "methods=[standard]", "grpo.presets=[]"]
    done = in_process("decompose", *KEYS, *small, "init_seed=1", "grpo.old=tiny", HOT, cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "noise" / RECORD).read_text())
    assert record["methods"][0]["log_ratio"]["value"] > 0
    assert record["old"] == "tiny"
    assert "every ratio is 1" not in done.stdout
    table = policy_table(record)
    assert {"log-ratio", "loss"} <= set(table.columns)
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert_refused(in_process("recommend", "--from", "noise", cwd=folder), "found Standard alone")


def test_equal_rewards_teach_nothing_and_are_counted(folder):
    done = in_process("decompose", *KEYS, *SMALL, "grpo.reward=[rewards.py:same]", cwd=folder)
    assert_refused(done, "expected at least 2 prompts whose responses have unequal rewards, found 0 of 8")
    assert "8 teach nothing" in done.stderr + done.stdout


def test_a_dry_run_counts(folder):
    done = in_process("decompose", *KEYS, *SMALL, "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr
    with_gradients = 2 * 2 * (3 * (2 + 2 + 2 + 2 + 3) + 2 * 4)
    assert f"{2 * with_gradients:,} forward passes, {with_gradients:,} with gradients" in done.stdout
    assert "at most 8 prompts, 2 responses of 4 tokens" in done.stdout


def test_presets_take_the_nearest_number_of_forwards():
    def forwards(budget):
        settings = DecomposeSettings(objective={"kind": "grpo"}, grpo={"budget": budget}, methods=["standard"])
        return {each.name: each.forwards for each in candidates(settings)[2:]}

    assert forwards(6) == {"espo": 6, "coupled": 5, "one-step": 6, "unigrpo": 6}
    assert forwards(1) == {"espo": 2, "coupled": 3, "one-step": 1, "unigrpo": 1}


def test_what_is_wrong_is_told_at_once(folder):
    def refused(*more, words):
        assert_refused(in_process("decompose", *KEYS, *SMALL, *more, cwd=folder), *words)

    refused("grpo.reward=[rewards.py:hihg]", words=["hihg"])
    refused("grpo.reward=[tasks]", words=["expected task or FILE.py:FUNCTION", "tasks"])
    refused("grpo.old=tny", words=["tny", "tiny"])
    refused("grpo.old=tiny-mmada", words=["grpo.old 'tiny-mmada': expected the vocabulary of"])
    refused("grpo.inner=2", words=["key 'grpo.inner': expected a run that trains"])
    refused("grpo.estimator=espo", words=["key 'grpo.estimator': expected a run that trains"])
    refused("grpo.presets=[esop]", words=["grpo.presets", "esop"])
    refused("forwards=8", words=["key 'forwards': expected objective.kind=masked"])
    (folder / "mine.yaml").write_text(
        "objective: {kind: grpo}\ngrpo: {tries: 2, reward: [rewards.py:low]}\nforwards: 8\n"
    )
    assert_refused(
        in_process("decompose", "mine.yaml", "--model", "new:tiny", "--data", "rows.jsonl", cwd=folder),
        "whose code is run, to be named on the command line", "rewards.py:low",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": {}}, "key 'grpo': expected objective.kind=grpo beside it"),
        ({"objective": {}, "grpo": None, "data": {"format": "prompts"}}, "expected objective.kind=grpo for prompts"),
        ({"methods": ["clipped"]}, "expected an unbiased method"),
        ({"methods": ["ppots"]}, "without a density of t for policy gradients"),
        ({"methods": ["multisample4"]}, "a multiple of the 4 views of 'multisample4', found 6"),
        ({"grpo": {"beta": 0.1, "reference": "copy"}}, "expected the model that the divergence is from"),
        ({"grpo": {"reference": "tiny"}}, "expected grpo.beta above 0 beside it"),
        ({"grpo": {"mean": "token"}}, "expected grpo.ratio=token beside token"),
    ],
)
def test_refusals(change, words):
    plain = {"objective": {"kind": "grpo"}, "grpo": {"prompts": 3}} | change
    settings = DecomposeSettings.model_validate({key: value for key, value in plain.items() if value is not None})
    with pytest.raises(UserError, match=words):
        check_policy_to_measure(settings)

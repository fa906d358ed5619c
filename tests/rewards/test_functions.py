"""Functions of the user's as rewards: TRL's signature, and every way in which one can fail."""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from stabledllm.config.settings import TrainSettings
from stabledllm.config.settings.policy import GRPOSettings
from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.errors import UserError
from stabledllm.rewards.named import build_rewards, rewards_of

SOURCE = '''
"""Rewards as people write them for TRL."""
import re
from beside import LENGTH

def exact(completions, ground_truth, **kwargs):
    matches = [re.search(r"boxed\\{(.*?)\\}", completion) for completion in completions]
    return [1.0 if match and match.group(1) == right else 0.0 for match, right in zip(matches, ground_truth)]

def short(completion_ids, **kwargs):
    return [-abs(LENGTH - len(ids)) / LENGTH for ids in completion_ids]

def polite(completions, **kwargs):
    return [1.0 if "please" in completion[0]["content"] else 0.0 for completion in completions]

def takes_little(completions):
    return [len(completion) for completion in completions]

def fails(completions, **kwargs):
    return helper(completions)

def helper(completions):
    raise KeyError("solution")

def logs(completions, trainer_state=None, log_extra=None, log_metric=None, **kwargs):
    log_metric("words", sum(len(text.split()) for text in completions))
    log_extra("first", [text[:1] for text in completions])
    return [trainer_state] * len(completions)

async def later(completions, **kwargs):
    return [0.0]

def by_place(completions, prompts, /):
    return [0.0]

def ends(completions, **kwargs):
    raise SystemExit(2)

class Kept:
    pass

number = 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    (tmp_path / "beside.py").write_text("LENGTH = 4\n")
    (tmp_path / "broken.py").write_text("x = 1\nraise RuntimeError('not today.')\n")
    (tmp_path / "script.py").write_text("import sys\ndef f(**_): ...\nsys.exit('usage: script.py FILE')\n")
    (tmp_path / "misspelt.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    return tmp_path


def prompt(number: int = 1, *, conversational: bool = False, **columns) -> RolloutPrompt:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Question {number}?"}]
    return RolloutPrompt([1, 2], messages, f"rows.jsonl:{number}", columns, conversational=conversational)


def named(*names: str, **more):
    return build_rewards(GRPOSettings(reward=[f"my_rewards.py:{name}" for name in names], **more))


def scored(function, n: int = 2) -> list:
    return (
        build_rewards(GRPOSettings(), [function]).score([prompt(i + 1) for i in range(n)], ["a"] * n, [[3]] * n).total
    )


def test_functions_of_a_file_get_columns_and_are_weighed(folder):
    rewards = named("exact", "short", reward_weights=[2, 0.5])
    prompts = [prompt(1, ground_truth="4"), prompt(2, ground_truth="5")]
    found = rewards.score(prompts, ["so boxed{4}", "boxed{4}"], [[1, 2, 3, 4], [1, 2]])
    assert found.by_name == {"exact": [1.0, 0.0], "short": [0.0, -0.5]}
    assert found.total == [2.0, -0.25]


def test_data_of_messages_give_messages(folder):
    rewards = named("polite")
    found = rewards.score([prompt(conversational=True)] * 2, ["Yes, please.", "No."], [[1], [2]])
    assert found.total == [1.0, 0.0]
    seen = {}

    def sees(prompts, completions):
        seen.update(prompts=prompts, completions=completions)
        return [0] * len(prompts)

    both = [prompt(1, conversational=True), prompt(2)]
    build_rewards(GRPOSettings(), [sees]).score(both, ["a", "b"], [[], []])
    assert seen["prompts"] == [both[0].messages, "Question 2?"]
    assert seen["completions"] == [[{"role": "assistant", "content": "a"}], "b"]


def test_a_function_without_more_keys_gets_what_it_takes(folder):
    assert named("takes_little").score([prompt(level=3)], ["four"], [[1]]).total == [4.0]


def test_what_a_function_logs_comes_with_the_scores(folder):
    found = named("logs").score([prompt()] * 2, ["one two", "three"], [[1], [2]], trainer_state=7)
    assert (found.total, found.metrics, found.columns) == ([7.0, 7.0], {"words": 3.0}, {"first": ["o", "t"]})


def test_what_is_logged_and_not_finite_is_left_out():
    def logs(completions, log_metric):
        for name, value in (("a", math.nan), ("a", 2), ("b", math.inf)):
            log_metric(name, value)
        return [0.0 for _ in completions]

    assert build_rewards(GRPOSettings(), [logs]).score([prompt()], ["x"], [[]]).metrics == {"a": 2.0}


def test_none_is_left_out_of_the_sum_and_none_alone_is_none():
    rewards = build_rewards(GRPOSettings(), [lambda_named("a", [1.0, None, None]), lambda_named("b", [1.0, 2.0, None])])
    assert rewards.score([prompt()] * 3, ["x"] * 3, [[]] * 3).total == [2.0, 2.0, None]


def lambda_named(name: str, values: list):
    def function(**_):
        return values

    function.__name__ = name
    return function


@pytest.mark.parametrize(
    "values",
    [np.array([1, 0]), torch.tensor([1.0, 0.0]), [np.float32(1), torch.tensor(0)], (True, False), [np.bool_(True), 0]],
    ids=["array", "tensor", "scalars", "tuple", "bools"],
)
def test_numbers_of_any_make_are_taken(values):
    assert scored(lambda_named("f", values)) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([math.nan, 1.0], "expected a finite number or None for a completion of rows.jsonl:1, found nan."),
        ([10**400, 1], "expected a finite number or None for a completion of rows.jsonl:1, found inf."),
        ([0.0, -math.inf], "expected a finite number or None for a completion of rows.jsonl:2, found -inf."),
        ([1.0], "expected 2 numbers, one for each completion, found 1."),
        ([1.0, "yes"], "expected a number or None for a completion of rows.jsonl:2, found 'yes'."),
        ([1.0, [2.0]], "expected a number or None for a completion of rows.jsonl:2, found list."),
        (None, "expected a list of numbers, found NoneType."),
        (0.5, "expected a list of numbers, found float."),
        ({"a": 1}, "expected a list of numbers, found dict."),
    ],
    ids=["nan", "huge", "inf", "short", "text", "list", "none", "one number", "dict"],
)
def test_what_is_no_list_of_numbers_is_refused_with_the_row(values, words):
    with pytest.raises(UserError) as refused:
        scored(lambda_named("f", values))
    assert str(refused.value).startswith("reward 'f' (test_functions.py, line ")
    assert str(refused.value).endswith(words)


def test_a_function_that_fails_is_told_with_its_line_and_rows(folder):
    with pytest.raises(UserError) as refused:
        named("fails").score([prompt(3), prompt(4)], ["a", "b"], [[], []])
    line = SOURCE.splitlines().index('    raise KeyError("solution")') + 1
    assert str(refused.value) == (
        f"reward 'fails' failed in helper, my_rewards.py, line {line}, (KeyError: 'solution') on the completions of "
        f"rows.jsonl:3 and 1 more; mend it and run the same again."
    )
    assert isinstance(refused.value.__cause__, KeyError)
    with pytest.raises(UserError, match=r"failed in ends, my_rewards.py, line \d+, \(SystemExit: 2\)"):
        named("ends").score([prompt(3)], ["a"], [[]])
    with pytest.raises(UserError, match=r"rows.jsonl:1, which are lists of messages, as the data are; mend it"):
        named("fails").score([prompt(conversational=True)], ["a"], [[]])


def test_a_column_that_no_row_has_is_refused_before_anything_is_drawn(folder):
    with pytest.raises(UserError, match=r"reward 'exact': expected rows with the key 'ground_truth'.* found answer"):
        named("exact").check([prompt(answer="4")])
    assert named("exact").check([prompt(ground_truth="4")]) == []
    with pytest.raises(UserError, match=r"the key 'completion', .* \(did you mean 'completions'\?\); give"):
        build_rewards(GRPOSettings(), [lambda_of_one]).check([prompt()])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.py:f", "found no file 'gone.py'"),
        ("broken.py:f", "found that 'broken.py' does not (RuntimeError: not today, line 2)"),
        ("script.py:f", "found that 'script.py' does not (SystemExit: usage: script.py FILE, line 3)"),
        ("my_rewards.py:Kept", "found the class my_rewards.py:Kept; give an object of it"),
        ("misspelt.py:f", "does not (SyntaxError: "),
        ("my_rewards.py:exactly", "expected a function 'exactly' in my_rewards.py, found none (did you mean 'exact'?)"),
        ("my_rewards.py:number", "expected a function, found my_rewards.py:number"),
        ("my_rewards.py:later", "found the async my_rewards.py:later"),
        ("my_rewards.py:by_place", "expected parameters that are given by name, found 'completions'"),
        ("my_rewards.py", "found 'my_rewards.py'; write FILE.py:FUNCTION"),
        ("tsk", "found 'tsk' (did you mean 'task'?)"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_sentence(folder, name, words):
    with pytest.raises(UserError) as refused:
        build_rewards(GRPOSettings(reward=[name]))
    assert words in str(refused.value)
    assert str(refused.value).count(". ") == 0


def test_names_and_weights_are_one_for_each(folder):
    with pytest.raises(UserError, match="'task' twice"):
        build_rewards(GRPOSettings(reward=["task", "task"]))
    (folder / "other.py").write_text(SOURCE)
    with pytest.raises(UserError, match="expected each name once, found 'exact' twice"):
        build_rewards(GRPOSettings(reward=["my_rewards.py:exact", "other.py:exact"]))
    with pytest.raises(UserError, match="a weight for each reward, 2, found 1"):
        named("exact", "short", reward_weights=[1])
    with pytest.raises(UserError, match="a weight for each reward, 1, found 2"):
        build_rewards(GRPOSettings(reward_weights=[1, 1]), [scored])


def test_a_lambda_has_no_name_to_log_it_under():
    with pytest.raises(UserError, match="expected a function with a name"):
        build_rewards(GRPOSettings(), [lambda **_: []])


def test_functions_given_in_python_stand_beside_names():
    rewards = build_rewards(GRPOSettings(), ["task", lambda_named("f", [0.5])])
    assert rewards.names == ["task", "f"]
    assert set(rewards.digests) == {"f"}


def lambda_of_one(completion):
    return 1.0


def test_what_a_function_does_to_its_arguments_is_not_done_to_the_data():
    def changes(prompts, tests, completions):
        for asked, each, answer in zip(prompts, tests, completions, strict=True):
            asked.extend(answer)
            each.clear()
        return [float(len(asked)) for asked in prompts]

    one = prompt(conversational=True, tests=["a", "b"])
    rewards = build_rewards(GRPOSettings(), [changes])
    assert rewards.score([one] * 2, ["x", "y"], [[], []]).total == [3.0, 3.0]
    assert (one.messages, one.columns) == (prompt(conversational=True).messages, {"tests": ["a", "b"]})


def test_a_file_of_several_rewards_is_run_once(folder):
    (folder / "counts.py").write_text(
        "with open('runs.txt', 'a') as file:\n    file.write('x')\n\n"
        "def a(completions):\n    return [0.0]\n\ndef b(completions):\n    return [a(completions)[0] + 1]\n"
    )
    rewards = build_rewards(GRPOSettings(reward=["counts.py:a", "./counts.py:b"]))
    assert rewards.score([prompt()], ["x"], [[]]).total == [1.0]
    assert (folder / "runs.txt").read_text() == "x"


def half(completions, factor=0.5, **_):
    return [factor for _ in completions]


class Keeps:
    """A reward that is an object."""

    def __init__(self, weight=1.0, judge=None):
        self.weight, self.judge = weight, judge

    def __call__(self, completions):
        return [1.0 for _ in completions]


def test_objects_and_partial_arguments_are_functions_too():
    assert scored(Keeps()) == [1.0, 1.0]
    third = functools.partial(half, factor=0.3)
    assert scored(third) == [0.3, 0.3]
    digests = [build_rewards(GRPOSettings(), [one]).digests for one in (half, third)]
    assert digests[0].keys() == digests[1].keys() == {"half"}
    assert digests[0] != digests[1]


def up_to(most: int):
    def length(completions):
        return [float(min(most, len(text))) for text in completions]

    return length


def digest_of(one) -> str:
    (digest,) = build_rewards(GRPOSettings(), [one]).digests.values()
    return digest


def test_what_a_function_is_bound_to_is_part_of_its_digest():
    assert digest_of(up_to(3)) == digest_of(up_to(3)) != digest_of(up_to(4))
    assert digest_of(Keeps(2.0)) == digest_of(Keeps(2.0)) != digest_of(Keeps(3.0))
    assert digest_of(Keeps(2.0).__call__) != digest_of(Keeps(3.0).__call__)
    assert digest_of(Keeps(judge=object())) == digest_of(Keeps(judge=object())), "an address tells nothing"
    assert digest_of(functools.partial(half, factor=object())) == digest_of(functools.partial(half, factor=object()))


@pytest.mark.processes
def test_a_digest_is_the_same_in_every_process(tmp_path):
    """Whatever order a set has, which Python shuffles by the seed of its hashes; what makes a digest needs no torch."""
    (tmp_path / "rewards.py").write_text("def half(completions, factor=0.5, **_):\n    return [factor]\n")
    source = (
        "from functools import partial; from rewards import half; from stabledllm.rewards.sources import digest_of; "
        "factor = set('abcdefgh'); print(list(factor), digest_of(partial(half, factor=factor, judge=half)))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", source], cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout.rpartition(" ")
        for seed in "12"
    ]  # fmt: skip
    (order, _, digest), (other_order, _, other_digest) = found
    assert order != other_order
    assert digest == other_digest


def test_rewards_of_a_run_that_has_none_are_refused():
    with pytest.raises(UserError, match=r"expected objective.kind=grpo beside them"):
        rewards_of(TrainSettings(), [half])
    assert rewards_of(TrainSettings()) is None
    assert rewards_of(TrainSettings(objective={"kind": "grpo"}), half).names == ["half"]


@pytest.mark.parametrize("one", [min, dict, torch.nn.Identity], ids=["builtin", "type", "class"])
def test_what_has_no_known_parameters_is_refused(one):
    with pytest.raises(UserError, match="expected a function"):
        build_rewards(GRPOSettings(), [one])


class Later:
    async def __call__(self, completions):
        return [0.0]


def test_an_object_that_answers_later_is_refused():
    with pytest.raises(UserError, match="found the async 'Later'"):
        build_rewards(GRPOSettings(), [Later()])


def test_the_digest_changes_with_the_source_alone(folder):
    before = named("exact").digests
    assert named("exact").digests == before
    (folder / "elsewhere.py").write_text(SOURCE)
    assert build_rewards(GRPOSettings(reward=["elsewhere.py:exact"])).digests == before
    (folder / "my_rewards.py").write_text(SOURCE.replace("1.0 if match", "2.0 if match"))
    assert named("exact").digests != before


def test_sentences_hold_no_address():
    for one in (lambda **_: [], 3, object()):
        with pytest.raises(UserError) as refused:
            build_rewards(GRPOSettings(), [one])
        assert not re.search("0x[0-9a-f]{6}", str(refused.value))

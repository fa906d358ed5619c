"""The reward ``task``: worth what the rows' own scorer says, as ``eval`` counts it."""

from __future__ import annotations

import pytest

from stabledllm.data.rollout_prompts import encode_prompts
from stabledllm.data.rows import EncodingOptions
from stabledllm.data.sources import load_examples
from stabledllm.decoding import DecodingOptions
from stabledllm.errors import UserError
from stabledllm.evaluation.accuracy import accuracy
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import load_model
from stabledllm.rewards.reward import Rewards
from stabledllm.rewards.task import TaskReward
from stabledllm.tasks.registry import TASKS


def prompts_of(spec: str, n: int = 8) -> list:
    examples = load_examples(spec, split="train", n=n, seed=0)
    return encode_prompts(examples, ByteTokenizer(), EncodingOptions()).prompts


@pytest.mark.slow
def test_its_mean_is_the_accuracy_that_eval_gives_the_same_completions():
    examples = list(load_examples("synthetic:easy", split="test", n=12, seed=0))
    prompts = encode_prompts(examples, ByteTokenizer(), EncodingOptions()).prompts
    result = accuracy(load_model("tiny"), examples, DecodingOptions(length=24, steps=8, block=24), batch=12)
    texts = [each["completion"] for each in result.completions]
    texts[0], texts[1] = f"so #### {prompts[0].gold.rpartition('#### ')[2]}", "none"
    scored = [TASKS["synthetic"].score(text, p.gold).correct is True for text, p in zip(texts, prompts, strict=True)]
    rewards = Rewards([TaskReward()]).score(prompts, texts, [[]] * 12).total
    assert rewards == [float(each) for each in scored]
    assert rewards[:2] == [1.0, 0.0]
    untouched = [c["correct"] is True for c in result.completions][2:]
    assert rewards[2:] == [float(each) for each in untouched]
    assert result.strict.accuracy.value == pytest.approx(sum(c["correct"] is True for c in result.completions) / 12)


def test_a_row_without_an_answer_has_no_reward_and_is_told_of(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "2+2?", "answer": 4}\n{"prompt": "Write a poem."}\n')
    prompts = prompts_of(f"prompts:{rows}")
    reward = TaskReward()
    assert Rewards([reward]).score(prompts, ["#### 4", "#### 4"], [[], []]).total == [1.0, None]
    assert reward.check(prompts) == f"reward task: 1 of 2 prompts have no answer ({rows}:2, ...)"
    with pytest.raises(UserError, match=r"found none \(.*rows.jsonl:2, \.\.\.\)"):
        reward.check(prompts[1:])


def test_a_reasoning_gym_set_gives_its_own_score():
    pytest.importorskip("reasoning_gym")
    prompts = prompts_of("reasoning-gym:chain_sum", 4)
    texts = [prompt.gold["answer"] for prompt in prompts]
    texts[1] = f"{texts[1]} or so"
    expected = [TASKS["reasoning-gym"].score(text, p.gold).credit for text, p in zip(texts, prompts, strict=True)]
    assert Rewards([TaskReward()]).score(prompts, texts, [[]] * 4).total == expected
    assert expected[0] == 1.0 > expected[1]

"""Advantages: a group's own mean and deviation, groups that teach nothing, and responses without a reward."""

from __future__ import annotations

import math

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.policy.advantages import advantages, all_equal, group_deviations

NAN = math.nan


def test_they_are_the_formula():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    torch.testing.assert_close(advantages(rewards, "none"), rewards - mean)
    torch.testing.assert_close(advantages(rewards, "group"), (rewards - mean) / (std + 1e-4))
    torch.testing.assert_close(group_deviations(rewards), std[:, 0])


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.7])
def test_equal_rewards_teach_nothing_whatever_their_mean_is_rounded_to(value):
    rewards = torch.full((2, 7), value)
    assert torch.equal(advantages(rewards, "group"), torch.zeros(2, 7, dtype=torch.float64))
    assert all_equal(rewards).all()


def test_a_response_without_a_reward_has_no_part_in_its_group():
    rewards = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN], [NAN, 2.0, NAN]])
    found = advantages(rewards, "none")
    assert found.tolist() == [[-1.0, 0.0, 1.0], [0.0] * 3, [0.0] * 3]
    assert advantages(rewards)[0, 2].item() == pytest.approx(1 / (math.sqrt(2) + 1e-4))
    assert all_equal(rewards).tolist() == [False, True, True]


def test_another_scale_is_refused():
    with pytest.raises(UserError, match=r"grpo.scale: expected group or none, found 'groups' \(did you mean"):
        advantages(torch.zeros(1, 2), "groups")

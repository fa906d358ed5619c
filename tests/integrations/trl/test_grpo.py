"""TRL's GRPOTrainer with the mixin: its loss on values of shared draws, our decoding, and rounds that resume."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("trl", reason="the package trl is not installed")

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments
from trl import GRPOConfig

from stabledllm.config.settings import GRPOSettings
from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.data.rows import TokenRow
from stabledllm.decoding import DecodingOptions, generate
from stabledllm.errors import UserError
from stabledllm.evaluation.rollouts import Rollouts
from stabledllm.integrations.trl import MaskedGRPOTrainer
from stabledllm.integrations.trl.shared import EVAL_SEED
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.methods import Method
from stabledllm.policy.loss import GRPOLoss
from stabledllm.preference.reference import FrozenCopy
from stabledllm.rewards.named import build_rewards
from stabledllm.training.policy import GRPOTrainer as OwnTrainer
from stabledllm.training.policy_statistics import PolicyStatistics
from tests.integrations.trl import small

HOW = BoundEstimator(budget=4, tokens_per_batch=60)
SEED = small.QUIET["seed"]
LENGTH, GROUP = 4, 4


def reward(prompts, completions, completion_ids, wanted, **further):
    """Something that differs within a group of random responses."""
    assert all(len(set(map(str, each))) == 1 for each in zip(*[iter(prompts)] * GROUP, strict=False))
    return [float(sum(ids) % 7) for ids in completion_ids]


class Recording(MaskedGRPOTrainer):
    """Keeps the loss, the inputs and the gradient of every micro-batch, and what was decoded."""

    def __init__(self, *args, **kwargs):
        self.losses, self.inputs, self.gradients, self.decoded, self.decoded_at = [], [], [], [], []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        if model.training:
            self.inputs.append(inputs)
            self.losses.append(loss.item())
        return loss

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        made = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.decoded.append((self.model.training, prompt_ids, made[0]))
        self.decoded_at.append(self.state.global_step)
        return made

    def _clip_grad_norm(self, model):
        self.gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        return super()._clip_grad_norm(model)


def make(out, *, model=None, how=HOW, micro=8, accumulation=1, steps=2, function=reward, prompts=None, **further):
    mixin = {
        name: further.pop(name) for name in ("decoding", "generate_batch", "peft_config", "tools") if name in further
    }
    arguments = {
        "per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation, "max_steps": steps,
        "num_generations": GROUP, "max_completion_length": LENGTH, "loss_type": "grpo", "use_bias_correction_kl": False,
        "generation_batch_size": 8, **small.QUIET, **further,
    }  # fmt: skip
    return Recording(
        model if model is not None else small.model(),
        reward_funcs=function,
        args=GRPOConfig(str(out), **arguments),
        train_dataset=Dataset.from_list(small.prompts()[:prompts]),
        eval_dataset=Dataset.from_list(small.prompts()[:2]),
        processing_class=small.tokenizer(),
        estimator=how,
        **mixin,
    )


def run(*args, **further):
    trainer = make(*args, **further)
    trainer.train()
    return trainer


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_equal(one, other, rel=1e-6):
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rel, atol=1e-9, msg=name)


def rows(inputs) -> list[TokenRow]:
    """The responses of a batch that TRL has padded."""
    found = []
    for prompt, there, response, ended in zip(
        *(inputs[name].tolist() for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")),
        strict=True,
    ):
        prompt = [token for token, kept in zip(prompt, there, strict=True) if kept]
        found.append(TokenRow(prompt + response[: sum(ended)], len(prompt)))
    return found


def joint(model, inputs, step: int, how=HOW) -> tuple[torch.Tensor, torch.Tensor]:
    """The estimates of a batch's responses with the graph of all forwards at once, shape (B, R); and their tokens."""
    drawn = how.draw(model, rows(inputs), inputs["response_numbers"].tolist(), seed=SEED, step=step)
    return drawn.plan.groups * sum(part for part, _ in drawn.plan.run(model)), drawn.tokens


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("grpo"), beta=0.1, num_iterations=2, learning_rate=0.02)


def surrogate(ratio, advantages):
    return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


def test_the_loss_and_its_gradient_are_those_of_one_joint_graph(whole):
    """Of the second inner update: policy, old policy and reference on draws that the first did not have."""
    model, first = small.model(), whole.inputs[0]
    values, tokens = joint(model, first, step=0)
    loss = surrogate(torch.exp((values - values.detach()).mean(1) / tokens), first["advantages"]).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert whole.losses[0] == pytest.approx(loss.item(), abs=1e-7)
    for found, expected in zip(whole.gradients[0], gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)

    after, second = small.model(), whole.inputs[1]
    with torch.no_grad():  # the first step, which is AdamW's
        again = run_one_step(after, gradients)
    values, tokens = joint(again, second, step=1)
    with torch.no_grad():
        old, _ = joint(small.model(), second, step=1)
    difference = (values - old).mean(1) / tokens
    divergence = torch.exp(-difference) + difference - 1
    loss = (surrogate(difference.exp(), second["advantages"]) + 0.1 * divergence).mean()
    gradients = torch.autograd.grad(loss, list(again.parameters()))
    assert not torch.allclose(difference, torch.zeros(()).double())
    assert whole.losses[1] == pytest.approx(loss.item(), rel=1e-6)
    for found, expected in zip(whole.gradients[1], gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


PLAIN = {"optim": "sgd", "learning_rate": 0.5}
"""Steps that are linear in the gradient: Adam's make the rounding of a gradient that is nearly 0 a step."""


def own(out) -> OwnTrainer:
    """Our trainer on the prompt that TRL's has alone."""
    model = small.model()
    (prompt,) = small.prompts()[:1]
    ids = small.tokenizer().apply_chat_template(prompt["prompt"], add_generation_prompt=True)["input_ids"]
    options = DecodingOptions(length=LENGTH, steps=LENGTH, block=LENGTH, temperature=1.0, seed=SEED)
    arguments = {**small.QUIET, "per_device_train_batch_size": 1, "max_steps": 4, **PLAIN}
    return OwnTrainer(
        model=model,
        args=TrainingArguments(str(out), **arguments, restore_callback_states_from_checkpoint=True),
        train_rows=[TokenRow(ids, len(ids))], eval_rows=[],
        prompts=[RolloutPrompt(ids, prompt["prompt"], "the prompt")],
        rollouts=Rollouts(LoadedModel(model, ByteTokenizer(), "tiny"), options, GROUP),
        rewards=build_rewards(GRPOSettings(), (worth,)), loss=GRPOLoss(beta=0.1), estimator=HOW,
        reference=lambda its: FrozenCopy(its.model), inner=2, method=Method.parse("standard"),
        sampler=Method.parse("standard").sampler(None), mask_id=256, pad_id=257, noise_seed=SEED,
        statistics=PolicyStatistics(divergence=True), identity={"method": "grpo"},
    )  # fmt: skip


def worth(completion_ids, **further):
    """Of all ids, so that the end token must be among them here as there."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def test_the_steps_are_those_of_our_own_trainer(tmp_path):
    """Of one prompt, so that both have it first: responses, rewards, draws, losses and weights of two rounds."""
    theirs = run(
        tmp_path / "trl", prompts=1, micro=4, generation_batch_size=4, steps=4, num_iterations=2, beta=0.1,
        function=worth, **PLAIN,
    )  # fmt: skip
    ours = own(tmp_path / "own")
    ours.train()
    rounds = sorted((tmp_path / "own" / "rollouts").glob("round-*"))
    assert len(rounds) == len(theirs.decoded) == 2
    for folder, (_, _, responses) in zip(rounds, theirs.decoded, strict=True):
        kept = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
        assert [row["reward"] for row in kept] == worth(responses)
    for name in ("reward", "kl"):
        assert logged(theirs, name)[-1] == pytest.approx(logged(ours, name)[-1], rel=1e-5)
    assert_equal(theirs.model, ours.model, rel=1e-5)
    assert logged(ours, "kl")[-1] > 1e-4


def run_one_step(model, gradients):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        p.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.zero_grad()
    return model


def test_responses_are_those_of_our_decoding(tmp_path):
    options = DecodingOptions(length=LENGTH, steps=2, block=LENGTH, order="random")
    trainer = make(tmp_path, decoding=options, generate_batch=3, temperature=0.7, top_p=0.9)
    trainer.train()
    training, prompts, found = trainer.decoded[0]
    asked = DecodingOptions(length=LENGTH, steps=2, block=LENGTH, order="random", temperature=0.7, top_p=0.9, seed=SEED)
    expected = generate(small.model(), prompts, asked, mask_id=256, eos_id=257, pad_id=257, first=0)
    assert training
    assert found == [[*ids, 257] if len(ids) < LENGTH else ids for ids in expected]
    # The second round goes on in the same sequence of random draws.
    assert trainer.decoded[1][2] != found


def test_splitting_a_step_changes_nothing(tmp_path, whole):
    split = run(tmp_path, beta=0.1, num_iterations=2, learning_rate=0.02, micro=2, accumulation=4)
    assert_equal(split.model, whole.model)
    assert sum(split.losses[:4]) == pytest.approx(whole.losses[0], abs=1e-6)


def test_a_step_logs_what_trl_logs(whole):
    for name in ("reward", "reward_std", "rewards/reward/mean", "completions/mean_length", "completions/clipped_ratio"):
        assert len(logged(whole, name)) == 1, name  # one round of two updates
    for name in ("kl", "clip_ratio/region_mean"):
        assert len(logged(whole, name)) == 2, name
    assert logged(whole, "kl")[1] > 0
    assert logged(whole, "entropy") == []


def test_a_run_resumed_between_rounds_continues(tmp_path):
    arguments = {"num_iterations": 2, "micro": 4, "accumulation": 2, "steps": 4, "learning_rate": 0.01}
    undisturbed = run(tmp_path / "whole", **arguments)
    run(tmp_path / "again", **arguments, save_strategy="steps", save_steps=2)
    again = make(tmp_path / "again", **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-2"))
    assert again.decoded[0] == undisturbed.decoded[1]
    assert_equal(again.model, undisturbed.model)


def test_a_run_resumed_within_a_round_goes_on_with_its_prompts(tmp_path):
    arguments = {"num_iterations": 2, "steps": 4, "learning_rate": 0.01}
    undisturbed = run(tmp_path, **arguments, save_strategy="steps", save_steps=1)
    again = make(tmp_path, **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert [each[1] for each in again.decoded] == [each[1] for each in undisturbed.decoded]
    assert (undisturbed.decoded_at, again.decoded_at) == ([0, 2], [1, 2])


def test_held_out_responses_have_noise_of_their_own(tmp_path):
    trainer = make(tmp_path, per_device_eval_batch_size=4)
    first, again = trainer.evaluate(), trainer.evaluate()
    assert first["eval_reward"] == again["eval_reward"]
    assert first["eval_loss"] == again["eval_loss"]
    asked = DecodingOptions(length=LENGTH, steps=LENGTH, block=LENGTH, temperature=1.0, seed=EVAL_SEED)
    expected = []
    for first, (training, prompts, _) in zip((0, 4), trainer.decoded[:2], strict=True):
        assert not training
        expected.append(generate(trainer.model, prompts, asked, mask_id=256, eos_id=257, pad_id=257, first=first))
    found = [[ids[:-1] if ids[-1] == 257 else ids for ids in each[2]] for each in trainer.decoded[:2]]
    assert found == expected


def test_the_adapter_switched_off_is_the_reference(tmp_path):
    lora = LoraConfig(r=2, target_modules=["qkv_proj"], lora_dropout=0.5, init_lora_weights=False)
    trainer = run(tmp_path, peft_config=lora, beta=0.1)
    assert trainer.ref_model is None
    assert logged(trainer, "kl")[0] > 0


def test_an_adapter_that_was_trained_before_is_its_own_reference(tmp_path):
    lora = LoraConfig(r=2, target_modules=["qkv_proj"], init_lora_weights=False)
    trainer = run(tmp_path, model=get_peft_model(small.model(), lora), beta=0.1, learning_rate=0.02)
    assert set(trainer.model.peft_config) == {"default", "ref"}
    assert logged(trainer, "kl")[0] == 0
    assert logged(trainer, "kl")[1] > 0


def test_the_reference_is_a_copy_that_may_follow(tmp_path):
    follow = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    trainer = run(tmp_path, beta=0.1, learning_rate=0.02, **follow)
    assert trainer.args.beta == trainer.beta == 0.1
    assert_equal(trainer.ref_model, trainer.model)


def test_values_of_tokens_have_ratios_of_their_own(tmp_path):
    how = BoundEstimator(budget=4, of_tokens=True)
    trainer = run(tmp_path, how=how, num_iterations=2, learning_rate=0.02, steps=2)
    second = trainer.inputs[1]
    drawn = how.draw(trainer.model, rows(second), second["response_numbers"].tolist(), seed=SEED, step=1)
    assert torch.equal(drawn.scored.sum(1), second["completion_mask"].sum(1))
    with torch.no_grad():
        old = drawn.values(small.model())
    torch.testing.assert_close(second["old_per_token_logps"][:, 1, : old.shape[1]], old)


class Half:
    """Scores the first token of each response alone."""

    of_tokens = True

    def draw(self, model, responses, numbers, **key):
        drawn = BoundEstimator(budget=4, of_tokens=True).draw(model, responses, numbers, **key)
        return FirstOnly(drawn)


class FirstOnly:
    def __init__(self, drawn):
        self.drawn, self.tokens, self.passes = drawn, drawn.tokens, drawn.passes
        self.scored = torch.arange(drawn.scored.shape[1]).expand_as(drawn.scored) == 0

    def values(self, model):
        return self.drawn.values(model) * self.scored

    def parts(self, model, slopes):
        return self.drawn.parts(model, slopes * self.scored)


def test_tokens_that_are_not_scored_are_left_out_of_the_mean(tmp_path):
    trainer = run(tmp_path, how=Half(), steps=1)
    taken, model = trainer.inputs[0], small.model()
    drawn = BoundEstimator(budget=4, of_tokens=True).draw(
        model, rows(taken), taken["response_numbers"].tolist(), seed=SEED
    )
    nll = sum(part for part, _ in drawn.plan.run_tokens(model))
    first = torch.stack([each[row.prompt_length] for each, row in zip(nll, rows(taken), strict=True)])
    gradients = torch.autograd.grad(-(first * taken["advantages"]).mean(), list(model.parameters()))
    for found, expected in zip(trainer.gradients[0], gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"mask_truncated_completions": True}, "expected mask_truncated_completions=False"),
        ({"entropy_coef": 0.1}, "expected entropy_coef=0.0"),
        ({"use_liger_kernel": True}, "expected use_liger_kernel=False"),
        ({"top_k": 5}, "expected top_k=0"),
        ({"tools": [print]}, "expected no tools"),
        ({"how": "espo"}, "expected an estimator of log-likelihoods, such as BoundEstimator"),
        ({"model": small.model(block_size=3)}, "block"),
        ({"generate_batch": 0}, "expected generate_batch of at least 1"),
        ({"model": "tiny"}, "expected a loaded model, found the name 'tiny'"),
        ({"decoding": DecodingOptions(length=8, steps=8, block=8)}, "expected decoding.length 4"),
        ({"decoding": DecodingOptions(4, 4, 4, logits_eos_inf=True)}, "expected no decoding.logits_eos_inf"),
    ],
)
def test_what_means_nothing_here_is_refused(tmp_path, further, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path, **further)


def test_the_arguments_are_left_as_they_were_where_trl_refuses(tmp_path):
    config = GRPOConfig(str(tmp_path), beta=0.2, per_device_train_batch_size=8, **small.QUIET)
    with pytest.raises(ValueError, match="train_dataset"):
        MaskedGRPOTrainer(small.model(), reward, config, processing_class=small.tokenizer())
    assert config.beta == 0.2

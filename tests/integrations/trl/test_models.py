"""Models beside the tiny one: a family of the hub with its tokenizer, and a model in blocks."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("trl", reason="the package trl is not installed")

from datasets import Dataset
from trl import DPOConfig, GRPOConfig

from stabledllm.integrations.trl import MaskedDPOTrainer, MaskedGRPOTrainer, load_for_trl
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.likelihood.presets import ESPO, Coupled, OneStep, UniGRPO
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import load_model
from tests.fakes.block_models import write_fast_dllm
from tests.fakes.hub_models import LLADA_SPECIAL, write_llada
from tests.integrations.trl import small


@pytest.fixture(scope="module")
def llada(tmp_path_factory):
    return write_llada(tmp_path_factory.mktemp("hub") / "llada", config={"d_model": 16, "n_layers": 1})


def learnt(trainer) -> list[float]:
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses
    assert all(value == value for value in losses)
    return losses


def dpo(out, model, tokenizer):
    args = DPOConfig(str(out), max_steps=2, per_device_train_batch_size=4, **small.QUIET)
    pairs = Dataset.from_list(small.pairs())
    return MaskedDPOTrainer(model, args=args, train_dataset=pairs, processing_class=tokenizer)


def grpo(out, model, tokenizer, estimator=None, **further):
    args = GRPOConfig(
        str(out), max_steps=2, per_device_train_batch_size=4, num_generations=4, num_iterations=2,
        **{"max_completion_length": 4} | small.QUIET | further,
    )  # fmt: skip

    def reward(completion_ids, **further):
        return [float(sum(ids)) for ids in completion_ids]

    prompts = Dataset.from_list(small.prompts())
    return MaskedGRPOTrainer(
        model, reward, args=args, train_dataset=prompts, processing_class=tokenizer, estimator=estimator
    )


def test_a_family_of_the_hub_ends_its_turns_and_is_read_back(llada, tmp_path):
    model, tokenizer = load_for_trl(str(llada))
    assert tokenizer.eos_token_id == LLADA_SPECIAL["<|eot_id|>"]
    trainer = dpo(tmp_path / "dpo", model, tokenizer)
    learnt(trainer)
    row = trainer.train_dataset[0]
    assert row["chosen_ids"][-1] == tokenizer.eos_token_id
    trainer.save_model(str(tmp_path / "saved"))
    again = load_model(str(tmp_path / "saved"))
    for p, q in zip(again.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert again.eos_id == tokenizer.eos_token_id
    learnt(grpo(tmp_path / "grpo", *load_for_trl(str(llada))))


def test_a_model_in_blocks(tmp_path):
    learnt(dpo(tmp_path / "dpo", small.model(block_size=4), small.tokenizer()))
    learnt(grpo(tmp_path / "grpo", small.model(block_size=4), small.tokenizer(), ESPO(strata=4)))


@pytest.mark.parametrize("how", [Coupled(of_tokens=True), OneStep(of_tokens=True), UniGRPO(of_tokens=True, inner=2)])
def test_published_estimators_of_tokens(tmp_path, how):
    learnt(grpo(tmp_path, small.model(), small.tokenizer(), how, beta=0.01))


def test_the_byte_tokenizer_has_the_ids_of_ours():
    text, turns = "a é\n<b>", [*small.said("system", "s"), *small.said("user", "a é\n<b>")]
    theirs, ours = small.tokenizer(), ByteTokenizer()
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"] == ours.chat(turns)
    answered = [*turns, *small.said("assistant", "yes")]
    expected = [*ours.chat(turns), *ours.encode("yes"), ours.eos_token_id]
    assert theirs.apply_chat_template(answered)["input_ids"] == expected
    assert (theirs.mask_token_id, theirs.pad_token_id) == (ours.mask_token_id, ours.pad_token_id)


def test_a_whole_responses_estimator_is_the_default(tmp_path):
    assert dpo(tmp_path / "dpo", small.model(), small.tokenizer()).estimator == BoundEstimator(budget=8)
    assert grpo(tmp_path / "grpo", small.model(), small.tokenizer()).estimator == BoundEstimator(budget=2)


def test_both_models_begin_blocks_alike(tmp_path):
    """Fast-dLLM v2's blocks begin otherwise in training than in evaluation mode, in which a reference is."""
    folder, further = str(write_fast_dllm(tmp_path / "fast")), {"beta": 0.1, "max_completion_length": 8}
    for trainer in (
        dpo(tmp_path / "dpo", *load_for_trl(folder)),
        grpo(tmp_path / "grpo", *load_for_trl(folder), **further),
    ):
        learnt(trainer)
        first = trainer.state.log_history[0]
        assert first.get("rewards/margins", first.get("kl")) == 0
        trainer.evaluate(trainer.train_dataset.select(range(4)))

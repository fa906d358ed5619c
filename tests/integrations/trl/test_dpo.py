"""TRL's DPOTrainer with the mixin takes the steps of our own trainer, resumes, and knows every kind of reference."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("trl", reason="the package trl is not installed")

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.integrations.trl import MaskedDPO, MaskedDPOTrainer
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.noise.methods import Method
from stabledllm.preference import draws
from stabledllm.preference.loss import DPOLoss
from stabledllm.preference.reference import FrozenCopy
from stabledllm.training.preferences import DPOTrainer as Own
from stabledllm.training.preferences import PairStatistics
from tests.integrations.trl import small

HOW = {"budget": 4, "tokens_per_batch": 100}
LORA = {"r": 2, "target_modules": ["qkv_proj"], "init_lora_weights": False}


def make(out, *, model=None, how=None, micro=8, accumulation=1, steps=3, pairs=None, **further):
    mixin = {name: further.pop(name) for name in ("correction", "peft_config", "ref_model") if name in further}
    arguments = {
        "per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation, "max_steps": steps,
        **small.QUIET | further,
    }  # fmt: skip
    return MaskedDPOTrainer(
        model if model is not None else small.model(),
        args=DPOConfig(str(out), **arguments),
        train_dataset=pairs or Dataset.from_list(small.pairs()),
        eval_dataset=Dataset.from_list(small.pairs()[:3]),
        processing_class=small.tokenizer(),
        estimator=how or BoundEstimator(**HOW),
        **mixin,
    )


def run(*args, **further):
    trainer = make(*args, **further)
    trainer.train()
    return trainer


def logged(trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_equal(one, other, rel=1e-9):
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rel, atol=1e-11, msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("trl"))


def own(out, trainer, loss: DPOLoss) -> Own:
    """Our trainer on the rows that TRL made."""
    rows = list(trainer.train_dataset)
    chosen, rejected = (
        [TokenRow(row["prompt_ids"] + row[f"{which}_ids"], len(row["prompt_ids"])) for row in rows]
        for which in ("chosen", "rejected")
    )
    arguments = {**small.QUIET, "per_device_train_batch_size": 8, "max_steps": 3}
    return Own(
        model=small.model(),
        args=TrainingArguments(str(out), **arguments),
        train_rows=chosen, rejected=rejected, eval_rows=chosen[:3], eval_rejected=rejected[:3],
        loss=loss, estimator=draws.BoundEstimator(**HOW), reference=lambda its: FrozenCopy(its.model),
        method=Method.parse("lowdisc+fixedcount"), sampler=Method.parse("standard").sampler(None),
        mask_id=256, pad_id=257, noise_seed=small.QUIET["seed"], statistics=PairStatistics(),
        identity={"method": "dpo"},
    )  # fmt: skip


@pytest.mark.parametrize(("correction", "sft"), [("none", 0.0), ("jackknife", 0.25)])
def test_the_steps_are_those_of_our_own_trainer(tmp_path, correction, sft):
    mixed = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, sft]} if sft else {}
    theirs = run(tmp_path / "trl", correction=correction, **mixed)
    ours = own(tmp_path / "own", theirs, DPOLoss(0.1, correction, sft))
    ours.train()
    assert_equal(theirs.model, ours.model)
    assert logged(theirs, "rewards/margins") == pytest.approx(logged(ours, "rewards/margins"), rel=1e-6)
    assert logged(theirs, "loss_bias") == pytest.approx(logged(ours, "loss_bias"), rel=1e-6)
    if not sft:
        held_out = ours.pair_metrics()
        theirs.pair_loss = DPOLoss(0.1)  # held-out pairs are measured without a correction
        assert theirs.evaluate()["eval_loss"] == pytest.approx(held_out["preference_loss"].value, rel=1e-6)


def test_splitting_a_step_changes_nothing(tmp_path, whole):
    assert_equal(run(tmp_path, micro=2, accumulation=4).model, whole.model)


def test_a_step_logs_what_trl_logs_of_pairs(whole):
    names = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
             "logps/rejected", "num_tokens", "loss_bias"]  # fmt: skip
    assert all(len(logged(whole, name)) == 3 for name in names)
    assert logged(whole)[0] == pytest.approx(0.693147, rel=1e-5)
    assert logged(whole)[-1] < logged(whole)[0]


def test_a_resumed_run_continues(tmp_path, whole):
    run(tmp_path, save_strategy="steps", save_steps=2)
    again = make(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal(again.model, whole.model)


def test_the_adapter_switched_off_is_the_reference(tmp_path):
    """Beside the same run against a copy of the model that the adapter was put on."""
    base = small.model()
    off = run(tmp_path / "off", model=copy.deepcopy(base), peft_config=LoraConfig(**LORA, lora_dropout=0.5))
    copied = run(tmp_path / "copy", model=copy.deepcopy(base), peft_config=LoraConfig(**LORA), ref_model=base)
    assert off.ref_model is None
    assert logged(off)[0] != pytest.approx(0.693147, rel=1e-5)
    assert_equal(off.model, copied.model)


def test_an_adapter_that_was_trained_before_is_its_own_reference(tmp_path):
    trainer = run(tmp_path, model=get_peft_model(small.model(), LoraConfig(**LORA)))
    assert set(trainer.model.peft_config) == {"default", "ref"}
    assert logged(trainer)[0] == pytest.approx(0.693147, rel=1e-5)
    assert logged(trainer, "rewards/margins")[-1] > 0


def test_a_precomputed_reference_gives_the_same_steps(tmp_path):
    kept, asked = (run(tmp_path / str(kept), micro=4, steps=2, precompute_ref_log_probs=kept) for kept in (True, False))
    assert kept.ref_model is None
    assert logged(kept, "rewards/margins") == pytest.approx(logged(asked, "rewards/margins"), rel=1e-3, abs=1e-6)
    assert_equal(kept.model, asked.model, rel=1e-4)
    assert kept.evaluate()["eval_loss"] == pytest.approx(asked.evaluate()["eval_loss"], rel=1e-5)


def test_kept_values_are_those_of_their_estimator_and_seed(tmp_path):
    """TRL keeps them on disk with the data, by the data and the model's weights alone."""
    Dataset.from_list(small.pairs()).save_to_disk(tmp_path / "pairs")

    def kept(budget: int, seed: int) -> list[float]:
        pairs = Dataset.load_from_disk(str(tmp_path / "pairs"))
        how = BoundEstimator(budget=budget)
        return list(
            make(tmp_path, how=how, pairs=pairs, precompute_ref_log_probs=True, seed=seed).train_dataset[
                "ref_chosen_logps"
            ]
        )

    first = kept(2, 5)
    assert kept(2, 5) == first
    assert set(kept(4, 5)).isdisjoint(first)
    assert set(kept(2, 6)).isdisjoint(first)


def test_a_precomputed_reference_is_one_epochs(tmp_path):
    with pytest.raises(UserError, match="expected one epoch beside precompute_ref_log_probs"):
        run(tmp_path, precompute_ref_log_probs=True)
    with pytest.raises(UserError, match="expected num_train_epochs=1"):
        make(tmp_path, precompute_ref_log_probs=True, steps=-1)


def test_streamed_pairs_have_numbers(tmp_path):
    trainer = MaskedDPOTrainer(
        small.model(), args=DPOConfig(str(tmp_path), max_steps=2, per_device_train_batch_size=4, **small.QUIET),
        train_dataset=Dataset.from_list(small.pairs()).to_iterable_dataset(), processing_class=small.tokenizer(),
        estimator=BoundEstimator(**HOW),
    )  # fmt: skip
    trainer.train()
    assert len(logged(trainer)) == 2


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"loss_type": ["ipo"]}, r"expected loss_type \['sigmoid'\]"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [0.0, 1.0]}, "expected a weight above 0"),
        ({"ld_alpha": 0.5}, "expected ld_alpha=None"),
        ({"use_weighting": True}, "expected use_weighting=False"),
        ({"use_liger_kernel": True}, "expected use_liger_kernel=False"),
        ({"f_divergence_type": "js_divergence"}, "expected f_divergence_type='reverse_kl'"),
        ({"correction": "jackknife", "precompute_ref_log_probs": True}, "expected correction='none'"),
        ({"correction": "knife"}, "expected none or jackknife"),
        ({"model": "tiny"}, r"expected a loaded model, found the name 'tiny'; write .*load_model\('tiny'\)"),
        ({"how": "lowdisc"}, "expected an estimator of log-likelihoods, such as BoundEstimator"),
        ({"how": BoundEstimator(of_tokens=True)}, "expected an estimator of whole responses"),
    ],
)
def test_what_means_nothing_here_is_refused(tmp_path, further, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path, **further)


def test_a_model_that_predicts_next_tokens_is_refused(tmp_path):
    model = small.model()
    model.config.mask_token_id = None
    with pytest.raises(UserError, match="expected a masked diffusion model"):
        make(tmp_path, model=model)


def test_an_empty_response_is_named(tmp_path):
    trainer = make(tmp_path)
    batch = trainer.data_collator(list(trainer.train_dataset)[:2])
    batch["completion_mask"][3] = 0
    with pytest.raises(UserError, match=r"pair 1 \(from 0\): expected a response of at least one token"):
        trainer._compute_loss(trainer.model, batch)


def test_the_mixin_stands_beside_other_changes(tmp_path):
    class Mine(MaskedDPO, DPOTrainer):
        pass

    with pytest.raises(UserError, match=r"^Mine: expected a loaded model"):
        Mine("tiny")

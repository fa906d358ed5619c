"""Policy gradients: one trajectory however a step is split, resumed bit for bit, on responses drawn once."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from transformers import PrinterCallback, TrainingArguments

from stabledllm.config.settings import GRPOSettings
from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.decoding import DecodingOptions
from stabledllm.errors import UserError
from stabledllm.evaluation import rollouts as drawing
from stabledllm.evaluation.rollouts import Rollouts
from stabledllm.likelihood.bound import BoundEstimator
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.methods import Method
from stabledllm.policy.loss import GRPOLoss
from stabledllm.preference.reference import FrozenCopy
from stabledllm.rewards.named import build_rewards
from stabledllm.training.ordering import RoundOrder
from stabledllm.training.policy import GRPOTrainer
from stabledllm.training.policy_statistics import PolicyStatistics
from tests.cli.forked import Forked, ranks
from tests.fakes import tiny

SEED, GROUP, LENGTH = 11, 3, 8
ROWS = tiny.rows(11)
PROMPTS = [
    RolloutPrompt(list(row.input_ids[: row.prompt_length]), [{"role": "user", "content": row.origin}], row.origin)
    for row in ROWS
]


def low_bytes(prompts, completion_ids, **_):
    """How much of a response is bytes below 64: what a random model can soon learn."""
    return [sum(token < 64 for token in ids) / LENGTH for ids in completion_ids]


class Recording(GRPOTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        step = self.state.global_step
        self.recorded[step] = self.recorded.get(step, 0.0) + loss.item() / self.args.world_size
        return loss


def make(
    out,
    *,
    micro=4,
    accumulation=1,
    steps=4,
    inner=2,
    model=None,
    loss=None,
    how=None,
    reference=None,
    rewards=(low_bytes,),
    identity=None,
    at_once=5,
    **arguments,
):
    model = model if model is not None else tiny.model(32)
    options = DecodingOptions(length=LENGTH, steps=4, block=LENGTH, temperature=1.0, order="random", seed=3)
    trainer = Recording(
        model=model,
        args=TrainingArguments(
            output_dir=str(out),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            max_steps=steps,
            learning_rate=arguments.pop("learning_rate", 1e-2),
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            save_strategy=arguments.pop("save_strategy", "no"),
            restore_callback_states_from_checkpoint=True,
            dataloader_pin_memory=False,
            seed=3,
            **arguments,
        ),
        train_rows=ROWS,
        eval_rows=[],
        prompts=PROMPTS,
        rollouts=Rollouts(LoadedModel(model, ByteTokenizer(), "tiny"), options, GROUP, at_once),
        rewards=build_rewards(GRPOSettings(), rewards),
        loss=loss or GRPOLoss(beta=0.1),
        estimator=how or BoundEstimator(budget=2, tokens_per_batch=100),
        reference=reference or (lambda trainer: FrozenCopy(trainer.model)),
        inner=inner,
        method=Method.parse("standard"),
        sampler=Method.parse("standard").sampler(None),
        mask_id=tiny.MASK,
        pad_id=tiny.PAD,
        noise_seed=SEED,
        statistics=PolicyStatistics(divergence=True),
        identity=identity or {"method": "grpo"},
    )
    trainer.recorded, trainer.said = {}, []
    trainer.say = trainer.said.append
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(*args, **kwargs):
    trainer = make(*args, **kwargs)
    trainer.train()
    return trainer


def losses(trainer) -> list[float]:
    return list(trainer.recorded.values())


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def same_weights(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("grpo") / "4x1", save_strategy="steps", save_steps=1)


FIGURES = ("reward", "reward_std", "kl", "ratio/mean", "clip_ratio/high_mean", "completions/mean_length")


@pytest.mark.parametrize(("micro", "accumulation"), [(2, 2), (1, 4)])
def test_splitting_a_step_changes_nothing(tmp_path, whole, micro, accumulation):
    split = run(tmp_path, micro=micro, accumulation=accumulation)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-9)
    for name in FIGURES:
        assert logged(split, name) == pytest.approx(logged(whole, name), rel=1e-8)
    assert split.statistics.totals() == whole.statistics.totals()


def test_how_many_are_decoded_together_changes_nothing(tmp_path, whole):
    assert losses(run(tmp_path, steps=2, at_once=12)) == pytest.approx(losses(whole)[:2], rel=1e-9)


@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
def test_models_that_are_the_same_have_ratio_1_and_no_divergence(tmp_path, precision):
    """In any precision, in the first and in a later step of a round: what only one of them rounded would be noise."""
    still = run(tmp_path, model=tiny.model(32).float(), learning_rate=0.0, steps=2, **precision)
    assert logged(still, "ratio/mean") == [1.0, 1.0]
    assert logged(still, "kl") == [0.0, 0.0]


@pytest.mark.processes
def test_two_ranks_take_the_same_steps(tmp_path, whole):
    from tests.training import rank_policy

    for process in ranks(lambda launched: Forked(lambda: rank_policy.main(tmp_path), tmp_path, launched)):
        ended = process.ended()
        assert ended.returncode == 0, ended.stderr[-2000:]
    records = [json.loads((tmp_path / f"rank{number}.json").read_text()) for number in range(2)]
    both = [a + b for a, b in zip(*(record["losses"] for record in records), strict=True)]
    assert both == pytest.approx(losses(whole), rel=1e-9)
    for record in records:
        assert record["reward"] == pytest.approx(logged(whole, "reward"), rel=1e-9)
        assert record["totals"] == whole.statistics.totals()


def test_what_a_run_counts(whole):
    """24 responses in 2 rounds: values with and without a graph each step, reference in all, old policy in the second
    step of a round; from 2 forwards each."""
    assert whole.statistics.forward_passes == 2 * (GROUP * 4) * 2 * (2 * 2 + 2 + 1)
    assert whole.statistics.rollout_forward_rows >= 2 * (GROUP * 4)
    assert 0 < min(logged(whole, "completions/mean_length")) <= LENGTH


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_killed_run_continues_with_the_same_bits(tmp_path, whole, at, monkeypatch):
    """From the middle of a round (1, 3), whose responses are those on disk, and from its end (2)."""
    run(tmp_path, save_strategy="steps", save_steps=1)
    decoded = count_decoded(monkeypatch)
    resumed = make(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert losses(resumed) == losses(whole)[at:]
    assert same_weights(resumed, whole)
    assert resumed.statistics.totals() == whole.statistics.totals()
    assert not decoded, "every response is on disk"
    assert not resumed.said


def test_a_run_is_resumed_in_the_second_epoch(tmp_path):
    """An epoch of 11 prompts in steps of 4 has 2 rounds; this is the middle of the third."""
    undisturbed = run(tmp_path, steps=6, save_strategy="steps", save_steps=5)
    resumed = make(tmp_path, steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert losses(resumed) == losses(undisturbed)[5:]
    assert not resumed.said


def test_what_counts_as_tokens_is_prompts_and_responses(tmp_path):
    """Not the answers of the data, which no step sees."""
    trainer = run(tmp_path, steps=1)
    assert trainer.tokens_since_asked() == sum(len(row) for row in trainer.round.rows)


def count_decoded(monkeypatch, fail_after: int | None = None) -> list[int]:
    """The numbers of the responses that are decoded from now on."""
    decoded, generate = [], drawing.generate

    def counted(model, prompts, *args, first, **kwargs):
        if fail_after is not None and len(decoded) >= fail_after:
            raise KeyboardInterrupt
        decoded.extend(range(first, first + len(prompts)))
        return generate(model, prompts, *args, first=first, **kwargs)

    monkeypatch.setattr(drawing, "generate", counted)
    return decoded


def test_a_response_is_decoded_once_however_often_a_round_is_killed(tmp_path, whole, monkeypatch):
    seen = []
    for done in (5, 5, None):
        with monkeypatch.context() as patch:
            decoded = count_decoded(patch, done)
            trainer = make(tmp_path, steps=2)
            if done is None:
                trainer.train()
            else:
                with pytest.raises(KeyboardInterrupt):
                    trainer.train()
        seen += decoded
    assert sorted(seen) == list(range(4 * GROUP))
    assert losses(trainer) == losses(whole)[:2]


def test_a_reward_is_asked_for_once(tmp_path, whole):
    asked = []

    def counted(prompts, completion_ids, **_):
        asked.append(len(prompts))
        return low_bytes(prompts, completion_ids)

    run(tmp_path, save_strategy="steps", save_steps=3, rewards=(counted,))
    resumed = make(tmp_path, rewards=(counted,))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert asked == [4 * GROUP] * 2
    assert losses(resumed) == losses(whole)[3:]


def test_other_settings_make_the_round_anew_and_say_so(tmp_path, whole, monkeypatch):
    run(tmp_path, save_strategy="steps", save_steps=3)
    decoded = count_decoded(monkeypatch)
    changed = make(tmp_path, identity={"method": "another"})
    changed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert sorted(decoded) == list(range(4 * GROUP, 8 * GROUP)), "the second round, in whose middle it goes on"
    (line,) = changed.said
    assert line == "round-000001: what is there is of other weights or settings; made anew from step 4"
    assert losses(changed)[0] != losses(whole)[3]
    assert changed.round.begun.step == 3
    assert not changed.round.old, "its first step is the last of the round"


def test_rounds_behind_one_that_is_made_anew_are_removed(tmp_path):
    """They are of weights that the run will not have, and would stay for good if it were to end before them."""
    run(tmp_path, steps=6, save_strategy="steps", save_steps=2)
    shorter = make(tmp_path, steps=4, identity={"method": "another"})
    shorter.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [folder.name for folder in sorted(tmp_path.glob("rollouts/*"))] == ["round-000000", "round-000001"]
    assert shorter.said == ["round-000001: what is there is of other weights or settings; made anew from step 3"]


def test_values_of_another_precision_are_those_of_another_round(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=3, model=tiny.model(32).float())
    resumed = make(tmp_path, model=tiny.model(32).float(), bf16=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(resumed.said) == 1


def test_responses_that_were_deleted_are_drawn_anew(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=3)
    shutil.rmtree(tmp_path / "rollouts/round-000001")
    resumed = make(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.said == ["round-000001: nothing is there; made anew from step 4"]


def test_text_that_breaks_lines_is_read_back(tmp_path, monkeypatch):
    """As bytes at random may; JSON leaves U+2028 and U+0085 in a line, at which Python's splitlines would cut it."""
    monkeypatch.setattr(Rollouts, "text", lambda *_: "a\u2028b\x85c\n")
    run(tmp_path, steps=2, save_strategy="steps", save_steps=1)
    resumed = make(tmp_path, steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert not resumed.said


@pytest.mark.parametrize("name", ["responses.jsonl", "values.safetensors"])
def test_a_damaged_file_of_a_round_is_named(tmp_path, name):
    run(tmp_path, steps=2, save_strategy="steps", save_steps=1)
    (tmp_path / "rollouts/round-000000" / name).write_bytes(b"{broken\n")
    with pytest.raises(UserError, match=f"{name}: expected a file as a run left it, found it damaged"):
        make(tmp_path, steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_steps_alone_change_no_round(tmp_path, whole, monkeypatch):
    """A run that is given more steps goes on in the middle of its round."""
    identities = [{"method": "grpo", "steps": 3}, {"method": "grpo", "steps": 4, "trainer": {"learning_rate": 1}}]
    run(tmp_path, save_strategy="steps", save_steps=3, identity=identities[0])
    decoded = count_decoded(monkeypatch)
    longer = make(tmp_path, identity=identities[1])
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert not decoded
    assert losses(longer) == losses(whole)[3:]


def test_values_stay_as_long_as_a_checkpoint_needs_them(tmp_path):
    run(tmp_path, steps=6, save_strategy="steps", save_steps=1, save_total_limit=2)
    there = {path.parent.name for path in tmp_path.glob("rollouts/*/values.safetensors")}
    assert there == {"round-000001", "round-000002"}, "of checkpoints 3 and 4, 3 was in the middle of the second round"
    assert len(list(tmp_path.glob("rollouts/*/responses.jsonl"))) == 3


def test_groups_whose_rewards_are_equal_teach_nothing(tmp_path):
    model = tiny.model(32)
    before = copy.deepcopy(model)
    equal = run(tmp_path, model=model, steps=2, loss=GRPOLoss(), reference=lambda _: None,
                rewards=(constant,), learning_rate=1e-3)  # fmt: skip
    assert logged(equal, "frac_reward_zero_std") == [1.0, 1.0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert losses(equal) == [0.0, 0.0]


def constant(completions, **_):
    return [0.7 for _ in completions]


def test_a_round_without_any_reward_is_told_as_such(tmp_path):
    def none(completions, **_):
        return [None for _ in completions]

    trainer = run(tmp_path, steps=1, rewards=(none,))
    assert trainer.said[0].startswith("note: round 1: no response has a reward, so that nothing is learnt")
    assert trainer.said_at_the_end() == [
        "4 of 4 groups had equal rewards or none, and taught nothing",
        f"{4 * GROUP} responses had no reward, and no part in their groups",
    ]
    assert not logged(trainer, "reward")
    assert trainer.further_metrics() == {}


def test_a_response_without_a_reward_is_no_part_of_its_group(tmp_path):
    def some(completions, **_):
        return [None if place % GROUP == 0 else float(place % GROUP) for place in range(len(completions))]

    trainer = run(tmp_path, steps=1, rewards=(some,))
    assert logged(trainer, "reward") == [1.5]
    assert torch.equal(trainer.round.advantages[::GROUP], torch.zeros(4, dtype=torch.float64))
    first = json.loads((tmp_path / "rollouts/round-000000/responses.jsonl").read_text().splitlines()[0])
    assert first["reward"] is None
    assert {"prompt", "completion", "tokens", "ended", "rewards", "advantage", "origin"} <= first.keys()


@pytest.mark.slow
def test_it_learns_what_is_rewarded(tmp_path):
    trainer = run(tmp_path, steps=30, inner=2, loss=GRPOLoss(), reference=lambda _: None, learning_rate=2e-2)
    rewards = logged(trainer, "reward")
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.2


@pytest.mark.parametrize(("ratio", "mean"), [("mean", "response"), ("token", "response"), ("token", "token")])
def test_a_step_takes_the_gradient_of_the_documented_loss(tmp_path, ratio, mean):
    """In the second step of a round, where old policy, reference and policy are three models; in two micro-batches."""
    how = BoundEstimator(budget=2, tokens_per_batch=60, of_tokens=ratio == "token")
    loss, seen, model = GRPOLoss(ratio, mean=mean, beta=0.3), {}, tiny.model(32)
    first = copy.deepcopy(model)
    trainer = make(
        tmp_path, micro=2, accumulation=2, steps=2, model=model, loss=loss, how=how, max_grad_norm=0.0,
        reference=lambda _: FrozenCopy(tiny.model(32, seed=5)),
    )  # fmt: skip
    trainer.create_optimizer()

    def before_step(*_):
        seen["grad"] = [p.grad.clone() for p in model.parameters()]
        seen["weights"] = copy.deepcopy(model.state_dict())

    trainer.optimizer.register_step_pre_hook(before_step)
    trainer.train()
    rows, n = trainer.round.rows, len(trainer.round.rows)
    model.load_state_dict(seen["weights"])
    draws = how.draw(model, rows, range(n), seed=SEED, step=1)
    old, reference = draws.values(first), draws.values(tiny.model(32, seed=5))
    run_draws = draws.plan.run_tokens(model) if ratio == "token" else draws.plan.run(model)
    joint = sum(part for part, _ in run_draws)
    if ratio == "token":
        maskable = draws.plan.tensors["maskable"]
        joint = joint.new_zeros(draws.scored.shape).masked_scatter(draws.scored, joint[maskable])
    else:
        joint = joint * draws.plan.groups
    found = loss(joint, old, reference, trainer.round.advantages, draws.tokens, draws.scored)
    value = found.value.sum() / (n if mean == "response" else draws.scored.sum())
    assert losses(trainer)[1] == pytest.approx(value.item(), rel=1e-9)
    for got, wanted in zip(seen["grad"], torch.autograd.grad(value, list(model.parameters())), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-12)
    assert abs(found.ratio - 1).max() > 1e-6, "the weights have moved"


def test_rows_wait_for_a_full_round():
    step = [0]
    order = RoundOrder(11, 4, 7, lambda: step[0], inner=3)
    tickets = list(order)
    assert len(order) == len(tickets) == 2 * 4 * 3
    assert tickets[:4] == tickets[4:8] == tickets[8:12]
    assert [place for _, place in tickets[12:16]] == [4, 5, 6, 7]
    assert len({row for row, _ in tickets}) == 8
    step[0] = 6
    assert [row for row, _ in order] != [row for row, _ in tickets], "the second epoch has another order"


def test_a_reward_that_fails_ends_the_run_in_a_sentence(tmp_path):
    def broken(completions, **_):
        return [float("nan")] * len(completions)

    with pytest.raises(UserError, match="reward 'broken'"):
        run(tmp_path, rewards=(broken,))
    assert not (tmp_path / "rollouts/round-000000/responses.jsonl").exists()

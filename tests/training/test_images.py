"""Training on pictures: one trajectory however a step is split, captions left out by the rows' positions alone."""

from __future__ import annotations

import pytest
import torch

from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key, Stream
from tests.checks.trajectory import assert_same_trajectory
from tests.fakes import mmada as small
from tests.fakes.trainer import make_trainer

COSINE = Objective(weighting="cosine")
DROPOUT = 0.4


def trainer(folder, method: str, micro: int, accumulation: int, **arguments):
    made = make_trainer(
        folder,
        method,
        micro=micro,
        accumulation=accumulation,
        model=small.model(),
        train=small.rows(22),
        ids=(small.MASK, small.TOKENS.eos),
        objective=COSINE,
        caption_dropout=arguments.pop("caption_dropout", DROPOUT),
        **arguments,
    )
    made.captions = {}
    seen = made._shown

    def keep(key, inputs):
        out = seen(key, inputs)
        for position, counted, ids, mask in zip(
            *(out[name].tolist() for name in ("position", "counted", "input_ids", "attention_mask")), strict=True
        ):
            if counted:
                made.captions[made.state.global_step, position] = [i for i, m in zip(ids, mask, strict=True) if m]
        return out

    made._shown = keep
    return made


def run(*args, **kwargs):
    made = trainer(*args, **kwargs)
    made.train()
    return made


@pytest.mark.parametrize("method", ["standard", "lowdisc+ppots+mirror", "adaptive"])
def test_splitting_a_step_changes_nothing(tmp_path, method):
    whole = run(tmp_path / "whole", method, 8, 1)
    for micro, accumulation in ((4, 2), (1, 8)):
        split = run(tmp_path / f"{micro}", method, micro, accumulation)
        assert split.recorded.draws == whole.recorded.draws
        assert split.captions == whole.captions
        assert_same_trajectory(split.recorded.losses, whole.recorded.losses)


def test_packing_changes_nothing(tmp_path):
    whole = run(tmp_path / "whole", "ppots+mirror", 8, 1)
    packed = run(tmp_path / "packed", "ppots+mirror", 8, 1, packing=True)
    assert packed.recorded.draws == whole.recorded.draws
    # Packed rows start at position 0 and padded ones do not; the angles of positions are in float32.
    assert packed.recorded.losses == pytest.approx(whole.recorded.losses, rel=1e-6)


def test_kill_and_resume_is_bit_identical(tmp_path):
    whole = run(tmp_path / "whole", "ppots+mirror", 4, 2)
    run(tmp_path / "cut", "ppots+mirror", 4, 2, save_strategy="steps", save_steps=7)
    resumed = trainer(tmp_path / "cut", "ppots+mirror", 4, 2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-7"))
    assert resumed.recorded.losses == whole.recorded.losses[7:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_captions_are_left_out_anew_in_every_step_by_position(tmp_path):
    made = run(tmp_path, "standard", 8, 1, steps=20)
    bare = {place: ids[:3] == [13, 15, 16] for place, ids in made.captions.items()}
    for step in range(20):
        places = [position for s, position in made.captions if s == step]
        uniforms = Key(made.noise_seed, step).row_uniforms(Stream.CAPTION, torch.tensor(places))
        assert [bare[step, p] for p in places] == (uniforms < DROPOUT).tolist()
    share = sum(bare.values()) / len(bare)
    assert 0.25 < share < 0.55
    assert len({tuple(bare[step, p] for p in range(6)) for step in range(20)}) > 10


def test_drop_out_shifts_no_other_draw(tmp_path):
    with_captions = run(tmp_path / "a", "ppots+mirror", 8, 1, caption_dropout=0.0, steps=4)
    some = run(tmp_path / "b", "ppots+mirror", 8, 1, steps=4)
    assert with_captions.recorded.draws == some.recorded.draws
    assert with_captions.recorded.losses != some.recorded.losses

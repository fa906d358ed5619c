"""Block diffusion in the Trainer: invariant to the split, evaluated and decoded in its own form, refused elsewhere."""

from __future__ import annotations

import pytest
import torch

from stabledllm.config.settings import TrainSettings
from stabledllm.data.rows import TokenRow
from stabledllm.decoding import DecodingOptions, generate
from stabledllm.errors import UserError
from stabledllm.evaluation.validation import row_nll
from stabledllm.forward.blocks import BlockMeter, UnitMeter
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.models.loading import load_model
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.training.arguments import DEFAULTS
from stabledllm.training.blocks import first_units
from stabledllm.training.identity import identity_of
from stabledllm.training.positions import step_rows
from stabledllm.training.run import train
from tests.checks.trajectory import assert_same_trajectory
from tests.fakes.trainer import STEPS, make_trainer


def run(tmp_path, name: str, method: str, micro: int, accumulation: int, **kwargs):
    trainer = make_trainer(tmp_path / name, method, micro=micro, accumulation=accumulation, **kwargs)
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lowdisc+ppots+mirror", "adaptive+fixedcount"])
def test_splitting_a_step_changes_nothing(tmp_path, method):
    whole = run(tmp_path, "8x1", method, 8, 1, block_size=6)
    for micro, accumulation in ((4, 2), (1, 8)):
        split = run(tmp_path, f"{micro}x{accumulation}", method, micro, accumulation, block_size=6)
        assert split.recorded.draws == whole.recorded.draws
        assert_same_trajectory(split.recorded.losses, whole.recorded.losses)
    assert len(whole.recorded.draws) > STEPS * 8  # several units per row


def test_one_block_per_row_draws_what_the_ordinary_form_draws(tmp_path):
    draws = [
        {key: t for key, (t, _) in run(tmp_path, name, "lowdisc", 8, 1, steps=3, **form).recorded.draws.items()}
        for name, form in (("plain", {}), ("blocks", {"block_size": 100}))
    ]
    assert draws[0] == draws[1]


def test_units_of_a_step_are_numbered_over_ranks_without_repeats():
    """Two ranks, the second's last row a repeat of place 8."""
    places, units = torch.tensor([[8, 10], [9, 8]]), torch.tensor([[2, 3], [4, 2]])
    first, total = first_units(step_rows(places, torch.ones(2, 2), 8), units)
    assert (first.tolist(), total) == ([[0, 6], [2, 0]], 9)


class ByPosition(torch.nn.Module):
    """Cross-entropy = 1 + the token's block; checks that the block form is asked for."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, ids, attention, selected, targets, block_ids):
        return type("Out", (), {"nll": (1.0 + block_ids[selected]).double() + self.weight})


def test_the_row_loss_is_the_share_of_each_block_times_its_loss():
    """CE constant in a block: l_b is its CE at fixed counts and eps = 0 whatever is drawn, so the row loss is exact."""
    rows = [TokenRow(list(range(9)), 2), TokenRow(list(range(5)), 1), TokenRow(list(range(4)), 3)]
    meter = BlockMeter(MeteredModel(ByPosition(), 99, 0), rows, Objective(eps=0.0), block_size=3)
    assert meter.ratios_per_row == 3
    expected = [(3 * 2 + 3 * 3 + 1 * 4) / 7, (3 * 2 + 1 * 3) / 4, 2.0]
    torch.testing.assert_close(row_nll(meter), torch.tensor(expected, dtype=torch.float64))


def test_evaluation_noise_with_one_block_per_row_is_the_ordinary_one():
    class Sure(ByPosition):
        def forward(self, ids, attention, selected, targets, block_ids=None):
            return type("Out", (), {"nll": ids.double().cumsum(1)[selected] + self.weight})

    rows = [TokenRow(list(range(9)), 2), TokenRow(list(range(5)), 1)]
    given = MeteredModel(Sure(), 99, 0), rows, Objective()
    plain, blocks = row_nll(LossMeter(*given)), row_nll(BlockMeter(*given, block_size=7))
    assert torch.equal(plain, blocks)


SMALL = {
    "model": "tiny",
    "data": {"train": "synthetic:easy", "train_rows": 96, "validation_rows": 24, "test_rows": 2, "pad_response_to": 16},
    "method": "lowdisc+fixedcount",
    "block_size": 8,
    "decoding": {"length": 16, "steps": 16, "block": 8},
    "batch": 16,
    "steps": 12,
    "trainer": {"learning_rate": 1e-3},
}


@pytest.mark.slow
def test_a_small_run_learns_and_its_model_knows_its_blocks(tmp_path):
    trainer = SMALL["trainer"] | {"eval_on_start": True}
    settings = TrainSettings.model_validate(SMALL | {"out": str(tmp_path), "eval_every": 12, "trainer": trainer})
    record = train(settings, say=lambda _: None)
    nll = [line["eval_nll"] for line in record["history"] if "eval_nll" in line]
    assert nll[-1] < 0.8 * nll[0]
    loaded = load_model(str(tmp_path / "model"))
    assert loaded.model.config.block_size == 8
    with pytest.raises(UserError, match=r"^key 'block_size': expected 8, as model '.*' was trained, found None\.$"):
        train(
            TrainSettings.model_validate(
                SMALL | {"model": str(tmp_path / "model"), "block_size": None, "out": str(tmp_path / "other")}
            ),
            say=lambda _: None,
        )


def test_resuming_with_other_blocks_is_another_run(tmp_path):
    settings = SMALL | {"steps": 1, "out": str(tmp_path)}
    train(TrainSettings.model_validate(settings), say=lambda _: None)
    other = settings | {"block_size": 4, "decoding": {"length": 16, "steps": 16, "block": 4}}
    with pytest.raises(UserError, match="block_size"):
        train(TrainSettings.model_validate(other), say=lambda _: None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "syrm"}, "'syrm' and block_size contradict"),
        ({"method": "ema"}, "'ema' and block_size contradict"),
        ({"block_size": 4}, "key 'decoding.block': expected block_size = 4, found 8."),
    ],
)
def test_what_does_not_go_together_is_one_sentence(tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        train(TrainSettings.model_validate(SMALL | change | {"out": str(tmp_path)}), say=lambda _: None)


def test_resuming_without_blocks_is_another_run():
    settings = TrainSettings.model_validate(SMALL)
    changed = settings.model_copy(update={"block_size": None})
    identities = [identity_of(s, Method(), DEFAULTS) for s in (settings, changed)]
    assert identities[0] != identities[1]
    assert set(identities[0]) == set(identities[1])  # every key is compared


def test_units_measured_one_by_one_add_up_to_the_rows():
    """At t = 1 everything is masked and nothing random: the mean over units is that of the rows' losses."""
    rows = [TokenRow(list(range(11)), 2, [4, 9]), TokenRow(list(range(6)), 3), TokenRow(list(range(20, 25)), 4)]
    given, key = (MeteredModel(block_model(), 38, 39), rows, Objective()), Key(0, 0)
    whole = BlockMeter(*given, block_size=4)
    units = UnitMeter(*given, block_size=4)
    assert len(units.rows) == 3 + 1 + 1
    assert [u.delimiter for u in units.rows] == [[4], [9], [], [], []]
    ones = torch.ones(5, dtype=torch.float64)
    each = units.losses(torch.arange(5), ones, Method(), key)
    row = whole.losses(torch.arange(3), ones[:3], Method(), key)
    assert len(set(row.tolist())) == 3
    torch.testing.assert_close(each[:3].sum() / units.units_per_row, row[0])
    torch.testing.assert_close(each.mean(), row.mean())


def test_p_is_fitted_to_units_and_refused_for_other_blocks(tmp_path):
    ppots = {"rows": 6, "rates": 4, "masks": 2, "starts": 2}
    settings = SMALL | {"method": "lowdisc+ppots", "ppots": ppots, "steps": 1, "out": str(tmp_path / "a")}
    record = train(TrainSettings.model_validate(settings), say=lambda _: None)
    assert record["probe_forward_passes"] > 0
    density = str(tmp_path / "a" / "p_of_t.json")
    other = settings | {"p_of_t": density, "out": str(tmp_path / "b"), "block_size": 16}
    other["decoding"] = {"length": 16, "steps": 16, "block": 16}
    with pytest.raises(UserError, match=r"expected a density fitted for block_size=16, found one for 8\.$"):
        train(TrainSettings.model_validate(other), say=lambda _: None)
    gradient = settings | {"method": "ppots-gradient", "out": str(tmp_path / "c")}
    with pytest.raises(UserError, match="fitted to gradients and block_size contradict"):
        train(TrainSettings.model_validate(gradient), say=lambda _: None)


def block_model() -> TinyMDM:
    torch.manual_seed(3)
    config = TinyMDMConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        mask_token_id=38,
        initializer_range=0.5,
        block_size=4,
    )
    return TinyMDM(config).double()


def test_decoding_shows_a_block_its_past_alone():
    """One token a call from the surest: written out for one prompt, each call on the row cut after the block."""
    model, prompt = block_model(), [5, 6, 7]
    found = generate(model, [prompt, [1]], DecodingOptions(8, 8, 4), mask_id=38, eos_id=39, pad_id=39)
    ids = list(prompt)
    for _ in (1, 2):
        ids += [38] * 4
        blocks = torch.tensor([[0] * 3 + [1] * 4 + [2] * 4])[:, : len(ids)]
        for _ in range(4):
            logits = model(torch.tensor([ids]), block_ids=blocks).logits[0].detach()
            logits[:, 38] = -torch.inf
            sure, token = logits.softmax(-1).max(-1)
            best = max((i for i in range(len(ids)) if ids[i] == 38), key=lambda i: float(sure[i]))
            ids[best] = int(token[best])
        if 39 in ids[3:]:
            break
    response = ids[3:]
    assert found[0] == (response[: response.index(39)] if 39 in response else response)


def test_decoding_in_other_blocks_is_refused():
    with pytest.raises(UserError, match=r"^decoding: expected block 4, .* found 8\.$"):
        generate(block_model(), [[1]], DecodingOptions(8, 8, 8), mask_id=38, eos_id=39, pad_id=39)


def test_an_answer_that_is_trained_in_parts_has_no_blocks():
    rows = [TokenRow(list(range(9)), 2, origin="f:1"), TokenRow(list(range(9)), 2, origin="f:2", given=[4])]
    for kind in (BlockMeter, UnitMeter):
        with pytest.raises(UserError, match=r"f:2: expected an answer that is trained as a whole under block_size"):
            kind(MeteredModel(ByPosition(), 99, 0), rows, Objective(eps=0.0), block_size=3)


def test_a_run_in_blocks_refuses_it_before_the_first_step(tmp_path):
    rows = [TokenRow(list(range(9)), 2, origin="f:1", given=[4]), TokenRow(list(range(9)), 2)] * 2
    with pytest.raises(UserError, match=r"f:1: expected an answer that is trained as a whole under block_size"):
        make_trainer(tmp_path, block_size=3, train=rows)

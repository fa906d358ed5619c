"""EMA: the reported loss keeps its mean and loses variance; the gradient is unchanged to the last bit."""

from __future__ import annotations

import torch

from stabledllm.noise.densities import Tabulated
from stabledllm.noise.streams import Key, Stream
from stabledllm.training.control_variate import EMAControlVariate, default_rate
from tests.checks.statistics import assert_mean
from tests.fakes.trainer import make_trainer

SAMPLER = Tabulated(torch.linspace(2.0, 0.5, 32, dtype=torch.float64))


def draw_step(step: int, n: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """l / p and t of a step; E[l / p] = ∫ (1 + 4 t) dt = 3."""
    rows = torch.arange(n)
    t = SAMPLER.icdf(Key(5, step).row_uniforms(Stream.RATE, rows))
    noise = torch.special.ndtri(Key(5, step).row_uniforms(Stream.MASK, rows))
    return (1 + 4 * t + 0.3 * noise) * SAMPLER.weight(t), t


def run(steps: int, variate: EMAControlVariate) -> tuple[torch.Tensor, torch.Tensor]:
    plain, adjusted = [], []
    for step in range(steps):
        loss, t = draw_step(step)
        plain.append(loss)
        adjusted.append(variate.adjust(loss, t, SAMPLER))
        variate.update(loss, t)
    return torch.cat(plain), torch.cat(adjusted)


def test_the_reported_loss_stays_unbiased_and_its_variance_falls():
    plain, adjusted = run(3000, EMAControlVariate(bins=10, rate=0.05))
    assert_mean(adjusted, 3.0)
    assert adjusted[2000:].var() < 0.6 * plain[2000:].var()


def test_before_anything_was_seen_nothing_is_adjusted():
    loss, t = draw_step(0)
    assert torch.equal(EMAControlVariate().adjust(loss, t, SAMPLER), loss)


def test_own_steps_do_not_enter_their_baseline():
    """A baseline that has seen the row it corrects is biased: adjust reads state, only update writes it."""
    variate = EMAControlVariate()
    run(50, variate)
    before = (list(variate.mean), list(variate.moments))
    variate.adjust(*draw_step(60), SAMPLER)
    assert (variate.mean, variate.moments) == before


def test_the_gradient_is_unchanged(tmp_path):
    plain = make_trainer(tmp_path / "a", "ppots", steps=8)
    steadied = make_trainer(tmp_path / "b", "ppots+ema", steps=8)
    plain.train()
    steadied.train()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, steadied.model.state_dict()[name])
    logged = [line for line in steadied.state.log_history if "loss_ema" in line]
    assert len(logged) == 8
    assert any(line["loss_ema"] != line["loss"] for line in logged)
    assert not any("loss_ema" in line for line in plain.state.log_history)


def test_the_papers_rule():
    assert default_rate(10, 4000) == 0.25
    assert default_rate(10, 10**6) == 0.01

"""Each density of t: sampler, density, inverse CDF and weight agree; E[weight] = 1 on all of [0, 1]."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stabledllm.errors import UserError
from stabledllm.noise.densities import Clipped, Tabulated, Uniform
from stabledllm.noise.streams import Key, Stream
from tests.checks.noise import check_density, check_support, check_weight_by_drawing, check_weight_integral

UNBIASED = [
    Uniform(),
    Tabulated([1.0] * 64, name="flat"),
    Tabulated([3.0, 1.0, 0.2, 1.0, 7.0], name="five cells"),
    Tabulated((torch.linspace(0, 1, 1024, dtype=torch.float64) ** 4 + 0.01), name="steep"),
    Tabulated([1e-6, 1.0, 1e3], name="extreme").mix_uniform(0.1),
]
by_name = pytest.mark.parametrize("sampler", UNBIASED, ids=lambda s: s.name)


@by_name
def test_expected_weight_is_one_exactly(sampler):
    check_weight_integral(sampler)


@pytest.mark.statistical
@by_name
@pytest.mark.parametrize("text", ["standard", "mirror", "multisample", "fixedcount", "isad-exact", "fixedcount+mirror"])
def test_expected_weight_is_one_over_draws(sampler, text):
    check_weight_by_drawing(text, sampler)


@pytest.mark.statistical
@pytest.mark.parametrize("sampler", [*UNBIASED, Clipped(0.3, 0.8)], ids=lambda s: s.name)
def test_goodness_of_fit(sampler):
    check_density(sampler)


@by_name
def test_support_is_all_of_0_to_1(sampler):
    assert sampler.unbiased
    check_support(sampler)
    beyond = torch.tensor([-0.1, 1.1], dtype=torch.float64)
    assert torch.isneginf(sampler.log_prob(beyond)).all()


tables = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40)


@given(tables, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_cdf_undoes_icdf(table, us):
    sampler, u = Tabulated(table), torch.tensor(us, dtype=torch.float64)
    t = sampler.icdf(u)
    assert bool(((t >= 0) & (t <= 1)).all())
    assert torch.allclose(sampler.cdf(t), u, atol=1e-12)


@given(tables, st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_icdf_undoes_cdf(table, ts):
    sampler, t = Tabulated(table), torch.tensor(ts, dtype=torch.float64)
    # The density can be as low as 1e-6 of its mean, which magnifies the rounding of u.
    assert torch.allclose(sampler.icdf(sampler.cdf(t)), t, atol=1e-8)


@given(tables)
@settings(max_examples=100, deadline=None)
def test_any_table_has_expected_weight_one(table):
    check_weight_integral(Tabulated(table))


@pytest.mark.parametrize("k", range(0, 13, 3))
def test_flat_density_is_uniforms_t_bit_for_bit(k):
    flat = Tabulated([0.37] * 2**k)
    u = Key(5, 1).row_uniforms(Stream.RATE, torch.arange(20_000))
    assert torch.equal(flat.icdf(u), Uniform().icdf(u))
    assert torch.equal(flat.weight(u), Uniform().weight(u))


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_defensive_mixture_bounds_the_weight(share):
    mixed = Tabulated([1e-9, 1.0, 5.0, 1e-9]).mix_uniform(share)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert float(mixed.weight(t).max()) <= 1 / share * (1 + 1e-12)
    check_weight_integral(mixed)


def test_relative_ess_is_one_over_the_mean_weight_under_uniform_t():
    assert Tabulated([1.0] * 8).relative_ess() == 1.0
    assert Tabulated([0.5, 1.5]).relative_ess() == pytest.approx(1 / (0.5 / 0.5 + 0.5 / 1.5))


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [1.0, -1.0], [float("nan")], [float("inf"), 1.0], [[1.0]]])
def test_bad_tables_are_refused(values):
    with pytest.raises(ValueError, match="positive, finite"):
        Tabulated(values)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_bad_mixture_share_is_refused(share):
    with pytest.raises(ValueError, match="uniform share"):
        Tabulated([1.0]).mix_uniform(share)


def test_clipped_is_named_biased_and_stays_inside():
    sampler = Clipped(0.3, 0.8)
    t = sampler.icdf(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert not sampler.unbiased
    assert torch.allclose(t, torch.tensor([0.3, 0.55, 0.8], dtype=torch.float64))
    assert torch.allclose(sampler.cdf(t), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert bool((sampler.weight(t) == 1).all())


@pytest.mark.parametrize(("low", "high"), [(0.8, 0.3), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_bad_interval_is_one_sentence(low, high):
    with pytest.raises(UserError, match=r"^clipped: expected an interval [^\n]*\.$"):
        Clipped(low, high)


def test_cdf_and_icdf_are_exact_to_double_precision_on_any_number_of_cells():
    """Cells whose edges are no binary fractions: divided in the default dtype they would be off by 1e-8."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        values = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.2
        sampler = Tabulated(values)
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:-1]
        edges, mass = torch.arange(8, dtype=torch.float64) / 7, torch.cat((torch.zeros(1).double(), values)).cumsum(0)
        j = (t * 7).long()
        exact = (mass[j] + (t - edges[j]) * 7 * values[j]) / values.sum()
        assert float((sampler.cdf(t) - exact).abs().max()) < 1e-14
        assert float((sampler.icdf(exact) - t).abs().max()) < 1e-13
    finally:
        torch.set_default_dtype(before)

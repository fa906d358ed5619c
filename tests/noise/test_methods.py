"""Method strings: any order is understood, nonsense is refused in one sentence."""

import itertools
import subprocess
import sys

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.method_checks import _COUNTED, check_finite_variance, check_probed
from stabledllm.noise.densities import Tabulated, Uniform
from stabledllm.noise.maskers import Complement, FixedCount
from stabledllm.noise.methods import Method, MethodOptions, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.of_parts import OfParts
from stabledllm.noise.parts import AUTOREGRESSIVE, MASKER, PARTS
from stabledllm.noise.sources import LowDiscrepancy
from stabledllm.noise.streams import Key
from stabledllm.noise.views import ComplementPair, MultiSample
from tests.checks.noise import draw_at


@pytest.mark.parametrize("order", list(itertools.permutations(["mirror", "strats", "ppots"])))
def test_parts_in_any_order_give_the_canonical_name(order):
    method = Method.parse(" + ".join(order))
    assert method.name == "strats+ppots+mirror"
    assert method == Method.parse("strats+ppots+mirror")


def test_the_checks_know_which_masks_are_independent():
    options = MethodOptions()
    for part in PARTS.values():
        made = part.objects(options, 2).get(MASKER)
        if made is not None and part.name != AUTOREGRESSIVE:
            assert made.independent != (part.name in _COUNTED), part.name


@pytest.mark.parametrize("name", ["ppots", "lowdisc+ppots", "ppots+fixedcount", "ppots+isad", "ppots+mirror", "mirror"])
@pytest.mark.parametrize("weighting", ["elbo", "unweighted", "cosine"])
def test_a_probe_is_refused_beforehand_where_it_is_refused_at_work(name, weighting):
    """The check by the name alone says what that of the built method says."""
    objective = Objective(weighting, eps=0.0)
    method = OfParts(name)
    if not method.takes(objective):
        return
    said = []
    for check in (
        lambda: check_probed(method, objective),
        lambda: method.needs_p and check_finite_variance(Method.parse(name, objective=objective), "ppots"),
    ):
        try:
            check()
            said.append("")
        except UserError as error:
            said.append(str(error))
    assert said[0] == said[1]


@pytest.mark.parametrize("part", ["standard", *PARTS, "multisample5", "partition4"])
def test_every_part_stands_alone_under_its_own_name(part):
    assert Method.parse(part).name == part


def test_parts_reach_their_slots():
    method = Method.parse("lowdisc+ppots+fixedcount+multisample3+syrm+ema")
    assert (method.source, method.signal, method.masker) == (LowDiscrepancy(), "loss", FixedCount())
    assert (method.views, method.syrm, method.ema) == (MultiSample(3), True, True)


def test_numbers_of_views():
    for text, count in (("multisample", 2), ("multisample5", 5), ("partition", 3), ("partition4", 4)):
        assert Method.parse(text).views.count == count


def test_complement_is_named_once_though_it_fills_two_slots():
    method = Method.parse("complement+ppots+lowdisc")
    assert method.name == "lowdisc+ppots+complement"
    assert (method.masker, method.views) == (Complement(), ComplementPair())


@pytest.mark.parametrize(
    ("text", "unbiased"),
    [
        ("standard", True),
        ("strats+ppots+mirror", True),
        ("fixedcount", True),
        ("isad-exact", True),
        ("ema", True),
        ("ppots+fixedcount+partition4", True),
        ("complement", True),
        ("isad", False),
        ("clipped", False),
        ("syrm", False),
        ("clipped+mirror", False),
    ],
)
def test_biased_methods_say_so(text, unbiased):
    assert Method.parse(text).unbiased is unbiased


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("miror", "unknown part 'miror' (did you mean 'mirror'?)"),
        ("xyzzy", "unknown part 'xyzzy' (known: standard"),
        ("", "unknown part ''"),
        ("ppots+", "unknown part ''"),
        ("mirror+multisample", "'mirror' and 'multisample' contradict"),
        ("multisample2+multisample3", "contradict"),
        ("strats+lowdisc", "'strats' and 'lowdisc' contradict"),
        ("ppots+clipped", "'ppots' and 'clipped' contradict"),
        ("isad+isad-exact", "contradict"),
        ("fixedcount+isad", "contradict"),
        ("mirror+mirror", "contradict"),
        ("standard+mirror", "'standard' stands alone"),
        ("mirror+standard", "'standard' stands alone"),
        ("multisample1", "expected 2 to 64 views, found 1"),
        ("partition1", "expected 2 to 64 views, found 1"),
        ("mirror+partition3", "'mirror' and 'partition3' contradict: both choose the views"),
        ("partition2+partition3", "contradict"),
        ("partitions3", "unknown part 'partitions3' (did you mean 'partition'?)"),
        ("mirror2", "unknown part 'mirror2' (did you mean 'mirror'?)"),
        ("complement+mirror", "'complement' and 'mirror' contradict: both choose the views"),
        ("complement+partition3", "'complement' and 'partition3' contradict: both choose the views"),
        ("complement+fixedcount", "'complement' and 'fixedcount' contradict: both choose the masker"),
        ("isad+complement", "'isad' and 'complement' contradict: both choose the masker"),
        ("clipped+complement", "'clipped' and 'complement' contradict"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(text, says):
    with pytest.raises(UserError) as caught:
        Method.parse(text)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("clipped", MethodOptions(clip_low=0.8, clip_high=0.3), "low=0.8, high=0.3"),
        ("isad", MethodOptions(isad_delta=2.0), "isad_delta"),
        ("mirror", MethodOptions(mirror_below=0.0), "mirror_below"),
    ],
)
def test_bad_options_are_refused_when_the_method_is_named(text, options, says):
    with pytest.raises(UserError, match=says):
        Method.parse(text, options)


def test_options_of_parts_that_are_not_named_are_not_read():
    bad = MethodOptions(strata=0, clip_low=0.8, clip_high=0.3, isad_delta=2.0, mirror_below=0.0)
    for text in ("standard", "lowdisc+fixedcount+partition", "autoregressive"):
        assert Method.parse(text, bad).name == text


def test_ppots_needs_a_fitted_density():
    with pytest.raises(UserError, match="needs a fitted"):
        Method.parse("ppots").sampler()
    fitted = Tabulated([1.0, 2.0])
    assert Method.parse("ppots").sampler(fitted) is fitted
    assert isinstance(Method.parse("mirror").sampler(fitted), Uniform)


def test_isad_needs_marked_rows():
    rows = Rows(torch.arange(2), 2, torch.ones(2, 3, dtype=torch.bool), torch.arange(3))
    with pytest.raises(UserError, match="delimiters"):
        Method.parse("isad").draw(Key(0, 0), rows, Uniform())


def test_flat_ppots_is_standard_bit_for_bit():
    rows = Rows(torch.arange(64), 64, torch.ones(64, 9, dtype=torch.bool), torch.arange(9))
    for text in ("standard", "mirror", "fixedcount"):
        plain, ppots = Method.parse(text), Method.parse(f"ppots+{text}".removesuffix("+standard"))
        a = plain.draw(Key(1, 2), rows, Uniform())
        b = ppots.draw(Key(1, 2), rows, Tabulated([1.0] * 1024))
        assert torch.equal(a.t, b.t)
        assert torch.equal(a.mask, b.mask)
        assert torch.allclose(a.coefficient, b.coefficient, rtol=1e-12)


def test_noisy_replaces_exactly_the_masked_tokens_of_the_active_views():
    draw = draw_at("mirror", 0.5, n=3, prompt=2)
    ids = torch.arange(18).view(3, 6)
    noisy, mask, source = draw.noisy(ids, 99)
    assert source.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(noisy == 99, mask)
    assert torch.equal(noisy[~mask], ids[source][~mask])
    assert torch.equal(noisy[:, :2], ids[source][:, :2])


def test_views_that_are_not_active_make_no_forward_row():
    method = Method.parse("mirror", MethodOptions(mirror_below=0.5))
    rows = Rows(torch.arange(2), 2, torch.ones(2, 4, dtype=torch.bool), torch.arange(4))
    draw = method.draw_at(torch.tensor([0.4, 0.6]).double(), Key(0, 0), rows, Uniform())
    assert draw.noisy(torch.zeros(2, 4, dtype=torch.long), 9)[2].tolist() == [0, 0, 1]


def test_names_say_as_many_views_as_methods_make():
    for text in ("standard", *PARTS, "partition5", "multisample4+isad"):
        if text != AUTOREGRESSIVE:
            method = Method.parse(text)
            assert max([1, *(named.views for named in method.parts)]) == method.views.count, text


@pytest.mark.processes
def test_names_are_read_without_torch():
    code = "import sys, stabledllm.method_checks, stabledllm.noise.weightings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""p_of_t.json: the same t after loading, one sentence for a bad file."""

from __future__ import annotations

import json

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.fit import FitOptions
from stabledllm.ppots.record import FittedDensity, fit_density
from tests.fakes.laws import Law
from tests.fakes.profiles import probed


@pytest.fixture(scope="module", params=["epr", "tabulated"])
def fitted(request):
    profile = probed(Law(sd=lambda t: 0.3 + 3 * t**2), "mirror", rows=8, rates=11, masks=4)
    return fit_density(profile, Method.parse("ppots+mirror"), FitOptions(family=request.param))


def test_loading_gives_the_same_draws_and_weights_bit_for_bit(fitted, tmp_path):
    path = tmp_path / "new" / "p_of_t.json"
    fitted.save(path)
    loaded = FittedDensity.load(path)
    u = Key(0, 0).row_uniforms(Stream.RATE, torch.arange(10_000))
    t = fitted.sampler.icdf(u)
    assert torch.equal(t, loaded.sampler.icdf(u))
    assert torch.equal(fitted.sampler.weight(t), loaded.sampler.weight(t))
    assert loaded.sampler.name == "ppots"
    assert loaded.summary() == fitted.summary()
    again = tmp_path / "again.json"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_the_file_has_the_keys_of_its_schema(fitted, tmp_path):
    fitted.save(tmp_path / "p.json")
    stored = json.loads((tmp_path / "p.json").read_text())
    assert stored["schema"] == "stabledllm/p_of_t/1"
    keys = "schema method source signal kind parameters density uniform_share diagnostics profile forward_passes config"
    assert list(stored) == keys.split()
    assert len(stored["density"]) == 4096
    diagnostics = "kl kl_threshold relative_ess pareto_k variance_uniform variance_fitted fallback"
    assert set(diagnostics.split()) <= set(stored["diagnostics"])
    assert list(stored["config"]) == ["starts", "family", "uniform_share", "moment", "seed", "step_rows", "strata"]
    curves = ["second_moment", "g", "v", "v_views", "rho"]
    assert {"t", "width", "target", *curves, *(f"{c}_stderr" for c in curves)} <= set(stored["profile"])
    profile = stored["profile"]
    assert sum(profile["width"]) == pytest.approx(1.0, abs=1e-12)
    assert sum(w * x for w, x in zip(profile["width"], profile["target"], strict=True)) == pytest.approx(1.0)
    assert stored["forward_passes"] == 8 * len(profile["t"]) * 4 * 2


def test_a_number_that_is_none_is_null(tmp_path):
    fitted = fit_density(probed(Law(), rows=3, rates=4, masks=2), Method.parse("ppots"), FitOptions(family="tabulated"))
    fitted.save(tmp_path / "p.json")
    stored = json.loads((tmp_path / "p.json").read_text())
    assert stored["profile"]["rho"] is None
    assert stored["diagnostics"]["kl"] is None
    assert stored["diagnostics"]["variance_fitted"]["stderr"] is None, "three rows have no jackknife error"
    assert "tabulated" in FittedDensity.load(tmp_path / "p.json").summary()


def test_a_failed_write_leaves_the_old_file(fitted, tmp_path, monkeypatch):
    path = tmp_path / "p.json"
    fitted.save(path)
    before = path.read_bytes()

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        fitted.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{broken", "", "\x00"])
def test_what_is_not_json_is_told_in_one_sentence(text, tmp_path):
    check_refused(tmp_path / "p.json", text, "expected JSON")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": "stabledllm/p_of_t/9"}, "expected schema 'stabledllm/p_of_t/1', found 'stabledllm/p_of_t/9'"),
        ({"density": [1.0, -1.0]}, "positive"),
        ({"density": [2.0, 0.0]}, "positive"),
        ({"density": [1.0, float("inf")]}, "positive"),
        ({"density": [1.0, None]}, "positive"),
        ({"density": [3.0, 3.0]}, "found mean 3"),
        ({"density": []}, "positive"),
        ({"density": "flat"}, "positive"),
        ({"diagnostics": None}, "broken"),
        ({"diagnostics": {}}, "broken"),
        ({"method": None}, "broken"),
        ({"forward_passes": None}, "broken"),
    ],
)
def test_a_bad_record_is_told_in_one_sentence(fitted, tmp_path, changes, words):
    check_refused(tmp_path / "p.json", json.dumps({**fitted.record, **changes}), words)


@pytest.mark.parametrize("key", ["schema", "density", "method", "kind", "diagnostics", "forward_passes"])
def test_a_missing_key_is_told_in_one_sentence(fitted, tmp_path, key):
    check_refused(tmp_path / "p.json", json.dumps({k: v for k, v in fitted.record.items() if k != key}), key)


def test_a_list_a_missing_file_and_a_folder(tmp_path):
    check_refused(tmp_path / "p.json", "[1, 2]", "found None")
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="expected a file, found nothing"):
            FittedDensity.load(path)


def check_refused(path, text: str, words: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        FittedDensity.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def held_out(method: str, fitted: float, uniform: float) -> FittedDensity:
    density = fit_density(probed(Law(), rows=3, rates=4, masks=2), Method.parse(method), FitOptions(family="tabulated"))
    density.record["diagnostics"] |= {"variance_fitted": {"value": fitted}, "variance_uniform": {"value": uniform}}
    return density


def test_a_fit_that_is_worse_than_uniform_on_held_out_rows_says_so():
    assert held_out("ppots", 4.0, 5.0).notes == []
    assert held_out("ppots", 5.2, 5.0).notes == []  # within what held-out rows cannot tell
    (note,) = held_out("ppots", 14670.0, 1092.0).notes
    assert "1.467e+04 nats² where uniform t has 1092" in note
    assert "leave ppots out" in note
    # The held-out variance is that of iid t: of a lattice's density it says nothing.
    assert held_out("lowdisc+ppots", 14670.0, 1092.0).notes == []

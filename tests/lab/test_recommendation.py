"""What is recommended from which measurements; each rule by a record in which only that rule decides."""

from __future__ import annotations

import pytest
import yaml

from stabledllm.config.recipe import check
from stabledllm.config.settings import DataSettings, ImageSettings, ObjectiveSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.lab.measure.recommendation import scale_in_words
from stabledllm.lab.recommendation import recommend


def entry(method: str, loss: float, gradient: float | None = None, *, half: float = 0.1, views=1.0, unbiased=True):
    def ratio(value: float) -> dict:
        width = 0.0 if method == "standard" else half
        return {"value": value, "ci_low": value - width, "ci_high": value + width}

    found = {"method": method, "views": views, "unbiased": unbiased, "relative_to_standard": ratio(loss)}
    if gradient is not None:
        found["gradient"] = {"relative_to_standard": ratio(gradient), "noise_scale": {"value": 400 * gradient / views}}
    return found


def record(*methods: dict) -> dict:
    options = {"strata": None, "mirror_below": 1.0, "isad_delta": 0.2, "ema_bins": 10}
    config = {"forwards": 32, "method_options": options, "probe": {"rows": 24, "rates": 16, "masks": 3}}
    mirror = {"sentence": "mirror's own sentence"}
    return {"model": "tiny", "data": "synthetic:hard", "config": config, "mirror": mirror, "methods": list(methods)}


STANDARD = entry("standard", 1.0, 1.0)


def test_the_gradient_decides_where_it_was_measured():
    found = recommend(record(STANDARD, entry("strats", 0.9, 0.4), entry("fixedcount", 0.3, 0.8)))
    assert (found.method, found.quantity, found.ratio) == ("strats", "gradient", 0.4)
    assert any("fixedcount would be best" in s for s in found.sentences)
    by_loss = recommend(record(STANDARD, entry("strats", 0.9, 0.4), entry("fixedcount", 0.3, 0.8)), "loss")
    assert by_loss.method == "fixedcount"


def test_only_the_loss_measured_is_enough_and_says_so():
    found = recommend(record(entry("standard", 1.0), entry("fixedcount", 0.3)))
    assert (found.method, found.quantity) == ("fixedcount", "loss")
    with pytest.raises(UserError, match="decompose --gradient"):
        recommend(record(entry("standard", 1.0), entry("fixedcount", 0.3)), "gradient")


def test_the_simplest_within_the_interval_of_the_best():
    methods = entry("lowdisc+ppots-gradient+fixedcount", 1, 0.50), entry("partition4+fixedcount", 1, 0.52, views=4.0)
    simple = entry("lowdisc+fixedcount", 1, 0.55)
    found = recommend(record(STANDARD, *methods, simple))
    assert (found.method, found.best) == ("lowdisc+fixedcount", "lowdisc+ppots-gradient+fixedcount")
    assert any("not surely less" in s for s in found.sentences)
    worse = entry("lowdisc+fixedcount", 1, 0.65)
    assert recommend(record(STANDARD, *methods, worse)).method == "partition4+fixedcount", "fewer probes before views"


def test_the_loss_disagrees_with_neither_the_best_nor_the_recommended_one():
    found = recommend(record(STANDARD, entry("ppots-gradient", 0.9, 0.5), entry("lowdisc+fixedcount", 0.2, 0.55)))
    assert (found.method, found.best) == ("lowdisc+fixedcount", "ppots-gradient")
    assert not any("disagrees" in s for s in found.sentences)


def test_among_free_methods_the_loss_breaks_the_tie():
    def free(method: str, gradient: float, predicted: float) -> dict:
        return entry(method, 0.9, gradient) | {"predicted_at_equal_compute": {"value": predicted}}

    found = recommend(record(STANDARD, free("fixedcount", 0.70, 2.4), free("strats+fixedcount", 0.72, 1.7)))
    assert (found.method, found.best) == ("strats+fixedcount", "fixedcount")
    apart = recommend(record(STANDARD, free("fixedcount", 0.50, 2.4), free("strats+fixedcount", 0.72, 1.7)))
    assert apart.method == "fixedcount", "not a tie"


def test_adaptive_is_named_for_the_density_of_ppots():
    found = recommend(record(STANDARD, entry("lowdisc+ppots+fixedcount", 0.4, 0.5), entry("fixedcount", 0.6, 0.58)))
    assert (found.method, found.measured_as) == ("lowdisc+adaptive+fixedcount", "lowdisc+ppots+fixedcount")
    assert "method: lowdisc+adaptive+fixedcount" in found.recipe
    assert "ppots:" not in found.recipe, "nothing to probe"
    assert any("without a probe" in s for s in found.sentences)


def test_a_biased_method_is_never_named():
    found = recommend(record(STANDARD, entry("clipped", 0.1, 0.1, unbiased=False), entry("strats", 0.8, 0.8)))
    assert found.method == "strats"


def test_nothing_significant_is_said_plainly():
    found = recommend(record(STANDARD, entry("strats", 0.9, 0.95), entry("mirror", 1.5, 1.5, views=2.0)))
    assert (found.method, found.significant) == ("standard", False)
    assert "No method helps significantly" in found.sentences[0]
    assert "method: standard" in found.recipe


def test_by_the_loss_nothing_is_claimed_of_a_method_whose_prediction_is_another():
    against = entry("mirror", 0.2, 0.9, views=2.0) | {"agrees_with_prediction": False}
    rest = entry("fixedcount", 0.6, 0.9), entry("strats", 0.8, 0.9)
    found = recommend(record(STANDARD, against, *rest), "loss")
    assert (found.method, found.best) == ("fixedcount", "fixedcount")
    assert "Not compared, as measured and predicted variances disagree: mirror." in found.sentences
    assert any("Whether MIRROR alone pays is not claimed" in s for s in found.sentences)
    # The gradient's ratios are predicted ones.
    by_gradient = recommend(record(STANDARD, against | {"gradient": entry("mirror", 1, 0.4)["gradient"]}, *rest))
    assert by_gradient.method == "mirror"
    assert not any("disagree:" in s or "not claimed" in s for s in by_gradient.sentences)


def test_by_the_loss_nothing_is_recommended_where_standards_own_prediction_is_another():
    standard = STANDARD | {"agrees_with_prediction": False}
    found = recommend(record(standard, entry("fixedcount", 0.3, 0.5), entry("mirror", 0.4, 0.6, views=2.0)), "loss")
    assert (found.method, found.best, found.significant, found.ratio) == ("standard", "standard", False, 1.0)
    assert found.sentences[0].startswith("Nothing is recommended: measured and predicted variances disagree")
    assert not any("MIRROR alone pays here" in s for s in found.sentences)
    by_gradient = recommend(record(standard, entry("fixedcount", 0.3, 0.5), entry("strats", 0.2, 0.9)))
    assert by_gradient.method == "fixedcount"
    assert not any("The loss's noise disagrees" in s for s in by_gradient.sentences), "nothing is claimed by the loss"


def test_drawn_steps_that_do_not_vary_as_predicted_are_told():
    apart = entry("strats", 0.9, 0.4)
    apart["gradient"]["drawn_steps_agree"] = False
    both = record(STANDARD, apart, entry("fixedcount", 0.9, 0.9))
    told = [s for s in recommend(both).sentences if "do not vary as predicted" in s]
    assert len(told) == 1
    assert told[0].startswith("Drawn steps of strats do not")
    assert not any("as predicted" in s for s in recommend(both | {"gradient": {"heavy_tail": True}}).sentences)
    apart["gradient"]["drawn_steps_agree"] = True
    assert not any("as predicted" in s for s in recommend(both).sentences)


def test_so_few_draws_that_no_ratio_is_known():
    """Not the command that was typed is named, but what to draw more of."""
    unknown = entry("strats", 0.5) | {"relative_to_standard": {"value": 0.5, "ci_low": None, "ci_high": None}}
    with pytest.raises(UserError, match="so few draws tell no interval: run 'stabledllm decompose' with more rows and"):
        recommend(record(entry("standard", 1.0), unknown), "loss")


@pytest.mark.parametrize(
    ("ratio", "said"), [(1.5, "does not pay here"), (0.5, "pays here"), (1.05, "too close to tell")]
)
def test_mirrors_sentence_follows_its_interval(ratio, said):
    found = recommend(record(STANDARD, entry("strats", 0.5, 0.5), entry("mirror", 1, ratio, views=2.0)))
    assert any(said in s and "MIRROR" in s for s in found.sentences)


@pytest.mark.parametrize(("ratio", "said"), [(0.7, "pays here"), (1.4, "does not pay here")])
def test_mirror_below_some_t_is_not_explained_by_what_two_views_of_every_row_would_be(ratio, said):
    (sentence,) = (
        s
        for s in recommend(record(STANDARD, entry("strats", 0.5, 0.5), entry("mirror", 1, ratio, views=1.3))).sentences
        if "MIRROR" in s
    )
    assert said in sentence
    assert "at 1.3 forwards a row" in sentence
    assert "B + C" not in sentence


def test_the_recipe_lines_are_a_recipe():
    sets = record(STANDARD, entry("strats+ppots-head+mirror", 0.5, 0.5, views=2.0))
    sets["config"]["method_options"] |= {"strata": 4, "mirror_below": 0.9}
    found = recommend(sets)
    settings = check(yaml.safe_load(found.recipe), TrainSettings, "pasted")
    assert (settings.method, settings.batch, settings.ppots.rates) == ("strats+ppots-head+mirror", 16, 16)
    assert (settings.method_options.strata, settings.method_options.mirror_below) == (4, 0.9)
    assert "isad" not in found.recipe
    # 400 x 0.5 rows' noise scale over 2 views of a row: 200 forward passes against 400.
    assert any("200 forward passes, standard's 400" in s for s in found.sentences)


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ({"value": 4.0, "stderr": 1.0, "n": 100}, "4 (2.7 to 7.9)"),
        ({"value": 4.0, "stderr": 3.0, "n": 100}, "4 (at least 1.6)"),
        ({"value": 4.0, "stderr": 3.0, "n": 3}, "4 (at least 0.95)"),
        ({"value": 4.0, "stderr": None, "n": 100}, "4"),
        ({"value": -4.0, "stderr": 1.0, "n": 100}, None),
        ({"value": None}, None),
        ({}, None),
    ],
)
def test_a_noise_scale_says_how_well_it_is_known(stored, told):
    """Its interval is that of the signal over the noise, turned over."""
    assert scale_in_words(stored, 1.0) == told
    if told and "at least" not in told and stored["stderr"]:
        low, high = (float(x) for x in told.split("(")[1].strip(")").split(" to "))
        inverse = 1 / stored["value"]
        assert (1 / high + 1 / low) / 2 == pytest.approx(inverse, rel=0.02)


def test_the_recipe_lines_keep_what_the_noise_was_measured_under():
    sets = record(STANDARD, entry("strats", 0.5, 0.5))
    sets["config"] |= {
        "objective": ObjectiveSettings(weighting="cosine").model_dump(),
        "data": DataSettings(train="scenes", pad_response_to=40, image=ImageSettings(max_text=14)).model_dump(),
    }
    sets["data"] = "scenes"
    settings = check(yaml.safe_load(recommend(sets).recipe), TrainSettings, "pasted")
    assert settings.objective.weighting == "cosine"
    assert settings.data == DataSettings(**sets["config"]["data"])


def test_without_standard_there_is_nothing_to_compare():
    with pytest.raises(UserError, match="expected Standard and another"):
        recommend(record(entry("strats", 0.5, 0.5)))

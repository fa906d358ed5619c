"""What a recipe asks for can be switched off in an override and in a recipe that extends it."""

from __future__ import annotations

import pytest

from stabledllm.config import load_recipe
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.errors import UserError

ASKED = "average: {ema: [0.9], power: [0.05, 0.1]}\nlora: {rank: 8}\n"


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "recipe.yaml")

    return write


@pytest.mark.parametrize("null", ["null", "~"])
def test_the_averages_of_a_run(recipe, null):
    assert load_recipe(recipe(ASKED)).average.count == 3
    assert load_recipe(recipe(ASKED), [f"average={null}"]).average.count == 0
    assert load_recipe(recipe(f"average: {null}")).average == TrainSettings().average
    assert TrainSettings(average=None).average == TrainSettings().average


def test_the_averages_of_an_experiment_before_others_are_asked_for(recipe):
    text = "methods: [standard]\nbase: {average: {ema: [0.9], tail: [0.5]}}\n"
    settings = load_recipe(recipe(text), ["base.average=null"])
    assert isinstance(settings, ExperimentSettings)
    assert settings.base.average.count == 0
    again = load_recipe(recipe(text), ["base.average=null", "base.average.tail=[0.25]"])
    assert (again.base.average.ema, again.base.average.tail) == ([], [0.25])


@pytest.mark.parametrize(
    ("key", "end"),
    [
        ("learning_rates", "found 'null'; write learning_rates=[] for none."),
        ("standard_at", "found 'null'; write standard_at=[] for none."),
        ("base.average.ema", "found 'null'; write base.average.ema=[] for none."),
        ("methods", "found 'null'."),
        ("seeds", "found 'null'."),
    ],
)
def test_a_list_is_switched_off_by_one_that_is_empty(recipe, key, end):
    with pytest.raises(UserError) as raised:
        load_recipe(recipe("methods: [standard]"), [f"{key}=null"])
    assert str(raised.value).endswith(end)

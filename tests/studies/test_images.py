"""The study of text to image: its recipe is in order, and its page holds what results.json holds."""

from __future__ import annotations

import importlib.util
import json

from stabledllm.config import load_recipe
from stabledllm.experiment.validation import validate
from tests.cli.runner import ROOT

FOLDER = ROOT / "studies" / "images"


def study():
    spec = importlib.util.spec_from_file_location("images_study", FOLDER / "study.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_recipe_is_that_of_the_table():
    recipe = load_recipe(str(FOLDER / "compare.yaml"))
    assert validate(recipe)
    assert tuple(recipe.methods) == study().METHODS
    results = json.loads((FOLDER / "results.json").read_text())
    done = {(run["method"], run["seed"]) for run in results["runs"]}
    assert done == {(method, seed) for method in recipe.methods for seed in recipe.seeds}
    assert len({run["forward_passes"] for run in results["runs"]}) == 1, "equal compute"


def test_the_pages_table_is_that_of_the_results():
    results = json.loads((FOLDER / "results.json").read_text())
    page = (FOLDER / "README.md").read_text()
    assert study().table(results) in page
    assert study().table_of_steps(results) in page

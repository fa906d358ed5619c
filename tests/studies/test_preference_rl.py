"""The study of preferences: its page is made of its results, VRPO's rows are VRPO's, and what is measured is kept."""

from __future__ import annotations

import json

import pytest

from stabledllm.noise.of_parts import OfParts
from stabledllm.preference_checks import views_of
from tests.cli.runner import ROOT
from tests.studies.loading import loaded

FOLDER = ROOT / "studies" / "preference_rl"


@pytest.fixture(scope="module")
def study():
    yield from loaded(FOLDER)


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((FOLDER / "noise.json").read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_results(study, record):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert study.page(text, {"noise": record}) == text


def test_the_rows_are_those_of_the_paper_and_ours_at_as_many_forwards(study):
    noise = study.noise
    assert [noise._kind(row) for row in noise.VRPO] == ["8, 1, yes", "4, 1, yes", "2, 2, yes", "1, 4, yes", "1, 1, yes",
                                                        "4, 1, no"]  # fmt: skip
    for row in noise.ROWS:
        assert row.budget % views_of(OfParts(row.method)) == 0
        assert row.vrpo or row.against.budget == row.budget
    assert len({row.name for row in noise.ROWS}) == len(noise.ROWS)


def test_what_is_measured_is_of_one_size(study, record):
    names, about = {row.name for row in study.noise.ROWS}, record["about"]
    assert about == {"pairs": 48, "repeats": 3, "beta": 0.1, "seed": 0}
    for distance, found in record["distances"].items():
        assert found["steps"] == study.noise.DISTANCES[distance]
        assert set(found["rows"]) <= names
        for row in found["rows"].values():
            assert {len(each) for each in row.values()} == {about["pairs"]}


def test_sharing_draws_cuts_the_margins_noise_as_the_paper_found(study, record):
    """VRPO: about 1,000 times for the margin, and a few times for the gradient."""
    for found in record["distances"].values():
        noise = study.noise
        apart, shared = (noise.noise_of(found, row) for row in (noise.VRPO[5], noise.VRPO[1]))
        if apart and shared:
            assert apart.over(shared, "margin").value > 50
            assert 1 < apart.over(shared, "gradient").value < 10


def fake(base: float) -> dict:
    return {name: [base, 2 * base, 1.5 * base] for name in ("margin", "loss", "gradient", "bias")}


def test_what_is_measured_is_kept_and_the_rest_is_added(study, tmp_path, monkeypatch):
    noise, asked = study.noise, []

    class Models:
        def __init__(self, work, steps, say):
            asked.append(steps)

        def measured(self, row, size):
            return fake(1.0)

    monkeypatch.setattr(noise, "Models", Models)
    path, first = tmp_path / "noise.json", noise.ROWS[0].name
    noise.measure(tmp_path, noise.SMALL, path, lambda line: None)
    done = json.loads(path.read_text())
    assert asked == list(noise.DISTANCES.values())
    assert [set(each["rows"]) for each in done["distances"].values()] == [{row.name for row in noise.ROWS}] * 2
    done["distances"]["near"]["rows"][first] = fake(5.0)
    del done["distances"]["far"]["rows"][first]
    path.write_text(json.dumps(done))
    again = noise.measure(tmp_path, noise.SMALL, path, lambda line: None)
    assert asked[2:] == [noise.DISTANCES["far"]], "nothing is loaded where nothing is to be measured"
    assert again["distances"]["near"]["rows"][first] == fake(5.0)
    with pytest.raises(SystemExit, match="holds another size"):
        noise.measure(tmp_path, noise.Size(), path)


def test_a_row_is_told_to_be_better_only_where_it_surely_is(study):
    noise = study.noise
    rows = {row.name: fake(1.0) for row in noise.ROWS}
    found = {"steps": 8, "rows": rows}
    assert noise._told(found).startswith("None of our rows has surely less")
    assert "10 comparisons" in noise._told(found)
    better = noise.ROWS[6]
    rows[better.name] = {name: [0.01, 1.0101, 0.51] for name in fake(1.0)}
    assert noise._told(found).endswith(f"correction: `{better.method}` at 4.")
    del rows[better.name]
    assert noise._told(found).startswith("None of our rows")


def test_ratios_are_of_variances_as_they_are(study):
    """Of another number of forwards too, as in the paper's table."""
    noise, found = study.noise, {"steps": 8, "rows": {row.name: fake(1.0) for row in study.noise.ROWS}}
    found["rows"][noise.VRPO[4].name] = fake(4.0)
    one_forward, four = (noise.noise_of(found, noise.VRPO[place]) for place in (4, 1))
    assert one_forward.over(four, "gradient").value == pytest.approx(4)

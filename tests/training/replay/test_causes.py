"""Spikes that were put in on purpose are attributed to what was put in, by ``replay`` itself, in runs of every form."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from stabledllm.training.replay.cause import DIVERGING, DRAW, LABEL, SHORT
from stabledllm.training.replay.run import replay
from stabledllm.training.spikes import read_spikes
from tests.fakes import spikes as fake
from tests.fakes.run import train

pytestmark = pytest.mark.long

FAST = {"learning_rate": 0.3, "lr_scheduler_type": "constant"}
SLOW = {"learning_rate": 1e-5, "lr_scheduler_type": "constant"}


@dataclass(frozen=True)
class Given:
    """A run: the seed, the spoilt rows by step, its settings, and those under which it goes on."""

    seed: int
    spoilt: dict = field(default_factory=dict)
    change: dict = field(default_factory=dict)
    then: dict | None = None


RUNS = {
    # Under these seeds Standard gives one row (or block) of step 16 a large weight, see fake.weights_of, and masks the
    # single token of the short row of step 14, see fake.spoilt_weight.
    "standard": Given(202, {12: fake.nonsense, 14: fake.one_token}),
    "packed, exact counts": Given(
        3,
        {12: fake.nonsense, 14: fake.one_token},
        {"method": "lowdisc+fixedcount", "packing": True, "micro_batch": 2},
    ),
    "blocks": Given(210, {12: fake.nonsense}, {"block_size": 8, "decoding": {"block": 8}}),
    "adapters": Given(202, {12: fake.nonsense}, {"lora": {"rank": 4}, "trainer": fake.CPU | {"learning_rate": 1e-3}}),
    "a rate too high": Given(
        4,
        change={"steps": 12, "save_every": 6, "trainer": fake.CPU | SLOW},
        then={"steps": 16, "allow_changed": ["steps", "trainer"], "trainer": fake.CPU | FAST},
    ),
}
CASES = [
    ("standard", 12, LABEL),
    ("standard", 16, DRAW),
    ("standard", 14, SHORT),
    ("packed, exact counts", 12, LABEL),
    ("packed, exact counts", 14, SHORT),
    ("blocks", 12, LABEL),
    ("blocks", 16, DRAW),
    ("adapters", 12, LABEL),
    ("adapters", 16, DRAW),
    ("a rate too high", 14, DIVERGING),
]
NEEDED = 9
"""Of the ten cases, those that must be attributed rightly (issue 19); all ten are."""


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """Runs a run once, and replays its steps."""
    home = tmp_path_factory.mktemp("spikes")
    model = cache(lambda: fake.base(home / "base"))

    @cache
    def run(name: str) -> Path:
        given, folder = RUNS[name], home / name.replace(" ", "-")
        settings = fake.settings(folder, model(), given.spoilt, given.seed, **given.change)
        train(settings)
        if given.then:
            train(settings | given.then)
        return folder / "run"

    return cache(lambda name, step: (run(name), replay(run(name), step)))


@pytest.mark.slow
def test_at_least_nine_of_ten_causes_are_right(replayed):
    found = {(name, step): replayed(name, step)[1]["cause"] for name, step, _ in CASES}
    wrong = [(name, step, found[name, step]) for name, step, cause in CASES if found[name, step] != cause]
    assert len(CASES) - len(wrong) >= NEEDED, wrong
    assert not wrong, "fewer than before"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [(name, step) for name, step, _ in CASES])
def test_a_step_is_rebuilt_as_it_was_and_nothing_of_it_is_unexplained(replayed, name, step):
    run, record = replayed(name, step)
    spike = {spike["step"]: spike for spike in read_spikes(run)}[step]
    assert record["grad_norm"] == spike["grad_norm"], "to the same bits: packed, in micro-batches, in blocks, adapters"
    assert record["loss"] == spike["loss"]
    assert record["compared"].startswith("Rebuilt as recorded: ")
    assert record["median"] == spike["median"]
    assert sum(row["share"] for row in record["rows"]) == pytest.approx(1, abs=1e-4)
    assert abs(record["unexplained"]) < 1e-4
    assert len(record["rows"]) == fake.BATCH


@pytest.mark.slow
def test_the_sentence_names_the_row_its_draw_and_the_remedy(replayed):
    drawn = replayed("standard", 16)[1]
    (leading,) = drawn["leading"]
    row = drawn["rows"][leading]
    assert row["weight"] >= 150
    assert drawn["sentence"].startswith(
        f"{100 * row['share']:.0f} % of step 16 is one row with {row['masked']} masked token"
    )
    assert f" of 120 at weight {row['weight']:.3g}" in drawn["sentence"]
    weights, counts = fake.drawn(RUNS["standard"].seed, 16, method="fixedcount")
    promise = f"an exact count makes it {counts[leading]} masked token at weight {weights[leading]:.3g}, and P-POTS"
    assert promise in drawn["sentence"], "what the row has under method=fixedcount at the same seed"
    assert "P-POTS" in drawn["sentence"]
    label = replayed("standard", 12)[1]
    assert label["leading"] == [fake.SPOILT]
    assert label["rows"][fake.SPOILT]["origin"] in label["sentence"]
    assert "rows.jsonl:" in label["sentence"]
    short = replayed("standard", 14)[1]
    assert "with a response of one token, where the others have 120" in short["sentence"]
    rate = replayed("a rate too high", 14)[1]
    assert "the learning rate (0.3) is too high" in rate["sentence"]


@pytest.mark.slow
def test_tokens_and_blocks_of_the_leading_row_have_its_share(replayed):
    short = replayed("standard", 14)[1]
    (token,) = short["tokens"]
    assert token["share"] == pytest.approx(short["rows"][fake.SPOILT]["share"], rel=1e-4)
    assert token["place"] == fake.PROMPT
    drawn = replayed("blocks", 16)[1]
    row = drawn["rows"][drawn["leading"][0]]
    block = drawn["blocks"][0]
    assert block["weight"] >= 300
    assert block["share"] > 0.5 * row["share"]
    assert sum(part["share"] for part in drawn["blocks"]) == pytest.approx(row["share"], rel=1e-3)
    assert sum(part["share"] for part in drawn["tokens"]) == pytest.approx(block["share"], rel=1e-3)
    assert f"its block {block['name']} (" in drawn["sentence"]
    weights, counts = fake.drawn(RUNS["blocks"].seed, 16, block=8, method="fixedcount")
    unit = row["position"] * fake.RESPONSE // 8 + int(block["name"]) - 1
    exact = block["largest"]["exact_masked"], block["largest"]["exact_weight"]
    assert exact == pytest.approx((int(counts[unit]), float(weights[unit])))


@pytest.mark.slow
def test_a_calm_step_is_called_so(replayed):
    assert replayed("standard", 13)[1]["cause"] == "usual"

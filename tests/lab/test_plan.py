"""A bar reaches its total and never passes it; the smallest measurements say nothing that cannot be."""

from __future__ import annotations

import json
import re

import pytest

from stabledllm import MethodOptions
from stabledllm.lab.measure.progress import Progress, Stage
from stabledllm.lab.quick import DECOMPOSE, FIT, under
from tests.lab.test_own_results import lab

SMALL = {"rows": 4, "rates": 2, "masks": 2, "steps": 4, "probe": {"rows": 4, "rates": 4, "family": "tabulated"}}
GRAD = {"rows": 4, "view_rows": 4, "rates": 2, "steps": 4}
PROBE = {"rows": 4, "rates": 4, "family": "tabulated"}
METHODS = ["ppots", "mirror", "strats", "fixedcount", "lowdisc+complement", "multisample3", "lowdisc+ppots-gradient"]
MEASURED = {
    "decompose": lambda here: here.decompose(methods=METHODS, **SMALL),
    "decompose, iid": lambda here: here.decompose(methods=["mirror"], design="iid", **SMALL),
    "gradient": lambda here: here.decompose_gradient(methods=METHODS, grad=GRAD, **SMALL),
    "gradient, projected": lambda here: here.decompose_gradient(
        methods=["ppots"], grad=GRAD | {"projection": "sketch"}, **SMALL
    ),
    "gradient, two views on more rows than one": lambda here: here.decompose_gradient(
        methods=["mirror"], grad=GRAD | {"view_rows": 6}, **SMALL
    ),
    "recommend": lambda here: here.recommend(methods=["ppots", "fixedcount"], grad=GRAD, **SMALL),
    "fit": lambda here: here.fit(**PROBE),
    "fit, two views": lambda here: here.fit("ppots+mirror", **PROBE),
    "fit to gradients": lambda here: here.fit("ppots-gradient", **PROBE),
    "fit, complement": lambda here: here.fit("ppots+complement", **PROBE),
    "elbo": lambda here: here.elbo(budget=4),
    "elbo, two views": lambda here: here.elbo("mirror", budget=4),
}


@pytest.mark.parametrize("some", ["plain", "mirror_below"])
@pytest.mark.parametrize("name", MEASURED)
def test_the_total_is_reached_and_never_passed(name, some):
    told = []
    options = MethodOptions(mirror_below=0.5) if some == "mirror_below" else None
    MEASURED[name](lab(progress=lambda *given: told.append(given), method_options=options))
    first = next(total for _, total, _ in told)
    done, total, _ = told[-1]
    assert done == total > 0
    assert all(now <= of for now, of, _ in told)
    assert abs(first - total) <= 0.15 * total, f"planned {first}, taken {total}"


@pytest.mark.parametrize("name", ["decompose", "decompose_gradient"])
def test_the_total_stays_where_every_row_takes_all_views(name):
    """Each stage counts its own forward passes: counted under another, the total would grow and shrink on the way."""
    told = []
    measure = getattr(lab(progress=lambda *given: told.append(given)), name)
    measure(methods=["ppots", "mirror", "fixedcount"], **SMALL, **({"grad": GRAD} if name != "decompose" else {}))
    assert len({total for _, total, _ in told}) == 1


def test_a_loss_that_was_measured_before_is_not_planned_again():
    told = []
    here = lab(progress=lambda *given: told.append(given))
    here.decompose(methods=["fixedcount"], **SMALL)
    told.clear()
    here.decompose_gradient(methods=["fixedcount"], grad=GRAD, **SMALL)
    assert told[-1][0] == told[-1][1]
    assert all("gradient" in what for _, _, what in told if ":" in what)


@pytest.mark.parametrize("name", ["decompose", "decompose, iid", "gradient", "fit", "elbo"])
def test_the_smallest_measurement_says_nothing_that_cannot_be(name, tmp_path):
    found = MEASURED[name](lab())
    text = str(found)
    assert not re.search(r"\bnan\b|\binf\b", text)
    assert not re.search(r"below -|below 0(\s|$)", text)
    if name != "elbo":  # a bound on a log-likelihood is negative
        assert not re.search(r"(^|\s)-\d", re.sub(r"mean loss.*", "", text)), text
    record = found.save(tmp_path)[0].read_text()
    json.loads(record, parse_constant=lambda word: pytest.fail(f"{word} in the record"))


def test_the_time_of_all_is_told_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("stabledllm.lab.measure.progress.time.perf_counter", lambda: now[0])
    announced = []

    class Told(Progress):
        def announce(self, seconds):
            announced.append(seconds)

    progress = Told("decompose", [Stage("losses", 1000), Stage("gradients", 100, gradients=True)])
    progress.gradient_cost = 10.0
    progress.stage("losses")
    for _ in range(10):
        progress.update(10)
        now[0] += 0.1
    assert announced == [pytest.approx(0.01 * (1000 + 100 * 10))]


def test_quick_lies_under_what_is_typed():
    tree = under(DECOMPOSE, {"rows": 99, "probe": {"masks": 5}, "model": "tiny"})
    assert (tree["rows"], tree["probe"]["masks"], tree["probe"]["rows"]) == (99, 5, DECOMPOSE["probe"]["rows"])
    assert tree["model"] == "tiny"
    assert under(FIT, {})["ppots"]["rows"] == FIT["ppots"]["rows"]

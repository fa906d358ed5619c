"""What a ``Lab`` returns: printed, shown in a notebook and saved, with and without the packages that pictures take."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest
import torch
from torch import nn

from stabledllm import Lab, MethodOptions, Noise, Objective
from stabledllm.lab.own import progress, results
from stabledllm.lab.own.paste import lines_to_paste
from stabledllm.noise.methods import Method

MASK = 12
SMALL = {"rows": 6, "rates": 3, "masks": 2, "steps": 4, "probe": {"rows": 6, "rates": 4, "family": "tabulated"}}
GRAD = {"rows": 6, "view_rows": 4, "rates": 2, "steps": 4}
PROBE = {"rows": 6, "rates": 4, "family": "tabulated"}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(MASK + 1, 8), nn.Linear(8, MASK + 1)

    def forward(self, ids, mask):
        x = self.embedding(ids) * mask[..., None]
        return self.head(x + x.cumsum(1) + x.flip(1).cumsum(1).flip(1))


def lab(**kwargs) -> Lab:
    ids = torch.randint(MASK, (8, 7), generator=torch.Generator().manual_seed(1))
    return Lab(Small(), [(row, 2) for row in ids], mask_id=MASK, **{"progress": False, "batch": 4} | kwargs)


@pytest.fixture(scope="module")
def found():
    """One result of every kind, by the name of its file's kind."""
    here = lab()
    return {
        "decompose": here.decompose(methods=["ppots", "fixedcount"], **SMALL),
        "gradient": here.decompose_gradient(methods=["ppots", "fixedcount"], grad=GRAD, **SMALL),
        "recommend": here.recommend(methods=["ppots", "fixedcount"], grad=GRAD, **SMALL),
        "fit": here.fit(**PROBE),
        "elbo": here.elbo(budget=4),
    }


TOLD = {
    "decompose": ["A  mask pattern", "Noise of each method", "fixedcount"],
    "gradient": ["Gradient noise of each method"],
    "recommend": ["Gradient noise of each method", "from stabledllm import Noise", "noise = Noise("],
    "fit": ["p(t) for ppots"],
    "elbo": ["mean over the rows", "per response token"],
}
PICTURES = {"decompose": 2, "gradient": 2, "recommend": 2, "fit": 1, "elbo": 0}


@pytest.mark.parametrize("kind", TOLD)
def test_printed_and_shown(found, kind):
    text, page = str(found[kind]), found[kind]._repr_html_()
    for words in TOLD[kind]:
        assert words in text
    assert page.count("<table>") >= 1
    assert page.count('<img src="data:image/svg+xml;base64,') == PICTURES[kind]
    for tag in ("table", "p", "tr", "td", "thead"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>")


def test_text_in_a_page_is_escaped(found):
    record = found["decompose"].record | {"notes": ["first", "<script>"]}
    page = results.Decomposition(record)._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


FILES = {
    "decompose": {"decomposition.json", "decomposition.png", "curves.png", "densities.png", "equal_compute.png"},
    "fit": {"p_of_t.json", "p_of_t.png"},
    "elbo": {"elbo.json"},
}


@pytest.mark.parametrize("kind", FILES)
def test_saved(found, kind, tmp_path):
    paths = found[kind].save(tmp_path / "new/folder")
    assert {path.name for path in paths} == FILES[kind] == {path.name for path in (tmp_path / "new/folder").iterdir()}
    assert json.loads(paths[0].read_text())["schema"] == found[kind].record["schema"]


@pytest.mark.parametrize("kind", ["decompose", "fit"])
def test_without_matplotlib_it_is_said(found, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="pictures need matplotlib"):
        paths = found[kind].save(tmp_path)
    assert [path.suffix for path in paths] == [".json"]
    page = found[kind]._repr_html_()
    assert "<table>" in page
    assert "No picture here: pictures need matplotlib" in page
    assert "<img" not in page


def test_what_needs_no_picture_says_nothing_of_matplotlib(found, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(results, "find_spec", lambda name: None)
    assert len(found["elbo"].save(tmp_path)) == 1
    assert "matplotlib" not in found["elbo"]._repr_html_()
    assert not recwarn.list


def test_progress_is_told_to_the_caller():
    told = []
    here = lab(progress=lambda *given: told.append(given))
    here.fit(**PROBE)
    done, total, what = told[-1]
    assert done == total > 0
    assert what == "probe ppots"
    told.clear()
    here.decompose(methods=["fixedcount"], **SMALL)
    assert told[-1][0] == told[-1][1]
    assert {what for _, _, what in told} >= {"decompose: A, B, C", "decompose: probe", "decompose: fixedcount"}
    told.clear()
    bound = here.elbo("mirror", budget=4).bound
    assert told[-1] == (bound.forwards, bound.forwards, "elbo mirror")


def test_a_bar_where_tqdm_is_installed(capfd, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal := io.StringIO())
        terminal.isatty = lambda: True
        lab(progress=None).fit(**PROBE)
    assert "\rprobe ppots:   0%|" in terminal.getvalue()
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    lab(progress=None).fit(**PROBE)
    assert capfd.readouterr().err == ""


def test_the_recommendation_s_lines_run():
    """What is pasted makes the noise of the recommended method, under the objective and options of its measurement."""
    objective, options = Objective("power", power=0.5, eps=0.01), MethodOptions(strata=3)
    here = lab(objective=objective, method_options=options)
    for name in ("strats+ppots", "fixedcount", "standard"):
        lines = lines_to_paste(Method.parse(name, options, objective), MASK, 4)
        names = {"lab": here}
        exec(lines, names)
        noise: Noise = names["noise"]
        assert (noise.method.name, noise.objective, noise.mask_id) == (name, objective, MASK)
        assert noise.method.options == (options if "strats" in name else MethodOptions())


def test_by_loss_no_gradient_is_measured():
    found = lab().recommend("loss", methods=["fixedcount"], **SMALL)
    assert found.record["gradient"] is None
    assert found.record["recommendation"]["quantity"] == "loss"
    assert found.method in ("standard", "fixedcount")


def test_another_objective_is_measured_and_recorded():
    here = lab(objective=Objective("cosine"))
    record = here.decompose(**SMALL).record
    assert record["config"]["objective"]["weighting"] == "cosine"
    assert "clipped" not in record["config"]["methods"]
    assert here.fit(**PROBE).record["objective"]["weighting"] == "cosine"


def test_token_rows_of_unequal_length_and_a_small_memory_change_nothing():
    ids = torch.randint(MASK, (8, 7), generator=torch.Generator().manual_seed(1))
    data = [(row[: 4 + i % 4], 2) for i, row in enumerate(ids)]
    kwargs = {"mask_id": MASK, "progress": False, "batch": 4}
    at_once, in_parts = Lab(Small(), data, **kwargs), Lab(Small(), data, tokens_per_batch=8, **kwargs)
    one, other = (here.decompose(methods=["fixedcount"], **SMALL).record["loss"] for here in (at_once, in_parts))
    assert one["mask_pattern"]["value"] == pytest.approx(other["mask_pattern"]["value"], rel=1e-5)
    assert torch.allclose(at_once.elbo().bound.value, in_parts.elbo().bound.value, rtol=1e-5)

"""The study of a real model: its recipes are in order, it goes on after a kill, and its page is that of its results."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from pathlib import Path

import pytest
from studies.real_model import page, parts, problems, results, sizes, study, tables, verdicts

from stabledllm.config import load_recipe
from tests.cli.runner import ROOT, in_process

FOLDER = ROOT / "studies" / "real_model"
SIZES = {"cpu": sizes.CPU, "gpu": sizes.GPU, "rehearsal": sizes.REHEARSAL}


@pytest.mark.parametrize("name", SIZES)
def test_the_recipes_are_in_order_under_every_size(name):
    found = SIZES[name]
    adapt, finetune = (str(FOLDER / "recipes" / f"{recipe}.yaml") for recipe in ("adapt", "finetune"))
    base = {"model": "tiny", "data.train": "synthetic", "data.system_prompt": "null"}
    for recipe, before, options in ((adapt, "", found.adapt), (finetune, "base.", found.finetune)):
        done = in_process(
            "validate", recipe, *(f"{before}{key}={value}" for key, value in base.items()), *options, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
    assert set(parts.PAPER) < set(load_recipe(finetune).methods)
    assert found.seeds >= 5 or found is sizes.REHEARSAL
    assert set(found.arms) == {*parts.CONVERTED, "random"}


def test_what_every_page_holds_is_what_the_results_hold():
    found = page.read_results()
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    blocks = page.blocks(found)
    assert set(re.findall(r"<!-- (?!end)(\w+) -->", text)) == set(blocks)
    for name, block in blocks.items():
        assert f"<!-- {name} -->\n{block}\n<!-- end -->" in text, name


def test_unfinished_parts_are_named():
    told = page.status({"unfinished": {"finetune": ["compute, seed 5", "steps, seed 5"]}, "device": "cpu"})
    assert told == (
        "**Unfinished: finetune (2 left, next: compute, seed 5).** What these parts' tables hold is not final. "
        "Made on: cpu."
    )
    assert page.status({"unfinished": {}, "device": "cpu"}) == "**Finished.** Made on: cpu."


def by_fake(monkeypatch, fails: set[str]) -> list[str]:
    """Replace the library's commands by ones that write their results alone; those in ``fails`` are killed."""
    called: list[str] = []

    def command(*words: object) -> None:
        told = [str(word) for word in words]
        out = Path(next(word.partition("=")[2] for word in told if word.startswith("out=")))
        called.append(out.name)
        if out.name in fails:
            raise subprocess.CalledProcessError(137, told)
        out.mkdir(parents=True)
        (out / "run.json").write_text('{"metrics": {"validation_nll": {"value": 1.0}}}')

    monkeypatch.setattr(parts, "stabledllm", command)
    monkeypatch.setattr(parts.Study, "_write_row_nll", lambda self: (self.out / "adapt" / parts.ROWS).write_text("{}"))
    return called


def test_a_killed_study_goes_on_with_what_is_left(tmp_path, monkeypatch, capsys):
    words = ["--rehearse", "--only", "adapt", "--out", str(tmp_path)]
    called = by_fake(monkeypatch, {"annealed"})
    assert study.main(words) == 1
    assert called == ["shift", "no-shift", "annealed"]
    assert "study: a command ended with exit code 137; run this again to go on." in capsys.readouterr().err
    called = by_fake(monkeypatch, set())
    assert study.main(words) == 0
    assert called == ["annealed", "mean-embedding", "random"]
    assert "[adapt 1/6] shift: done before" in capsys.readouterr().out


def test_items_of_a_stage_are_made_at_the_same_time(tmp_path, monkeypatch):
    called = by_fake(monkeypatch, set())
    together = threading.Barrier(2, timeout=20)
    one = parts.stabledllm
    monkeypatch.setattr(parts, "stabledllm", lambda *words: (one(*words), len(called) > 4 or together.wait()))
    assert study.main(["--rehearse", "--only", "adapt", "--jobs", "2", "--out", str(tmp_path)]) == 0
    assert set(called) == set(sizes.REHEARSAL.arms)
    assert study.main(["--rehearse", "--jobs", "0", "--out", str(tmp_path)]) == 1


def test_with_several_jobs_an_experiment_takes_all_seeds_at_once(tmp_path):
    made = study.Study(tmp_path, sizes.CPU, tmp_path)
    assert [item.name for item in made.items("finetune")][:4] == [
        "compute, seed 1", "steps, seed 1", "original, seed 1", "compute, seed 2",
    ]  # fmt: skip
    together = study.Study(tmp_path, sizes.CPU, tmp_path, 4).items("finetune")
    assert [item.name for item in together] == ["compute, seed 5", "steps, seed 5", "original, seed 5"]


def test_a_folder_of_other_sizes_is_refused(tmp_path, capsys):
    (tmp_path / "sizes.json").write_text(json.dumps({"seeds": 7}))
    assert study.main(["--rehearse", "--only", "adapt", "--out", str(tmp_path)]) == 1
    assert "expected a study of the same sizes, found others (rows" in capsys.readouterr().err


def test_a_part_before_its_time_is_one_sentence(tmp_path, capsys):
    assert study.main(["--rehearse", "--only", "noise", "--out", str(tmp_path)]) == 1
    wanted = tmp_path / "adapt" / "shift" / "run.json"
    told = f"study: expected {wanted} of an earlier part, found none; run the parts in order.\n"
    assert capsys.readouterr().err.endswith(told)


def test_a_missing_file_is_one_sentence(tmp_path, capsys):
    assert study.main(["--gguf", str(tmp_path / "none.gguf"), "--out", str(tmp_path), "--device", "cpu"]) == 1
    assert capsys.readouterr().err == f"study: --gguf: expected a file, found none at {tmp_path / 'none.gguf'}\n"


def test_the_best_arm_is_the_pretrained_one_of_the_lowest_nll(tmp_path):
    made = study.Study(tmp_path, sizes.REHEARSAL, tmp_path)
    for place, arm in enumerate(made.sizes.arms):
        made.run(arm).mkdir(parents=True)
        nll = {"random": 0.1, "annealed": 0.5}.get(arm, 1.0 + place)
        (made.run(arm) / "run.json").write_text(json.dumps({"metrics": {"validation_nll": {"value": nll}}}))
    assert made.best() == "annealed", "random weights are no conversion"


def test_arms_are_compared_row_by_row():
    found = results.versus_shift({"rows": {"shift": [1.0, 3.0], "no-shift": [1.5, 3.7], "original": [0.5, 0.6]}})
    assert found["no-shift"]["versus_shift"]["difference"] == pytest.approx(0.6)
    assert found["no-shift"]["versus_shift"]["ci_low"] < 0.6 < found["no-shift"]["versus_shift"]["ci_high"]
    assert found["original"]["mean"] == pytest.approx(0.55)
    assert "versus_shift" not in found["original"], "its NLL is exact, theirs are bounds"


def test_bands_are_over_steps_and_seeds():
    runs = [
        {"method": "standard", "history": [[i, float(i), 10.0 * i] for i in steps]} for steps in ((0, 1, 2), (3, 4))
    ]
    found = results.bands(runs)["standard"]
    assert found["steps"] == 5
    assert found["loss"]["50"] == 2
    assert found["grad_norm"]["90"] == pytest.approx(36)


@pytest.mark.parametrize(
    ("toy", "real", "told"),
    [
        ((1.2, 1.1, 1.3), (1.5, 1.4, 1.6), "yes"),
        ((1.2, 1.1, 1.3), (1.5, 0.9, 1.6), "cannot be told: the real one's interval holds 1"),
        ((1.2, 1.1, 1.3), (0.5, 0.4, 0.6), "no: lower on the real model"),
        ((1.2, 0.9, 1.3), (0.5, 0.4, 0.6), "surely lower on the real model; the toy's interval holds 1"),
        ((1.2, 0.9, 1.3), (1.5, 0.9, 1.6), "neither tells a difference"),
        ((1.2, 1.1, 1.3), (1.5, None, None), "cannot be told from one seed"),
        ((1.2, 1.1, 1.3), None, "not measured yet"),
    ],
)
def test_a_conclusion_holds_where_both_intervals_lie_on_one_side(toy, real, told):
    assert verdicts._compared("", toy, real, 1.0)[3] == told


def test_rows_take_turns_over_the_templates():
    rows = [{"origin": f"x row {i} (gsm_symbolic template {i // 3})"} for i in range(6)]
    assert [problems.template_of(row)[-1] for row in problems.by_turns(rows)] == ["0", "1"] * 3


@pytest.mark.slow
def test_a_rehearsal_from_end_to_end(tmp_path, monkeypatch):
    def command(*words: object) -> None:
        done = in_process(*map(str, words), cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]

    monkeypatch.setattr(parts, "stabledllm", command)
    monkeypatch.setattr("stabledllm.reports.save.save_decomposition_figures", lambda record, out: [])  # seconds each
    assert study.main(["--rehearse", "--out", str(tmp_path)]) == 0
    found = page.read_results(tmp_path / "page")
    assert found["unfinished"] == {}
    assert list(found["adapt"]) == list(sizes.REHEARSAL.arms)
    assert set(found["noise"]) == set(tables.MEASURED)
    assert found["noise"]["original"]["loss"]["mask_pattern"]["value"] == 0, "no masks: C alone"
    assert {run["seed"] for run in found["finetune"]["compute"]["runs"]} == {1, 2}
    spent = {
        (r["method"], name): r["forward_passes"]
        for name in ("compute", "steps")
        for r in found["finetune"][name]["runs"]
    }
    assert spent["mirror", "compute"] == spent["standard", "compute"]
    assert spent["mirror", "steps"] == 2 * spent["standard", "compute"]
    text = (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
    assert tables.NOTHING not in text
    left = [line for line in text.splitlines() if verdicts.NOTHING in line]
    assert all("spread over seeds" in line for line in left), "two seeds have no ratio of spreads"
    assert not list(tmp_path.glob("finetune/*/runs/*/*/model")), "half a gigabyte each of the real one"

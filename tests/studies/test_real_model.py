"""The study of a real model: its recipes are in order, it goes on after a kill, and its page is that of its results."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from studies.real_model import page, parts, problems, results, row_nll, sizes, study, tables, verdicts

from stabledllm.config import load_recipe
from stabledllm.errors import UserError
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


def test_no_place_on_a_machine_is_in_what_is_committed():
    for name in ("results.json", "README.md"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert not re.findall(r"(?<![\w.])/(?:work|home|root|tmp|Users|mnt)/[\w./-]+", text), name
    record = {"recommendation": {"method": "standard", "recipe": "model: FOLDER"}}
    assert results._advice(record["recommendation"]) == {"method": "standard"}


def test_the_guide_to_converting_quotes_the_table():
    """docs/convert.md says what each option changes; both figures are those of the study's page."""
    page, guide = (text.read_text(encoding="utf-8") for text in (FOLDER / "README.md", ROOT / "docs" / "convert.md"))
    table = page.partition("<!-- adaptation -->")[2].partition("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    ends = {row[0]: (row[5], row[6]) for row in rows if len(row) == 8 and "again" not in row[0] and row[5][0].isdigit()}
    quoted = {
        "shift kept (default)": "default: shift kept", "shift dropped": "`--no-shift`",
        "shift, attention annealed": "`--anneal-steps 60`", "shift, mask = mean of rows": "`--mask-embedding mean`",
        "random weights": "random weights of",
    }  # fmt: skip
    assert set(quoted) == set(ends)
    for arm, (nll, difference) in ends.items():
        (line,) = [line for line in guide.splitlines() if line.startswith(f"| {quoted[arm]}")]
        assert nll in line, arm
        assert difference == "–" or difference in line, arm


def test_the_page_says_how_an_arm_adapted_again_went_another_way():
    found = page.read_results()
    text = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    here, there = (found[name]["annealed"]["history"] for name in ("adapted_again", "adapt"))
    assert max(abs(a[1] / b[1] - 1) for a, b in zip(here[:8], there, strict=False)) < 0.02
    assert "The losses of the first eight steps agree to 2 %" in text
    (step, loss, norm), other = max(here, key=lambda line: line[2]), there[26]
    told = f"at step {step} one of the two has a spike (loss {loss:.1f}, gradient norm {norm:.0f}"
    assert f"{told}, where the other has {other[1]:.1f} and {other[2]:.0f})" in text


def test_unfinished_parts_are_named():
    told = page.status({"unfinished": {"finetune": ["compute, seed 5", "steps, seed 5"]}, "device": "cpu"})
    assert told == (
        "**Unfinished: finetune (2 left, next: compute, seed 5).** What these parts' tables hold is not final. "
        "Made on: cpu."
    )
    assert page.status({"unfinished": {}, "device": "cpu"}) == "**Finished.** Made on: cpu."


NOISE = ("after", "before", "original", "toy", "after-short", "after-long", "before-short", "before-long")
LEFT = {"noise": ["before-long"], "finetune": ["steps, seed 2"]}


def ended_at(nll: float) -> dict:
    """The record of an adaptation."""
    run = {"metrics": {"validation_nll": {"value": nll}}, "history": [{"step": 1, "loss": 1.0, "grad_norm": 2.0}]}
    run |= {"seconds": 1.0, "steps": 1, "versions": {"torch": "2"}, "device": "another", "untuned": None}
    return run | {"config": {"batch": 1, "trainer": {"learning_rate": 1.0}}}


def going_on(out: Path, unfinished: dict) -> parts.Study:
    """A study that goes on from the committed results, of which so much is left."""
    found = page.read_results() | {"unfinished": unfinished}
    noise, missing = found["noise"], unfinished.get("noise", ())
    found["noise"] = {name: noise.get(name, noise["after-long"]) for name in NOISE if name not in missing}
    return parts.Study(out, sizes.CPU, out, earlier=found)


def test_only_what_earlier_results_lack_is_made(tmp_path):
    """The committed results are of a folder that may be gone."""

    def to_make(unfinished: dict) -> dict[str, list[str]]:
        made = going_on(tmp_path, unfinished)
        found = {part: [item.name for item in made.items(part) if not item.done] for part in study.PARTS}
        return {part: names for part, names in found.items() if names}

    found = to_make(LEFT)
    assert found["adapt"] == ["annealed"], "what part 3 starts from"
    assert found["noise"] == ["precision-float32", "precision-bfloat16", "halves", "before-long"]
    assert len(found["finetune"]) == 3 * sizes.CPU.seeds, "runs are compared with one another: of one machine"
    assert set(to_make({"noise": ["halves"]})) == {"models", "noise"}, "nothing is measured on the adapted model"
    assert to_make({}) == {}


def test_the_best_arm_and_the_methods_are_those_of_earlier_results(tmp_path):
    made = going_on(tmp_path, LEFT)
    assert made.best() == "annealed"
    made.earlier["noise"]["after"]["recommendation"]["method"] = "lowdisc+complement"
    assert made.compared() == [*parts.PAPER, "lowdisc+fixedcount", "lowdisc+complement"]


def test_earlier_results_stand_and_the_third_part_is_of_one_machine(tmp_path, monkeypatch):
    made = going_on(tmp_path, LEFT)
    made.run("annealed").mkdir(parents=True)
    (made.run("annealed") / "run.json").write_text(json.dumps(ended_at(2.5)))
    found = results.gather(made)
    for name in ("adapt", "adapt_versus_shift", "noise", "conversions", "finetune", "bands", "plan", "text"):
        assert found[name] == made.earlier[name], name
    assert list(found["adapt"]) == list(sizes.CPU.arms), "the table has their order"
    assert "part 3." in page.status(found)

    monkeypatch.setattr(results, "_finetune", lambda folder: {"compute": {"runs": []}})
    found = results.gather(made)
    assert (found["finetune"], found["bands"], found["plan"]["finetune"]) == ({"compute": {"runs": []}}, {}, None)
    assert found["adapt"] == made.earlier["adapt"], "the curve beside the others is of their machine"
    assert found["adapted_again"]["annealed"]["metrics"]["validation_nll"]["value"] == 2.5
    assert "Part 3 starts from `annealed` adapted again" in page.status(found)
    assert "shift, attention annealed, again for part 3" in tables.adaptation_table(found)

    after = results.gather(going_on(tmp_path, {}))
    assert after["finetune"] == made.earlier["finetune"], "finished there: a start here does not replace it"
    chained = parts.Study(
        tmp_path / "third", sizes.CPU, tmp_path, earlier=found | {"unfinished": {"noise": ["before-long"]}}
    )
    again = results.gather(chained)
    assert again["adapted_again"] == found["adapted_again"]
    assert again["device"] == "another"
    assert list(again["unfinished"]) == ["models", "noise"], "part 3 is not asked again"


def test_other_rows_than_those_of_earlier_results_are_refused(tmp_path):
    made = going_on(tmp_path, LEFT)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "text.json").write_text(json.dumps(made.earlier["text"] | {"source": "another"}))
    with pytest.raises(study.Stopped, match="expected the rows of the earlier results"):
        results.gather(made)


def test_a_folder_remembers_what_it_goes_on_from(tmp_path, monkeypatch):
    small = json.loads(json.dumps(page.read_results() | {"sizes": dataclasses.asdict(sizes.REHEARSAL)}))
    given, out = tmp_path / "given.json", tmp_path / "out"
    given.write_text(json.dumps(small))
    made: list[dict] = []
    monkeypatch.setattr(study, "make", lambda study, part: made.append(study.earlier))
    words = ["--rehearse", "--only", "adapt", "--out", str(out)]
    assert study.main([*words, "--earlier", str(given)]) == 0
    assert study.main(words) == 0
    assert made == [small, small]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sizes": {}}, "expected a study of the same sizes in"),
        ({"adapt": {}}, "expected the whole of part 1 in .*, found no shift, no-shift"),
        ({"adapt_versus_shift": {}}, "found no row by row"),
        ({"schema": "another"}, "expected schema"),
        (None, "given.json: expected a file, found nothing"),
    ],
)
def test_unfit_earlier_results_are_one_sentence(tmp_path, capsys, change, told):
    given = tmp_path / "given.json"
    if change is not None:
        whole = page.read_results() | {"sizes": json.loads(json.dumps(dataclasses.asdict(sizes.REHEARSAL)))}
        given.write_text(json.dumps(whole | change))
    assert study.main(["--rehearse", "--out", str(tmp_path / "out"), "--earlier", str(given)]) in (1, 2)
    assert re.search(told, capsys.readouterr().err)
    assert not (tmp_path / "out").exists(), "nothing is fetched or written before"


def test_a_folder_of_other_beginnings_is_refused(tmp_path, capsys):
    given, out = tmp_path / "given.json", tmp_path / "out"
    given.write_text(json.dumps(page.read_results()))
    words = ["--rehearse", "--out", str(out), "--earlier", str(given)]
    (out / "adapt").mkdir(parents=True)
    assert study.main(words) == 1
    assert "expected a folder in which nothing is adapted yet" in capsys.readouterr().err
    (out / "earlier.json").write_text(json.dumps(page.read_results() | {"device": "another"}))
    assert study.main(words) == 1
    assert "goes on from other results already" in capsys.readouterr().err


def test_an_experiment_that_is_done_to_a_seed_is_done_to_the_seeds_before(tmp_path):
    made = parts.Study(tmp_path, sizes.CPU, tmp_path)
    (tmp_path / "finetune" / "compute").mkdir(parents=True)
    mark = tmp_path / "finetune" / "compute" / parts.DONE.format(3)
    mark.write_text(parts.settings_of(parts.RECIPE))
    done = [item.name for item in made.items("finetune") if item.done]
    assert done == ["compute, seed 1", "compute, seed 2", "compute, seed 3"]
    mark.write_text("another recipe's")
    assert not any(item.done for item in made.items("finetune"))


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


@pytest.mark.parametrize("size", ["CPU", "REHEARSAL"])
@pytest.mark.parametrize("emulated", [False, True])
def test_a_cpu_without_instructions_for_bfloat16_computes_in_float32(tmp_path, monkeypatch, emulated, size):
    said: list[list[str]] = []
    monkeypatch.setattr(parts, "emulates", lambda dtype: emulated)
    monkeypatch.setattr(parts, "stabledllm", lambda *words: said.append([str(word) for word in words]))
    made = parts.Study(tmp_path, getattr(sizes, size), tmp_path)
    monkeypatch.setattr(parts.Study, "_write_familiar", lambda self, models: None)
    (tmp_path / "finetune" / "original").mkdir(parents=True)
    made._adapt_one("shift")
    made._experiment("original", 1)
    next(item for item in made.items("noise") if item.name == "original").run()
    adapt, finetune = (load_recipe(words[1], [word for word in words[2:] if "=" in word]) for words in said[:2])
    small = size == "REHEARSAL"
    assert adapt.trainer["bf16"] == finetune.base.trainer["bf16"] == (not emulated and not small)
    assert ("dtype=float32" in said[2]) == emulated
    assert ("dtype=bfloat16" in said[2]) == (not emulated and not small)


def test_a_folder_of_other_sizes_is_refused(tmp_path, capsys):
    (tmp_path / "sizes.json").write_text(json.dumps({"seeds": 7}))
    assert study.main(["--rehearse", "--only", "adapt", "--out", str(tmp_path)]) == 1
    assert "expected a study of the same sizes, found others (rows" in capsys.readouterr().err


def test_a_folder_from_before_precisions_were_kept_is_taken(tmp_path):
    study._keep_to(tmp_path, sizes.CPU)
    stored = json.loads((tmp_path / "sizes.json").read_text())
    assert stored.pop("precision") in ("float32", "bfloat16")
    (tmp_path / "sizes.json").write_text(json.dumps(stored))
    study._keep_to(tmp_path, sizes.CPU)


def test_a_folder_from_before_familiar_rows_is_taken_and_another_number_of_them_refused(tmp_path):
    study._keep_to(tmp_path, sizes.CPU)
    stored = json.loads((tmp_path / "sizes.json").read_text())
    (tmp_path / "sizes.json").write_text(json.dumps(stored | {"familiar": 7}))
    with pytest.raises(study.Stopped, match=r"found others \(familiar\)"):
        study._keep_to(tmp_path, sizes.CPU)
    del stored["familiar"]
    (tmp_path / "sizes.json").write_text(json.dumps(stored))
    study._keep_to(tmp_path, sizes.CPU)


def test_a_folder_of_another_precision_is_refused(tmp_path, monkeypatch):
    for emulated in (False, False, True):
        monkeypatch.setattr(parts, "emulates", lambda dtype, emulated=emulated: emulated)
        if emulated:
            with pytest.raises(study.Stopped, match=r"found others \(precision\)"):
                study._keep_to(tmp_path, sizes.CPU)
        else:
            study._keep_to(tmp_path, sizes.CPU)


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
    rows = {"shift": [1.0, 3.0], "no-shift": [1.5, 3.7], "original": [0.5, 0.6]}
    found = results.versus_shift({"rows": rows}, ["a", "b"])
    against = found["no-shift"]["versus_shift"]
    assert against["difference"] == pytest.approx(0.6)
    assert against["templates"] == 2
    assert against["ci_high"] - 0.6 == pytest.approx(0.6 - against["ci_low"])
    assert against["ci_high"] - 0.6 == pytest.approx(12.706 * 0.1, rel=1e-4), (
        "Student's, rows of templates of their own"
    )
    assert found["original"]["mean"] == pytest.approx(0.55)
    assert "versus_shift" not in found["original"], "its NLL is exact, theirs are bounds"


def test_rows_of_one_template_are_no_independent_rows():
    values, templates = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0], list("aaabbbccc")
    one_each = results.versus_shift({"rows": {"shift": values[::3]}}, list("abc"))["shift"]
    thrice = results.versus_shift({"rows": {"shift": values}}, templates)["shift"]
    for end in ("ci_low", "ci_high"):
        assert thrice[end] == pytest.approx(one_each[end]), "copies of a row tell nothing new"
    assert (thrice["n"], thrice["templates"]) == (9, 3)
    alone = results.versus_shift({"rows": {"shift": [1.0, 2.0]}}, ["a", "a"])["shift"]
    assert alone["ci_low"] is None, "one template tells nothing of others"


def test_the_template_of_every_row_is_found_again(tmp_path, monkeypatch):
    def draw(source: str, file: problems.File, count: int) -> list[dict]:
        texts = [[{"content": f"question {i}"}, {"content": "answer"}] for i in range(count)]
        return [{"messages": text, "origin": f"x (gsm_symbolic template {i % 3})"} for i, text in enumerate(texts)]

    monkeypatch.setattr(problems, "rows_of", draw)
    monkeypatch.setattr(problems, "tokens_of", lambda row, tokenizer: 5)
    problems.write_problems(tmp_path, "x", dict.fromkeys(problems.FILES, 4), None, 10)
    assert [name[-1] for name in problems.templates_of(tmp_path, "x", "held_out")] == ["0", "1", "2", "0"]
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"question": "another", "answer": "answer"}))
    with pytest.raises(UserError, match=r"held_out\.jsonl: line 1: expected a row that x draws, found another"):
        problems.templates_of(tmp_path, "x", "held_out")


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
        ((1.2, 1.1, 1.3), (1.5, 0.9, 1.6), "cannot be told"),
        ((1.2, 1.1, 1.3), (0.5, 0.4, 0.6), "no: it is lower"),
        ((0.9, 0.8, 0.95), (0.5, 0.4, 0.6), "no: it is lower (on the toy: no: it is lower)"),
        ((1.2, 0.9, 1.3), (0.5, 0.4, 0.6), "no: it is lower (on the toy: cannot be told)"),
        ((1.2, 0.9, 1.3), (1.5, 1.1, 1.6), "yes (on the toy: cannot be told)"),
        ((1.2, 1.1, 1.3), (1.5, None, None), "no interval"),
        ((1.2, 1.1, 1.3), None, "not measured yet"),
    ],
)
def test_a_conclusion_holds_where_the_interval_lies_on_its_side(toy, real, told):
    assert verdicts._compared("", toy, real, 1.0, 1)[3] == told


def test_the_claims_lie_on_the_sides_that_the_toy_showed():
    """Each final NLL's claim holds on the toy, so that 'yes' means the same on the real model."""
    summary = [
        {"method": method, "metric": results.FAMILIAR_NLL, "sd_versus_standard": None}
        | {"versus_standard": {"difference": side, "ci_low": side - 0.1, "ci_high": side + 0.1}}
        for method, side in {"mirror": 1, "ppots+mirror": 1, "ppots": -1, "lowdisc+fixedcount": -1}.items()
    ]
    fewer = [entry | {"versus_standard": {"difference": -1, "ci_low": -2, "ci_high": -0.5}} for entry in summary]
    found = {"noise": {}, "finetune": {"compute": {"summary": summary}, "steps": {"summary": fewer}}}
    told = [line[3] for line in verdicts._lines(found)]
    assert told.count("yes") == 6
    assert set(told) == {"yes", verdicts.NOTHING}


def estimated(value: float, half: float | None = None, stderr: float = 0.1) -> dict:
    ends = {} if half is None else {"ci_low": value - half, "ci_high": value + half}
    return {"value": value, "stderr": stderr, "n": 96} | ends


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (estimated(5, 1), estimated(1), "yes"),
        (estimated(5), estimated(1), "yes"),  # an estimate stores no interval of 1.96 errors
        (estimated(5, 3), estimated(1), "cannot be told"),
        (estimated(5, 1), estimated(9, 1), "no: A is smaller"),
        (estimated(5, None, math.nan) | {"stderr": None}, estimated(1), "no interval"),
    ],
)
def test_whether_mask_patterns_dominate(a, b, told):
    toy = {"gradient": {"mask_pattern": estimated(5, 1), "mask_rate": estimated(0.5), "data": estimated(1)}}
    real = {"gradient": {"mask_pattern": a, "mask_rate": b, "data": estimated(1)}}
    assert verdicts._dominated({"toy": toy, "after": real})[3] == told


def test_every_number_has_its_interval_and_the_probe_is_counted():
    assert tables.interval(estimated(5)) == "5.00 (4.80 to 5.20)"
    runs = [{"method": "ppots", "forward_passes": 144, "probe_forward_passes": 256}] * 2
    summary = [{"method": "ppots", "metric": "validation_nll", "n": 2, "mean": 1.0, "versus_standard": None, "sd": 0.1}]
    summary[0] |= dict.fromkeys(("ci_low", "ci_high", "sd_ci_low", "sd_ci_high", "sd_versus_standard"))
    table = tables.experiment_table({"untuned": {}, "runs": runs, "summary": summary}, None)
    head, _, untuned, ppots = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert len(head) == len(untuned) == len(ppots)
    assert dict(zip(head, ppots, strict=False))["probe's"] == "256"


def run_of(method: str, seed: int, held_out: float, familiar: float | None) -> dict:
    metrics = {"validation_nll": {"value": held_out}}
    metrics |= {} if familiar is None else {results.FAMILIAR_NLL: {"value": familiar}}
    return {"method": method, "seed": seed, "metrics": metrics, "forward_passes": 4, "probe_forward_passes": 0}


def test_familiar_templates_have_statistics_of_their_own():
    runs = [run_of("standard", seed, 2.0 + seed, 1.0 + seed) for seed in (1, 2)]
    runs += [run_of("mirror", 1, 3.5, 1.5), run_of("mirror", 2, 4.0, 2.5), run_of("ppots", 1, 3.0, None)]
    summary = results.over_seeds(runs)
    found = {(e["method"], e["metric"]): e for e in summary}
    assert found["mirror", "validation_nll"]["versus_standard"]["difference"] == pytest.approx(0.25)
    assert found["mirror", results.FAMILIAR_NLL]["versus_standard"]["difference"] == pytest.approx(-0.5)
    assert ("ppots", results.FAMILIAR_NLL) not in found
    table = tables.experiment_table({"untuned": runs[0]["metrics"], "runs": runs, "summary": summary}, None)
    head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert {len(line) for line in lines} == {len(head)}
    place = head.index("NLL, new rows of the training templates")
    shown = {line[0]: line[place : place + 2] for line in lines}
    assert shown["untuned, as adapted"] == ["2.0000", ""]
    assert shown["`mirror`"][0].startswith("2.0000 (")
    assert shown["`mirror`"][1].startswith("-0.5000")
    assert shown["`ppots`"] == ["", ""]


def test_every_fine_tuned_model_is_measured_once_before_it_goes(tmp_path, monkeypatch):
    made = parts.Study(tmp_path, sizes.REHEARSAL, tmp_path)
    monkeypatch.setattr(parts.Study, "best", lambda self: "shift")
    compute, measured = tmp_path / "finetune" / "compute", []

    def experiment(*words: object) -> None:
        (run := compute / "runs" / "standard" / "seed-1").mkdir(parents=True, exist_ok=True)
        (run / "run.json").touch()
        (run / "model").mkdir()

    def measure(model: Path, data, draws: int):
        measured.append(model)
        assert model != compute / "runs" / "standard" / "seed-1" / "model" or model.is_dir()
        lines = Path(data.train.partition(":")[2]).read_text().splitlines()
        assert [json.loads(line)["question"] for line in lines] == ["4", "6", "7", "8"], "the last that are new"
        return torch.tensor([1.0, 2.0])

    questions = {"measure": range(9), "adapt": [5], "tune": [20]}
    (tmp_path / "text").mkdir()
    for name, numbers in questions.items():
        rows = [json.dumps({"question": str(number), "answer": "a"}) for number in numbers]
        (tmp_path / "text" / f"{name}.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(parts, "stabledllm", experiment)
    monkeypatch.setattr(row_nll, "nll_of_rows", measure)
    for _ in range(2):
        made._experiment("compute", 1)
    assert measured == [tmp_path / "adapt" / "shift" / "model", compute / "runs" / "standard" / "seed-1" / "model"]
    assert not (compute / "runs" / "standard" / "seed-1" / "model").exists()
    assert results._familiar(compute)[results.FAMILIAR_NLL]["value"] == 1.5


def test_too_few_new_rows_are_one_sentence(tmp_path):
    for name in ("measure", "adapt", "tune"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": "1", "answer": "a"}))
    with pytest.raises(UserError, match=r"measure\.jsonl: expected 2 rows that are no training rows, found 0"):
        problems.write_familiar_rows(tmp_path, 2)


def test_equal_steps_take_over_what_equal_compute_measured(tmp_path, monkeypatch):
    made = parts.Study(tmp_path, sizes.REHEARSAL, tmp_path)
    monkeypatch.setattr(parts.Study, "best", lambda self: "shift")
    monkeypatch.setattr(parts.Study, "_write_familiar", lambda self, models: None)
    monkeypatch.setattr(parts, "stabledllm", lambda *words: None)
    compute, steps = (tmp_path / "finetune" / name for name in ("compute", "steps"))
    compute.mkdir(parents=True)
    for name in ("untuned.json", "p_of_t_ppots.json", "p_of_t_ppots_mirror.json"):
        (compute / name).write_text(name)
    made._experiment("steps", 1)
    assert sorted(path.name for path in steps.glob("*.json")) == ["p_of_t_ppots_mirror.json", "untuned.json"]
    (steps / "untuned.json").write_text("its own")
    made._experiment("steps", 2)
    assert (steps / "untuned.json").read_text() == "its own"


def test_an_experiment_is_asked_again_when_its_recipe_is_another(tmp_path, monkeypatch):
    made = study.Study(tmp_path, sizes.REHEARSAL, tmp_path)

    def done() -> dict[str, bool]:
        return {item.name: item.done for item in made.items("finetune")}

    monkeypatch.setattr(parts, "stabledllm", lambda *words: None)
    monkeypatch.setattr(parts.Study, "_write_familiar", lambda *given: None)
    monkeypatch.setattr(parts.Study, "best", lambda given: "shift")
    for item in made.items("finetune"):
        item.result.parent.mkdir(parents=True, exist_ok=True)
        item.run()
    assert all(done().values())
    text, changed = parts.RECIPE.read_text(encoding="utf-8"), tmp_path / "finetune.yaml"
    monkeypatch.setattr(parts, "RECIPE", changed)
    changed.write_text(f"# Another comment.\n{text}")
    assert all(done().values())
    changed.write_text(text.replace("3.0e-5", "1.0e-4"))
    assert not any(done().values())


def test_rows_take_turns_over_the_templates():
    rows = [{"origin": f"x row {i} (gsm_symbolic template {i // 3})"} for i in range(6)]
    assert [problems.template_of(row)[-1] for row in problems.by_turns(rows)] == ["0", "1"] * 3


@pytest.mark.long
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
    for name in ("compute", "steps", "original"):
        measured = [run["metrics"] for run in found["finetune"][name]["runs"]] + [found["finetune"][name]["untuned"]]
        assert all(math.isfinite(metrics[results.FAMILIAR_NLL]["value"]) for metrics in measured), name
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


@pytest.mark.parametrize(
    ("name", "found", "asked"), [("auto", True, "cuda"), ("auto", False, None), ("cpu", True, None)]
)
def test_every_command_of_the_study_takes_the_device_that_is_found(monkeypatch, name, found, asked):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("STABLEDLLM_DEVICE", "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: found)
    study._take_device(name)
    assert (os.environ["STABLEDLLM_DEVICE"] or None) == asked
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if name == "cpu" else "0")

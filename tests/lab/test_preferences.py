"""``decompose objective.kind=dpo``: what it measures, says, stores and refuses."""

from __future__ import annotations

import json

import pytest
import yaml

from stabledllm.config.recipe import check
from stabledllm.config.settings import DecomposeSettings, TrainSettings
from stabledllm.errors import UserError
from stabledllm.lab.preferences import APART, DEFAULT, RECORD, STANDARD, candidates
from stabledllm.preference_checks import check_pairs_to_measure
from tests.cli.runner import assert_refused, in_process

KEYS = ["objective.kind=dpo", "--model", "tiny", "--data", "pairs.jsonl"]


@pytest.fixture
def folder(tmp_path):
    rows = [{"prompt": f"{i}+1=?", "chosen": f"{i + 1}.", "rejected": f"{i + 2}!"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_table_and_its_record(folder):
    small = ["dpo.pairs=3", "dpo.repeats=3", "dpo.budget=2", "methods=[fixedcount]", "out=noise"]
    done = in_process("decompose", *KEYS, "dpo.reference=new:tiny", *small, cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "noise" / RECORD).read_text())
    assert [row["name"] for row in record["methods"]] == [STANDARD, APART, "fixedcount"]
    assert record["pairs"] == 3
    assert record["methods"][0]["over_standard"]["margin"]["value"] == 1
    for sentence in record["sentences"]:
        assert sentence in " ".join(done.stdout.split())
    assert set(record["methods"][2]["p_holm"]) == {"margin", "loss", "gradient"}
    assert record["methods"][1]["p_holm"] is None, "what nobody trains with is not compared"
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_only_methods_whose_views_divide_the_budget(folder):
    of_four, of_three = (
        [c.name for c in candidates(DecomposeSettings(objective={"kind": "dpo"}, dpo={"budget": n}))] for n in (4, 3)
    )
    assert of_four == [STANDARD, APART, *DEFAULT]
    assert not {"mirror", "multisample4"} & set(of_three)


def test_without_a_reference_it_is_told_at_once(folder):
    assert_refused(in_process("decompose", *KEYS, cwd=folder), "key 'dpo.reference'", "write dpo.reference=MODEL")
    missing = in_process("decompose", *KEYS, "dpo.reference=tny", cwd=folder)
    assert_refused(missing, "tny", "tiny")


def test_a_run_is_told_at_once_of_a_reference_that_is_not_there(folder):
    run = ["train", "dpo", "--model", "tiny", "--data", "pairs.jsonl", "batch=2"]
    assert_refused(in_process(*run, "dpo.reference=tny", cwd=folder), "tny", "tiny")
    assert_refused(in_process(*run, "dpo.reference=copi", cwd=folder), "copi")


def test_another_vocabulary_is_refused(folder):
    other = in_process("decompose", *KEYS, "dpo.reference=tiny-mmada", cwd=folder)
    assert_refused(other, "dpo.reference 'tiny-mmada': expected the vocabulary of 'tiny'")


def test_it_is_recommended_from_the_record_and_by_measuring(folder):
    small = ["dpo.pairs=3", "dpo.repeats=3", "dpo.budget=2", "methods=[fixedcount]", "out=noise"]
    measured = in_process("recommend", *KEYS, "dpo.reference=new:tiny", *small, cwd=folder)
    assert measured.returncode == 0, measured.stderr
    again = in_process("recommend", "--from", "noise", cwd=folder)
    assert again.returncode == 0, again.stderr
    recipe = again.stdout.rpartition("# stabledllm train recipe.yaml\n")[2]
    assert measured.stdout.endswith(recipe)
    settings = check(yaml.safe_load(recipe), TrainSettings, "pasted")
    assert (settings.model, settings.data.train, settings.objective.kind) == ("new:tiny", "pairs.jsonl", "dpo")
    assert settings.method in (STANDARD, "fixedcount")


def test_a_folder_with_two_measurements_is_asked_about(folder):
    for name in ("decomposition.json", RECORD):
        (folder / name).write_text("{}")
    assert_refused(in_process("recommend", "--from", ".", cwd=folder), "found decomposition.json and preference_noise")
    assert_refused(in_process("recommend", "--from", RECORD, cwd=folder), RECORD, "stabledllm/preference_noise/1")


def test_keys_that_nothing_reads_are_refused(folder):
    for key in ("gradient=true", "rows=3", "grad.rows=9", "forwards=8"):
        done = in_process("decompose", *KEYS, "dpo.reference=new:tiny", key, cwd=folder)
        assert_refused(done, f"key '{key.partition('=')[0]}': expected objective.kind=masked beside it")
    done = in_process("decompose", *KEYS, "dpo.reference=new:tiny", "grad.parameters=[head.*]", "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_quick_measures_fewer_pairs(folder):
    few = ["methods=[fixedcount]", "--quick", "--dry-run"]
    done = in_process("decompose", *KEYS, "dpo.reference=tiny", *few, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"{6 * 4 * 2 * 4 * 3 * 3:,} forward passes" in done.stdout


def test_a_dry_run_counts(folder):
    done = in_process("decompose", *KEYS, "dpo.reference=tiny", "methods=[fixedcount]", "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"{16 * 8 * 2 * 4 * 3 * 3:,} forward passes" in done.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": {}}, "key 'dpo': expected objective.kind=dpo beside it"),
        ({"objective": {}, "dpo": None, "data": {"format": "preference"}}, "expected objective.kind=dpo for rows"),
        ({"methods": ["clipped"]}, "expected an unbiased method"),
        ({"methods": ["adaptive"]}, "whose density stands still"),
        ({"methods": ["multisample3"]}, "a multiple of the 3 views of 'multisample3', found 4"),
    ],
)
def test_refusals(change, words):
    plain = {"objective": {"kind": "dpo"}, "dpo": {"reference": "tiny"}} | change
    settings = DecomposeSettings.model_validate({key: value for key, value in plain.items() if value is not None})
    with pytest.raises(UserError, match=words):
        check_pairs_to_measure(settings)


def test_a_density_is_fitted_to_other_pairs_than_are_measured(folder):
    small = ["dpo.pairs=2", "dpo.repeats=3", "dpo.budget=2", "methods=[ppots]", "out=noise"]
    small += ["probe.rows=4", "probe.rates=4", "probe.masks=2", "probe.starts=1"]
    done = in_process("decompose", *KEYS, "dpo.reference=new:tiny", *small, cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "noise" / RECORD).read_text())
    density = record["densities"]["ppots"]
    assert sum(density) / len(density) == pytest.approx(1, abs=0.01)
    assert max(density) > 1.05
    idle = in_process("decompose", *KEYS, "dpo.reference=new:tiny", "probe.rows=4", cwd=folder)
    assert_refused(idle, "key 'probe.rows': expected a method with ppots among methods")
    few = in_process("decompose", *KEYS, "dpo.reference=new:tiny", "dpo.pairs=3", "methods=[ppots]", cwd=folder)
    assert_refused(few, "expected at least 2 pairs beside the 3 that are measured, to fit p(t) of 'ppots' to, found 1")

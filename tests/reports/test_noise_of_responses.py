"""What ``decompose`` measured of preferences and of policy gradients is on the page, as its screen promises."""

from __future__ import annotations

import json

import pytest

from stabledllm.errors import UserError
from stabledllm.reports.html import write_report
from stabledllm.reports.policy_noise import policy_table
from tests.fakes import results as made_up
from tests.fakes.results import put
from tests.reports.test_responses import learnt

RECORDS = {"preference_noise": made_up.preference_noise, "policy_noise": made_up.policy_noise}


def page(folder) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def outcome(folder) -> str:
    """The page, or the sentence that refuses it."""
    try:
        return page(folder)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("kind", RECORDS)
def test_every_column_and_sentence_is_on_the_page(tmp_path, kind):
    record = RECORDS[kind]()
    put(tmp_path, f"{kind}.json", record)
    text = page(tmp_path)
    assert "Only the noise of responses was found; it is below." in text
    assert "runs/moved on synthetic:4-4" in text
    assert f"{kind}.json" in text, "its provenance"
    for told in ("standard, draws not shared", "Stay with standard."):
        assert told in text
    for quantity in {"preference_noise": ("margin", "bias"), "policy_noise": ("off bound", "log-ratio", "size")}[kind]:
        assert f'<th scope="col">{quantity}</th>' in text


def test_the_terminal_names_columns_that_the_page_has():
    narrow = policy_table(made_up.policy_noise()).text(width=80, wide=False)
    assert "more columns with --wide, and in the report." in narrow


def test_a_record_of_nothing_is_a_page_without_a_table(tmp_path):
    put(tmp_path, "policy_noise.json", made_up.policy_noise() | {"methods": []})
    assert 'id="responses"' not in page(tmp_path)


@pytest.mark.parametrize("kind", RECORDS)
def test_any_value_replaced_is_shown_or_refused_by_the_files_name(tmp_path, kind):
    text = json.dumps(RECORDS[kind]())
    for name in json.loads(text)["methods"][1]:
        for value in (None, "x", {}, 3, []):
            record = json.loads(text)
            record["methods"][1][name] = value
            path = put(tmp_path, f"{kind}.json", record)
            told = outcome(tmp_path)
            assert "Noise of" in told or str(path) in told


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_the_page_of_an_experiment_asks_for_what_can_be_measured(tmp_path, kind):
    base = {"model": "tiny", "data": {"train": "synthetic:4-4"}, "objective": {"kind": kind}}
    put(tmp_path, "results.json", learnt() | {"config": {"base": base}})
    text = page(tmp_path)
    assert f"stabledllm decompose objective.kind={kind}" in text
    assert "stabledllm fit" not in text
    assert '<p class="subject">tiny on synthetic:4-4</p>' in text

"""HiTab's comparison against the official rule written out, and its real answers in many spellings."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabledllm.errors import UserError
from stabledllm.tasks.hitab_answers import readings
from stabledllm.tasks.hitab_scoring import gold_values, score_answer, written


def official(value):
    """What the repository's evaluation makes of one value: a number where it is one, else a normal text."""
    if not isinstance(value, str):
        return float(value)
    text = value.strip().lower()
    bare = text
    if bare[:1] == "(":
        bare = bare[1:]
    if bare[-1:] in ("%", ")"):
        bare = bare[:-1]
    try:
        return float(bare.replace(",", ""))
    except ValueError:
        plain = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
        plain = re.sub(r"[\u2018\u2019\u00b4`]", "'", re.sub(r"[\u201c\u201d]", '"', plain))
        plain = re.sub(r"[\u2010\u2011\u2012\u2013\u2014\u2212]", "-", plain)
        while True:
            old = plain
            plain = re.sub(r"((?<!^)\[[^\]]*\]|\[\d+\]|[•♦†‡*#+])*$", "", plain.strip())
            plain = re.sub(r"(?<!^)( \([^)]*\))*$", "", plain.strip())
            plain = re.sub(r'^"([^"]*)"$', r"\1", plain.strip())
            if plain == old:
                break
        plain = plain.removesuffix(".")
        return re.sub(r"\s+", " ", plain).lower().strip()


def agree(given, gold) -> bool:
    a, b = official(given), official(gold)
    return abs(a - b) < 1e-5 if isinstance(a, float) and isinstance(b, float) else a == b


GOLDS = [
    154983.0, 11.1, -3.2, 0, "transgender", "55 and over", "4:11.64", "1,000 and above", "12.5%", "health care [1]",
    "both sexes (2001)", "naïve", '"quoted"', "Ontario.", "médi–terranée", "(4.5)",
]  # fmt: skip
SPELLINGS = [
    "154983",
    "154,983",
    "154983.0",
    "154983.000001",
    "154983.1",
    "11.1%",
    "11.10",
    "-3.2",
    "(3.2)",
    "0.0",
    "Transgender",
    "transgenders",
    "55 AND OVER",
    "4:11.64",
    "1,000 and above",
    "1000 and above",
    "12.5",
    "health care",
    "both sexes",
    "naive",
    "quoted",
    "ontario",
    "medi-terranee",
    "4.5",
    "$11.1",
    "nothing",
]


@pytest.mark.parametrize("gold", GOLDS)
def test_strict_scores_are_those_of_the_official_rule(gold):
    for spelling in SPELLINGS:
        found = score_answer(f"so\nAnswer: {spelling}", [gold])
        assert found.correct is agree(spelling, gold), (spelling, gold)
        assert found.parsed == spelling


def test_lists_are_compared_in_order_and_by_number_of_values():
    gold = ["health care", "mining, oil and gas", 3.0]
    for said, right in (
        ("health care | mining, oil and gas | 3", True),
        ("Health Care|Mining, Oil and Gas|3.0", True),
        ("mining, oil and gas | health care | 3", False),
        ("health care | mining, oil and gas", False),
        ("health care, mining, oil and gas, 3", False),
        ("health care; mining, oil and gas; 3", True),
    ):
        assert score_answer(f"Answer: {said}", gold).correct is right, said
    for said in ("[23.9, 28.5]", "23.9, 28.5", "23.9 and 28.5", "23.9; 28.5", '["23.9", "28.5"]'):
        assert score_answer(f"Answer: {said}", [23.9, 28.5]).correct is True, said
        assert score_answer(f"Answer: {said}", [28.5, 23.9]).correct is False, said
    assert score_answer("Answer: 1,000 and 2,500", [1000, 2500], flexible=True).correct is True


NAMES, NUMBERS = ["health care", "mining", "oil and gas"], [23.9, -28.5]
FORMS = [
    # completion, gold, strict, flexible
    ("Answer: ['health care', 'mining', 'oil and gas']", NAMES, True, True),
    ("Answer: ('health care', 'mining', 'oil and gas')", NAMES, True, True),
    ("Answer: 'health care', 'mining', 'oil and gas'", NAMES, True, True),
    ("Answer: [health care, mining, oil and gas]", NAMES, True, True),
    ("**Answer:** `['health care', \"mining\", 'oil and gas']`", NAMES, True, True),
    ("Answer: [\n  'health care',\n  'mining',\n  'oil and gas'\n]\n\nDone.", NAMES, True, True),
    ('Answer: [\n  "health care",\n  "mining",\n  "oil and gas"\n]', NAMES, True, True),
    ("Answer:\nHealth care\nMining\nOil and gas\n", NAMES, True, True),
    ("Answer: Health care\nMining\nOil and gas", NAMES, True, True),
    ("Answer:\n\n- health care\n- mining\n- oil and gas\n\nThese lead.", NAMES, True, True),
    ("Answer:\n* **health care**\n* mining,\n* and oil and gas", NAMES, True, True),
    ("Answer:\n\u2022 health care\n\u2022 mining\n\u2022 oil and gas", NAMES, True, True),
    ("Answer: \u2022 health care \u2022 mining \u2022 oil and gas", NAMES, True, True),
    ("Answer:\n1. health care\n2. mining\n3. oil and gas", NAMES, True, True),
    ("Answer:\n\n- health care\n\n- mining\n\n\n- oil and gas\n\nThese lead.", NAMES, True, True),
    ("Answer:\n1) 23.9\n2) -28.5", NUMBERS, True, True),
    ("Answer:\n- 23.9\n- -28.5", NUMBERS, True, True),
    ("Answer: 23.9\n-28.5", NUMBERS, True, True),
    ("Answer: ['23.9', '-28.5%']", NUMBERS, True, True),
    ("Answer: 23.9 and -28.5", NUMBERS, True, True),
    ("Answer: 23.9, and -28.5", NUMBERS, True, True),
    ("Answer: health care, mining, and agriculture", ["health care", "mining", "agriculture"], True, True),
    ("Answer:\n- 42", [42], True, True),
    ("Answer: ['health care']", ["health care"], True, True),
    ("Answer: - - health care", ["health care"], True, True),
    ("Answer: -42", [-42], True, True),
    # Right values that strict does not look for.
    ("Answer: these three:\n- health care\n- mining\n- oil and gas", NAMES, False, True),
    ("They are:\n- health care\n- mining\n- oil and gas", NAMES, None, True),
    ("So we find\n\nhealth care\nmining\noil and gas\n", NAMES, None, True),
    ("['health care', 'mining', 'oil and gas']", NAMES, None, True),
    ("Answer:\n- $23.9 billion\n- -28.5 points", NUMBERS, False, True),
    # Wrong in both.
    ("Answer: ['mining', 'health care', 'oil and gas']", NAMES, False, False),
    ("Answer: ['health care', 'mining']", NAMES, False, False),
    ("Answer:\n- health care\n- mining\n- oil and gas\n- agriculture", NAMES, False, False),
    ("Answer: health care\n\nmining\n\noil and gas", NAMES, False, False),
    ("Answer: 23.9\n28.5", NUMBERS, False, False),
    ("Answer: ['health care', 'mining']", ["health care"], False, False),
    ("Answer: mining\nhealth care", ["health care"], False, False),
    ("Answer: 42 and 43", [42], False, False),
    ("Answer: - 42", [-42], False, False),
]


@pytest.mark.parametrize(("completion", "gold", "strict", "flexible"), FORMS)
def test_the_forms_in_which_models_write_several_values(completion, gold, strict, flexible):
    assert score_answer(completion, gold).correct is strict
    assert score_answer(completion, gold, flexible=True).correct is flexible


def test_the_values_as_they_were_read_are_told():
    assert score_answer("Answer:\n- health care\n- mining\n- oil and gas", NAMES).parsed == NAMES
    assert score_answer("Answer: ['23.9', '-28.5']", NUMBERS).parsed == ["23.9", "-28.5"]
    assert score_answer("Answer: - 42", [42]).parsed == "42"


def test_a_row_whose_name_begins_with_a_number_is_a_text():
    for flexible in (False, True):
        assert score_answer("Answer: 1,000 and above", ["1,000 and above"], flexible=flexible).correct is True
        assert score_answer("Answer: 1,000", ["1,000 and above"], flexible=flexible).correct is False


def test_no_answer_is_apart_from_wrong():
    assert score_answer("I do not know", [3.0]).correct is None
    assert score_answer("Answer:", [3.0]).parsed is None
    assert score_answer("", [3.0], flexible=True).parsed is None
    assert score_answer("it is\n**12 percent**.\n\n", [12.0]).correct is None
    assert score_answer("it is\n**12 percent**.\n\n", [12.0], flexible=True).correct is True
    assert score_answer("$155.0 billion", [155.0], flexible=True).correct is True
    assert score_answer("Answer: between 1 and 4", ["between 1 and 4"], flexible=True).correct is True
    assert score_answer("Answer: 3\nAnswer: 4", [4]).correct is True, "the last one counts"
    assert score_answer("**Answer:**\n42\n", [42]).correct is True


@pytest.mark.parametrize("gold", [[], [None], [True], {}, None, "", ["x", " "]])
def test_a_gold_without_answer_is_refused(gold):
    with pytest.raises(UserError, match="expected a HiTab answer"):
        score_answer("Answer: 3", gold)


def real() -> list[dict]:
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    for root in (os.environ.get("STABLEDLLM_DATA"), beside):
        if root and (path := Path(root) / "hitab" / "dev_samples.jsonl").is_file():
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pytest.skip("HiTab is not at hand; set STABLEDLLM_DATA to the folder that holds hitab/dev_samples.jsonl")


def test_the_real_answers_in_many_spellings():
    rows = real()
    assert len(rows) == 1671
    for row in rows:
        gold = row["answer"]
        said = written(gold)
        assert score_answer(f"reasons\nAnswer: {said}", gold).correct is True
        assert score_answer(f"reasons\n**Answer:** {said.upper()}\n", gold).correct is True
        assert score_answer(f"reasons\nAnswer: {said}", json.dumps(gold)).correct is True
        assert score_answer(said, gold, flexible=True).correct is True
        assert score_answer(f"Answer: {json.dumps(gold)}", gold, flexible=True).correct is True
        assert score_answer(f"Answer: {said} | more", gold).correct is False
        if len(gold) == 1 and not isinstance(gold[0], str):
            value = gold_values(gold)[0]
            assert score_answer(f"Answer: {value:,.6f}", gold).correct is True
            assert score_answer(f"Answer: {value}%", gold).correct is True
            assert score_answer(f"Answer: {value + 0.01}", gold).correct is False
            assert score_answer(f"Answer: ${value}", gold, flexible=True).correct is True
        elif len(gold) > 1 and len(set(map(str, gold))) > 1:
            assert score_answer("Answer: " + written(gold[::-1]), gold).correct is (gold == gold[::-1])


@given(
    st.one_of(st.text(), st.text().map("Answer: ".__add__), st.text(alphabet="Answer:|[]\"'\\0123456789.,%$()-; \n"))
)
def test_never_an_exception_whatever_the_completion(completion):
    for gold in ([7.0], ["a", "b"], "text"):
        for flexible in (False, True):
            found = score_answer(completion, gold, flexible=flexible)
            assert (found.parsed is None) == (found.correct is None)


def test_other_forms_count_only_with_the_number_expected_and_long_answers_are_cut():
    assert readings("Answer: 1, 2 and 3", 4)[1:] == []
    assert ["1", "2", "3"] in readings("Answer: 1, 2 and 3", 3)
    assert all(len(part) <= 1000 for way in readings("Answer: " + "9" * 5000, 1) for part in way)

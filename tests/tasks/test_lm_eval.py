"""GSM8K's two extractions against lm-evaluation-harness's ``gsm8k`` (task version 3), and where ours differ from it.

Its filters: strict-match takes the first match of its pattern, flexible-extract the last; both strings are compared
after commas, dollar signs, all up to ``#### `` and one final dot are removed. Written here from its documentation.
"""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabledllm.tasks.gsm8k import TASK
from tests.fakes.tasks import real_gsm8k

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def cleaned(text: str) -> str:
    for pattern in (r",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(pattern, "", text)
    return text.lower()


def harness(completion: str, gold: str, flexible: bool) -> bool:
    found = [m[0] if flexible else m[1] for m in (FLEXIBLE if flexible else STRICT).finditer(completion)]
    answer = found[-1 if flexible else 0] if found else "[invalid]"
    return cleaned(answer) == cleaned(gold)


def ours(completion: str, gold: str, flexible: bool) -> bool:
    return TASK.score(completion, gold, flexible=flexible).correct is True


ALIKE = [
    "#### {n}", "#### {n:,}", "so\n#### {n}\n", "#### {n}.", "#### {n} dollars", "#### {n}%", "It is {n}.",
    "The answer is ${n}.", "The answer is ${n:,}", "\\boxed{{{n}}}", "= {n} eggs", "**{n}**", "no number", "", "####",
    "#### none", "#### ${n:,} in all"[5:], "2 + 2 is {n}", "$${n}$$",
]  # fmt: skip


@given(st.integers(-9999, 10**7), st.integers(-9999, 10**7), st.sampled_from(ALIKE), st.booleans())
def test_equal_where_the_harness_is_right(n, other, form, flexible):
    for gold in (n, other):
        completion, answer = form.format(n=n), f"work <<1+1=2>>2\n#### {gold:,}"
        assert ours(completion, answer, flexible) == harness(completion, answer, flexible), (completion, answer)


def test_equal_on_the_real_answers_in_many_spellings():
    rows = [json.loads(line) for line in real_gsm8k("test").open(encoding="utf-8")]
    golds = [row["answer"] for row in rows]
    commas = [i for i, gold in enumerate(golds) if "," in gold.rpartition("####")[2] or "#### -" in gold]
    for i in sorted({*range(0, len(golds), 5), *commas}):
        gold = golds[i]
        n = int(gold.rpartition("####")[2].replace(",", ""))
        for completion in (gold, golds[i - 1], *(form.format(n=n) for form in ALIKE)):
            for flexible in (False, True):
                assert ours(completion, gold, flexible) == harness(completion, gold, flexible), (completion, gold)
        for value in (
            f"{n}.0",
            f"{n:,}.00",
            f"${n}",
            f"${n:,}",
            f"{n} dollars",
            f"{n}%",
            f"**{n}**",
            f"\\boxed{{{n}}}",
        ):
            assert ours(f"so\n#### {value}", gold, False), (value, gold)
            assert ours(f"so it is {value}", gold, True), (value, gold)
            assert not ours(f"#### {n + 1}", gold, False)


DIFFERENCES = [
    # completion, gold, flexible, harness, ours
    ("#### 18.0", "#### 18", False, False, True),  # by value
    ("it is 18.00", "#### 18", True, False, True),
    ("#### 1.8e1", "#### 18", False, False, True),
    ("#### 1/2", "#### 0.5", False, False, True),
    ("#### 1/2", "#### 1", False, True, False),  # a number is not read in part
    ("#### $18", "#### 18", False, False, True),  # currency, bold and no space after the mark
    ("#### **18**", "#### 18", False, False, True),
    ("####18", "#### 18", False, False, True),
    ("#### +18", "#### 18", False, False, True),
    ("#### \u221218", "#### -18", False, False, True),  # the minus sign of typography
    ("#### 3 no\n#### 4", "#### 4", False, False, True),  # the last mark, not the first
    ("#### 3 no\n#### 4", "#### 3", False, True, False),
    ("it is 18 ...", "#### 18", True, False, True),  # dots and dollar signs are no number
    ("it is 18 $$", "#### 18", True, False, True),
    ("23-5", "#### -5", True, True, False),  # a minus after a number is no sign
    ("23-5", "#### 5", True, False, True),
]


@pytest.mark.parametrize(("completion", "gold", "flexible", "theirs", "mine"), DIFFERENCES)
def test_differences(completion, gold, flexible, theirs, mine):
    assert harness(completion, gold, flexible) is theirs
    assert ours(completion, gold, flexible) is mine

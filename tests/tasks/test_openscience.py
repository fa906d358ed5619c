r"""OpenScience: nested boxes, choices, a normal form of LaTeX; splits by content."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabledllm.data.sources import load_examples
from stabledllm.errors import UserError
from stabledllm.tasks import latex
from stabledllm.tasks.boxed import last_boxed
from stabledllm.tasks.openscience import TASK, split_of
from tests.fakes.tasks import openscience_row, write

SAME = [
    [
        "B",
        "(B)",
        "B.",
        r"\text{B}",
        r"\textbf{(B)}",
        r"\mathrm{B}",
        "{B}",
        "b",
        "B) 5 m/s",
        r"B: \text{kinetic}",
        "$B$",
    ],
    ["1/2", r"\frac{1}{2}", r"\dfrac12", r"\tfrac{1}2", "0.5", ".50", r"\frac{2}{4}", r"x = \frac{1}{2}"],
    ["-1/2", r"-\frac{1}{2}", r"\frac{-1}{2}", "\u22120.5"],
    ["1.5", r"1\frac{1}{2}", "1 1/2", r"\frac{3}{2}"],
    ["1234", "1,234", "1234.0", "1{,}234", r"1\,234", r"1.234 \times 10^{3}", r"1.234\cdot10^3", r"\$1234"],
    ["90", r"90^\circ", r"90^{\circ}", "90°", r"90\text{ degrees}", "90 degrees"],
    [r"\frac{\sqrt{3}}{2}", r"\dfrac{\sqrt3}{2}", r"\frac{ \sqrt{ 3 } }{2}"],
    ["(1,2)", r"\left( 1, 2 \right)", "( 1 , 2 )", r"\bigl(1,\,2\bigr)"],
    ["5 m/s", r"5\,\mathrm{m/s}", r"5 \text{ m/s}", r"5~\text{m/s}"],
    ["kinetic energy", r"\text{Kinetic energy}", r"\text{kinetic} \ \text{energy}.", "Kinetic  Energy"],
    [r"2\pi r", "2πr", r"2 \pi r"],
    ["x^2+1", "x^{2} + 1"],
    [r"\{1, 2\}", r"\{1,2\}", r"\left\{ 1, 2 \right\}"],
    ["50%", r"50\%", "50"],
    ["5"],
    ["7"],
    ["C"],
    ["x"],
    ["11/2"],
    ["12"],
    ["1,2", "1, 2"],
    ["m/s"],
]


@pytest.mark.parametrize("group", SAME, ids=lambda group: group[0])
def test_spellings_of_one_answer_are_equal_and_no_other(group):
    for gold in group:
        choice = group[0] == "B" and gold in ("B", "(B)", "B.", "$B$", "{B}")
        for given_ in group if choice or group[0] != "B" else ():
            assert TASK.score(f"so \\boxed{{{given_}}}.", gold).correct is True, (given_, gold, latex.normal(given_))
        for other in SAME:
            if other is not group:
                for given_ in other:
                    found = TASK.score(f"\\boxed{{{given_}}}", f"so \\boxed{{{gold}}}").correct
                    assert found is False, (given_, gold, latex.normal(given_), latex.normal(gold))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{\text{B}}", r"\text{B}"),
        (r"\boxed{\frac{a}{b_{1}}} then \boxed{c}", "c"),
        (r"\boxed{a} and \boxed{b", "a"),
        (r"\boxed{\boxed{C}}", r"\boxed{C}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed {D}", "D"),
        (r"\fbox{x} \fboxed{E}", "E"),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"{\boxed{A}", "A"),
        ("boxed{A}", None),
        ("}}}", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("The answer is B.", True), ("**Answer:** (B)", True), ("so\n(B)", True), ("so\n**B**", True),
        ("The correct option is B because", True), ("answer: C", False),
        ("The answer is a base", False), ("The answer is A base", False), ("nothing", None), ("", None),
        (r"Answer: A. Rather \boxed{B}", True),
    ],
)  # fmt: skip
def test_flexible_reads_more_than_the_box(completion, correct):
    assert TASK.score(completion, "B", flexible=True).correct is correct
    assert TASK.score(completion, "B").correct is (True if "boxed" in completion else None)


def test_flexible_free_answer():
    assert TASK.score("so the answer is 1,234.", "1234", flexible=True).correct is True
    assert TASK.score("x\n42", "42.0", flexible=True).correct is True


@given(
    st.one_of(
        st.text(), st.text(alphabet="\\boxedfractext{}$%^_ 0129.,/()ABab\n"), st.text().map(r"\boxed{%s}".__mod__)
    )
)
def test_any_completion_gets_a_verdict(text):
    for gold in ("B", "1/2", "kinetic energy"):
        for flexible in (False, True):
            found = TASK.score(text, gold, flexible=flexible)
            assert found.correct in (True, False, None)
            assert (found.parsed is None) == (found.correct is None)


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "{", "}", "\\frac", "\\frac{", "\\text{", "9", "1e9", "answer is ", "^\\circ", "\\"]
)
def test_long_completions_take_no_long_time(unit):
    for text in (unit * 30_000, "\\boxed{" + unit * 30_000 + "}" * 30_001):
        started = time.perf_counter()
        TASK.score(text, "B", flexible=True)
        TASK.score(text, "1/2", flexible=True)
        assert time.perf_counter() - started < 5


@pytest.mark.parametrize("gold", [None, "", [], {}, True, "x" * 600, float("nan")])
def test_gold_without_an_answer(gold):
    if gold is not None and gold != gold:
        assert TASK.score("\\boxed{B}", gold).correct is False
        return
    with pytest.raises(UserError, match="expected a gold answer"):
        TASK.score("\\boxed{B}", gold)


@pytest.mark.parametrize("gold", [5, 5.0, "5"])
def test_gold_may_be_a_number(gold):
    assert TASK.score("\\boxed{5}", gold).correct is True


def test_a_file_holds_both_splits_by_the_questions_words(tmp_path):
    path = write(tmp_path / "rows.jsonl", [openscience_row(i) for i in range(300)])
    found = {s: load_examples(f"openscience:{path}", split=s, n=0, seed=0) for s in ("train", "test")}
    assert sum(map(len, found.values())) == 300
    assert 25 < len(found["test"]) < 80
    for split, rows in found.items():
        for row in rows:
            text = row["messages"][0]["content"]
            assert split_of(text) == split_of(f"  {text.upper()} !") == split
    first = load_examples(f"openscience:{path}", split="train", n=7, seed=0)
    assert first == found["train"][:7]


def test_a_folder_is_read_as_it_is(tmp_path):
    write(tmp_path / "train.jsonl", [openscience_row(i) for i in range(5)])
    write(tmp_path / "test.jsonl", [openscience_row(i) for i in range(9, 12)])
    counts = [len(load_examples(f"openscience:{tmp_path}", split=s, n=0, seed=0)) for s in ("train", "test")]
    assert counts == [5, 3]


def test_gold_is_the_expected_answer_else_the_output(tmp_path):
    rows = [openscience_row(1, expected_answer="C"), openscience_row(2), {"input": "q", "output": "no box"}]
    write(tmp_path / "train.jsonl", rows)
    found = load_examples(f"openscience:{tmp_path}", split="train", n=0, seed=0)
    assert [row.get("gold") for row in found] == ["C", rows[1]["output"], None]


def test_bad_rows_name_line_and_key(tmp_path):
    write(tmp_path / "train.jsonl", [openscience_row(1), {"input": "q"}])
    with pytest.raises(UserError, match=r"train\.jsonl:2: .*'output', found nothing"):
        load_examples(f"openscience:{tmp_path}", split="train", n=0, seed=0)
    with pytest.raises(UserError, match=r"expected test\.jsonl in it, found train\.jsonl"):
        load_examples(f"openscience:{tmp_path}", split="test", n=0, seed=0)

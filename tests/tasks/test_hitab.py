"""HiTab from files in the official layout: prompts, tables that keep their cells, and what is wrong with a file."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stabledllm.data.spans import syntax_pattern
from stabledllm.errors import UserError
from stabledllm.tasks.hitab import TASK
from stabledllm.tasks.hitab_table import table_of
from stabledllm.tasks.registry import TASKS
from stabledllm.tasks.task import TaskOptions
from tests.fakes.tasks import write


def node(row: int, column: int, *children: dict) -> dict:
    return {"row_index": row, "column_index": column, "children": list(children)}


def region(top: int, left: int, bottom: int, right: int) -> dict:
    return {"first_row": top, "last_row": bottom, "first_column": left, "last_column": right}


# Two levels of columns (milk over skim and whole), and rows under a total; one merged cell in the data.
TEXTS = [
    ["age", "milk", "", "juice | soda"],
    ["", "skim", "whole", ""],
    ["all", "10", "", "3"],
    ["1 to 3 years", "4", "5", "1"],
    ["4 to 8 years", "6", "5", "2"],
]
TABLE = {
    "title": "drinks by age <2004>",
    "texts": TEXTS,
    "merged_regions": [region(0, 0, 1, 0), region(0, 1, 0, 2), region(0, 3, 1, 3), region(2, 1, 2, 2)],
    "top_header_rows_num": 2,
    "left_header_columns_num": 1,
    "top_root": node(-1, -1, node(0, 1, node(1, 1), node(1, 2)), node(0, 3)),
    "left_root": node(-1, -1, node(2, 0, node(3, 0), node(4, 0))),
}


def sample(i: int, answer: list, table: str = "t1") -> dict:
    return {"id": str(i), "table_id": table, "question": f"how much milk in row {i}?", "answer": answer}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, first in (("train", 0), ("dev", 10), ("test", 20)):
        write(tmp_path / f"{name}_samples.jsonl", [sample(first, [10.0]), sample(first + 1, ["skim", "whole"])])
    (tmp_path / "tables" / "raw").mkdir(parents=True)
    (tmp_path / "tables" / "raw" / "t1.json").write_text(json.dumps(TABLE))
    return tmp_path


class Grid(HTMLParser):
    """A browser's reading of a table: the text and the kind of cell at every place."""

    def __init__(self, source: str):
        super().__init__()
        self.cells: dict[tuple[int, int], tuple[str, str]] = {}
        self.row, self.open = -1, None
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.row += 1
        elif tag in ("th", "td"):
            size = {name: int(value) for name, value in attrs}
            column = next(c for c in range(99) if (self.row, c) not in self.cells)
            rows = range(self.row, self.row + size.get("rowspan", 1))
            self.open = [(r, c) for r in rows for c in range(column, column + size.get("colspan", 1))]
            for place in self.open:
                assert place not in self.cells, "cells overlap"
                self.cells[place] = (tag, "")

    def handle_data(self, data):
        for place in self.open or []:
            self.cells[place] = (self.cells[place][0], self.cells[place][1] + data)

    def handle_endtag(self, tag):
        self.open = None if tag in ("th", "td") else self.open


def expected(row: int, column: int) -> str:
    """The text that a reader sees at a place, merged cells included."""
    for merged in TABLE["merged_regions"]:
        inside = merged["first_row"] <= row <= merged["last_row"]
        if inside and merged["first_column"] <= column <= merged["last_column"]:
            row, column = merged["first_row"], merged["first_column"]
    level = "- " if column == 0 and row in (3, 4) else ""
    return level + TEXTS[row][column]


def test_html_shows_every_cell_where_it_belongs():
    grid = Grid(table_of(TABLE, "t").html())
    assert grid.cells.keys() == {(r, c) for r in range(5) for c in range(4)}
    for (r, c), (kind, text) in grid.cells.items():
        assert text == expected(r, c), (r, c)
        assert kind == ("th" if r < 2 or c == 0 else "td")


def test_markdown_repeats_merged_cells_and_keeps_both_hierarchies():
    lines = table_of(TABLE, "t").markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").replace("\\|", "\0").split("|")] for line in lines]
    cells = [[cell.replace("\0", "|") for cell in line] for line in cells]
    assert cells[0] == ["age", "milk > skim", "milk > whole", "juice | soda"]
    assert cells[1] == ["---"] * 4
    assert cells[2:] == [[expected(r, c) for c in range(4)] for r in (2, 3, 4)]


@pytest.mark.parametrize("form", ["markdown", "html"])
def test_syrm_marks_the_tables_syntax_and_nothing_of_the_question(folder, form):
    (first, _) = TASK.load(str(folder), "train", TaskOptions(table=form))
    prompt = first["messages"][0]["content"]
    marked = [m.group() for m in syntax_pattern(form).finditer(prompt)]
    if form == "html":
        shown = table_of(TABLE, "t").html()
        assert marked == [f"<{part.split('>')[0]}>" for part in shown.split("<")[1:]]
    else:
        assert marked.count("|") == table_of(TABLE, "t").markdown().count("|")
        assert marked.count("---") == 4
    assert not syntax_pattern(form).search(first["messages"][0]["content"].split("Question: ")[1].split("\n")[0])


def test_splits_prompts_and_responses(folder):
    assert TASKS["hitab"] is TASK
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        rows = TASK.load(str(folder), split, TaskOptions())
        assert [row["origin"] for row in rows] == [f"{folder / f'{name}_samples.jsonl'}:{i}" for i in (1, 2)]
        assert rows[0]["gold"] == [10.0]
        assert [row["messages"][1]["content"] for row in rows] == ["Answer: 10", "Answer: skim | whole"]
        assert rows[0]["messages"][0]["content"].startswith("drinks by age <2004>\n\n| age | milk > skim |")
        for row in rows:
            assert TASK.score(row["messages"][1]["content"], row["gold"]).correct is True
    alone = TASK.load(str(folder / "dev_samples.jsonl"), "test", TaskOptions())
    assert len(alone) == 2, "a single file is read whole, its tables beside it"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": []}, "expected rows of cells under 'texts', found none"),
        ({"top_header_rows_num": 9}, "expected 'top_header_rows_num' from 0 to 5, found 9"),
        ({"merged_regions": [{"first_row": 0}]}, "expected first_row, first_column, last_row and last_column"),
    ],
)
def test_a_broken_table_is_one_sentence(folder, change, message):
    (folder / "tables" / "raw" / "t1.json").write_text(json.dumps(TABLE | change))
    with pytest.raises(UserError, match=rf"t1\.json: {message}"):
        TASK.load(str(folder), "train", TaskOptions())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (sample(1, [1.0], "absent"), r"train_samples\.jsonl:1: expected its table in .*absent\.json"),
        (sample(1, []), r"train_samples\.jsonl:1: expected a HiTab answer"),
        (sample(1, [None]), r"train_samples\.jsonl:1: expected a HiTab answer"),
        ({"table_id": "t1", "answer": [1]}, r"train_samples\.jsonl:1: expected text under 'question'"),
    ],
)
def test_a_broken_row_is_one_sentence(folder, row, message):
    write(folder / "train_samples.jsonl", [row])
    with pytest.raises(UserError, match=message):
        TASK.load(str(folder), "train", TaskOptions())


def test_questions_without_their_tables_are_refused(tmp_path):
    write(tmp_path / "dev_samples.jsonl", [sample(1, [1.0])])
    with pytest.raises(UserError, match=r"dev_samples\.jsonl: expected the official tables in .*tables\.zip"):
        TASK.load(str(tmp_path / "dev_samples.jsonl"), "test", TaskOptions())
    with pytest.raises(UserError, match=r"expected hitab:FOLDER, .* found no path"):
        TASK.load(None, "train", TaskOptions())
    with pytest.raises(UserError, match=r"expected train_samples\.jsonl in it, found dev_samples\.jsonl"):
        TASK.load(str(tmp_path), "train", TaskOptions())


def test_tables_that_are_ragged_overlap_or_have_no_headers():
    odd = table_of(
        {"texts": [["a"], ["b", 2.5, None]], "merged_regions": [region(0, 0, 9, 0), region(1, 0, 1, 1)]}, "t"
    )
    assert odd.texts == (("a", "", ""), ("b", "2.5", ""))
    assert len(odd.spans) == 1, "of two regions that overlap the first counts"
    assert Grid(odd.html()).cells[1, 0] == ("th", "a")
    bare = table_of({"texts": [["1", "2"]], "top_header_rows_num": 0, "left_header_columns_num": 0}, "t")
    assert bare.markdown().splitlines() == ["|  |  |", "| --- | --- |", "| 1 | 2 |"]

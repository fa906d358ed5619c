"""Which rows are held out for validation: whole groups of rows that belong together, by a hash of their content."""

from __future__ import annotations

import hashlib
from array import array

from stabledllm.data.overlap import asked, content, digest, shown
from stabledllm.errors import UserError
from stabledllm.tasks.examples import Examples, picked


def hold_out(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """``(train, validation)`` by a hash of each group's content: rows that belong together never part.

    Together belong rows that are identical or nearly so, rows of one ``dialogue``, ``table`` or ``picture``, and a row
    whose question stands in another's conversation. The split depends on the content and the seed alone, not on the
    order of the rows.

    Raises:
        UserError: if either side would be empty.
    """
    groups = groups_of(examples)
    first = _first_contents(examples, groups)
    sides: tuple[array, array] = array("q"), array("q")
    for place, (example, group) in enumerate(zip(examples, groups, strict=True)):
        text = first.get(group) or content(example)
        found = hashlib.sha256(f"{seed}/{text}".encode()).digest()
        sides[int.from_bytes(found[:8], "big") < share * 2**64].append(place)
    if not sides[0] or not sides[1]:
        raise UserError(
            f"data: a validation share of {share:g} of {len(examples)} rows leaves {len(sides[0])} to train "
            f"and {len(sides[1])} to validate; expected at least one of each: give another data.validation_share, or "
            f"data.validation."
        )
    return picked(examples, sides[0]), picked(examples, sides[1])


def groups_of(examples: Examples) -> array:
    """A number for each row; rows with the same number belong together."""
    questions = {asked(example) for example in examples}
    above = array("q", range(len(examples)))

    def root(row: int) -> int:
        while above[row] != row:
            above[row] = row = above[above[row]]
        return row

    first: dict[bytes, int] = {}
    for row, example in enumerate(examples):
        own, *more = shown(example)
        keys = [own, *(key for key in more if key in questions or "picture" in example)]
        keys += [digest(f"{name} {example[name]}") for name in ("dialogue", "table") if name in example]
        for key in keys:
            # The smaller number is the group's.
            a, b = sorted((root(first.setdefault(key, row)), root(row)))
            above[b] = a
    return array("q", (root(row) for row in range(len(examples))))


def _first_contents(examples: Examples, groups: array) -> dict[int, str]:
    """Of each group of several rows the first content in the alphabet, which decides for all of them."""
    seen: set[int] = set()
    several = {group for group in groups if group in seen or seen.add(group)}
    first: dict[int, str] = {}
    if several:
        for group, example in zip(groups, examples, strict=True):
            if group in several:
                text = content(example)
                first[group] = min(text, first.get(group, text))
    return first


def whole_dialogues(examples: Examples, rows: int | None) -> Examples:
    """At most ``rows`` of the examples, from the beginning; rows of one ``dialogue`` are all there or none of them.

    Raises:
        UserError: a first dialogue of more rows than that.
    """
    if rows is None or rows >= len(examples):
        return examples
    kept, cut = rows, examples[rows].get("dialogue")
    while kept and cut is not None and examples[kept - 1].get("dialogue") == cut:
        kept -= 1
    if not kept:
        raise UserError(
            f"{examples[0]['origin']}: expected at most {rows} rows of one dialogue, as many as are wanted, found more."
        )
    return examples[:kept]

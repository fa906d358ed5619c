"""Holding rows out for validation: whole groups of rows that belong together, chosen by a hash of their content."""

from __future__ import annotations

import hashlib
from array import array

from stabledllm.data.overlap import asked, content, digest, shown
from stabledllm.errors import UserError
from stabledllm.tasks.examples import Examples, picked


def hold_out(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Split examples into ``(train, validation)`` by a hash of each group's content.

    Rows that belong together stay together: identical or nearly identical rows, rows of one ``dialogue``, ``table`` or
    ``picture``, and a row whose question stands in another's conversation. The split depends on the content and the
    seed alone, not on the order of the rows.

    Raises:
        UserError: if either side would be empty.
    """
    groups = groups_of(examples)
    first = _first_contents(examples, groups)
    sides: tuple[array, array] = array("q"), array("q")
    for place, (example, group) in enumerate(zip(examples, groups, strict=True)):
        text = first.get(group) or content(example)
        hashed = hashlib.sha256(f"{seed}/{text}".encode()).digest()
        sides[int.from_bytes(hashed[:8], "big") < share * 2**64].append(place)
    if not sides[0] or not sides[1]:
        raise UserError(
            f"data: a validation share of {share:g} of {len(examples)} rows leaves {len(sides[0])} to train "
            f"and {len(sides[1])} to validate; expected at least one of each: give another data.validation_share (0 "
            f"trains on every row), or data.validation."
        )
    return picked(examples, sides[0]), picked(examples, sides[1])


def hold_out_share(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples, str]:
    """Training and validation rows out of one set of rows, and a note on how many were held out; 0 holds none out.

    Raises:
        UserError: the same as :func:`hold_out`.
    """
    if not share:
        return examples, [], "validation: none; data.validation_share=0 trains on every row"
    train, validation = hold_out(examples, share, seed)
    held = (
        f"validation: {len(validation)} of {len(examples)} rows held out of training "
        f"(data.validation_share={share:g}; 0 trains on every row)"
    )
    return train, validation, held


def groups_of(examples: Examples) -> array:
    """The group number of each row; rows with the same number belong together."""
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
            # The smaller number becomes the group's.
            a, b = sorted((root(first.setdefault(key, row)), root(row)))
            above[b] = a
    return array("q", (root(row) for row in range(len(examples))))


def _first_contents(examples: Examples, groups: array) -> dict[int, str]:
    """The alphabetically first content of each group of several rows, which decides for all of them."""
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
    """The first ``rows`` examples at most; all rows of a ``dialogue`` are included, or none.

    Raises:
        UserError: a first dialogue of more rows than that.
    """
    if rows is None or rows >= len(examples):
        return examples
    end, cut = rows, examples[rows].get("dialogue")
    while end and cut is not None and examples[end - 1].get("dialogue") == cut:
        end -= 1
    if not end:
        raise UserError(
            f"{examples[0]['origin']}: expected at most {rows} rows of one dialogue, as many as are wanted, found more."
        )
    return examples[:end]

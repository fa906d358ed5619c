"""Telling whether two rows ask the same question, exactly or nearly, so that no question is in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from stabledllm.tasks.examples import Examples, picked
from stabledllm.tasks.likeness import plain


def content(example: dict) -> str:
    """The part of an example that is compared exactly between splits.

    It is what stands before the last answer, the whole of a text or of token ids without a prompt, or an image's
    caption.
    """
    if "text" in example or "caption" in example:
        return example.get("text", example.get("caption"))
    if "messages" in example:
        return repr([(m["role"], m["content"]) for m in example["messages"][:-1]])
    # Where there is no prompt, as in pre-training on ids, the row itself is compared.
    return repr(example["input_ids"][: example["prompt_length"] or None])


def likeness(example: dict) -> str:
    """The question without case, spacing, punctuation and thousands commas, for comparing it nearly. Digits stay.

    Rows of token ids, and ``exact`` ones, are alike where their prompts are equal.
    """
    if example.get("exact"):
        return content(example)
    if "text" in example or "caption" in example:
        return plain(content(example))
    if "messages" not in example:
        return content(example)
    return "\n".join(plain(m["content"]) for m in example["messages"][:-1])


def digest(text: str) -> bytes:
    """A hash that stands for a text in little memory."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def row_digest(example: dict) -> bytes:
    """The digest of a whole row, prompt and answer; images count by their captions alone."""
    if "messages" in example:
        return digest(repr([(m["role"], m["content"]) for m in example["messages"]]))
    return digest(repr(example["input_ids"]) if "input_ids" in example else content(example))


def asked(example: dict) -> bytes:
    """The digest of a row's own question."""
    return digest(likeness(example))


def shown(example: dict) -> list[bytes]:
    """Digests of a row's question, of the earlier questions of its conversation, and of its image."""
    if "messages" not in example:
        image = [digest(f"picture {example['picture']}")] if "picture" in example else []
        return [asked(example), *image]
    turns = [plain(m["content"]) for m in example["messages"]]
    ends = [i for i, m in enumerate(example["messages"]) if m["role"] == "assistant" and 0 < i < len(turns) - 1]
    return [asked(example), *(digest("\n".join(turns[:i])) for i in ends)]


class Others:
    """The questions of other rows, as digests, each with the origin of one row that has it."""

    def __init__(self, examples: Examples):
        self._asked: dict[bytes, str] = {}
        self._shown: dict[bytes, str] = {}
        for example in examples:
            own, *more = shown(example)
            self._asked[own] = self._shown[own] = example["origin"]
            for each in more:
                self._shown.setdefault(each, example["origin"])
                if "picture" in example:
                    self._asked.setdefault(each, example["origin"])

    def like(self, example: dict) -> str | None:
        """The origin of a row whose question this one contains, or that contains this one's; None if there is none."""
        own, *more = shown(example)
        return self._shown.get(own) or next((self._asked[each] for each in more if each in self._asked), None)


def without(examples: Examples, others: Others) -> tuple[Examples, list[str]]:
    """Drop the examples that are like one of the others; returns the rest, and one line on each dropped example.

    If one row of a ``dialogue`` is dropped, all are.
    """
    matches = [others.like(example) for example in examples]
    if not any(matches):
        return examples, []
    dialogues = {e["dialogue"]: like for e, like in zip(examples, matches, strict=True) if like and "dialogue" in e}
    unlike, dropped = [], []
    for place, (example, like) in enumerate(zip(examples, matches, strict=True)):
        like = like or dialogues.get(example.get("dialogue"))
        if like is None:
            unlike.append(place)
        else:
            dropped.append(f"{example['origin']} like {like}")
    return picked(examples, unlike), dropped


def dropped_note(split: str, others: str, dropped: Sequence[str]) -> str:
    """One line on the rows that :func:`without` dropped, which names the first two."""
    first = "; ".join(dropped[:2]) + ("; ..." if len(dropped) > 2 else "")
    rows = "1 row" if len(dropped) == 1 else f"{len(dropped)} rows"
    return f"{split}: dropped {rows} found in {others} as well, whatever their case, spacing and punctuation ({first})"

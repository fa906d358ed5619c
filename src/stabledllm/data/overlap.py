"""What makes two rows the same question, exactly and nearly, and keeping the splits apart by it."""

from __future__ import annotations

from collections.abc import Sequence

from stabledllm.tasks.likeness import plain


def content(example: dict) -> str:
    """What makes two examples the same for splitting: the conversation before the last answer, the whole text, or a
    picture's caption."""
    if "text" in example or "caption" in example:
        return example.get("text", example.get("caption"))
    if "messages" in example:
        return repr([(m["role"], m["content"]) for m in example["messages"][:-1]])
    return repr(example["input_ids"][: example["prompt_length"]])


def likeness(example: dict) -> str:
    """The question without what does not change it: case, spacing, punctuation, thousands commas. Digits stay.

    Rows of token ids are alike where their prompts are equal.
    """
    if "text" in example or "caption" in example:
        return plain(content(example))
    if "messages" not in example:
        return content(example)
    return "\n".join(plain(m["content"]) for m in example["messages"][:-1])


def without(examples: Sequence[dict], known: dict[str, str]) -> tuple[list[dict], list[str]]:
    """``(kept, dropped)``: the examples unlike any of ``known`` (likeness to origin), and the others' origins."""
    kept, dropped = [], []
    for example in examples:
        other = known.get(likeness(example))
        if other is None:
            kept.append(example)
        else:
            dropped.append(f"{example['origin']} like {other}")
    return kept, dropped


def dropped_note(split: str, others: str, dropped: Sequence[str]) -> str:
    """One line on the rows that :func:`without` dropped, naming the first."""
    first = "; ".join(dropped[:2]) + ("; ..." if len(dropped) > 2 else "")
    rows = "1 row" if len(dropped) == 1 else f"{len(dropped)} rows"
    return f"{split}: dropped {rows} found in {others} as well, whatever their case, spacing and punctuation ({first})"

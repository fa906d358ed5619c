"""Encoding rows of preferences: for each prompt the chosen and the rejected answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stabledllm.data.rows import Encoded as EncodedRows
from stabledllm.data.rows import EncodingOptions, TokenRow, encode_part, refuse_none
from stabledllm.errors import UserError
from stabledllm.tasks.examples import Examples


@dataclass(frozen=True)
class EncodedPairs:
    """Rows of the chosen and of the rejected answers, one beside the other, and what was dropped."""

    chosen: Sequence[TokenRow]
    rejected: Sequence[TokenRow]
    too_long: list[str]
    """Origins of pairs of which an answer is longer than ``max_len``."""
    alike: list[str]
    """Origins of pairs whose answers are the same tokens, between which nothing can be preferred."""

    def summary(self, max_len: int) -> str:
        """One line on how many pairs there are and which were dropped."""
        said = EncodedRows(self.chosen, self.too_long).summary(max_len).replace(" rows", " pairs", 1)
        if self.alike:
            first = ", ".join(self.alike[:3]) + (", ..." if len(self.alike) > 3 else "")
            said += f"; dropped {len(self.alike)} whose answers are the same ({first})"
        return said


def encode_pairs(examples: Examples, tokenizer, options: EncodingOptions) -> EncodedPairs:
    """Encode both answers of every example as rows; a pair is dropped whole, and counted.

    Args:
        examples: with the rejected answer as a message under ``rejected``.

    Raises:
        UserError: as :func:`~stabledllm.data.rows.encode_examples` does, or no pair has two answers.
    """
    chosen, rejected, too_long, alike = [], [], [], []
    for example in examples:
        other = example | {"messages": [*example["messages"][:-1], example["rejected"]]}
        sides = [encode_part([each], tokenizer, options) for each in (example, other)]
        if any(side.dropped for side in sides):
            too_long.append(example["origin"])
        elif list(sides[0].rows[0].input_ids) == list(sides[1].rows[0].input_ids):
            alike.append(example["origin"])
        else:
            chosen.append(sides[0].rows[0])
            rejected.append(sides[1].rows[0])
    if alike and not chosen:
        longer = f", and {len(too_long)} longer than max_len={options.max_len}" if too_long else ""
        raise UserError(
            f"data: expected at least one pair whose answers differ, found {len(alike)} with the same answer twice "
            f"({alike[0]}){longer}; give pairs of which one answer is better."
        )
    refuse_none(EncodedRows(chosen, too_long), options)
    return EncodedPairs(chosen, rejected, too_long, alike)

"""Encoding examples as token rows, and collating rows into batches, for training and measuring.

Legend: B rows, L positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.data.ids import refuse_ids
from stabledllm.data.prompt_rows import UNANSWERED
from stabledllm.data.spans import delimiter_pattern, mark_matches, syntax_pattern
from stabledllm.data.token_rows import RowsBuilder, TokenRow, any_marked, maskable_counts_of
from stabledllm.data.turns import PARTS
from stabledllm.errors import UserError, did_you_mean
from stabledllm.models.plain_turns import has_more
from stabledllm.noise.methods import Method


def maskable_sizes(rows: Sequence[TokenRow], method: Method) -> Tensor:
    """The number P of maskable tokens of each row under a method, int64, shape (rows,)."""
    return torch.tensor(maskable_counts_of(rows, syrm=method.syrm))


@dataclass(frozen=True)
class EncodingOptions:
    """The options of encoding examples as rows.

    The response ends with one supervised end token. With ``pad_response_to`` every response is
    padded with supervised end tokens to a multiple of that length, as some other projects do.
    """

    max_len: int = 1024
    over_length: str = "drop"
    delimiters: tuple[str, ...] = ("####",)
    syntax: str | None = None
    pad_response_to: int = 1

    def __post_init__(self) -> None:
        if self.over_length not in ("drop", "refuse"):
            hint = did_you_mean(self.over_length, ("drop", "refuse"))
            raise UserError(f"data.over_length: unknown '{self.over_length}'{hint}.")
        if self.max_len < 2 or self.pad_response_to < 1:
            raise UserError("data: expected max_len of at least 2 and pad_response_to of at least 1.")


@dataclass(frozen=True)
class Encoded:
    """Encoded rows, and the origins of those that were dropped for their length."""

    rows: Sequence[TokenRow]
    dropped: list[str]

    def summary(self, max_len: int) -> str:
        """One line that says how many rows were dropped, and the first few of them."""
        if not self.dropped:
            return f"{len(self.rows)} rows, none longer than max_len={max_len}"
        first = ", ".join(self.dropped[:3]) + (", ..." if len(self.dropped) > 3 else "")
        return f"{len(self.rows)} rows; dropped {len(self.dropped)} longer than max_len={max_len} ({first})"


def encode_examples(examples: Sequence[dict], tokenizer, options: EncodingOptions) -> Encoded:
    """Encode examples through the tokenizer's chat template; nothing is ever cut.

    Raises:
        UserError: a response without tokens, an id that no row may hold, a row longer than ``max_len`` when that is
            refused, or no row left.
    """
    encoded = encode_part(examples, tokenizer, options)
    refuse_none(encoded, options)
    return encoded


def refuse_none(encoded: Encoded, options: EncodingOptions) -> None:
    """Refuse data of which no row is left.

    Raises:
        UserError: there is no row.
    """
    if not len(encoded.rows):
        padded = options.pad_response_to > 1
        shorter = f", or a smaller data.pad_response_to than {options.pad_response_to}" if padded else ""
        raise UserError(
            f"data: expected at least one row of at most max_len={options.max_len} tokens, found none; write a larger "
            f"data.max_len{shorter}."
        )


def encode_part(examples: Iterable[dict], tokenizer, options: EncodingOptions) -> Encoded:
    """The same as :func:`encode_examples` for a part of the examples, of which no row need be left."""
    delimiters = [tokenizer.matchable(text) for text in options.delimiters]
    delimiter = delimiter_pattern(delimiters) if delimiters else None
    syntax = syntax_pattern(options.syntax) if options.syntax else None
    rows, dropped = RowsBuilder(), []
    for example in examples:
        row = _encode(example, tokenizer, options, delimiter, syntax)
        if len(row) <= options.max_len:
            rows.add(row)
        elif options.over_length == "refuse":
            raise UserError(f"{row.origin}: expected at most max_len={options.max_len} tokens, found {len(row)}.")
        else:
            dropped.append(row.origin)
    return Encoded(rows.rows(), dropped)


def _encode(
    example: dict, tokenizer, options: EncodingOptions, delimiter: re.Pattern | None, syntax: re.Pattern | None
) -> TokenRow:
    if example.get(UNANSWERED):
        raise UserError(f"{example['origin']}: expected a row with an answer, found a prompt alone.")
    if "input_ids" in example:
        ids, prompt, given = list(example["input_ids"]), example["prompt_length"], example.get("given", [])
    else:
        try:
            ids, response, untrained = _encode_turns(example, tokenizer)
        except UserError as error:
            raise UserError(f"{example['origin']}: {error}") from None
        prompt = len(ids)
        if not response:
            raise UserError(f"{example['origin']}: expected a response of at least one token, found an empty one.")
        given = [prompt + place for place in untrained]
        fill = -(len(response) + 1) % options.pad_response_to
        ids = [*ids, *response, *[tokenizer.eos_token_id] * (1 + fill)]
    refuse_ids(ids, tokenizer, example["origin"])
    apart = set(given)
    while prompt in apart:  # what is given at the beginning of a response is none of it
        prompt += 1
    return TokenRow(
        ids,
        prompt,
        delimiter=[i for i in _marked(delimiter, tokenizer, ids[prompt:], prompt) if i not in apart],
        syntax=_marked(syntax, tokenizer, ids[:prompt], 0),
        origin=example["origin"],
        given=[place for place in given if place >= prompt],
    )


def _encode_turns(example: dict, tokenizer) -> tuple[list[int], list[int], list[int]]:
    """The ids of the prompt and of the answer, and the places in the answer that are not trained."""
    messages, tools = example["messages"], example.get("tools", ())
    more = {"tools": tools} if tools else {}
    prompt, last = tokenizer.chat(messages[:-1], **more), messages[-1]
    if PARTS in last:
        return prompt, *_encode_parts(last, tokenizer)
    answer = tokenizer.answer(messages, **more) if has_more(last) else tokenizer.encode(last["content"])
    return prompt, answer, []


def _encode_parts(message: dict, tokenizer) -> tuple[list[int], list[int]]:
    """The ids of an answer's parts, each encoded by itself, so that no token stands in two of them."""
    if has_more(message):
        raise UserError("expected parts of an answer's text to be left out of training, found tool calls beside them.")
    ids, untrained = [], []
    for text, trained in message[PARTS]:
        part = tokenizer.encode(text)
        untrained += [] if trained else range(len(ids), len(ids) + len(part))
        ids += part
    if tokenizer.decode(ids) != tokenizer.decode(tokenizer.encode(message["content"])):
        raise UserError(
            "expected an answer whose parts can be encoded one by one, found one that the tokenizer then spells "
            "otherwise; let the parts end where words do."
        )
    return ids, untrained


def _marked(pattern: re.Pattern | None, tokenizer, ids: list[int], offset: int) -> list[int]:
    if pattern is None:
        return []
    marks = mark_matches([tokenizer.piece(i) for i in ids], pattern)
    return [offset + i for i, hit in enumerate(marks) if hit]


def collate(rows: Sequence[TokenRow], pad_id: int, *, syrm: bool = False) -> dict[str, Tensor]:
    """Right-padded tensors, each (B, L): ``input_ids``, and bool ``attention_mask``, ``maskable``, ``delimiter``.

    Padding is never maskable, and a row's hidden tokens are never attended to. With ``syrm`` the prompt's syntax tokens
    are maskable too.
    """
    shape = (len(rows), max(len(r) for r in rows))
    batch = {"input_ids": torch.full(shape, pad_id)}
    for name in ("attention_mask", "maskable", "delimiter"):
        batch[name] = torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        batch["input_ids"][i, : len(row)] = torch.as_tensor(row.input_ids)
        batch["attention_mask"][i, row.hidden : len(row)] = True
        batch["maskable"][i, row.prompt_length : len(row) - row.tail] = True
        batch["maskable"][i, getattr(row, "given", [])] = False
        batch["delimiter"][i, row.delimiter] = True
        if syrm:
            batch["maskable"][i, row.syntax] = True
    return batch


def marks_in(rows: Sequence[TokenRow]) -> set[str]:
    """The marks that some row has: ``delimiter``, ``syntax``."""
    return {name for name in ("delimiter", "syntax") if any_marked(rows, name)}

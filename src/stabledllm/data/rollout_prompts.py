"""The prompts of policy gradients: what a model answers, and what rewards may know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stabledllm.data.prompt_rows import ANSWER, UNANSWERED, filled
from stabledllm.data.rows import Encoded, EncodingOptions, TokenRow, encode_part, refuse_none
from stabledllm.errors import UserError
from stabledllm.tasks.examples import Examples
from stabledllm.tasks.registry import task_and_gold


@dataclass(frozen=True)
class RolloutPrompt:
    """A prompt to draw responses for. ``ids``: what the model is shown of it, through its chat template.

    ``messages``: the same as a conversation, behind the system prompt and the worked examples; no answer is in it.
    ``columns``: the row's other keys, the same for all prompts of a run. ``task`` and ``gold``: what scores a response;
    None where the row holds no answer.
    """

    ids: list[int]
    messages: list[dict]
    origin: str
    columns: dict[str, Any] = field(default_factory=dict)
    task: str | None = None
    gold: Any = None
    tools: list[dict] = field(default_factory=list)
    conversational: bool = False
    """Whether rewards get prompts and responses as messages: where the data have them so."""

    @property
    def asked(self) -> str | list[dict]:
        """What rewards get as the prompt: the conversation, or of plain data the question alone."""
        return self.messages if self.conversational else self.messages[-1]["content"]


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts, and beside each a row with its answer, or with an end token alone where it has none."""

    prompts: list[RolloutPrompt]
    rows: Sequence[TokenRow]
    too_long: list[str]
    """Origins of those that are longer than ``max_len`` with their answer."""
    unanswered: int
    """Prompts without an answer among those that are left."""

    @property
    def answered_rows(self) -> Sequence[TokenRow]:
        """The rows where all have answers, whose likelihood can be measured; else none."""
        return [] if self.unanswered else self.rows

    def summary(self, max_len: int) -> str:
        """One line on how many prompts there are, which were dropped, and how many are prompts alone."""
        said = Encoded(self.rows, self.too_long).summary(max_len).replace(" rows", " prompts", 1)
        return f"{said}; {self.unanswered} of them without a response in the data" if self.unanswered else said


def encode_prompts(examples: Examples, tokenizer, options: EncodingOptions) -> EncodedPrompts:
    """Encode examples as prompts to answer; none is ever cut.

    Raises:
        UserError: an example without a conversation, a prompt longer than ``max_len`` where that is refused, or no
            prompt left.
    """
    prompts, rows, too_long, unanswered = [], [], [], 0
    for example in examples:
        if "messages" not in example:
            raise UserError(f"{example['origin']}: expected a prompt in words, found token ids, a text or an image.")
        encoded = (_with_end if example.get(UNANSWERED) else _with_answer)(example, tokenizer, options)
        if encoded.dropped:
            too_long.append(example["origin"])
            continue
        unanswered += bool(example.get(UNANSWERED))
        rows.append(encoded.rows[0])
        prompts.append(_prompt_of(example, rows[-1]))
    refuse_none(Encoded(rows, too_long), options)
    return EncodedPrompts(prompts, rows, too_long, unanswered)


def with_all_columns(prompts: Mapping[str, list[RolloutPrompt]]) -> dict[str, list[RolloutPrompt]]:
    """The prompts of all splits with the same columns; None where a row lacks one."""
    every = iter(filled(prompt.columns for each in prompts.values() for prompt in each))
    return {split: [replace(prompt, columns=next(every)) for prompt in each] for split, each in prompts.items()}


def _with_answer(example: dict, tokenizer, options: EncodingOptions) -> Encoded:
    return encode_part([example], tokenizer, options)


def _with_end(example: dict, tokenizer, options: EncodingOptions) -> Encoded:
    """The row whose response is the end token alone."""
    tools, origin = {"tools": example["tools"]} if example.get("tools") else {}, example["origin"]
    try:
        ids = tokenizer.chat(example["messages"][:-1], **tools)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    row = {"input_ids": [*ids, tokenizer.eos_token_id], "prompt_length": len(ids), "origin": origin}
    return encode_part([row], tokenizer, options)


def _prompt_of(example: dict, row: TokenRow) -> RolloutPrompt:
    *asked, answer = example["messages"]
    scored = task_and_gold(example)
    return RolloutPrompt(
        ids=list(row.input_ids[: row.prompt_length]),
        messages=asked,
        origin=example["origin"],
        columns=example["columns"] if "columns" in example else _columns_of_task(example, answer["content"]),
        task=scored[0].name if scored else None,
        gold=scored[1] if scored else None,
        tools=list(example.get("tools", ())),
        conversational=example.get("conversational", False),
    )


def _columns_of_task(example: dict, answer: str) -> dict[str, Any]:
    """What a task's row has: its response, the data set's own answer field, and the task."""
    return {"answer": None if answer == ANSWER else answer, "gold": example.get("gold"), "task": example.get("task")}

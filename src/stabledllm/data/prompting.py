"""The text before a question: a system prompt and worked examples, the same in training and evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from stabledllm.config.settings import DataSettings
from stabledllm.data.overlap import likeness
from stabledllm.data.prompt_rows import ANSWER
from stabledllm.data.prompts import Prompt
from stabledllm.data.sources import load_examples, task_options
from stabledllm.data.splits import own_splits
from stabledllm.errors import UserError
from stabledllm.tasks.examples import Examples, Mapped

_POOL = 256
"""Rows of the training split among which the worked examples are chosen, whatever ``train_rows`` says."""


def prompted(examples: Examples, settings: DataSettings, shots: Sequence[dict] | None = None) -> Examples:
    """The examples with the system prompt and ``few_shot`` worked examples before the question.

    Every row gets the same worked examples in the same order; only where one of them is the row itself, a reserve
    takes its place.

    Args:
        shots: the result of :func:`choose_shots`; None (for test rows alone): chosen from the training split of
            ``settings.train``.

    Raises:
        UserError: rows of token ids, a second system prompt, or no training split to choose from.
    """
    if settings.system_prompt is None and not settings.few_shot:
        return examples
    if shots is None:
        if settings.few_shot and "train" not in own_splits(settings.train) and settings.test is None:
            raise UserError(
                f"data.few_shot: expected worked examples from a training split apart from the tested rows, found only "
                f"'{settings.train}'; give a folder or a task with splits."
            )
        shots = choose_shots(settings, examples)
    with_prompts = Mapped(examples, lambda example: _prompted(example, settings, shots))
    for _ in with_prompts:
        pass  # an example that cannot be prompted is refused now, not in the middle of a run
    return with_prompts


def with_prompts_before(prompts: Sequence[Prompt], settings: DataSettings) -> list[list[dict]]:
    """The conversations of prompts as a model trained under these settings was shown them: behind the system prompt
    and the worked examples, where there are some.

    Raises:
        UserError: a second system prompt, or no training rows to choose worked examples from.
    """
    answer = {"role": "assistant", "content": ANSWER}
    examples = [{"messages": [*prompt.messages, answer], "origin": prompt.origin} for prompt in prompts]
    return [each["messages"][:-1] for each in prompted(examples, settings, choose_shots(settings, examples))]


def choose_shots(settings: DataSettings, apart_from: Sequence[dict] = ()) -> list[dict]:
    """Choose ``few_shot`` rows of the training split and a reserve by a hash of their text; none without few_shot.

    Args:
        apart_from: rows (of the test split); no worked example is like one of them.

    Raises:
        UserError: too few different rows.
    """
    if not settings.few_shot:
        return []
    options = task_options(settings)
    examples = load_examples(
        settings.train, split="train", n=_POOL, seed=settings.seed, options=options, settings=settings
    )
    pool = list(examples[:_POOL])
    refused = {likeness(example) for example in apart_from}
    unlike = {likeness(example): example for example in reversed(pool)}
    order = sorted(
        unlike.keys() - refused, key=lambda text: hashlib.sha256(f"{settings.seed}/{text}".encode()).digest()
    )
    if len(order) <= settings.few_shot:
        raise UserError(
            f"data.few_shot: expected more than {settings.few_shot} different training rows, found {len(order)}."
        )
    return [unlike[text] for text in order[: settings.few_shot + 1]]


def _prompted(example: dict, settings: DataSettings, shots: Sequence[dict]) -> dict:
    if "messages" not in example or any("messages" not in shot for shot in shots):
        raise UserError(
            f"{example['origin']}: expected a conversation for data.system_prompt and data.few_shot, found none."
        )
    own = [m for m in example["messages"] if m["role"] == "system"]
    if own and settings.system_prompt is not None:
        raise UserError(f"{example['origin']}: expected no system turn beside data.system_prompt, found one.")
    system = [{"role": "system", "content": settings.system_prompt}] if settings.system_prompt is not None else own
    text = likeness(example)
    *shown, reserve = shots or [None]
    worked = [reserve if likeness(shot) == text else shot for shot in shown]
    turns = [m for e in (*worked, example) for m in e["messages"] if m["role"] != "system"]
    return example | {"messages": system + turns}

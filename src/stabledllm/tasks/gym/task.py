"""The task ``reasoning-gym:DATASET,key=value,...``: any procedural set of the package, scored by its own rule.

An item is the package's: its question is the prompt, its answer the response, and the whole of it the gold that its
``score_answer`` compares a completion with. ``gsm_symbolic`` is trained on as GSM8K is, and scored by GSM8K's rule.
"""

from __future__ import annotations

import json
from typing import Any

from stabledllm.errors import UserError
from stabledllm.tasks.gym import gsm_symbolic, scoring
from stabledllm.tasks.gym.drawing import different_items
from stabledllm.tasks.gym.package import NAME
from stabledllm.tasks.gym.spec import GSM_SYMBOLIC, LARGEST_SEED, SIZE, GymSpec, parse
from stabledllm.tasks.task import Scored, TaskOptions, example

_EXAMPLES = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
"""Where the items of sets with many right answers keep one of them."""


class ReasoningGym:
    """The task reasoning-gym; right is a score of exactly 1, the package's partial credit is kept beside it."""

    name = NAME
    splits = ("train", "validation", "test")
    splits_files = True
    beside = ()
    delimiters = ("####",)

    def check(self, where: str | None) -> None:
        """Refuse a specification of a set, key or value that the package has not."""
        spec = parse(where)
        (item,) = different_items(spec, "train", 1, 0)
        _row(spec, item, spec.text)

    def load(self, where: str | None, split: str, options: TaskOptions) -> list[dict]:
        """Make the rows of a split: as many as ``size`` and ``options.rows`` allow; row i is the same however many."""
        spec = parse(where)
        rows = min((n for n in (spec.size, options.rows) if n is not None), default=SIZE)
        seed = options.seed if spec.seed is None else spec.seed
        if seed > LARGEST_SEED:
            raise UserError(f"data '{spec.text}': expected a seed in [0, {LARGEST_SEED}], found data.seed={seed}.")
        items = different_items(spec, split, rows, seed)
        if len(items) < rows:
            options.note(f"{split}: found no more than {len(items)} different items of {spec.text}")
        made = [_row(spec, item, f"{spec.text} {split} row {i}") for i, item in enumerate(items)]
        kept = [row for row in made if row is not None]
        if len(kept) < len(made):
            dropped = len(made) - len(kept)
            options.note(f"{split}: dropped {dropped} of {len(made)} whose worked solution does not end in its answer")
        return kept

    def score(self, completion: str, gold: Any, *, flexible: bool = False) -> Scored:
        """Score a completion; ``gold`` is an item of the package, or of gsm_symbolic its number."""
        return scoring.score(completion, gold, flexible=flexible)


def _row(spec: GymSpec, item: dict, origin: str) -> dict | None:
    if spec.name == GSM_SYMBOLIC:
        response = gsm_symbolic.response_of(item, spec.response)
        place = f"{origin} ({item['template']})"
        return None if response is None else example(item["question"], response, place, item["answer"])
    answer = item["answer"] or item["metadata"].get(_EXAMPLES.get(spec.name))
    if not answer:
        raise UserError(
            f"{origin}: expected an item with an answer to train on, found none: '{spec.name}' only judges answers."
        )
    response = answer if isinstance(answer, str) else json.dumps(answer)
    # Of puzzles drawn with punctuation the spelling is the content: rows that differ in it are different.
    return example(item["question"], response, origin, item) | {"exact": True}


TASK = ReasoningGym()

"""Rounds of policy gradients: responses to a step's prompts, their rewards and advantages, on disk.

``OUT/rollouts/round-000012/`` holds ``round.json`` (what the round is of), ``rollouts-RANK.jsonl`` (the responses'
tokens, as they were decoded), ``responses.jsonl`` (what people read: prompt, completion, rewards, advantage) and, where
a round has several steps, ``values.safetensors`` (estimates under the old policy and the reference).

Legend: P prompts, G responses of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.data.token_rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.evaluation.rollouts import Response
from stabledllm.policy.advantages import advantages, all_equal, group_deviations
from stabledllm.rewards.reward import Scores
from stabledllm.runtime.files import read_json, write_json, write_jsonl
from stabledllm.runtime.secrets import hidden

ROLLOUTS = "rollouts"
"""The folder of all rounds in a run's folder, and the name of the journal in each."""
RESPONSES, RECORD, VALUES = "responses.jsonl", "round.json", "values.safetensors"
SCHEMA = "stabledllm/round/1"


@dataclass(frozen=True)
class Begun:
    """Where a round was begun: its number, the optimizer steps before it, and a digest of the weights then."""

    number: int
    step: int
    weights: str


@dataclass
class Round:
    """The responses that some optimizer steps learn from.

    ``rows``: of prompts and responses, P times G. ``advantages``: shape (P * G,). ``figures``: for the log. ``counts``:
    of its groups, see :func:`counts_of`. ``forward_rows``: those of decoding; ``value_rows``: those of ``old`` and
    ``reference``, the estimates for the draws of each step.
    """

    begun: Begun
    rows: list[TokenRow]
    advantages: Tensor
    figures: dict[str, float]
    forward_rows: int
    counts: dict[str, int]
    value_rows: int = 0
    old: dict[int, Tensor] = field(default_factory=dict)
    reference: dict[int, Tensor] = field(default_factory=dict)


class RoundFolder:
    """The files of one round.

    Args:
        identity: what decides the round; another one's files are none of it.
    """

    def __init__(self, folder: Path, identity: dict):
        self.folder, self.identity = folder, json.loads(json.dumps(hidden(identity)))

    def holds_this(self) -> bool:
        """Whether what is there is of this very round."""
        return (self.folder / RECORD).is_file() and self._record().get("identity") == self.identity

    def is_empty(self) -> bool:
        """Whether nothing of any round is there."""
        return not self.folder.is_dir() or not any(self.folder.iterdir())

    def begin(self) -> None:
        """Make the folder this round's, with nothing in it."""
        for path in sorted(self.folder.glob("*")):
            path.unlink()
        write_json(self.folder / RECORD, {"schema": SCHEMA, "identity": self.identity})

    def scores(self, responses: int) -> tuple[list[dict], dict[str, float]] | None:
        """The rows of all responses with their rewards, and what functions of the user's logged; None before that."""
        path, record = self.folder / RESPONSES, self._record()
        if "metrics" not in record or not path.is_file():
            return None
        with refuse_damaged(path):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        return (rows, record["metrics"]) if len(rows) == responses else None

    def keep_scores(self, rows: list[dict], metrics: dict[str, float]) -> None:
        """Write them; rewards are asked for once, whatever functions answer another time."""
        write_jsonl(self.folder / RESPONSES, rows)
        write_json(self.folder / RECORD, self._record() | {"metrics": metrics})

    def values(self) -> dict[str, Tensor] | None:
        """The estimates that were kept; None where there are none."""
        path = self.folder / VALUES
        with refuse_damaged(path):
            return load_file(path) if path.is_file() else None

    def keep_values(self, values: dict[str, Tensor]) -> None:
        """Write estimates by their names."""
        part = (self.folder / VALUES).with_suffix(".part")
        save_file({name: each.contiguous() for name, each in values.items()}, part)
        part.replace(self.folder / VALUES)

    def drop_values(self) -> None:
        """Delete the estimates, which nothing needs any more."""
        (self.folder / VALUES).unlink(missing_ok=True)

    def _record(self) -> dict:
        return read_json(self.folder / RECORD, SCHEMA)


@contextmanager
def refuse_damaged(path: Path) -> Iterator[None]:
    """A context in which a file of a round is read.

    Raises:
        UserError: it cannot be.
    """
    try:
        yield
    except (ValueError, SafetensorError) as error:
        raise UserError(
            f"{path}: expected a file as a run left it, found it damaged ({error}); delete it to make it again."
        ) from None


def folder_of(rollouts: Path, number: int) -> Path:
    """The folder of a round."""
    return rollouts / f"round-{number:06d}"


def number_of(folder: Path) -> int:
    """The number of the round in a folder that :func:`folder_of` names."""
    return int(folder.name.partition("-")[2])


def with_advantages(rows: list[dict], group: int, scale: str) -> tuple[list[dict], Tensor]:
    """The rows with their advantages, and these alone, shape (P * G,)."""
    found = advantages(rewards_of(rows, group), scale).flatten()
    return [row | {"advantage": value} for row, value in zip(rows, found.tolist(), strict=True)], found


def rewards_of(rows: Sequence[dict], group: int) -> Tensor:
    """The total rewards by groups, float64, shape (P, G); NaN where no reward applied."""
    totals = [torch.nan if row["reward"] is None else row["reward"] for row in rows]
    return torch.tensor(totals, dtype=torch.float64).view(-1, group)


def scored_rows(
    prompts: Sequence[RolloutPrompt], texts: Sequence[str], responses: Sequence[Response], scores: Scores
) -> list[dict]:
    """A row for each response, as people read it: prompt, completion, rewards, and what functions logged of it."""
    return [
        {name: _plain(values[i]) for name, values in scores.columns.items()}
        | {
            "origin": prompt.origin,
            "prompt": prompt.asked,
            "completion": text,
            "tokens": len(response.ids) + response.ended,
            "ended": response.ended,
            "reward": scores.total[i],
            "rewards": {name: values[i] for name, values in scores.by_name.items()},
        }
        for i, (prompt, text, response) in enumerate(zip(prompts, texts, responses, strict=True))
    ]


def counts_of(rows: Sequence[dict], group: int) -> dict[str, int]:
    """How many groups there are, how many of them teach nothing, and how many responses got no reward.

    >>> counts_of([{"reward": 1.0}, {"reward": None}, {"reward": 0.0}, {"reward": 1.0}], group=2)
    {'groups': 2, 'groups_all_equal': 1, 'responses_without_reward': 1}
    """
    rewards = rewards_of(rows, group)
    return {
        "groups": len(rewards),
        "groups_all_equal": int(all_equal(rewards).sum()),
        "responses_without_reward": int(rewards.isnan().sum()),
    }


def _plain(value: object) -> object:
    """A value that a function of the user's logs, as JSON can hold it."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def figures_of(rows: Sequence[dict], group: int, metrics: dict[str, float]) -> dict[str, float]:
    """What is logged of a round, under TRL's names; rewards that are not known of any response are left out."""
    rewards, n = rewards_of(rows, group), len(rows)
    found = {
        "reward": float(rewards.nanmean()),
        "reward_std": float(group_deviations(rewards).mean()),
        "frac_reward_zero_std": float(all_equal(rewards).double().mean()),
        "completions/mean_length": sum(row["tokens"] for row in rows) / n,
        "completions/clipped_ratio": sum(not row["ended"] for row in rows) / n,
    }
    for name in rows[0]["rewards"]:
        known = [row["rewards"][name] for row in rows if row["rewards"][name] is not None]
        found[f"rewards/{name}/mean"] = sum(known) / len(known) if known else torch.nan
    found |= {f"metrics/{name}": value for name, value in metrics.items()}
    return {name: value for name, value in found.items() if value == value}


def as_saved(begun: Begun | None) -> dict | None:
    """Where a round was begun, as a checkpoint holds it."""
    return asdict(begun) if begun else None

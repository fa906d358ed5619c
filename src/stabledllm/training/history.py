"""``history.jsonl`` in a run's folder: losses, evaluations and checkpoints, a JSON object a line, written as they come.

A line of losses holds ``step``, ``loss``, ``grad_norm``, ``learning_rate``, ``ess``, ``masked_share``,
``forward_passes`` and ``tokens_per_second``, with experts also their load (``expert_load_max``, ``experts_unused``,
``balance_loss``), where block sizes change also ``block_size``, on preferences :data:`PAIRS` in place of ``ess`` and
``masked_share``, of policy gradients :data:`POLICY`, ``rewards/NAME/mean`` and ``metrics/NAME``; one of an evaluation
``step``, ``eval_nll`` and ``eval_nll_stderr``, and the two with ``/NAME`` for each average of the weights; one of a
checkpoint ``step`` and ``checkpoint``, its folder. Each has ``time``, in seconds since the epoch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

from stabledllm.runtime.files import naming, write_jsonl

HISTORY = "history.jsonl"
LOADS = ("expert_load_max", "experts_unused", "balance_loss")
"""The figures of a model with experts."""
PAIRS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "loss_bias",
)
"""Of preferences, as TRL names them; ``loss_bias`` is the part of the loss that the noise of the bounds adds."""
POLICY = (
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "completions/mean_length",
    "completions/clipped_ratio",
    "ratio/mean",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "kl",
    "rollout_forward_rows",
)
"""Of policy gradients, as TRL names them; ``rollout_forward_rows``: rows that went through the model to decode
responses since the run began, which ``forward_passes`` leaves out."""
LOGGED = (
    "loss",
    "grad_norm",
    "learning_rate",
    "ess",
    "masked_share",
    "loss_ema",
    "forward_passes",
    "block_size",
    *LOADS,
    *PAIRS,
    *POLICY,
)
"""The figures of a line of losses that are those of the Trainer's log."""
_NAMED = ("rewards/", "metrics/")
"""What the names of figures begin with that rewards of the user's name."""
_OF_AVERAGES = ("eval_loss/", "eval_loss_stderr/")
_KINDS = ("loss", "eval_nll", "checkpoint")
"""The keys that tell the kinds of lines, in the order in which a step writes them."""


def entry_of(logs: dict) -> dict | None:
    """The line for an entry of the Trainer's log, without step and time; None for one that has no line."""
    if "loss" in logs:
        return figures_in(logs)
    if "eval_loss" in logs:
        return evaluated_in(logs)
    return None


def figures_in(logs: dict) -> dict:
    """The figures of an entry that belong to a line of losses, in their order.

    >>> figures_in({"rewards/short/mean": 0.5, "epoch": 1.0, "loss": 0.1})
    {'loss': 0.1, 'rewards/short/mean': 0.5}
    """
    named = [name for name in logs if name.startswith(_NAMED) and name not in LOGGED]
    return {name: logs[name] for name in (*LOGGED, *named) if name in logs}


def evaluated_in(logs: dict) -> dict:
    """The figures of an entry on an evaluation: of the weights, then of each average of them.

    >>> evaluated_in({"eval_loss": 0.2, "eval_loss_stderr": 0.1, "eval_loss/ema-0.9": 0.3, "epoch": 1.0})
    {'eval_nll': 0.2, 'eval_nll_stderr': 0.1, 'eval_nll/ema-0.9': 0.3}
    """
    own = {"eval_nll": logs["eval_loss"], "eval_nll_stderr": logs.get("eval_loss_stderr")}
    return own | {f"eval_nll{k.removeprefix('eval_loss')}": v for k, v in logs.items() if k.startswith(_OF_AVERAGES)}


class History:
    """The file of one run.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path):
        self.path = path
        self._there: set[tuple[int, int] | None] = set()

    def add(self, step: int, entry: dict) -> None:
        """Append a line, in one write, so that a kill falls before or after it.

        Where the step has a line of its kind already, such as the evaluation that a resumed run repeats, it stays.
        """
        if (key := _key({"step": step, **entry})) in self._there:
            return
        self._there.add(key)
        line = json.dumps(_finite({"step": step, **entry, "time": round(time.time(), 3)}), allow_nan=False) + "\n"
        with naming(self.path), self.path.open("ab") as file:
            file.write(line.encode())

    def go_on_from(self, step: int, log: Iterable[dict], checkpoint: str | None) -> None:
        """Keep the lines up to a checkpoint, so that no step is there twice; those that are missing are added.

        What came after the checkpoint is made again. A line that a kill cut in half, or a run begun before there was
        such a file, is made up for from the Trainer's log, without times.

        Args:
            step: the checkpoint's; 0 for a run that begins. log: the Trainer's, as the checkpoint holds it.
            checkpoint: the name of its folder.
        """
        lines = {_key(line): line for line in self._whole_lines() if line["step"] <= step} if step else {}
        wanted = [{"step": entry["step"]} | (entry_of(entry) or {}) for entry in log]
        wanted += [{"step": step, "checkpoint": checkpoint}] if checkpoint else []
        for line in wanted:
            if (key := _key(line)) is not None:
                lines.setdefault(key, _finite(line))
        self._there = set(lines)
        if lines:
            write_jsonl(self.path, (lines[key] for key in sorted(lines)))
        else:
            self.path.unlink(missing_ok=True)

    def _whole_lines(self) -> list[dict]:
        """The lines that are whole and of a known kind."""
        return [line for line in whole_lines(self.path) if _key(line) is not None]


def read_history(run: Path) -> list[dict]:
    """The lines of the history in a run's folder; none where there is no such file."""
    return whole_lines(run / HISTORY)


def whole_lines(path: Path) -> list[dict]:
    """The lines of a file that are whole JSON objects with a ``step``; one that a kill cut in half is left out."""
    found = []
    for text in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            found.append(line)
    return found


def _key(line: dict) -> tuple[int, int] | None:
    """The step and the kind of a line, by which lines are sorted; None for one without a kind."""
    kind = next((place for place, name in enumerate(_KINDS) if name in line), None)
    return None if kind is None else (line["step"], kind)


def _finite(line: dict) -> dict:
    """The line with null in the place of NaN and infinity, which JSON has not."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}

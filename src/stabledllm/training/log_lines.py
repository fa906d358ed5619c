"""The lines of a run's log: printed above the bar, and written to ``history.jsonl``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm
from transformers import TrainerCallback

from stabledllm.runtime.showing import duration
from stabledllm.training.history import HISTORY, History, entry_of

_COLUMNS = (
    ("loss", "loss", 10, "{:.4g}"),
    ("loss_ema", "loss (ema)", 12, "{:.4g}"),
    ("reward", "reward", 10, "{:.4g}"),
    ("learning_rate", "learning rate", 15, "{:.3g}"),
    ("grad_norm", "gradient norm", 15, "{:.3g}"),
    ("tokens_per_second", "tokens/s", 12, "{:,.0f}"),
)
"""Name, heading, width and form of the columns behind ``step``."""
_AVERAGES = "eval_nll/"
_OF_SOME_RUNS = ("loss_ema", "reward")
_TOLD_AFTER = 5.0
"""Seconds of steps after which the time of all is told."""
_WORTH_TELLING = 30.0
"""Least seconds left for which it is told."""


class LogLines(TrainerCallback):
    """Writes every log, evaluation and checkpoint to ``history.jsonl``, and tells it in a line.

    ``tokens/s``: tokens of the rows of the steps since the last line, prompts included and padding not, each row once
    however many views it has, over all ranks; the time of evaluating and saving does not count.

    Args:
        tokens: returns the number of such tokens so far. shown: whether a column is, for those that not every run has
            (``loss_ema``, ``reward``).
        say: takes the lines; None to write the file alone.
    """

    def __init__(
        self,
        folder: Path,
        tokens: Callable[[], int],
        *,
        shown: Mapping[str, bool] | None = None,
        say: Callable[[str], None] | None = None,
    ):
        self.folder, self.tokens, self.say = folder, tokens, say
        self.history = History(folder / HISTORY)
        left_out = {name for name in _OF_SOME_RUNS if not (shown or {}).get(name)}
        self.columns = [column for column in _COLUMNS if column[0] not in left_out]
        self._since, self._seconds, self._first = 0.0, 0.0, 0
        self._all_seconds, self._told_time, self._headed = 0.0, False, False

    def on_train_begin(self, args, state, control, **_):
        self._first, self._since = state.global_step, time.perf_counter()
        if state.is_world_process_zero:
            step = state.global_step
            self.history.go_on_from(step, state.log_history, f"checkpoint-{step}" if step else None)

    def on_step_end(self, args, state, control, **_):
        now = time.perf_counter()
        self._seconds += now - self._since
        self._all_seconds += now - self._since
        self._since = now
        self._tell_time(state)

    def on_log(self, args, state, control, logs=None, **_):
        entry = entry_of(logs or {})
        if entry is None:
            return
        if "loss" in entry:
            entry |= {"tokens_per_second": self._rate()}
        if state.is_world_process_zero:
            self.history.add(state.global_step, entry)
            self._tell(state.global_step, entry)

    def on_evaluate(self, args, state, control, **_):
        self._since = time.perf_counter()

    def on_save(self, args, state, control, **_):
        self._since = time.perf_counter()
        if state.is_world_process_zero:
            name = f"checkpoint-{state.global_step}"
            self.history.add(state.global_step, {"checkpoint": name})
            self._print(f"{state.global_step:>8,}  saved {name}")

    def _rate(self) -> float | None:
        tokens, seconds, self._seconds = self.tokens(), self._seconds, 0.0
        return round(tokens / seconds, 1) if seconds > 0 else None

    def _tell(self, step: int, entry: dict) -> None:
        if "loss" not in entry:
            nll, error = entry["eval_nll"], _error(entry["eval_nll_stderr"])
            averages = [f"; {name.partition('/')[2]} {entry[name]:.4g}" for name in entry if name.startswith(_AVERAGES)]
            self._print(f"{step:>8,}  validation NLL {nll:.4g}{error} nats/token{''.join(averages)}")
            return
        if not self._headed:
            self._headed = True
            self._print(f"{'step':>8}" + "".join(f"{heading:>{width}}" for _, heading, width, _ in self.columns))
        values = ["-" if entry.get(name) is None else form.format(entry[name]) for name, _, _, form in self.columns]
        cells = (f"{value:>{width}}" for value, (_, _, width, _) in zip(values, self.columns, strict=True))
        self._print(f"{step:>8,}" + "".join(cells))

    def _tell_time(self, state) -> None:
        """Say once about how long the steps take, after the first few seconds of them."""
        done = state.global_step - self._first
        if self._told_time or self._all_seconds < _TOLD_AFTER or done < 2:
            return
        self._told_time = True
        pace = self._all_seconds / done
        left = pace * (state.max_steps - state.global_step)
        if left >= _WORTH_TELLING:
            self._print(f"about {duration(left)} for the {state.max_steps - state.global_step:,} steps left")

    def _print(self, line: str) -> None:
        if self.say is not None:
            with tqdm.external_write_mode(file=sys.stdout):  # above the bar, whatever prints the line
                self.say(line)


def _error(stderr: float | None) -> str:
    return "" if stderr is None or stderr != stderr else f" ± {stderr:.2g}"

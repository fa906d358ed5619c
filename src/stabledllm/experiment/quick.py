"""What ``experiment --quick`` trains: the same methods for a few steps and two seeds, in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence

from stabledllm.config.settings import ExperimentSettings
from stabledllm.lab.quick import FIT

STEPS, SEEDS, RATES, VALIDATION_ROWS, TEST_ROWS = 20, 2, 2, 64, 16
"""Most of each, where it is not typed."""


def quickened(settings: ExperimentSettings, typed: Sequence[str]) -> ExperimentSettings:
    """The settings with at most :data:`STEPS` steps, :data:`SEEDS` seeds and few rows to evaluate on and to probe.

    Of a grid the lowest and the highest learning rate stay, and one clipping norm.

    They are written to ``OUT-quick``, since they are another experiment. A warm-up is cut with the steps.

    Args:
        typed: dotted keys that were typed, whose values stay.
    """
    base, data = settings.base, settings.base.data
    by_epochs = base.steps is None and "base.epochs" in typed
    run = {"steps": None if by_epochs else _at_most(STEPS, base.steps), "eval_every": None, "save_every": None}
    run = {name: value for name, value in run.items() if f"base.{name}" not in typed}
    warm = base.trainer.get("warmup_steps")
    if (steps := run.get("steps")) and isinstance(warm, int | float) and warm >= 1:
        cut = int(warm * steps / base.steps) if base.steps else min(int(warm), steps // 2)
        run["trainer"] = base.trainer | {"warmup_steps": cut}
    probe = {key: value for key, value in FIT["ppots"].items() if f"base.ppots.{key}" not in typed}
    run["ppots"] = base.ppots.model_copy(
        update={key: min(value, getattr(base.ppots, key)) for key, value in probe.items()}
    )
    rows = {"validation_rows": VALIDATION_ROWS, "test_rows": TEST_ROWS}
    fewer = {key: _at_most(most, getattr(data, key)) for key, most in rows.items() if f"base.data.{key}" not in typed}
    run["data"] = data.model_copy(update=fewer)
    own = {"base": base.model_copy(update=run)}
    own |= {} if "seeds" in typed else {"seeds": settings.seeds[:SEEDS]}
    if len(rates := settings.learning_rates) > RATES and "learning_rates" not in typed:
        own["learning_rates"] = [min(rates), max(rates)]
    if "max_grad_norms" not in typed:
        own["max_grad_norms"] = settings.max_grad_norms[:1]
    own |= {} if "out" in typed else {"out": f"{settings.out.rstrip('/')}-quick"}
    return settings.model_copy(update=own)


def _at_most(most: int, wanted: int | None) -> int:
    """The smaller number; ``most`` where there is no limit."""
    return most if wanted is None else min(wanted, most)


def note_on(settings: ExperimentSettings) -> str:
    """What is said of the results of such an experiment, in place of advice."""
    steps, seeds = settings.base.steps, len(settings.seeds)
    trained = f"{steps} steps" if steps else f"{settings.base.epochs:g} epochs"
    each = f"{trained} and {seeds} seed{'' if seeds == 1 else 's'} a method"
    return (
        f"Quick: {each} show that it runs, how long it takes and what the tables hold; they are too few to choose a "
        f"method by. Run without --quick for the answer to act on."
    )

"""The rows of the study: an objective with its own noise, and the same objective with less of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stabledllm.config import load_recipe

STANDARD, LESS = "standard", "lowdisc+fixedcount"
"""Standard's noise, and the recommended recipe's: low discrepancy in t and exact counts of masked tokens."""

OBJECTIVES = {
    "elbo": "the bound on the NLL",
    "window-generation": "mask ratios from 0.5 to 1 alone",
    "window-discriminative": "mask ratios from 0.45 to 0.55 alone",
    "bell": "mask ratios from a bell",
    "llada2": "dFactory's: mask ratios from 0.3 to 0.8, every masked token alike",
    "masked-mean": "unweighted: every masked token alike",
    "lift": "easy tokens at high mask ratios, hard ones at low",
    "gift": "uncertain tokens more often",
    "cart": "tokens by the visible ones near them",
}
"""By ``objective.name``."""
FORWARDS = {"lift": 1.55, "gift": 2.0}
"""Mean forwards of a view of 40 tokens under Standard where the model itself chooses the tokens, that of training
included; elsewhere 1. An experiment holds the other methods of an objective to those of Standard."""
QUARTERS = ("0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1")
"""Of the mask ratios, from which the bound comes."""
LEAST = {"gift": "lowdisc"}
"""Less noise where the recipe's is not possible: ``gift`` masks every token with a probability of its own."""


@dataclass(frozen=True)
class Row:
    """An objective and the noise that it is estimated with.

    >>> Row("lift", LESS).name, Row("elbo", STANDARD).name, Row("elbo", STANDARD).folder
    ('lift, less noise', 'standard', 'elbo/standard')
    """

    objective: str
    method: str

    @property
    def name(self) -> str:
        """What the page calls it; the bound's rows have their methods' names."""
        if self.objective == "elbo":
            return self.method
        return self.objective + (", less noise" if self.method != STANDARD else "")

    @property
    def forwards(self) -> float:
        """Mean forwards of a view of Standard under the objective."""
        return FORWARDS.get(self.objective, 1.0)

    @property
    def folder(self) -> str:
        """Of its runs, in the folder of a part of the study."""
        return f"{self.objective}/{self.method}"


BASE = Row("elbo", STANDARD)
"""Standard: what every other row is compared with."""
RECOMMENDED = Row("elbo", LESS)


def less_noise(objective: str) -> Row:
    """The row of an objective with less noise."""
    return Row(objective, LEAST.get(objective, LESS))


ROWS = [row for objective in OBJECTIVES for row in (Row(objective, STANDARD), less_noise(objective))]


def budget(row: Row, recipe: Path | str, given: Sequence[str] = ()) -> list[str]:
    """What gives a row the forwards of Standard: fewer epochs or steps where views take more; none if ``given`` says.

    >>> budget(Row("gift", STANDARD), "quickstart"), budget(BASE, "quickstart")
    (['base.steps=32'], [])
    """
    base = load_recipe(str(recipe)).base
    key, number, places = ("base.steps", base.steps, None) if base.steps else ("base.epochs", base.epochs, 2)
    if row.forwards == 1 or any(word.startswith(f"{key}=") for word in given):
        return []
    return [f"{key}={round(number / row.forwards, places)}"]

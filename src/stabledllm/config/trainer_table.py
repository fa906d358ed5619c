"""What transformers' TrainingArguments accept, read from a table, so that transformers need not be imported.

``scripts/make_trainer_table.py`` writes the table from the installed version; a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path

_TABLE = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
FIELDS: dict[str, list[str]] = _TABLE["fields"]
"""Every field, with the kinds of value that it takes."""
OPTIMIZERS: dict[str, list[str] | None] = _TABLE["optimizers"]
"""Every optimizer, with those of Adam's fields that change it; None where the table's machine had not installed it."""
SCHEDULES: dict[str, dict[str, list[str]]] = _TABLE["schedules"]
"""Every learning rate schedule, with its ``options`` (``*``: those of a class of torch) and those that it ``needs``."""
REPORTERS: list[str] = _TABLE["reporters"]
"""Every back end that a run can be reported to."""

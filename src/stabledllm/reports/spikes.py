"""The tables and sentences on a run's outlier steps, and on those that were replayed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stabledllm.reports import numbers as fmt
from stabledllm.reports.stored import number, read
from stabledllm.reports.table import NONE, Table, filled

_SPIKES, _REPLAYS = "spikes.jsonl", "replays"
_ROWS, _SHOWN = 8, 20
"""Rows of a step, and outlier steps of a run, that are listed."""


@dataclass(frozen=True)
class Spikes:
    """A run's outlier steps, and the records of those that were replayed, by step."""

    name: str
    """The run's place below the folder that is reported on; empty for that folder itself."""
    folder: Path
    steps: list[dict]
    replays: dict[int, dict]


def spikes_of(folder: Path, runs: Path | None = None) -> list[Spikes]:
    """The outlier steps in the folder of a run, and in those of an experiment's runs; runs without any are left out.

    Args:
        runs: the folder of an experiment, with its runs below ``runs/``.

    Raises:
        UserError: the record of a replayed step is broken.
    """
    places = [folder, *(sorted(runs.glob("runs/*/*")) if runs else [])]
    found = [_of_run(place, "" if place == folder else place.relative_to(runs).as_posix()) for place in places]
    return [one for one in found if one.steps or one.replays]


def _of_run(run: Path, name: str) -> Spikes:
    replays = [read(path, "replay") for path in sorted((run / _REPLAYS).glob("step-*.json"))]
    return Spikes(name, run, outlier_steps(run), {replay["step"]: replay for replay in replays})


def outlier_steps(run: Path) -> list[dict]:
    """The outlier steps noted in a run's folder, in order; a line that a kill cut in half is left out."""
    path, found = run / _SPIKES, {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            found[line["step"]] = line
    return [found[step] for step in sorted(found)]


def spikes_table(spikes: Spikes) -> Table:
    """The table of a run's outlier steps, the largest where there are many, and of the other replayed steps."""
    listed = sorted(spikes.steps, key=lambda spike: -_times(spike))[:_SHOWN]
    replayed = [replay for step, replay in spikes.replays.items() if step not in {s["step"] for s in listed}]
    rows = []
    for spike in sorted([*listed, *replayed], key=lambda spike: spike["step"]):
        replay = spikes.replays.get(spike["step"], {})
        told = replay.get("cause") or f"stabledllm replay {spikes.folder} --step {spike['step']}"
        figures = (spike.get("grad_norm"), _times(spike), spike.get("loss"))
        rows.append((str(spike["step"]), *(fmt.plain(figure) for figure in figures), told))
    left = len(spikes.steps) - len(listed)
    note = f"The {_SHOWN} largest; {left} more are in {_SPIKES}." if left else ""
    columns = ("step", "gradient norm", "times the median", "loss", "cause, or what finds it")
    return Table(f"Outlier steps{f' of {spikes.name}' if spikes.name else ''}", columns, tuple(rows), note)


def spike_sentences(spikes: Spikes) -> list[str]:
    """How many outlier steps there are, and the sentence on each that was replayed."""
    count, where = len(spikes.steps), f"{spikes.name}: " if spikes.name else ""
    steps = "one step has" if count == 1 else f"{count} steps have"
    begin = f"{where}{steps} a gradient norm far above the median of the steps before."
    begin = f"{begin[:1].upper()}{begin[1:]}"
    told = [f"{where}{replay['sentence']}" for _, replay in sorted(spikes.replays.items())]
    return [*([begin] if count else []), *told]


def _times(spike: dict) -> float:
    usual = number(spike.get("median"))
    return number(spike.get("grad_norm")) / usual if usual > 0 else math.nan


def replay_text(record: dict, wide: bool = True) -> Iterator[str]:
    """Yields the tables of a replay's record, whether it is the recorded step, and the sentence on it last.

    Args:
        wide: whether all columns are shown, and not only those that answer and fit the terminal.
    """
    yield filled(record["compared"])
    if (times := _times(record)) == times:
        yield filled(
            f"The norm is {times:.3g} times the median of the steps before it, {record['median']:.3g}; learning rate "
            f"{record['learning_rate']:.3g}."
        )
    yield f"\n{rows_table(record).text(wide=wide)}\n"
    for kind, title in (("blocks", "Blocks of the leading row"), ("tokens", _tokens_title(record))):
        if record[kind]:
            yield f"{parts_table(record[kind], title, kind == 'tokens').text(wide=wide)}\n"
    yield filled(record["sentence"])


def rows_table(record: dict) -> Table:
    """The table of the rows with the largest shares in a step's gradient."""
    rows = record["rows"]
    listed = sorted(rows, key=lambda row: -_or_most(row["share"]))[:_ROWS]
    cells = [
        (
            str(row["position"]),
            _share(row["share"]),
            f"{row['masked']} of {row['maskable']}",
            fmt.plain(row["weight"]),
            fmt.plain(row["t"]),
            fmt.plain(row["nll"]),
            fmt.plain(row["usual_nll"]),
            row["origin"] or NONE,
        )
        for row in listed
    ]
    left, rest = len(rows) - len(listed), record.get("unexplained")
    note = ""
    if left and rows[0]["share"] is not None:
        others = sum(row["share"] for row in rows) - sum(row["share"] for row in listed)
        note = f"The other {left} rows have {_share(others)}."
    if rest is not None and abs(rest) >= 0.01:
        note += f" {_share(rest)} is in no row: draws of dropout, or rounding."
    columns = ("row", "share", "masked", "weight", "t", "NLL", "usual NLL", "origin")
    title = f"Rows of step {record['step']} by their share of its gradient"
    return Table(title, columns, tuple(cells), note.strip(), answers=5)


def parts_table(parts: list[dict], title: str, of_tokens: bool) -> Table:
    """The table of the blocks or of the tokens of the leading row."""
    if of_tokens:
        columns = ("token", "share", "place", "weight", "NLL")
        rows = [
            (
                f"'{part['name']}'",
                _share(part["share"]),
                str(part["place"]),
                *map(fmt.plain, (part["weight"], part["nll"])),
            )
            for part in parts[:_ROWS]
        ]
    else:
        columns = ("block", "share", "masked", "weight", "t")
        rows = [
            (
                part["name"],
                _share(part["share"]),
                f"{part['masked']} of {part['maskable']}",
                *map(fmt.plain, (part["weight"], part["t"])),
            )
            for part in parts[:_ROWS]
        ]
    return Table(title, columns, tuple(rows))


def _tokens_title(record: dict) -> str:
    return f"Tokens of {'the leading block' if record['blocks'] else 'the leading row'}"


def _share(share: float | None) -> str:
    return NONE if share is None else f"{round(100 * share, 1) + 0.0:.1f} %"  # no -0.0


def _or_most(share: float | None) -> float:
    return math.inf if share is None else share

"""What ``results.json`` says of finished runs: methods compared with Standard, at one learning rate or at several."""

from __future__ import annotations

from collections.abc import Sequence

from stabledllm.config.settings import ExperimentSettings
from stabledllm.experiment.advice import advice
from stabledllm.experiment.grid import cells_of
from stabledllm.experiment.rate_words import rate_advice, rate_statements
from stabledllm.experiment.rates import rates_record
from stabledllm.experiment.statements import statements
from stabledllm.experiment.summary import summarise


def over_methods(runs: Sequence[dict], settings: ExperimentSettings) -> dict:
    """``summary``, ``advice`` and ``statements`` of an experiment at one learning rate."""
    summary = summarise(runs, settings.baselines)
    return {"summary": summary, "advice": advice(runs, summary), "statements": statements(runs, summary)}


def over_rates(runs: Sequence[dict], settings: ExperimentSettings) -> dict:
    """The same of a grid: every entry of ``summary`` has its ``learning_rate``; ``rates`` holds curves and ranges.

    Differences from Standard, and p values corrected for the number of methods, are those at one learning rate.
    """
    summary = []
    for cell in cells_of(settings):
        own = [run for run in runs if all(run[key] == value for key, value in cell.values.items())]
        summary += [cell.values | entry for entry in summarise(own, settings.baselines)]
    record = rates_record(runs, settings)
    return {
        "summary": summary,
        "rates": record,
        "advice": rate_advice(record),
        "statements": rate_statements(record, runs),
    }

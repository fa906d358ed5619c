"""What ``results.json`` says of finished runs: methods compared with Standard, at one learning rate or at several."""

from __future__ import annotations

from collections.abc import Sequence

from stabledllm.config.settings import ExperimentSettings
from stabledllm.experiment.advice import advice
from stabledllm.experiment.averaged import summarise_averages
from stabledllm.experiment.grid import cells_of
from stabledllm.experiment.rate_words import rate_advice, rate_statements
from stabledllm.experiment.rates import rates_record
from stabledllm.experiment.statements import statements
from stabledllm.experiment.summary import summarise


def over_methods(runs: Sequence[dict], settings: ExperimentSettings) -> dict:
    """``summary``, ``advice`` and ``statements`` of an experiment at one learning rate, and ``averages`` if it has any.

    ``averages`` are those of the weights that the runs kept.
    """
    summary = summarise(runs, settings.baselines)
    averages = summarise_averages(runs)
    told = {"advice": advice(runs, summary), "statements": statements(runs, summary)}
    return {"summary": summary} | ({"averages": averages} if averages else {}) | told


def over_rates(runs: Sequence[dict], settings: ExperimentSettings) -> dict:
    """The same of a grid: every entry has its ``learning_rate``; ``rates`` holds curves and ranges of the last weights.

    Differences, and p values corrected for the number of methods or averages, are those at one learning rate.
    """
    summary, averages = [], []
    for cell in cells_of(settings):
        own = [run for run in runs if all(run[key] == value for key, value in cell.values.items())]
        summary += [cell.values | entry for entry in summarise(own, settings.baselines)]
        averages += [cell.values | entry for entry in summarise_averages(own)]
    record = rates_record(runs, settings)
    told = {"advice": rate_advice(record), "statements": rate_statements(record, runs)}
    return {"summary": summary, "rates": record} | ({"averages": averages} if averages else {}) | told

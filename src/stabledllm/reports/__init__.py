"""Stored results as figures, tables and one self-contained page; nothing is estimated here."""

from stabledllm.reports.html import write_report
from stabledllm.reports.run_tables import cost_table, runs_table
from stabledllm.reports.save import save_decomposition_figures, save_fit_figure
from stabledllm.reports.tables import (
    components_table,
    equal_compute_table,
    fit_table,
    metrics_table,
)

__all__ = [
    "components_table",
    "cost_table",
    "equal_compute_table",
    "fit_table",
    "metrics_table",
    "runs_table",
    "save_decomposition_figures",
    "save_fit_figure",
    "write_report",
]

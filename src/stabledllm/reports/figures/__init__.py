"""One function per figure; each returns a matplotlib Figure and touches no global state."""

from stabledllm.reports.figures.components import components
from stabledllm.reports.figures.compute_saved import compute_saved
from stabledllm.reports.figures.curves import curves
from stabledllm.reports.figures.densities import densities
from stabledllm.reports.figures.equal_compute import equal_compute
from stabledllm.reports.figures.fit import fit
from stabledllm.reports.figures.metrics import final_metrics
from stabledllm.reports.figures.rates import rate_curves
from stabledllm.reports.figures.responses import response_curves
from stabledllm.reports.figures.training import eval_curves, loss_curves

__all__ = [
    "components",
    "compute_saved",
    "curves",
    "densities",
    "equal_compute",
    "eval_curves",
    "final_metrics",
    "fit",
    "loss_curves",
    "rate_curves",
    "response_curves",
]

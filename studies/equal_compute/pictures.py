"""The study's pictures, in the library's own style."""

from __future__ import annotations

from matplotlib.figure import Figure

from stabledllm.reports.labels import label
from stabledllm.reports.style import INK, MUTED, colour, new_figure, styled

MEASURES = {"loss": "loss", "gradient": "gradient", "clipped": "clipped gradient", "update": "Adam's update"}


@styled
def differences(tables: dict[str, list[dict]]) -> Figure:
    """Final validation NLL minus Standard's and the ratio of sds, one row of panels an experiment."""
    heights = [len(rows) for rows in tables.values()]
    figure = new_figure(9.6, 1.2 + 0.31 * (sum(heights) + 2 * len(heights)))
    grid = figure.subplots(len(tables), 2, squeeze=False, height_ratios=heights, width_ratios=[1.5, 1])
    for (left, right), (title, rows) in zip(grid, tables.items(), strict=True):
        compared = [r for r in rows if r["validation_nll_versus_standard"]]
        for y, row in enumerate(compared):
            versus, ink = row["validation_nll_versus_standard"], colour(row["method"])
            left.plot([versus["ci_low"], versus["ci_high"]], [y, y], color=ink, linewidth=2.2)
            left.plot(versus["difference"], y, "o", color=ink, markersize=6)
            if ratio := versus["sd_ratio"]:
                right.plot([ratio["ci_low"], ratio["ci_high"]], [y, y], color=ink, linewidth=2.2)
                right.plot(ratio["value"], y, "o", color=ink, markersize=6)
        left.set_yticks(range(len(compared)), [f"{label(r['method'])} ({_n(r)})" for r in compared])
        right.set_yticks(range(len(compared)), [])
        for axes, at in ((left, 0), (right, 1)):
            axes.axvline(at, color=INK, linewidth=1)
            axes.set_ylim(len(compared) - 0.4, -0.6)
        right.set_xscale("log", base=2)
        right.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        left.set_title(title, fontsize=9, x=-0.55)
        left.locator_params(axis="x", nbins=5)
    grid[-1][0].set_xlabel("final NLL − Standard's (95 %; left is better)")
    grid[-1][1].set_xlabel("sd over seeds ÷ Standard's (95 %)")
    return figure


def _n(row: dict) -> str:
    return f"n = {row['validation_nll_versus_standard']['n']}"


@styled
def predictors(noise: dict[str, dict[str, dict[str, float]]], tables: dict[str, list[dict]], found: dict) -> Figure:
    """Noise at equal compute over Standard's against the final NLL's difference: one panel a measure and experiment."""
    figure = new_figure(10.5, 3.1 * len(noise))
    grid = figure.subplots(len(noise), len(MEASURES), squeeze=False, sharey="row")
    for line, (name, measures) in zip(grid, noise.items(), strict=True):
        by_method = {r["method"]: r["validation_nll_versus_standard"] for r in tables[name]}
        for axes, (measure, title) in zip(line, MEASURES.items(), strict=True):
            for method, ratio in measures.get(measure, {}).items():
                versus = by_method.get(method)
                if method != "standard" and not versus:
                    continue
                y = versus["difference"] if versus else 0.0
                axes.plot(ratio, y, "o", color=colour(method), markersize=6)
            axes.axhline(0, color=MUTED, linewidth=0.8)
            axes.axvline(1, color=MUTED, linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
            rank = (found.get(name) or {}).get(measure)
            told = f"\nSpearman {rank['value']:.2f} ({rank['ci_low']:.2f} to {rank['ci_high']:.2f})" if rank else ""
            axes.set_title(f"{name}: {title}{told}", fontsize=8.5)
        line[0].set_ylabel("final NLL − Standard's")
    for axes in grid[-1]:
        axes.set_xlabel("noise ÷ Standard's")
    handles = [grid[0][0].plot([], [], "o", color=colour(m), label=label(m))[0] for m in _methods(noise)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _methods(noise: dict) -> list[str]:
    return list(dict.fromkeys(m for measures in noise.values() for level in measures.values() for m in level))

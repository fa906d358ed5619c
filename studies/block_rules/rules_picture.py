"""The picture of the study: the noise of each rule over that of the published one, of the loss and of the gradient."""

from __future__ import annotations

from pathlib import Path

from stabledllm.reports.style import INK, MUTED, new_figure, styled


@styled
def draw(results: dict, path: Path) -> None:
    """Write the picture: a dot with its interval for every rule but the published ones, which the line stands for.

    An estimate below 0 stands at 0, the nearest value that noise can have.
    """
    figure = new_figure(11, 5.6)
    axes = figure.subplots(1, 2, sharey=True)
    rows = [(cell, entry) for cell in results["cells"] for entry in cell["rules"][1:]]
    for place, part in zip(axes, ("loss", "gradient"), strict=True):
        place.axvline(1, color=INK, linewidth=1.2)
        for y, (_, entry) in enumerate(rows):
            if entry[part] is None:
                continue
            ratio = entry[part]["over_published"]
            if ratio["ci_low"] is not None:
                place.plot([ratio["ci_low"], ratio["ci_high"]], [y, y], color=MUTED, linewidth=2)
            if ratio["value"] is not None:
                place.plot(max(ratio["value"], 0.0), y, "o", color=INK)
        place.set_xlim(left=-0.05)
        place.set_xlabel(f"noise of the {part} ÷ that of the published rule")
    names = [f"{cell['objective']}, blocks of {cell['block']}\n{entry['rule']}" for cell, entry in rows]
    axes[0].set_yticks(range(len(rows)), names, fontsize=7)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)

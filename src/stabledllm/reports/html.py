"""Makes one self-contained page from the results in a folder; it is written whole and loads nothing from elsewhere."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stabledllm.plain_text import plain_text
from stabledllm.reports import block_tables, figures, run_tables, tables
from stabledllm.reports.averages import average_tables
from stabledllm.reports.images import side_by_side
from stabledllm.reports.labels import label
from stabledllm.reports.mask_tables import mask_tables
from stabledllm.reports.policy_noise import policy_table
from stabledllm.reports.preferences import preference_table
from stabledllm.reports.published import published_table
from stabledllm.reports.rates import rate_tables
from stabledllm.reports.saved import curve_table, saved_metrics, saved_table
from stabledllm.reports.spikes import spike_sentences, spikes_of, spikes_table
from stabledllm.reports.stored import Stored, array, base_of, finished_planned, gather, noise_of, run_metrics
from stabledllm.reports.style import data_uri
from stabledllm.reports.summary import missing, summarise
from stabledllm.runtime.files import write_text
from stabledllm.runtime.locks import writing_beside
from stabledllm.runtime.secrets import hidden

NAME = "report.html"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder, from the results in it or in decompose/, fit/ and experiment/.

    Raises:
        UserError: there is nothing to report on, or a file is broken or has another schema.
    """
    stored = gather(Path(folder))
    path = stored.folder / NAME
    with writing_beside(path, "report"):
        write_text(path, render(stored))
    return path


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stabledllm.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_shown,
    )
    environment.filters["unbroken"] = unbroken
    return environment


def _shown(value: object) -> object:
    """The value as the page shows it: text without control characters, which no page should hold."""
    return plain_text(value, longest=None, keep="\n\t") if type(value) is str else value


def render(stored: Stored) -> str:
    """The HTML of the page."""
    environment = _environment()
    css, _, _ = environment.loader.get_source(environment, "report.css")
    decomposition = _decomposition(stored.decomposition)
    curves = decomposition and (decomposition["curves"] or decomposition["densities"])
    return environment.get_template("report.html.j2").render(
        css=Markup(css),
        summary=summarise(stored),
        missing=missing(stored),
        decomposition=decomposition,
        fits=[_fit(data) for data in stored.fits],
        noises=[_noise(data) for data in stored.noises if data["methods"]],
        experiment=_experiment(stored),
        spikes=_spikes(stored),
        has_curves=bool(stored.fits or curves),
        provenance=_provenance(stored),
        subject=_subject(stored),
        label=label,
    )


def _subject(stored: Stored) -> str:
    d = stored.decomposition or next(iter(stored.noises), {})
    config = base_of(stored.results)
    rows = config.get("data")
    trained_on = rows.get("train") if isinstance(rows, dict) else rows
    model, data = d.get("model") or config.get("model"), d.get("data") or trained_on
    return " on ".join(str(x) for x in (model, data) if isinstance(x, str) and x)


def _decomposition(data: dict | None) -> dict | None:
    if data is None:
        return None
    return {
        "arm": data.get("kind") == "arm",
        "components": tables.components_table(data),
        "blocks": block_tables.blocks_table(data["blocks"]) if data.get("blocks") else None,
        "of_blocks": block_tables.blocks_sentences(data["blocks"]) if data.get("blocks") else [],
        "gradient_from": tables.gradient_from(data),
        "components_figure": data_uri(figures.components(data)),
        "curves": data_uri(figures.curves(data)),
        "densities": data_uri(figures.densities(data)),
        "methods": tables.equal_compute_table(data, label) if data.get("methods") else None,
        "methods_figure": data_uri(figures.equal_compute(data)),
        "gradient": tables.gradient_table(data, label) if noise_of(data, "gradient") else None,
        "of_masks": mask_tables(data),
        "gradient_figure": data_uri(figures.equal_compute(data, "gradient")),
        "recommendation": data.get("recommendation"),
        "mirror": (data.get("mirror") or {}).get("sentence"),
        "notes": data.get("notes") or [],
    }


def _noise(data: dict) -> dict:
    """The noise of a step on preferences or of policy gradients."""
    of_pairs = data["objective"] == "dpo"
    return {
        "title": "Noise of preferences" if of_pairs else "Noise of policy gradients",
        "table": preference_table(data) if of_pairs else policy_table(data),
        "sentences": data["sentences"],
    }


def _fit(data: dict) -> dict:
    source = data.get("source")
    return {
        "title": label(data["method"]) + (f", t drawn by {source}" if source else ""),
        "fallback": data["diagnostics"].get("fallback"),
        "figure": data_uri(figures.fit(data)),
        "has_points": array(data["profile"].get("target")) is not None,
        "table": tables.fit_table(data),
    }


def _experiment(stored: Stored) -> dict | None:
    results = stored.results
    if results is None:
        return None
    finished, planned = finished_planned(results)
    return {
        "finished": finished,
        "planned": planned,
        "rates": data_uri(figures.rate_curves(results)),
        **(_over_rates(results) if results.get("rates") else _over_methods(results)),
        "cost": run_tables.cost_table(results, label) if results["runs"] else None,
        "runs": run_tables.runs_table(results, label) if results["runs"] else None,
        "notes": results.get("notes") or [],
        "pictures": side_by_side(stored.results_folder, results),
    }


def _over_rates(results: dict) -> dict:
    """What is shown of a grid of learning rates, of whose runs a mean over all would say nothing."""
    drawn = dict.fromkeys(("responses", "loss", "evaluation", "final", "saved", "published"))
    return drawn | {"of_grid": True, "metrics": [*rate_tables(results, label), *average_tables(results, label)]}


def _over_methods(results: dict) -> dict:
    return {
        "of_grid": False,
        "responses": data_uri(figures.response_curves(results)),
        "loss": data_uri(figures.loss_curves(results)),
        "evaluation": data_uri(figures.eval_curves(results)),
        "final": data_uri(figures.final_metrics(results)),
        "saved": [_saved(results, entry) for entry in saved_metrics(results)],
        "metrics": [t for m in run_metrics(results) for t in _of_metric(results, m)] + average_tables(results, label),
        "published": published_table(results, label),
    }


def _spikes(stored: Stored) -> list[dict]:
    found = spikes_of(stored.folder, stored.results_folder)
    return [{"table": spikes_table(spikes), "sentences": spike_sentences(spikes)} for spikes in found]


def _saved(results: dict, entry: dict) -> dict:
    """The compute saved in one metric."""
    tables = [saved_table(results, entry["metric"], label), curve_table(entry, label)]
    return {"figure": data_uri(figures.compute_saved(entry)), "tables": [table for table in tables if table]}


def _of_metric(results: dict, metric: str) -> list[tables.Table]:
    spread = tables.spread_table(results, metric, label)
    return [tables.metrics_table(results, metric, label), *([spread] if spread else [])]


def _provenance(stored: Stored) -> list[dict]:
    """For each file, the settings, versions and facts that it was made with."""
    kinds = [stored.decomposition, *stored.noises, *stored.fits, stored.results]
    loaded = [data for data in kinds if data is not None]
    return [_origin(stored, path, data) for path, data in zip(stored.files, loaded, strict=True)]


def _origin(stored: Stored, path: Path, data: dict) -> dict:
    keys = ("schema", "model", "data", "device", "seed", "seconds", "forward_passes")
    return {
        "file": str(path.relative_to(stored.folder)),
        "facts": [(key, data[key]) for key in keys if isinstance(data.get(key), str | int | float)],
        "versions": data.get("versions") or {},
        "config": json.dumps(hidden(data.get("config") or {}), indent=2, ensure_ascii=False, sort_keys=True),
    }


def unbroken(sentence: str) -> str:
    """The sentence with no line break inside ``37 %`` or ``0.49 ± 0.02``."""
    return sentence.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")

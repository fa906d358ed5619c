"""What a laboratory returns: the records that the command line stores, printed, shown in a notebook and saved alike."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from stabledllm.forward.elbo import RowELBO
from stabledllm.noise.densities import Tabulated
from stabledllm.ppots.record import FittedDensity
from stabledllm.reports.cells import lines_of_code, paragraph, table_html
from stabledllm.reports.printed import decomposition_text, fit_details
from stabledllm.reports.table import Table
from stabledllm.reports.tables import components_table, equal_compute_table, fit_table, gradient_table
from stabledllm.runtime.files import write_json

_NO_PICTURES = "pictures need matplotlib, which is not installed: pip install matplotlib"


@dataclass(frozen=True, repr=False)
class Result(ABC):
    """A record of a measurement; printed it is what the command line prints, a notebook shows tables and a picture."""

    record: dict
    """The JSON form, as the command line stores it; in files NaN is null."""

    file_name = "record.json"
    drawn = True
    """Whether there are pictures of it."""

    @abstractmethod
    def lines(self) -> Iterator[str]:
        """The lines that are printed."""

    @abstractmethod
    def tables(self) -> Iterator[Table]:
        """The tables that a notebook shows."""

    def sentences(self) -> Iterator[str]:
        """What a notebook shows below the tables."""
        yield from ()

    def pictures(self) -> Iterator[object]:
        """The matplotlib figures that a notebook shows; None where there is nothing to draw."""
        yield from ()

    def save(self, folder: str | Path) -> list[Path]:
        """Write the files that the command line writes, and return their paths.

        Without matplotlib the record alone is written, and a warning says so.
        """
        path = Path(folder).expanduser() / self.file_name
        write_json(path, self.record)
        if not self.drawn:
            return [path]
        if find_spec("matplotlib") is None:
            warnings.warn(f"wrote {path} alone: {_NO_PICTURES}.", stacklevel=2)
            return [path]
        return [path, *self._save_pictures(path)]

    def _save_pictures(self, path: Path) -> list[Path]:
        """Save the pictures that the command line saves, beside the record, and return their paths."""
        return []

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        parts = [table_html(table) for table in self.tables()]
        parts += [paragraph(sentence) for sentence in self.sentences()]
        if not self.drawn:
            return "".join(parts)
        if find_spec("matplotlib") is None:
            return "".join([*parts, paragraph(f"No picture here: {_NO_PICTURES}.")])
        from stabledllm.reports.style import data_uri

        drawn = [data_uri(figure) for figure in self.pictures() if figure is not None]
        return "".join([*parts, *(f'<img src="{uri}" style="max-width:100%">' for uri in drawn)])


@dataclass(frozen=True, repr=False)
class Decomposition(Result):
    """A, B and C, the curves over t and every method's noise: ``decomposition.json``."""

    file_name = "decomposition.json"

    def lines(self) -> Iterator[str]:
        yield from decomposition_text(self.record)

    def tables(self) -> Iterator[Table]:
        yield components_table(self.record)
        yield equal_compute_table(self.record)
        if self.record["gradient"]:
            yield gradient_table(self.record)

    def sentences(self) -> Iterator[str]:
        if self.record["mirror"]:
            yield self.record["mirror"]["sentence"]
        yield from self.record["notes"][1:]

    def pictures(self) -> Iterator[object]:
        from stabledllm.reports import figures

        yield figures.components(self.record)
        yield figures.equal_compute(self.record, "gradient" if self.record["gradient"] else "loss")

    def _save_pictures(self, path: Path) -> list[Path]:
        from stabledllm.reports.save import save_decomposition_figures

        return save_decomposition_figures(self.record, path.parent)


@dataclass(frozen=True, repr=False)
class Recommended(Decomposition):
    """A decomposition with the method to train with, and the lines that plug it into one's own loop."""

    @property
    def method(self) -> str:
        """Name of the recommended method, ``standard`` where none helps significantly."""
        return self.record["recommendation"]["method"]

    @property
    def recipe(self) -> str:
        """The lines of Python to paste."""
        return self.record["recommendation"]["recipe"]

    def lines(self) -> Iterator[str]:
        yield from super().lines()
        yield "\n" + "\n".join(self.record["recommendation"]["sentences"])
        yield f"\n{self.recipe}"

    def sentences(self) -> Iterator[str]:
        yield from self.record["recommendation"]["sentences"]

    def _repr_html_(self) -> str:
        return super()._repr_html_() + lines_of_code(self.recipe)


@dataclass(frozen=True, repr=False)
class FitResult(Result):
    """A fitted p(t): ``p_of_t.json``, which ``Noise``, ``AlphaScheduler`` and ``stabledllm train`` read."""

    density: FittedDensity

    file_name = "p_of_t.json"

    @property
    def sampler(self) -> Tabulated:
        """The density itself, for ``Noise(p_of_t=...)``, ``AlphaScheduler(...)`` and ``Method.sampler``."""
        return self.density.sampler

    def lines(self) -> Iterator[str]:
        yield self.density.summary()
        yield from (f"note: {note}" for note in self.density.notes)
        yield from fit_details(self.record)

    def tables(self) -> Iterator[Table]:
        yield fit_table(self.record)

    def sentences(self) -> Iterator[str]:
        yield from self.density.notes

    def pictures(self) -> Iterator[object]:
        from stabledllm.reports import figures

        yield figures.fit(self.record)

    def _save_pictures(self, path: Path) -> list[Path]:
        from stabledllm.reports.save import save_fit_figure

        return [save_fit_figure(self.record, path.with_suffix(".png"))]


@dataclass(frozen=True, repr=False)
class ELBOResult(Result):
    """The bound on the log-likelihood of the rows, each with its error: ``elbo.json``."""

    bound: RowELBO
    """The values as tensors, in nats; ``bound.per_token()`` is per response token."""

    file_name = "elbo.json"
    drawn = False

    def lines(self) -> Iterator[str]:
        yield f"{next(self.tables())}"

    def tables(self) -> Iterator[Table]:
        def text(estimate: dict) -> str:
            from stabledllm.reports import numbers

            return numbers.estimate(estimate, unit=True)

        rows = (
            ("mean over the rows", text(self.record["mean"])),
            ("per response token", text(self.record["mean_per_token"])),
            ("forward passes", str(self.record["forward_passes"])),
        )
        count, budget = len(self.record["rows"]), self.record["config"]["budget"]
        yield Table(
            f"ELBO of {count} rows by {self.record['method']}, {budget} forward passes a row",
            ("", "value"),
            rows,
            "A lower bound of log p(response | prompt); the errors are those of the noise, the rows being fixed.",
        )

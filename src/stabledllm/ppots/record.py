"""A fitted density with its record: the fit on held-out rows, and the file ``p_of_t.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.sources import IID
from stabledllm.ppots.cells import WeighsBy
from stabledllm.ppots.crossfit import (
    EXCESS_ALLOWED,
    cross_fitted,
    dearer_than,
    folds,
    second_moment_under,
    tail_shape,
    variance_under,
)
from stabledllm.ppots.fit import Fit, FitOptions, fit
from stabledllm.ppots.fitted_for import SCHEMA, refuse_other
from stabledllm.ppots.moments import Curve, LossMoments, SecondMoments
from stabledllm.ppots.profile import LEAST_SEEN
from stabledllm.runtime.files import read_json, write_json

_MEASURED = {"loss": "variance", "gradient": "E|gradient|²", "difference": "E|policy less reference|²"}


@dataclass(frozen=True)
class FittedDensity:
    """A fitted p(t) and its record; a run that loads the file again draws the same t, bit for bit.

    >>> FittedDensity(Tabulated([1.0]), {"method": "ppots", "forward_passes": 480}).forward_passes
    480
    """

    sampler: Tabulated
    record: dict
    crossfit: list[tuple[Tabulated, Tensor]] | None = field(default=None, compare=False, repr=False)
    """The densities of the cross-fit, each with the probed rows that it was not fitted to; not saved."""

    @property
    def method(self) -> str:
        """Name of the method whose source, masker and views p was fitted for."""
        return self.record["method"]

    @property
    def forward_passes(self) -> int:
        """Number of forwards that the probe took."""
        return self.record["forward_passes"]

    @property
    def fallback(self) -> str | None:
        """The reason why EPR is not used, or None."""
        return self.record["diagnostics"]["fallback"]

    @property
    def notes(self) -> list[str]:
        """Warnings about the fit: that EPR is not used, and that uniform t has less variance on held-out rows."""
        doubt = self._doubt() if self.signal == "loss" and self.record.get("source") == IID.name else None
        return [note for note in (self.fallback, doubt) if note]

    def _doubt(self) -> str | None:
        fitted, uniform = (self.record["diagnostics"][f"variance_{name}"]["value"] for name in ("fitted", "uniform"))
        if not fitted > (1 + EXCESS_ALLOWED) * uniform:
            return None
        return (
            f"on rows it was not fitted to, this p(t) has a variance of {fitted:.4g} nats² where uniform t has "
            f"{uniform:.4g}: it is not known to help; leave ppots out, take 'fixedcount' beside it, or probe more "
            f"(ppots.rows, ppots.masks)."
        )

    def save(self, path: Path) -> None:
        """Write ``p_of_t.json``, whole or not at all."""
        write_json(path, self.record)

    @classmethod
    def load(cls, path: Path) -> FittedDensity:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: missing or broken file, another schema, or a density that is not one.
        """
        record = read_json(Path(path), SCHEMA)
        try:
            loaded = cls(Tabulated(record["density"], name="ppots", normalized=True), record)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}: expected a density of positive values under 'density', found {error}.") from None
        try:
            # Everything that is read from the record later, so that a broken one is refused here.
            _ = loaded.summary(), loaded.notes, int(loaded.forward_passes), loaded.method.split("+")
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: expected a fitted density's record, found it broken ({error!r}).") from None
        return loaded

    def refuse_other(
        self, method: Method, path: str, block_size: int | None = None, block_t: str = "own", kind: str = "masked"
    ) -> None:
        """Refuse to serve another method, objective or blocks, see :func:`~stabledllm.ppots.fitted_for.refuse_other`.

        Raises:
            UserError: naming the first that differs.
        """
        refuse_other(self.record, method.name, asdict(method.objective), path, block_size, block_t, kind)

    def summary(self) -> str:
        """The fit in one line."""
        d = self.record["diagnostics"]
        kl = f"KL {d['kl']:.2g}, " if d["kl"] is not None else ""
        k = f"{d['pareto_k']:.2f}" if d["pareto_k"] is not None else "n/a"
        what = _MEASURED.get(signal := self.signal, f"E|{signal}'s gradient|²")
        unit = "nats²" if signal in ("loss", "difference") else "(nats/param)²"
        return (
            f"p(t) for {self.method}: {self.record['kind']}, {kl}relative ESS {d['relative_ess']:.3f}, Pareto-k {k}, "
            f"{what} {d['variance_uniform']['value']:.4g} -> {d['variance_fitted']['value']:.4g} {unit} (cross-fitted)"
        )

    @property
    def signal(self) -> str:
        """The quantity whose second moment p was fitted to: "loss", "gradient", "output layer" or, for preferences, the
        "difference" of policy and reference."""
        return self.record.get("signal", "loss")


class ProbeProfile(Protocol):
    """The result of a probe, of losses or of gradient norms."""

    signal: str
    """The quantity that was measured: "loss", "gradient" or "output layer"."""
    moments: SecondMoments
    values: Tensor
    """Losses or norms at unit importance weight, shape (a, b, c)."""
    forward_passes: int

    def curves(self) -> dict[str, Curve | None]:
        """The curves over t beside the second moment, None for those that were not measured."""
        ...


def fit_density(
    profile: ProbeProfile,
    method: Method,
    options: FitOptions | None = None,
    config: dict | None = None,
    weighs_by: WeighsBy | None = None,
) -> FittedDensity:
    """Fit p for a method's own source, masker and views, with diagnostics on held-out rows.

    To gradient norms p is fitted as for iid t, whatever the source, and the diagnostics hold second moments in place of
    variances. For iid t EPR is not used where its second moment on held-out rows is clearly above that of the tabulated
    density.

    Args:
        weighs_by: needed where a row's weight is not 1 / p(t) itself (:func:`weights_of`).

    >>> from stabledllm.ppots.profile import Profile
    >>> flat = Profile(edges=torch.linspace(0, 1, 4).double(), view_losses=torch.ones(4, 3, 2, 1).double(),
    ...                used=torch.ones(4, 3, 1, dtype=torch.bool), cost=torch.ones(3).double(), rows=torch.arange(4))
    >>> density = fit_density(flat, Method.parse("ppots"), FitOptions(family="tabulated"))
    >>> density.sampler.weight(torch.tensor([0.1, 0.9]))
    tensor([1., 1.], dtype=torch.float64)
    """
    options, moments = options or FitOptions(), profile.moments
    of_losses = isinstance(moments, LossMoments)
    fitted_source, noise_under = (method.source, variance_under) if of_losses else (IID(), second_moment_under)
    fitted = fit(moments, fitted_source, options)
    crossfit, fallback = cross_fitted(moments, fitted_source, options), _fallback(fitted, options)
    if fitted_source.independent and fitted.kind == "epr":
        tabulated = replace(options, family="tabulated")
        tabulated_crossfit = cross_fitted(moments, fitted_source, tabulated)
        if excess := dearer_than(moments, crossfit, tabulated_crossfit, weighs_by):
            fallback = (
                f"EPR's second moment on held-out rows is {excess:.0%} above that of the smoothed points; "
                f"p(t) is tabulated from them instead."
            )
            sampler = fit(moments, fitted_source, tabulated).sampler
            fitted, crossfit = replace(fitted, sampler=sampler, kind="tabulated"), tabulated_crossfit
    uniform = [(Tabulated([1.0]), fold) for fold in folds(moments.rows, moments.together)]
    record = {
        "schema": SCHEMA,
        "method": method.name,
        "source": method.source.name,
        "signal": profile.signal,
        "kind": fitted.kind,
        "parameters": fitted.epr.parameters if fitted.epr else None,
        "density": fitted.sampler.density.tolist(),
        "uniform_share": options.uniform_share,
        "diagnostics": {
            "kl": fitted.epr.kl if fitted.epr else None,
            "kl_threshold": fitted.kl_threshold,
            "start_kls": fitted.epr.start_kls if fitted.epr else None,
            "relative_ess": fitted.sampler.relative_ess(),
            "pareto_k": tail_shape(profile.values, moments, fitted.sampler, weighs_by),
            "variance_uniform": noise_under(moments, uniform, weighs_by).as_dict(),
            "variance_fitted": noise_under(moments, crossfit, weighs_by).as_dict(),
            "fallback": fallback,
        },
        "profile": profile_record(profile) | _points(moments, fitted),
        "forward_passes": profile.forward_passes,
        "config": asdict(options) | {"strata": getattr(method.source, "strata", None)} | (config or {}),
    }
    return FittedDensity(fitted.sampler, record, crossfit)


def _fallback(fitted: Fit, options: FitOptions) -> str | None:
    """The reason why EPR was asked for and is not used, or None."""
    if fitted.epr is None or fitted.kind == "epr":
        return None
    why = f"EPR's fit is unfinished (none of {options.starts} starts converged)"
    if not fitted.epr.kl <= fitted.kl_threshold:
        why = f"EPR does not fit these points (KL {fitted.epr.kl:.3g} nats, threshold {fitted.kl_threshold:.3g})"
    return f"{why}; p(t) is tabulated from the smoothed points instead."


def profile_record(profile: ProbeProfile) -> dict:
    """The curves of a profile with their standard errors, as lists over t for JSON.

    >>> from stabledllm.ppots.profile import Profile
    >>> flat = Profile(edges=torch.linspace(0, 1, 4).double(), view_losses=torch.ones(4, 3, 2, 1).double(),
    ...                used=torch.ones(4, 3, 1, dtype=torch.bool), cost=torch.ones(3).double(), rows=torch.arange(4))
    >>> profile_record(flat)["g"]
    [1.0, 1.0, 1.0]
    """
    out: dict[str, list | None] = {"t": profile.moments.t.tolist()}
    seen, draws = (profile.values != 0).sum((0, 2)), profile.values[:, 0].numel()
    enough = (seen >= LEAST_SEEN) | (seen == draws)
    for name, curve in (profile.curves() | {"second_moment": profile.moments.curve()}).items():
        out[name] = curve.value.tolist() if curve else None
        out[f"{name}_stderr"] = torch.where(enough, curve.stderr, torch.nan).tolist() if curve else None
    return out


def _points(moments: SecondMoments, fitted: Fit) -> dict:
    """The points that p was fitted to, scaled to a density, with errors from those of the second moment."""
    points, width, curve = torch.from_numpy(fitted.points), moments.width, moments.curve()
    points = points / (width @ points)
    error = points * (curve.stderr / curve.value / 2).nan_to_num(1.0)
    return {"width": width.tolist(), "target": points.tolist(), "target_stderr": error.tolist()}

"""A fitted density with what it came from, as ``p_of_t.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from stabledllm.errors import UserError
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.parts import FOLLOWED, PARTS, REPORTED
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
from stabledllm.ppots.profile import Curve, Profile
from stabledllm.runtime.files import read_json, write_json

SCHEMA = "stabledllm/p_of_t/1"
LEAST_SEEN = 10
"""Draws of a cell in which something was masked, from which its curves have an error: of fewer, one decides."""


@dataclass(frozen=True)
class FittedDensity:
    """p(t) and its record; saved and loaded so that a resumed run draws the same t bit for bit."""

    sampler: Tabulated
    record: dict
    judged: list[tuple[Tabulated, Tensor]] | None = field(default=None, compare=False, repr=False)
    """Densities of the cross-fit with the probed rows each is judged on; not saved."""

    @property
    def method(self) -> str:
        """The method whose source, masker and views it was fitted for."""
        return self.record["method"]

    @property
    def forward_passes(self) -> int:
        """Forwards that the probe took."""
        return self.record["forward_passes"]

    @property
    def fallback(self) -> str | None:
        """Why EPR is not used, or None."""
        return self.record["diagnostics"]["fallback"]

    @property
    def notes(self) -> list[str]:
        """What a user must know of the fit: why EPR is not used, and whether uniform t is judged to be as good."""
        doubt = self._doubt() if self.signal == "loss" and self.record.get("source") == "iid" else None
        return [note for note in (self.fallback, doubt) if note]

    def _doubt(self) -> str | None:
        d = self.record["diagnostics"]
        fitted, uniform = d["variance_fitted"]["value"], d["variance_uniform"]["value"]
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
            # All that is read from the record later, so that a broken one is told now.
            _ = loaded.summary(), loaded.notes, int(loaded.forward_passes), loaded.method.split("+")
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: expected a fitted density's record, found it broken ({error!r}).") from None
        return loaded

    def summary(self) -> str:
        """The fit in one line."""
        d = self.record["diagnostics"]
        kl = f"KL {d['kl']:.2g}, " if d["kl"] is not None else ""
        k = f"{d['pareto_k']:.2f}" if d["pareto_k"] is not None else "n/a"
        what = {"loss": "variance", "gradient": "E|gradient|²"}.get(signal := self.signal, f"E|{signal}'s gradient|²")
        unit = "nats²" if signal == "loss" else "(nats/param)²"
        return (
            f"p(t) for {self.method}: {self.record['kind']}, {kl}relative ESS {d['relative_ess']:.3f}, Pareto-k {k}, "
            f"{what} {d['variance_uniform']['value']:.4g} -> {d['variance_fitted']['value']:.4g} {unit} (cross-fitted)"
        )

    @property
    def signal(self) -> str:
        """Whose second moment it was fitted to."""
        return self.record.get("signal", "loss")


def fit_density(
    profile: Profile,
    method: str,
    source: str,
    options: FitOptions | None = None,
    config: dict | None = None,
    signal: str = "loss",
    weighs_by: WeighsBy | None = None,
) -> FittedDensity:
    """Fit p for a method's own source, masker and views, with diagnostics judged on held-out rows.

    With another ``signal`` the profile holds gradient norms; p is then that of iid t, and what is judged is the second
    moment itself.

    For iid t an EPR fit whose second moment on held-out rows is clearly above the tabulated density's is not used.

    Args:
        weighs_by: of the method's masker, where a row's weight is not 1 / p(t) itself.
    """
    options = options or FitOptions()
    drawn, source = source, source if signal == "loss" else "iid"
    judge = variance_under if signal == "loss" else second_moment_under
    found = fit(profile, source, options)
    pairs = cross_fitted(profile, source, options)
    if source == "iid" and found.kind == "epr":
        plain = replace(options, family="tabulated")
        plain_pairs = cross_fitted(profile, source, plain)
        if excess := dearer_than(profile, pairs, plain_pairs, weighs_by):
            fallback = (
                f"EPR's second moment on held-out rows is {excess:.0%} above that of the smoothed points; "
                f"p(t) is tabulated from them instead."
            )
            found = replace(found, sampler=fit(profile, source, plain).sampler, fallback=fallback)
            pairs = plain_pairs
    every_row = [(Tabulated([1.0]), fold) for fold in folds(len(profile.rows))]
    record = {
        "schema": SCHEMA,
        "method": method,
        "source": drawn,
        "signal": signal,
        "kind": found.kind,
        "parameters": found.epr.parameters if found.epr else None,
        "density": found.sampler.density.tolist(),
        "uniform_share": options.uniform_share,
        "diagnostics": {
            "kl": found.epr.kl if found.epr else None,
            "kl_threshold": found.kl_threshold,
            "start_kls": found.epr.start_kls if found.epr else None,
            "relative_ess": found.sampler.relative_ess(),
            "pareto_k": tail_shape(profile, found.sampler, weighs_by),
            "variance_uniform": judge(profile, every_row, weighs_by).as_dict(),
            "variance_fitted": judge(profile, pairs, weighs_by).as_dict(),
            "fallback": found.fallback,
        },
        "profile": profile_record(profile) | _points(profile, found),
        "forward_passes": profile.forward_passes,
        "config": asdict(options) | (config or {}),
    }
    return FittedDensity(found.sampler, record, pairs)


def refuse_other(density: FittedDensity, method: Method, path: str, block_size: int | None = None) -> None:
    """A density fitted for another source, masker, views, objective or blocks is not the best: say so, do not use it.

    Raises:
        UserError: naming the first that differs.
    """
    fitted = density.record.get("config", {}).get("block_size")
    if fitted != block_size:
        raise UserError(f"{path}: expected a density fitted for block_size={block_size}, found one for {fitted}.")
    if canonical(density.method) != canonical(method.name):
        raise UserError(f"{path}: expected a density fitted for '{method.name}', found one for '{density.method}'.")
    wanted, found = asdict(method.objective), density.record.get("objective", {})
    for key, value in found.items():
        if value != wanted[key]:
            raise UserError(f"{path}: expected a density fitted for objective.{key}={wanted[key]}, found {value}.")


def canonical(name: str) -> str:
    """A method's name without the parts that do not change the best p; ``adaptive`` starts from that of ``ppots``."""
    unheard = [part.name for part in PARTS.values() if REPORTED in part.fills]
    return "+".join(FOLLOWED.get(text, text) for text in name.split("+") if text not in unheard)


def profile_record(profile: Profile) -> dict:
    """The profile's curves with their standard errors, as lists over t."""
    curves: dict[str, Curve | None] = dict.fromkeys(("g", "v", "v_views", "rho"))
    curves["second_moment"] = profile.second_moment()
    if profile.view_losses.shape[2] > 1:  # norms come as one value a cell: nothing but the second moment is known
        curves |= {"g": profile.g(), "v": profile.v(), "v_views": profile.v_views(), "rho": profile.rho()}
    out: dict[str, list | None] = {"t": profile.t.tolist()}
    seen, draws = profile.draws_that_hide(), profile.view_losses[:, 0, :, 0].numel()
    known = (seen >= LEAST_SEEN) | (seen == draws)
    for name, curve in curves.items():
        out[name] = curve.value.tolist() if curve else None
        out[f"{name}_stderr"] = torch.where(known, curve.stderr, torch.nan).tolist() if curve else None
    return out


def _points(profile: Profile, found: Fit) -> dict:
    """The points p was fitted to, as a density over the cells, with the relative error of the second moment."""
    points = torch.from_numpy(found.points)
    points = points / (profile.width @ points)
    moment = profile.second_moment()
    error = points * (moment.stderr / moment.value / 2).nan_to_num(1.0)
    return {"width": profile.width.tolist(), "target": points.tolist(), "target_stderr": error.tolist()}

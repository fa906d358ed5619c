"""The probe of the training rows and the fit of p(t) to it: to losses, to gradient norms, or in blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from stabledllm.data.rows import TokenRow
from stabledllm.errors import UserError
from stabledllm.forward.blocks import BlockMeter, UnitMeter
from stabledllm.forward.meter import LossMeter, Meter, MeteredModel
from stabledllm.gradient.density import NormProfile, norm_profile, proxy_quality
from stabledllm.gradient.output_layer import OutputLayerNorms
from stabledllm.gradient.per_row import RowGradients
from stabledllm.lab.measure.fit_change import change_of
from stabledllm.lab.measure.options import ProbeOptions
from stabledllm.lab.measure.progress import Progress
from stabledllm.method_checks import check_blocks, check_finite_variance
from stabledllm.noise.methods import Method
from stabledllm.ppots.cells import WeighsBy, weights_of
from stabledllm.ppots.fit import FitOptions
from stabledllm.ppots.profile import Profile, probe
from stabledllm.ppots.record import FittedDensity, ProbeProfile, fit_density


def check_probe(method: Method, rows: int, probed: int, block_size: int | None, key: str = "ppots.rows") -> None:
    """Refuse to fit p to too few rows, or to a method that has no meaning in blocks.

    Args:
        rows: number of training rows. probed: most of them that are probed. key: the setting that says so.

    Raises:
        UserError: too few rows, or a method that has no meaning in blocks.
    """
    if block_size:
        check_blocks(method)
    # Under strata and lattices the variance over rows must be known, and the cross-fit leaves one row out.
    least = 2 if method.source.independent or method.signal != "loss" or block_size else 3
    if min(rows, probed) < least:
        raise UserError(
            f"ppots: expected at least {least} training rows to probe for method '{method.name}', found "
            f"{f'{key}=' if probed < rows else ''}{min(rows, probed)}."
        )


def probe_and_fit(
    loaded: MeteredModel,
    rows: Sequence[TokenRow],
    method: Method,
    probing: ProbeOptions,
    seed: int,
    step_rows: int,
    *,
    progress: Progress | None = None,
    block_size: int | None = None,
    one_t: bool = False,
    tokens_per_batch: int | None = None,
    parameters: Sequence[str] | None = None,
) -> FittedDensity:
    """Probe the training rows and fit p for the method's own source, masker and views, for steps of ``step_rows`` rows.

    With ``block_size`` the units of block diffusion are probed instead of rows, with ``one_t`` rows whose blocks share
    one t.

    Args:
        parameters: patterns of those whose gradient ``ppots-gradient`` is fitted to; None takes all that are trained.

    Raises:
        UserError: too few rows, or a method that has no meaning in blocks.
    """
    check_finite_variance(method, "ppots")
    check_probe(method, len(rows), probing.rows, block_size)
    sizes = {"rows": min(probing.rows, len(rows)), "rates": probing.rates, "masks": probing.masks}
    config = sizes | {"design": probing.design, "model": loaded.name}
    options = FitOptions(
        starts=probing.starts,
        family=probing.family,
        uniform_share=probing.uniform_share,
        seed=seed,
        step_rows=step_rows,
    )
    common = {"progress": progress.update if progress else None}
    common |= {"tokens_per_batch": tokens_per_batch} if tokens_per_batch else {}

    def meter(kind: type[Meter]) -> Meter:
        chosen = {"parameters": parameters} if kind is RowGradients else {}
        return kind(loaded, rows, method.objective, **common, **chosen)

    if block_size and one_t:
        whole = BlockMeter(loaded, rows, method.objective, block_size=block_size, as_trained=True, **common)
        profile = probe(whole, method, **sizes, design=probing.design, seed=seed)
        config |= {"block_size": block_size, "block_t": "row"}
        density = _fit(profile, method, options, config, _weights(method, whole, profile))
    elif block_size:
        units = UnitMeter(loaded, rows, method.objective, block_size=block_size, **common)
        profile = probe(units, method, **sizes, design=probing.design, seed=seed)
        options = replace(options, step_rows=round(step_rows * units.units_per_row))
        config["block_size"] = block_size
        density = _fit(profile, method, options, config, _weights(method, units, profile))
    elif method.signal == "loss":
        profile = probe(losses := meter(LossMeter), method, **sizes, design=probing.design, seed=seed)
        density = _fit(profile, method, options, config, _weights(method, losses, profile))
    else:
        density = _fit_to_norms(meter, method, sizes | {"seed": seed}, options, probing.check_proxy, loaded.name)
    density.record["objective"] = asdict(method.objective)
    return density


def _fit(
    profile: ProbeProfile, method: Method, options: FitOptions, config: dict, weighs_by: WeighsBy | None = None
) -> FittedDensity:
    """The fitted density, with what it changes on held-out rows where t is drawn independently."""
    density = fit_density(profile, method, options, config, weighs_by=weighs_by)
    if method.source.independent:
        diagnostics = density.record["diagnostics"]
        unit = diagnostics["variance_uniform"]["unit"]
        diagnostics["change"] = change_of(profile.moments, density.crossfit, unit, weighs_by).as_dict()
    return density


def _weights(method: Method, meter: Meter, profile: Profile) -> WeighsBy:
    return weights_of(method, [meter.rows[i] for i in profile.rows.tolist()])


def _fit_to_norms(
    meter: Callable[[type[Meter]], Meter],
    method: Method,
    sizes: dict[str, int],
    options: FitOptions,
    check_proxy: bool,
    model: str,
) -> FittedDensity:
    """Fit p to the norm of the gradient, or of the output layer's, and compare the latter with the former if asked."""

    def fitted(kind: type[Meter]) -> tuple[NormProfile, FittedDensity]:
        profile = norm_profile(meter(kind), method, **sizes)
        return profile, _fit(profile, method, options, sizes | {"model": model})

    if method.signal == "gradient":
        return fitted(RowGradients)[1]
    profile, density = fitted(OutputLayerNorms)
    if check_proxy:
        exact, own = fitted(RowGradients)
        density.record["proxy"] = proxy_quality(exact.moments, own.sampler, profile.moments, density.sampler).as_dict()
    return density

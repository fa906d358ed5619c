"""The 7-parameter EPR family and its fit.

    p(t) ∝ sqrt(a t^r + b (1-t)^q + A² exp(2 kappa t^m)),  a, b, A, kappa > 0,  r, q >= 0,  m > 1

Source: arXiv:2511.18159 (P-POTS). Legend: G cells, Q nodes of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NAMES = ("a", "b", "A", "kappa", "r", "q", "m")
# log a, log b, log A, log kappa, r, q, m. The fit is of a shape: a common factor of a, b and A² is free.
_BOUNDS = ((-20, 20), (-20, 20), (-20, 10), (-12, 3.5), (0, 80), (0, 80), (1 + 1e-6, 80))

_OPTIONS = {"maxiter": 2000, "ftol": 1e-14}


@dataclass(frozen=True)
class EPRFit:
    """The best of many starts."""

    parameters: dict[str, float]
    kl: float
    """KL(points || curve) in nats, both normalised over the rates."""
    start_kls: list[float]
    """KL reached from each start."""
    converged: bool
    """Whether a start that reached the best KL (to 1e-6) ended by its convergence test."""


def log_density(theta: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Unnormalised log p at t in (0, 1), shape (G,); stable for any parameters within the bounds."""
    return _log_square(theta, t)[0] / 2


def fit_epr(
    t: np.ndarray,
    width: np.ndarray,
    points: np.ndarray,
    *,
    share: np.ndarray | None = None,
    starts: int = 20,
    seed: int = 0,
) -> EPRFit:
    """Minimise KL(points || EPR) over the seven parameters by L-BFGS-B from ``starts`` random starts.

    A point that is the root of a cell's *average* square is compared with the root of EPR's average square over the
    cell, not with its value at the midpoint nor with its average: the root is concave, and only so is the KL 0 at the
    true parameters for cells of any width. These are also the weights of the best density constant on each cell.

    Args:
        t: nodes of cells of (0, 1), shape (G, Q), or their midpoints, (G,). width: of the cells, (G,).
        points: positive, unnormalised, (G,). share: weights of the nodes, adding up to 1, (Q,); equal by default.
    """
    nodes = t.reshape(len(t), -1)
    log_share = np.log(np.full(nodes.shape[1], 1 / nodes.shape[1]) if share is None else share)
    target = width * points / (width @ points)
    entropy = float(target @ np.log(target / width))
    random = np.random.default_rng(seed)
    # A rise at t = 1 narrower than the last cell would fit one point and nothing else.
    bounds = (*_BOUNDS[:-1], (_BOUNDS[-1][0], max(2.0, 1 / float(width[-1]))))

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        log_square, jacobian = _log_cell_square(theta, nodes, log_share)
        log_p = log_square / 2
        top = log_p.max()
        log_norm = top + np.log(width @ np.exp(log_p - top))
        model = width * np.exp(log_p - log_norm)
        return entropy - float(target @ log_p) + log_norm, (model - target) @ jacobian / 2

    from scipy.optimize import minimize  # a third of a second, only where a density is fitted

    results = [
        minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=_OPTIONS)
        for start in _starts(random, starts)
    ]
    best = min(results, key=lambda r: r.fun)
    converged = any(r.success for r in results if r.fun <= best.fun + 1e-6)
    return EPRFit(parameters(best.x), max(0.0, float(best.fun)), [max(0.0, float(r.fun)) for r in results], converged)


def parameters(theta: np.ndarray) -> dict[str, float]:
    """The named parameters of a point of the search space."""
    values = [*np.exp(theta[:4]), *theta[4:]]
    return dict(zip(NAMES, (float(v) for v in values), strict=True))


def theta_of(parameters: dict[str, float]) -> np.ndarray:
    """The point of the search space with these parameters."""
    values = [parameters[name] for name in NAMES]
    return np.array([*np.log(values[:4]), *values[4:]])


def _starts(random: np.random.Generator, n: int) -> np.ndarray:
    low = np.array([-3, -3, -3, -3, 0.1, 0.1, 1.1])
    high = np.array([3, 3, 1.5, 1.5, 6, 30, 12])
    return low + (high - low) * random.random((n, len(low)))


def _log_cell_square(theta: np.ndarray, nodes: np.ndarray, log_share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of the square of p averaged over each cell's nodes, and its Jacobian, shapes (G,) and (G, 7)."""
    log_square, jacobian = _log_square(theta, nodes.ravel())
    terms = log_square.reshape(nodes.shape) + log_share
    top = terms.max(1, keepdims=True)
    average = top[:, 0] + np.log(np.exp(terms - top).sum(1))
    within = np.exp(terms - average[:, None])
    return average, (within[..., None] * jacobian.reshape(*nodes.shape, -1)).sum(1)


def _log_square(theta: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of the square of p and its Jacobian with respect to theta, shapes (G,) and (G, 7)."""
    log_a, log_b, log_amplitude, log_kappa, r, q, m = theta
    log_t, log_s = np.log(t), np.log1p(-t)
    bump = 2 * np.exp(log_kappa + m * log_t)
    terms = np.stack([log_a + r * log_t, log_b + q * log_s, 2 * log_amplitude + bump])
    top = terms.max(0)
    log_square = top + np.log(np.exp(terms - top).sum(0))
    first, second, third = np.exp(terms - log_square)
    jacobian = [first, second, 2 * third, third * bump, first * log_t, second * log_s, third * bump * log_t]
    return log_square, np.stack(jacobian, axis=1)

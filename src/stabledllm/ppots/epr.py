"""The EPR family of densities, with seven parameters, and its fit to points.

    p(t) ∝ sqrt(a t^r + b (1-t)^q + A² exp(2 kappa t^m)),  a, b, A, kappa > 0,  r, q >= 0,  m > 1

Source: arXiv:2511.18159 (P-POTS). Legend: G cells, Q nodes of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NAMES = ("a", "b", "A", "kappa", "r", "q", "m")
# Of log a, log b, log A, log kappa, r, q and m. Only the shape is fitted: a common factor of a, b and A² is free.
_BOUNDS = ((-20, 20), (-20, 20), (-20, 10), (-12, 3.5), (0, 80), (0, 80), (1 + 1e-6, 80))

_OPTIONS = {"maxiter": 2000, "ftol": 1e-14}


@dataclass(frozen=True)
class EPRFit:
    """The best fit of EPR that was reached from several random starts.

    >>> EPRFit(dict.fromkeys(NAMES, 1.0), kl=0.01, start_kls=[0.02, 0.01], converged=True).kl
    0.01
    """

    parameters: dict[str, float]
    kl: float
    """KL(points || curve) in nats, both normalised over the rates."""
    start_kls: list[float]
    """KL reached from each start."""
    converged: bool
    """Whether a start that reached the best KL (to 1e-6) ended by its convergence test."""


def log_density(theta: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The unnormalised log p at t in (0, 1), shape (G,); stable for any parameters within the bounds.

    Args:
        theta: a point of the search space, as :func:`theta_of` gives it.

    >>> flat = {"a": 1.0, "b": 1.0, "A": 1.0, "kappa": 1e-5, "r": 0.0, "q": 0.0, "m": 2.0}
    >>> log_density(theta_of(flat), np.array([0.2, 0.8])).round(4)  # log of the root of 1 + 1 + 1
    array([0.5493, 0.5493])
    """
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

    Each point is the root of a cell's *average* square, so it is compared with the root of EPR's average square over
    that cell, not with EPR's value at the midpoint, nor with its average: the root is concave, and in this way only is
    the KL 0 at the true parameters, however wide the cells. The best density that is constant on each cell is this too.

    Args:
        t: nodes of cells of (0, 1), shape (G, Q), or their midpoints, (G,).
        width: of the cells, (G,).
        points: positive, unnormalised, (G,).
        share: weights of the nodes, adding up to 1, (Q,); equal by default.

    >>> t = (np.arange(20) + 0.5) / 20
    >>> bool(fit_epr(t, np.full(20, 0.05), np.sqrt(1 + t**2), starts=3).kl < 1e-6)
    True
    """
    nodes = t.reshape(len(t), -1)
    log_share = np.log(np.full(nodes.shape[1], 1 / nodes.shape[1]) if share is None else share)
    target = width * points / (width @ points)
    entropy = float(target @ np.log(target / width))
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
        for start in _starts(np.random.default_rng(seed), starts)
    ]
    best = min(results, key=lambda r: r.fun)
    converged = any(r.success for r in results if r.fun <= best.fun + 1e-6)
    return EPRFit(parameters(best.x), max(0.0, float(best.fun)), [max(0.0, float(r.fun)) for r in results], converged)


def parameters(theta: np.ndarray) -> dict[str, float]:
    """The parameters, by name, at a point of the search space: the inverse of :func:`theta_of`.

    >>> parameters(np.zeros(7))["A"]
    1.0
    """
    return dict(zip(NAMES, map(float, [*np.exp(theta[:4]), *theta[4:]]), strict=True))


def theta_of(parameters: dict[str, float]) -> np.ndarray:
    """The point of the search space that has these parameters: logarithms of a, b, A and kappa, then r, q and m.

    >>> float(theta_of(dict.fromkeys(NAMES, 1.0))[0])
    0.0
    """
    values = [parameters[name] for name in NAMES]
    return np.array([*np.log(values[:4]), *values[4:]])


def _starts(random: np.random.Generator, n: int) -> np.ndarray:
    low = np.array([-3, -3, -3, -3, 0.1, 0.1, 1.1])
    high = np.array([3, 3, 1.5, 1.5, 6, 30, 12])
    return low + (high - low) * random.random((n, len(low)))


def _log_cell_square(theta: np.ndarray, nodes: np.ndarray, log_share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of the mean of p² over each cell's nodes, and its Jacobian with respect to theta, shapes (G,) and (G, 7)."""
    log_square, jacobian = _log_square(theta, nodes.ravel())
    terms = log_square.reshape(nodes.shape) + log_share
    top = terms.max(1, keepdims=True)
    average = top[:, 0] + np.log(np.exp(terms - top).sum(1))
    within = np.exp(terms - average[:, None])
    return average, (within[..., None] * jacobian.reshape(*nodes.shape, -1)).sum(1)


def _log_square(theta: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of p² at t and its Jacobian with respect to theta, shapes (G,) and (G, 7)."""
    log_a, log_b, log_amplitude, log_kappa, r, q, m = theta
    log_t, log_s = np.log(t), np.log1p(-t)
    bump = 2 * np.exp(log_kappa + m * log_t)
    terms = np.stack([log_a + r * log_t, log_b + q * log_s, 2 * log_amplitude + bump])
    top = terms.max(0)
    log_square = top + np.log(np.exp(terms - top).sum(0))
    first, second, third = np.exp(terms - log_square)
    jacobian = [first, second, 2 * third, third * bump, first * log_t, second * log_s, third * bump * log_t]
    return log_square, np.stack(jacobian, axis=1)

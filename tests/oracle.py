"""Exact values by full enumeration, for rows of at most 6 maskable tokens. Imports nothing of the library.

Masks are enumerated (jointly over the views), t is integrated by Gauss-Legendre panels that are split
at every kink. Legend: P maskable tokens, K views, S joint mask states, T nodes of t, F features:
the loss and then its gradient with respect to each of the toy model's parameters.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from scipy import special, stats

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)
_TOWARDS_0 = 4.0 ** -np.arange(16.0)  # breaks for a power of t that is no integer
_CEILING = 0.95  # the bound of isad-exact's q in docs/mathematics.md#maskers


def all_masks(size: int) -> np.ndarray:
    """Every subset of ``size`` tokens, bool, shape (2^P, P); row index = sum of 2^i over masked i."""
    return (np.arange(2**size)[:, None] >> np.arange(size)) & 1 == 1


@dataclass(frozen=True, eq=False)
class ToyRow:
    """One x0: the cross-entropy of every token under every mask, and its gradient."""

    table: np.ndarray
    """Shape (2^P, P, F)."""
    delimiter: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return self.table.shape[1]

    @cached_property
    def masked_sums(self) -> np.ndarray:
        """``sum_{i in M} CE_i`` of every mask, shape (2^P, F)."""
        return (self.table * all_masks(self.size)[..., None]).sum(1)


@lru_cache
def toy_row(size: int, seed: int = 0, theta: tuple[float, ...] = (0.3, 0.5, 0.2)) -> ToyRow:
    """A smooth deterministic "model" with parameters theta; masking more context makes a token harder."""
    generator = torch.Generator().manual_seed(1000 * size + seed)
    a, b, c = (
        torch.rand(shape, generator=generator, dtype=torch.float64)
        for shape in ((size, len(theta)), (size,), (size, size, len(theta)))
    )
    masks = torch.from_numpy(all_masks(size)).double()

    def cross_entropies(at: torch.Tensor) -> torch.Tensor:
        context = masks @ torch.tanh(c @ at).T  # (2^P, P)
        return torch.nn.functional.softplus(3 * (a @ at) - 2.5 + 2 * b + 1.5 * context)

    here = torch.tensor(theta, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(cross_entropies, here)
    table = torch.cat((cross_entropies(here)[..., None], gradient), -1)
    return ToyRow(table.numpy(), delimiter=(0, size - 1) if size > 1 else (0,))


@dataclass(frozen=True)
class Setting:
    """A method, spelled out without the library: sampler x masker x views, and the objective."""

    masker: str = "bernoulli"
    views: str = "single"
    count: int = 1
    density: tuple[float, ...] = (1.0,)
    clip: tuple[float, float] | None = None
    eps: float = 0.1
    power: float = 0
    below: float = 1.0
    delta: float = 0.2
    window: tuple[float, float] = (0.0, 1.0)
    """The mask ratios of the objective; t is the place in it."""
    bell: tuple[float, float] | None = None
    """Parameters of a Beta density of the mask ratio in the window; t is the share of it below the ratio."""
    scale: float = 1.0
    """Constant factor of the loss."""

    def p_mask(self, t: np.ndarray) -> np.ndarray:
        low, high = self.window
        place = special.betaincinv(*self.bell, t) if self.bell else t
        return (1 - self.eps) * (low + (high - low) * place) + self.eps

    @property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges of the density's cells and the CDF there."""
        if self.clip:
            return np.array(self.clip), np.array([0.0, 1.0])
        table = np.array(self.density)
        return np.linspace(0, 1, len(table) + 1), np.concatenate(([0.0], np.cumsum(table) / table.sum()))

    def cdf(self, t: np.ndarray) -> np.ndarray:
        return np.interp(t, *self.edges)

    def icdf(self, u: np.ndarray) -> np.ndarray:
        return np.interp(u, *self.edges[::-1])

    def p(self, t: np.ndarray) -> np.ndarray:
        """Density of t."""
        if self.clip:
            return ((t >= self.clip[0]) & (t <= self.clip[1])) / (self.clip[1] - self.clip[0])
        table = np.array(self.density)
        return table[np.minimum((t * len(table)).astype(int), len(table) - 1)] / table.mean()

    def kinks(self, size: int) -> np.ndarray:
        """Every t at which something is not smooth, and a geometric grid towards the pole at p_mask = 0."""
        p = [0.5, 0.5 - self.delta, 1 - self.delta, _CEILING - self.delta, _CEILING]
        p += [j / self.count - shift for j in range(self.count) for shift in (0.0, self.delta)]
        low, high = self.window
        at = [((x - self.eps) / (1 - self.eps) - low) / (high - low) for x in p]
        if self.bell:
            ends = 4.0 ** -np.arange(1, 20)
            at = [*special.betainc(*self.bell, np.clip(at, 0, 1)), *ends, *(1 - ends)]
        at += [*self.edges[0], self.below, *count_edges(self, size), *(4.0**-j for j in range(7)), 0.0]
        return np.unique([x for x in at if 0 <= x <= 1])


def panels(breaks: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [low, high], split at the breaks."""
    cuts = np.unique([low, high, *(b for b in breaks if low < b < high)])
    half = np.diff(cuts)[:, None] / 2
    return (cuts[:-1, None] + half * (1 + _NODES)).ravel(), (half * _WEIGHTS).ravel()


def _token_law(setting: Setting, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of one token over the views, (O, K), and their probabilities, (T, P, O)."""
    if setting.views == "mirror":
        both = np.maximum(0.0, 2 * q - 1)
        return np.array([(0, 0), (1, 0), (0, 1), (1, 1)]), np.stack(
            (1 - 2 * q + both, q - both, q - both, both), axis=-1
        )
    if setting.views == "partition":
        return _cyclic_law(setting.count, q)
    outcomes = np.array(list(itertools.product((0, 1), repeat=setting.count)))
    hits = outcomes.sum(1)
    return outcomes, q[..., None] ** hits * (1 - q[..., None]) ** (setting.count - hits)


def _cyclic_law(count: int, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """floor(q K) or one more of the K views mask the token, so that the mean is q K; a cyclic run of views."""
    law: dict[tuple[int, ...], np.ndarray] = {}
    fewer = np.minimum(np.floor(q * count), count - 1)
    for hits in range(count + 1):
        share = np.where(hits == fewer, 1 + fewer - q * count, 0.0) + np.where(
            hits == fewer + 1, q * count - fewer, 0.0
        )
        for first in range(count):
            views = tuple(int((j - first) % count < hits) for j in range(count))
            law[views] = law.get(views, 0.0) + share / count
    return np.array(list(law)), np.stack(list(law.values()), axis=-1)


def _independent_tokens(setting: Setting, row: ToyRow, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(masks (S, K), probability (T, S), value of each mask (T, 2^P, F)) for Bernoulli and ISAD."""
    p, is_delimiter = setting.p_mask(t)[:, None], np.isin(np.arange(row.size), row.delimiter)
    raised = np.minimum(p + setting.delta, 1.0)
    if setting.masker == "isad-exact":
        raised = np.minimum(p + setting.delta, np.maximum(p, _CEILING))
    q = np.where(is_delimiter, raised, p) if setting.masker != "bernoulli" else np.repeat(p, row.size, 1)
    outcomes, law = _token_law(setting, q)
    states = np.array(list(itertools.product(range(len(outcomes)), repeat=row.size)))
    probability = np.prod([law[:, i, states[:, i]] for i in range(row.size)], axis=0)
    masks = (outcomes[states] << np.arange(row.size)[None, :, None]).sum(1)

    member = all_masks(row.size)
    per_token = np.ones((len(t), 2**row.size, row.size)) * (p ** (setting.power - 1))[:, None]
    if setting.masker == "isad":
        per_token = (p**setting.power / q)[:, None] * np.ones((1, 2**row.size, 1))
    elif setting.masker == "isad-exact":
        target = np.where(member, p[:, None], 1 - p[:, None]).prod(-1)
        drawn = np.where(member, q[:, None], 1 - q[:, None]).prod(-1)
        per_token = per_token * (target / drawn)[..., None]
    value = np.einsum("tmp,mp,mpf->tmf", per_token, member, row.table) / row.size
    return masks, probability, value


def count_coefficient(setting: Setting, size: int, k: int) -> float:
    """``∫ C(P,k) p^(k-1+a) (1-p)^(P-k) dt`` by quadrature (exact for an integer a); omega_k / k for the ELBO."""
    t, dt = panels(_TOWARDS_0 if setting.power % 1 else np.array([]), 0.0, 1.0)
    p = setting.p_mask(t)
    if setting.bell:
        p, dt = replace(setting, bell=None).p_mask(t), dt * stats.beta.pdf(t, *setting.bell)
    return math.comb(size, k) * float((p ** (k - 1 + setting.power) * (1 - p) ** (size - k)) @ dt)


@lru_cache
def count_edges(setting: Setting, size: int) -> np.ndarray:
    """Edges of the counts' cells of t, (P + 1,): k / P, or in a window by the law of a Bernoulli mask's count k > 0."""
    if setting.window == (0.0, 1.0) and not setting.bell:
        return np.arange(size + 1) / size
    law = [count_coefficient(replace(setting, power=1), size, k) for k in range(1, size + 1)]
    return np.concatenate(([0.0], np.cumsum(law) / np.sum(law)))


def _bits(tokens) -> int:
    return sum(1 << i for i in tokens)


def _fixed_count(setting: Setting, row: ToyRow, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same triple for exactly k masked tokens; nothing depends on t inside a cell."""
    size = row.size
    if setting.views == "mirror":
        orders = list(itertools.permutations(range(size)))
        masks = np.array([(_bits(o[:k]), _bits(o[size - k :])) for o in orders])
    elif setting.views == "partition":
        orders, starts = (
            itertools.permutations(range(size)),
            [-(-j * size // setting.count) for j in range(setting.count)],
        )
        masks = np.array([[_bits((o + o)[s : s + k]) for s in starts] for o in orders])
    else:
        subsets = [_bits(s) for s in itertools.combinations(range(size), k)]
        masks = np.array(list(itertools.product(subsets, repeat=setting.count)))
    probability = np.full((1, len(masks)), 1 / len(masks))
    edges = count_edges(setting, size)
    share = setting.cdf(edges[k]) - setting.cdf(edges[k - 1])
    value = row.masked_sums * count_coefficient(setting, size, k) / (size * share)
    return masks, probability, value[None]


def _complement(setting: Setting, row: ToyRow, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same triple for a set of k tokens and the other P - k; the second view is left out where it is empty."""
    size = row.size
    subsets = [_bits(s) for s in itertools.combinations(range(size), k)]
    masks = np.array([[s, 2**size - 1 - s][: 1 + (k < size)] for s in subsets])
    probability = np.full((1, len(masks)), 1 / len(masks))

    def share(m: int) -> float:
        edges = count_edges(setting, size)
        return setting.cdf(edges[m]) - setting.cdf(edges[m - 1])

    held, per_mask = all_masks(size).sum(1), np.zeros((2**size, 1))
    for m in range(1, size + 1):
        total = share(m) + (share(size - m) if m < size else 0.0)
        per_mask[held == m] = count_coefficient(setting, size, m) / (size * total)
    # Contributions are added; the caller takes the mean over the views.
    return masks, probability, (row.masked_sums * per_mask * masks.shape[1])[None]


def conditional(setting: Setting, row: ToyRow, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E and E of the square of the weighted row loss (and gradient) given t; each (T, F)."""
    second_view = (t < setting.below) | (setting.below >= 1)
    mean, square = np.zeros((len(t), row.table.shape[2])), np.zeros((len(t), row.table.shape[2]))
    counts = np.clip(np.searchsorted(count_edges(setting, row.size), t), 1, row.size)
    by_count = {"fixedcount": _fixed_count, "complement": _complement}.get(setting.masker)
    groups = [(k, counts == k) for k in range(1, row.size + 1)] if by_count else [(0, t == t)]
    for k, here in groups:
        for both in (False, True):
            chosen = here & (second_view == both)
            if not chosen.any():
                continue
            if k:
                masks, probability, value = by_count(setting, row, k)
            else:
                masks, probability, value = _independent_tokens(setting, row, t[chosen])
                value = value if setting.clip else value / setting.p(t[chosen])[:, None, None]
            loss = setting.scale * (value[:, masks].mean(2) if both else value[:, masks[:, 0]])
            mean[chosen] = np.einsum("ts,tsf->tf", probability, loss)
            square[chosen] = np.einsum("ts,tsf->tf", probability, loss**2)
    return mean, square


@lru_cache
def moments(setting: Setting, row: ToyRow) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance of the row loss and of each gradient component, each (F,)."""
    t, dt = panels(setting.kinks(row.size), 0.0, 1.0)
    mean, square = conditional(setting, row, t)
    density = (setting.p(t) * dt)[:, None]
    first = (density * mean).sum(0)
    return first, (density * square).sum(0) - first**2


def decomposition(setting: Setting, rows: list[ToyRow]) -> dict[str, np.ndarray]:
    """A, B and C over equally likely rows: of the loss, and of the gradient as a trace; each (2,)."""
    parts = {"A": [], "B": [], "mean": []}
    for row in rows:
        t, dt = panels(setting.kinks(row.size), 0.0, 1.0)
        mean, square = conditional(setting, row, t)
        density = (setting.p(t) * dt)[:, None]
        whole = (density * mean).sum(0)
        parts["A"].append((density * (square - mean**2)).sum(0))
        parts["B"].append((density * mean**2).sum(0) - whole**2)
        parts["mean"].append(whole)
    each = {"A": np.mean(parts["A"], 0), "B": np.mean(parts["B"], 0), "C": np.var(parts["mean"], 0)}
    return {name: np.array([x[0], x[1:].sum()]) for name, x in each.items()}


def objective_by_counts(row: ToyRow, eps: float) -> np.ndarray:
    """The ELBO as ``sum_k omega_k / (P k) mean_{|M|=k} sum_M CE`` (docs/mathematics.md#the-oracle), shape (F,)."""
    size, total = row.size, 0.0
    held = all_masks(size).sum(1)
    for k in range(1, size + 1):
        omega = (1 - special.betainc(k, size - k + 1, eps)) / (1 - eps)
        total = total + omega / (size * k) * row.masked_sums[held == k].mean(0)
    return total


def objective_by_quadrature(
    row: ToyRow,
    eps: float,
    power: float = 0,
    window: tuple[float, float] = (0.0, 1.0),
    bell: tuple[float, float] | None = None,
) -> np.ndarray:
    """``∫ w(t) E_M[1/P sum_M CE p_mask^(a-1)] dt`` with Bernoulli masks, straight from the definition, shape (F,).

    w is uniform over the mask ratios of the window, or a Beta density there.
    """
    t, dt = panels(_TOWARDS_0 if power % 1 else np.array([]), *window)
    width = window[1] - window[0]
    dt = dt / width * (stats.beta.pdf((t - window[0]) / width, *bell) if bell else 1.0)
    p, held = ((1 - eps) * t + eps)[:, None], all_masks(row.size).sum(1)[None]
    # p^(|M| - 1): the empty mask has an empty sum, so its exponent is of no account.
    law = p ** np.maximum(held + power - 1, 0) * (1 - p) ** (row.size - held)
    return dt @ law @ row.masked_sums / row.size


def step_variance(setting: Setting, row: ToyRow, source: str, n: int, strata: int = 0) -> np.ndarray:
    """Exact variance of the mean over a step of n draws of the same row, shape (F,)."""
    mean, variance = moments(setting, row)
    if source == "iid":
        return variance / n
    breaks = setting.cdf(setting.kinks(row.size))
    if source == "lowdisc":
        u, du = panels(np.unique(breaks % (1 / n)), 0.0, 1 / n)
        given = [conditional(setting, row, setting.icdf(u + i / n)) for i in range(n)]
        lattice = np.mean([m for m, _ in given], 0)
        inside = sum(((s - m**2) * du[:, None]).sum(0) for m, s in given)
        return (n * du[:, None] * lattice**2).sum(0) - mean**2 + inside / n
    centres, spreads = [], []
    for s in range(strata):
        u, du = panels(breaks, s / strata, (s + 1) / strata)
        m, square = conditional(setting, row, setting.icdf(u))
        centres.append((strata * du[:, None] * m).sum(0))
        spreads.append((strata * du[:, None] * square).sum(0) - centres[-1] ** 2)
    rest = n % strata
    # n // k in every stratum; the rest is a draw without replacement among the strata.
    total = (n // strata + rest / strata) * np.sum(spreads, 0)
    if rest:
        total = total + rest * (1 - rest / strata) * np.var(centres, 0, ddof=1)
    return total / n**2

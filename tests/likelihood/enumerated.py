"""The laws of estimators by full enumeration, from published formulas; imports nothing of the library's noise.

A law is a list of (probability, value), where the value is a sum of weighted features of tokens. A feature is any
number that a token has in a context: the log-probability, its difference between two models, its derivative.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch

from stabledllm.data.rows import TokenRow
from tests.likelihood.models import MASK

Feature = Callable[[frozenset[int]], dict[int, float]]
"""The feature of every hidden position, for a set of hidden positions."""
Law = list[tuple[float, float]]


def log_probabilities(model, row: TokenRow) -> Feature:
    """Each hidden token's log-probability, with one forward of the model for each set of hidden positions."""
    known: dict[frozenset[int], dict[int, float]] = {}

    def of(hidden: frozenset[int]) -> dict[int, float]:
        if hidden not in known:
            ids = torch.tensor(row.input_ids)
            noisy = ids.clone()
            noisy[sorted(hidden)] = MASK
            with torch.no_grad():
                logs = model(noisy[None]).logits[0].log_softmax(-1)
            known[hidden] = {i: float(logs[i, ids[i]]) for i in hidden}
        return known[hidden]

    return of


def difference(one: Feature, other: Feature, scale: float = 1.0) -> Feature:
    """The scaled difference of two features."""
    return lambda hidden: {i: scale * (one(hidden)[i] - other(hidden)[i]) for i in hidden}


def places(row: TokenRow) -> list[int]:
    """The positions of the response."""
    return list(range(row.prompt_length, len(row)))


def subsets(positions: list[int], size: int | None = None) -> list[frozenset[int]]:
    """All sets of the positions, or those of one size."""
    sizes = range(len(positions) + 1) if size is None else [size]
    return [frozenset(chosen) for k in sizes for chosen in itertools.combinations(positions, k)]


def total(feature: Feature, hidden: frozenset[int], among: frozenset[int] | None = None) -> float:
    """The sum over hidden positions, or those of them that count."""
    return sum(value for i, value in feature(hidden).items() if among is None or i in among)


def moments(law: Law) -> tuple[float, float]:
    """Mean and variance."""
    assert math.isclose(sum(p for p, _ in law), 1.0)
    mean = sum(p * value for p, value in law)
    return mean, sum(p * (value - mean) ** 2 for p, value in law)


def bound(feature: Feature, row: TokenRow) -> float:
    """The ELBO (at eps = 0): for each count k the mean over masks of the masked mean, added up over k = 1..P."""
    where = places(row)
    counts = range(1, len(where) + 1)
    return sum(np.mean([total(feature, m) / k for m in subsets(where, k)]) for k in counts)


def fixedcount(feature: Feature, row: TokenRow) -> Law:
    """One draw: a count k uniform on 1..P, and P times the masked mean."""
    where = places(row)
    size = len(where)
    return [
        (1 / size / math.comb(size, k), size / k * total(feature, m))
        for k in range(1, size + 1)
        for m in subsets(where, k)
    ]


def lattice_of_two(feature: Feature, row: TokenRow) -> Law:
    """Two fixed counts at mask ratios half apart, the mean of both: ``lowdisc+fixedcount`` from two forwards."""
    where = places(row)
    size, cells = len(where), 2 * len(where)
    found = []
    for cell in range(cells):  # ceil(t P) of both points is constant on each
        u = (cell + 0.5) / cells
        one, other = (math.ceil(t % 1 * size) for t in (u, u + 0.5))
        masks = [(m, n) for m in subsets(where, one) for n in subsets(where, other)]
        for m, n in masks:
            value = size * (total(feature, m) / one + total(feature, n) / other) / 2
            found.append((1 / cells / len(masks), value))
    return found


def espo(feature: Feature, row: TokenRow) -> Law:
    """Half of two sums over a mask of k tokens and the rest, by (P + 1) / k and (P + 1) / (P - k), k from 0 to P."""
    where = places(row)
    size, everywhere = len(where), frozenset(where)
    found = []
    for k in range(size + 1):
        for m in subsets(where, k):
            value = 0.0
            if k > 0:
                value += (size + 1) / k * total(feature, m)
            if k < size:
                value += (size + 1) / (size - k) * total(feature, everywhere - m)
            found.append((1 / (size + 1) / math.comb(size, k), value / 2))
    return found


def coupled(feature: Feature, row: TokenRow) -> Law:
    """Half of everything masked, and half of a mask over t and the rest over 1 - t; t from 0.2 to 0.8."""
    where = places(row)
    size, everywhere = len(where), frozenset(where)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    found = []
    for node, weight in zip(nodes, weights, strict=True):
        t = 0.5 + 0.3 * node
        for m in subsets(where):
            rest = everywhere - m
            value = total(feature, everywhere) + total(feature, m) / t + total(feature, rest) / (1 - t)
            found.append((weight / 2 * t ** len(m) * (1 - t) ** (size - len(m)), value / 2))
    return found


def one_step(feature: Feature, row: TokenRow, share: float = 0.15) -> Law:
    """Everything masked, and each token of the prompt with probability 0.15."""
    everywhere = frozenset(places(row))
    prompt = list(range(row.prompt_length))
    return [
        (share ** len(m) * (1 - share) ** (len(prompt) - len(m)), total(feature, everywhere | m, everywhere))
        for m in subsets(prompt)
    ]


def unigrpo(feature: Feature, row: TokenRow, place: float = 0.0) -> Law:
    """P times the masked mean of independent masks; the ratio is uniform, or ``place`` of the way from it to 1."""
    where = places(row)
    size = len(where)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    found = []
    for node, weight in zip(nodes, weights, strict=True):
        r = 0.5 + 0.5 * node
        t = r + place * (1 - r)
        for m in subsets(where):
            value = size / len(m) * total(feature, m) if m else 0.0
            found.append((weight / 2 * t ** len(m) * (1 - t) ** (size - len(m)), value))
    return found

"""The probe's error in p*: ours against the paper's 15 x 70 x 15 grid. Target: no larger, from at most a fifth of it.

Error: (a) the excess second moment ∫ m/p dt / (∫ sqrt m dt)² - 1 over the best density's, (b) KL(p* || p) in nats; the
same EPR fit after every probe, without the defensive share. Two comparisons on the shipped model and synthetic:hard:

Known: 60,000 losses of the model (128 rows, 73 cells of t, 4 masks per row and cell, 48 in the lowest cells) are taken
for the whole population, so that m and p* are known exactly and 200 probes of each design cost no forward.
Real: probes of the model itself, 4 of each design on rows of a larger pool, against the same p*; it is then only an
estimate, whose own error is a floor under both.
"""

from __future__ import annotations

import torch
from common import save
from torch import Tensor

from stabledllm.config import PPOTSSettings
from stabledllm.data.rows import EncodingOptions, encode_examples
from stabledllm.data.sources import load_examples
from stabledllm.forward.meter import LossMeter
from stabledllm.models.loading import load_model
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.sources import IID
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.cells import CELLS, cell_kernels
from stabledllm.ppots.fit import FitOptions, fit
from stabledllm.ppots.profile import probe, rate_edges

DEFAULT = PPOTSSettings()
SIZES = {"rows": DEFAULT.rows, "rates": DEFAULT.rates, "masks": DEFAULT.masks}
DESIGNS = {
    "paper": {"design": "grid", "rows": 15, "rates": 70, "masks": 15},
    "default": {"design": DEFAULT.design, **SIZES},
    "default's sizes on a grid": {"design": "grid", **SIZES},
}
PAPERS_FORWARDS = 15 * 70 * 15
TABLE_ROWS, TABLE_MASKS, LOW_MASKS = 128, 4, 48
KNOWN_SEEDS, REAL_SEEDS, POOL = 200, 4, 1000
OPTIONS = FitOptions(starts=8, uniform_share=0.0)


class TableMeter:
    """As LossMeter, with a table of losses (R, b, C) for the population of rows and masks: m(t) is known exactly."""

    def __init__(self, table: Tensor, edges: Tensor):
        self.table, self.edges, self.objective = table, edges, Objective()
        self.rows = [None] * 100_000  # so many copies that probed rows are as good as independent

    def view_losses(self, row, t, method, key, sampler=None):
        cell = (torch.searchsorted(self.edges, t, right=True) - 1).clamp(0, self.table.shape[1] - 1)
        mask = (key.row_uniforms(Stream.MASK, torch.arange(len(row))) * self.table.shape[2]).long()
        losses = self.table[row % self.table.shape[0], cell, mask][:, None]
        return losses, torch.ones_like(losses, dtype=torch.bool)


class Judge:
    """Errors against p* of a second moment that is constant on the cells between ``edges``."""

    def __init__(self, moment: Tensor, edges: Tensor):
        self.moment, self.edges, width = moment, edges, edges.diff()
        fine = torch.cat((torch.arange(CELLS + 1, dtype=torch.float64) / CELLS, edges)).unique()
        self.middle, self.width = (fine[1:] + fine[:-1]) / 2, fine.diff()
        self.best = float(width @ moment.sqrt()) ** 2
        cell = (torch.searchsorted(edges, self.middle) - 1).clamp(0, len(moment) - 1)
        self.star = moment.sqrt()[cell] / self.best**0.5

    def errors(self, p: TSampler) -> tuple[float, float]:
        second = float(self.moment @ (self.edges.diff() * cell_kernels(p, self.edges)[0]))
        kl = float(self.width @ (self.star * (self.star.log() - p.log_prob(self.middle))))
        return second / self.best - 1, kl


def loss_table(meter: LossMeter, edges: Tensor) -> Tensor:
    """Losses of the model at the cells' midpoints, shape (R, b, LOW_MASKS); few masks are repeated."""
    t, low = (edges[1:] + edges[:-1]) / 2, int((edges[1:] < 1 / 70 + 1e-9).sum())
    parts = []
    for step, (rates, masks) in enumerate(((t[:low], LOW_MASKS), (t[low:], TABLE_MASKS))):
        row = torch.arange(TABLE_ROWS).repeat_interleave(len(rates) * masks)
        losses = meter.losses(row, rates.repeat_interleave(masks).repeat(TABLE_ROWS), Method(), Key(5, 0x7AB1E + step))
        parts.append(losses.view(TABLE_ROWS, len(rates), masks).repeat(1, 1, LOW_MASKS // masks))
    return torch.cat(parts, 1)


def measured(meter, judge: Judge, seeds: int) -> dict[str, Tensor]:
    """Errors of the fit after each design's probes, shape (seeds, 2), and in ``forwards`` what a probe took."""
    out = {}
    for name, design in DESIGNS.items():
        profiles = (probe(meter, Method(), seed=seed, **design) for seed in range(seeds))
        out[name] = torch.tensor(
            [judge.errors(fit(p.moments, IID(), OPTIONS).sampler) for p in profiles], dtype=torch.float64
        )
        print(f"  {name}: excess {out[name][:, 0].mean():.4f}, KL {out[name][:, 1].mean():.5f}", flush=True)
    return out


def ratio(errors: Tensor, reference: Tensor) -> dict[str, float]:
    """Ratio of the mean errors with a 95 % interval by the delta method."""
    value = float(errors.mean() / reference.mean())
    relative = sum(float(x.var() / len(x) / x.mean() ** 2) for x in (errors, reference)) ** 0.5
    half = 1.96 * value * relative
    return {"value": value, "ci_low": value - half, "ci_high": value + half}


def summary(found: dict[str, Tensor]) -> dict:
    """Mean errors with standard errors, and their ratios to the paper's."""
    out = {}
    for name, errors in found.items():
        stderr = errors.std(0) / len(errors) ** 0.5
        out[name] = {
            what: {
                "value": float(errors[:, i].mean()),
                "stderr": float(stderr[i]),
                "n": len(errors),
                "ratio_to_paper": ratio(errors[:, i], found["paper"][:, i]),
            }
            for i, what in enumerate(("excess_second_moment", "kl"))
        }
    return out


def main() -> None:
    loaded = load_model("tiny")
    loaded.model.eval()
    examples = load_examples("synthetic:hard", split="train", n=TABLE_ROWS + POOL, seed=0)
    encoded = encode_examples(examples, loaded.tokenizer, EncodingOptions()).rows
    edges = rate_edges(70)
    table = loss_table(LossMeter(loaded, encoded[:TABLE_ROWS], Objective()), edges)
    judge = Judge((table**2).mean((0, 2)), edges)
    uniform = float(judge.moment @ edges.diff()) / judge.best - 1
    print(f"uniform t: excess {uniform:.4f}; known losses:")
    known = summary(measured(TableMeter(table, edges), judge, KNOWN_SEEDS))
    print("the model itself:")
    real = summary(measured(LossMeter(loaded, encoded[TABLE_ROWS:], Objective()), judge, REAL_SEEDS))
    forwards = {n: d["rows"] * (len(rate_edges(d["rates"])) - 1) * d["masks"] for n, d in DESIGNS.items()}
    ratios = {"forwards / the paper's 15,750": forwards["default"] / PAPERS_FORWARDS}
    for label, found in (("known losses", known), ("the model itself", real)):
        for what, value in found["default"].items():
            r = value["ratio_to_paper"]
            ratios[f"{what} / the paper's, {label}"] = r["value"]
            print(f"{label}: {what} / the paper's = {r['value']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}]")
    save(
        "probe_error",
        ratios,
        designs=DESIGNS,
        forwards=forwards,
        uniform_excess=uniform,
        known_losses=known,
        the_model_itself=real,
    )


if __name__ == "__main__":
    main()

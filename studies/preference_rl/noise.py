"""How noisy preference steps are under VRPO's estimators and ours, on the shipped model near its reference and farther.

The rows of VRPO's table (arXiv:2505.19223, table 1) are n_t draws of t with n_y masks each, with draws that policy and
reference share or not; ours follow at as many forwards. Everything measured is in noise.json, estimator by estimator:
those that it holds are not measured again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from stabledllm.config.settings import TrainSettings
from stabledllm.data.sources import load_examples
from stabledllm.lab.measure.options import ProbeOptions
from stabledllm.lab.noise_advice import LEVEL
from stabledllm.lab.pair_density import PairProbe, pairs_in
from stabledllm.likelihood.holm import holm
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.noise.densities import Tabulated
from stabledllm.noise.methods import Method
from stabledllm.noise.of_parts import OfParts
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss
from stabledllm.preference.noise import Candidate, PairNoise, measure_pairs
from stabledllm.reports import numbers as fmt
from stabledllm.runtime.files import read_json, write_json
from stabledllm.runtime.provenance import versions
from stabledllm.training.run import train

HERE = Path(__file__).parent
RESULTS = HERE / "noise.json"
BETA, SEED = 0.1, 0
QUANTITIES = ("margin", "loss", "gradient")
DISTANCES = {"near": 8, "far": 60}
"""Steps of training that the policy is from its reference, the shipped model."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    pairs: int = 48
    repeats: int = 3
    probe: ProbeOptions = ProbeOptions(rows=48)  # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class Row:
    """An estimator of the table: a method, its forwards of a response, and whether policy and reference share draws."""

    method: str
    budget: int
    shared: bool = True
    vrpo: tuple[float, float, float] | None = None
    """What VRPO measured: the variance of margin, loss and gradient."""

    @property
    def name(self) -> str:
        """The row's name, and its key in noise.json."""
        return f"{self.method}, {self.budget} forwards{'' if self.shared else ', not shared'}"

    @property
    def against(self) -> Row:
        """VRPO's row at as many forwards, which it is divided by; its rows themselves by that of four."""
        return VRPO[0] if self.budget == VRPO[0].budget and not self.vrpo else VRPO[1]


VRPO = (
    Row("standard", 8, vrpo=(1.0, 2.6e-3, 1.6)),
    Row("standard", 4, vrpo=(2.2, 3.1e-3, 2.5)),
    Row("multisample2", 4, vrpo=(4.7, 7.3e-3, 2.5)),
    Row("multisample4", 4, vrpo=(7.3, 3.2e-2, 4.7)),
    Row("standard", 1, vrpo=(44.0, 8.7e-2, 13.0)),
    Row("standard", 4, shared=False, vrpo=(2183.7, 62.0, 10.6)),
)
METHODS = (
    "lowdisc+fixedcount",
    "lowdisc+complement",
    "ppots",
    "lowdisc+ppots+fixedcount",
    "lowdisc+ppots-gradient+fixedcount",
)
ROWS = VRPO + tuple(Row(method, budget) for budget in (4, 8) for method in METHODS)


def write_pairs(path: Path, rows: int = 400) -> None:
    """Questions of the synthetic task, each with its answer and with that of the next question."""
    examples = load_examples("synthetic:hard", split="train", n=rows, seed=SEED)
    texts = [(each["messages"][-2]["content"], each["messages"][-1]["content"]) for each in examples]
    lines = [
        json.dumps({"prompt": ask, "chosen": right, "rejected": wrong})
        for (ask, right), (_, wrong) in itertools.pairwise(texts)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def settings(work: Path, steps: int) -> TrainSettings:
    """A run of preferences from the shipped model, the same but for its length."""
    return TrainSettings.model_validate(
        {
            "model": "tiny",
            "data": {"train": str(work / "pairs.jsonl"), "validation_share": 0},
            "objective": {"kind": "dpo"},
            "dpo": {"beta": BETA, "budget": 4},
            "method": "lowdisc+fixedcount",
            "batch": 8,
            "steps": steps,
            "untuned": False,
            "trainer": {"learning_rate": 2e-5, "warmup_steps": 0, "disable_tqdm": True},
            "out": str(work / f"{steps}-steps"),
        }
    )


class Models:
    """Policy, reference and pairs at a distance, loaded when they are first asked for."""

    def __init__(self, work: Path, steps: int, say: Callable[[str], None]):
        run = settings(work, steps)
        if not (work / "pairs.jsonl").is_file():
            work.mkdir(parents=True, exist_ok=True)
            write_pairs(work / "pairs.jsonl")
        train(run, say=say)
        self.policy: LoadedModel = load_model(str(Path(run.out) / "model"))
        self.reference: LoadedModel = load_model("tiny")
        self.pairs: list[Pair] = pairs_in(run, self.policy, lambda _: None)
        self._of_gradient = cache(self._fitted)

    def estimator(self, row: Row, size: Size) -> BoundEstimator:
        """The estimator of a row; a density is fitted to pairs that are not measured."""
        signal = OfParts(row.method).signal
        if signal is None:
            return BoundEstimator(row.method, row.budget)
        # The forwards decide what a lattice leaves of differences; a fit to gradients takes that for independent draws.
        density = (
            self._fitted(row.method, row.budget, size)
            if signal == "loss"
            else self._of_gradient(row.method, VRPO[0].budget, size)
        )
        return BoundEstimator(row.method, row.budget, density=density)

    def _fitted(self, method: str, budget: int, size: Size) -> Tabulated:
        probe = PairProbe(self.policy, self.reference, DPOLoss(BETA), budget, size.probe, SEED)
        return probe.fit(Method.parse(method), self.pairs[size.pairs :]).sampler

    def measured(self, row: Row, size: Size) -> dict:
        """The variances of a row for each pair, with the bias of the loss."""
        candidate = Candidate(row.name, self.estimator(row, size), row.shared)
        (noise,) = measure_pairs(
            self.policy.model, self.reference.model, self.pairs[: size.pairs], [candidate], DPOLoss(BETA),
            repeats=size.repeats, seed=SEED,
        )  # fmt: skip
        return {name: [float(f"{x:.6g}") for x in getattr(noise, name).tolist()] for name in (*QUANTITIES, "bias")}


def measure(work: Path, size: Size = Size(), results: Path = RESULTS, say: Callable[[str], None] = print) -> dict:
    """Measure every row at every distance that the results do not hold, and write them after each."""
    record = read_json(results) if results.is_file() else {"distances": {}}
    about = {"pairs": size.pairs, "repeats": size.repeats, "beta": BETA, "seed": SEED}
    if record.get("about", about) != about:
        raise SystemExit(f"{results}: holds another size, {record['about']}; delete it to measure {about}.")
    record |= {"about": about, "versions": versions()}
    for distance, steps in DISTANCES.items():
        found = record["distances"].setdefault(distance, {"steps": steps, "rows": {}})["rows"]
        models = cache(lambda steps=steps: Models(work, steps, say))
        for row in ROWS:
            if row.name not in found:
                found[row.name] = models().measured(row, size)
                write_json(results, record)
                say(f"{distance}: {row.name}")
    return record


def noise_of(found: dict, row: Row) -> PairNoise | None:
    """The measured noise of a row at a distance; None where it is not measured yet.

    Its forwards are not told: VRPO's table has variances as they are, and ours stand beside rows of as many.
    """
    if row.name not in found["rows"]:
        return None
    columns = (torch.tensor(found["rows"][row.name][name], dtype=torch.float64) for name in (*QUANTITIES, "bias"))
    return PairNoise(row.name, 1, *columns)


def section(record: dict) -> str:
    """The part of the page that the measurement decides: a table for each distance, and what it tells."""
    measured = {name: found for name, found in record["distances"].items() if VRPO[1].name in found["rows"]}
    return "\n".join(_of_distance(record, distance, found) for distance, found in measured.items())


def _of_distance(record: dict, distance: str, found: dict) -> str:
    about, first = record["about"], noise_of(found, VRPO[1])
    figures = ", ".join(f"{name} {fmt.plain(first.mean(name).value)}" for name in QUANTITIES)
    lines = [
        f"### {distance.capitalize()}: {found['steps']} steps from the reference\n",
        f"{about['pairs']} pairs, each drawn in {about['repeats']} steps. Standard at 4 forwards, which VRPO's rows "
        f"are divided by, has the variances {figures}. Ours are divided by VRPO's row at as many forwards. 95 % "
        f"intervals over pairs; VRPO's own ratios, of an 8B model, in brackets.\n",
        "| n_t, n_y, shared | method | margin | loss | gradient |",
        "|---" * 5 + "|",
    ]
    measured = [(row, noise) for row in ROWS if (noise := noise_of(found, row))]
    lines += [_line(row, noise, noise_of(found, row.against)) for row, noise in measured]
    return "\n".join([*lines, "", _told(found), ""])


def _line(row: Row, noise: PairNoise, against: PairNoise) -> str:
    published = _published(row)
    cells = [
        shown(noise.over(against, name)) + (f" [{value:.3g}]" if value is not None else "")
        for name, value in zip(QUANTITIES, published, strict=True)
    ]
    return f"| {_kind(row)} | {row.method} | {' | '.join(cells)} |"


def _kind(row: Row) -> str:
    """A row in VRPO's words; ours by their forwards."""
    if not row.vrpo:
        return f"ours, {row.budget} forwards"
    masks = int(row.method.removeprefix("multisample")) if row.method.startswith("multisample") else 1
    return f"{row.budget // masks}, {masks}, {'yes' if row.shared else 'no'}"


def _published(row: Row) -> tuple[float | None, ...]:
    if not row.vrpo or row == VRPO[1]:
        return (None, None, None)
    return tuple(ours / of_four for ours, of_four in zip(row.vrpo, VRPO[1].vrpo, strict=True))


def shown(ratio) -> str:
    """A ratio with its interval."""
    if ratio.value == ratio.ci_low == ratio.ci_high == 1:
        return "1"
    if not ratio.is_known:
        return f"{ratio.value:.3g}"
    return f"{ratio.value:.3g} ({ratio.ci_low:.2g} to {ratio.ci_high:.2g})"


def _told(found: dict) -> str:
    """Which of our rows have surely less gradient noise than VRPO's at as many forwards."""
    ours = [row for row in ROWS if not row.vrpo and row.name in found["rows"]]
    if not ours:
        return "Ours are not measured yet."
    p_values = holm([noise_of(found, r).p_of_less(noise_of(found, r.against), "gradient") for r in ours])
    better = [f"`{row.method}` at {row.budget}" for row, p in zip(ours, p_values, strict=True) if p < LEVEL]
    held = f"by paired t tests, {len(ours)} comparisons after Holm's correction"
    if not better:
        return f"None of our rows has surely less gradient noise than VRPO's at as many forwards, {held}."
    return f"Surely less gradient noise than VRPO's row at as many forwards, {held}: {', '.join(better)}."


SMALL = replace(Size(), pairs=3, repeats=3, probe=ProbeOptions(rows=4, rates=4, starts=2))
"""For a trial of the whole."""

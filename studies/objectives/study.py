"""Which objective, which noise, which likelihood: every objective with its own noise and with less, at equal compute.

    python -m studies.objectives.study                    everything, resumable; some 550 runs of a minute,
                                                          and 18 of ten of a real model
    python -m studies.objectives.study --only tune        one part: tune, final, likelihood, quarters, windows,
                                                          stability, real or page
    python -m studies.objectives.study --real FOLDER      where studies/real_model has converted its model
    python -m studies.objectives.study --jobs 2           so many training runs at the same time
    python -m studies.objectives.study --rehearse         every part with two seeds of two steps, in --out alone

What is done is not done again: run it again after a kill. Runs are written below --out; results.json, the pictures and
the tables of README.md come back here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from studies.objectives.rows import BASE, LESS, ROWS, STANDARD, Row, budget
from studies.objectives.sizes import FULL, SMALL, Size
from studies.real_model.parts import in_float32

from stabledllm.experiment.spread import values_of
from stabledllm.runtime.files import read_json, write_json

HERE = Path(__file__).parent
RECIPE, GRID, REAL = (HERE / "recipes" / f"{name}.yaml" for name in ("shipped", "rates", "real"))
REAL_ROWS = {"train": "adapt", "validation": "held_out"}
"""The files of ``studies/real_model`` that the real model is trained and looked at on."""
METRIC = "validation_nll"
KEPT = ("method", "seed", "learning_rate", "max_grad_norm", "status", "metrics", "averages", "outlier_steps",
        "forward_passes", "steps", "seconds")  # fmt: skip
LIKELIHOOD, PARTS, UNTUNED = "likelihood.json", "quarters.json", "untuned_quarters.json"
AVERAGES = ("base.average.ema=[0.98]", "base.average.tail=[0.25]")
DECODER = ("decoding.length=40", "decoding.steps=40", "decoding.block=8", "generate_batch=96")
"""That of the recipe, as an evaluation is told."""
BRIEF = ("base.data.test_rows=1", "base.untuned=false")
"""Runs of which only the NLL is looked at."""
DRAWS = "base.eval_draws=4"
"""Draws of each held-out row, for the last weights and for each average of them."""


@dataclass(frozen=True)
class Study:
    """One study in a folder.

    Args:
        real: the folder of ``studies/real_model``, for the part on its model.
    """

    out: Path
    size: Size = FULL
    jobs: int = 1
    real: Path = Path("runs/real_model")

    def folder(self, part: str, row: Row) -> Path:
        """The folder of a row's experiment in a part."""
        return self.out / part / row.folder

    def tune(self) -> None:
        """Every row at every learning rate, on a seed of its own."""
        for row in ROWS:
            rates = f"learning_rates={_list(self.size.rates)}"
            self._experiment(self.folder("tune", row), row, self.size.tuning, rates, *BRIEF)

    def rates(self) -> dict[str, dict[str, list[float]]]:
        """By row and learning rate the final NLLs; a diverged run has none."""
        found = {}
        for row in ROWS:
            if (file := self.folder("tune", row) / "results.json").is_file():
                runs = read_json(file)["runs"]
                found[row.name] = {rate: nlls_at(runs, row.method, float(rate)) for rate in self.size.rates}
        return found

    def final(self) -> None:
        """Every row at its best learning rate, with every seed; Standard at other budgets too."""
        tuned, many = self.rates(), len(self.size.rates) * len(self.size.tuning)
        for row in ROWS:
            if self._runs_of_tuning(row) < many:
                raise SystemExit(f"row '{row.name}': expected {many} runs of its tuning; make --only tune first")
            rate = best_rate(tuned[row.name])
            more = [f"base.trainer.learning_rate={rate}", f"base.data.test_rows={self.size.rows}", *AVERAGES, DRAWS]
            if row == BASE:
                more.append(f"standard_at={_list(self.size.multiples)}")
            self._experiment(self.folder("final", row), row, self.size.seeds, *more)

    def _runs_of_tuning(self, row: Row) -> int:
        file = self.folder("tune", row) / "results.json"
        return len(read_json(file)["runs"]) if file.is_file() else 0

    def likelihood(self) -> None:
        """The exact likelihood of test rows under the decoder, of every row's runs."""
        for run in self._without(LIKELIHOOD):
            words = ["eval", "--model", run / "model", "data.train=synthetic:hard", "likelihood.kinds=[duel]"]
            words += ["data.pad_response_to=40", *DECODER, "--rows", self.size.rows, "beside=none"]
            words += ["--out", run / "eval"]
            command(*words)
            (run / "eval" / "eval.json").rename(run / LIKELIHOOD)

    def quarters(self) -> None:
        """From which mask ratios the bound of every row's runs comes."""
        from studies.objectives.quarters import quarters_of

        if not (file := self.out / UNTUNED).is_file():
            write_json(file, {"nats_per_token": quarters_of("tiny", RECIPE)})
        for run in self._without(PARTS):
            print(f"{run}: the bound by mask ratio", flush=True)
            write_json(run / PARTS, {"nats_per_token": quarters_of(run / "model", RECIPE)})

    def _without(self, file: str) -> Iterator[Path]:
        """The folders of the final runs whose model is there and that hold no such file yet."""
        runs = (self._run(row, row.method, seed) for row in ROWS for seed in self.size.seeds)
        return (run for run in runs if (run / "model").is_dir() and not (run / file).is_file())

    def _run(self, row: Row, method: str, seed: int) -> Path:
        return self.folder("final", row) / "runs" / method / f"seed-{seed}"

    def windows(self) -> None:
        """Standard on the mask ratios from a lowest one up to 1, at the recipe's learning rate."""
        for low in self.size.lows:
            words = [f"methods=[{STANDARD}]", f"seeds={_list(self.size.seeds[: self.size.few])}"]
            words += [f"base.objective.window=[{low:g},1]", f"out={self.out / 'windows' / f'{low:g}'}", *self.size.more]
            words += [f"base.data.test_rows={self.size.rows}", DRAWS, "base.untuned=false"]
            command("experiment", RECIPE, *words, "--jobs", self.jobs)

    def stability(self) -> None:
        """The bound with either noise over a grid of learning rates, clipped or not."""
        words = [
            f"methods={_list((STANDARD, LESS))}",
            f"out={self.out / 'stability'}",
            *self.size.more,
            *self.size.grid,
        ]
        command("experiment", GRID, *words, "--jobs", self.jobs)

    def on_real_model(self) -> None:
        """A short adaptation of a converted model by some rows, where ``studies/real_model`` converted it."""
        model = self.real / "models" / "shift"
        if not (model.is_dir() and (self.real / "text" / "text.json").is_file()):
            print(f"{self.real}: no converted model there, which studies/real_model makes; the part real is left out")
            return
        more = [f"base.data.{key}=gsm8k:{self.real / 'text' / name}.jsonl" for key, name in REAL_ROWS.items()]
        more += [f"base.model={model}", *in_float32("base.trainer.bf16=false"), *self.size.real_more]
        for row in ROWS:
            if row.name in self.size.real_rows:
                curve = [f"standard_at={_list(self.size.real_multiples)}"] if row == BASE else []
                self._experiment(self.folder("real", row), row, self.size.real, *more, *curve, recipe=REAL)

    def _experiment(self, out: Path, row: Row, seeds: Iterable[int], *more: str, recipe: Path = RECIPE) -> None:
        words = [f"methods=[{row.method}]", f"seeds={_list(seeds)}", f"out={out}"]
        more = (*(self.size.more if recipe == RECIPE else ()), *more)
        words += [f"base.objective.name={row.objective}", *budget(row, recipe, more), *more]
        command("experiment", recipe, *words, "--jobs", self.jobs)

    @property
    def parts(self) -> dict[str, Callable[[], None]]:
        """What makes each part, in their order."""
        return {
            "tune": self.tune,
            "final": self.final,
            "likelihood": self.likelihood,
            "quarters": self.quarters,
            "windows": self.windows,
            "stability": self.stability,
            "real": self.on_real_model,
            "page": self.write,
        }

    def write(self) -> None:
        """Gather what is finished and write the page of it."""
        from studies.objectives.page import write_page

        folder = HERE if self.size is FULL else self.out / "page"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "results.json", self.gathered())
        write_page(folder)

    def gathered(self) -> dict:
        """The content of results.json, of what is finished."""
        record: dict = {
            "seeds": len(self.size.seeds),
            "rates": self.rates(),
            "rows": {},
            "stability": None,
            "windows": {},
        }
        record["real"] = self._gathered_real()
        for row in ROWS:
            if (file := self.folder("final", row) / "results.json").is_file():
                found = read_json(file)
                record["rows"][row.name] = {
                    "learning_rate": found["config"]["base"]["trainer"]["learning_rate"],
                    "runs": [_kept(run) | self._beside(row, run) for run in _all_runs(found)],
                }
                record |= {name: found[name] for name in ("versions", "device", "untuned")}
        if (file := self.out / UNTUNED).is_file():
            record["untuned_quarters"] = read_json(file)["nats_per_token"]
        for low in self.size.lows:
            if (file := self.out / "windows" / f"{low:g}" / "results.json").is_file():
                record["windows"][f"{low:g}"] = [_kept(run) for run in read_json(file)["runs"]]
        if (file := self.out / "stability" / "results.json").is_file():
            found = read_json(file)
            kept = [_kept(run) for run in found["runs"]]
            record["stability"] = {"status": found["status"], "rates": found["rates"], "runs": kept}
        return record

    def _gathered_real(self) -> dict:
        found = {row: self.folder("real", row) / "results.json" for row in ROWS}
        found = {row.name: read_json(file) for row, file in found.items() if file.is_file()}
        rows = {name: {"runs": [_kept(run) for run in _all_runs(record)]} for name, record in found.items()}
        about = next(({key: record[key] for key in ("device", "untuned")} for record in found.values()), {})
        return {"seeds": len(self.size.real), "rows": rows} | about

    def _beside(self, row: Row, run: dict) -> dict:
        """What was measured of a run's model after it."""
        folder, found = self._run(row, run["method"], run["seed"]), {}
        if (file := folder / LIKELIHOOD).is_file():
            found["metrics"] = run["metrics"] | {"duel_nll": read_json(file)["metrics"]["duel_nll"]}
        if (file := folder / PARTS).is_file():
            found["quarters"] = read_json(file)["nats_per_token"]
        return found


def nlls_at(runs: Sequence[dict], method: str, rate: float) -> list[float]:
    """The final NLLs of a method's runs at a learning rate."""
    return list(values_of([run for run in runs if run["learning_rate"] == rate], method, METRIC).values())


def best_rate(found: dict[str, list[float]]) -> str:
    """The learning rate with the least mean NLL among those at which the most runs ended; the lowest such.

    Raises:
        ValueError: no run ended at any rate.
    """
    most = max(map(len, found.values()), default=0)
    if not most:
        raise ValueError(f"expected a learning rate at which a run ended, found none among {', '.join(found)}")
    return min((rate for rate in found if len(found[rate]) == most), key=lambda r: (fmean(found[r]), float(r)))


def _list(values: Iterable[object]) -> str:
    return f"[{','.join(map(str, values))}]"


def _all_runs(record: dict) -> list[dict]:
    """An experiment's runs, and those of Standard at other budgets."""
    return [*record["runs"], *record.get("reference_runs", ())]


def _kept(run: dict) -> dict:
    return {key: run[key] for key in KEPT if key in run}


def command(*words: object) -> None:
    """One of the library's commands, shown as it is."""
    print("$ stabledllm", *words, flush=True)
    subprocess.run([sys.executable, "-m", "stabledllm", *map(str, words)], check=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"), help="folder for everything it makes")
    parser.add_argument("--only", choices=Study(Path()).parts, help="one part, of which the parts before it are done")
    parser.add_argument("--jobs", type=int, default=1, help="training runs at the same time")
    parser.add_argument("--real", type=Path, default=Path("runs/real_model"), help="folder of studies/real_model")
    parser.add_argument("--rehearse", action="store_true", help="two seeds of few steps: does every part run?")
    given = parser.parse_args(words)
    study = Study(given.out, SMALL if given.rehearse else FULL, given.jobs, given.real)
    for name, make in study.parts.items():
        if given.only in (None, name):
            make()


if __name__ == "__main__":
    main()

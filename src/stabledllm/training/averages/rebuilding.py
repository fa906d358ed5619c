"""Rebuilds a power-function average of any width from the snapshots of a run, after it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from stabledllm.build import loading_options
from stabledllm.config.given_keys import known
from stabledllm.config.run_folder import RUN, SCHEMA, run_of
from stabledllm.config.settings import ModelSettings
from stabledllm.config.settings.average import WIDEST
from stabledllm.errors import UserError
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.runtime.files import read_json, reading, write_json
from stabledllm.runtime.provenance import versions
from stabledllm.runtime.showing import busy
from stabledllm.training.averages.fitting import Fit, fit
from stabledllm.training.averages.held import counted_in, plain_name
from stabledllm.training.averages.places import AVERAGES, snapshots_in
from stabledllm.training.averages.rules import Rule
from stabledllm.training.checkpoints import stamp

_COARSE = 0.02
"""Share of misplaced weight above which more snapshots are advised."""
RECORD = "average.json"
RECORD_SCHEMA = "stabledllm/average/1"


@dataclass(frozen=True)
class Rebuilding:
    """An average that a run's snapshots are to give.

    ``wanted``, after ``step`` steps. ``files``: the stored averages that it is made of. ``fit``: how.
    """

    run: Path
    wanted: Rule
    step: int
    files: list[Path]
    fit: Fit

    def told(self) -> str:
        """A sentence on what the average is made of, and how near it comes."""
        of = "one stored average" if len(self.files) == 1 else f"{len(self.files)} stored averages"
        more = "; more snapshots (average.snapshots) come nearer" if self.fit.mismatch > _COARSE else ""
        return (
            f"{self.wanted.name} after step {self.step} from {of}: {self.fit.mismatch:.2%} of the weight lies on other "
            f"steps than it would, so that it differs from the average that the run would have kept by at most "
            f"{self.fit.mismatch:.2g} of the largest distance between the weights after two of its steps{more}"
        )


def plan_rebuilding(run: Path, width: float, step: int | None = None) -> Rebuilding:
    """Find a run's snapshots and the coefficients of their averages; reads no weights.

    Args:
        step: the number of steps after which the average is meant, that of a snapshot; without it the last one's.

    Raises:
        UserError: no run, one without snapshots or without one after ``step``, or a width that no average has.
    """
    if not 0 < width <= WIDEST:
        raise UserError(f"average: expected a --power above 0 and up to {WIDEST}, found {width:g}.")
    found = run_of(str(run))
    if found is None:
        raise UserError(f"average: expected the folder of a training run that has ended, found {run}.")
    every = ((n, sorted(folder.glob("power-*.safetensors"))) for n, folder in snapshots_in(found.folder))
    snapshots = {n: paths for n, paths in every if paths}
    if not snapshots:
        raise UserError(
            f"{found.folder}: expected snapshots of power-function averages in {AVERAGES}/, found none; train with "
            f"average.power=[0.05,0.1]."
        )
    at = max(snapshots) if step is None else step
    if at not in snapshots:
        listed = ", ".join(map(str, snapshots))
        raise UserError(f"average: expected --step to be that of a snapshot ({listed}), found {at}.")
    files = [path for n, paths in snapshots.items() if n <= at for path in paths]
    stored = [_stored(path) for path in files]
    wanted = Rule("power", width)
    return Rebuilding(found.folder, wanted, at, files, fit(stored, wanted, at))


def rebuild(plan: Rebuilding, folder: Path) -> dict:
    """Write the model with the rebuilt average into an empty folder, and return the record that is written beside it.

    Raises:
        UserError: the snapshots are of other weights than those that the run's model has.
    """
    run = run_of(str(plan.run))
    settings = ModelSettings.model_validate(known(run.config, ModelSettings))
    loaded = load_model(str(run.model), **(loading_options(settings) | {"init_seed": None}))
    with busy(f"averaging {len(plan.files)} files"):
        _fill(loaded, plan.files, plan.fit.coefficients)
    loaded.save(folder)
    record = {
        "schema": RECORD_SCHEMA,
        "run": str(plan.run),
        "average": plan.wanted.name,
        "step": plan.step,
        "of": [path.relative_to(plan.run / AVERAGES).as_posix() for path in plan.files],
        **asdict(plan.fit),
        "versions": versions(),
    }
    write_json(folder / RECORD, record)
    if (plan.run / RUN).is_file():
        stamp(folder, read_json(plan.run / RUN, SCHEMA)["identity"], None)
    return record


@torch.no_grad()
def _fill(loaded: LoadedModel, files: Sequence[Path], coefficients: Sequence[float]) -> None:
    """Set the model's weights that the files hold to their mean, summed in float64 and rounded once."""
    weights = {plain_name(name): weight for name, weight in loaded.model.named_parameters()}
    with ExitStack() as stack:
        opened = []
        for path in files:
            with reading(path):
                opened.append(stack.enter_context(safe_open(path, framework="pt")))
        for path, file in zip(files, opened, strict=True):
            if set(file.keys()) != set(opened[0].keys()) or not set(file.keys()) <= set(weights):
                raise UserError(f"{path}: expected averages of the weights of the run's model, found others.")
        for key in opened[0].keys():  # noqa: SIM118, no dictionary
            parts = (x * file.get_tensor(key).double() for x, file in zip(coefficients, opened, strict=True))
            weights[key].copy_(sum(parts))


def _stored(path: Path) -> tuple[Rule, int]:
    """The rule of a stored average, and the number of steps in it."""
    with reading(path), safe_open(path, framework="pt") as file:
        name, counted = counted_in(file, path)
    return Rule("power", float(name.removeprefix("power-"))), counted

"""What ``--dry-run`` says: what a command would load, draw and write, and the memory that it would take.

Everything here follows from the settings, from names and sizes of files, and from the shape of the model.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from stabledllm.build import build_method, build_methods
from stabledllm.cli.dry_run_noise import of_noise
from stabledllm.cli.stopping import work_in
from stabledllm.config.settings import (
    DataSettings,
    DecomposeSettings,
    EvalSettings,
    ExperimentSettings,
    GenerateSettings,
    ModelSettings,
    TrainSettings,
)
from stabledllm.data.kinds import kind_of
from stabledllm.data.splits import has_test, has_validation, is_held_out
from stabledllm.experiment.grid import counted
from stabledllm.experiment.planned import Planned
from stabledllm.experiment.side_by_side import SideBySide
from stabledllm.lab.from_settings import build_measuring, build_probing
from stabledllm.lab.measure.plan import forwards_of_losses, probe_of_losses
from stabledllm.models.shapes import known_shape
from stabledllm.noise.methods import Method
from stabledllm.planning.advice import gib
from stabledllm.planning.environment import launched_layout
from stabledllm.planning.memory import estimate
from stabledllm.runtime.device import asked

_MANY = 10**9
"""More rows than any data have, where their number is not known before they are read."""
_BYTES = {"float32": 4, "bfloat16": 2}
_INDENT = 12


def of_train(run: TrainSettings) -> Iterator[str]:
    """Yields what a training run would do."""
    method = build_method(run.method, run)
    yield _BEGINNING
    yield _line("load", _model(run, training=True))
    yield from _rows_of_training(run.data)
    if method.needs_p and not run.p_of_t:
        yield _line("probe", f"p(t) of {run.method}: {_probed(method, run)}")
    yield _line("train", _steps(run, method))
    if run.objective.kind == "grpo":
        yield _line("draw", _rollouts(run))
    for number, line in enumerate(_evaluated(run)):
        yield _line("" if number else "evaluate", line)
    saved = f"checkpoints every {run.save_every:,} steps, " if run.save_every else "no checkpoint (save_every), "
    completions = ", completions" if has_test(run.data) else ""
    drawn = ", rollouts" if run.objective.kind == "grpo" else ""
    averages = f", {run.average.count} averages of it" if run.average.count else ""
    yield _line("write", f"{_folder(run.out)}: {saved}model{averages}, run.json{completions}{drawn}")
    yield from _memory([run])


def of_experiment(settings: ExperimentSettings, runs: Sequence[Planned], beside: SideBySide) -> Iterator[str]:
    """Yields what an experiment would do."""
    base, seeds = settings.base, settings.seeds
    yield _BEGINNING
    yield _line("load", _model(base, training=True))
    yield from _rows_of_training(base.data)
    kinds = [run for run in runs if run.cell == runs[0].cell]
    yield _line("train", f"{counted(settings)} x {_counted(len(seeds), 'seed')} = "
                f"{_counted(len(runs) * len(seeds), 'run')}, at equal "
                f"{settings.equal}{'; ' + beside.sentence() if beside.jobs > 1 else ''}")  # fmt: skip
    for planned in kinds:
        probed = f"; p(t) once: {_probed(planned.method, base)}" if planned.method.needs_p else ""
        longer = f", {planned.multiple:g} times Standard's forward passes" if planned.multiple != 1 else ""
        yield _line("", f"{planned.settings.method}: {planned.settings.batch} rows a step{longer}{probed}")
    yield _line("write", f"{_folder(settings.out)}: results.json, runs/METHOD/{runs[0].cell.pattern}seed-N with the "
                f"model of each")  # fmt: skip
    yield from _memory([planned.settings for planned in kinds])


def of_decompose(settings: DecomposeSettings) -> Iterator[str]:
    """Yields what a decomposition would do."""
    if settings.objective.kind != "masked":
        measured = of_noise(settings)
        yield _BEGINNING
        yield _line("load", f"{_model(settings)}{measured.beside}")
        yield _line("rows", _source(settings.data.train))
        yield from (_line(*each) for each in measured.lines)
        yield _line("write", f"{_folder(settings.out, replaced=True)}: {measured.file}")
        return
    methods, rows = build_methods(settings), settings.data.train_rows or _MANY
    yield _BEGINNING
    yield _line("load", _model(settings))
    yield _line("rows", _source(settings.data.train))
    forwards = forwards_of_losses(build_measuring(settings), methods, rows)
    yield _line("draw", f"{forwards:,} forward passes for the loss of {len(methods)} methods, where there are rows "
                f"enough")  # fmt: skip
    if settings.gradient:
        grad = settings.grad
        yield _line(
            "", f"and backward passes for the gradient: {grad.rows} rows, and {grad.steps} steps of each method"
        )
    yield _line("write", f"{_folder(settings.out, replaced=True)}: decomposition.json and its figures")
    yield _weights(settings)


def of_fit(settings: TrainSettings) -> Iterator[str]:
    """Yields what a fit of p(t) would do."""
    method = build_method(settings.method, settings)
    yield _BEGINNING
    pairs = settings.objective.kind == "dpo"
    yield _line("load", _model(settings) + (f"; against {settings.dpo.reference}" if pairs else ""))
    yield _line("rows", _source(settings.data.train))
    twice = " of policy and as many of reference" if pairs and method.signal == "loss" else ""
    yield _line("probe", f"{settings.method}: {_probed(method, settings)}{twice}")
    yield _line("write", f"{_folder(settings.out, replaced=True)}: p_of_t.json and its figure")
    yield _weights(settings)


def of_eval(settings: EvalSettings) -> Iterator[str]:
    """Yields what an evaluation would do."""
    decoding, data = settings.decoding, settings.data.test or settings.data.train
    yield _BEGINNING
    yield _line("load", _model(settings))
    if settings.beside != "none":
        yield _line("", f"and the untuned model beside it ({settings.beside})")
    if settings.held_out:
        yield _line("rows", f"those that training holds out of {_source(settings.data.train)}, at most "
                    f"{settings.data.validation_rows} for the NLL")  # fmt: skip
    else:
        yield _line("rows", f"at most {settings.rows} of {_source(data)}")
    rows = settings.data.validation_rows if settings.held_out else settings.rows
    forwards, views = (rows or settings.rows) * settings.draws, _counted(settings.draws, "view")
    yield _line("evaluate", f"NLL: at most {forwards:,} forward passes ({views} of a row)")
    if asked := settings.likelihood.kinds:
        yield _line("", f"likelihoods: {', '.join(asked)}, whose forwards depend on the rows' lengths")
    yield _line("", f"completions of {decoding.length} tokens in {decoding.calls} model calls for every "
                f"{settings.generate_batch} rows")  # fmt: skip
    yield _line("write", f"{_folder(settings.out)}: eval.json, nll.jsonl, completions.jsonl")
    yield _weights(settings)


def of_generate(settings: GenerateSettings, prompts: Sequence[object], *, image: bool) -> Iterator[str]:
    """Yields what would be generated."""
    yield _BEGINNING
    yield _line("load", _model(settings))
    if image:
        yield _line("draw", f"{_counted(len(prompts), 'picture')} in {settings.image_decoding.steps} model calls each")
        yield _line("write", f"{settings.out or 'runs/pictures/N'}: a PNG of each and a contact sheet")
    else:
        decoding = settings.decoding
        many = _counted(len(prompts), "prompt")
        yield _line("complete", f"{many}, {decoding.length} tokens each, in {decoding.calls} model calls for every "
                    f"{settings.generate_batch}")  # fmt: skip
        yield _line("write", settings.out or "nothing: completions are printed")
    yield _weights(settings)


_BEGINNING = "All in order. This is a dry run: nothing was loaded or written. It would:"


def _line(what: str, text: str) -> str:
    """A line of the list, broken between words where it is longer than the terminal is wide."""
    width = max(_INDENT + 20, shutil.get_terminal_size((1000, 24)).columns)
    return textwrap.fill(f"  {what:9s} {text}", width, subsequent_indent=" " * _INDENT, break_on_hyphens=False)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _size(size: float) -> str:
    return (
        gib(size)
        if size >= 0.1 * 2**30
        else f"{size / 2**20:.1f} MiB"
        if size >= 0.1 * 2**20
        else f"{size / 2**10:.1f} KiB"
    )


def _model(settings: ModelSettings, *, training: bool = False) -> str:
    shape, lora = known_shape(settings.model), getattr(settings, "lora", None)
    size = f"{shape.parameters:,} parameters" if shape else "its size is known once it is loaded"
    if shape and training:
        trained = shape.lora_parameters(lora.rank, lora.target_modules) if lora else shape.parameters
        size += f", {trained:,} trained"
    return f"model {settings.model}: {size}; {settings.dtype}, on {asked() or 'the device that is there'}"


def _source(spec: str) -> str:
    kind, where = kind_of(spec)
    path = Path(where).expanduser() if where else None
    if path is not None and path.is_file():
        return f"{spec} ({_size(path.stat().st_size)})"
    return f"{spec} ({kind})" if kind != spec.partition(":")[0] else spec


def _rows_of_training(data: DataSettings) -> Iterator[str]:
    most = f"at most {data.train_rows:,} of " if data.train_rows else ""
    how = ", read as they come" if data.streaming else ""
    yield _line("rows", f"{most}{_source(data.train)}, of at most {data.max_len:,} tokens{how}")
    if data.validation:
        yield _line("", f"validation: {_source(data.validation)}")
    elif not has_validation(data):
        yield _line("", "no validation: every row is trained on")
    elif is_held_out(data):
        yield _line("", f"validation: {data.validation_share:.3g} of them, held out")


def _evaluated(run: TrainSettings) -> Iterator[str]:
    if has_validation(run.data):
        every = f"every {run.eval_every:,} steps and at the end" if run.eval_every else "at the end"
        most = f"at most {run.data.validation_rows:,}" if run.data.validation_rows else "all"
        yield f"NLL of {most} rows x {run.eval_draws} views, {every}"
    if has_test(run.data):
        many = "all" if run.data.test_rows is None else f"{run.data.test_rows:,}"
        yield f"{many} completions of {run.decoding.length} tokens in {run.decoding.calls} model calls"
    if not has_validation(run.data) and not has_test(run.data):
        yield "nothing, as there are no validation or test rows"


def _probed(method: Method, run: TrainSettings) -> str:
    if method.signal != "loss":
        return "gradients or the output layer's, row by row"
    return f"{probe_of_losses(method, build_probing(run.ppots), run.data.train_rows or _MANY):,} forward passes"


def _steps(run: TrainSettings, method: Method) -> str:
    if run.objective.kind != "masked":
        steps = f"{run.steps:,} steps" if run.steps else f"{run.epochs:g} passes over the rows, in steps"
        return f"{steps} of {_of_responses(run)}"
    views = method.views.count
    each = f"{run.batch} rows" + (f" x {views} views" if views > 1 else "")
    if run.steps is None:
        return f"{run.epochs:g} passes over the rows, in steps of {each}, by {run.method}"
    asked = {"lift": views, "gift": 1}.get(run.objective.tokens, 0)  # forwards that choose a row's tokens
    forwards, at_most = run.steps * run.batch * (views + asked), "at most " * (views > 1 or asked > 0)
    return f"{run.steps:,} steps of {each} by {run.method}: {at_most}{forwards:,} forward passes"


def _of_responses(run: TrainSettings) -> str:
    """A step whose rows are pairs, or prompts with the responses that are drawn to them."""
    if run.objective.kind == "dpo":
        return f"{run.batch} pairs, each response by {run.dpo.budget} forwards of policy and reference"
    grpo = run.grpo
    by = f"{run.method}, " if grpo.estimator == "method" else f"{grpo.estimator}, "
    return f"{run.batch} prompts with {grpo.group} responses each, of a budget of {grpo.budget} forwards by {by}" + (
        f"{grpo.inner} steps on the same" if grpo.inner > 1 else "every step on others"
    )


def _rollouts(run: TrainSettings) -> str:
    how, responses = run.grpo.rollout, run.batch * run.grpo.group
    rounds = f"{_counted(-(-run.steps // run.grpo.inner), 'round')} of " if run.steps else ""
    return (
        f"{rounds}{responses:,} responses of at most {how.length} tokens, in {how.calls} model calls for every "
        f"{run.generate_batch}; rewards {' + '.join(run.grpo.reward)}"
    )


def _folder(out: str, *, replaced: bool = False) -> str:
    """A folder of results in words.

    Args:
        replaced: whether the command writes over results that are there, instead of going on from them.
    """
    folder = Path(out)
    if not folder.exists():
        return f"{out} (new)"
    work = work_in(folder)
    kept = "would be written over" if replaced else "would not be repeated"
    return f"{out} (there already, with {work}, which {kept})" if work else f"{out} (there already)"


def _memory(runs: Sequence[TrainSettings]) -> Iterator[str]:
    shape = known_shape(runs[0].model)
    if shape is None:
        yield _line("memory", "not known before the model is loaded")
        return
    layouts = [launched_layout(run.trainer, os.environ, run.data.max_len) for run in runs]
    needs = [estimate(run, shape, layout) for run, layout in zip(runs, layouts, strict=True)]
    most = max(needs, key=lambda memory: memory.needed)
    parts = ", ".join(f"{name} {gib(size)}" for name, size in most.parts.items() if size >= 0.05 * 2**30)
    yield _line("memory", f"at most about {gib(most.needed)} per device with rows of {layouts[0].longest} tokens "
                f"({parts})")  # fmt: skip


def _weights(settings: ModelSettings) -> str:
    shape = known_shape(settings.model)
    size = _size(shape.parameters * _BYTES[settings.dtype]) if shape else "not known before the model is loaded"
    return _line("memory", f"{size} for the weights, and what one batch needs" if shape else size)

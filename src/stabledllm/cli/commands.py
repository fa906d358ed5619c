"""What each command calls. Heavy imports live here, so that ``--help`` does not pay for them."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

# Read when tqdm is imported: a bar in a log file is a line every few seconds, not sixteen a second.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "5")
# Set before transformers is imported: no network at run time, and no advice meant for other programs.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from transformers.utils import logging as transformers_logging

from stabledllm.build import (
    build_decoding,
    build_image_decoding,
    build_method,
    build_model,
    loading_options,
)
from stabledllm.cli.new_folders import free_folder, new_folder
from stabledllm.config import ExperimentSettings, TrainSettings, load_recipe
from stabledllm.config.recipe import apply_overrides, check
from stabledllm.config.settings import (
    DataSettings,
    DecodingSettings,
    DecomposeSettings,
    EvalSettings,
    ImageDecodingSettings,
    ImageSettings,
    ModelSettings,
)
from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text
from stabledllm.runtime.failures import working_on
from stabledllm.runtime.locks import in_its_folder

Say = Callable[[str], None]
transformers_logging.disable_progress_bar()
warnings.filterwarnings("ignore", message=".*pin_memory.*")
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)  # peft's call
warnings.filterwarnings("ignore", message=".*rope_scaling.*", category=FutureWarning)  # of configs that it merely reads
logging.getLogger("torch.distributed").setLevel(logging.ERROR)


def decompose(tree: dict, overrides: Sequence[str], *, say: Say) -> None:
    """Measure, print the tables, write the JSON and the pictures."""
    from stabledllm.experiment.idle import idle_in_decompose

    settings = check(apply_overrides(tree, overrides), DecomposeSettings, "decompose")
    _say_all(idle_in_decompose(settings, overrides), say)
    _decompose(settings, say)


@in_its_folder("decompose")
def _decompose(settings: DecomposeSettings, say: Say) -> None:
    from stabledllm.lab.decompose import run_decompose
    from stabledllm.reports import save_decomposition_figures, tables

    record = run_decompose(settings, say)
    say(f"{tables.components_table(record)}\n")
    if record["methods"]:
        say(f"{tables.equal_compute_table(record)}\n")
    if record["gradient"]:
        say(f"{tables.gradient_table(record)}\n")
    for sentence in [*([record["mirror"]["sentence"]] if record["mirror"] else []), *record["notes"][1:]]:
        say(sentence)
    pictures = save_decomposition_figures(record, Path(settings.out))
    say(f"wrote {Path(settings.out) / 'decomposition.json'} and {', '.join(p.name for p in pictures)}")


def recommend(tree: dict, overrides: Sequence[str], *, stored: Path | None, by: str | None, say: Say) -> None:
    """Measure unless a decomposition is given, then say what to train with; the recipe lines come last."""
    from stabledllm.lab.recommendation import QUANTITIES
    from stabledllm.lab.recommendation import recommend as choose
    from stabledllm.reports.stored import read

    if by is not None and by not in QUANTITIES:
        raise UserError(f"recommend: expected --by {' or '.join(QUANTITIES)}, found '{by}'.")
    if stored is None:
        decompose(tree, overrides, say=say)
        stored = Path(check(apply_overrides(tree, overrides), DecomposeSettings, "recommend").out)
    elif overrides:
        raise UserError(f"recommend: expected no settings beside --from, found '{overrides[0]}'.")
    found = choose(read(stored / "decomposition.json" if stored.is_dir() else stored, "decomposition"), by)
    say("\n" + "\n".join(found.sentences))
    say(f"\n# stabledllm train recipe.yaml\n{found.recipe}")


def fit(tree: dict, overrides: Sequence[str], *, say: Say) -> None:
    """Probe, fit, and write ``p_of_t.json`` with its picture."""
    from stabledllm.data.images import settled
    from stabledllm.experiment.idle import idle_in_fit

    settings = settled(check(apply_overrides(tree, overrides), TrainSettings, "fit"))
    _say_all(idle_in_fit(settings, overrides), say)
    _fit(settings, say)


@in_its_folder("fit")
def _fit(settings: TrainSettings, say: Say) -> None:
    from stabledllm.data.bundle import load_rows
    from stabledllm.data.rows import marks_in
    from stabledllm.lab.probe_and_fit import probe_and_fit
    from stabledllm.noise.fits import check_fitted, check_marks, check_model
    from stabledllm.reports import save_fit_figure
    from stabledllm.training.run import set_form

    method = build_method(settings.method, settings)
    check_fitted(method)
    loaded = build_model(settings)
    check_model(method, loaded.name, loaded.autoregressive)
    set_form(loaded, settings)
    rows, note = load_rows(settings.data.train, loaded.tokenizer, settings.data, "train", settings.data.train_rows)
    say(note)
    check_marks(method, marks_in(rows))
    density = probe_and_fit(
        loaded,
        rows,
        method,
        settings.ppots,
        settings.seed,
        settings.batch,
        block_size=settings.block_size,
    )
    path = Path(settings.out) / "p_of_t.json"
    density.save(path)
    say(density.summary())
    for note in density.notes:
        say(f"note: {note}")
    if proxy := density.record.get("proxy"):
        say(
            f"the output layer for the whole gradient: correlation over t {proxy['correlation']:.3f}, second moment "
            f"{proxy['excess']:+.1%} against p fitted to the gradient itself"
        )
    if parameters := density.record["parameters"]:
        say("EPR: " + ", ".join(f"{name} = {value:.4g}" for name, value in parameters.items()))
    say(f"wrote {path} and {save_fit_figure(density.record, path.with_suffix('.png')).name}")


def train(recipe: str, overrides: Sequence[str], *, say: Say) -> None:
    """One run."""
    settings = load_recipe(recipe, overrides)
    if isinstance(settings, ExperimentSettings):
        raise UserError(
            f"recipe '{recipe}': expected a training recipe, found an experiment; use 'stabledllm experiment'."
        )
    from stabledllm.experiment.idle import idle_overrides
    from stabledllm.experiment.planned import runs_of
    from stabledllm.experiment.validation import check_run
    from stabledllm.runtime.launched import is_main_process
    from stabledllm.training.run import train as run

    (planned,) = runs = runs_of(settings)
    check_run(planned)
    notes = idle_overrides(settings, runs, overrides)
    if is_main_process():
        _say_all(notes, say)
    run(settings, say=say)


def experiment(
    recipe: str, overrides: Sequence[str], *, say: Say, jobs: int | None, devices: str | None, wait: bool
) -> None:
    """Methods x seeds."""
    settings = load_recipe(recipe, overrides)
    if isinstance(settings, TrainSettings):
        raise UserError(
            f"recipe '{recipe}': expected an experiment with 'methods', found a training recipe; use 'train'."
        )
    from stabledllm.experiment.idle import idle_overrides
    from stabledllm.experiment.planned import runs_of
    from stabledllm.experiment.run import run_experiment
    from stabledllm.experiment.validation import check_run
    from stabledllm.reports import tables
    from stabledllm.training.arguments import training_arguments

    runs = runs_of(settings)
    for planned in runs:
        check_run(planned)
        training_arguments(planned.settings)
    _say_all(idle_overrides(settings, runs, overrides), say)
    numbers = [number.strip() for number in devices.split(",")] if devices else []
    if devices and not all(numbers):
        raise UserError(f"experiment: expected --devices such as 0,1,2, found '{devices}'.")
    count = jobs if jobs is not None else max(1, len(numbers))
    with working_on(settings.out):
        results = run_experiment(settings, say, count, devices=numbers, wait=wait)
    for metric in ("validation_nll", "validation_objective", "accuracy", "clip_score"):
        if any(entry["metric"] == metric for entry in results["summary"]):
            say(f"{tables.metrics_table(results, metric)}\n")
            if spread := tables.spread_table(results, metric):
                say(f"{spread}\n")
    for sentence in [*results["statements"], *results["notes"]]:
        say(sentence)
    say(f"wrote {Path(settings.out) / 'results.json'}")


def power(
    difference: float,
    *,
    sd: float | None,
    correlation: float,
    stored: Path | None,
    metric: str,
    methods: int | None,
    wanted: float,
    say: Say,
) -> None:
    """Seeds needed, from an sd or from the runs of an experiment."""
    from stabledllm.experiment.power import sd_of_differences, seeds_from_runs, seeds_needed
    from stabledllm.experiment.spread import values_of
    from stabledllm.reports.stored import read, run_methods

    if (sd is None) == (stored is None):
        raise UserError("power: expected either --sd or --from, found both or neither.")
    if sd is not None:
        if not -1 <= correlation <= 1:
            raise UserError(f"power: expected a correlation in [-1, 1], found {correlation:g}.")
        spread = sd_of_differences(sd, correlation)
        found = seeds_needed(difference, spread, wanted=wanted, methods=methods or 1)
        say(f"{found or 'over 100,000'} seeds (differences of sd {spread:.3g}, {wanted:.0%} power, 5 % two-sided)")
        return
    results = read(stored / "results.json" if stored.is_dir() else stored, "results")
    found = {name: values_of(results["runs"], name, metric) for name in run_methods(results)}
    values = {name: mine for name, mine in found.items() if mine}
    if "standard" not in values or len(values) < 2:
        raise UserError(f"{stored}: expected runs of Standard and of another method with '{metric}', found none.")
    count = methods or len(values) - 1
    for name, mine in values.items():
        if name != "standard" and (
            found := seeds_from_runs(mine, values["standard"], difference, wanted=wanted, methods=count)
        ):
            low, many, high = (found[key] or "over 100,000" for key in ("seeds_low", "seeds", "seeds_high"))
            say(
                f"{name}: {many} seeds ({low} to {high}, as its sd {found['sd']:.3g} is known from {found['n']} seeds "
                f"only; {wanted:.0%} power, {count} methods compared)"
            )


def merge(adapter: str, out: Path, *, base: str | None, dtype: str, say: Say) -> None:
    """Write the base with the adapter added to its weights, in the base's own layout."""
    import torch

    from stabledllm.models.adapters import merged
    from stabledllm.models.loading import load_model
    from stabledllm.models.soundness import check_finite

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise UserError(f"merge: expected --dtype {', '.join(kinds)}, found '{dtype}'.")
    with new_folder(out, "merge") as (folder, _):
        # Added in float32 whatever is written, so that it is rounded once.
        whole = merged(load_model(adapter, base=base))
        whole.model.to(kinds[dtype])
        check_finite(whole.model, f"merge '{adapter}' in {dtype}")
        whole.save(folder)
    say(f"wrote {out}")


def generate(prompts: Sequence[str], model: str, sizes: dict[str, int], decoding: Sequence[str], loading: dict) -> None:
    """Print each prompt with its completion, and on standard error what it took."""
    from stabledllm.decoding import DecodingStats
    from stabledllm.evaluation.accuracy import complete
    from stabledllm.models.loading import load_model

    options = build_decoding(_decoding(sizes, decoding))
    _refuse_unfit(prompts)
    loaded = load_model(model, **_loading(model, loading))
    stats, conversations = DecodingStats(), [[{"role": "user", "content": p}] for p in prompts]
    for prompt, text in zip(prompts, complete(loaded, conversations, options, 32, stats=stats), strict=True):
        # A model or a file of prompts may hold escape sequences; a terminal would obey them.
        print(plain_text(f"{prompt}\n{text}\n", longest=None, keep="\n\t"), flush=True)
    exact = options.exact_for(getattr(loaded.model.config, "block_size", None))
    print(
        f"{stats.model_calls} model calls, {stats.tokens} tokens, {stats.tokens_per_second:.3g} tokens/s"
        f"{'' if exact else ' (approximate decoding)'}",
        file=sys.stderr,
    )


def generate_images(
    captions: Sequence[str],
    model: str,
    steps: int | None,
    settings: Sequence[str],
    out: Path | None,
    loading: dict,
    *,
    say: Say,
) -> None:
    """A PNG for every caption and a contact sheet of them, in a new folder."""
    from tqdm import tqdm

    from stabledllm.data.images import image_tokenizer, settled_image
    from stabledllm.decoding import DecodingStats
    from stabledllm.evaluation.images import draw_codes, save_drawn
    from stabledllm.evaluation.untuned import resolve
    from stabledllm.models.loading import load_model

    _refuse_unfit(captions)
    of_data = [override for override in settings if override.startswith("data.image.")]
    own = [override for override in settings if override not in of_data]
    tree = apply_overrides({} if steps is None else {"steps": steps}, own)
    options = build_image_decoding(check(tree, ImageDecodingSettings, "image decoding"))
    image = check(apply_overrides({"data": {}}, of_data)["data"], DataSettings, "generate").image
    model, stats = resolve(model), DecodingStats()
    image = settled_image(image, model)
    place = free_folder(Path("runs", "pictures"), "generate") if out is None else new_folder(out, "generate")
    with place as (folder, becomes):
        loaded = load_model(model, **_loading(model, loading))
        with tqdm(total=len(captions), desc="draw", unit="picture") as bar:
            codes = draw_codes(loaded, captions, image, options, 16, progress=bar.update, stats=stats)
        paths = save_drawn(image_tokenizer(image.tokenizer).decode(codes), captions, folder)
    for path in paths:
        say(str(becomes / path.name))
    print(f"{stats.model_calls} model calls, {stats.seconds:.3g} s", file=sys.stderr)


def _say_all(lines: Sequence[str], say: Say) -> None:
    for line in lines:
        say(line)


def _refuse_unfit(prompts: Sequence[str]) -> None:
    if not prompts:
        raise UserError("generate: expected at least one prompt, found none.")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise UserError(f"generate: prompt {number}: expected some text, found an empty one.")
        if any("\ud800" <= c <= "\udfff" for c in prompt):
            raise UserError(f"generate: prompt {number}: expected UTF-8 text, found a byte that is not.")


def encode(data: str, split: str, rows: int | None, seed: int, overrides: Sequence[str], *, say: Say) -> None:
    """Codes of pictures on disk, and how to train on them."""
    from stabledllm.data.images import are_pictures, dropped_note, image_tokenizer
    from stabledllm.data.images import encode as run

    if not are_pictures(data):
        raise UserError(f"encode: expected pictures (scenes, text-to-image-2m, images:PATH), found '{data}'.")
    settings = check(apply_overrides({}, overrides), ImageSettings, "encode")
    if settings.tokenizer is None:
        if not data.startswith("scenes"):
            raise UserError("encode: expected tokenizer=NAME, such as showlab/magvitv2, found none.")
        settings = settings.model_copy(update={"tokenizer": "tiny-vq"})
    if settings.side is None:
        settings = settings.model_copy(update={"side": image_tokenizer(settings.tokenizer).side})
    found = run(data, split=split, n=rows or 0, seed=seed, settings=settings)
    if told := dropped_note(found):
        say(told)
    say(f"{len(found)} pictures of {found.side} x {found.side}, codes of '{found.tokenizer}': {found.folder}")
    say(f"to train on them: data.train=codes:{found.folder}")


def evaluate(tree: dict, sizes: dict[str, int], overrides: Sequence[str], loading: dict, *, say: Say) -> None:
    """NLL and accuracy, with their errors, into ``eval.json``; on the launcher's ranks."""
    from stabledllm.evaluation.run import evaluate as run
    from stabledllm.experiment.idle import idle_in_eval
    from stabledllm.runtime.launched import is_main_process

    apart = [override for override in overrides if override.startswith(("data.", "image_decoding.", "clip="))]
    decoding = _decoding(sizes, [override for override in overrides if override not in apart])
    tree = apply_overrides(tree | loading | {"decoding": decoding.model_dump()}, apart)
    settings = check(tree, EvalSettings, "eval")
    notes = idle_in_eval(settings, apart)
    if is_main_process():
        _say_all(notes, say)
    run(settings, say)


def validate(recipe: str, overrides: Sequence[str]) -> str:
    """One line that says what the recipe is; raises on the first thing wrong with it."""
    from stabledllm.experiment.idle import idle_overrides
    from stabledllm.experiment.validation import validate as check_recipe

    settings = load_recipe(recipe, overrides)
    said = check_recipe(settings)
    return "\n".join([*idle_overrides(settings, overrides), f"{recipe}: {said}, in order"])


def plan(
    recipe: str, overrides: Sequence[str], *, devices: int, sharding: str, memory: str | None, longest: int | None
) -> str:
    """The memory estimate of a recipe; raises where it does not fit."""
    from stabledllm.experiment.memory_report import plan as report
    from stabledllm.planning.advice import parse_memory
    from stabledllm.planning.memory import Layout

    limit = parse_memory(memory) if memory else None
    return report(recipe, load_recipe(recipe, overrides), Layout(devices, sharding, longest), limit)


def _loading(model: str, loading: dict) -> dict:
    loading = dict(loading)
    base = loading.pop("base")
    return loading_options(check({"model": model} | loading, ModelSettings, f"model '{model}'")) | {"base": base}


def _decoding(sizes: dict[str, int], overrides: Sequence[str]) -> DecodingSettings:
    return check(apply_overrides(dict(sizes), overrides), DecodingSettings, "decoding")

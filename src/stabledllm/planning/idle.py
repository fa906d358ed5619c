"""Keys that act only beside others: one that is typed for a command in which it does nothing is refused, by name.

A recipe may hold such keys, since it serves many methods and data; what someone types is meant to act.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stabledllm.config.build import build_method
from stabledllm.config.settings import DecomposeSettings, EvalSettings, ExperimentSettings, TrainSettings
from stabledllm.data.pictures import are_pictures
from stabledllm.data.sources import own_splits
from stabledllm.errors import UserError
from stabledllm.models.new import is_new
from stabledllm.noise.methods import Method
from stabledllm.planning.validation import runs_of

Acts = Callable[[TrainSettings, Method], bool]
Rules = dict[str, tuple[Acts, str]]
"""A key, or with a dot at its end a group of them: whether it acts in a run, and what it needs to."""


def _kind(spec: str | None) -> str:
    return (spec or "").partition(":")[0]


def _tested(run: TrainSettings) -> bool:
    return run.data.test is not None or "test" in own_splits(run.data.train)


def _draws_tokens(run: TrainSettings) -> bool:
    decoding = run.decoding
    return decoding.temperature > 0 or decoding.order == "random" or decoding.schedule == "origin"


def _mentions(run: TrainSettings, kind: str) -> bool:
    return kind in map(_kind, (run.data.train, run.data.validation, run.data.test))


def _text_is_decoded(run: TrainSettings, _: Method | None = None) -> bool:
    return _tested(run) and not are_pictures(run.data.test or run.data.train)


_DATA: Rules = {
    "data.image.": (lambda run, _: are_pictures(run.data.train), "data of pictures"),
    "data.text_fields": (lambda run, _: _mentions(run, "text"), "data.train=text:PATH"),
    "data.short_share": (lambda run, _: _mentions(run, "text"), "data.train=text:PATH"),
    "data.annotations": (lambda run, _: _mentions(run, "gsm8k"), "data of gsm8k"),
    "data.table": (lambda run, _: _mentions(run, "hitab"), "data of hitab"),
    "data.every_turn": (lambda run, _: _mentions(run, "jsonl"), "data of jsonl:PATH"),
    "data.system_prompt": (lambda run, _: not are_pictures(run.data.train), "data of text"),
    "data.few_shot": (lambda run, _: not are_pictures(run.data.train), "data of text"),
    "data.delimiters": (lambda _, method: method.name.find("isad") >= 0, "a method with isad"),
    "data.syntax": (lambda _, method: method.syrm, "a method with syrm"),
}
_METHODS: Rules = {
    "method_options.strata": (lambda _, method: method.source.name == "strats", "a method with strats"),
    "method_options.clip_low": (lambda _, method: method.density == "clipped", "a method with clipped"),
    "method_options.clip_high": (lambda _, method: method.density == "clipped", "a method with clipped"),
    "method_options.isad_delta": (lambda _, method: "isad" in method.name, "a method with isad"),
    "method_options.mirror_below": (lambda _, method: "mirror" in method.name, "a method with mirror"),
    "method_options.ema_bins": (lambda _, method: method.ema, "a method with ema"),
    "init_seed": (lambda run, _: is_new(run.model), "a new model (model=new:...)"),
}
_PROBE: Rules = {
    "ppots.check_proxy": (lambda _, method: method.signal == "output layer", "a method with ppots-head"),
    "ppots.design": (lambda _, method: method.needs_p and method.signal == "loss", "a method with ppots"),
    "ppots.": (lambda _, method: method.needs_p, "a method with ppots"),
}
_RUN: Rules = {
    **_DATA,
    **_METHODS,
    **_PROBE,
    "adaptive.": (lambda _, method: method.adaptive, "a method with adaptive"),
    "epochs": (lambda run, _: run.steps is None, "steps=null beside it, since steps are set and decide"),
    "views_per_forward": (lambda _, method: method.views.count > 1, "a method of several views"),
    "data.validation_share": (
        lambda run, _: run.data.validation is None and "validation" not in own_splits(run.data.train),
        "data without a validation split of their own",
    ),
    "data.test_rows": (lambda run, _: _tested(run), "data with test rows (data.test)"),
    "decoding.block": (lambda run, _: bool(run.block_size) or _text_is_decoded(run), "test rows to decode (data.test)"),
    "decoding.seed": (
        lambda run, _: _text_is_decoded(run) and _draws_tokens(run),
        "decoding that draws at random (decoding.temperature, decoding.order=random)",
    ),
    "decoding.": (_text_is_decoded, "test rows to decode (data.test)"),
    "image_decoding.": (
        lambda run, _: _tested(run) and are_pictures(run.data.test or run.data.train),
        "pictures to draw (data.test)",
    ),
    "clip": (lambda run, _: _tested(run) and are_pictures(run.data.test or run.data.train), "pictures to draw"),
    "generate_batch": (lambda run, _: _tested(run), "test rows to decode (data.test)"),
}
_EXPERIMENT = {"base.method": "methods", "base.seed": "seeds", "base.out": "out"}
_NOT_FITTED = (
    "trainer.", "steps", "epochs", "eval_every", "eval_draws", "save_every", "log_every", "decoding.", "adaptive.",
    "image_decoding.", "clip", "generate_batch", "order_seed", "packing", "group_by_length", "views_per_forward",
    "micro_batch", "p_of_t", "data.validation_rows", "data.validation_share", "data.test_rows", "data.validation",
)  # fmt: skip
_NOT_MEASURED = ("data.validation", "data.validation_rows", "data.validation_share", "data.test_rows")
_NOT_EVALUATED = (*_NOT_MEASURED, "data.train_rows", "data.validation")


def refuse_idle_overrides(settings: TrainSettings | ExperimentSettings, overrides: Sequence[str]) -> None:
    """Refuse the first override of ``train`` or ``experiment`` that none of its runs would notice.

    Raises:
        UserError: its key, and what it needs beside it.
    """
    runs = [(run, build_method(run.method, run.method_options)) for run in runs_of(settings)]
    prefix = "base." if isinstance(settings, ExperimentSettings) else ""
    for key in _keys(overrides):
        if prefix and key in _EXPERIMENT:
            raise UserError(f"key '{key}': expected {_EXPERIMENT[key]}, which decides it in an experiment.")
        if prefix and key == "base.p_of_t":
            raise UserError(f"key '{key}': expected none, since an experiment fits one for each of its methods.")
        _refuse(key, key.removeprefix(prefix), runs, _RUN)
    if not prefix and runs[0][0].p_of_t and any(key.startswith("ppots.") for key in _keys(overrides)):
        raise UserError("key 'ppots': expected no p_of_t beside it, since nothing is probed where p is given.")


def refuse_idle_in_fit(settings: TrainSettings, overrides: Sequence[str]) -> None:
    """The same of ``fit``, which trains and decodes nothing."""
    _refuse_any(overrides, _NOT_FITTED, "fit")
    runs = [(settings, build_method(settings.method, settings.method_options))]
    for key in _keys(overrides):
        _refuse(key, key, runs, _DATA | _METHODS | _PROBE)


def refuse_idle_in_decompose(settings: DecomposeSettings, overrides: Sequence[str]) -> None:
    """The same of ``decompose`` and ``recommend``."""
    _refuse_any(overrides, _NOT_MEASURED, "decompose")
    if not settings.gradient:
        _refuse_any(overrides, ("grad.",), "decompose", "--gradient beside it")
    shared = {name: getattr(settings, name) for name in ("model", "init_seed", "data", "method_options", "objective")}
    run = TrainSettings().model_copy(update=shared)
    runs = [(run, build_method(name, settings.method_options)) for name in ("standard", *settings.methods)]
    for key in _keys(overrides):
        _refuse(key, key, runs, _DATA | _METHODS)


def refuse_idle_in_eval(settings: EvalSettings, overrides: Sequence[str]) -> None:
    """The same of ``eval``, whose rows are those of ``--rows``."""
    _refuse_any(overrides, _NOT_EVALUATED, "eval")
    run = TrainSettings().model_copy(update={"data": settings.data, "decoding": settings.decoding})
    known = {name: rule for name, rule in _DATA.items() if name not in ("data.delimiters", "data.syntax")}
    known |= {name: _RUN[name] for name in ("image_decoding.", "clip")}
    run.data = settings.data.model_copy(update={"test": settings.data.test or settings.data.train})
    for key in _keys(overrides):
        _refuse(key, key, [(run, Method())], known)


def _keys(overrides: Sequence[str]) -> list[str]:
    return [override.partition("=")[0] for override in overrides]


def _refuse(key: str, own: str, runs: list[tuple[TrainSettings, Method]], rules: Rules) -> None:
    for name, (acts, needed) in rules.items():
        if own == name or (name.endswith(".") and own.startswith(name)) or f"{own}." == name:
            if not any(acts(run, method) for run, method in runs):
                raise UserError(f"key '{key}': expected {needed}, found none, so that it would do nothing.")
            return


def _refuse_any(overrides: Sequence[str], names: tuple[str, ...], command: str, needed: str = "") -> None:
    for key in _keys(overrides):
        if key in names or any(name.endswith(".") and f"{key}.".startswith(name) for name in names):
            what = needed or f"a key that '{command}' uses"
            raise UserError(f"key '{key}': expected {what}, since '{command}' would not use it.")

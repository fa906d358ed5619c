"""What to write instead of a key or a value that is wrong: where the meant key stands, or its nearest name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from stabledllm.config.objectives import NAMED
from stabledllm.config.other_names import ELSEWHERE, NOWHERE, OF_COMMANDS
from stabledllm.config.settings import ExperimentSettings, TrainSettings
from stabledllm.config.trainer_keys import NOT_THERE, OURS, TrainerSettings, refusal
from stabledllm.config.typed import arms_of
from stabledllm.config.written import Written
from stabledllm.errors import nearest
from stabledllm.plain_text import plain_text

_OF_TRAINING = {*TrainSettings.model_fields, *TrainerSettings.model_fields, *OURS, *ELSEWHERE}
OPTIONS = {
    **{name: f"--{name.replace('_', '-')}" for name in ("quiet", "dry_run", "wide", "quick", "load", "jobs")},
    **dict.fromkeys(("device", "gpu"), "--device NAME (cpu, cuda, cuda:N, mps)"),
}
"""Options of commands that are no keys, by the names under which they are written as such."""
_NEAR = 0.75
"""Least likeness, from 0 to 1, of a name in another group to one that is not known."""
_NULL_IS = {
    "data.train_rows": "no limit",
    "data.test_rows": "no limit, and 0 none",
    "micro_batch": "a device's whole share of the batch",
    "layers": "every layer",
    "data.workers": "the usual number of processes",
    "steps": "as many as 'epochs' gives",
    "decoding.steps": "the usual number",
    "decoding.block": "the usual block, and the length itself one block",
}
"""By key, what its ``null`` is where that is not to go without it."""
_NONE = ("0", "none", "None", "false", "False", "never", "off", "no", "-1")
"""What people write where a setting is to be left out."""


def instead_of_key(path: tuple, kind: type[BaseModel], group: type[BaseModel]) -> str:
    """The clause on an unknown key: what to write instead. It begins with ``:`` where it says what is wrong as well.

    Args:
        path: the key. kind: the settings that it was looked for in. group: the group of them that it would stand in.
    """
    *above, name = map(str, path)
    base = "base." if kind is ExperimentSettings else ""
    if group is TrainerSettings:
        return f": {refusal(name, base)}"
    if not above and (meant := OF_COMMANDS.get(kind.__name__, {}).get(name)):
        return f"; write {meant}"
    if above and ":" in name:  # YAML's {a:b} is a key without a value
        ours, _, value = name.partition(":")
        return f"; write {'.'.join([*above, plain_text(ours.strip())])}={plain_text(value.strip())}"
    if nowhere := NOWHERE.get(".".join([*above, name])) or NOWHERE.get(name):
        return f"; {nowhere}"
    if kind is ExperimentSettings and not above and name in TrainSettings.model_fields:
        return f": expected under 'base:', as an experiment varies the run that stands there; write base.{name}"
    if kind is TrainSettings and not above and name in ExperimentSettings.model_fields:
        own = name.removesuffix("s")
        is_own = f", whose key is {own}" if own in TrainSettings.model_fields else ""
        return (
            f" of one training run{is_own}; an experiment has it: write a YAML of 'base: {{extends: THIS_RECIPE}}' and "
            f"'methods: [...]' for 'stabledllm experiment'"
        )
    places = dict(_places(kind))
    own = [key.rpartition(".")[2] for key in places if key.rpartition(".")[0] == ".".join(above)]
    if elsewhere := _elsewhere(above, name, places, base):
        return f"; write {elsewhere}"
    if not above and (option := OPTIONS.get(name)):
        return f"; it is an option of the command: write {option}"
    if (not above or name == "shuffle") and name in NOT_THERE and f"{base}trainer" in places:
        return f"; {NOT_THERE[name]}"
    if near := nearest(name, own):
        return f" (did you mean '{near}'?); write {'.'.join([*above, near])}"
    leaves = {key.rpartition(".")[2]: key for key in reversed(places)}
    others = [one for one in ELSEWHERE if base + ELSEWHERE[one].partition("=")[0] in places]
    if near := nearest(name, [*leaves, *others], cutoff=_NEAR):
        return f" (did you mean '{near}'?); write {leaves.get(near) or base + ELSEWHERE[near]}"
    if kind not in (TrainSettings, ExperimentSettings) and (name in _OF_TRAINING or name in NOT_THERE):
        return ", which is one of a training run: leave it out"
    listed = f"its keys are {', '.join(own)}" if above and len(own) <= 10 else "docs/settings.md has every key"
    return f"; {listed}"


def instead_of_nothing(key: str) -> str:
    """The clause on a key without a value that needs one."""
    name = key.removeprefix("base.")
    if name in _NEEDED:
        return f"; write {_NEEDED[name].replace('KEY', key)}"
    above, _, last = key.rpartition(".")
    if ":" in last:  # YAML's {a:b} is a key without a value
        return f'; write "{above}={{{_pairs(last)}}}", with a blank behind the colon'
    return f"; write {key}=VALUE, or leave the key out for its default"


_NEEDED = {
    "model": "KEY=tiny (shipped), KEY=FOLDER or KEY=OWNER/NAME (on the hub)",
    "data.train": "KEY=PATH (your own file or folder), or KEY=synthetic for the synthetic task",
    "data.validation_share": "KEY=0 to train on every row",
}
"""Keys that a recipe may leave open, with what to write."""


def instead_of_value(key: str, value: Any, annotation: Any, kind: type[BaseModel]) -> str:
    """The clause on a value of the wrong kind: what to write instead; empty where the expectation says it all."""
    if not isinstance(value, str | int | float):
        return ""
    text, arms = str(value), arms_of(annotation)
    if len(begun := [one for one in _names(arms) if text and one.startswith(text.lower())]) == 1:
        return f"; write {key}={begun[0]}"
    if isinstance(value, Written) and any(get_origin(arm) is list for arm in arms) and text[:1] not in ("", "["):
        if value.null:
            return f"; write {key}=[] for none" if _may_be_empty(kind, key.split(".")) else ""
        return f"; write {key}=[{', '.join(_items(text))}]"
    if (name := OF_GROUPS.get(key.removeprefix("base."))) and (name != "length" or text.isdigit()):
        value = {"true": "16", "yes": "16", "on": "16"}.get(text.lower(), text)
        if name == "weighting" and (whose := text.lower().replace("_", "-")) in set(NAMED) - {"elbo"}:
            name, value = "name", whose
        if name == "weighting" and text.lower() in KINDS:
            name, value = "kind", text.lower()
        return f"; write {key}.{name}={plain_text(value)}" + (", or RECIPE+lora" if name == "rank" else "")
    if key == "base" and text:
        return f"; write base: {{extends: {plain_text(text)}}}"
    if groups := [arm for arm in arms if hasattr(arm, "model_fields")]:
        names = [*groups[0].model_fields]
        more = f" and {len(names) - _LISTED} more" if names[_LISTED:] else ""
        return f"; write {key}.NAME=VALUE, where NAME is one of {', '.join(names[:_LISTED])}{more}"
    if any(get_origin(arm) is dict for arm in arms) and text:
        return f'; write "{key}={{{_pairs(text)}}}"'
    near = _DTYPES.get(text) if key.endswith("dtype") else None
    if near and (not near.startswith("quantised") or kind in (TrainSettings, ExperimentSettings)):
        half = near.startswith("trainer.") and kind not in (TrainSettings, ExperimentSettings)
        near = ("float16" if "float16" in _names(arms) else "bfloat16") if half else near
        return f"; write {near if '=' in near else f'{key}={near}'}"
    if meant := _SYNONYMS.get(key.rpartition(".")[2], {}).get(text.lower()):
        return f"; write {meant}"
    names = _names(arms)
    if (near := nearest(text, names)) and len(names) <= _LISTED:
        return f"; write {key}={near}"
    if (int in arms or float in arms) and (number := _as_number(text, float in arms)):
        return f"; write {key}={number}"
    if NoneType in arms and text.lower() in ("all", "auto", "max", "unlimited"):
        return f"; write {key}=null for no limit of its own"
    share, rows = key.endswith("validation_share"), key.endswith("validation_rows")
    if (share and text in ("null", *_NONE)) or (rows and text in _NONE):
        return f"; write {key.removesuffix('_rows').removesuffix('_share')}_share=0 to train on every row"
    if float in arms and "share" in key and re.fullmatch(r"[1-9]\d?(\.\d+)?", text):
        return f"; write {key}={float(text) / 100:g} for {float(text):g} %" if float(text) > 1 else ""
    if NoneType in arms and text in _NONE:
        if (name := key.removeprefix("base.")) in _NULL_IS:
            return f"; {key}=null is {_NULL_IS[name]}"
        return f"; write {key}=null to go without"
    if float in arms and text.endswith("%") and text[:-1].replace(".", "", 1).isdigit():
        return f"; write {key}={float(text[:-1]) / 100:g}"
    if bool in arms and text in ("yes", "on", "1", "no", "off", "0"):
        return f"; write {key}={'true' if text in ('yes', 'on', '1') else 'false'}"
    if text in ("", "null") and NoneType not in arms:
        return "; leave the key out for its default"
    return ""


OF_GROUPS = {"data": "train", "lora": "rank", "objective": "weighting", "decoding": "length"}
"""The key of a group that is meant where a value is given for the group."""
_LISTED = 8
KINDS = ("masked", "dpo", "grpo")
"""The kinds of objectives."""
_SYNONYMS = {
    "kind": {
        **{name: f"objective.name={name}" for name in NAMED if name != "elbo"},
        **{name: f"objective.weighting={name}" for name in ("elbo", "unweighted", "power", "cosine", "bell")},
        **dict.fromkeys(("sft", "mlm", "nll"), "objective.kind=masked"),
        **dict.fromkeys(("ppo", "rl", "rloo", "reinforce", "gspo", "dapo"), "objective.kind=grpo"),
        **dict.fromkeys(("preference", "preferences", "vrpo"), "objective.kind=dpo"),
    },
    "format": {
        "chatml": "data.format=messages", "chat": "data.format=messages", "openai": "data.format=messages",
        "vicuna": "data.format=sharegpt", "instruct": "data.format=alpaca", "instruction": "data.format=alpaca",
        "dolly": "data.format=alpaca", "qa": "data.format=question-answer", "sft": "data.format=prompt-completion",
        **dict.fromkeys(("csv", "json", "jsonl", "parquet"), "nothing: a file's ending says that"),
    },
    "over_length": dict.fromkeys(
        ("truncate", "cut", "truncation"), "data.over_length=drop or a larger data.max_len, as nothing is ever cut"
    ),
    "quantised": {
        **dict.fromkeys(("4", "nf4", "fp4", "int4", "true", "q4"), "quantised=4bit"),
        **dict.fromkeys(("8", "int8", "q8"), "quantised=8bit"),
    },
}  # fmt: skip
"""Values that other programs have for ours, by the last name of a key."""


def _names(arms: list) -> list[str]:
    return [name for arm in arms if get_origin(arm) is Literal for name in get_args(arm) if isinstance(name, str)]


def _items(text: str) -> list[str]:
    """The items of a list that was written without brackets; ``1-3`` are three."""
    if match := re.fullmatch(r"(\d{1,4})\s*(?:-|\.\.|:)\s*(\d{1,4})", text):
        first, last = int(match[1]), int(match[2])
        if first < last <= first + _MOST_ITEMS:
            return [str(one) for one in range(first, last + 1)]
    return [one.strip() for one in text.split(",")]


_MOST_ITEMS = 20
"""Most items of a list that a sentence writes out."""


def _pairs(text: str) -> str:
    """``prompt:Q,answer=A`` as the inside of a mapping."""
    pairs = [re.split("[:=]", pair, maxsplit=1) for pair in text.strip("{} ").split(",")]
    if all(len(pair) == 2 for pair in pairs):
        return ", ".join(f"{plain_text(ours.strip())}: {plain_text(theirs.strip())}" for ours, theirs in pairs)
    return "KEY: VALUE"


def _as_number(text: str, fraction: bool) -> str | None:
    """The number that is meant by ``8,192``, ``1k``, ``'8'`` or, for a fraction, ``0,1``; None where none is."""
    bare = text.strip("'\" ,=")
    if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", bare):
        return bare.replace(",", "")
    if fraction and re.fullmatch(r"\d,\d+", bare):
        return bare.replace(",", ".")
    if match := re.fullmatch(r"(\d+)([kKmM])", bare):
        return str(int(match[1]) * {"k": 1000, "m": 1_000_000}[match[2].lower()])
    return bare if bare != text and re.fullmatch(r"\d+(\.\d+)?", bare) else None


_DTYPES = {
    "bf16": "bfloat16", "torch.bfloat16": "bfloat16", "fp32": "float32", "32": "float32", "torch.float32": "float32",
    "float": "float32", "fp16": "trainer.fp16=true", "float16": "trainer.fp16=true", "half": "trainer.fp16=true",
    "int8": "quantised=8bit", "8bit": "quantised=8bit", "4bit": "quantised=4bit", "auto": "bfloat16",
}  # fmt: skip


def _elsewhere(above: list[str], name: str, places: dict[str, type], base: str) -> str | None:
    """The key that is meant by a name that belongs to another group or another program."""
    if name in TrainerSettings.model_fields and f"{base}trainer" in places:
        return f"{base}trainer.{name}"
    if f"{base}trainer" in places and name in OURS:
        return base + OURS[name]
    exact = [key for key in places if key.rpartition(".")[2] == name]
    if exact and name not in NOT_THERE:  # a name as general as ``name`` means something else than ``objective.name``
        return " or ".join(exact[:3])
    plain = name.lower().replace("-", "_")
    meant = base + (ELSEWHERE.get(".".join([*above, plain])) or ELSEWHERE.get(plain, "?"))
    return meant if meant.partition("=")[0] in places else None


def _places(kind: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a kind of settings, groups included, with its type."""
    for name, field in kind.model_fields.items():
        yield above + name, field.annotation
        for arm in (field.annotation, *get_args(field.annotation)):
            if isinstance(arm, type) and issubclass(arm, BaseModel):
                yield from _places(arm, f"{above}{name}.")


def _may_be_empty(kind: type[BaseModel], path: list[str]) -> bool:
    """Whether the list under a key may have no item."""
    field, *below = path
    if (found := kind.model_fields.get(field)) is None:
        return False
    if not below:
        return not any(getattr(one, "min_length", None) for one in found.metadata)
    return any(_may_be_empty(arm, below) for arm in arms_of(found.annotation) if hasattr(arm, "model_fields"))

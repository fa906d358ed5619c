"""The page of all keys: the settings of a recipe with their defaults and docstrings."""

from __future__ import annotations

import typing
from pathlib import Path

import griffe
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stabledllm.config import settings

from .docstrings import readable

SRC = Path(__file__).parents[2] / "src"
ROOTS = {
    "TrainSettings": ("A training run", "`stabledllm train`, and `base:` of an experiment."),
    "ExperimentSettings": ("An experiment", "`stabledllm experiment`; `base` holds the keys of a training run."),
    "DecomposeSettings": ("A measurement", "`stabledllm decompose` and `recommend`."),
    "EvalSettings": ("An evaluation", "`stabledllm eval`."),
    "GenerateSettings": ("A generation", "`stabledllm generate`."),
}
INTRODUCTION = """# Every key

What a recipe may hold, with its default: `key: value` in YAML, `key=value` or `--key value` on the
[command line](command_line.md), a dot between a group and its key (`data.max_len=512`). How values are read:
[settings](settings.md); whole examples: [recipes](recipes.md).
"""


def page() -> str:
    """The Markdown of the page: a table for every group of keys."""
    loaded = griffe.load("stabledllm", search_paths=[SRC])
    parts = [INTRODUCTION]
    for name, (title, used) in ROOTS.items():
        parts += [f"## {title}", used, *_tables(getattr(settings, name), "", loaded)]
    return "\n\n".join(parts) + "\n"


def _tables(model: type[BaseModel], prefix: str, loaded: griffe.Module) -> list[str]:
    """The table of a group's own keys, then those of the groups in it; a training run's are not shown again."""
    rows, groups = [], []
    for name, field in model.model_fields.items():
        key, group, shown = f"{prefix}{name}", _group(field), f"`{prefix}{name}`"
        meaning = _meaning(name, model, loaded)
        if group is not None and key != "base":
            anchor = f"{model.__name__}-{key}".replace(".", "-").lower()
            shown, about = f"[{shown}](#{anchor})", _meaning(None, group, loaded)
            meaning = meaning or about
            groups += [f"### `{key}` {{ #{anchor} }}", about, *_tables(group, f"{key}.", loaded)]
        rows.append(f"| {shown} | {_default(field)} | {_cell(meaning)} |")
    return ["\n".join(["| key | default | meaning |", "|---|---|---|", *rows]), *groups]


def _group(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a key that holds keys; None of any other."""
    kinds = (field.annotation, *typing.get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined or isinstance(field.default, BaseModel):
        return ""
    value = field.default
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(key: str | None, model: type[BaseModel], loaded: griffe.Module) -> str:
    """The docstring of a key, in whichever base of its group it is written; without a key, that of the group itself."""
    for base in model.__mro__:
        if base.__module__.startswith("stabledllm."):
            thing = loaded[base.__module__.partition(".")[2] + f".{base.__name__}"]
            found = thing if key is None else thing.members.get(key)
            if found is not None and found.docstring:
                return readable(found.docstring.value, thing)
    return ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or "as in transformers' TrainingArguments"

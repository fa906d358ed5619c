"""What a command that trains nothing takes of a recipe: of its own recipe all keys, of a training run's some."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel

from stabledllm.config.recipe import tree_of
from stabledllm.config.settings import TrainSettings


def borrowed(name: str, kind: type[BaseModel], keys: Collection[str]) -> tuple[dict, str]:
    """The tree of keys that a command takes of a recipe, and a line that says so where they are not all.

    A recipe is the command's own if it has a key that no training run has, such as ``forwards`` for ``decompose``.

    Args:
        kind: the command's settings. keys: what it takes of a training run, or of the base of an experiment.

    Raises:
        UserError: no such recipe, or broken YAML.
    """
    tree = tree_of(name)
    base = tree.get("base")
    own = kind.model_fields.keys() - TrainSettings.model_fields.keys() - {"methods", "base"}
    if not isinstance(base, dict) and own & tree.keys():
        return tree, ""
    run = base | {key: tree[key] for key in ("methods",) if key in tree} if isinstance(base, dict) else tree
    taken = {key: value for key, value in run.items() if key in keys}
    return taken, f"note: of recipe '{name}', which says how to train, taken here: {', '.join(taken) or 'nothing'}"

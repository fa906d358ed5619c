"""The names of rewards: ``task``, or a function of a Python file of the user's. Loads no torch."""

from __future__ import annotations

import ast
import re
import symtable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stabledllm.config.written import Written
from stabledllm.errors import Gathered, UserError, did_you_mean
from stabledllm.plain_text import plain_text

if TYPE_CHECKING:
    from stabledllm.config.settings.policy import GRPOSettings

TASK = "task"
_FILE = re.compile(r"(?P<file>.*\.py):(?P<function>[^\W\d]\w*)", re.DOTALL)
_LIKE_FILE = re.compile(r"\.py(:|\s*\]?\s*$)")


def file_and_function(name: str) -> tuple[str, str] | None:
    """The file and the function that a reward names; None if it is one of ours.

    >>> file_and_function("rewards.py:short"), file_and_function("task")
    (('rewards.py', 'short'), None)
    """
    found = _FILE.fullmatch(name)
    return (found["file"], found["function"]) if found else None


def check_rewards(grpo: GRPOSettings) -> None:
    """Refuse rewards of unknown names, twice the same one, and weights that are not one for each.

    Raises:
        UserError: such rewards.

    >>> from stabledllm.config.settings.policy import GRPOSettings
    >>> check_rewards(GRPOSettings(reward=["tasks"]))
    Traceback (most recent call last):
    stabledllm.errors.UserError: key 'grpo.reward': expected task or FILE.py:FUNCTION, found 'tasks' (did you mean ...
    """
    for name in grpo.reward:
        if name != TASK and file_and_function(name) is None:
            hint = "; write FILE.py:FUNCTION" if name.endswith(".py") else did_you_mean(name, [TASK], most=0)
            raise UserError(f"key 'grpo.reward': expected {TASK} or FILE.py:FUNCTION, found '{name}'{hint}.")
    if twice := next((name for name in grpo.reward if grpo.reward.count(name) > 1), None):
        raise UserError(f"key 'grpo.reward': expected each reward once, found '{twice}' twice.")
    check_weights(grpo.reward_weights, len(grpo.reward))


def check_weights(weights: list[float] | None, rewards: int) -> None:
    """Refuse weights of which there are not as many as rewards, or all of them 0.

    Raises:
        UserError: such weights.
    """
    if weights is not None and len(weights) != rewards:
        raise UserError(
            f"key 'grpo.reward_weights': expected a weight for each reward, {rewards}, found {len(weights)}."
        )
    if weights and not any(weights):
        raise UserError("key 'grpo.reward_weights': expected one other than 0, found no reward that counts.")


def check_reward_files(grpo: GRPOSettings) -> None:
    """Refuse files of rewards that are not there, are no Python, or name no such function; their code is not run.

    Raises:
        UserError: such a file.
    """
    for file, function in filter(None, map(file_and_function, grpo.reward)):
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"key 'grpo.reward': expected a Python file and a function in it, found no file '{file}'.")
        try:
            source = path.read_bytes()  # Python finds its encoding
            names, more = symtable.symtable(source, file, "exec").get_identifiers(), _imports_all(source)
        except (SyntaxError, ValueError) as error:  # a null byte too
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            raise UserError(f"key 'grpo.reward': expected Python in '{file}', found other text{line}.") from None
        if function not in names and not more:
            hint = did_you_mean(function, names, most=8)
            raise UserError(f"key 'grpo.reward': expected a function '{function}' in {file}, found none{hint}.")


def _imports_all(source: bytes) -> bool:
    """Whether names come by ``from MODULE import *``, which only running it tells."""
    imports = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    return any(name.name == "*" for node in imports for name in node.names)


def refuse_files_of_recipes(tree: dict, gathered: Gathered) -> None:
    """Refuse a Python file that a recipe names as a reward, and nobody has typed: its code would run.

    Args:
        tree: the keys of a recipe beneath those that were typed. gathered: gets a sentence on each such file.
    """
    base = tree.get("base")
    for prefix, run in (("", tree), ("base.", base if isinstance(base, dict) else {})):
        group = run.get("grpo")
        named = group.get("reward") if isinstance(group, dict) else None
        names = named if isinstance(named, list) else [named]
        for name in filter(_is_file_of_recipe, names):
            key, shown, place = f"{prefix}grpo.reward", plain_text(name), getattr(name, "place", "")
            whole = ",".join(plain_text(str(each)) for each in names)
            gathered.add(
                f"{place or 'recipe'}: key '{key}': expected a Python file, whose code is run, to be named on the "
                f"command line, found '{shown}' in the recipe; type \"{key}=[{whole}]\"."
            )


def _is_file_of_recipe(name: Any) -> bool:
    typed = isinstance(name, Written) and name.typed
    return isinstance(name, str) and not typed and bool(_LIKE_FILE.search(name))

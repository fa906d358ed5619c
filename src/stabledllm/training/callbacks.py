"""The user's own callbacks of the Trainer, named in a recipe or given to ``train``.

They see a run and may stop, save or evaluate it. What it draws does not depend on them: noise is a function of the
seed, the step and the row, so callbacks are no part of a run's identity, and may differ when it goes on.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from stabledllm.errors import Diverged, UserError
from stabledllm.runtime.user_modules import folder_first, one_line

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_EXAMPLE = "such as my_callbacks.SaveSamples"
_SET_UP_ELSEWHERE = ("stabledllm", "transformers")
"""Packages whose callbacks a run sets up itself, by its other keys."""


def named_callbacks(names: Sequence[str]) -> list[TrainerCallback]:
    """A new callback of each class that a recipe names; modules are found in the working directory too.

    Raises:
        UserError: a name that does not import, or is no class of callbacks of the user's own that is made without
            arguments, or is there twice.
    """
    return _distinct([_made(_imported(name), f"key 'callbacks': expected {{}}, found '{name}'") for name in names])


def given_callbacks(given: Sequence[TrainerCallback | type[TrainerCallback]]) -> list[TrainerCallback]:
    """The callbacks given to ``train``, objects or classes.

    Raises:
        UserError: one is no callback of the user's own, or is there twice.
    """
    return [_made(one, f"callbacks: expected {{}}, found {one!r}") for one in given]


def names_of(callbacks: Sequence[TrainerCallback]) -> list[str]:
    """The dotted names of the callbacks' classes, for the record of a run."""
    return [f"{type(one).__module__}.{type(one).__qualname__}" for one in callbacks]


def all_callbacks(names: Sequence[str], given: Sequence[Any]) -> list[TrainerCallback]:
    """Those that a recipe names, then those given to ``train``; raises UserError as for either."""
    return _distinct([*named_callbacks(names), *given_callbacks(given)])


@contextmanager
def failing_by_name(callbacks: Sequence[TrainerCallback]) -> Iterator[None]:
    """While this context is open, an error that one of these callbacks raises is told as that callback's.

    Raises:
        UserError: which callback failed, where, and with what; its cause is the callback's own error.
    """
    try:
        yield
    except (UserError, Diverged):  # sentences already
        raise
    except Exception as error:
        if not (failed := _failed(error, callbacks)):
            raise
        shown = f"'{names_of([failed])[0]}' failed{_place_in(error, failed)} ({one_line(error)})"
        raise UserError(f"callbacks: {shown}; mend it or leave it out, and run the same again.") from error


def add_to(trainer: Trainer, callbacks: Sequence[TrainerCallback]) -> None:
    """Add the callbacks behind those of the trainer, and tell them that it is made."""
    for callback in callbacks:
        trainer.add_callback(callback)
        callback.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)


_CALLING = (CallbackHandler.call_event.__code__, add_to.__code__)
"""The functions that call callbacks, one after the other, and hold the one that is called in a variable."""


def _failed(error: BaseException, callbacks: Sequence[TrainerCallback]) -> TrainerCallback | None:
    """The callback that was being called when an error was raised; None if the error came from elsewhere."""
    calling = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code in _CALLING]
    held = [value for frame in calling for value in frame.f_locals.values()]
    return next((one for value in held for one in callbacks if value is one), None)


def _place_in(error: BaseException, callback: TrainerCallback) -> str:
    """The last line of the callback's own module that the error came through, in words; empty where none was reached.

    A method that does not take what transformers gives it fails before its first line.
    """
    file = getattr(sys.modules.get(type(callback).__module__), "__file__", None)
    lines = [line for line in traceback.extract_tb(error.__traceback__) if line.filename == file]
    return f" in {lines[-1].name}, {Path(file).name}, line {lines[-1].lineno}" if lines else ""


def _imported(name: str) -> Any:
    if not _DOTTED.fullmatch(name):
        raise UserError(f"key 'callbacks': expected dotted names of classes, {_EXAMPLE}, found '{name}'.")
    module, _, attribute = name.rpartition(".")
    if name.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"key 'callbacks': expected a class of your own, {_EXAMPLE}, found '{name}'.")
    try:
        with folder_first(os.getcwd()):
            found = import_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's module raises; a script may end itself
        raise UserError(
            f"key 'callbacks': expected '{name}' in a module of the working directory or an installed one, found that "
            f"'{module}' does not import ({one_line(error)})."
        ) from None
    if not hasattr(found, attribute):
        raise UserError(f"key 'callbacks': expected a class '{attribute}' in {found.__name__}, found none.")
    return getattr(found, attribute)


def _made(one: Any, refusal: str) -> TrainerCallback:
    kind = one if isinstance(one, type) else type(one)
    if not issubclass(kind, TrainerCallback):
        raise UserError(refusal.format("a transformers.TrainerCallback") + ".")
    if kind.__module__.partition(".")[0] in _SET_UP_ELSEWHERE:
        own = "a class of your own, since a run sets up those of the libraries by its other keys"
        raise UserError(refusal.format(own) + ".")
    if not isinstance(one, type):
        return one
    try:
        return one()
    except Exception as error:  # whatever the user's class raises
        raise UserError(refusal.format("a class that is made without arguments") + f" ({one_line(error)}).") from None


def _distinct(callbacks: list[TrainerCallback]) -> list[TrainerCallback]:
    names = names_of(callbacks)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"callbacks: expected each class once, found '{twice}' twice.")
    return callbacks

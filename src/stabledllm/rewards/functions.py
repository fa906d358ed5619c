"""Rewards that are functions of the user's, in TRL's signature: loaded from a file, called, and held to their word."""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from stabledllm.data.prompt_rows import GIVEN
from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.errors import UserError, did_you_mean
from stabledllm.rewards.reward import Logged, Responses
from stabledllm.rewards.sources import bare, digest_of
from stabledllm.runtime.user_modules import module_in, one_line

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def function_in(file: str, name: str, modules: dict[Path, ModuleType] | None = None) -> FunctionReward:
    """The reward that a function of a Python file is; the file's modules beside it can be imported.

    Args:
        modules: those of files that were imported before for the same run, which are not run again; it gets this one.

    Raises:
        UserError: no such file, one that does not import, or no such function in it.
    """
    path, shown = Path(file).expanduser(), f"{file}:{name}"
    if not path.is_file():
        raise UserError(f"key 'grpo.reward': expected a Python file and a function in it, found no file '{file}'.")
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    modules, place = {} if modules is None else modules, path.resolve()
    try:
        if place not in modules:
            modules[place] = module_in(place, f"stabledllm_reward_{digest[:16]}")
    except (Exception, SystemExit) as error:  # whatever the user's module raises; a script may end itself
        raise UserError(
            f"key 'grpo.reward': expected a Python file that can be imported, found that '{file}' does not "
            f"({one_line(error)}{_line_in(error, place)})."
        ) from None
    module = modules[place]
    if not hasattr(module, name):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UserError(
            f"key 'grpo.reward': expected a function '{name}' in {file}, found none{did_you_mean(name, functions)}."
        )
    return FunctionReward(getattr(module, name), shown, digest, name=name)


def given_function(function: Callable) -> FunctionReward:
    """The reward that a function given in Python is; its source is what tells it from another.

    Raises:
        UserError: what cannot be called by TRL's signature, or has no name to log it under.
    """
    return FunctionReward(function, f"'{_name_of(function)}'", digest_of(function))


class FunctionReward:
    """A function of the user's that gives a number, or None, for each response.

    It gets ``prompts``, ``completions``, ``completion_ids`` and the columns of the data, and ``trainer_state``,
    ``log_extra`` and ``log_metric`` as TRL's do; of all these what it takes.

    Args:
        shown: what it is called where it is refused. digest: of its source. name: what it is logged as.

    Raises:
        UserError: it cannot be called so, or has no name.
    """

    def __init__(self, function: Callable, shown: str, digest: str, *, name: str | None = None):
        self.function, self.digest = function, digest
        self.name = name or _name_of(function)
        if not callable(function):
            raise UserError(f"rewards: expected a function, found {shown}.")
        if inspect.isclass(function):
            raise UserError(f"rewards: expected a function, found the class {shown}; give an object of it.")
        if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
            raise UserError(f"rewards: expected a function that returns its numbers, found the async {shown}.")
        if not self.name.isidentifier():
            raise UserError(f"rewards: expected a function with a name to log it under, found {shown}.")
        self._parameters = _parameters_of(function, shown)
        if place := next((p for p in self._parameters if _only_by_place(p)), None):
            raise UserError(f"reward '{self.name}': expected parameters that are given by name, found '{place.name}'.")
        self._all = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in self._parameters)
        self._file = _file_of(function)

    def check(self, prompts: Sequence[RolloutPrompt]) -> str | None:
        """Refuse a function that wants a column which the data do not have."""
        there = {*GIVEN[:-1], *prompts[0].columns}
        wanted = [p.name for p in self._parameters if p.kind in _BY_NAME and p.default is p.empty]
        if missing := next((name for name in wanted if name not in there), None):
            columns = ", ".join(prompts[0].columns) or "none"
            hint = did_you_mean(missing, sorted(there), most=0)
            raise UserError(
                f"reward '{self.name}': expected rows with the key '{missing}', which the function takes, found "
                f"{columns} (in {prompts[0].origin}){hint}; give the parameter a default, or the rows that key."
            )
        return None

    def score(self, responses: Responses, logged: Logged) -> list[float | None]:
        """The reward of each response, called once for all."""
        values = self._called(responses, logged)
        if hasattr(values, "tolist"):  # an array or a tensor
            values = values.tolist()
        if not isinstance(values, list | tuple):
            raise UserError(f"{self._shown}: expected a list of numbers, found {type(values).__name__}.")
        if len(values) != len(responses):
            raise UserError(
                f"{self._shown}: expected {len(responses)} numbers, one for each completion, found {len(values)}."
            )
        return [self._number(value, prompt) for value, prompt in zip(values, responses.prompts, strict=True)]

    def _called(self, responses: Responses, logged: Logged) -> Any:
        taken = {p.name for p in self._parameters if p.kind in _BY_NAME}
        makers = _arguments(responses, logged)
        given = {name: make() for name, make in makers.items() if self._all or name in taken}
        try:
            return self.function(**given)
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            first, more = responses.prompts[0].origin, len(responses) - 1
            of = f"{first}" + (f" and {more} more" if more else "")
            of += ", which are lists of messages, as the data are" if responses.prompts[0].conversational else ""
            raise UserError(
                f"reward '{self.name}' failed{self._place_in(error)} ({one_line(error)}) on the completions of {of}; "
                f"mend it and run the same again."
            ) from error

    def _number(self, value: Any, prompt: RolloutPrompt) -> float | None:
        if value is None:
            return None
        if not isinstance(value, Real) and getattr(value, "shape", None) == ():  # a number of NumPy's or torch's
            value = value.item()
        of = f"for a completion of {prompt.origin}"
        if not isinstance(value, Real):
            found = f"'{value}'" if isinstance(value, str) else type(value).__name__
            raise UserError(f"{self._shown}: expected a number or None {of}, found {found}.")
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond the floats
            number = math.inf
        if not math.isfinite(number):
            raise UserError(f"{self._shown}: expected a finite number or None {of}, found {number}.")
        return number

    @property
    def _shown(self) -> str:
        place = f" ({self._file.name}, line {_first_line(self.function)})" if self._file else ""
        return f"reward '{self.name}'{place}"

    def _place_in(self, error: BaseException) -> str:
        """The last line of the function's own file that an error came through; empty where it failed before."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if self._file and frame.filename == str(self._file)]
        return f" in {own[-1].name}, {self._file.name}, line {own[-1].lineno}," if own else ""


def _arguments(responses: Responses, logged: Logged) -> dict[str, Callable[[], Any]]:
    """What makes each argument. A function may change what it gets, but not the data: they are copied."""
    prompts = responses.prompts

    def column(key: str) -> list:
        return [copy.deepcopy(prompt.columns.get(key)) for prompt in prompts]

    def log_metric(name: str, value: float) -> None:
        if math.isfinite(number := float(value)):  # others have no mean, and none is kept for a resumed run
            logged.metrics.setdefault(str(name), []).append(number)

    def log_extra(column: str, values: Sequence) -> None:
        if len(values) != len(responses):
            raise ValueError(f"log_extra('{column}') expects {len(responses)} values, found {len(values)}")
        logged.columns[str(column)] = list(values)

    return {key: partial(column, key) for key in prompts[0].columns} | {
        "prompts": lambda: [copy.deepcopy(prompt.asked) for prompt in prompts],
        "completions": lambda: [_as_asked(*each) for each in zip(prompts, responses.texts, strict=True)],
        "completion_ids": lambda: [list(ids) for ids in responses.ids],
        "trainer_state": lambda: responses.trainer_state,
        "log_extra": lambda: log_extra,
        "log_metric": lambda: log_metric,
    }


def _as_asked(prompt: RolloutPrompt, text: str) -> str | list[dict]:
    return [{"role": "assistant", "content": text}] if prompt.conversational else text


def _only_by_place(parameter: inspect.Parameter) -> bool:
    return parameter.kind == inspect.Parameter.POSITIONAL_ONLY and parameter.default is inspect.Parameter.empty


def _parameters_of(function: Callable, shown: str) -> Sequence[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of some functions that are written in C none are known
        raise UserError(f"rewards: expected a function whose parameters are known, found {shown}.") from None


def _name_of(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _file_of(function: Any) -> Path | None:
    try:
        file = inspect.getsourcefile(bare(function))
    except TypeError:  # written in C
        return None
    return Path(file) if file else None


def _first_line(function: Any) -> int:
    return bare(function).__code__.co_firstlineno


def _line_in(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return ""  # its message names the line
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""

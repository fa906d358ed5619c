"""The settings that come with a run wherever its folder stands for a model, beneath those that are given.

A run's data, padding, prompts, decoding, objective and way of loading decide what its model answers and what its NLL
means: without them the same rows give another number than training printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from stabledllm.config.decoding_fit import calls_of, refuse_unfit
from stabledllm.config.given_keys import changed, group_of, known
from stabledllm.config.objectives import without_name
from stabledllm.config.responses_of_run import of_responses
from stabledllm.config.run_folder import Run, run_behind, run_of
from stabledllm.config.settings import (
    DataSettings,
    DecomposeSettings,
    EvalSettings,
    ExperimentSettings,
    GenerateSettings,
    ModelSettings,
    TrainSettings,
)
from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text

_TAKEN = (
    "family", "dtype", "attention", "end_token", "data", "objective", "block_size", "block_t", "block_start",
    "decoding", "image_decoding", "clip",
)  # fmt: skip
"""Keys that come with a run. ``trust_remote_code`` and ``allow_pickle`` never do: a record must not be able to run
code, so that whoever wants them says so."""
_OF_THE_ROWS = (
    "train", "validation", "test", "split", "subset", "validation_share", "train_rows", "validation_rows", "test_rows",
    "streaming", "shuffle_buffer",
)  # fmt: skip
"""Keys of the data that mean nothing for other rows than the run's own."""
_OF_ITS_KIND = ("preference", "prompts")
"""Formats of rows that a kind of objective stands for."""
_WITHOUT_EFFECT = ("cache", "workers")
_NOTHING = "the model; all else is given or as by default"
_OF_PROMPTS = ("system_prompt", "format", "columns", "image")
"""Keys of the data that ``generate`` reads."""


def with_run(tree: dict, kind: type[ModelSettings | ExperimentSettings]) -> tuple[dict, list[str]]:
    """The tree of a command's given keys with the settings of the run beneath, whose folder is given as its model.

    In the tree of an experiment that is the model of ``base``. A given key stays as it is. Rows that are given replace
    the run's, and keep its padding, its lengths and its prompts. Where ``eval`` is given no rows, it gets those that
    the run held out.

    Args:
        tree: given keys alone, none of them a default. kind: the settings that the tree is to be read as.

    Returns:
        the tree, with the path of the model for the folder of the run, and lines to tell the user. Where the model is
        no run, the tree itself; for ``RUN/model`` with a line on what the run's folder would bring.

    Raises:
        UserError: a run that has not ended or left no model.
    """
    if kind is ExperimentSettings:
        base, told = with_run(group_of(tree, "base"), TrainSettings)
        return (tree | {"base": base} if told else tree), told
    name = str(tree.get("model", ""))
    run = run_of(name)
    if run is None:
        return tree, _told_of_the_model_alone(name, tree, kind)
    if kind is EvalSettings and _shots(run, tree):
        tree = _with_tested_rows(tree)
    below = _below(run, tree, kind)
    told = [f"from {run.name}: {_told(run, below, tree)}", *run.notes]
    return _over(below, tree) | {"model": str(run.model)}, told


def data_of(run: Run) -> DataSettings:
    """The settings of a run's data; keys that other versions had are left out."""
    return DataSettings.model_validate(known(run.config.get("data"), DataSettings))


def naming_run(error: UserError, model: str, data: DataSettings) -> UserError:
    """An error about data that came with a run, with the run named, so that whoever named no data knows whose they are.

    Other errors are returned as they are.
    """
    try:
        run = run_behind(model)
    except UserError:  # told of the model itself
        return error
    if run is None or not run.config or data_of(run).train != data.train:
        return error
    return UserError(f"{str(error).rstrip('.')}; these are the rows of {run.name}: name others with --data.")


def _below(run: Run, tree: dict, kind: type[ModelSettings]) -> dict:
    """What the run says on the keys of ``kind``, without what the given keys make meaningless."""
    below = {}
    for key in _TAKEN:
        field = kind.model_fields.get(key)
        if field is None or key not in run.config:
            continue
        value, group = run.config[key], type(field.default)
        if not isinstance(field.default, BaseModel):
            below |= {} if value == field.default else {key: value}
        elif key == "decoding":  # whole, since commands have other defaults than training
            below[key] = _decoding(known(value, group), group_of(tree, key))
        else:
            below[key] = changed(known(value, group), field.default)
    if "data" in below:
        below["data"] = _data(run, below["data"], tree, kind)
    if "objective" in below and (given := group_of(tree, "objective")):
        below["objective"] = without_name(below["objective"], given)
        if "weighting" in given:
            below["objective"].pop("power", None)  # it belongs to the run's weighting
    if kind is TrainSettings:
        _without_its_kind(below)
    if kind is EvalSettings:
        below |= _of_evaluation(run, tree)
    if kind is DecomposeSettings:
        below |= of_responses(run.config, tree)
    return {key: value for key, value in below.items() if value not in ({}, None)}


def _without_its_kind(below: dict) -> None:
    """Take off that the run was one of pairs or of rewards: what its model is trained on next, the recipe says."""
    below.get("objective", {}).pop("kind", None)
    if below.get("data", {}).get("format") in _OF_ITS_KIND:
        del below["data"]["format"]


def _data(run: Run, data: dict, tree: dict, kind: type[ModelSettings]) -> dict:
    given = group_of(tree, "data")
    own = {key: value for key, value in data.items() if key not in _WITHOUT_EFFECT}
    own["train"] = run.config["data"].get("train", DataSettings().train)
    if kind is GenerateSettings and not _shots(run, tree):
        return {key: value for key, value in own.items() if key in _OF_PROMPTS}
    if "train" in given:
        return {key: value for key, value in own.items() if key not in _OF_THE_ROWS}
    return own


def _shots(run: Run, tree: dict) -> bool:
    """Whether worked examples stand before each prompt, which are chosen from the run's training rows."""
    own = known(run.config.get("data"), DataSettings).get("few_shot", 0)
    return str(group_of(tree, "data").get("few_shot", own)) != "0"


def _with_tested_rows(tree: dict) -> dict:
    """The tree with its rows as those that are tested, so that the worked examples are still the run's."""
    data = dict(group_of(tree, "data"))
    if "train" not in data or "test" in data:
        return tree
    data["test"] = data.pop("train")
    return tree | {"data": data}


def _of_evaluation(run: Run, tree: dict) -> dict:
    draws = run.config.get("eval_draws")
    more = {} if draws in (None, EvalSettings().draws) else {"draws": draws}
    if not {"train", "test"} & group_of(tree, "data").keys():
        return more | {"held_out": True}
    rows = known(run.config.get("data"), DataSettings).get("validation_rows")
    return more | ({"rows": rows} if rows else {})


def _decoding(own: dict, given: dict) -> dict:
    """The run's decoding without those of its length, steps and blocks that do not fit the given ones."""
    out = dict(own)
    if "sub_block" not in given and str(given.get("block", own.get("block"))) != str(own.get("block")):
        out.pop("sub_block", None)
    if "length" in given:
        out.pop("steps", None)
    for dropped in ("steps", "block"):
        if dropped in out and dropped not in given and not _fits(out | given):
            del out[dropped]
    return out


def _fits(decoding: dict) -> bool:
    try:
        sizes = ("length", "steps", "block", "sub_block")
        length, steps, block, sub_block = (int(str(decoding.get(key) or 0)) for key in sizes)
        refuse_unfit(length, steps or length, block or length, sub_block=sub_block or None)
    except (UserError, ValueError):
        return False
    return True


def _over(below: dict, given: dict) -> dict:
    """Both trees in one, mappings of settings key by key; what is given counts."""
    out = {key: value for key, value in below.items() if key not in given}
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict) and key != "columns"
        out[key] = _over(below[key], value) if both else value
    return out


def _told(run: Run, below: dict, tree: dict) -> str:
    """The words that tell what comes from the run."""
    if not run.config:
        return "the model alone, since the run's settings were not kept with it"
    said = []
    data = {key: value for key, value in below.get("data", {}).items() if key not in group_of(tree, "data")}
    if spec := data.pop("train", None):
        apart = data.get("validation")
        which = f" ({'its validation rows' if apart else 'the rows that it held out'})" if "held_out" in below else ""
        said.append(f"data {apart if which and apart else spec}{which}")
    if fill := data.pop("pad_response_to", None):
        said.append(f"padding {fill}")
    decoding = {key: value for key, value in below.get("decoding", {}).items() if key not in group_of(tree, "decoding")}
    if told := _decoding_told(decoding):
        said.append(f"decoding {told}")
    rest = {key: value for key, value in data.items() if key not in _OF_THE_ROWS}
    others = {key: value for key, value in below.items() if key not in ("data", "decoding", "held_out", "rows")}
    said += [f"{key}={_shown(value)}" for key, value in _flat({"data": rest} | others) if not _is_given(tree, key)]
    return plain_text(", ".join(said) or _NOTHING, longest=None)


def _told_of_the_model_alone(name: str, tree: dict, kind: type[ModelSettings]) -> list[str]:
    run = run_behind(name)
    if run is None or not run.config:
        return []
    would = _told(run, _below(run, tree, kind), tree)
    return [f"note: {name} is the model alone; {run.name} would bring {would}"] if would != _NOTHING else []


def _decoding_told(decoding: dict) -> str:
    """What is not given of a run's decoding, in words; empty where all is."""
    tokens = [f"{decoding['length']} tokens"] if "length" in decoding else []
    steps = [f"{_calls(decoding)} steps"] if "steps" in decoding else []
    blocks = [f"blocks of {decoding['block']}"] if "block" in decoding else []
    default = EvalSettings().decoding
    more = [
        f"{key}={_shown(value)}"
        for key, value in decoding.items()
        if key not in ("length", "steps", "block") and value != getattr(default, key)
    ]
    return ", ".join(filter(None, [" in ".join(tokens + steps), *blocks, *more]))


def _calls(decoding: dict) -> Any:
    steps, length = decoding.get("steps"), decoding.get("length")
    are_numbers = isinstance(steps, int) and isinstance(length, int)
    return calls_of(length, steps, decoding.get("schedule", "even")) if are_numbers else steps


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and key != "columns":
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_given(tree: dict, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _shown(value: Any) -> str:
    return plain_text(str(value), longest=60)

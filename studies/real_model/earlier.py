"""What the results.json of another machine holds: it is not made again, and stands on the page beside what is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from scripts.real_model import Stopped
from studies.real_model.sizes import Sizes

from stabledllm.runtime.files import read_json

ROW_BY_ROW, HALVES = "row by row", "halves"


def read_earlier(file: Path, sizes: Sizes) -> dict:
    """The results of a study of the same sizes.

    Raises:
        Stopped: there is no such file, or its study is of other sizes.
    """
    if not file.is_file():
        raise Stopped(f"--earlier: expected a results.json, found none at {file}")
    found, own = read_json(file), json.loads(json.dumps(asdict(sizes)))
    if found["sizes"] != own:
        keys = ", ".join(key for key in own if found["sizes"].get(key) != own[key])
        raise Stopped(f"--earlier: expected a study of the same sizes in {file}, found others ({keys})")
    return found


def kept(earlier: dict, part: str, name: str, best: str) -> bool:
    """Whether an item's figures stand in the earlier results, so that it need not be made.

    The best arm is adapted again while something is left that is measured on it; experiments are made again unless all
    are there, since their runs are compared with one another and start from that model.

    >>> earlier = {"adapt": {"shift": {}, "random": {}}, "adapt_versus_shift": {"shift": {}},
    ...     "unfinished": {"noise": ["before-long"], "finetune": ["compute, seed 2"]}}
    >>> [kept(earlier, "adapt", name, best="shift") for name in ("shift", "random", "row by row")]
    [False, True, True]
    >>> [kept(earlier, "noise", name, best="shift") for name in ("after", "before-long", "halves")]
    [True, False, False]
    >>> kept(earlier, "finetune", "compute, seed 1", best="shift"), kept(earlier, "models", "shift", best="shift")
    (False, False)
    >>> kept({}, "noise", "after", best="shift")
    False
    """
    if not earlier or part == "models":
        return False
    left = earlier["unfinished"]
    if part == "adapt":
        if name == ROW_BY_ROW:
            return bool(earlier["adapt_versus_shift"])
        return name in earlier["adapt"] and not (name == best and left)
    if part == "noise" and name != HALVES:
        return name not in left.get("noise", ())
    return not left.get(part)


def merged(own: dict, earlier: dict) -> dict:
    """A study's results with those that an earlier machine had, which stand where both have one.

    Adds ``kept``: the names of what is not of this machine. ``adapted_again``: the final NLL of an arm here and there.
    """
    if not earlier:
        return own
    record = own | {name: own[name] | earlier[name] for name in ("conversions", "adapt", "noise")}
    for name in ("text", "adapt_versus_shift", "precision"):
        record[name] = earlier[name] or own[name]
    record["plan"] = {name: plan or earlier["plan"][name] for name, plan in own["plan"].items()}
    record["plan"]["adapt"] = earlier["plan"]["adapt"] or record["plan"]["adapt"]
    if not own["finetune"]:
        record |= {name: earlier[name] for name in ("finetune", "bands")}
    record["kept"] = {part: list(earlier[part]) for part in ("adapt", "noise")}
    twice = [arm for arm in own["adapt"] if arm in earlier["adapt"]]
    again = {arm: [final_nll(found["adapt"][arm]) for found in (own, earlier)] for arm in twice}
    record["adapted_again"] = again if own["finetune"] else earlier.get("adapted_again", {})
    return record


def final_nll(run: dict) -> float:
    """The final NLL of a run's record."""
    return run["metrics"]["validation_nll"]["value"]

"""Going on from the results.json of another machine, where the folder that it was made in is gone.

Part 1 and what was measured in part 2 are kept. Part 3, if it is not finished there, is made anew as a whole, since its
runs are compared with one another: from the best arm, which is adapted again for it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from scripts.real_model import Stopped
from studies.real_model.sizes import Sizes

from stabledllm.runtime.files import read_json, write_json

SCHEMA = "stabledllm/study-real-model/1"
FILE = "earlier.json"
"""In the study's folder: the results that it goes on from."""
ROW_BY_ROW, HALVES = "row by row", "halves"


def earlier_of(out: Path, given: Path | None, sizes: Sizes) -> dict:
    """The results that the study in ``out`` goes on from; empty for none. Those that are ``given`` are kept there.

    Raises:
        Stopped: another study's results, ones without the whole of part 1, or a folder that began without them.
    """
    own = out / FILE
    if given is None:
        return read_json(own, SCHEMA) if own.is_file() else {}
    found = read_json(given, SCHEMA)
    if own.is_file():
        if read_json(own) != found:
            raise Stopped(f"--earlier: {out} goes on from other results already, those of {own}; take another --out.")
        return found
    if (out / "adapt").exists():
        raise Stopped(f"--earlier: expected a folder in which nothing is adapted yet, found {out / 'adapt'}.")
    said = json.loads(json.dumps(asdict(sizes)))
    if found["sizes"] != said:
        keys = ", ".join(key for key in said | found["sizes"] if found["sizes"].get(key) != said.get(key))
        raise Stopped(f"--earlier: expected a study of the same sizes in {given}, found others ({keys}).")
    missing = [arm for arm in sizes.arms if arm not in found["adapt"]]
    if not found["adapt_versus_shift"]:
        missing.append(ROW_BY_ROW)
    if missing:
        raise Stopped(f"--earlier: expected the whole of part 1 in {given}, found no {', '.join(missing)}.")
    write_json(own, found)
    return found


def best_of(adapted: dict[str, dict]) -> str:
    """The pretrained arm that ends with the lowest NLL on the held-out rows.

    >>> def ended_at(nll):
    ...     return {"metrics": {"validation_nll": {"value": nll}}}
    >>> best_of({"shift": ended_at(2.0), "annealed": ended_at(1.5), "random": ended_at(1.0)})
    'annealed'
    """
    return min((arm for arm in adapted if arm != "random"), key=lambda arm: final_nll(adapted[arm]))


def final_nll(run: dict) -> float:
    """The final NLL of a run's record."""
    return run["metrics"]["validation_nll"]["value"]


def kept(earlier: dict, part: str, name: str) -> bool:
    """Whether an item need not be made, as the earlier results have it or nothing that is left needs it.

    What bfloat16 changes is measured on the machine that makes part 3.

    >>> earlier = {"adapt": {"shift": {"metrics": {"validation_nll": {"value": 2.0}}}, "random": {}},
    ...     "noise": {"after": {}}, "precision": {"steps": 6},
    ...     "unfinished": {"noise": ["before-long"], "finetune": ["compute, seed 2"]}}
    >>> [name for name in ("shift", "random", "row by row") if not kept(earlier, "adapt", name)]
    ['shift']
    >>> [name for name in ("after", "before-long", "halves", "precision-float32") if not kept(earlier, "noise", name)]
    ['before-long', 'halves', 'precision-float32']
    >>> kept(earlier, "finetune", "compute, seed 1"), kept(earlier | {"unfinished": {}}, "finetune", "compute, seed 1")
    (False, True)
    """
    if not earlier:
        return False
    left = earlier["unfinished"]
    noise = left.get("noise", ())
    if part == "models":
        return not left
    if part == "adapt":
        on_best = "finetune" in left or any(item.startswith("after") for item in noise)
        return name == ROW_BY_ROW or not (on_best and name == best_of(earlier["adapt"]))
    if part == "finetune":
        return "finetune" not in left
    if name.startswith("precision"):
        return bool(earlier["precision"]) and "finetune" not in left
    return not noise if name == HALVES else name in earlier["noise"]


def merged(own: dict, earlier: dict) -> dict:
    """A study's results with those that it goes on from, which stand where both have one.

    Adds ``kept``: what is of the earlier machine, by part. ``adapted_again``: the arm that part 3 starts from, as
    it was adapted for it; the same arm in ``adapt`` is the earlier one.

    Raises:
        Stopped: the rows of the two are not the same.
    """
    if not earlier:
        return own
    if own["text"] and own["text"] != earlier["text"]:
        raise Stopped("--earlier: expected the rows of the earlier results, found others (text/text.json).")
    record = own | {name: earlier[name] for name in ("text", "conversions", "adapt", "adapt_versus_shift")}
    record["noise"] = own["noise"] | earlier["noise"]
    for name in ("precision", "versions", "device"):
        record[name] = own[name] or earlier[name]
    here = "finetune" in earlier["unfinished"] and bool(own["finetune"])
    third = own if here else earlier
    record |= {name: third[name] for name in ("finetune", "bands")}
    record["plan"] = {"adapt": earlier["plan"]["adapt"], "finetune": third["plan"]["finetune"]}
    record["adapted_again"] = own["adapt"] if here else earlier.get("adapted_again", {})
    names = earlier.get("kept", {}).get("noise") or list(earlier["noise"])
    record["kept"] = {"noise": names, "finetune": not here}
    return record

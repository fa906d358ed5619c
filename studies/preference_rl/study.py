"""The study of preferences and reinforcement learning on the shipped model.

    python studies/preference_rl/study.py                    resumable; all of it takes hours of one idle core
    python studies/preference_rl/study.py --only noise       the noise of a preference step: some 20 minutes
    python studies/preference_rl/study.py --only training    training on rewards, and its noise: two hours
    python studies/preference_rl/study.py --only page        writes README.md of what is measured

Models are trained into ``--out``; what is measured of them is in noise.json and training.json here, and README.md has
its tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import noise
import training
from stabledllm.runtime.files import read_json, write_text

HERE = Path(__file__).parent
PARTS = {"noise": (HERE / "noise.json", noise.section), "training": (training.RESULTS, training.section)}
"""The parts of the page: the results of each, and what writes its section of them."""


def page(text: str, results: dict[str, dict]) -> str:
    """The page with the section of every part that has results replaced."""
    for name, record in results.items():
        before, rest = text.split(begin := f"<!-- {name} -->\n")
        text = before + begin + PARTS[name][1](record) + (end := f"<!-- end of {name} -->\n") + rest.split(end)[1]
    return text


def publish() -> None:
    """Write README.md of what is measured so far."""
    results = {name: read_json(path) for name, (path, _) in PARTS.items() if path.is_file()}
    write_text(HERE / "README.md", page((HERE / "README.md").read_text(encoding="utf-8"), results))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--only", choices=["noise", "training", "page"], help="one part alone")
    asked.add_argument("--out", type=Path, default=Path("runs/preference_rl"), help="folder of the trained models")
    asked.add_argument("--jobs", default="1", help="training runs at the same time, each with its share of the CPU")
    asked.add_argument("--small", action="store_true", help="a trial of the whole, whose results lie in --out")
    given = asked.parse_args()
    if given.only in (None, "noise"):
        if given.small:
            noise.measure(given.out, noise.SMALL, given.out / "noise.json")
        else:
            noise.measure(given.out)
    if given.only in (None, "training"):
        own = {"results": given.out / "training.json"} if given.small else {}
        training.measure(given.out, small=given.small, jobs=given.jobs, **own)
    if not given.small:
        publish()


if __name__ == "__main__":
    main()

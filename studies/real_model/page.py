"""Writes results.json, the pictures, and the tables between the marks of README.md, from a study's folder.

python -m studies.real_model.study --only page     from the folder that the study was made in
python -m studies.real_model.page                  from results.json alone, as after a change of words
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from studies.real_model import tables
from studies.real_model.parts import Study
from studies.real_model.pictures import adaptation, bands, noise
from studies.real_model.results import gather
from studies.real_model.verdicts import verdicts_table

from stabledllm.reports import style
from stabledllm.runtime.files import read_json, write_json

HERE = Path(__file__).parent
PAGE = "README.md"


def write_page(study: Study, folder: Path = HERE) -> None:
    """Gather the study's results into ``results.json``, draw them, and fill the page of ``folder``."""
    if folder != HERE:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / PAGE, folder / PAGE)
    results = gather(study)
    write_json(folder / "results.json", results)
    show(results, folder)


def show(results: dict, folder: Path = HERE) -> None:
    """Draw the results, and fill the page of ``folder``."""
    style.save(adaptation(results), folder / "adaptation.png", "png")
    style.save(noise(results), folder / "noise.png", "png")
    style.save(bands(results), folder / "bands.png", "png")
    fill(folder / PAGE, blocks(results))


def blocks(results: dict) -> dict[str, str]:
    """Every block of the page by its name."""
    return {
        "status": status(results),
        "verdicts": verdicts_table(results),
        "text": tables.text_table(results["text"]),
        "plan_adapt": tables.plan_line(results["plan"]["adapt"], results["text"], "adapt"),
        "plan_finetune": tables.plan_line(results["plan"]["finetune"], results["text"], "tune"),
        "adaptation": tables.adaptation_table(results),
        "precision": tables.precision_line(results["precision"]),
        "components": tables.components_table(results["noise"]),
        "lengths": tables.lengths_table(results["noise"]),
        "methods": tables.methods_table(results["noise"]),
        "recommend": tables.recommendations(results["noise"]),
        "compute": tables.experiment_table(results["finetune"].get("compute"), results["finetune"].get("original")),
        "steps": tables.experiment_table(results["finetune"].get("steps"), None),
        "bands": tables.bands_table(results["bands"]),
    }


def fill(page: Path, blocks: dict[str, str]) -> None:
    """Replace each block between its marks."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, found = re.subn(pattern, lambda m, block=block: f"{m[1]}{block}\n{m[2]}", text, flags=re.S)
        if not found:
            raise ValueError(f"{page}: expected the marks of the block '{name}', found none")
    page.write_text(text, encoding="utf-8")


def status(results: dict) -> str:
    """What is finished: the figures of other parts are not final."""
    left = results["unfinished"]
    where = f"Made on: {results['device'] or 'no run yet'}.{_kept(results)}"
    if not left:
        return f"**Finished.** {where}"
    parts = "; ".join(f"{part} ({len(items)} left, next: {items[0]})" for part, items in left.items())
    return f"**Unfinished: {parts}.** What these parts' tables hold is not final. {where}"


def _kept(results: dict) -> str:
    """What is of an earlier machine, and what that leaves to be told."""
    if not (found := results.get("kept")):
        return ""
    told = f" Of an earlier machine are part 1 and, of part 2, {', '.join(found['noise'])}"
    told += ", and part 3." if found["finetune"] else "."
    for arm in results["adapted_again"]:
        told += f" Part 3 starts from `{arm}` adapted again, which is another model: see part 1."
    return told


def read_results(folder: Path = HERE) -> dict:
    """The results that stand beside the page."""
    return read_json(folder / "results.json")


if __name__ == "__main__":
    show(read_results())

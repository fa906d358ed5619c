"""The pages of the API: the public names, and the modules of the core, one page a package."""

from __future__ import annotations

import inspect
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"
PACKAGES = {
    "noise": "What is drawn: mask ratios, masks and their weights",
    "noise.maskers": "From a mask ratio to masks",
    "loss": "From cross-entropies to the loss",
    "stats": "A number and its error",
    "forward": "A draw through a model, and likelihoods",
    "ppots": "From losses to p(t)",
    "variance": "A, B, C and every method's noise, of the loss",
    "gradient": "The same of the gradient",
    "lab.own": "The laboratory on a model and rows of one's own",
    "lab.measure": "What the laboratory measures, and how much of it",
    "integrations": "The parts for loops of others",
    "errors": "Refusals in one sentence",
}
"""The packages with a page, and what each is for."""
FIRST = {
    "noise": "methods",
    "forward": "elbo",
    "ppots": "target",
    "variance": "components",
    "lab.own": "lab",
    "lab.measure": "decompose",
    "integrations": "noise",
}
"""The module that a reader wants first; the others follow by name."""
APART = ("stabledllm.integrations.lm_eval",)
"""Below those packages, but plug-ins of others' programs: nobody imports them."""
FRONT = """# API

What `from stabledllm import ...` gives: names that stay. Importing the package loads nothing heavy; torch comes with
the first name that is used, and no transformers with any of them.

| name | what it is |
|---|---|
{names}

## The core's modules

For those who read on: the mathematics, on torch, numpy and scipy alone. Names in these modules may change between
versions.

| package | what it is for |
|---|---|
{packages}
"""


def modules_of(package: str) -> list[str]:
    """The public modules directly in a package, in the order of its page; of a module itself, that one."""
    folder = SRC / "stabledllm" / package.replace(".", "/")
    if not folder.is_dir():
        return [f"stabledllm.{package}"]
    stems = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")]
    names = sorted(stems, key=lambda stem: (stem != FIRST.get(package), stem))
    return [name for stem in names if (name := f"stabledllm.{package}.{stem}") not in APART]


def place_of_module(path: str) -> str | None:
    """The page and anchor of a source file, given relative to the repository; None if the API leaves it out."""
    module = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
    for package in PACKAGES:
        if module in modules_of(package):
            return f"api/{package}.md#{module}"
    return None


def page_of(package: str) -> str:
    """The Markdown of a package's page."""
    parts = [f"# {package}", f"{PACKAGES[package]}."]
    for module in modules_of(package):
        parts.append(f"::: {module}\n    options:\n      show_root_full_path: true")
    return "\n\n".join(parts) + "\n"


def front_page() -> str:
    """The Markdown of the API's front page: every public name with its first sentence, and the packages."""
    import stabledllm

    names = [name for name in stabledllm.__all__ if not name.startswith("_")]
    rows = [_row(name, getattr(stabledllm, name)) for name in sorted(names, key=str.lower)]
    packages = [f"| [`{name}`]({name}.md) | {what} |" for name, what in PACKAGES.items()]
    return FRONT.format(names="\n".join(rows), packages="\n".join(packages))


def _row(name: str, thing: object) -> str:
    first = (inspect.getdoc(thing) or "").split("\n\n")[0].split(". ")[0].replace("\n", " ").rstrip(".")
    return f"| [`{name}`][{thing.__module__}.{name}] | {first.replace('|', chr(92) + '|')} |"

"""Where each file of the repository stands in the site, and its links rewritten to that place.

The pages are written once, for a plain viewer: a link leads to a file beside the page. In the site the README is the
front page, a study's README is a page of its own, and a source file is a page of the API or a page with its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from .api import place_of_module

ROOT = Path(__file__).parents[2]
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "tests/README.md": "tests.md",
    "dev/LOG.md": "log.md",
}
"""Pages outside of ``docs/`` and the studies: their paths in the repository and in the site."""
SOURCE = (".py", ".yaml", ".toml", ".txt", ".css")
"""Files that get a page with their text where another page names them."""
SKIPPED = r"(?ms)^(?P<fence>```+).*?^(?P=fence)`*[ \t]*$"
LINK = r"(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^)\s]+)\)"
CODE = r"(?<!`)`(?P<name>[\w./-]+\.(?:py|md|yaml))`(?!`)"
ANY = re.compile(f"{SKIPPED}|{LINK}|{CODE}")


def place_of(path: str) -> str | None:
    """The page or file of the site that shows a file of the repository, with an anchor; None if nothing does."""
    if path in MOVED:
        return MOVED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("studies/") and path.endswith((".md", ".png", ".json")):
        return path.replace("README.md", "index.md")
    if path.startswith("notebooks/"):
        return path.replace(".ipynb", ".md")
    if module := place_of_module(path):
        return module
    return f"source/{path}.md" if path.endswith(SOURCE) else None


def home_of(place: str) -> str:
    """The folder, in the repository, that the links of a page of the site are relative to."""
    for path, moved in MOVED.items():
        if moved == place:
            return posixpath.dirname(path)
    return posixpath.dirname(place if place.startswith(("studies/", "notebooks/")) else f"docs/{place}")


def named_file(name: str, home: str) -> str | None:
    """The file that `` `noise/views.py` `` on a page means: below its folder, the sources or the tests."""
    for folder in (home, "", "src", "src/stabledllm", "tests"):
        path = posixpath.normpath(posixpath.join(folder, name))
        if not path.startswith("..") and (ROOT / path).is_file():
            return path
    return None


def title_of(path: str) -> str:
    """The first heading of a page of the repository."""
    return re.search(r"(?m)^# (.+)$", (ROOT / path).read_text(encoding="utf-8"))[1]


def rewrite(markdown: str, place: str) -> tuple[str, set[str]]:
    """A page with its links, and the files that it names, led to their places; and every place outside of the page.

    A link whose text is a page's path gets the page's title. One to what the site does not hold is left as it is: the
    strict build refuses it by name.
    """
    home, used = home_of(place), set()

    def leads(path: str | None, anchor: str) -> str | None:
        goal = place_of(path) if path else None
        if goal is None:
            return None
        goal, _, own = goal.partition("#")
        used.add(path)
        anchor = anchor or own
        return posixpath.relpath(goal, posixpath.dirname(place) or ".") + (f"#{anchor}" if anchor else "")

    def replaced(match: re.Match[str]) -> str:
        if target := match["target"]:
            path, _, anchor = target.partition("#")
            if not path or "://" in target:
                return match[0]
            path = posixpath.normpath(posixpath.join(home, path))
            led = leads(path if (ROOT / path).is_file() else None, anchor)
            text = title_of(path) if match["text"].strip("[]`") == target and path.endswith(".md") and led else ""
            return f"[{text}]({led})" if text else f"{match['text']}({led or target})"
        if match["name"]:
            path = named_file(match["name"], home)
            led = leads(path, "")
            text = title_of(path) if path and path.endswith(".md") else match[0]
            return f"[{text}]({led})" if led else match[0]
        return match[0]

    return ANY.sub(replaced, markdown), used

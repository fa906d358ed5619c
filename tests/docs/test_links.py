"""Every relative link of the pages, and every page that a docstring or a page names, leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tests" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "studies").rglob("*.md")),
]
CODE = sorted(
    path for folder in ("src", "tests", "studies", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"(?<![\w/.-])((?:docs|studies)/[\w/-]+\.(?:md|png))(#[\w-]+)?")
FILE = re.compile(r"`([\w/]+\.py)`")
GONE = re.compile(r"\b(?:DESIGN|PAPER|PEERS|FIELD)(?:\.md\b| section\b| mistake\b)")
"""Files that the repository does not hold: nobody can follow a citation of them."""


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")) for heading in headings)
    return {text.strip().replace(" ", "-") for text in plain}


def refuse(target: str, base: Path) -> str | None:
    """What is wrong with a link found in a file of the folder ``base``; None where it leads somewhere."""
    path, _, anchor = target.partition("#")
    page = (base / path).resolve()
    if not page.exists():
        return f"no such file: {target}"
    if anchor and (page.suffix != ".md" or anchor not in anchors(page)):
        return f"no such heading: {target}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_pages(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    wrong = [refuse(link if not link.startswith("#") else page.name + link, page.parent) for link in links]
    wrong += [refuse(path + anchor, ROOT) for path, anchor in NAMED.findall(text)]
    assert not [told for told in wrong if told]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_pages(page: Path) -> None:
    """``noise/views.py`` is below the sources, the tests or the repository; a bare name is the page's own folder's."""
    folders = [ROOT, ROOT / "src", ROOT / "src/stabledllm", ROOT / "tests", page.parent]
    named = set(FILE.findall(page.read_text(encoding="utf-8")))
    gone = {path for path in named if not any((folder / path).exists() for folder in folders)}
    assert not {path for path in gone if "/" in path or not list(ROOT.glob(f"[st]*/**/{path}"))}


def test_pages_named_in_code() -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {told}"
        for path in CODE
        for name, anchor in NAMED.findall(path.read_text(encoding="utf-8"))
        if (told := refuse(name + anchor, ROOT))
    }
    assert not wrong


def test_nothing_is_proved_by_a_file_that_is_not_here() -> None:
    here = Path(__file__)
    cited = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in (*CODE, *PAGES)
        if path != here and (found := GONE.search(path.read_text(encoding="utf-8")))
    ]
    assert not cited


def test_a_link_to_nothing_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A heading, of `code`\n", encoding="utf-8")
    assert refuse("a.md#a-heading-of-code", tmp_path) is None
    assert refuse("a.md#another", tmp_path) == "no such heading: a.md#another"
    assert refuse("b.md", tmp_path) == "no such file: b.md"

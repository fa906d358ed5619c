"""The hooks of mkdocs: the pages that stand outside of ``docs/`` or are made join the site, and links follow them."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from site_pages import api, commands, keys, notebooks, recipes
from site_pages.places import MOVED, ROOT, SOURCE, place_of, rewrite

MADE = {
    "api/index.md": api.front_page,
    "commands.md": commands.page,
    "keys.md": keys.page,
    "recipes.md": recipes.page,
}
STUDIES = ("README.md", "*.png", "results.json")
ALONE = ("index.md", "failures.md")
"""Pages that are a tab of their own: a list of the tab's pages would hold them alone."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page and picture that the site shows from elsewhere, and the sources that any of them names."""
    for path in MOVED:
        _add(files, config, MOVED[path], abs_src_path=str(ROOT / path))
    for study in sorted((ROOT / "studies").iterdir()):
        for path in sorted(found for pattern in STUDIES for found in study.glob(pattern)):
            repository = path.relative_to(ROOT).as_posix()
            _add(files, config, place_of(repository), abs_src_path=str(path))
    for place, made in MADE.items():
        _add(files, config, place, content=made())
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        _add(files, config, f"notebooks/{path.stem}.md", content=notebooks.page(path))
    for package in api.PACKAGES:
        _add(files, config, f"api/{package}.md", content=api.page_of(package))
    for path in sorted(_named_sources(files)):
        content = _source_page(path)
        _add(files, config, f"source/{path}.md", content=content, inclusion=InclusionLevel.NOT_IN_NAV)
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead the links of a page to their places in the site."""
    if page.file.src_uri in ALONE:
        page.meta["hide"] = ["navigation"]
    return markdown if page.file.src_uri.startswith("source/") else rewrite(markdown, page.file.src_uri)[0]


def _add(files: Files, config: MkDocsConfig, place: str, **options) -> None:
    files.append(File.generated(config, place, **options))


def _named_sources(files: Files) -> set[str]:
    """The files of the repository that some page names and the site shows as their text."""
    named = set()
    for file in files.documentation_pages():
        named |= rewrite(file.content_string, file.src_uri)[1]
    return {path for path in named if (place_of(path) or "").startswith("source/")}


def _source_page(path: str) -> str:
    text, kind = (ROOT / path).read_text(encoding="utf-8"), Path(path).suffix[1:]
    assert path.endswith(SOURCE)
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n````{kind}\n{text}````\n"

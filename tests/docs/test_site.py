"""The site's settings refuse broken links, its navigation holds every page, and what is made of sources is Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest
import tomllib
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from scripts.site_pages import api, keys, notebooks, recipes
from scripts.site_pages.docstrings import readable
from scripts.site_pages.places import MOVED, place_of, rewrite

from tests.docs.test_links import PAGES

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "mkdocs.yml")
STUDY = "studies/images"
MADE = {"recipes.md", "keys.md", "commands.md", "api/index.md", *(f"api/{name}.md" for name in api.PACKAGES)}


def built(tmp_path: Path, pages: dict[str, str], nav: list[str]) -> str:
    """The front page of a site of these pages under the project's own settings, without what makes pages."""
    for name, text in pages.items():
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / name).write_text(text, encoding="utf-8")
    site = tmp_path / "site"
    build(load_config(CONFIG, docs_dir=str(tmp_path / "docs"), site_dir=str(site), nav=nav, plugins=[], hooks=[]))
    return (site / "index.html").read_text(encoding="utf-8")


def leaves(nav: object) -> Iterator[str]:
    for entry in nav if isinstance(nav, list) else nav.values():
        yield from leaves(entry) if isinstance(entry, list | dict) else [entry]


def test_good_page_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = built(tmp_path, {"index.md": "# A\n\n[b](b.md#there)\n", "b.md": "# B\n\n## There\n"}, ["index.md", "b.md"])
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?([^\" >]+)", page)
    assert loaded
    assert not [address for address in loaded if "//" in address], "a reader without a network sees all of it"


@pytest.mark.parametrize(
    "pages",
    [
        {"index.md": "# A\n\n[gone](gone.md)\n"},
        {"index.md": "# A\n\n[no such heading](#gone)\n"},
        {"index.md": "# A\n\n![no picture](gone.png)\n"},
        {"index.md": "# A\n\n[from the root](/index.md)\n"},
        {"index.md": "# A\n", "b.md": "# Outside of the navigation\n"},
    ],
    ids=["page", "anchor", "picture", "absolute", "navigation"],
)
def test_strict(tmp_path: Path, pages: dict[str, str]) -> None:
    with pytest.raises(Abort, match="strict mode"):
        built(tmp_path, pages, ["index.md"])


def test_navigation_holds_every_page_once() -> None:
    """What ``make docs`` would find too, half a minute later."""
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    elsewhere = [*ROOT.glob("studies/*/README.md"), *ROOT.glob("notebooks/*.ipynb")]
    moved = {place_of(path.relative_to(ROOT).as_posix()) for path in elsewhere}
    listed = list(leaves(load_config(CONFIG)["nav"]))
    assert sorted(listed) == sorted(own | moved | MADE | set(MOVED.values()))


def test_api_shows_the_core() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    core = next(contract["source_modules"] for contract in contracts if contract["id"] == "core")
    shown = {module for package in api.PACKAGES for module in api.modules_of(package)}
    assert not [name for name in core if not any(f"{module}.".startswith(f"{name}.") for module in shown)]


def test_public_names_lead_to_a_page() -> None:
    shown = {module for package in api.PACKAGES for module in api.modules_of(package)}
    homes = re.findall(r"\]\[([\w.]+)\.\w+\]", api.front_page())
    assert len(homes) >= 14
    assert set(homes) <= shown


def refused_markup(text: str) -> list[str]:
    """The lines that the site shows otherwise than a plain viewer: lists with no blank line, or indented too little."""
    plain = re.sub(r"(?ms)^ *```.*?^ *```$", "", text)
    lazy = r"^(?!\s|[-*] |\d+\. |#|\||<!--).+\n(?:[-*]|\d+\.) .+$"
    return re.findall(rf"(?m){lazy}|^\n {{1,3}}\S.*$|^ {{1,3}}\|.*$", plain)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_read_alike_in_a_plain_viewer_and_in_the_site(page: Path) -> None:
    assert not refused_markup(page.read_text(encoding="utf-8"))


def test_markup_that_reads_unlike_is_noticed() -> None:
    assert not refused_markup("A\n\n- b\n  c\n\n    d\n\n    | e |\n")
    assert refused_markup("A:\n- b\n") == ["A:\n- b"]
    assert refused_markup("- b\n\n  c\n") == ["\n  c"]
    assert refused_markup("- b\n  | c |\n") == ["  | c |"]


@pytest.mark.parametrize(
    ("place", "text", "led"),
    [
        ("index.md", "[a](docs/models.md#models)", "[a](models.md#models)"),
        ("index.md", "[docs/models.md](docs/models.md)", "[Models](models.md)"),
        ("index.md", "![p](docs/pictures.png)", "![p](pictures.png)"),
        ("settings.md", "`noise/views.py`", "[`noise/views.py`](api/noise.md#stabledllm.noise.views)"),
        ("settings.md", "`noise/test_views.py`", "[`noise/test_views.py`](source/tests/noise/test_views.py.md)"),
        (f"{STUDY}/index.md", "[m](../../docs/models.md)", "[m](../../models.md)"),
        (f"{STUDY}/index.md", "`compare.yaml`", f"[`compare.yaml`](../../source/{STUDY}/compare.yaml.md)"),
        ("settings.md", "`recipe.yaml` and [x](#y)", "`recipe.yaml` and [x](#y)"),
        ("settings.md", "```sh\ncat `noise/views.py`\n```", "```sh\ncat `noise/views.py`\n```"),
        ("settings.md", "[gone](../gone.md)", "[gone](../gone.md)"),
    ],
)
def test_links_follow_the_pages(place: str, text: str, led: str) -> None:
    assert rewrite(text, place)[0] == led


def test_docstrings_become_markdown() -> None:
    module = griffe.visit(
        "stabledllm",
        filepath=Path("stabledllm.py"),
        code='def f():\n    """F."""\n\n\ndef _g():\n    """G."""\n',
    )
    assert readable("See :func:`f`.", module) == "See [`f`][stabledllm.f]."
    assert readable("See :func:`_g` and :func:`gone`.", module) == "See `_g` and `gone`."
    assert readable("A.\n\n>>> 1 + 1\n2\n\nB::\n\n    c", module) == (
        "A.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nB:\n\n    c"
    )


def test_every_argument_gets_its_line() -> None:
    module = griffe.visit("m", filepath=Path("m.py"), code="def f(a, b, c, d):\n    pass\n")
    text = readable("F.\n\nArgs:\n    a, b: ids. c: the mask.\n        More of it. d: a number: 1.\n", module["f"])
    assert text == (
        "F.\n\nArgs:\n    a: as `b`.\n    b: ids.\n    c: the mask.\n        More of it.\n    d: a number: 1.\n"
    )


def test_every_key_has_its_meaning() -> None:
    rows = re.findall(r"(?m)^\| .*`([\w.]+)`.* \| .* \| (.*) \|$", keys.page())
    assert len(rows) > 120
    without = {key for key, meaning in rows if "TrainingArguments" in meaning} - {"trainer"}
    assert without, "fields of transformers have no words of ours"
    assert not [key for key in without if not key.startswith("trainer.")]


def test_recipes_name_what_they_extend() -> None:
    page = recipes.page()
    assert "Extends [`parts/paper`](#parts-paper), [`parts/gsm8k`](#parts-gsm8k)." in page
    assert page.count("\n```yaml\n") == page.count("\n### ")


def test_notebook_page_shows_cells_and_outputs() -> None:
    page = notebooks.page(ROOT / "notebooks" / "train_and_compare.ipynb")
    assert page.startswith("# Train and compare\n")
    assert '<img alt="" src="data:image/png;base64,' in page
    assert "run_experiment(" in page

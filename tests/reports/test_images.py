"""Stored pictures stand side by side in the report: a caption a line, a method a column, framed by the verdict."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stabledllm.errors import UserError
from stabledllm.reports.html import write_report
from stabledllm.reports.images import side_by_side

CAPTIONS = [f"caption {i}" for i in range(15)]


def colour(*what: object) -> tuple[int, int, int]:
    rng = np.random.default_rng(abs(hash(what)) % 2**32)
    return tuple(rng.integers(0, 256, 3).tolist())


def store(place: Path, name: str, score: str = "correct", side: int = 8) -> None:
    (place / "pictures").mkdir(parents=True)
    lines = []
    for i, caption in enumerate(CAPTIONS):
        Image.new("RGB", (side, side), colour(name, i)).save(place / "pictures" / f"{i:05d}.png")
        value = i % 2 == 0 if score == "correct" else 20.0 + i
        lines.append({"caption": caption, "picture": f"pictures/{i:05d}.png", score: value})
    (place / "pictures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def experiment(tmp_path) -> tuple[Path, dict]:
    folder = tmp_path / "experiment"
    runs = []
    for method in ("ppots+mirror", "standard"):
        for seed in (1, 2):
            store(folder / "runs" / method / f"seed-{seed}", f"{method}{seed}")
            metrics = {"accuracy": {"value": 0.5, "stderr": 0.1, "n": 15, "unit": "share"}}
            runs.append({"method": method, "seed": seed, "metrics": metrics, "forward_passes": 1, "seconds": 1.0})
    store(folder / "untuned", "untuned")
    return folder, {"runs": runs, "summary": []}


def pixel(uri: str) -> tuple[int, int, int]:
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))


def test_one_table_a_seed_with_standard_first(experiment):
    folder, results = experiment
    tables = side_by_side(folder, results)
    assert [t["seed"] for t in tables] == [1, 2]
    for table in tables:
        assert table["columns"] == ["untuned model", "Standard", "P-POTS + MIRROR"]
        assert [row["caption"] for row in table["rows"]] == CAPTIONS[:12]
        names = ("untuned", f"standard{table['seed']}", f"ppots+mirror{table['seed']}")
        for i, row in enumerate(table["rows"]):
            assert [cell["mark"] for cell in row["cells"]] == ["right" if i % 2 == 0 else "wrong"] * 3
            assert [pixel(cell["uri"]) for cell in row["cells"]] == [colour(name, i) for name in names]


def test_scores_in_place_of_verdicts_and_large_pictures_are_made_small(tmp_path):
    store(tmp_path / "runs" / "standard" / "seed-3", "clip", "clip_score", side=512)
    table = side_by_side(tmp_path, {"runs": [{"method": "standard", "seed": 3}], "summary": []})[0]
    cell = table["rows"][4]["cells"][0]
    assert (cell["mark"], cell["score"]) == ("", "24.0")
    assert Image.open(io.BytesIO(base64.b64decode(cell["uri"].partition(",")[2]))).size == (256, 256)


def test_runs_without_pictures_have_no_table(tmp_path):
    assert side_by_side(tmp_path, {"runs": [{"method": "standard", "seed": 3}], "summary": []}) == []


def test_broken_files_are_named(experiment):
    folder, results = experiment
    place = folder / "runs" / "standard" / "seed-1"
    (place / "pictures" / "00000.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"00000\.png: expected a stored picture"):
        side_by_side(folder, results)
    (place / "pictures.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"pictures\.jsonl: expected lines with 'caption'"):
        side_by_side(folder, results)


def _with_first(place: Path, name: object) -> None:
    lines = (place / "pictures.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"picture": name})
    (place / "pictures.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "name", ["../../../../secret.png", "pictures/../../secret.png", "ABSOLUTE", "link.png", "\0", "a" * 5000, 3, None]
)
def test_nothing_outside_the_runs_folder_is_read(experiment, tmp_path, name):
    folder, results = experiment
    place, secret = folder / "runs" / "standard" / "seed-1", tmp_path / "secret.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(secret)
    (folder / "runs" / "standard" / "secret.png").write_bytes(secret.read_bytes())
    (place / "link.png").symlink_to(secret)
    _with_first(place, str(secret) if name == "ABSOLUTE" else name)
    with pytest.raises(UserError, match=r"pictures\.jsonl"):
        side_by_side(folder, results)


def test_methods_that_lead_out_are_refused(experiment, tmp_path):
    folder, results = experiment
    store(tmp_path / "elsewhere" / "seed-1", "elsewhere")
    results["runs"].append({"method": "../../elsewhere", "seed": 1})
    with pytest.raises(UserError, match="a way out of it"):
        side_by_side(folder, results)


@pytest.mark.parametrize("kind", ["fifo", "folder", "gif", "cut", "svg", "huge", "gone"])
def test_only_whole_pngs_and_jpegs_are_pictures(experiment, kind):
    folder, results = experiment
    path = folder / "runs" / "standard" / "seed-1" / "pictures" / "00000.png"
    whole = path.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "gif":
        Image.new("P", (8, 8)).save(path, "GIF")
    elif kind == "huge":
        Image.new("1", (20_000, 20_000)).save(path, "PNG")
    elif kind != "gone":
        path.write_bytes(whole[:-30] if kind == "cut" else b"<svg onload='alert(1)'/>")
    with pytest.raises(UserError, match=r"00000\.png: expected a stored picture"):
        side_by_side(folder, results)


def test_a_cmyk_jpeg_is_shown(experiment):
    folder, results = experiment
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(
        folder / "runs" / "standard" / "seed-1" / "pictures" / "00000.png", "JPEG"
    )
    assert pixel(side_by_side(folder, results)[0]["rows"][0]["cells"][1]["uri"]) == (255, 255, 255)


def test_a_run_with_fewer_pictures_is_named(experiment):
    folder, results = experiment
    path = folder / "runs" / "standard" / "seed-1" / "pictures.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="expected 12 pictures or more, found 1"):
        side_by_side(folder, results)


def test_the_page_holds_them(experiment):
    folder, results = experiment
    results |= {"schema": "stabledllm/results/1", "config": {}, "versions": {}, "untuned": None, "notes": []}
    results |= {"status": {"finished": 4, "planned": 4}, "statements": []}
    (folder / "results.json").write_text(json.dumps(results))
    page = write_report(folder.parent).read_text()
    assert len(re.findall(r'class="drawn right"', page)) == 2 * 3 * 6
    assert len(re.findall(r'class="drawn wrong"', page)) == 2 * 3 * 6
    assert page.index("caption 0") < page.index("caption 11")
    assert "caption 12" not in page

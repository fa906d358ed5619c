"""The notebooks run from top to bottom in a fresh kernel; what is stored of them is small and of nobody's machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
MOST_BYTES = 300_000


def kinds(cell: dict) -> set[str]:
    """What a cell put out: printed text, or the richest form of its results; messages of libraries do not count."""
    found = set()
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            found |= {"text"} if output["name"] == "stdout" else set()
        else:
            data = output.get("data", {})
            found |= {next((kind for kind in ("text/html", "image/png", "text/plain") if kind in data), "error")}
    return found


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["measure_your_model", "train_and_compare"]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.processes
@by_name
def test_runs(path: Path, tmp_path: Path) -> None:
    """Every cell ends without an error and puts out what the stored page shows, in kind."""
    import nbformat
    from jupyter_client import AsyncKernelManager
    from nbclient import NotebookClient

    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    folder = tmp_path / "reader"
    folder.mkdir()
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(tmp_path / "ipc"))
    try:
        NotebookClient(fresh, timeout=200, km=kernel, resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        asyncio.run(kernel.shutdown_kernel(now=True))  # a kernel that is given is left running
    assert [kinds(cell) for cell in fresh.cells] == [kinds(cell) for cell in stored.cells]
    shown = json.dumps(fresh)
    assert "<progress" not in shown, "the trainer's own progress table of transformers beside ours"
    assert not list(folder.iterdir()), "a reader's folder stays as it was"


@by_name
def test_stored_small_and_clean(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert not [word for word in ("/tmp/", "/root/", "/home/", "/work/", "Traceback", '"stderr"') if word in text]
    cells = json.loads(text)["cells"]
    assert all(cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
    assert any(cell.get("outputs") for cell in cells), "the site shows what the cells printed"

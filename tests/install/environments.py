"""Environments of their own to install the wheel into, with this one's torch, which is never fetched a second time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.cli.runner import ROOT

UNREACHABLE = ("No matching distribution found", "Max retries exceeded", "Failed to establish a new connection")
"""What pip says where it reaches no registry."""


def build_wheel(folder: Path) -> Path:
    """The wheel of these sources, built from a copy: a build leaves folders behind."""
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, folder, source], check=True, capture_output=True)
    (wheel,) = folder.glob("stabledllm-*.whl")
    return wheel


class Environment:
    """A fresh virtual environment."""

    def __init__(self, folder: Path, python: str = sys.executable, *options: str):
        self.folder = folder
        subprocess.run([python, "-m", "venv", *options, folder], check=True, capture_output=True)
        self.pins: list[str] = []

    def run(self, program: str, *arguments: object, **env: str) -> subprocess.CompletedProcess:
        """One of its programs, without this environment's paths."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [self.folder / "bin" / program, *map(str, arguments)],
            cwd=self.folder, env=kept | {"OMP_NUM_THREADS": "1"} | env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def link(self, *names: str) -> None:
        """Links packages of the running environment, with all that they need, into this one; pip may not touch them,
        as through a link it would remove the original."""
        (site,) = self.folder.glob("lib/python*/site-packages")
        open_, seen = list(names), set()
        while open_:
            package = metadata.distribution(open_.pop())
            if package.metadata["Name"] in seen:
                continue
            seen.add(package.metadata["Name"])
            for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
                if not (site / top).exists():
                    (site / top).symlink_to(package.locate_file(top))
            needs = map(Requirement, package.requires or ())
            open_ += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
            self.pins.append(f"{package.metadata['Name']}=={package.version}")

    def fetch(self, *wanted: str) -> None:
        """``pip install`` from the registry; skips the test, and says why, where there is none that holds them."""
        done = self._pip_install(*wanted)
        if done.returncode and any(text in done.stderr for text in UNREACHABLE):
            pytest.skip(f"pip finds no registry with these: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr

    def install(self, *wanted: object) -> None:
        """``pip install`` of what needs no registry."""
        done = self._pip_install(*wanted)
        assert done.returncode == 0, done.stderr

    def _pip_install(self, *wanted: object) -> subprocess.CompletedProcess:
        pins = self.folder / "pins.txt"
        pins.write_text("\n".join(self.pins))
        return self.run("python", "-m", "pip", "install", "--quiet", "--retries", 1, "--constraint", pins, *wanted)

    def freeze(self) -> set[str]:
        """What is installed, by name and version."""
        done = self.run("python", "-m", "pip", "freeze", "--all")
        assert done.returncode == 0, done.stderr
        return set(done.stdout.splitlines())

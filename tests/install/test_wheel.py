"""The wheel beside the versions that other trainers pin: it moves none of them, and what it is for works there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checks.statistics import Z
from tests.cli.runner import ROOT, assert_refused
from tests.install.environments import Environment, build_wheel

pytestmark = pytest.mark.processes
OLDER = ("transformers==4.57.0", "peft==0.17.1", "accelerate==1.11.0")
"""dllm's pins, and what peft of that time takes."""
OWN_TRAINER, PAGE = ROOT / "tests/install/own_trainer.py", ROOT / "docs/use_in_your_loop.md"
OWN_MODEL, MODEL_PAGE = ROOT / "tests/install/own_model.py", ROOT / "docs/your_own_model.md"
DRAWS = 40 * 256
OTHERS = [f"3.{minor}" for minor in range(10, 16) if minor != sys.version_info.minor]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def beside(wheel, tmp_path_factory):
    """An environment of dllm's time with the wheel in it, and what was installed before and after that."""
    environment = Environment(tmp_path_factory.mktemp("beside") / "venv")
    environment.link("torch", "numpy", "scipy")
    environment.fetch(*OLDER)
    before = environment.freeze()
    environment.install(wheel)
    return environment, before, environment.freeze()


def check_own_trainer(environment: Environment) -> dict[str, dict[str, float]]:
    """Runs ``own_trainer.py`` there: nothing loaded but torch's own, less variance at the same mean."""
    done = environment.run("python", OWN_TRAINER, PAGE, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["from"].startswith(str(environment.folder))
    assert set(told["loaded"]) & {"transformers", "peft", "pydantic", "typer", "matplotlib"} == set()
    for found in told["found"].values():
        error = (found["before_variance"] / DRAWS) ** 0.5
        assert abs(found["after"] - found["before"]) < 2 * Z * error
        assert abs(found["elbo"] - found["before"]) < 2 * Z * error
        assert found["after_variance"] < 0.8 * found["before_variance"]
    return told["found"]


def test_nothing_moves_but_this_package(beside):
    _, before, after = beside
    assert set(OLDER) < before
    assert {line.partition(" ")[0] for line in after - before} == {"stabledllm"}
    assert before < after


def test_ones_own_trainer_has_less_noise_there(beside):
    assert set(check_own_trainer(beside[0])) == {"plain", "older"}


def test_ones_own_model_is_measured_there(beside):
    """The page's lines on dllm, and every measurement, with no package that only the extra brings."""
    environment, *_ = beside
    done = environment.run("python", OWN_MODEL, MODEL_PAGE, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["from"].startswith(str(environment.folder))
    assert set(told["loaded"]) & {"transformers", "peft", "pydantic", "typer", "matplotlib", "yaml", "rich"} == set()
    assert set(told["found"]) == {"plain", "older"}
    for found in told["found"].values():
        (before, before_variance), (after, after_variance) = found["before"], found["after"]
        assert abs(after - before) < Z * ((before_variance + after_variance) / 400) ** 0.5
        assert after_variance < 0.85 * before_variance
        assert found["gradient"] > 0
        assert found["saved"] == ["decomposition.json"]
        assert "pictures need matplotlib" in found["warned"][0]
        assert found["said"]


def test_the_command_line_says_which_extra_it_wants(beside):
    for program in (["stabledllm"], ["python", "-m", "stabledllm", "fit"]):
        done = beside[0].run(*program)
        assert_refused(done, "typer", "pip install 'stabledllm[train]'")
        assert done.stderr.count("\n") == 1


def interpreter(version: str) -> str | None:
    """A Python of that version that starts: on the path, or of pyenv's, whose shims start only chosen ones."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob(f"versions/{version}.*/bin/python")
    for found in (shutil.which(f"python{version}"), *map(str, sorted(pyenv))):
        if found and subprocess.run([found, "-c", "import venv"], capture_output=True).returncode == 0:
            return found
    return None


@pytest.mark.parametrize("version", OTHERS)
def test_on_another_python(version, wheel, tmp_path):
    """Every file compiles there; the trainer runs where that Python has a torch, else what needs none imports."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    environment = Environment(tmp_path / "venv", python, "--system-site-packages")
    environment.install("--no-deps", "--no-index", "--no-compile", wheel)
    (package,) = environment.folder.glob("lib/python*/site-packages/stabledllm")
    done = environment.run("python", "-W", "error", "-m", "compileall", "-q", "-f", package)
    assert done.returncode == 0, done.stdout
    if environment.run("python", "-c", "import torch, numpy, scipy").returncode == 0:
        check_own_trainer(environment)
    else:
        assert environment.run("python", "-c", "import stabledllm.errors, stabledllm.runtime.files").returncode == 0

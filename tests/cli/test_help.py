"""``--help`` answers at once, and every command has one."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from stabledllm.config import shipped_launches, shipped_recipes
from tests.cli.runner import ROOT, assert_refused, stabledllm
from tests.cli.runner import in_process as call

NEEDED = {
    "sft": ["model=tiny", "data.train=train.jsonl", "batch=1"],
    "dpo": ["model=tiny", "data.train=pairs.jsonl", "batch=1", "micro_batch=1"],
    "grpo": ["model=tiny", "data.train=synthetic:hard", "batch=1"],
    "preferences/llada-8b-vrpo": ["data.train=pairs.jsonl", "batch=1"],
    "preferences/llada2.0-mini": ["data.train=pairs.jsonl", "batch=1"],
    "pretrain/stream": ["data.train=text:train.jsonl", "data.validation=text:train.jsonl"],
}
"""What a recipe leaves to its user."""
COMMANDS = (
    "quickstart",
    "quickstart-rl",
    "decompose",
    "fit",
    "train",
    "experiment",
    "generate",
    "eval",
    "merge",
    "replay",
    "report",
    "ls",
    "cp",
    "validate",
    "plan",
)


@pytest.mark.processes
def test_help_lists_every_command(tmp_path):
    result = stabledllm("--help", cwd=tmp_path)
    assert result.returncode == 0
    for command in COMMANDS:
        assert command in result.stdout
        assert call(command, "--help", cwd=tmp_path).returncode == 0


@pytest.mark.processes
def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['stabledllm', '--help']\n"
        "from stabledllm.cli.main import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "heavy = [m for m in ('torch', 'transformers', 'matplotlib', 'scipy', 'pydantic') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    env = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_valid(tmp_path, name):
    row = {"question": "1+1?", "answer": "#### 2", "text": "1+1=2", "prompt": "1+1?", "completion": "2"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")  # the place of the user's own file in three recipes
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "1+1?", "chosen": "2", "rejected": "3"}) + "\n")
    result = call("validate", name, *NEEDED.get(name, []), cwd=tmp_path)
    if name in ("parts/lora", "parts/lora-attention", "parts/paper"):
        assert_refused(result, f"a part of others; write RECIPE+{name.removeprefix('parts/')}")
        return
    if (name == "sft-gsm-symbolic" or name.endswith("-countdown")) and not find_spec("reasoning_gym"):
        assert_refused(result, "pip install 'stabledllm[reasoning-gym]'")
        return
    assert result.returncode == 0, result.stderr
    assert "in order" in result.stdout


def test_ls_and_cp(tmp_path):
    listed = call("ls", cwd=tmp_path)
    assert all(name in listed.stdout for name in shipped_recipes() | shipped_launches())
    assert call("cp", "sft-synthetic", cwd=tmp_path).returncode == 0
    assert (tmp_path / "sft-synthetic.yaml").read_text() == shipped_recipes()["sft-synthetic"]
    assert call("cp", "accelerate/fsdp2", cwd=tmp_path).returncode == 0
    assert (tmp_path / "fsdp2.yaml").read_text() == shipped_launches()["accelerate/fsdp2"]
    again = call("cp", "sft-synthetic", cwd=tmp_path)
    assert again.returncode == 2
    assert "there already" in again.stderr

"""``stabledllm plan``: every shipped recipe has an estimate; a run that does not fit is refused with what would."""

from __future__ import annotations

import re

import pytest

from stabledllm.config import shipped_recipes
from tests.cli.runner import assert_refused
from tests.cli.runner import in_process as call


# Launch configurations are shipped beside the recipes and are none.
@pytest.mark.parametrize("name", sorted(n for n in shipped_recipes() if not n.startswith("accelerate/")))
def test_every_shipped_recipe_has_a_plan(tmp_path, name):
    result = call("plan", name, *(["model=tiny"] if name in ("sft", "dpo", "grpo") else []), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "needed per device" in result.stdout


def test_pairs_and_their_reference(tmp_path):
    def planned(*words: str) -> tuple[dict[str, float], str]:
        result = call("plan", "dpo", "model=GSAI-ML/LLaDA-8B-Instruct", "dtype=bfloat16", *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        lines = [line for line in result.stdout.splitlines() if line.endswith(" GiB")]
        return {line[2:20].strip(): float(line[20:-3]) for line in lines}, result.stdout

    copied, text = planned()
    kept, _ = planned("dpo.reference=kept")
    assert "4 forward rows x 2048 tokens" in text
    assert copied["weights"] == pytest.approx(2 * kept["weights"], abs=0.2)
    fewer, text = planned("dpo.tokens_per_forward=2048")
    assert "1 forward rows x 2048 tokens" in text
    assert fewer["activations"] < 0.4 * copied["activations"]
    words = ["model=GSAI-ML/LLaDA-8B-Instruct", "dtype=bfloat16", "--memory", "80GiB"]
    assert_refused(call("plan", "dpo", *words, cwd=tmp_path), "dpo.tokens_per_forward=2048 dpo.reference=kept")
    eight = ["--devices", "8", "--sharding", "fsdp2"]
    on_eight = [planned(f"dpo.reference={kind}", *eight)[0] for kind in ("copy", "kept")]
    one_eighth = (copied["weights"] - kept["weights"]) / 8
    assert on_eight[0]["weights"] - on_eight[1]["weights"] == pytest.approx(one_eighth, abs=0.2)
    refused = call("plan", "dpo", *words, "--devices", "8", "--longest", "4096", cwd=tmp_path)
    assert_refused(refused, "sharding fsdp2")
    assert "zero" not in refused.stderr, "DeepSpeed does not train on preferences"


def test_what_is_printed(tmp_path):
    result = call("plan", "gsm8k/llada-8b", "--devices", "8", "--sharding", "zero2", "--memory", "80GiB", cwd=tmp_path)
    assert "8,015,581,184 parameters" in result.stdout
    assert "1 rows x 2 views x 4096 tokens" in result.stdout
    assert "It fits 80.0 GiB." in result.stdout
    lines = {line[2:20].strip(): float(line[20:-3]) for line in result.stdout.splitlines() if line.endswith(" GiB")}
    assert lines["weights"] == 14.9
    assert lines.pop("needed per device") == pytest.approx(sum(lines.values()), abs=0.4)
    assert "would take 9.0 GiB more" in result.stdout


def test_the_dearest_method_of_an_experiment_counts(tmp_path):
    result = call("plan", "table1/gsm8k", cwd=tmp_path)
    assert "2 views" in result.stdout


def test_a_run_that_does_not_fit(tmp_path):
    result = call("plan", "gsm8k/llada-8b", "--memory", "40GiB", cwd=tmp_path)
    assert_refused(result, "'gsm8k/llada-8b' needs about 68.9 GiB", "found 40.0 GiB", "sharding zero2_offload")
    lora = call("plan", "gsm8k/llada-8b+lora", "--memory", "40GiB", cwd=tmp_path)
    assert lora.returncode == 0
    short = call("plan", "gsm8k/llada-8b+lora", "--longest", "512", "--memory", "22GiB", cwd=tmp_path)
    assert short.returncode == 0, short.stderr


def test_bfloat16_without_master_weights_is_said(tmp_path):
    assert "loses updates" in call("plan", "gsm8k/llada-8b", cwd=tmp_path).stdout
    for arguments in (["gsm8k/llada-8b", "--sharding", "zero2"], ["gsm8k/llada-8b+lora"], ["sft-synthetic"]):
        assert "loses updates" not in call("plan", *arguments, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gsm8k/llada-8b", "--sharding", "zero4"], ["expected a sharding of ddp", "found 'zero4'"]),
        (["gsm8k/llada-8b", "--memory", "much"], ["such as 80GiB", "found 'much'"]),
        (["gsm8k/llada-8b", "--devices", "3"], ["key 'batch'", "1 x 3"]),
        (["gsm8k/llada-8b", "model=somebody/else"], ["model 'somebody/else'", "found neither"]),
        (["gsm8k/llada-8b", "method=mirorr"], ["unknown part 'mirorr'"]),
    ],
)
def test_refusals(tmp_path, arguments, words):
    assert_refused(call("plan", *arguments, cwd=tmp_path), *words)


def test_responses_and_their_reference(tmp_path):
    """A prompt and its response are one row; the reference is counted where there is one that is no adapter."""
    words = ["model=GSAI-ML/LLaDA-8B-Instruct", "data.train=gsm8k", "dtype=bfloat16", "data.max_len=768"]
    alone = call("plan", "grpo", *words, "grpo.rollout.length=256", cwd=tmp_path)
    assert "8 forward rows x 1024 tokens" in alone.stdout, alone.stderr
    held = call("plan", "grpo", *words, "grpo.beta=0.01", cwd=tmp_path)
    weights = [float(re.search(r"weights +([\d.]+) GiB", each.stdout)[1]) for each in (alone, held)]
    assert weights[1] == pytest.approx(2 * weights[0], abs=0.2)
    adapted = call("plan", "grpo+lora", *words, "grpo.beta=0.01", cwd=tmp_path)
    assert float(re.search(r"weights +([\d.]+) GiB", adapted.stdout)[1]) < 1.2 * weights[0]
    small = call("plan", "grpo+lora", *words, "--memory", "22GiB", "grpo.tokens_per_forward=65536", cwd=tmp_path)
    assert_refused(small, "grpo.tokens_per_forward=896")

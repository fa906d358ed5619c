"""Every shipped recipe: valid without weights, and with the numbers that the paper states."""

from __future__ import annotations

import pytest

from stabledllm.config import ExperimentSettings, load_recipe, shipped_recipes
from stabledllm.errors import UserError
from stabledllm.experiment.validation import validate
from stabledllm.models.shapes import PUBLISHED
from stabledllm.planning.layout import Layout
from stabledllm.planning.memory import estimate

MODELS = {
    "llada-8b": "GSAI-ML/LLaDA-8B-Instruct",
    "dream-7b": "Dream-org/Dream-v0-Instruct-7B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3-8b": "Qwen/Qwen3-8B-Base",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
}
DECODING = {"gsm8k": (128, 128, 32), "openscience": (256, 256, 256), "hitab": (512, 256, 16)}
PAPER = [f"{task}/{model}" for task in DECODING for model in MODELS]


# Launch configurations are shipped beside the recipes and are none.
@pytest.mark.parametrize("name", sorted(n for n in shipped_recipes() if not n.startswith("accelerate/")))
def test_every_recipe_is_valid(name):
    if name == "sft-gsm-symbolic" or name.endswith("-countdown"):
        pytest.importorskip("reasoning_gym", reason="the package reasoning-gym is not installed")
    needed = {"sft": ["model=tiny", "data.train=synthetic"], "dpo": ["model=tiny", "data.train=pairs.jsonl"]}
    needed["grpo"] = ["model=tiny", "data.train=synthetic"]
    needed |= {f"preferences/{model}": ["data.train=pairs.jsonl"] for model in ("llada-8b-vrpo", "llada2.0-mini")}
    assert validate(load_recipe(name, needed.get(name, [])))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings(name):
    task, _, model = name.partition("/")
    settings = load_recipe(name)
    assert settings.model == MODELS[model]
    assert settings.data.train == task
    assert (settings.data.max_len, settings.data.validation_share) == (4096, 0.1)
    assert (settings.batch, settings.epochs, settings.seed) == (32, 5, 42)
    optimizer = {"learning_rate": 5e-5, "weight_decay": 0.1, "lr_scheduler_type": "linear", "max_grad_norm": 1.0}
    assert optimizer.items() <= settings.trainer.items()
    assert not settings.trainer["warmup_steps"]
    assert settings.trainer["bf16"]
    decoding = settings.decoding
    length, steps, block = DECODING[task]
    own = model == "dream-7b"  # not in the paper: it decodes in one block, by its own schedule
    assert (decoding.length, decoding.steps, decoding.block) == (length, steps, length if own else block)
    assert (decoding.order, decoding.schedule) == (("entropy", "dream") if own else ("confidence", "even"))
    probe = settings.ppots
    assert (probe.design, probe.rows, probe.rates, probe.masks, probe.starts) == ("grid", 15, 70, 15, 20)
    assert (settings.method == "autoregressive") == (model in ("qwen2.5-7b", "qwen3-8b", "llama3.1-8b"))
    assert settings.lora is None


@pytest.mark.parametrize("name", PAPER)
def test_lora_lies_over_each(name):
    settings, full = load_recipe(f"{name}+lora"), load_recipe(name)
    assert validate(settings)
    assert settings.lora.target_modules == "all-linear"
    same = {"lora", "trainer"}
    assert settings.model_dump(exclude=same) == full.model_dump(exclude=same)


BLOCKS = {
    "sdar-1.7b": ("JetLM/SDAR-1.7B-Chat", 4),
    "sdar-4b": ("JetLM/SDAR-4B-Chat", 4),
    "trado-4b": ("Gen-Verse/TraDo-4B-Instruct", 4),
    "fast-dllm-v2-1.5b": ("Efficient-Large-Model/Fast_dLLM_v2_1.5B", 32),
    "fast-dllm-v2-7b": ("Efficient-Large-Model/Fast_dLLM_v2_7B", 32),
    "llada2.0-mini": ("inclusionAI/LLaDA2.0-mini", 32),
}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", BLOCKS)
def test_models_in_blocks_are_planned_before_anything_is_loaded(name, lora):
    """Weights, gradients and moments are counted exactly; what both copies of a row keep is a share that grows."""
    model, size = BLOCKS[name]
    settings = load_recipe(f"gsm8k/{name}{'+lora' if lora else ''}")
    assert validate(settings)
    assert (settings.model, settings.block_size, settings.decoding.block) == (model, size, size)
    assert settings.out == f"runs/gsm8k/{name}", "a recipe that extends another writes into a folder of its own"
    shape = PUBLISHED[model]
    memory = estimate(settings, shape, Layout())
    trained = shape.lora_parameters(64, "all-linear") if lora else shape.parameters
    frozen = 2 * shape.parameters if lora else 0
    width = 4 if lora else 2
    copy = 2 * trained if lora else 0  # autocast's, of the float32 adapters
    assert memory.weights == frozen + width * trained + copy
    assert (memory.gradients, memory.optimizer) == (width * trained, 2 * width * trained)
    longer = estimate(settings.model_copy(update={"data": settings.data.model_copy(update={"max_len": 2048})}), shape,
                      Layout())  # fmt: skip
    mask = 2 * (2 * 2048) ** 2 - 2 * (2 * 1024) ** 2
    assert longer.activations - memory.activations == pytest.approx(memory.activations - 2 * (2 * 1024) ** 2 + mask)


POLICY = {
    "llada-8b-espo": ("espo", 4, 6, 8, "mean", "k2", (1e-3, 1e-2), 3e-6),
    "llada-8b-coupled": ("coupled", 3, 10, 2, "token", "k3", (1e-2, 1e-2), 1e-6),
}


@pytest.mark.parametrize("task", ["gsm8k", "countdown"])
@pytest.mark.parametrize("name", POLICY)
def test_the_published_settings_of_policy_gradients(name, task):
    settings = load_recipe(f"policy/{name}-{task}")
    estimator, budget, group, inner, ratio, kl, (least, most), rate = POLICY[name]
    grpo = settings.grpo
    assert settings.data.train.removeprefix("reasoning-gym:").partition(",")[0] == task
    assert (grpo.estimator, grpo.budget, grpo.group, grpo.inner) == (estimator, budget, group, inner)
    assert (grpo.ratio_in_force, grpo.kl) == (ratio, kl)
    assert least <= grpo.beta <= most
    assert grpo.rollout.length == 256
    assert settings.trainer["learning_rate"] == rate
    assert (settings.lora is not None) == (estimator == "espo")
    assert (grpo.scale == "none") == (estimator == "coupled")
    assert grpo.clip == {"espo": 0.2, "coupled": 0.5}[estimator]


def test_what_is_not_published_of_unigrpo_is_marked():
    settings, text = load_recipe("policy/mmada-unigrpo-text"), shipped_recipes()["policy/mmada-unigrpo-text"]
    assert settings.grpo.estimator == "unigrpo"
    assert (settings.steps, settings.trainer["learning_rate"], settings.grpo.reward_weights) == (50000, 5e-5, [2.0])
    assert settings.batch * settings.grpo.group == 1280
    for key in ("group", "inner", "clip", "beta", "kl", "rollout", "batch"):
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{key}:"))
        assert "ours" in line, f"what the paper does not state is marked: {line}"


@pytest.mark.parametrize("task", DECODING)
def test_table_1(task):
    settings = load_recipe(f"table1/{task}")
    assert isinstance(settings, ExperimentSettings)
    assert settings.seeds == [42, 731, 20231]
    assert settings.equal == "steps"
    assert settings.base == load_recipe(f"{task}/llada-8b")


def test_table_2():
    settings = load_recipe("table2/text-to-image")
    base = settings.base
    assert settings.methods == ["standard", "mirror", "ppots", "ppots+mirror"]
    assert (settings.seeds, settings.equal) == ([42, 731, 20231], "steps")
    assert (base.model, base.data.train) == ("Gen-Verse/MMaDA-8B-MixCoT", "text-to-image-2m")
    assert (base.objective.weighting, base.data.image.tokenizer) == ("cosine", "showlab/magvitv2")
    assert base.trainer["learning_rate"] == 5e-5
    text = shipped_recipes()["table2/text-to-image"]
    own = {"train_rows", "validation_rows", "test_rows", "max_len", "side", "max_text", "on_bad", "packing", "clip"}
    for key in own | {"image_decoding", "epochs", "generate_batch"}:
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{key}:"))
        assert "# ours" in line, f"what the paper does not state is marked: {line}"


@pytest.mark.parametrize(
    ("recipe", "override", "words"),
    [
        ("gsm8k/qwen3-8b", "method=ppots", ["Qwen3-8B-Base", "autoregressive model", "found 'ppots'"]),
        ("gsm8k/llada-8b", "method=autoregressive", ["masked diffusion model", "found 'autoregressive'"]),
        ("gsm8k/llada-8b", "micro_batch=5", ["key 'batch'", "multiple"]),
        ("gsm8k/llada-8b", "trainer.lr_scheduler_type=linaer", ["key 'trainer.lr_scheduler_type'", "mean 'linear'"]),
        ("gsm8k/llada-8b", "data.train=hitap", ["unknown kind 'hitap'", "did you mean 'hitab'"]),
        ("gsm8k/llada-8b", "data.test=gsm9k:x", ["unknown kind 'gsm9k'"]),
        ("gsm8k/llada-8b", "data.delimiters=['']", ["data.delimiters", "non-empty"]),
        ("gsm8k/llada-8b", "decoding.block=33", ["block 33"]),
        ("gsm8k/llada-8b", "dtype=float8", ["key 'dtype'", "float8"]),
        ("gsm8k/llada-8b+lora", "lora.rank=0", ["key 'lora.rank'", "found 0"]),
        ("gsm8k/llada-8b+lora", "lora.rnk=8", ["unknown key 'lora.rnk'", "did you mean 'rank'"]),
        ("gsm8k/llada-8b+lora", "lora.target_modules=[q_prj]", ["q_prj", "did you mean 'q_proj'"]),
        ("gsm8k/llada-8b", "quantised=4bit", ["key 'quantised'", "expected 'lora'"]),
        ("gsm8k/llada-8b+lora", "quantised=3bit", ["key 'quantised'", "3bit"]),
        ("sft-synthetic", "p_of_t=p.json", ["key 'p_of_t'", "found 'standard'"]),
        ("table1/gsm8k", "methods=[ppots,mirorr]", ["mirorr"]),
        ("sft-scenes", "method=complement", ["'cosine' contradict"]),
        ("sft-scenes", "image_decoding.steps=0", ["key 'image_decoding.steps'", "found 0"]),
        ("sft-scenes", "data.image.fit=squash", ["key 'data.image.fit'", "squash"]),
        ("sft-scenes", "data.image.tokeniser=x", ["unknown key 'data.image.tokeniser'", "did you mean 'tokenizer'"]),
        ("sft-scenes", "data.train=scene", ["unknown kind 'scene'", "did you mean 'scenes'"]),
    ],
)
def test_what_is_wrong_is_said_without_weights(recipe, override, words):
    with pytest.raises(UserError) as refused:
        validate(load_recipe(recipe, [override]))
    for word in words:
        assert word in str(refused.value), refused.value

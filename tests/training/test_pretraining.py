"""New models and pre-training: first values, the schedule, resuming, and every family."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from stabledllm.data.text import pack_documents
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import load_model
from tests.cli.runner import assert_refused, in_process
from tests.fakes.block_models import write_fast_dllm, write_sdar
from tests.fakes.converted import write_a2d
from tests.fakes.hub_models import write_dream, write_llada, write_llada_moe, write_qwen2
from tests.fakes.trainer import make_trainer

WRITERS = {
    "llada": write_llada, "dream": write_dream, "llada-moe": write_llada_moe, "a2d": write_a2d, "arm": write_qwen2,
    "sdar": write_sdar, "fast-dllm": write_fast_dllm,
}  # fmt: skip
SMALL = [
    "batch=4", "steps=8", "save_every=4", "eval_every=4", "log_every=1", "data.max_len=24", "data.validation_share=0.2",
    "data.validation_rows=4", "adaptive.every=3", "trainer.warmup_steps=2", "trainer.learning_rate=1e-3",
    "trainer.lr_scheduler_kwargs.num_decay_steps=3",
]  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    lines = [json.dumps({"text": f"{i} plus {i} is {2 * i}."}) for i in range(60)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(*arguments: str, cwd):
    result = in_process(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("name", ["tiny", *WRITERS])
def test_first_values_depend_on_their_seed_alone(tmp_path, name):
    shape = name if name == "tiny" else str(WRITERS[name](tmp_path / name))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = load_model(f"new:{shape}").model
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    for weights, same in (
        (load_model(f"new:{shape}").model, True),
        (load_model(f"new:{shape}", init_seed=1).model, False),
        (load_model(shape).model, False),
    ):
        pairs = [(a, b) for a, b in zip(first.parameters(), weights.parameters(), strict=True) if a.dim() > 1]
        assert all(torch.equal(a, b) == same for a, b in pairs)
    for label, value in first.named_parameters():
        if value.dim() > 1 and value.numel() >= 500:
            assert 0.015 < float(value.std()) < 0.025, f"{label}: every family's initializer_range is 0.02"
        elif label.endswith("norm.weight"):
            assert bool((value == 1).all())


def test_a_new_model_needs_no_weights_and_a_trained_one_no_seed(tmp_path):
    folder = write_llada(tmp_path / "a")
    (folder / "model.safetensors").unlink()
    loaded = load_model(f"new:{folder}", torch.bfloat16)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.mask_id == 261
    with pytest.raises(UserError, match="key 'init_seed': expected a new model"):
        load_model("tiny", init_seed=3)
    with pytest.raises(UserError, match="expected trained weights to hold in 4bit"):
        load_model("new:tiny", quantised="4bit")
    assert_refused(
        in_process("train", "sft-synthetic", "model=new:tiny", "lora.rank=2", "out=x", cwd=tmp_path), "key 'lora'"
    )


def rate(step: int, steps: int = 8, warm: int = 2, decay: int = 3, least: float = 0.1) -> float:
    """Warm-up from a tenth to the peak, held, then lowered along half a cosine to a tenth of it."""
    if step < warm:
        return least + (1 - least) * step / warm
    if step < steps - decay:
        return 1.0
    done = (step - (steps - decay)) / decay
    return least + (1 - least) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done, dtype=torch.float64)).item())


def test_the_recipe_trains_resumes_and_generates(corpus):
    train = ["train", "pretrain/text", *SMALL, "data.train=text:corpus.jsonl", "out=run"]
    run(*train, cwd=corpus)
    record = json.loads((corpus / "run" / "run.json").read_text())
    assert record["method"] == "lowdisc+adaptive+fixedcount"
    assert [step["step"] for step in record["adaptive"]] == [3, 6], "p(t) is refitted as the model changes"
    found = [entry["learning_rate"] / 1e-3 for entry in record["history"] if "learning_rate" in entry]
    assert found == [pytest.approx(rate(step), abs=1e-9) for step in range(8)]
    after = load_file(corpus / "run" / "model" / "model.safetensors")
    (corpus / "run" / "run.json").unlink()
    shutil.rmtree(corpus / "run" / "checkpoint-8")
    shutil.rmtree(corpus / "run" / "model")
    assert "resuming from run/checkpoint-4" in run(*train, cwd=corpus)
    again = load_file(corpus / "run" / "model" / "model.safetensors")
    assert all(torch.equal(after[key], again[key]) for key in after)
    run("generate", "1 plus", "--model", "run/model", "--length", "8", "--steps", "4", cwd=corpus)
    assert_refused(in_process(*train, "init_seed=1", cwd=corpus), "init_seed")


def test_a_schedule_that_does_not_fit_the_run_is_refused(corpus):
    train = ["train", "pretrain/text", *SMALL, "data.train=text:corpus.jsonl", "out=run"]
    assert_refused(in_process(*train, "steps=4", cwd=corpus), "expected a decay that fits the run's", "2 of warm-up")
    without = [word for word in train if "lr_scheduler_kwargs" not in word]
    nothing = in_process(*without, "trainer.lr_scheduler_kwargs={}", cwd=corpus)
    assert_refused(nothing, "trainer.lr_scheduler_kwargs.num_decay_steps", "'warmup_stable_decay' needs one")


@pytest.mark.parametrize("name", WRITERS)
def test_every_family_can_start_from_its_configuration(corpus, name):
    WRITERS[name](corpus / "hub")
    (corpus / "hub" / "model.safetensors").unlink()
    more = ["method=autoregressive"] if name == "arm" else []
    small = [*SMALL, "steps=1", "save_every=null", "eval_every=null", "trainer.lr_scheduler_kwargs.num_decay_steps=0"]
    train = ["train", "pretrain/text", *small, *more, "data.train=text:corpus.jsonl", "model=new:hub", "out=run"]
    run(*train, "trainer.warmup_steps=0", cwd=corpus)
    assert load_model(str(corpus / "run" / "model")).tokenizer.encode("1") == [49]


def test_text_is_decomposed_and_fitted_too(corpus):
    lab = ["rows=4", "rates=4", "masks=2", "steps=4", "probe.rows=4", "probe.rates=4", "probe.masks=2", "forwards=4"]
    data = ["--model", "new:tiny", "--data", "text:corpus.jsonl", "data.max_len=24"]
    run("decompose", *data, "--out", "lab", "--methods", "standard,lowdisc+fixedcount", *lab, cwd=corpus)
    assert json.loads((corpus / "lab" / "decomposition.json").read_text())["model"] == "new:tiny"
    small = ["ppots.rows=4", "ppots.rates=4", "ppots.masks=2", "ppots.starts=2", "batch=4"]
    run("fit", *data, "--out", "fit", *small, cwd=corpus)


def test_the_split_over_devices_changes_nothing(tmp_path):
    """Rows of random length and without prompt, packed text as it is: 8x1 = 2x4."""
    texts = [{"text": f"{i} plus {i} is {2 * i}."} for i in range(30)]
    rows = pack_documents(texts, ByteTokenizer(), length=24, short_share=0.5).rows
    assert len({len(row) for row in rows}) > 3
    losses = []
    for split in ({"micro": 8}, {"micro": 2, "accumulation": 4}):
        trainer = make_trainer(
            tmp_path / str(split["micro"]), "lowdisc+adaptive+fixedcount", steps=5, train=rows, **split
        )
        trainer.train()
        losses.append((trainer.recorded.losses, trainer.recorded.draws))
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-9)
    assert losses[0][1] == losses[1][1]

"""Adapters against the plain formula W + (alpha / rank) B A, through every command that takes a model."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file

from stabledllm.build import build_model
from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.forward.meter import MeteredModel
from stabledllm.gradient.per_row import RowGradients
from stabledllm.models.adapters import LoRAOptions, add_lora, merged
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key
from stabledllm.training import run as training_run
from tests.cli.runner import assert_refused, in_process
from tests.fakes.tiny import rows

CONFIG = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
LAYERS = ("qkv_proj", "attn_out", "gate_up_proj", "ff_out")


def base_model(seed: int = 0, **change) -> TinyMDM:
    torch.manual_seed(seed)
    return TinyMDM(TinyMDMConfig(**(CONFIG | change))).double()


def adapted(dropout: float = 0.0, **options) -> TinyMDM:
    """A small float64 model with adapters whose B is no longer zero."""
    model = add_lora(
        LoadedModel(base_model(), ByteTokenizer(), "small"),
        LoRAOptions(rank=3, alpha=5.0, dropout=dropout, **options),
    ).model.double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 256, (3, 11), generator=generator)
    selected = torch.rand(ids.shape, generator=generator) < 0.4
    return {"input_ids": ids.masked_fill(selected, 256), "selected": selected, "targets": ids}


def by_hand(model) -> TinyMDM:
    """A plain model whose weights hold the adapters' part, added here by the formula."""
    plain, values = base_model(), dict(model.named_parameters())
    with torch.no_grad():
        for i, block in enumerate(plain.blocks):
            for layer in LAYERS:
                at = f"base_model.model.blocks.{i}.{layer}"
                a, b = values[f"{at}.lora_A.default.weight"], values[f"{at}.lora_B.default.weight"]
                getattr(block, layer).weight += 5.0 / 3 * b @ a
    return plain


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base") / "base"
    base_model().float().save_pretrained(folder)
    return str(folder)


def settings(base: str, out, **more) -> TrainSettings:
    return TrainSettings.model_validate({
        "model": base, "out": str(out), "lora": {"rank": 3, "modules_to_save": ["norm"]}, "method": "ppots",
        "batch": 8, "micro_batch": 4, "steps": 8, "save_every": 3, "eval_every": 4, "log_every": 1,
        "data": {"train": "synthetic:easy", "train_rows": 24, "validation_rows": 4, "test_rows": 2},
        "ppots": {"rows": 4, "rates": 6, "masks": 2, "starts": 2}, "trainer": {"learning_rate": 1e-2},
        "decoding": {"length": 8, "steps": 2, "block": 8},
    } | more)  # fmt: skip


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    training_run.train(settings(base, out), say=lambda _: None)
    return out


def logits(loaded: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model.eval()(batch()["input_ids"]).logits


def test_every_linear_layer_but_the_output_layer_is_adapted_and_nothing_else_trains():
    loaded = LoadedModel(base_model(), ByteTokenizer(), "small")
    fresh = add_lora(loaded, LoRAOptions(rank=3)).model
    trained = {name for name, p in fresh.named_parameters() if p.requires_grad}
    assert trained == {
        f"base_model.model.blocks.{i}.{layer}.lora_{x}.default.weight"
        for i in range(2)
        for layer in LAYERS
        for x in "AB"
    }
    assert torch.equal(fresh(**batch()).nll, base_model()(**batch()).nll), "B is zero: the base's own outputs"


def test_the_first_values_depend_on_the_adapters_seed_alone_and_no_other_stream_moves():
    def first(seed: int, torch_seed: int) -> torch.Tensor:
        loaded = LoadedModel(base_model(), ByteTokenizer(), "small")
        torch.manual_seed(torch_seed)
        model = add_lora(loaded, LoRAOptions(seed=seed)).model
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(torch_seed)))
        return model.base_model.model.blocks[1].ff_out.lora_A.default.weight

    assert torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))


def test_losses_and_gradients_are_those_of_the_formula():
    model = adapted()
    plain = by_hand(model)
    ours, theirs = model(**batch()).nll, plain(**batch()).nll
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours.sum().backward()
    theirs.sum().backward()
    values = dict(model.named_parameters())
    for i, block in enumerate(plain.blocks):
        for layer in LAYERS:
            at = f"base_model.model.blocks.{i}.{layer}"
            a, b = values[f"{at}.lora_A.default.weight"], values[f"{at}.lora_B.default.weight"]
            dense = getattr(block, layer).weight.grad
            torch.testing.assert_close(a.grad, 5.0 / 3 * b.T @ dense)
            torch.testing.assert_close(b.grad, 5.0 / 3 * dense @ a.T)
    assert model.base_model.model.head.weight.grad is None


def test_row_gradients_are_those_of_the_trained_parameters():
    def flat(vectorised: bool) -> torch.Tensor:
        model = adapted()
        meter = RowGradients(MeteredModel(model, 256, 257), rows(4), Objective(), vectorised=vectorised)
        assert bool(meter.layers) == vectorised, "adapters are taken many rows at once"
        assert meter.size == sum(p.numel() for p in model.parameters() if p.requires_grad)
        index, t = torch.arange(4), torch.full((4,), 0.5, dtype=torch.float64)
        ((_, _, found, _),) = meter.gradients(index, t, Method.parse("standard"), Key(1, 0))
        return found.clone()

    torch.testing.assert_close(flat(True), flat(False), rtol=1e-9, atol=1e-12)


def test_a_killed_run_resumes_from_the_adapters_and_optimizer_to_the_same_bits(base, whole, tmp_path):
    """A kill leaves a complete checkpoint and no run.json: the same state is made from the finished run's folder."""
    out = tmp_path / "cut"
    shutil.copytree(whole / "checkpoint-3", out / "checkpoint-3")
    shutil.copy(whole / "p_of_t.json", out)
    said: list[str] = []
    training_run.train(settings(base, out), say=said.append)
    assert any("resuming from" in line for line in said)
    ours, theirs = (load_file(f / "model" / "adapter_model.safetensors") for f in (out, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    records = [json.loads((f / "run.json").read_text()) for f in (out, whole)]
    for record in records:
        record["metrics"]["accuracy"].pop("decoding_stats")  # seconds
    for key in ("metrics", "history", "forward_passes", "identity"):
        assert records[0][key] == records[1][key]
    assert not (out / "checkpoint-6" / "model.safetensors").exists(), "the base is not copied into checkpoints"
    with pytest.raises(UserError, match="lora"):
        training_run.train(settings(base, out, lora={"rank": 4}), say=said.append)


def test_the_adapter_alone_loads_merges_and_trains_further(base, whole, tmp_path):
    files = {path.name for path in (whole / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert "model.safetensors" not in files
    found = json.loads((whole / "model" / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == base
    loaded = load_model(str(whole / "model"))
    assert loaded.mask_id == 256
    assert (logits(loaded) - logits(load_model(base))).abs().max() > 1e-3
    assert in_process("merge", str(whole / "model"), "--out", "merged", cwd=tmp_path).returncode == 0
    merged_model = load_model(str(tmp_path / "merged"))
    assert type(merged_model.model) is TinyMDM
    torch.testing.assert_close(logits(merged_model), logits(loaded), rtol=1e-4, atol=1e-5)
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == base_model().state_dict().keys()
    further = build_model(TrainSettings(model=str(whole / "model")))
    assert {n for n, p in further.model.named_parameters() if p.requires_grad} == {
        n for n, p in load_model(str(whole / "model")).model.named_parameters() if "lora" in n or "modules_to_save" in n
    }


def test_generate_eval_and_decompose_take_an_adapter(base, whole, tmp_path):
    model = str(whole / "model")
    small = ["--length", "8", "--steps", "2"]
    assert in_process("generate", "1+1=?", "--model", model, *small, cwd=tmp_path).stdout.startswith("1+1=?\n")
    merged_text = in_process("generate", "1+1=?", "--model", model, "--base", base, *small, cwd=tmp_path).stdout
    assert merged_text == in_process("generate", "1+1=?", "--model", model, *small, cwd=tmp_path).stdout
    data = ["--data", "synthetic:easy"]
    result = in_process("eval", "--model", model, *data, "--rows", "4", "--out", "eval", *small, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    sizes = ["rows=4", "rates=2", "masks=2", "steps=4", "probe.rows=4", "probe.rates=4", "probe.masks=2",
             "grad.rows=4", "grad.view_rows=4", "grad.rates=2", "grad.steps=4", "--methods", "standard"]  # fmt: skip
    result = in_process("decompose", "--model", model, *data, "--gradient", "--out", "d", *sizes, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads((tmp_path / "d" / "decomposition.json").read_text())["gradient"]


def test_a_moved_base_is_one_sentence_and_another_may_be_named(base, whole, tmp_path):
    adapter = shutil.copytree(whole / "model", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "gone/away"
    config["task_type"] = "CAUSAL_LM"  # as other libraries save it
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    refused = in_process("generate", "x", "--model", str(adapter), cwd=tmp_path)
    assert_refused(refused, "adapter", "'gone/away'", "--base")
    again = load_model(str(adapter), base=base)
    assert torch.equal(logits(again), logits(load_model(str(whole / "model"))))


def test_adapters_that_do_not_fit_are_refused_by_name(base, whole, tmp_path):
    other = tmp_path / "other"
    base_model(hidden_size=16).save_pretrained(other)
    with pytest.raises(UserError, match=r"fits its base .*other.*size mismatch"):
        load_model(str(whole / "model"), base=str(other))
    adapter = shutil.copytree(whole / "model", tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    for kind, kept in (("missing", dict(list(weights.items())[1:])), ("unexpected", weights | {"x": torch.zeros(1)})):
        save_file(kept, adapter / "adapter_model.safetensors")
        with pytest.raises(UserError, match=kind):
            load_model(str(adapter))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"expected adapter_model\.safetensors"):
        load_model(str(adapter))


def test_merging_adds_the_formula_and_modules_trained_whole():
    model = adapted(modules_to_save=("head",))
    wrapper = model.base_model.model.head
    torch.nn.init.normal_(wrapper.modules_to_save.default.weight, std=0.1)
    plain = by_hand(model)
    plain.head.weight.data = wrapper.modules_to_save.default.weight.data.clone()
    result = merged(LoadedModel(model, ByteTokenizer(), "small")).model
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(result.state_dict()[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.rank=0", ["key 'lora.rank'", "found 0"]),
        ("lora.rnk=4", ["unknown key 'lora.rnk'", "did you mean 'rank'"]),
        ("lora.target_modules=[q_proj]", ["lora.target_modules", "no linear layer 'q_proj'"]),
        ("lora.target_modules=[embed,head]", ["output layer", "lora.modules_to_save"]),
        ("lora.target_modules=[attn_norm]", ["lora.target_modules", "no linear layer 'attn_norm'"]),
        ("lora.modules_to_save=[lm_head]", ["lora.modules_to_save", "found 'lm_head'"]),
        ("quantised=4bit", ["key 'quantised'", "expected 'lora' beside it"]),
        ("quantised=2bit", ["key 'quantised'", "found '2bit'"]),
    ],
)
def test_bad_settings(base, tmp_path, override, words):
    result = in_process("train", "sft-synthetic", f"model={base}", override, "out=out", cwd=tmp_path)
    assert_refused(result, *words)
    assert not (tmp_path / "out").exists()


def test_bad_use(base, whole, tmp_path):
    adapter = str(whole / "model")
    assert_refused(in_process("merge", base, "--out", "m", cwd=tmp_path), "expected a folder with adapter_config")
    assert_refused(in_process("merge", adapter, "--out", str(whole), cwd=tmp_path), "expected a new folder")
    assert_refused(in_process("merge", adapter, "--out", "m", "--dtype", "int8", cwd=tmp_path), "key 'dtype'", "int8'.")
    assert_refused(in_process("generate", "x", "--model", base, "--base", "tiny", cwd=tmp_path), "expected an adapter")
    result = in_process("train", "sft-synthetic", f"model={adapter}", "lora.rank=2", "out=out", cwd=tmp_path)
    assert_refused(result, "key 'lora'", "merge it first")


def test_quantised_without_bitsandbytes_is_one_sentence(base, monkeypatch, tmp_path):
    monkeypatch.setattr("stabledllm.models.quantised.find_spec", lambda name: None)
    result = in_process("train", "sft-synthetic", f"model={base}", "quantised=4bit", "lora.rank=2", cwd=tmp_path)
    assert_refused(result, "bitsandbytes", "not installed", "stabledllm[quantised]")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the extra 'quantised' is not installed")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_gradients_through_a_quantised_base_are_those_of_its_rounded_weights(base, bits):
    """After an evaluation too: on some CPUs bitsandbytes then repacks 4-bit weights and drops their gradient."""
    import bitsandbytes as bnb

    def gradients(loaded: LoadedModel) -> dict[str, torch.Tensor]:
        model = add_lora(loaded, LoRAOptions(rank=3)).model
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        with torch.no_grad():
            model.eval()(batch()["input_ids"])
        model.train()(**batch()).nll.sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    held, plain = load_model(base, quantised=bits), load_model(base)
    for name, layer in held.model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            rounded = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain.model.get_submodule(name).weight.data = rounded
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            values = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
            plain.model.get_submodule(name).weight.data = values
    ours, theirs = gradients(held), gradients(plain)
    assert ours.keys() == theirs.keys()
    for name in ours:  # 8-bit products round their inputs as well
        error = (ours[name] - theirs[name]).norm() / theirs[name].norm()
        assert error < (1e-4 if bits == "4bit" else 0.1), name

"""An adapter's folder in plain peft: what its config names loads without this library, to the same outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from stabledllm.models.adapters import LoRAOptions, add_lora
from stabledllm.models.loading import LoadedModel, load_model
from tests.fakes.hub_models import write_dream, write_llada, write_mmada, write_qwen2
from tests.models.families.test_masked_lm import write as write_masked_lm
from tests.models.families.test_masked_lm import write_own

IDS = torch.arange(5, 23).view(2, 9)
PLAIN_PEFT = """
import json, sys
import torch
from peft import AutoPeftModel
ids = torch.arange(5, 23).view(2, 9)
for folder in sys.argv[1:]:
    model = AutoPeftModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        print(json.dumps(model(input_ids=ids).logits.tolist()))
assert not [name for name in sys.modules if name.startswith("stabledllm")]
"""


def adapted(base, target: str, family: str = "auto") -> LoadedModel:
    """An adapter with random matrices on the base in a folder."""
    torch.manual_seed(1)
    loaded = load_model(str(base), family=family, trust_remote_code=family == "mlm")
    added = add_lora(loaded, LoRAOptions(rank=2, target_modules=(target,)))
    for name, parameter in added.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return added


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:.*no chat template", "ignore:.*tie")
def test_plain_peft_finds_the_base_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))
    write_qwen2(tmp_path / "qwen2")
    write_masked_lm(tmp_path / "bert", "bert")
    write_own(tmp_path / "own")
    bases = {"qwen2": ("q_proj", "auto"), "bert": ("query", "auto"), "own": ("embed", "mlm")}
    expected = {}
    for name, (target, family) in bases.items():
        one = adapted(tmp_path / name, target, family)
        one.save(tmp_path / f"{name}-adapter")
        with torch.no_grad():
            expected[name] = one.model.eval()(IDS).logits
    folders = [str(tmp_path / f"{name}-adapter") for name in bases]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_MODULES_CACHE": str(tmp_path / "fresh"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_PEFT, *folders], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for (name, logits), line in zip(expected.items(), done.stdout.splitlines(), strict=True):
        torch.testing.assert_close(torch.tensor(json.loads(line)), logits, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:.*no chat template", "ignore:.*tie")
@pytest.mark.parametrize(
    ("write", "interface"),
    [(write_llada, "AutoModelForCausalLM"), (write_dream, "AutoModel"), (write_mmada, "AutoModelForCausalLM")],
)
def test_a_native_family_names_the_interface_of_its_publishers_code(tmp_path, write, interface):
    """Not this library's class, which peft refuses to import."""
    adapted(write(tmp_path / "base"), "q_proj").save(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["auto_mapping"] == {"base_model_class": interface, "parent_library": "transformers"}
    load_model(str(tmp_path / "adapter")).save(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert again["auto_mapping"] == config["auto_mapping"]


def test_a_base_that_only_this_library_knows_names_none_and_fits_under_plain_peft(tmp_path):
    from peft import PeftModel

    one = adapted("tiny", "ff_out")
    one.save(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["auto_mapping"] is None
    assert config["base_model_name_or_path"] == "tiny"
    plain = PeftModel.from_pretrained(load_model("tiny").model, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(IDS).logits, one.model.eval()(IDS).logits)


def test_another_rank_writes_nothing(tmp_path):
    adapted("tiny", "ff_out").model.save_pretrained(tmp_path / "adapter", is_main_process=False)
    assert not list(tmp_path.rglob("*.*"))

"""Any model with an MLM head: transformers' own logits, computed where the loss is."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from stabledllm.errors import UserError
from stabledllm.models.loading import load_model

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
# ModernBERT's defaults are ids of its own vocabulary.
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
KINDS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SMALL)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SMALL)),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SMALL, **IDS)),
}


def write(folder, kind: str):
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    words = {"[PAD]": 0, "[SEP]": 1, "[MASK]": 2, "[UNK]": 3} | {f"w{i}": i for i in range(4, 60)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[SEP]", "[MASK]", "[UNK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"mask_token": "[MASK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return model


@pytest.mark.filterwarnings("ignore:.*no chat template")
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_cross_entropies_are_the_models_own(tmp_path, kind):
    theirs = write(tmp_path / "hub", kind)
    loaded = load_model(str(tmp_path / "hub"))
    model = loaded.model.eval()
    assert (loaded.mask_id, loaded.eos_id, loaded.pad_id) == (2, 1, 0)
    ids = torch.randint(4, 60, (3, 12), generator=torch.Generator().manual_seed(1))
    real = torch.ones(3, 12, dtype=torch.bool)
    real[1, 7:] = False
    selected = real & (torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) < 0.5)
    logits = theirs(input_ids=ids, attention_mask=real.long()).logits
    torch.testing.assert_close(model(ids, real).logits, logits)
    assert model.selects_early
    torch.testing.assert_close(model(ids, real, selected).logits, logits[selected], rtol=1e-4, atol=1e-5)
    nll = model(ids, real, selected, ids).nll
    expected = F.cross_entropy(logits[selected], ids[selected], reduction="none")
    torch.testing.assert_close(nll, expected, rtol=1e-4, atol=1e-5)
    nothing = model(ids, real, torch.zeros_like(real), ids).nll
    assert nothing.shape == (0,)
    nothing.sum().backward()
    loaded.save(tmp_path / "saved")
    again = type(theirs).from_pretrained(tmp_path / "saved").eval()
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == [type(theirs).__name__]
    torch.testing.assert_close(again(input_ids=ids).logits, theirs(input_ids=ids).logits)


OWN_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

class OwnConfig(PretrainedConfig):
    model_type = "own"
    vocab_size = 64

class Own(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(64, 8)
        self.head = torch.nn.Linear(8, 64)
        self.post_init()
    def get_input_embeddings(self):
        return self.embed
    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        return MaskedLMOutput(logits=self.head(x + x.mean(1, keepdim=True)))
"""


def write_own(folder):
    """A masked LM with code of its own beside its weights."""
    write(folder, "bert")
    (folder / "modeling_own.py").write_text(OWN_CODE)
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForMaskedLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "architectures": ["Own"], "auto_map": own}))
    torch.manual_seed(0)
    weights = {"embed.weight": torch.randn(64, 8), "head.weight": torch.randn(64, 8), "head.bias": torch.randn(64)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


@pytest.mark.filterwarnings("ignore:.*no chat template")
def test_code_of_its_own_runs_only_where_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))
    folder = tmp_path / "own"
    weights = write_own(folder)
    with pytest.raises(UserError, match="a bidirectional one with code of its own loads as family mlm"):
        load_model(str(folder), trust_remote_code=True)
    with pytest.raises(UserError, match="expected trust_remote_code=true"):
        load_model(str(folder), family="mlm")
    model = load_model(str(folder), family="mlm", trust_remote_code=True).model
    ids = torch.tensor([[4, 5, 6]])
    x = weights["embed.weight"][ids]
    logits = (x + x.mean(1, keepdim=True)) @ weights["head.weight"].T + weights["head.bias"]
    selected = torch.tensor([[True, False, True]])
    torch.testing.assert_close(model(ids, selected=selected).logits, logits[selected])
    nll = model(ids, selected=selected, targets=ids).nll
    torch.testing.assert_close(nll, F.cross_entropy(logits[selected], ids[selected], reduction="none"))


@pytest.mark.filterwarnings("ignore:.*no chat template")
def test_refusals(tmp_path):
    write(tmp_path, "bert")
    model = load_model(str(tmp_path), family="mlm").model
    ids = torch.zeros(1, 41, dtype=torch.long)
    with pytest.raises(UserError, match="at most the model's 40 positions, found 41"):
        model(ids)
    with pytest.raises(UserError, match="packing: expected a native family"):
        model(ids[:, :8], segment_ids=ids[:, :8])
    keys = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(keys | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"missing weight bert\.encoder\.layer\.2"):
        load_model(str(tmp_path))

"""``Lab`` on models of one's own in an environment of their own; ``test_wheel.py`` runs it there.

Runs the page's lines on dllm, on a model of plain torch and, where transformers and peft are installed, one of theirs,
and every other measurement. Ends with one line of JSON. Argument: ``docs/your_own_model.md``.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

import stabledllm
from stabledllm import Lab
from tests.fakes import stacks

LENGTH, PROMPT = 16, 4
SMALL = {"rows": 6, "rates": 3, "masks": 2, "steps": 4, "probe": {"rows": 6, "rates": 4, "masks": 2, "starts": 1}}
GRAD = {"rows": 6, "view_rows": 4, "rates": 2, "steps": 4}


def older_model() -> nn.Module:
    """A model of the transformers that is installed here, under an adapter of its peft."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=stacks.MASK + 1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    adapters = LoraConfig(target_modules=["query", "value"], init_lora_weights=False)
    return get_peft_model(BertForMaskedLM(config), adapters)


def measured(model: nn.Module, blocks: list[str]) -> dict:
    """Mean and variance of dllm's loss before and after, and what else was measured on the model."""
    torch.manual_seed(0)
    ids = torch.randint(stacks.PAD, (24, LENGTH)).repeat(4, 1)
    labels = torch.where(torch.arange(LENGTH) >= PROMPT, ids, -100)
    data = [{"input_ids": one.tolist(), "labels": of.tolist()} for one, of in zip(ids, labels, strict=True)]
    names = {
        "model": model.eval(), "MDLMTrainer": stacks.MDLMTrainer, "train_dataset": data,
        "tokenizer": SimpleNamespace(mask_token_id=stacks.MASK, pad_token_id=stacks.PAD),
        "args": SimpleNamespace(time_epsilon=stacks.EPS), "batch": {"input_ids": ids, "labels": labels},
    }  # fmt: skip
    for block in blocks:
        exec(block, names)
    found = {name: [float(names[name].mean()), float(names[name].var())] for name in ("before", "after")}

    lab = Lab(model, data, mask_id=stacks.MASK, pad_id=stacks.PAD, batch=4)
    recommended = lab.recommend(methods=["fixedcount"], grad=GRAD, **SMALL)
    print(recommended, lab.elbo(budget=4))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        saved = recommended.save("lab")
    found["saved"] = [path.name for path in saved]
    found["warned"] = [str(one.message) for one in told]
    found["said"] = "No picture here" in recommended._repr_html_()
    found["gradient"] = recommended.record["gradient"]["total"]["value"]
    return found


def main() -> None:
    page = Path(sys.argv[1]).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    blocks = [next(b for b in blocks if "def spread(" in b), next(b for b in blocks if "MDLMTrainer(" in b)]
    found = {"plain": measured(stacks.HFModel(), blocks)}
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    if find_spec("transformers") is not None:
        found["older"] = measured(older_model(), blocks)
    print(json.dumps({"from": stabledllm.__file__, "loaded": loaded, "found": found}))


if __name__ == "__main__":
    main()

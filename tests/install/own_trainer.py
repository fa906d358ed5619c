"""What a trainer of one's own takes from the installed package; ``test_wheel.py`` runs it in an environment of its own.

Draws noise, fits p(t) on a model that only maps ids to logits, and puts it into dllm's trainer as the page says: at the
same mean the loss has less variance. Ends with one line of JSON. Argument: ``docs/use_in_your_loop.md``.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

import stabledllm
from stabledllm import AlphaScheduler, Method, Noise, Objective, elbo
from stabledllm.data.token_rows import TokenRow
from stabledllm.forward.meter import LossMeter, MeteredModel
from stabledllm.ppots.profile import probe
from stabledllm.ppots.record import fit_density
from tests.fakes.dllm import MDLMTrainer

MASK, LENGTH, PROMPT = MDLMTrainer.mask_id, 24, 4
ARGS = SimpleNamespace(time_epsilon=1e-3)


class Plain(nn.Module):
    """A model that knows nothing of this library: ids in, logits out."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(MASK + 1, 16), nn.TransformerEncoderLayer(16, 2, 32, 0.0)
        self.head = nn.Linear(16, MASK + 1)

    def forward(self, ids, attention_mask=None):
        hidden = self.layer(self.embedding(ids).transpose(0, 1)).transpose(0, 1)
        return SimpleNamespace(logits=self.head(hidden))


class Selected(nn.Module):
    """A model of ids and logits, called as the meters call theirs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids, attention_mask, *, selected, targets):
        logits = self.model(ids, attention_mask).logits
        return SimpleNamespace(nll=F.cross_entropy(logits[selected], targets[selected], reduction="none"))


def older_model() -> nn.Module:
    """A model of the transformers that is installed here, under an adapter of its peft."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=MASK + 1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return get_peft_model(BertForMaskedLM(config), LoraConfig(target_modules=["query", "value"]))


def compared(model: nn.Module, block: str) -> dict[str, float]:
    """Mean and variance of dllm's row losses on a model, without and with the p(t) fitted to it."""
    ids = torch.randint(MASK, (16, LENGTH))
    rows = [TokenRow(row.tolist(), PROMPT) for row in ids]
    meter = LossMeter(MeteredModel(Selected(model), MASK, 0), rows, Objective())
    method = Method.parse("ppots")
    density = fit_density(probe(meter, method, rows=16, rates=10, masks=4, seed=0), method)
    density.record["objective"] = asdict(Objective())
    density.save(Path("fit/p_of_t.json"))

    names = {"MDLMTrainer": MDLMTrainer, "model": model.eval(), "args": ARGS}
    exec(block, names)
    ids, maskable = ids.repeat(16, 1), torch.arange(LENGTH).expand(256, -1) >= PROMPT
    found = {"elbo": -elbo(Selected(model), rows, budget=64, mask_id=MASK).per_token().mean.value}
    for name, trainer in (("before", MDLMTrainer(model, ARGS, AlphaScheduler())), ("after", names["trainer"])):
        with torch.no_grad():
            losses = torch.cat([trainer.row_losses(ids, maskable) for _ in range(40)]).double()
        found |= {name: float(losses.mean()), f"{name}_variance": float(losses.var())}
    names["trainer"].row_losses(ids, maskable).mean().backward()
    drawn = Noise("ppots+mirror", mask_id=MASK, p_of_t=density.sampler).draw(ids, maskable, step=3)
    drawn.loss(model(drawn.input_ids).logits).backward()
    return found


def main() -> None:
    torch.manual_seed(0)
    page = Path(sys.argv[1]).read_text(encoding="utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "MDLMTrainer(" in code)
    found = {"plain": compared(Plain(), block)}
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    if find_spec("transformers") is not None:
        found["older"] = compared(older_model(), block)
    print(json.dumps({"from": stabledllm.__file__, "loaded": loaded, "found": found}))


if __name__ == "__main__":
    main()

"""What transformers can do and a model or this machine cannot is refused before anything is trained."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.experiment.validation import validate
from stabledllm.models.loading import load_model
from stabledllm.training.features import refuse_checkpointing
from tests.fakes.hub_models import write_dream, write_llada, write_mmada


def settings(**trainer) -> TrainSettings:
    return TrainSettings(steps=2, batch=4, trainer=trainer)


def test_gradient_checkpointing_of_a_model_without_it(tmp_path):
    class Without(torch.nn.Module):
        supports_gradient_checkpointing = False

    arguments = TrainingArguments(output_dir=str(tmp_path), gradient_checkpointing=True, use_cpu=True, report_to="none")
    with pytest.raises(
        UserError, match=r"trainer\.gradient_checkpointing': expected a model that supports it, found 'm'"
    ):
        refuse_checkpointing(Without(), "m", arguments)
    (tmp_path / "config.json").write_text('{"model_type": "openai-gpt", "architectures": ["OpenAIGPTLMHeadModel"]}')
    run = settings(gradient_checkpointing=True).model_copy(update={"model": str(tmp_path), "method": "autoregressive"})
    with pytest.raises(UserError, match="expected a model that supports it"):
        validate(run)


def test_tiny_gives_the_same_gradients_with_checkpointing():
    model = load_model("tiny").model.double().train()
    ids = torch.arange(24).view(2, 12)
    selected, passes = ids % 2 == 0, []
    handle = model.blocks[1].qkv_proj.register_forward_hook(lambda *_: passes.append(1))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        passes.clear()
        model(ids, torch.ones_like(ids), selected=selected, targets=ids).nll.sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    assert len(passes) == 1
    model.gradient_checkpointing_enable()
    checkpointed = gradients()
    assert len(passes) == 2, "once more in the backward pass"
    handle.remove()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("write", [None, write_llada, write_dream, write_mmada])
def test_a_vocabulary_is_not_resized(tmp_path, write):
    model = load_model(str(write(tmp_path)) if write else "tiny").model
    rows = model.get_input_embeddings().num_embeddings
    assert model.resize_token_embeddings(rows) is model.get_input_embeddings()
    with pytest.raises(UserError, match=f"expected the {rows} rows of this checkpoint, found {rows + 8}"):
        model.resize_token_embeddings(rows + 8)

"""LLaDA2: each feature of the router acts, blocks are their definition, adapters, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabledllm.errors import UserError
from stabledllm.models.adapters import LoRAOptions, add_lora, merged
from stabledllm.models.families.experts import Experts
from stabledllm.models.families.llada2_config import LLaDA2MoeConfig
from stabledllm.models.families.router import SigmoidRouter
from stabledllm.models.families.routing import recorded, routers
from stabledllm.models.loading import load_model
from stabledllm.noise.blocks import Blocks
from tests.fakes.llada2 import MASK_ID, write_llada2
from tests.models.families.cases import config_of, load, random_ids, stored
from tests.models.families.published_llada2 import llada2_training_logits

SIZE = 8


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_all_blocks_at_once_are_the_blocks_one_by_one(tmp_path, attention):
    """The noisy row beside the clean one, padded rows among them, against each block on its clean past."""
    folder = write_llada2(tmp_path, std=0.3, config={"block_size": SIZE})
    clean = torch.randint(0, 256, (3, 21), generator=torch.Generator().manual_seed(2))
    real = torch.arange(21) < torch.tensor([[21], [18], [SIZE + 1]])
    mask = real & (torch.rand(3, 21, generator=torch.Generator().manual_seed(3)) < 0.6)
    mask[:, :3] = False
    model = load(folder, attention=attention)
    noisy, blocks = torch.where(mask, MASK_ID, clean), Blocks.of(model, SIZE).ids(real & (torch.arange(21) >= 3), real)
    found = model(noisy, real, selected=mask, targets=clean, block_ids=blocks).nll
    expected = []
    for row in range(3):
        own, hidden = clean[row][real[row]], mask[row][real[row]]
        logits = llada2_training_logits(stored(folder), config_of(folder), torch.where(hidden, MASK_ID, own), own)
        expected.append(F.cross_entropy(logits[hidden], own[hidden], reduction="none"))
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert torch.cat(expected).std() > 0.5


FEATURES = {
    "bias": {"moe_router_enable_expert_bias": False},
    "groups": {"n_group": 1, "topk_group": 1},
    "fewer groups": {"topk_group": 4},
    "scale": {"routed_scaling_factor": 1.0},
    "normalised": {"norm_topk_prob": False},
    "chosen": {"num_experts_per_tok": 1},
    "shared": {"num_shared_experts": 0},
    "dense": {"first_k_dense_replace": 0},
    "rotary": {"partial_rotary_factor": 1.0},
    "blocks": {"block_size": 4},
}


@pytest.mark.parametrize("feature", FEATURES)
@torch.no_grad()
def test_each_feature_has_an_effect(tmp_path, feature):
    """On the same weights; that each is computed as published, the two cases of the float64 comparison say."""
    whole = load(write_llada2(tmp_path / "a", std=0.3))
    other = load(write_llada2(tmp_path / "b", std=0.3, config=FEATURES[feature]))
    known = whole.state_dict()
    other.load_state_dict({name: value for name, value in known.items() if name in other.state_dict()}, strict=False)
    ids = random_ids(2, 33)
    assert (whole(ids).logits - other(ids).logits).abs().max() > 1e-3


@torch.no_grad()
def test_the_bias_chooses_and_weighs_nothing():
    """A bias that leaves the choice as it is changes no bit; one that changes it weighs the newcomer by its score."""
    config = LLaDA2MoeConfig(
        hidden_size=16, num_attention_heads=4, num_experts=8, n_group=2, topk_group=2, num_experts_per_tok=2
    )
    router = SigmoidRouter(config).double()
    torch.manual_seed(0)
    nn.init.normal_(router.weight)
    x = torch.randn(50, 16, dtype=torch.float64)
    chosen, share = router(x)
    router.bias.fill_(0.7)
    assert all(torch.equal(a, b) for a, b in zip(router(x), (chosen, share), strict=True))
    router.bias[3] += 5
    chosen, share = router(x)
    assert (chosen == 3).any(1).all()
    score = (x @ router.weight.T).sigmoid().gather(1, chosen)
    torch.testing.assert_close(share, 2.5 * score / score.sum(1, keepdim=True))


def test_bfloat16_weights_route_in_float32_and_keep_a_fine_bias(tmp_path):
    folder = write_llada2(tmp_path)
    model = load(folder, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert all(router.bias.dtype == torch.float32 for router in routers(model))
    with recorded(model) as seen:
        model(random_ids(1, 9))
    assert seen[0][0][0].dtype == torch.float32
    routers(model)[0].bias.add_(1e-3)
    model.save_pretrained(tmp_path / "saved")
    name = "model.layers.1.mlp.gate.expert_bias"
    assert torch.equal(stored(tmp_path / "saved")[name], stored(folder)[name] + 1e-3)


@pytest.mark.parametrize("targets", ["all-linear", ("query_key_value", "dense"), ("shared_experts.up_proj",)])
def test_adapters(tmp_path, targets):
    """On every linear layer, experts included, or on some; the router keeps its weights. Merged they are the same."""
    loaded = load_model(str(write_llada2(tmp_path / "hub", std=0.3)))
    adapted = add_lora(loaded, LoRAOptions(rank=4, target_modules=targets))
    names = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert any("experts.3.up_proj" in name for name in names) == (targets == "all-linear")
    assert not any("mlp.gate." in name for name in names)
    for name, p in adapted.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.2)
    ids = random_ids(2, 9)
    grouped = [m for m in adapted.model.modules() if isinstance(m, Experts)]
    assert all(m.grouped(torch.zeros(1, 32)) for m in grouped) == hasattr(F, "grouped_mm")
    adapted.model(ids, selected=ids < 300, targets=ids).nll.sum().backward()
    assert all(p.grad is not None for p in adapted.model.parameters() if p.requires_grad)
    adapted.model.eval()
    with torch.no_grad():
        before = adapted.model(ids).logits
        whole = merged(adapted)
        torch.testing.assert_close(whole.model(ids).logits, before, rtol=1e-4, atol=1e-4)
    whole.save(tmp_path / "merged")
    assert stored(tmp_path / "merged").keys() == stored(tmp_path / "hub").keys()
    torch.testing.assert_close(load(tmp_path / "merged")(ids).logits, before, rtol=1e-4, atol=1e-4)


REFUSED = {
    "groups": ({"n_group": 3}, "n_group: expected groups of equally many of the 8 experts, two or more each, found 3"),
    "one each": ({"n_group": 8}, "n_group: expected groups of equally many of the 8 experts, .* found 8 groups"),
    "kept": ({"topk_group": 5}, "topk_group: expected at most n_group = 4, found 5"),
    "chosen": ({"num_experts_per_tok": 5}, "num_experts_per_tok: expected at most the 4 experts of 2 groups, found 5"),
    "rotary": ({"partial_rotary_factor": 0.3125}, "partial_rotary_factor: expected a share of a head's 16 numbers"),
    "much": ({"partial_rotary_factor": 2.0}, "partial_rotary_factor: expected a share of a head's 16 numbers"),
    "softmax": ({"score_function": "softmax"}, "score_function: expected sigmoid or None, found 'softmax'"),
    "scale": ({"routed_scaling_factor": -1}, "routed_scaling_factor: expected a finite number above 0, found -1"),
    "negative": ({"first_k_dense_replace": -1}, "first_k_dense_replace: expected .*, found -1"),
    "word": ({"norm_topk_prob": "yes"}, "norm_topk_prob: expected true or false, found 'yes'"),
    "biases": ({"use_qkv_bias": True}, "use_qkv_bias: expected False or None, found True"),
    "size": ({"block_size": 0}, "block_size: expected a whole number of at least 1, found 0"),
    "scaled": ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: expected rope_type default, found 'yarn'"),
    "stacked": (
        {"model_type": "llada2_moe_veomni"},
        "found LLaDA 2 with its experts stacked, as dFactory",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path, case):
    config, sentence = REFUSED[case]
    folder = write_llada2(tmp_path)
    (folder / "config.json").write_text(json.dumps(config_of(folder) | config))
    with pytest.raises(UserError, match=sentence) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


VARIANTS = {
    "preview": {"max_position_embeddings": 16384},
    "flash": {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 80, "moe_intermediate_size": 40},
    "2.1": {"dtype": "bfloat16", "max_window_layers": 20},
    "CAP": {"num_nextn_predict_layers": 0, "mtp_loss_scaling_factor": 0, "router_aux_loss_coef": 0.001},
    "no shared expert": {"num_shared_experts": None},
    "all layers routed": {"first_k_dense_replace": None},
    "written by transformers 5": {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}},
}
"""What the published files and copies of them differ in, in small."""


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_variants_load_and_are_saved_as_they_were_read(tmp_path, name):
    written = {key: value or 0 for key, value in VARIANTS[name].items()}  # the weights are those of 0 where it is null
    folder, path = write_llada2(tmp_path / "hub", config=written), tmp_path / "hub" / "config.json"
    keys = config_of(folder) | VARIANTS[name]
    if "rope_parameters" in keys:
        del keys["rope_theta"]
    path.write_text(json.dumps(keys))
    loaded = load_model(str(folder))
    assert loaded.model.config.rope_theta == keys.get("rope_theta", 12345.0)
    loaded.save(tmp_path / "saved")
    written, own = config_of(tmp_path / "saved"), ("dtype", "torch_dtype")
    assert {k: v for k, v in written.items() if k not in own} == {k: v for k, v in keys.items() if k not in own}
    ids = random_ids(2, 9)
    torch.testing.assert_close(load(tmp_path / "saved")(ids).logits, loaded.model.eval()(ids).logits)


def test_what_config_json_leaves_out_and_what_is_saved(tmp_path):
    loaded = load_model(str(write_llada2(tmp_path / "hub")))
    assert loaded.model.config.assumed == {"block_size": 32, "mask_token_id": MASK_ID}
    loaded.model.config.block_size = 16
    loaded.save(tmp_path / "saved")
    before, after = config_of(tmp_path / "hub"), config_of(tmp_path / "saved")
    assert {key: value for key, value in after.items() if key != "dtype"} == before | {"block_size": 16}
    assert load_model(str(tmp_path / "saved")).model.config.block_size == 16

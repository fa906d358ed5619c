"""SDAR and Fast-dLLM v2 decode block after block of the row: as the definition does, one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from stabledllm.build import take_block
from stabledllm.decoding import DecodingOptions, generate
from stabledllm.errors import UserError
from stabledllm.models.loading import load_model
from tests.fakes.block_models import MASK_ID, write_fast_dllm, write_sdar
from tests.models.families.cases import config_of, stored
from tests.models.families.published_blocks import fast_dllm_logits, sdar_logits

PROMPTS = [[*range(5 + i, 5 + i + length)] for i, length in enumerate((3, 8, 11, 6, 1))]
"""Their lengths end at each place of a block of 4."""
FAMILIES = {
    "sdar": (write_sdar, sdar_logits, "block_size"),
    "fast-dllm": (write_fast_dllm, fast_dllm_logits, "bd_size"),
}
END = 258


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """The model in float64 in blocks of 4, and the logits of one row by the definition."""
    write, logits, key = FAMILIES[request.param]
    folder = write(tmp_path_factory.mktemp(request.param), std=0.4, config={key: 4})
    weights, keys = stored(folder), config_of(folder)
    return load_model(str(folder)).model.double(), lambda ids: logits(weights, keys, torch.tensor(ids))


def by_definition(logits, prompt: list[int], length: int, per_call: int) -> list[int]:
    """The surest tokens of a block first; the row is cut off behind the block, and the answer at its length."""
    ids = [*prompt, *[MASK_ID] * (length + -(len(prompt) + length) % 4)]
    for start in range(len(prompt) // 4 * 4, len(ids), 4):
        end = start + 4
        while MASK_ID in ids[:end]:
            law = logits(ids[:end])
            law[:, MASK_ID] = -torch.inf
            sure, token = law.softmax(-1).max(-1)
            left = [i for i in range(start, end) if ids[i] == MASK_ID]
            for i in sorted(left, key=lambda i: -float(sure[i]))[:per_call]:
                ids[i] = int(token[i])
    answer = ids[len(prompt) : len(prompt) + length]
    return answer[: answer.index(END)] if END in answer else answer


def decode(model, prompts, **options) -> list[list[int]]:
    ends = {"mask_id": MASK_ID, "eos_id": END, "pad_id": 256}
    if getattr(model.config, "shift_logits", False):
        options = {"first_token": "in_turn"} | options
    return generate(model, prompts, DecodingOptions(12, **{"block": 4} | options), **ends)


def test_equals_the_definition_alone_and_in_a_batch(family):
    model, logits = family
    expected = [by_definition(logits, prompt, 12, 2) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) == len(PROMPTS), "or the test is about nothing"
    assert [decode(model, [prompt], steps=6)[0] for prompt in PROMPTS] == expected
    assert decode(model, PROMPTS, steps=6) == expected


def test_other_blocks_are_refused_unless_config_json_leaves_them_out(tmp_path):
    loaded = load_model(str(write_sdar(tmp_path / "out")))
    take_block(loaded, 6, given=True)
    assert loaded.model.config.block_size == 6
    assert len(decode(loaded.model, [[1, 2]], steps=12, block=6)[0]) <= 12
    said = load_model(str(write_sdar(tmp_path / "said", config={"block_size": 4})))
    take_block(said, 6, given=True)
    with pytest.raises(UserError, match=r"^decoding: expected block 4, .* found 6\.$"):
        decode(said.model, [[1, 2]], steps=12, block=6)

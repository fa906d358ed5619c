"""The noisy blocks that carry loss beside the clean row, padded and packed: the layout, the mask, and equal results."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.models.families import attention
from stabledllm.models.families.attention import FLEX
from stabledllm.models.families.two_copies import TwoCopies
from stabledllm.models.loading import load_model
from stabledllm.noise.blocks import Blocks
from tests.fakes import llada2, tiny
from tests.fakes.block_models import MASK_ID, write_fast_dllm, write_sdar
from tests.fakes.hub_models import write_llada
from tests.models.families.cases import load

WRITERS = {"sdar": write_sdar, "fast-dllm": write_fast_dllm, "llada2": llada2.write_llada2}
ROWS = [(length, prompt) for length in range(1, 6) for prompt in range(length)]
"""Rows of up to 5 tokens, whose prompts end anywhere."""


def test_only_blocks_with_masked_tokens_are_kept():
    """Two rows in blocks of 2; the second is padded."""
    blocks = torch.tensor([[0, 0, 1, 1, 2, 2, 3], [0, 0, 1, 1, 2, -1, -1]])
    masked = torch.zeros(2, 7, dtype=torch.bool)
    masked[0, [3, 6]] = masked[1, 4] = True
    copies = TwoCopies.of(masked, blocks)
    assert torch.where(copies.noisy, copies.block, -1)[:, :3].tolist() == [[1, 1, 3], [2, -1, -1]]
    assert copies.row.tolist() == [[0] * 10, [1, -1, -1, *([1] * 5), -1, -1]]
    assert copies.place[0].tolist() == [3, 4, 0, 1, 7, 8, 2]
    assert copies.place[1, :5].tolist() == [13, 14, 15, 16, 10]
    row = torch.arange(7).expand(2, -1)
    assert copies.joined(row + 10, row)[0].tolist() == [12, 13, 16, 0, 1, 2, 3, 4, 5, 6]
    mask = copies.mask()[0, 0].long()
    assert mask[:3].tolist() == [
        [1, 1, 0, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 0],
    ]
    assert not mask[3:, :3].any(), "the clean row sees nothing noisy"
    packed = TwoCopies.of(masked, blocks, packed=True)
    assert packed.row.tolist() == [[0] * 10, [1] * 6 + [-1] * 4], "no two of these rows are as short as one"


def case(size: int, from_start: bool, rows: list[tuple[int, int]], seed: int):
    """Masked response tokens and blocks of rows (length, prompt), and the block of each token by its definition."""
    length = max(n for n, _ in rows)
    place, lengths, prompts = torch.arange(length), *(torch.tensor(x)[:, None] for x in zip(*rows, strict=True))
    real = place < lengths
    response = real & (place >= prompts)
    masked = response & (torch.rand(response.shape, generator=torch.Generator().manual_seed(seed)) < 0.4)

    def block(i: int, prompt: int) -> int:
        return i // size if from_start else 0 if i < prompt else (i - prompt) // size + 1

    written = [[block(i, prompt) if i < n else -1 for i in range(length)] for n, prompt in rows]
    return masked, Blocks(size, from_start).ids(response, real), written


def by_definition(copies: TwoCopies, masked, written) -> torch.Tensor:
    """The mask, pair by pair, after a look at what is in the sequences: each clean token once, noisy blocks once."""
    length = masked.shape[1]
    tokens = [
        [None if token < 0 else (*divmod(token, length), noisy) for token, noisy in zip(*sequence, strict=True)]
        for sequence in zip(copies.token.tolist(), copies.noisy.tolist(), strict=True)
    ]
    hidden = {(row, written[row][i]) for row, i in masked.nonzero().tolist()}
    wanted = [
        (row, i, noisy)
        for row, blocks in enumerate(written)
        for i, block in enumerate(blocks)
        for noisy in (False, True)
        if block >= 0 and (not noisy or (row, block) in hidden)
    ]
    assert Counter(token for sequence in tokens for token in sequence if token) == Counter(wanted)

    def sees(query, key) -> bool:
        if query is None or key is None:
            return query is key
        mine, other = written[query[0]][query[1]], written[key[0]][key[1]]
        if query[0] != key[0] or (key[2] and not query[2]):
            return False
        return mine == other if query[2] == key[2] and query[2] else other < mine or (other == mine and not query[2])

    return torch.tensor([[[sees(query, key) for key in one] for query in one] for one in tokens])[:, None]


@pytest.mark.parametrize("packed", [False, True])
def test_the_mask_of_all_small_rows_is_the_definition(packed):
    """Block sizes 1 to 3, counted from the row's start and from the response; rows of every length and prompt."""
    several = 0
    for number, (size, from_start, first, second) in enumerate(product((1, 2, 3), (False, True), ROWS, ROWS)):
        if number % 7:  # every row beside every other one, in some kind of blocks
            continue
        rows = [first, second, (1 + number % 5, 0)]
        masked, blocks, written = case(size, from_start, rows, seed=number)
        copies = TwoCopies.of(masked, blocks, packed=packed)
        mask = copies.mask()
        assert torch.equal(mask, by_definition(copies, masked, written)), (size, from_start, rows)
        assert mask.any(3).all(), "every query sees something"
        for row, i in masked.nonzero().tolist():
            place = copies.place[row, i]
            assert (copies.token.flatten()[place], copies.noisy.flatten()[place]) == (row * masked.shape[1] + i, True)
        several += len(copies.row) < len(rows)
    assert several > 50 if packed else not several


def test_the_mask_for_flex_attention_is_the_same():
    masked, blocks, _ = case(2, True, [(5, 1), (2, 0), (1, 0), (4, 3)], seed=1)
    copies = TwoCopies.of(masked, blocks, packed=True)
    sequence, query, key = torch.meshgrid(*map(torch.arange, copies.mask()[:, 0].shape), indexing="ij")
    assert torch.equal(copies.block_mask().mask_mod(sequence, None, query, key), copies.mask()[:, 0])


def test_no_rows_are_one_empty_sequence():
    """A rank may have none while others have some."""
    none = torch.zeros(0, 4, dtype=torch.long)
    for packed in (False, True):
        assert TwoCopies.of(none.bool(), none, packed=packed).mask().shape[0] == 0


def model_of(name: str, folder):
    """A model in blocks in float64, and its mask token."""
    if name == "tiny":
        return tiny.model(layers=2, initializer_range=0.3).train(), tiny.MASK
    return load(WRITERS[name](folder, std=0.3)).double().train(), llada2.MASK_ID if name == "llada2" else MASK_ID


def outputs(model, mask_id: int, **form) -> list[torch.Tensor]:
    """Cross-entropies and all gradients of four rows of unequal length, of which two fit into one sequence."""
    clean = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([24, 9, 16, 11])[:, None]
    mask = torch.zeros(4, 24, dtype=torch.bool)
    mask[0, [9, 23]] = mask[1, 4] = mask[2, 12:15] = mask[3, [0, 1, 8]] = True
    blocks = (torch.arange(24) // 4).masked_fill(torch.arange(24) >= lengths, -1)
    model.zero_grad()
    nll = model(torch.where(mask, mask_id, clean), selected=mask, targets=clean, block_ids=blocks, **form).nll
    (nll * torch.arange(1, len(nll) + 1)).sum().backward()
    return [nll.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", ["tiny", *WRITERS])
def test_neither_what_is_left_out_nor_packing_changes_a_cross_entropy_or_a_gradient(tmp_path, name, monkeypatch):
    model, mask_id = model_of(name, tmp_path)
    shapes = []
    first = model.blocks[0] if name == "tiny" else model.layers()[0]
    first.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[:2])))
    few, packed, of = outputs(model, mask_id), outputs(model, mask_id, packed=True), TwoCopies.of
    monkeypatch.setattr(TwoCopies, "of", lambda masked, ids, packed: of(torch.ones_like(masked), ids))
    whole = outputs(model, mask_id)
    assert shapes == [(4, 32), (2, 45), (4, 48)]
    exact = name == "tiny"  # the others' norms compute in float32
    for found in (few, packed):
        for one, expected in zip(found, whole, strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-9 if exact else 1e-4, atol=1e-9 if exact else 1e-4)


@pytest.mark.parametrize(("name", "packed"), [("sdar", False), ("fast-dllm", True), ("llada2", True)])
def test_flex_attention_gives_what_sdpa_gives(tmp_path, name, packed, monkeypatch):
    """Uncompiled, and past the check that keeps its backward pass from CPUs, for which it has no compiled one."""
    from torch.nn.attention import flex_attention as torchs
    from transformers.integrations.flex_attention import WrappedFlexAttention

    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torchs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(WrappedFlexAttention, "__init__", lambda self, training: None)
    monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda self: torchs.flex_attention)
    model, mask_id = model_of(name, tmp_path)
    expected, seen = outputs(model, mask_id), []
    model.set_attn_implementation(FLEX)
    monkeypatch.setattr(TwoCopies, "mask", lambda self: seen.append("dense"))
    for one, other in zip(outputs(model, mask_id, packed=packed), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not seen, "no dense mask is made"
    rows = torch.randint(0, 256, (2, 8))
    alone = [model(rows, block_ids=torch.arange(8).expand(2, -1) // 4).logits, model(rows).logits]
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        for logits in alone:
            blocks = torch.arange(8).expand(2, -1) // (4 if logits is alone[0] else model.config.block_size)
            torch.testing.assert_close(logits, model(rows, block_ids=blocks).logits, rtol=1e-4, atol=1e-4)


def test_where_flex_attention_does_not_run(tmp_path, monkeypatch):
    sdar = str(write_sdar(tmp_path / "sdar"))
    monkeypatch.setattr(attention.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^attention 'flex_attention': expected a CUDA device, .* write 'sdpa'"):
        load_model(sdar, attention=FLEX)
    monkeypatch.setattr("stabledllm.models.loading.check_back_end", lambda name: name)
    with pytest.raises(UserError, match="expected a model in blocks for attention 'flex_attention', found another"):
        load_model(str(write_llada(tmp_path / "llada")), attention=FLEX)
    with pytest.raises(UserError, match="expected attention 'sdpa' for the reference model"):
        load_model("tiny", attention=FLEX)
    assert load_model(sdar, attention=FLEX).model.config._attn_implementation == FLEX

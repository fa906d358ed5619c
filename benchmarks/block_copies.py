"""A training step of block diffusion against the doubled, padded, dense-masked form. Target: at most 0.6 of its time.

The doubled form sends the noisy and the clean copy of every row, padded to the longest, through the model whole. Ours
leaves out the noisy blocks that carry no loss, such as the prompt's, and packs rows end to end. SDAR's layers, 2 x 128,
vocabulary 8,192; forward and backward; blocks of 4 and 32 tokens; the noise of ``standard``. All forms have the same
loss. In CPU seconds, taken in turns, so that what else the machine does weighs little.

*Mixed rows*: micro-batches of 8 rows with GSM8K's spread of lengths (their median is 0.4 of the longest), scaled so
that the longest has 1,024 tokens, of which the prompt is a fifth to two thirds. *One row*: of 1,024 tokens, of which
the prompt is the named share, so that nothing is left to pack.
"""

from __future__ import annotations

import statistics
import time

import torch
from common import save

from stabledllm.models.families.block_config import SDARConfig
from stabledllm.models.families.block_model import SDARForCausalLM
from stabledllm.models.families.two_copies import TwoCopies
from stabledllm.noise.blocks import Blocks, Units
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.streams import Key

VOCABULARY, MASK, LENGTH, ROWS = 8192, 8191, 1024, 8
SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 384}
BLOCKS, PROMPTS, STEPS = (4, 32), (0.25, 0.5, 0.75), 2
OURS = TwoCopies.of


def whole(masked: torch.Tensor, block_ids: torch.Tensor, *, packed: bool) -> TwoCopies:
    """The doubled form: every noisy block goes through the model."""
    return OURS(torch.ones_like(masked), block_ids)


def padded(masked: torch.Tensor, block_ids: torch.Tensor, *, packed: bool) -> TwoCopies:
    """Without the noisy blocks that carry no loss, one row to a sequence."""
    return OURS(masked, block_ids)


FORMS = {"packed": OURS, "padded": padded, "doubled": whole}


def mixed(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengths and prompts of a micro-batch, int64, shape (ROWS,)."""
    generator = torch.Generator().manual_seed(number)
    lengths = (0.4 * LENGTH * torch.exp(0.45 * torch.randn(ROWS, generator=generator))).clamp(0.15 * LENGTH, LENGTH)
    lengths[0] = LENGTH
    share = 0.2 + 0.46 * torch.rand(ROWS, generator=generator)
    return lengths.long(), (lengths * share).long()


def one_row(prompt: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of one row of the full length."""
    return torch.tensor([LENGTH]), torch.tensor([int(prompt * LENGTH)])


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = SDARConfig(vocab_size=VOCABULARY, num_key_value_heads=1, head_dim=64, **SHAPE)
    model = SDARForCausalLM._from_config(config, attn_implementation="sdpa").train()

    def step(form: str, size: int, lengths: torch.Tensor, prompts: torch.Tensor, number: int) -> tuple[float, float]:
        """CPU seconds of a step, and its loss."""
        rows, place, blocks = len(lengths), torch.arange(LENGTH), Blocks(size, from_start=True)
        ids = torch.randint(0, MASK, (rows, LENGTH), generator=torch.Generator().manual_seed(number))
        real = place < lengths[:, None]
        response = real & (place >= prompts[:, None])
        counts = blocks.counts(response)
        given = Rows(torch.arange(rows), rows, response, place)
        units = Units.of(given, blocks, counts.cumsum(0) - counts, int(counts.sum()))
        masked = units.draw(Method.parse("standard"), Key(0, number), Method.parse("standard").sampler()).mask[:, 0]
        TwoCopies.of = FORMS[form]
        start = time.process_time()
        block_ids = blocks.ids(response, real)
        noisy = torch.where(masked, MASK, ids)
        loss = model(noisy, selected=masked, targets=ids, block_ids=block_ids, packed=form == "packed").nll.mean()
        loss.backward()
        model.zero_grad()
        return time.process_time() - start, float(loss.detach())

    def compared(what: str, size: int, forms: list[str], batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        seconds = {form: [] for form in forms}
        for number, batch in enumerate(batches):
            losses = []
            for form in forms:
                taken, loss = step(form, size, *batch, number)
                seconds[form].append(taken)
                losses.append(loss)
            assert max(losses) - min(losses) < 1e-4, "the forms differ in their loss"
        middle = {form: statistics.median(values) for form, values in seconds.items()}
        for form in forms[:-1]:
            ratios[f"block {size}, {what}, {form}"] = middle[form] / middle["doubled"]

    ratios: dict[str, float] = {}
    step("padded", 4, *one_row(0.9), 0)
    for size in BLOCKS:
        compared("mixed rows", size, list(FORMS), [mixed(number) for number in range(STEPS)])
        for prompt in PROMPTS:
            compared(f"one row, prompt {prompt:g}", size, ["padded", "doubled"], [one_row(prompt)] * STEPS)
    lengths = torch.cat([mixed(number)[0] for number in range(STEPS)])
    save(
        "block_copies", ratios, shape=SHAPE, vocabulary=VOCABULARY, length=LENGTH, rows=ROWS, steps=STEPS,
        lengths={"least": int(lengths.min()), "median": int(lengths.median()), "most": int(lengths.max())},
    )  # fmt: skip


if __name__ == "__main__":
    main()

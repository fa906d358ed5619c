"""Pictures: drawing with logits of the masked tokens only, and training with the captions' padding left out.

    python benchmarks/pictures.py

MMaDA's layout and vocabulary (134,656 rows) at a width of 128 and 4 layers: 256 image tokens, a caption's part of 128
positions with captions of 12 to 40 tokens. Drawing, 18 steps with guidance 3.5 and 2 captions, is compared with the
same loop over a model that computes all logits in every step, as peers do; training, a step of 8 rows under MMaDA's
objective, with padded rows. Tasks are taken in turns in one run.
"""

from __future__ import annotations

import numpy as np
import torch
from common import interleaved, save

from stabledllm.data.image_rows import ImageRow
from stabledllm.data.rows import collate
from stabledllm.decoding import ImageOptions, ImagePrompt, generate_images
from stabledllm.forward.nll import forward_nll
from stabledllm.loss import nll_weights, reduce_loss, row_losses
from stabledllm.models.families.mmada import MMadaConfig, MMadaModelLM
from stabledllm.models.image_tokens import ImageTokens
from stabledllm.models.output import MDMOutput
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.objective import Objective
from stabledllm.noise.streams import Key

TOKENS = ImageTokens(126084, 126085, 126088, 126093, bos=126080, eos=126081, first=126349, codebook_size=8192)
MASK, VOCABULARY, N, WIDTH = 126336, 134656, 256, 128
SHAPE = {"d_model": 128, "n_layers": 4, "n_heads": 4, "mlp_hidden_size": 384}
ROWS, CAPTIONS, STEPS, REPEATS = 8, 2, 18, 3


class AllLogits:
    """The same model as peers call it: every logit of every position, of which the selected are taken."""

    def __init__(self, model: MMadaModelLM):
        self.model = model

    def parameters(self):
        return self.model.parameters()

    def __call__(self, ids, attention, selected):
        return MDMOutput(logits=self.model(ids, attention).logits[selected])


def main() -> None:
    torch.manual_seed(0)
    model = MMadaModelLM(MMadaConfig(new_vocab_size=VOCABULARY, vocab_size=VOCABULARY, mask_token_id=MASK, **SHAPE))
    rng, objective = np.random.default_rng(0), Objective(weighting="cosine")
    rows = [
        ImageRow(tuple(rng.integers(0, 126000, length).tolist()), rng.integers(0, 8192, N), TOKENS, WIDTH)
        for length in rng.integers(12, 41, ROWS)
    ]

    def prompts(chosen: list[ImageRow]) -> list[ImagePrompt]:
        given = [(row.input_ids[: row.prompt_length], row.hidden) for row in chosen]
        return [ImagePrompt([*ids, *[MASK] * N, TOKENS.eoi], hidden) for ids, hidden in given]

    def draw(how) -> torch.Tensor:
        shown = rows[:CAPTIONS]
        bare = prompts([row.without_caption() for row in shown])
        options = ImageOptions(steps=STEPS, guidance=3.5)
        return generate_images(how, prompts(shown), bare, options, tokens=TOKENS, mask_id=MASK)

    def train(packing: bool) -> None:
        batch = collate(rows, TOKENS.eos)
        drawn = Rows(torch.arange(ROWS), ROWS, batch["maskable"], torch.arange(batch["input_ids"].shape[1]))
        made = Method.parse("lowdisc", objective=objective).draw(Key(0, 0), drawn, Uniform())
        hint = nll_weights(made.mask, made.coefficient, made.active, torch.ones(ROWS, dtype=torch.float64))
        nll, _ = forward_nll(model, batch, made, MASK, weights=hint, packing=packing)
        losses = row_losses(nll, made.mask, made.coefficient, made.active)
        reduce_loss(losses, torch.ones(ROWS), ROWS).backward()
        model.zero_grad()

    assert draw(model).equal(draw(AllLogits(model))), "the same pictures"
    tasks = {
        "draw": lambda: draw(model),
        "draw from all logits": lambda: draw(AllLogits(model)),
        "train": lambda: train(True),
        "train padded": lambda: train(False),
    }
    seconds = interleaved(tasks, REPEATS)
    save(
        "pictures",
        {
            "speed of drawing over all logits": seconds["draw from all logits"] / seconds["draw"],
            "speed of training over padded rows": seconds["train padded"] / seconds["train"],
        },
        tokens=N, max_text=WIDTH, vocabulary=VOCABULARY, rows=ROWS, captions=CAPTIONS, steps=STEPS, guidance=3.5,
        threads=torch.get_num_threads(), seconds=seconds, **SHAPE,
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""A small random model of MMaDA's family and rows of pictures for it, in float64; no file is read."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from stabledllm.data.image_rows import ImageRow
from stabledllm.models.families.mmada import MMadaConfig, MMadaModelLM
from stabledllm.models.image_tokens import ImageTokens

WORDS, CODES = 20, 8
"""Text ids 0 to 19, the marks among them; then the image tokens."""
TOKENS = ImageTokens(soi=11, eoi=12, t2i=13, ipad=14, bos=15, eos=16, first=WORDS, codebook_size=CODES)
MASK = 17


def model(seed: int = 0, std: float = 0.3) -> MMadaModelLM:
    config = MMadaConfig(
        new_vocab_size=WORDS + CODES, vocab_size=WORDS + CODES, codebook_size=CODES, d_model=16, n_layers=2, n_heads=2,
        mlp_hidden_size=32, init_std=std, mask_token_id=MASK, rope_theta=10_000.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    found = MMadaModelLM(config).double().eval()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    return found


def rows(n: int, tokens: int = 4, width: int = 8, seed: int = 0) -> list[ImageRow]:
    """Captions of 1 to 4 words, so that rows have unequal padding, and random codes."""
    rng = np.random.default_rng(seed)
    return [
        ImageRow(
            tuple(rng.integers(0, 10, 1 + i % 4).tolist()), rng.integers(0, CODES, tokens), TOKENS, width, f"row {i}"
        )
        for i in range(n)
    ]


def enumerated_losses(network: MMadaModelLM, row: ImageRow) -> tuple[np.ndarray, np.ndarray]:
    """Mean cross-entropy over the masked image tokens for each non-empty mask, written out plainly, and the counts.

    The row goes in without its padding, alone, with all logits.
    """
    ids = torch.tensor(row.input_ids[row.hidden :])
    start = len(ids) - 1 - len(row.codes)
    losses, counts = [], []
    for bits in itertools.product((False, True), repeat=len(row.codes)):
        if not any(bits):
            continue
        places = start + torch.tensor(bits).nonzero()[:, 0]
        noisy = ids.clone()
        noisy[places] = MASK
        with torch.no_grad():
            logits = network(noisy[None]).logits[0]
        each = [float(-logits[p].log_softmax(-1)[ids[p]]) for p in places]
        losses.append(sum(each) / len(each))
        counts.append(len(each))
    return np.array(losses), np.array(counts)


def published_masses(tokens: int, points: int = 2_000_001) -> np.ndarray:
    """Probability of masking k = 1..N tokens by MMaDA's rule, from a fine grid of u."""
    u = (np.arange(points) + 0.5) / points
    k = np.maximum(1, np.rint(tokens * np.cos(np.pi * u / 2))).astype(int)
    return np.bincount(k, minlength=tokens + 1)[1:] / points


def enumerated_moments(network: MMadaModelLM, data: list[ImageRow]) -> dict[str, np.ndarray]:
    """By row and count: ``g`` the mean and ``square`` the mean square of the loss; and the counts' masses ``pi``."""
    found: dict[str, list] = {"g": [], "square": []}
    tokens = len(data[0].codes)
    for row in data:
        losses, counts = enumerated_losses(network, row)
        by_count = [losses[counts == k] for k in range(1, tokens + 1)]
        found["g"].append([x.mean() for x in by_count])
        found["square"].append([(x**2).mean() for x in by_count])
    return {name: np.array(value) for name, value in found.items()} | {"pi": published_masses(tokens)}

"""Decoding of images from captions: MaskGIT (arXiv:2202.04200) as MMaDA does it (arXiv:2505.15809, ``t2i_generate``).

Legend: B rows, L positions, N tokens of an image, S masked positions, V vocabulary, C codebook.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stabledllm.decoding.choice import draw
from stabledllm.decoding.loop import DecodingStats
from stabledllm.errors import UserError
from stabledllm.models.image_tokens import ImageTokens
from stabledllm.noise.streams import Key, Stream
from stabledllm.runtime.finite import require_finite


@dataclass(frozen=True)
class ImageOptions:
    """The options of decoding images; part of every result.

    Raises:
        UserError: a value out of range.
    """

    steps: int = 18
    """Number of model calls; once a single token is left masked, further calls draw it again."""
    guidance: float = 3.5
    """Classifier-free: logits are ``(1 + guidance) conditional - guidance unconditional``; twice the forward rows."""
    temperature: float = 1.0
    """Temperature of the noise in the order of deciding, falling to 0 over the steps, see :func:`temperatures`; tokens
    are drawn from the plain softmax."""
    seed: int = 0
    """Seed of everything drawn at random; a row's draws depend on its place among the prompts, not on batches."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"image_decoding.steps: expected at least 1, found {self.steps}.")
        for name in ("guidance", "temperature"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"image_decoding.{name}: expected a number of at least 0, found {value:g}.")


@dataclass(frozen=True)
class ImagePrompt:
    """The row of an image to decode, ``ipad ... t2i bos caption eos soi <N mask tokens> eoi``."""

    input_ids: list[int]
    hidden: int
    """Number of first tokens, to which nothing attends."""


@torch.no_grad()
def generate_images(
    model,
    prompts: Sequence[ImagePrompt],
    unconditional: Sequence[ImagePrompt],
    options: ImageOptions,
    *,
    tokens: ImageTokens,
    mask_id: int,
    first: int = 0,
    stats: DecodingStats | None = None,
) -> Tensor:
    """Codes of one image per prompt, int64 in [0, C), shape (B, N); the same for any batch composition.

    A step draws a token for every masked position and masks the least confident ones again, as many as
    :func:`remasked` says; the others stay. Confidence is ``log p(token) + temperature * Gumbel noise``. Of equally
    confident tokens the earlier ones are masked, so that the count is exact (published: none of those at the limit).

    Args:
        unconditional: a row for each prompt, with no caption; read only with guidance.
        first: place of the first prompt among all that are decoded, for the random draws.
        stats: the counts and the time of this call are added here.

    Raises:
        UserError: no prompt, or rows that are not of one length with the same number of mask tokens before the last.
    """
    began = time.perf_counter()
    stats = stats if stats is not None else DecodingStats()
    guided = options.guidance > 0
    if guided and len(unconditional) != len(prompts):
        raise UserError(f"unconditional prompts: expected {len(prompts)}, found {len(unconditional)}.")
    rows = [*prompts, *(unconditional if guided else ())]
    canvas = _Canvas(model, rows, _image_length(rows, mask_id), guided, tokens, mask_id, stats)
    number = torch.arange(first, first + len(prompts), device=canvas.ids.device)
    schedule = zip(remasked(canvas.n, options.steps), temperatures(options), strict=True)
    for step, (count, temperature) in enumerate(schedule):
        _step(canvas, Key(options.seed, step), number, options.guidance, count, temperature)
    stats.tokens += canvas.codes.numel()
    stats.seconds += time.perf_counter() - began
    return canvas.codes


def remasked(n: int, steps: int) -> list[int]:
    """The number of n tokens that are masked after each step: ``floor(n cos(pi/2 r))``, r the share of steps done.

    It is at least 1 and at most one fewer than before; 0 after the last step. The cosine is rounded to float32 as
    published, which gives ``n/2 - 1`` at r = 2/3.
    """
    left, counts = n, []
    for step in range(steps - 1):
        share = torch.cos(torch.tensor((step + 1) / steps, dtype=torch.float32) * (math.pi / 2))
        left = max(1, min(math.floor(n * share), left - 1))
        counts.append(left)
    return [*counts, 0]


def temperatures(options: ImageOptions) -> list[float]:
    """The temperature of each step: the one before times ``1 - r``, r the share of steps done, 0 at the last.

    The published code multiplies the falling value at each step, where MaskGIT multiplies the first one.
    """
    now, out = options.temperature, []
    for step in range(options.steps):
        now *= 1.0 - (step + 1) / options.steps
        out.append(now)
    return out


class _Canvas:
    """The images being decoded: their ``codes`` (B, N), -1 where masked, and the rows that the model gets."""

    def __init__(self, model, rows: Sequence[ImagePrompt], n: int, guided: bool, tokens, mask_id: int, stats):
        device = next(model.parameters()).device
        self.model, self.n, self.tokens, self.mask_id, self.stats = model, n, tokens, mask_id, stats
        self.forms = 2 if guided else 1
        self.ids = torch.tensor([list(row.input_ids) for row in rows], device=device)
        hidden = torch.tensor([row.hidden for row in rows], device=device)
        self.attention = torch.arange(self.ids.shape[1], device=device) >= hidden[:, None]
        self.codes = torch.full((len(rows) // self.forms, n), -1, device=device)

    def logits(self, guidance: float) -> Tensor:
        """Guided logits of the codes at the masked positions, shape (S, C), in row-major order."""
        masked, image = self.codes < 0, slice(-self.n - 1, -1)
        image_ids = torch.where(masked, self.mask_id, self.codes + self.tokens.first)
        self.ids[:, image] = image_ids.repeat(self.forms, 1)
        selected = torch.zeros_like(self.ids, dtype=torch.bool)
        selected[:, image] = masked.repeat(self.forms, 1)
        logits = self.model(self.ids, self.attention, selected=selected).logits
        self.stats.model_calls += 1
        self.stats.forward_rows += len(self.ids)
        self.stats.forward_positions += self.ids.numel()
        self.stats.logit_positions += len(logits)
        logits = logits[:, self.tokens.first : self.tokens.first + self.tokens.codebook_size]
        if self.forms == 1:
            return logits
        conditional, unconditional = logits.chunk(2)
        return (1 + guidance) * conditional - guidance * unconditional


def _step(canvas: _Canvas, key: Key, number: Tensor, guidance: float, count: int, temperature: float) -> None:
    """Draw every masked token, then mask the ``count`` least confident of them again."""
    masked, place = canvas.codes < 0, torch.arange(canvas.n, device=number.device)
    law = canvas.logits(guidance).softmax(-1)
    require_finite(law, "decoding: probabilities of codes")
    token = draw(law, key.token_uniforms(Stream.DECODING, number, place)[masked])
    canvas.codes[masked] = token
    confidence = torch.full(masked.shape, torch.inf, dtype=torch.float64, device=number.device)
    confidence[masked] = law.gather(1, token[:, None])[:, 0].double().log()
    gumbel = -(-key.token_uniforms(Stream.DECODING_ORDER, number, place).log()).log()
    least = (confidence + temperature * gumbel).argsort(dim=1, stable=True)[:, :count]
    canvas.codes.scatter_(1, least, -1)


def _image_length(rows: Sequence[ImagePrompt], mask_id: int) -> int:
    """N, the number of image tokens, which must be the same in all rows; those of the prompts come first."""
    if not rows:
        raise UserError("picture prompts: expected at least one, found none.")
    width, n = len(rows[0].input_ids), list(rows[0].input_ids).count(mask_id)
    for place, row in enumerate(rows):
        ids, where = list(row.input_ids), f"picture row {place}"
        if len(ids) != width:
            raise UserError(f"{where}: expected {width} tokens as in the first, found {len(ids)}.")
        if n < 1 or ids[-n - 1 : -1] != [mask_id] * n or ids.count(mask_id) != n:
            raise UserError(
                f"{where}: expected {max(n, 1)} mask tokens {mask_id} right before the last token and nowhere else, "
                f"found {ids.count(mask_id)} in all."
            )
        if not 0 <= row.hidden <= width - n - 1:
            raise UserError(f"{where}: expected 0 to {width - n - 1} hidden tokens, found {row.hidden}.")
    return n

"""How a model is converted; loads no framework."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stabledllm.errors import Mistakes, UserError, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "float16")
MASK_EMBEDDINGS = ("kept", "mean")
_KEEPS_NOTHING = "convert: expected --mask-embedding mean for a new row, which has nothing to keep, found kept."


@dataclass(frozen=True)
class ConversionOptions:
    """How a model is converted.

    Args:
        shift: keep predicting position i from the hidden state at i - 1, as the original does; else from its own.
        mask_token: see :func:`~stabledllm.models.conversion.mask_token.choose_mask`.
        mask_embedding: ``kept``: the row as it is. ``mean``: the mean of the other tokens' rows. None: ``mean`` for a
            new row, else ``kept``.
        anneal_steps: optimizer steps over which training widens attention from causal to full; 0: full at once.
        layers: keep so many layers, evenly spaced; None: all.
        dtype: of the weights; ``auto``: what config.json says, float32 for a GGUF file.
    """

    shift: bool = True
    mask_token: str = "auto"
    mask_embedding: str | None = None
    anneal_steps: int = 0
    layers: int | None = None
    dtype: str = "auto"

    def check(self) -> None:
        """Refuse values that no model could be converted with.

        Raises:
            Mistakes: all of them.
        """
        if mistakes := list(self._mistakes()):
            raise Mistakes(mistakes)

    def check_mask(self) -> None:
        """Refuse a new row that is to be kept as it is.

        Raises:
            UserError: it is so.
        """
        if self._keeps_nothing:
            raise UserError(_KEEPS_NOTHING)

    @property
    def _keeps_nothing(self) -> bool:
        return self.mask_token == "new" and self.mask_embedding == "kept"

    def _mistakes(self) -> Iterator[str]:
        if self.anneal_steps < 0:
            yield f"convert: expected --anneal-steps of at least 0, found {self.anneal_steps}."
        if self.layers is not None and self.layers < 1:
            yield f"convert: expected --layers of at least 1, found {self.layers}."
        chosen = (("dtype", self.dtype, DTYPES), ("mask-embedding", self.mask_embedding, MASK_EMBEDDINGS))
        for option, value, known in chosen:
            if value is not None and value not in known:
                near = did_you_mean(value, known, most=0)
                yield f"convert: expected --{option} {', '.join(known)}, found '{value}'{near}."
        if self._keeps_nothing:
            yield _KEEPS_NOTHING

"""The text side of MMaDA (arXiv:2505.15809): LLaDA, with the rows of image tokens after those of text."""

from __future__ import annotations

from stabledllm.models.families.llada import LLaDAConfig, LLaDAModelLM


class MMadaConfig(LLaDAConfig):
    """A configuration with the keys of ``Gen-Verse/MMaDA-8B-*``: LLaDA's and ``new_vocab_size``, with image tokens."""

    model_type = "mmada"

    def __init__(self, new_vocab_size: int | None = None, **kwargs):
        self.new_vocab_size = new_vocab_size
        super().__init__(**kwargs)

    @property
    def embedding_rows(self) -> int:
        return self.embedding_size or self.new_vocab_size or self.vocab_size


class MMadaModelLM(LLaDAModelLM):
    """An MMaDA model, in LLaDA's layout."""

    config_class = MMadaConfig

"""MMaDA (arXiv:2505.15809): LLaDA with the image tokens' rows behind the text's; its text side."""

from __future__ import annotations

from stabledllm.models.families.llada import LLaDAConfig, LLaDAModelLM


class MMadaConfig(LLaDAConfig):
    """The keys of ``Gen-Verse/MMaDA-8B-*``: LLaDA's, and ``new_vocab_size``, the rows with the image tokens."""

    model_type = "mmada"

    def __init__(self, new_vocab_size: int | None = None, **kwargs):
        self.new_vocab_size = new_vocab_size
        super().__init__(**kwargs)

    @property
    def embedding_rows(self) -> int:
        return self.embedding_size or self.new_vocab_size or self.vocab_size


class MMadaModelLM(LLaDAModelLM):
    """LLaDA's layout."""

    config_class = MMadaConfig

"""A vocabulary that stays as the checkpoint has it."""

from __future__ import annotations

from torch import nn

from stabledllm.errors import UserError


class FixedVocabulary:
    """Mixed into a model whose config and tokenizer state the embedding's rows in keys that transformers does not know.

    Resized by transformers alone, such a model would be saved with a config that does not fit its weights.
    """

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_: object, **__: object) -> nn.Module:
        """The embedding as it is.

        Raises:
            UserError: another number of rows than it has.
        """
        embedding = self.get_input_embeddings()
        if new_num_tokens not in (None, embedding.num_embeddings):
            raise UserError(
                f"resize_token_embeddings: expected the {embedding.num_embeddings} rows of this "
                f"checkpoint, found {new_num_tokens}."
            )
        return embedding

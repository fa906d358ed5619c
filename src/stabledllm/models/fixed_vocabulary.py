"""A mixin for models whose vocabulary cannot be resized."""

from __future__ import annotations

from torch import nn

from stabledllm.errors import UserError


class FixedVocabulary:
    """A mixin for models whose config and tokenizer give the embedding's rows in keys that transformers does not know.

    If transformers resized such a model, it would be saved with a config that does not fit its weights.
    """

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_: object, **__: object) -> nn.Module:
        """Return the embedding unchanged.

        Raises:
            UserError: a number of rows that it does not have.
        """
        embedding = self.get_input_embeddings()
        if new_num_tokens not in (None, embedding.num_embeddings):
            raise UserError(
                f"resize_token_embeddings: expected the {embedding.num_embeddings} rows of this "
                f"checkpoint, found {new_num_tokens}."
            )
        return embedding

"""The reference model: a small bidirectional transformer (RoPE, RMSNorm, SwiGLU, SDPA).

Legend: N rows of the forward (views flattened in), L positions, V vocabulary, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from stabledllm.errors import UserError
from stabledllm.models.attention_masks import as_numbers, block_causal_mask
from stabledllm.models.byte_tokenizer import MASK, ByteTokenizer
from stabledllm.models.families.attention import attention_arguments
from stabledllm.models.families.two_copies import TwoCopies
from stabledllm.models.fixed_vocabulary import FixedVocabulary
from stabledllm.models.key_value_cache import KeyValueCache
from stabledllm.models.loss_head import OutputLayer, head_nll, widened
from stabledllm.models.output import MDMOutput


class TinyMDMConfig(PretrainedConfig):
    """Shape and special tokens of :class:`TinyMDM`. ``mask_token_id`` is never guessed elsewhere.

    ``block_size``: response tokens of a block that the model was trained with; None for whole responses.
    """

    model_type = "stabledllm_tiny"

    def __init__(
        self,
        vocab_size: int = 264,
        hidden_size: int = 128,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        intermediate_size: int = 384,
        rope_theta: float = 10_000.0,
        rms_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        mask_token_id: int = 256,
        block_size: int | None = None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.mask_token_id = mask_token_id
        self.block_size = block_size
        super().__init__(**kwargs)


def check_byte_vocabulary(config: TinyMDMConfig, what: str) -> None:
    """Check that the embedding holds every id of the byte tokenizer, and that the mask token is the tokenizer's.

    Raises:
        UserError: a smaller vocabulary, or another token for the mask.
    """
    if config.vocab_size < ByteTokenizer.vocab_size:
        least = ByteTokenizer.vocab_size
        raise UserError(f"{what}: expected vocab_size of at least {least}, found {config.vocab_size}.")
    if config.mask_token_id != MASK:
        raise UserError(f"{what}: expected mask_token_id {MASK} of its byte tokenizer, found {config.mask_token_id}.")


def rotate(x_NHLD: Tensor, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
    """Apply the rotary position embedding (Su et al., arXiv:2104.09864), in the half-split layout of Llama."""
    half = x_NHLD.shape[-1] // 2
    swapped = torch.cat((x_NHLD[..., half:], x_NHLD[..., :half]), dim=-1)
    # The minus sign is given to the small table, not to the large tensor: the same bits, one pass over it less.
    signed_LD = torch.cat((-sin_LD[..., :half], sin_LD[..., half:]), dim=-1)
    return x_NHLD * cos_LD + swapped * signed_LD


class Block(GradientCheckpointingLayer):
    """A layer: pre-norm attention without a causal mask, then a gated MLP."""

    def __init__(self, config: TinyMDMConfig, index: int):
        super().__init__()
        self.index = index
        width, hidden = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.attn_norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.gate_up_proj = nn.Linear(width, 2 * hidden, bias=False)
        self.ff_out = nn.Linear(hidden, width, bias=False)

    def forward(
        self,
        x_NLD: Tensor,
        cos_LD: Tensor,
        sin_LD: Tensor,
        bias: Tensor | None,
        cache: KeyValueCache | None = None,
        selected: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        n, length, width = x_NLD.shape
        qkv = self.qkv_proj(self.attn_norm(x_NLD)).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate(q, cos_LD, sin_LD), rotate(k, cos_LD, sin_LD)
        if cache is not None:
            k, v = cache.update(k, v, self.index)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(n, length, width)
        if selected is not None:  # from here on every position is by itself
            x_NLD, mixed = x_NLD[selected], mixed[selected]
        x_NLD = x_NLD + self.attn_out(mixed)
        gate, up = self.gate_up_proj(self.ff_norm(x_NLD)).chunk(2, dim=-1)
        return x_NLD + self.ff_out(F.silu(gate) * up)


class TinyMDM(FixedVocabulary, PreTrainedModel):
    """The reference model, which predicts every token of a row from the whole, partly masked row.

    ``forward(input_ids, attention_mask, selected, targets)`` returns the cross-entropies (nats,
    float32 or wider) of ``targets`` at the ``selected`` positions only, in row-major order, so that
    no logits are made where no loss is carried; ``nll_weights`` (S,), the loss's weight of each up to a common factor,
    spare the backward pass some work and change no result. Without ``selected`` it returns all logits.

    ``segment_ids`` and ``position_ids`` (N, L) are for packed rows: a token attends to its own segment, whose
    positions start at 0 again.

    ``block_ids`` (N, L), 0 for the prompt, 1, 2, ... for blocks and -1 for padding, asks for block diffusion in place
    of full attention and of ``attention_mask``. With ``targets`` every block of the noisy row sees the clean blocks
    before it (``targets`` is the clean row; the forward is over both copies, without the noisy blocks that carry no
    loss); without them a token attends to its own block of the row and to the blocks before it. ``packed`` lays the
    copies of several rows end to end in one sequence; results are in the rows' order.

    ``cache``: only its positions are computed, see :class:`~stabledllm.models.key_value_cache.KeyValueCache`.
    """

    config_class = TinyMDMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]
    accepts_loss_kwargs = False

    def __init__(self, config: TinyMDMConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = OutputLayer(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)

    def _rope(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, shape (L, D / H); angles in float64 so that precision does not fall with L."""
        cached = getattr(self, "_rope_cache", None)
        if cached is None or cached[0] != (length, device, dtype):
            dim = self.config.hidden_size // self.config.num_attention_heads
            inverse = self.config.rope_theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            angles = torch.arange(length, dtype=torch.float64)[:, None] * inverse
            angles = torch.cat((angles, angles), dim=-1)
            self._rope_cache = (
                (length, device, dtype),
                angles.cos().to(device, dtype),
                angles.sin().to(device, dtype),
            )
        return self._rope_cache[1:]

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        block_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
        selected: Tensor | None = None,
    ) -> Tensor:
        """Final normalised hidden states, shape (N, L, D).

        ``selected`` (N, L) asks for those of some positions only, shape (S, D), which spares most of the last layer.
        """
        length = input_ids.shape[1]
        if block_ids is not None:
            bias = block_causal_mask(block_ids)
        else:
            bias = attention_arguments("sdpa", attention_mask, segment_ids, self.embed.weight.dtype)["attention_mask"]
        if cache is not None:
            if position_ids is None:
                position_ids = torch.arange(length, device=input_ids.device)[None]
            input_ids, position_ids = cache.enter(input_ids, position_ids, segment_ids, "sdpa")
            bias = cache.queries(bias)
        # A cache and a compiled body take the last layer whole.
        early = None if cache is not None or torch.compiler.is_compiling() else selected
        hidden = self._through_layers(input_ids, position_ids, length, bias, cache, early)
        if early is not None:
            return hidden
        if cache is not None:
            hidden = cache.spread(hidden, length)
        return hidden if selected is None else hidden[selected]

    def copies_hidden_states(
        self, noisy_ids: Tensor, clean_ids: Tensor, block_ids: Tensor, selected: Tensor | None, packed: bool = False
    ) -> Tensor:
        """Those of the noisy row beside the clean one, shape (N, L, D), or (S, D) at ``selected``."""
        masked = noisy_ids != clean_ids
        copies = TwoCopies.of(masked if selected is None else masked | selected.bool(), block_ids, packed=packed)
        length, width = block_ids.shape[1], copies.row.shape[1]
        places = torch.arange(length, device=block_ids.device).expand_as(block_ids)
        place = copies.place if selected is None else copies.place[selected.bool()]
        wanted = (place // width, place % width)
        early = None if torch.compiler.is_compiling() else wanted
        bias = as_numbers(copies.mask(), self.embed.weight.dtype)
        ids, position_ids = copies.joined(noisy_ids, clean_ids), copies.joined(places, places)
        hidden = self._through_layers(ids, position_ids, length, bias, None, early)
        return hidden if early is not None else hidden[wanted]

    def _through_layers(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        length: int,
        bias: Tensor | None,
        cache: KeyValueCache | None,
        early: Tensor | tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Final normalised hidden states; the last layer is computed at the positions ``early`` only, where given.

        Args:
            position_ids: below ``length``; None: 0, 1, 2, ...
        """
        cos_LD, sin_LD = self._rope(length, input_ids.device, self.embed.weight.dtype)
        if position_ids is not None:
            cos_LD, sin_LD = cos_LD[position_ids][:, None], sin_LD[position_ids][:, None]
        x_NLD = self.embed(input_ids)
        for block in self.blocks[:-1]:
            x_NLD = block(x_NLD, cos_LD, sin_LD, bias, cache)
        return self.norm(self.blocks[-1](x_NLD, cos_LD, sin_LD, bias, cache, early))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        selected: Tensor | None = None,
        targets: Tensor | None = None,
        block_ids: Tensor | None = None,
        nll_weights: Tensor | None = None,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
        packed: bool = False,
        **_: object,
    ) -> MDMOutput:
        if block_ids is not None and targets is not None:
            hidden = self.copies_hidden_states(input_ids, targets, block_ids, selected, packed)
        else:
            hidden = self.hidden_states(
                input_ids, attention_mask, block_ids, segment_ids, position_ids, cache, selected
            )
        if selected is None:
            return MDMOutput(logits=self.head(hidden))
        if targets is None:
            return MDMOutput(logits=widened(self.head(hidden)))
        return MDMOutput(nll=head_nll(self.head, hidden, targets[selected], nll_weights))

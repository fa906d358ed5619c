"""Computes the bytes that a training step keeps for its backward pass, from the model's shape alone.

They are counted tensor by tensor, as transformers' modules save them, for the blocks that the library's families share
(RMSNorm, rotary attention through SDPA, gated MLP); ``tests/planning`` compares them with what a run really holds.
Legend: D width, F hidden width, Q and K widths of all query and key heads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from stabledllm.models.chunked_nll import chunk_of
from stabledllm.models.moe_shapes import MoEShape
from stabledllm.models.shape import Shape

_GATES = {"gate", "up", "gate_up"}
"""Linear layers that read the second norm's output."""
_DROPOUT_BYTES = 4
"""Bytes that dropout keeps for each number: its noise in float32 on a CPU, less on CUDA."""
_LOGIT_BYTES = 8
"""Bytes for each logit besides the logit itself: its log-softmax and its gradient, in float32."""


@dataclass(frozen=True)
class Forward:
    """One forward and backward pass of one device."""

    rows: int
    """Forwards of the pass: rows times their views."""
    length: int
    """Tokens of each row, padding included."""
    compute: Literal["float32", "bfloat16", "autocast"] = "float32"
    """``autocast``: float32 weights and residual stream, bfloat16 products."""
    checkpointing: bool = False
    """Whether each block keeps only its input and is run again in the backward pass."""
    adapters: dict[str, tuple[int, int]] | None = None
    """The linear layers with LoRA, from :meth:`Shape.targets`; None where every weight is trained."""
    rank: int = 0
    dropout: bool = False
    cast: int = 4
    """Bytes per number of the adapters' input, which peft casts to the adapters' float32 and autocast to bfloat16."""
    copies: int = 1
    """Copies of a row side by side: in blocks 2, the noisy and the clean one, of which one carries loss."""
    mask: float = 1.0
    """Numbers of the attention mask of blocks over those of padded rows; 0 where there is none."""

    @property
    def tokens(self) -> int:
        """Tokens of the pass."""
        return self.predicted * self.copies

    @property
    def predicted(self) -> int:
        """Tokens of the pass that may carry loss."""
        return self.rows * self.length

    @property
    def mask_bytes(self) -> int:
        """Bytes of the attention mask of blocks, as numbers that all layers share."""
        return 0 if self.copies == 1 else int(self.mask * self.rows * (self.copies * self.length) ** 2 * self.narrow)

    @property
    def wide(self) -> int:
        """Bytes per number of the residual stream."""
        return 2 if self.compute == "bfloat16" else 4

    @property
    def narrow(self) -> int:
        """Bytes per number that a linear layer reads and writes."""
        return 4 if self.compute == "float32" else 2


def block_bytes(shape: Shape, run: Forward) -> int:
    """Bytes that one block keeps per token; of a model with experts, one that has them."""
    if isinstance(shape, MoEShape):
        return _shared_bytes(shape, replace(shape.dense, hidden=shape.active_hidden), run) + _routing_bytes(shape, run)
    return _shared_bytes(shape, shape, run)


def _routing_bytes(shape: MoEShape, run: Forward) -> int:
    """Bytes per token of what experts need beside the MLP that their chosen widths add up to."""
    D, K, b = shape.width, shape.chosen, run.narrow
    read = run.adapters is None or bool(run.adapters.keys() & {"gate", "up"})  # for gradients of what reads it
    copies = (1 + read) * b * K * D  # a token for each of its experts, and what each gives back
    router = 4 * shape.experts + (4 * D if b < 4 else 0)  # scores, and the input in float32
    numbers = (8 + 8 + 8) * K + 3 * 4 * K  # the order and its inverse, the chosen; their shares, before and after
    return copies + router + numbers


def _shared_bytes(whole: Shape, shape: Shape, run: Forward) -> int:
    """Bytes per token of norms, attention and an MLP of the width ``shape.hidden``."""
    D, F, Q, K, b = shape.width, shape.hidden, shape.query_width, shape.kv_width, run.narrow
    full = run.adapters is None
    # A norm keeps its input in float32 and, for its own weight's gradient, the normalised input.
    norms = 2 * (4 * D + (run.wide * D if full else 0) + 4)
    if shape.head_norms:
        norms += 4 * (Q + K) + (run.wide * (Q + K) if full else 0)
    attention = b * (2 * Q + 2 * K) + 4 * shape.heads  # queries, keys, values, output; log-sum-exp
    if whole.fused or getattr(whole, "fused_qkv", False):
        attention += b * (Q + K)  # the values are a view that keeps the unrotated queries and keys alive
    gates = b * 3 * F  # the gate, its silu, and what it multiplies
    return norms + attention + gates + _linear_inputs(shape, run)


def _linear_inputs(shape: Shape, run: Forward) -> int:
    """Bytes per token that linear layers keep for their weights' gradients, besides the attention output."""
    D, F, b = shape.width, shape.hidden, run.narrow
    if run.adapters is not None:
        sizes = {role: size for role, (size, _) in run.adapters.items()}
        if run.dropout:
            inputs = (run.cast + _DROPOUT_BYTES) * sum(sizes.values())
        elif run.compute == "float32":  # nothing to cast: readers of one tensor share it
            shared = D * bool(sizes.keys() & {"qkv", "q", "k", "v"}) + D * bool(
                sizes.keys() & {"gate", "up", "gate_up"}
            )
            inputs = b * (shared + F * ("down" in sizes))
        else:
            inputs = run.cast * sum(sizes.values())
        return inputs + 4 * run.rank * len(sizes)
    if run.compute == "autocast":
        readers = len(shape.linear_layers()) - 2  # autocast casts the norm's output anew for each of its readers
        return b * (readers * D + F)
    return b * (2 * D + F)


def _layers_bytes(shape: Shape, run: Forward) -> list[int]:
    """Bytes per token that each layer keeps."""
    if isinstance(shape, MoEShape):
        dense = _shared_bytes(shape, shape.dense, run)
        return [dense] * shape.dense_layers + [block_bytes(shape, run)] * shape.expert_layers
    return [block_bytes(shape, run)] * shape.layers


def kept_bytes(shape: Shape, run: Forward) -> int:
    """Bytes that all blocks keep between the forward and the backward pass."""
    every = [run.wide * shape.width] * shape.layers if run.checkpointing else _layers_bytes(shape, run)
    ends = 2 * run.wide * shape.width + 4 * shape.width  # the last norm
    return run.tokens * (sum(every) + ends) + run.mask_bytes


def working_bytes(shape: Shape, run: Forward) -> int:
    """Bytes needed besides while one block's backward pass runs: its gradients, and its activations if recomputed."""
    adapted = run.compute != "float32" and bool((run.adapters or {}).keys() & (_GATES | {"down"}))
    cast = run.cast if adapted else 0
    hidden, width = shape.hidden, shape.width
    if isinstance(shape, MoEShape):
        hidden, width = max(hidden, shape.active_hidden), (shape.chosen + 1) * width
    mlp = (run.narrow + cast) * (hidden + width)
    if run.checkpointing:
        return run.tokens * (block_bytes(shape, run) + mlp)
    # The backward pass of the last norm, which comes first, computes in float32.
    return run.tokens * max(mlp, (12 + run.narrow) * shape.width)


def head_bytes(shape: Shape, run: Forward, *, positions: int | None = None, chunk: int | None = None) -> int:
    """Bytes of the loss head: hidden states at the masked positions, one chunk of logits, its weight's gradient.

    Args:
        positions: positions that carry loss; without it every token of the copy that does.
        chunk: positions whose logits exist at once; without it as many as the loss head takes.
    """
    chunk = chunk_of(shape.vocabulary) if chunk is None else chunk
    positions = run.predicted if positions is None else positions
    hidden = 2 * run.narrow * positions * shape.width
    weight = 4 * shape.vocabulary * shape.width if run.adapters is None else 0
    return hidden + weight + (_LOGIT_BYTES + run.narrow) * min(chunk, positions) * shape.vocabulary


def full_logits_bytes(shape: Shape, run: Forward) -> int:
    """The same as :func:`head_bytes` for a head that makes all logits of all rows at once."""
    return head_bytes(shape, run, chunk=run.predicted)

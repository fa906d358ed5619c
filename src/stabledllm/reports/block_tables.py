"""The table and the sentences on a model in blocks: what its blocks share of the mask-rate noise."""

from __future__ import annotations

from stabledllm.reports import numbers as fmt
from stabledllm.reports.stored import number
from stabledllm.reports.table import Table


def blocks_table(blocks: dict) -> Table:
    """The table of the mask-rate noise in blocks: its split, and B under t of their own and under one t per row."""
    rows = [
        ("of a single block", "of_blocks"),
        ("  between the blocks of a row", "between_blocks"),
        ("  between rows", "between_rows"),
        ("B, a t of its own for each block", "own_t"),
        ("B, one t for all blocks of a row", "between_rows"),
    ]
    parts = [blocks, *([blocks["gradient"]] if isinstance(blocks.get("gradient"), dict) else [])]
    cells = tuple((name, *(fmt.positive(part.get(key)) for part in parts)) for name, key in rows)
    columns = ("loss, nats²", "gradient, (nats/param)²")[: len(parts)] if len(parts) > 1 else ("nats²",)
    note = (
        f"Blocks of {blocks.get('block_size')}, {number(blocks.get('blocks_per_row')):.3g} a row. Between rows: what "
        f"the mean over a row's blocks keeps at one t. Value ± standard error, or with its 95 % interval."
    )
    return Table("Mask-rate noise in blocks", ("mask-rate noise", *columns), cells, note)


def blocks_sentences(blocks: dict) -> list[str]:
    """What one t for all blocks of a row costs: of the loss and, where it was measured, of the gradient."""
    return [part["sentence"] for part in (blocks, blocks.get("gradient")) if part]

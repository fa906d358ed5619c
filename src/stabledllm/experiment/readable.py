"""What can be read of names and files before a run, without a refusal where another check tells of it."""

from __future__ import annotations

from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.models.names import in_own_blocks
from stabledllm.noise.of_parts import OfParts


def own_blocks_of(run: TrainSettings) -> TrainSettings:
    """The settings in the model's blocks; as they are where its files cannot be read, which another check says."""
    try:
        return in_own_blocks(run)
    except UserError:
        return run


def is_known(method: str) -> bool:
    """Whether a method string names known parts that go together."""
    try:
        return OfParts(method).parts is not None
    except UserError:
        return False

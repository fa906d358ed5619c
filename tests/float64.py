"""Statistical tests compute in float64 by default; each folder that does imports this fixture in its conftest."""

import pytest
import torch


@pytest.fixture(autouse=True)
def default_float64():
    """Tensors made without a dtype are float64 during the test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)

"""The projections of these tests are as small as their models."""

from __future__ import annotations

from functools import partial

import pytest

from stabledllm.gradient.sketch import Sketch


@pytest.fixture(scope="module", autouse=True)
def few_places():
    """A profile of exact gradients is projected to 64 places: the toy's three parameters lie in one piece of them, so
    that inner products are exact, as with the 8,192 of a real model, of which nearly all would be 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stabledllm.gradient.profile.Sketch", partial(Sketch, places=64))
        yield

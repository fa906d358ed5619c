"""A picture is brought to its side as MMaDA does it, and one that cannot be is refused with its size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stabledllm.errors import UserError
from stabledllm.images.sizing import fit_image
from tests.fakes.images import picture


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 30), (33, 64), (16, 23)])
def test_the_centre_is_kept_at_the_shorter_sides_scale(height, width):
    array = picture(1, height, width)
    fitted = fit_image(array, 16, "crop")
    assert fitted.shape == (16, 16, 3)
    assert fitted.dtype == np.uint8
    scale = 16 / min(height, width)
    whole = Image.fromarray(array).resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    top, left = round((whole.height - 16) / 2), round((whole.width - 16) / 2)
    assert np.array_equal(fitted, np.asarray(whole.crop((left, top, left + 16, top + 16))))


def test_a_picture_of_that_size_is_left_as_it_is():
    array = picture(1)
    for how in ("crop", "refuse"):
        assert np.array_equal(fit_image(array, 16, how), array)


@pytest.mark.parametrize(
    ("size", "how", "sentence"),
    [
        ((15, 40), "crop", r"^a.png: expected a picture of at least 16 x 16 pixels, found 40 x 15\.$"),
        ((17, 16), "refuse", r"^a.png: expected a picture of 16 x 16 pixels, found 16 x 17\.$"),
        ((8, 8), "refuse", r"^a.png: expected a picture of 16 x 16 pixels, found 8 x 8\.$"),
    ],
)
def test_another_size_is_refused(size, how, sentence):
    with pytest.raises(UserError, match=sentence):
        fit_image(picture(1, *size), 16, how, "a.png")

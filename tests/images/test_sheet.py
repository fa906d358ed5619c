"""Contact sheets hold every picture pixel for pixel; PNG files are written whole."""

import numpy as np
import pytest
from PIL import Image

from stabledllm.errors import UserError
from stabledllm.images.scenes import draw, scene
from stabledllm.images.sheet import _wrapped, contact_sheet, save_png

GREEN, RED = (34, 139, 60), (200, 40, 40)
SCENES = [scene("test", 0, i) for i in range(7)]
CAPTIONS = [str(each) for each in SCENES]
PICTURES = [draw(each, i) for i, each in enumerate(SCENES)]


def found_at(sheet: Image.Image, picture: np.ndarray, scale: int) -> tuple[int, int] | None:
    """Row and column of the only place where the enlarged picture stands."""
    pixels = np.asarray(sheet).astype(int)
    large = picture.repeat(scale, 0).repeat(scale, 1).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, large.shape)[:, :, 0]
    # A few pixels first: the whole comparison only where they agree.
    probes = [(0, 0), (7 * scale, 9 * scale), (25 * scale, 22 * scale), (16 * scale, 16 * scale)]
    likely = np.all([(windows[:, :, y, x] == large[y, x]).all(-1) for y, x in probes], axis=0)
    places = [tuple(place) for place in np.argwhere(likely) if np.array_equal(windows[tuple(place)], large)]
    assert len(places) <= 1
    return places[0] if places else None


@pytest.mark.parametrize(("options", "columns", "scale"), [({}, 3, 5), ({"columns": 2, "scale": 3}, 2, 3)])
def test_every_picture_stands_in_its_place(options, columns, scale):
    noise = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(7)]
    sheet = contact_sheet(noise, CAPTIONS, **options)
    places = [found_at(sheet, picture, scale) for picture in noise]
    assert None not in places
    rows, lefts = ([place[axis] for place in places] for axis in (0, 1))
    assert all(left == lefts[i % columns] for i, left in enumerate(lefts))
    assert all(row == rows[i - i % columns] for i, row in enumerate(rows))
    assert lefts[:columns] == sorted(set(lefts))
    assert len(set(rows)) == -(-7 // columns)
    assert sheet.width >= lefts[columns - 1] + 32 * scale
    assert sheet.height > rows[-1] + 32 * scale
    assert sheet.mode == "RGB"


def test_large_pictures_keep_their_size():
    large = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    assert found_at(contact_sheet([large], ["noise"]), large, 1) is not None


def test_marks_are_frames_and_signs():
    plain = contact_sheet(PICTURES[:3], CAPTIONS[:3], columns=3)
    marked = contact_sheet(PICTURES[:3], CAPTIONS[:3], columns=3, marks=[True, False, None])
    places = [found_at(marked, picture, 5) for picture in PICTURES[:3]]
    for (top, left), colour in zip(places, (GREEN, RED, None), strict=True):
        pixels = np.asarray(marked)
        around = [pixels[top - 2, left : left + 160], pixels[top : top + 160, left - 2]]
        around += [pixels[top + 161, left : left + 160], pixels[top : top + 160, left + 161]]
        caption = pixels[top + 165 :, left : left + 160].reshape(-1, 3)
        for other in (GREEN, RED):
            assert all((side == other).all() for side in around) == (other == colour)
            assert bool((caption == other).all(-1).any()) == (other == colour)
    assert GREEN not in {colour for _, colour in plain.getcolors(2**20)}


def test_captions_are_drawn_and_make_room():
    """Beneath a picture is ink where its caption has letters; a long one takes lines of its own, 6 at most."""
    heights = [contact_sheet(PICTURES[:1], [" ".join(["word"] * n)]).height for n in (1, 8, 200, 400)]
    assert heights[0] < heights[1] < heights[2] == heights[3]
    sheets = [np.asarray(contact_sheet(PICTURES[:1], [text])) for text in ("red", "blue")]
    assert sheets[0].shape == sheets[1].shape
    differing = np.argwhere((sheets[0] != sheets[1]).any(-1))
    assert len(differing) > 20
    assert differing[:, 0].min() >= 14 + 160


def test_wrapping_loses_no_word_and_keeps_the_width():
    class Fixed:
        def getlength(self, text):
            return 10 * len(text)

    assert _wrapped("three red circles above", Fixed(), 100) == ["three red", "circles", "above"]
    assert _wrapped("a abcdefghijklmno b", Fixed(), 100) == ["a", "abcdefghij", "klmno b"]
    assert _wrapped("", Fixed(), 100) == [""]
    cut = _wrapped("abcdefghij " * 7, Fixed(), 100)
    assert (len(cut), cut[-1]) == (6, "abcdefg...")


@pytest.mark.parametrize(
    ("pictures", "captions", "options", "said"),
    [
        ([], [], {}, "expected at least one picture, found none"),
        (PICTURES[:2], ["a"], {}, "expected 2 captions, one a picture, found 1"),
        (PICTURES[:2], ["a", "b"], {"marks": [True]}, "expected 2 marks, one a picture, found 1"),
        (PICTURES[:1], ["a"], {"columns": 0}, "expected columns of at least 1, found 0"),
        (PICTURES[:1], ["a"], {"scale": 0}, "expected scale of at least 1, found 0"),
        ([PICTURES[0] / 255], ["a"], {}, r"picture 0: expected uint8 of shape \(S, S, 3\), found float64"),
        ([PICTURES[0], PICTURES[1][:16, :16]], ["a", "b"], {}, r"picture 1: expected shape \(32, 32, 3\), found \(16"),
    ],
)
def test_what_makes_no_sheet_is_refused(pictures, captions, options, said):
    with pytest.raises(UserError, match=said):
        contact_sheet(pictures, captions, **options)


def test_png_files_are_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "picture.png"
    save_png(path, PICTURES[0])
    assert np.array_equal(np.asarray(Image.open(path)), PICTURES[0])
    save_png(path, Image.fromarray(PICTURES[1]))
    assert np.array_equal(np.asarray(Image.open(path)), PICTURES[1])
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]

    def killed(self, file, format):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_png(path, PICTURES[2])
    assert np.array_equal(np.asarray(Image.open(path)), PICTURES[1])
    with pytest.raises(UserError, match=r"picture.png: expected uint8 of shape \(S, S, 3\), found float64"):
        save_png(path, PICTURES[0] / 255)

"""Every caption's picture is judged to show it, and to show nothing that differs from it in one word."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from stabledllm.errors import UserError
from stabledllm.images.judge import judge, read
from stabledllm.images.scenes import BACKGROUND, COLOURS, RELATIONS, SHAPES, SIDE, Group, Scene, draw, scene, split_of

GROUPS = [Group(n, colour, shape) for n in (1, 2, 3) for colour in COLOURS for shape in SHAPES]
SINGLE = [Scene(group) for group in GROUPS]
PAIRS = [
    Scene(a, relation, b)
    for a, b in itertools.product(GROUPS[::5], GROUPS[1::7])
    if a.colour != b.colour
    for relation in RELATIONS
]


def neighbours(wanted: Scene) -> list[Scene]:
    """Scenes that differ in one property of one group or in the relation."""
    out = []
    for side in ("first", "second"):
        group = getattr(wanted, side)
        if group is None:
            continue
        other = wanted.second if side == "first" else wanted.first
        taken = {group.colour, other.colour if other else None}
        changed = [replace(group, count=n) for n in (1, 2, 3) if n != group.count]
        changed += [replace(group, colour=c) for c in COLOURS if c not in taken]
        changed += [replace(group, shape=s) for s in SHAPES if s != group.shape]
        out += [replace(wanted, **{side: each}) for each in changed]
    if wanted.relation:
        out += [replace(wanted, relation=r) for r in RELATIONS if r != wanted.relation]
    return out


@pytest.mark.parametrize("scenes", [SINGLE, PAIRS], ids=["one group", "two groups"])
def test_a_picture_shows_its_caption_and_no_other(scenes):
    for number, wanted in enumerate(scenes):
        picture = draw(wanted, seed=number)
        assert judge(picture, wanted).correct, str(wanted)
        groups = [g for g in (wanted.first, wanted.second) if g]
        found = sorted((o.colour, o.shape) for o in read(picture))
        assert found == sorted((g.colour, g.shape) for g in groups for _ in range(g.count))
        for other in neighbours(wanted):
            assert not judge(picture, other).correct, f"'{wanted}' was taken for '{other}'"


def test_every_part_is_judged_by_itself():
    wanted = Scene.parse("two red circles above a blue square")
    picture = draw(Scene.parse("two red squares below a blue square"), 0)
    verdict = judge(picture, wanted)
    assert (verdict.colours, verdict.counts, verdict.shapes, verdict.relation) == (True, True, False, False)


def test_a_smeared_object_has_no_shape():
    wanted = Scene.parse("two blue circles")
    picture = draw(wanted, 0)
    assert judge(picture, wanted).correct
    spot = next(o for o in read(picture) if o.colour == "blue")
    y, x = round(spot.y), round(spot.x)
    picture[y + 3 : y + 8, x - 4 : x + 3] = COLOURS["blue"]
    verdict = judge(picture, wanted)
    assert (verdict.colours, verdict.counts, verdict.shapes) == (True, True, False)
    assert sorted(o.shape for o in read(picture)) == ["blot", "circle"]


def test_a_blurred_colour_is_still_that_colour_and_nothing_is_nothing():
    wanted = Scene.parse("three red circles above a blue square")
    noise = np.random.default_rng(0).normal(0, 12, (SIDE, SIDE, 3))
    blurred = (draw(wanted, 1) + noise).clip(0, 255).astype(np.uint8)
    assert judge(blurred, wanted).correct
    empty = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
    verdict = judge(empty, wanted)
    assert not any((verdict.colours, verdict.counts, verdict.shapes, verdict.relation))


def test_captions_and_scenes_are_the_same_thing():
    for wanted in (*SINGLE, *PAIRS):
        assert Scene.parse(str(wanted)) == wanted


@pytest.mark.parametrize("caption", ["", "a red circles", "two red circle", "four red circles", "a red circle above"])
def test_a_caption_of_no_scene_is_refused(caption):
    with pytest.raises(UserError, match="expected one such as"):
        Scene.parse(caption)


def test_an_array_that_is_no_picture_is_refused():
    with pytest.raises(UserError, match=r"expected uint8 of shape \(S, S, 3\), found float64"):
        read(np.zeros((SIDE, SIDE, 3)))


def test_a_level_bounds_the_objects_of_a_group():
    for level, most in (("easy", 2), ("hard", 3)):
        groups = [g for i in range(200) for s in [scene("train", 0, i, level)] for g in (s.first, s.second) if g]
        assert {g.count for g in groups} == set(range(1, most + 1))
    assert scene("train", 0, 3) == scene("train", 0, 3, "hard")
    with pytest.raises(UserError, match=r"scenes: unknown level 'x' \(known: easy, hard\)"):
        scene("train", 0, 0, "x")


def test_splits_share_no_caption_and_repeat_bit_for_bit():
    of = {split: {str(scene(split, 0, i)) for i in range(300)} for split in ("train", "validation", "test")}
    assert all(split_of(caption) == split for split, captions in of.items() for caption in captions)
    assert scene("test", 0, 5) == scene("test", 0, 5) != scene("test", 1, 5)
    wanted = scene("train", 0, 1)
    np.testing.assert_array_equal(draw(wanted, 3), draw(wanted, 3))
    assert any((draw(wanted, 3) != draw(wanted, n)).any() for n in range(10))

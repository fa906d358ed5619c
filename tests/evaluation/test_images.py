"""Pictures drawn by the shipped model: seeded, resumable, judged, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from stabledllm.config.settings import EvalSettings, ImageSettings
from stabledllm.data.images import image_tokenizer, image_with_defaults
from stabledllm.decoding import ImageOptions
from stabledllm.errors import UserError
from stabledllm.evaluation import drawing
from stabledllm.evaluation.clip_score import ClipScore
from stabledllm.evaluation.drawing import draw_codes, prompt
from stabledllm.evaluation.images import save_scored_images, score_images
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.run import evaluate
from stabledllm.images.judge import judge
from stabledllm.images.scenes import Scene, draw
from stabledllm.models.image_choices import image_choices
from stabledllm.models.loading import load_model
from stabledllm.runtime.files import write_json
from tests.evaluation.test_clip_score import write_clip
from tests.fakes.hub_models import write_mmada

IMAGE = image_with_defaults(ImageSettings(), "tiny-mmada")
OPTIONS = ImageOptions(steps=3, guidance=1.0, temperature=1.0, seed=5)
CAPTIONS = [
    "a red circle above a blue square",
    "two green triangles",
    "three yellow squares left of a red triangle",
    "a blue circle",
    "two red squares below three green circles",
]


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny-mmada")


def examples(captions=CAPTIONS) -> list[dict]:
    return [{"caption": caption, "origin": f"line {i}"} for i, caption in enumerate(captions)]


def scored(loaded, folder, **kwargs):
    return score_images(loaded, examples(), IMAGE, OPTIONS, 2, Journal(folder, "generated", {}), **kwargs)


def test_any_batch_draws_the_same_and_a_place_its_own(loaded):
    whole = draw_codes(loaded, CAPTIONS, IMAGE, OPTIONS, 5)
    assert whole.equal(draw_codes(loaded, CAPTIONS, IMAGE, OPTIONS, 2))
    assert whole[2:4].equal(draw_codes(loaded, CAPTIONS[2:4], IMAGE, OPTIONS, 2, first=2))
    assert not whole[2:4].equal(draw_codes(loaded, CAPTIONS[2:4], IMAGE, OPTIONS, 2))
    other = ImageOptions(steps=3, guidance=1.0, temperature=1.0, seed=6)
    assert not whole.equal(draw_codes(loaded, CAPTIONS, IMAGE, other, 5))


def test_every_caption_gets_its_own_picture(loaded, tmp_path):
    codes = draw_codes(loaded, CAPTIONS, IMAGE, OPTIONS, 5)
    np.testing.assert_array_equal(scored(loaded, tmp_path).images, image_tokenizer("tiny-vq").decode(codes))


def test_a_kill_between_batches_changes_nothing(loaded, tmp_path, monkeypatch):
    whole = scored(loaded, tmp_path / "whole")
    calls, true = [], drawing.generate_images

    def killed(*args, **kwargs):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(kwargs["first"])
        return true(*args, **kwargs)

    monkeypatch.setattr(drawing, "generate_images", killed)
    with pytest.raises(KeyboardInterrupt):
        scored(loaded, tmp_path / "cut")
    monkeypatch.setattr(drawing, "generate_images", true)
    again = scored(loaded, tmp_path / "cut")
    np.testing.assert_array_equal(again.images, whole.images)
    assert again.lines == whole.lines
    own = {"seconds", "tokens_per_second"}
    for result in (again, whole):
        for name in own:
            result.metrics["accuracy"]["decoding_stats"].pop(name)
    assert again.metrics == whole.metrics


def test_every_picture_is_judged_by_its_own_caption(loaded, tmp_path, monkeypatch):
    """Codes of drawn scenes in place of generated ones: the right ones are found right, and only they."""
    tokenizer = image_tokenizer("tiny-vq")
    shown = [*CAPTIONS[:3], "a red circle", CAPTIONS[4]]
    true = tokenizer.encode(np.stack([draw(Scene.parse(caption), 3) for caption in shown]))
    monkeypatch.setattr(drawing, "generate_images", lambda *_, first, **__: true[first : first + 2][: 5 - first])
    result = scored(loaded, tmp_path)
    assert [line["correct"] for line in result.lines] == [True, True, True, False, True]
    assert result.lines[3]["parts"] == {"colours": False, "counts": False, "shapes": False, "relation": True}
    accuracy = result.metrics["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (0.8, 5)
    assert accuracy["ci_low"] < 0.8 < accuracy["ci_high"]
    assert accuracy["parts"]["relation"]["value"] == 1.0
    save_scored_images(result, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "pictures.jsonl").read_text().splitlines()]
    for line, caption, picture in zip(lines, CAPTIONS, result.images, strict=True):
        assert line["caption"] == caption
        stored = np.asarray(Image.open(tmp_path / line["picture"]))
        np.testing.assert_array_equal(stored, picture)
        assert judge(stored, Scene.parse(caption)).correct == line["correct"]
    assert Image.open(tmp_path / "pictures.png").width > 3 * 160


def test_captions_of_no_scene_need_a_clip_model(loaded, tmp_path):
    journal = Journal(tmp_path, "generated", {})
    with pytest.raises(UserError, match="expected captions of scenes to judge, or 'clip' with a CLIP model"):
        score_images(loaded, examples(["red blue"]), IMAGE, OPTIONS, 2, journal)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("  ", "expected some text, found an empty one"),
        ("a purple circle", "expected words that model 'tiny-mmada' knows, found purple"),
        ("a red " * 6, "expected at most 11 tokens .*, found 12"),
    ],
)
def test_captions_that_cannot_be_drawn_are_refused(loaded, caption, words):
    with pytest.raises(UserError, match=words):
        prompt(loaded, caption, IMAGE)


def test_a_model_without_image_tokens_is_refused():
    with pytest.raises(UserError, match="expected MMaDA, which has image tokens"):
        prompt(load_model("tiny"), "a red circle", IMAGE)


def test_eval_by_clip_gives_a_score_for_every_picture_and_their_mean(tmp_path):
    """Any captions, here those of scenes, which are judged as well; with the untuned model's scores beside them."""
    clip = str(write_clip(tmp_path / "clip"))
    load_model("tiny-mmada").save(tmp_path / "tuned")
    write_json(tmp_path / "tuned" / "stabledllm.json", {"model": "tiny-mmada"})
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
    settings = EvalSettings(
        model=str(tmp_path / "tuned"),
        data={"train": f"captions:{tmp_path / 'captions.txt'}"},
        image_decoding={"steps": 2, "guidance": 0.0},
        clip=clip,
        out=str(tmp_path / "out"),
    )
    record = evaluate(settings, lambda _: None)
    lines = [json.loads(line) for line in (tmp_path / "out" / "pictures.jsonl").read_text().splitlines()]
    stored = [np.asarray(Image.open(tmp_path / "out" / line["picture"])) for line in lines]
    expected = ClipScore(clip).score(stored, CAPTIONS)
    assert [line["clip_score"] for line in lines] == pytest.approx(expected)
    score = record["metrics"]["clip_score"]
    assert score["value"] == pytest.approx(np.mean(expected))
    assert score["stderr"] == pytest.approx(np.std(expected, ddof=1) / len(expected) ** 0.5)
    assert score["ci_low"] < score["value"] < score["ci_high"]
    assert score["n"] == record["metrics"]["accuracy"]["n"] == 5
    assert "captions were longer than the 24 tokens" in score["note"]
    assert record["difference"]["clip_score"]["value"] == pytest.approx(0.0), "the same weights draw the same"


def test_a_model_says_how_its_pictures_are_made(tmp_path):
    assert image_choices("tiny-mmada") == {"tokenizer": "tiny-vq", "side": 32, "max_text": 14}
    with pytest.raises(UserError, match="model 'tiny': expected MMaDA, which has image tokens"):
        image_choices("tiny")
    published = write_mmada(tmp_path / "hub", config={"codebook_size": 8192, "num_vq_tokens": 1024})
    assert image_choices(str(published)) == {"tokenizer": "showlab/magvitv2", "side": 512, "max_text": 512}
    own = write_mmada(tmp_path / "own", config={"codebook_size": 8192, "num_vq_tokens": 256, "image_max_text": 99})
    assert image_choices(str(own)) == {"tokenizer": "showlab/magvitv2", "side": 256, "max_text": 99}
    other = write_mmada(tmp_path / "other")
    with pytest.raises(UserError, match=r"key 'data.image.tokenizer': expected a value, since config.json of model"):
        image_with_defaults(ImageSettings(), str(other))
    given = ImageSettings(tokenizer="tiny-vq", side=64, max_text=30)
    assert image_with_defaults(given, "tiny-mmada") == given
    with pytest.raises(UserError, match="expected a multiple of 4, by which 'tiny-vq' downsamples, found 30"):
        image_with_defaults(ImageSettings(side=30), "tiny-mmada")


def test_eval_of_captions_alone_and_of_pictures(tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS[:3]) + "\n", encoding="utf-8")
    common = {"model": "tiny-mmada", "image_decoding": {"steps": 2, "guidance": 0.0}, "rows": 3}
    image = {"cache": str(tmp_path / "codes")}
    alone = evaluate(
        EvalSettings(
            **common, data={"train": f"captions:{tmp_path / 'captions.txt'}", "image": image}, out=str(tmp_path / "a")
        ),
        lambda _: None,
    )
    assert set(alone["metrics"]) == {"accuracy"}, "a caption without a picture has no likelihood"
    settings = EvalSettings(**common, data={"train": "scenes", "image": image}, out=str(tmp_path / "b"))
    record = evaluate(settings, lambda _: None)
    assert set(record["metrics"]) == {"validation_nll", "accuracy"}
    assert record["metrics"]["accuracy"]["n"] == 3
    assert len(list((tmp_path / "b" / "pictures").glob("*.png"))) == 3
    told: list[str] = []
    assert evaluate(settings, told.append)["metrics"] == record["metrics"]
    assert any("already evaluated" in line for line in told)
    other = settings.model_copy(update={"image_decoding": settings.image_decoding.model_copy(update={"steps": 4})})
    with pytest.raises(UserError, match=r"image_decoding\.steps=2, found image_decoding\.steps=4"):
        evaluate(other, lambda _: None)

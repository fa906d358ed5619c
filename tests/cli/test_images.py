"""The commands for pictures, and what each says of bad input: one sentence, exit code 2, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stabledllm.images.scenes import draw, scene
from tests.cli.runner import assert_refused
from tests.cli.runner import in_process as call

SMALL = ["steps=2", "batch=4", "data.validation_rows=4", "data.train_rows=24", "data.test_rows=2", "generate_batch=2"]
SMALL += ["image_decoding.steps=2", "eval_draws=2", "eval_every=2", "save_every=1"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten pictures of scenes with their captions beside them."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(10):
        wanted = scene("train", 3, i)
        Image.fromarray(draw(wanted, i)).save(pictures / f"{i:02d}.png")
        (pictures / f"{i:02d}.txt").write_text(str(wanted), encoding="utf-8")
    return pictures


def encode(tmp_path, *more: str):
    return call(
        "encode",
        f"images:{tmp_path / 'pictures'}",
        f"cache={tmp_path / 'codes'}",
        "tokenizer=tiny-vq",
        *more,
        cwd=tmp_path,
    )


def cache_of(tmp_path) -> Path:
    return next((tmp_path / "codes").glob("images-*/cache.json")).parent


def cached_rows(tmp_path) -> int:
    return sum(part["rows"] for part in json.loads((cache_of(tmp_path) / "cache.json").read_text())["parts"])


def train(tmp_path, spec: str, *more: str):
    cache = f"data.image.cache={tmp_path / 'codes'}"
    out = [] if any(one.startswith("out=") for one in more) else ["out=run"]
    recipe = ["sft-scenes", f"data.train={spec}", *out, cache, "data.validation_share=0.3"]
    return call("train", *recipe, *SMALL, *more, cwd=tmp_path)


def test_encode_then_train_on_the_codes_without_the_pictures(tmp_path, folder):
    made = encode(tmp_path)
    assert made.returncode == 0, made.stderr
    assert "10 pictures of 32 x 32, codes of 'tiny-vq'" in made.stdout
    for path in folder.iterdir():
        path.unlink()
    spec = made.stdout.split("data.train=")[1].split()[0]
    assert spec == f"codes:{cache_of(tmp_path)}"
    trained = train(tmp_path, spec)
    assert trained.returncode == 0, trained.stderr[-2000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(record["metrics"]) == {"validation_nll", "validation_objective"}, "no captions were left to draw"


def test_training_encodes_by_itself_draws_and_resumes(tmp_path):
    first = train(tmp_path, "scenes", "method=ppots+mirror", "ppots.rows=4", "ppots.rates=4", "ppots.starts=1")
    assert first.returncode == 0, first.stderr[-2000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["metrics"]["accuracy"]["n"] == 2
    assert record["identity"]["caption_dropout"] == 0.1
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 2
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "pictures.jsonl").unlink()
    again = train(tmp_path, "scenes", "method=ppots+mirror", "ppots.rows=4", "ppots.rates=4", "ppots.starts=1")
    assert again.returncode == 0, again.stderr[-2000:]
    assert "resuming from" in again.stdout
    repeated = json.loads((tmp_path / "run" / "run.json").read_text())
    for result in (record, repeated):
        stats = result["metrics"]["accuracy"]["decoding_stats"]
        stats["seconds"] = stats["tokens_per_second"] = 0
    assert repeated["metrics"] == record["metrics"]
    other = train(
        tmp_path, "scenes", "method=ppots+mirror", "ppots.rows=4", "ppots.rates=4", "ppots.starts=1",
        "data.image.caption_dropout=0.2",
    )  # fmt: skip
    assert_refused(other, "caption_dropout=0.1", "found caption_dropout=0.2")


def test_lora_trains_on_pictures(tmp_path):
    result = train(tmp_path, "scenes", "lora.rank=2")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()
    drawn = call(
        "generate", "--image", "a red circle", "--model", "run", "--steps", "2", "--out", "d",
        cwd=tmp_path,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr[-2000:]


def test_generate_writes_pictures_and_a_sheet(tmp_path):
    words = ["generate", "--image", "a red circle", "two blue squares", "--steps", "3"]
    words += ["--set", "guidance=1.5"]
    first = call(*words, "--out", "a", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["00000.png", "00001.png", "sheet.png"]
    assert Image.open(tmp_path / "a" / "00001.png").size == (32, 32)
    assert "6 model calls" not in first.stderr
    assert "3 model calls" in first.stderr
    assert call(*words, "--out", "b", cwd=tmp_path).returncode == 0
    for name in ("00000.png", "00001.png"):
        np.testing.assert_array_equal(*(np.asarray(Image.open(tmp_path / side / name)) for side in "ab"))
    assert call(*words, "--out", "c", "--set", "seed=1", cwd=tmp_path).returncode == 0
    assert any(
        (np.asarray(Image.open(tmp_path / "a" / name)) != np.asarray(Image.open(tmp_path / "c" / name))).any()
        for name in ("00000.png", "00001.png")
    )
    assert_refused(call(*words, "--out", "a", cwd=tmp_path), "expected a new folder")
    assert len(list((tmp_path / "a").iterdir())) == 3
    assert call(*words, cwd=tmp_path).returncode == 0
    assert call(*words, cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "runs" / "pictures").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image", "a purple circle", "--model", "tiny-mmada"], "knows, found purple"),
        (["--image", " ", "--model", "tiny-mmada"], "found an empty one"),
        (["--image", "a red circle", "--model", "tiny"], "expected MMaDA, which has image tokens"),
        (["--image", "a red circle", "--model", "tiny-mmada", "--set", "step=3"], "(did you mean 'steps'?)"),
        (
            ["--image", "a red circle", "--set", "image_decoding.steps=0"],
            "key 'image_decoding.steps': expected a number",
        ),
        (["--image", "a red circle", "--model", "tiny-mmada", "--set", "data.image.side=30"], "multiple of 4"),
        (["--image", "a red circle", "--model", "tiny-mmada", "--set", "data.image.tokenizer=vq"], "image tokenizer"),
    ],
)
def test_generate_refuses(tmp_path, words, said):
    assert_refused(call("generate", *words, cwd=tmp_path), said)
    assert not list(tmp_path.iterdir())


def test_a_corrupt_picture_keeps_what_came_before_it(tmp_path, folder):
    whole = (folder / "07.png").read_bytes()
    (folder / "07.png").write_bytes(whole[:40])
    assert_refused(encode(tmp_path), "07.png", "expected")
    assert cached_rows(tmp_path) == 7
    dropped = encode(tmp_path, "on_bad=drop")
    assert dropped.returncode == 0
    assert "dropped 1 bad pictures" in dropped.stdout
    assert "9 pictures" in dropped.stdout


def test_an_empty_caption(tmp_path, folder):
    (folder / "03.txt").write_text(" \n", encoding="utf-8")
    assert_refused(encode(tmp_path), "03", "caption")


def test_a_wrong_size(tmp_path, folder):
    Image.new("RGB", (40, 20)).save(folder / "02.png")
    assert_refused(encode(tmp_path), "02.png", "32", "40 x 20")
    Image.new("RGB", (40, 32)).save(folder / "02.png")
    assert_refused(encode(tmp_path, "fit=refuse"), "02.png", "40 x 32")
    assert encode(tmp_path, "fit=crop").returncode == 0


def test_a_cache_of_another_tokenizer_and_one_that_was_altered(tmp_path, folder):
    assert encode(tmp_path).returncode == 0
    cache = cache_of(tmp_path)
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    record = json.loads((cache / "cache.json").read_text())
    text = (cache / "cache.json").read_text()
    (cache / "cache.json").write_text(text.replace(record["tokenizer_fingerprint"], "0" * 16))
    assert_refused(train(tmp_path, f"codes:{cache}"), "tokenizer", "tiny-vq")
    (cache / "cache.json").write_text(text)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before, "nothing lost"
    part = cache / "part-00000.npy"
    part.write_bytes(part.read_bytes()[:-1] + b"\x00")
    assert_refused(train(tmp_path, f"codes:{cache}"), "part-00000.npy", "expected")


def test_a_caption_that_does_not_fit(tmp_path, folder):
    (folder / "04.txt").write_text("a red circle " * 6, encoding="utf-8")
    kept = train(tmp_path, f"images:{folder}")
    assert kept.returncode == 0, kept.stderr[-2000:]
    assert "dropped 1 longer" in kept.stdout
    refused = train(tmp_path, f"images:{folder}", "data.over_length=refuse", "out=other")
    assert_refused(refused, "04.png", "expected a caption of at most 11 tokens", "found 18")

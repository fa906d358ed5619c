"""torchmetrics' CLIP score on a small random CLIP, against its embeddings computed step by step."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file, save_file
from transformers import CLIPConfig, CLIPModel

from stabledllm.errors import UserError
from stabledllm.evaluation.clip_score import ClipScore
from stabledllm.images.scenes import draw, scene
from tests.fakes.hub_models import _byte_vocabulary

LENGTH, START, END = 24, 512, 513
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
LONG = "three red circles above a blue square"


def write_clip(folder: Path) -> Path:
    """``openai/clip-vit-*`` in small: bytes, the same at a word's end, then the two special tokens."""
    text = {"vocab_size": 514, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    text |= {"num_hidden_layers": 2, "max_position_embeddings": LENGTH, "eos_token_id": END, "bos_token_id": START}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, initializer_factor=20.0))
    model.save_pretrained(folder)
    characters = _byte_vocabulary()
    vocabulary = characters | {f"{character}</w>": 256 + i for character, i in characters.items()}
    vocabulary |= {"<|startoftext|>": START, "<|endoftext|>": END}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    write = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(write))
    pixels = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "resample": 3}
    pixels |= {"crop_size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def metric(folder):
    return ClipScore(str(folder))


def pictures(n: int, side: int) -> list[np.ndarray]:
    drawn = [Image.fromarray(draw(scene("test", 0, i), 0)) for i in range(n)]
    return [np.asarray(picture.resize((side, side))) for picture in drawn]


def token_ids(caption: str) -> list[int]:
    """Lower case, one token a byte; a word's last byte has an id of its own."""
    ids = []
    for word in caption.lower().split():
        ids += [*word.encode()[:-1], 256 + word.encode()[-1]]
    return [START, *ids[: LENGTH - 2], END]


@torch.no_grad()
def cosine(folder, picture: np.ndarray, caption: str) -> float:
    model = CLIPModel.from_pretrained(folder).eval()
    resized = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    pixels = torch.tensor(((resized - MEAN) / STD).transpose(2, 0, 1)[None], dtype=torch.float32)
    ids = torch.tensor([token_ids(caption)])
    shown = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
    hidden = model.text_model(ids).last_hidden_state[0, -1]
    said = model.text_projection(hidden)
    return float(shown @ said / (shown.norm() * said.norm()))


@pytest.mark.parametrize("side", [32, 48])
def test_equals_the_cosine_of_the_embeddings(folder, metric, side):
    captions = ["a red circle", "Two  blue squares", "a green dot", "x", LONG, "yellow triangles"]
    shown = pictures(len(captions), side)
    cosines = [cosine(folder, *pair) for pair in zip(shown, captions, strict=True)]
    assert min(cosines) < -0.01 < 0.01 < max(cosines)
    assert metric.score(shown, captions) == pytest.approx([100 * max(c, 0) for c in cosines], abs=1e-3)


def test_a_long_caption_is_cut_before_its_end_and_counted(folder):
    metric, shown = ClipScore(str(folder)), pictures(1, 32)
    fits = "a" * (LENGTH - 2)
    metric.score(shown, [fits])
    assert (metric.truncated, metric.note) == (0, None)
    scores = [metric.score(shown, [caption])[0] for caption in (LONG, LONG[: LENGTH + 5], "z" + LONG)]
    # What stands behind the cut has no say (5 spaces are no tokens); what stands before it has.
    assert scores[0] == scores[1] != scores[2]
    assert metric.truncated == 3
    assert metric.note == f"3 captions were longer than the {LENGTH} tokens of '{folder}' and cut."


@pytest.mark.parametrize(
    ("shown", "captions", "said"),
    [
        (pictures(2, 32), ["a"], "CLIP score: expected a caption for each of 2 pictures, found 1."),
        ([np.zeros((8, 8, 3))], ["a"], r"CLIP score: expected a picture of uint8, .*, found float64 of shape \(8, 8"),
        ([np.zeros((8, 8), np.uint8)], ["a"], r"found uint8 of shape \(8, 8\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(metric, shown, captions, said):
    with pytest.raises(UserError, match=said):
        metric.score(shown, captions)


def test_without_torchmetrics(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.multimodal", None)
    with pytest.raises(UserError, match=r"expected torchmetrics, found it not installed; pip install 'stabledllm\[cl"):
        ClipScore(str(folder))


def test_what_is_no_clip_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="CLIP 'nothing': expected a local folder or a hub's OWNER/NAME"):
        ClipScore("nothing")
    with pytest.raises(UserError, match="CLIP 'no-one/clip': expected a local folder or a copy in the hub's cache"):
        ClipScore("no-one/clip")
    (tmp_path / "config.json").write_text('{"model_type": "llada"}')
    with pytest.raises(UserError, match=r"expected model_type 'clip' in .*, found 'llada'"):
        ClipScore(str(tmp_path))
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"expected its files in .*, found what does not load"):
        ClipScore(str(tmp_path))
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"expected every weight in .*, found no text_projection.weight"):
        ClipScore(str(tmp_path))


def test_a_clip_folder_is_a_strangers(folder, tmp_path, monkeypatch):
    """Code beside it does not run, pickles are not read, and what is cut, absurd or no number is refused."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on standard input"))
    mark = tmp_path / "mark"
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').write('ran')\nclass Model: pass\n")
    keys = json.loads((tmp_path / "config.json").read_text())
    own = dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer"), "evil.Model")
    (tmp_path / "config.json").write_text(json.dumps(keys | {"auto_map": own}))
    ClipScore(str(tmp_path))
    assert not mark.exists()
    content = (tmp_path / "model.safetensors").read_bytes()
    weights = load(content)  # a copy: what is mapped from a file must not be written over

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words):
            ClipScore(str(tmp_path))

    text = keys["text_config"] | {"num_hidden_layers": 10**6}
    (tmp_path / "config.json").write_text(json.dumps(keys | {"text_config": text}))
    refused("num_hidden_layers: expected 0 to .*, found 1000000")
    (tmp_path / "config.json").write_text(json.dumps(keys))
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused("expected safetensors in model.safetensors, found a broken file")
    name = min(name for name in weights if weights[name].is_floating_point() and weights[name].numel() > 1)
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused("expected finite weights, found NaN or infinity")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    refused("found pickled weights only")

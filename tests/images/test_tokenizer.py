"""Checkpoints in the hub's layout give the published codes and pictures; whatever is wrong is one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stabledllm.errors import UserError
from stabledllm.images.judge import judge
from stabledllm.images.scenes import draw, scene
from stabledllm.images.tokenizer import load_image_tokenizer
from tests.images import magvit_reference as reference
from tests.images.magvit_reference import SMALL, random_weights, write

KINDS = ["safetensors", "bin"]


def random_pictures(count: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def pixels_of(pictures: np.ndarray) -> torch.Tensor:
    return torch.tensor(pictures.astype(float) / 255 * 2 - 1).permute(0, 3, 1, 2)


@pytest.fixture
def small(tmp_path):
    return load_image_tokenizer(str(write(tmp_path, SMALL, random_weights(SMALL), "bin")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_buffers", [True, False])
def test_codes_and_pictures_are_the_published_ones(tmp_path, kind, with_buffers):
    state, pictures = random_weights(SMALL), random_pictures(24)
    stored = state | (reference.buffers(SMALL) if with_buffers else {})
    tokenizer = load_image_tokenizer(str(write(tmp_path, SMALL, stored, kind)))
    codes = tokenizer.encode(pictures)
    assert torch.equal(codes, reference.codes(reference.encode(state, SMALL, pixels_of(pictures))))
    plain = reference.decode(state, SMALL, codes)
    assert 0.1 < (plain.abs() > 1).double().mean() < 0.9, "some pixels are clamped and others not"
    expected = ((plain.clamp(-1, 1) + 1) / 2 * 255).permute(0, 2, 3, 1).numpy()
    decoded = tokenizer.decode(codes)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded - expected).max() < 0.51
    assert (tokenizer.codebook_size, tokenizer.downsampling, tokenizer.side) == (64, 4, 16)
    assert tokenizer.name == str(tmp_path)


def test_fingerprint_is_of_sizes_and_weights(tmp_path):
    state = random_weights(SMALL)
    changed = state | {"decoder.conv_out.bias": state["decoder.conv_out.bias"] + 1e-3}
    folders = [write(tmp_path / kind, SMALL, state, kind) for kind in KINDS]
    folders.append(write(tmp_path / "buffers", SMALL, state | reference.buffers(SMALL), "bin"))
    folders.append(write(tmp_path / "changed", SMALL, changed, "bin"))
    folders.append(write(tmp_path / "resized", SMALL | {"resolution": 32}, state, "bin"))
    first, second, third, other, resized = (load_image_tokenizer(str(folder)).fingerprint for folder in folders)
    assert first == second == third
    assert len({first, other, resized}) == 3
    assert len(first) == 16
    assert int(first, 16) > 0


def test_a_picture_has_the_same_codes_in_any_company(tmp_path):
    """Every bit's threshold is put where one picture's number lies, so that any other rounding would flip it."""
    sizes = SMALL | {"ch": 32, "z_channels": 12, "norm_groups": 8}
    state, pictures = random_weights(sizes), random_pictures(48)
    tokenizer = load_image_tokenizer(str(write(tmp_path / "a", sizes, state, "bin")))
    with torch.no_grad():
        z = tokenizer._model.encoder(pixels_of(pictures[:1]).float())
    state["encoder.quant_conv.bias"] -= z[0, :, 2, 1]
    tokenizer = load_image_tokenizer(str(write(tmp_path / "b", sizes, state, "bin")))
    together = tokenizer.encode(pictures)
    assert torch.equal(together[5:9], tokenizer.encode(pictures[5:9]))
    assert torch.equal(together, torch.cat([tokenizer.encode(picture) for picture in pictures]))


def test_pictures_decoded_in_parts_are_those_decoded_at_once(small, monkeypatch):
    codes = torch.randint(64, (7, 16), generator=torch.Generator().manual_seed(0))
    at_once = small.decode(codes).astype(int)
    monkeypatch.setattr("stabledllm.images.tokenizer._PIXELS", 2 * 16**2)
    assert np.abs(small.decode(codes).astype(int) - at_once).max() <= 1
    assert len(np.unique(at_once, axis=0)) == 7


def test_other_sides_and_no_pictures(small):
    assert small.encode(random_pictures(2, 24)).shape == (2, 36)
    assert small.decode(torch.zeros(2, 36, dtype=torch.int32)).shape == (2, 24, 24, 3)
    assert small.encode(random_pictures(0)).shape == (0, 16)
    assert small.decode(torch.zeros(0, 16, dtype=torch.long)).shape == (0, 16, 16, 3)


def sentence(call, match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("pictures", "match"),
    [
        (random_pictures(1, 18), "^picture: expected a side that is a multiple of 4, found 18 x 18"),
        (random_pictures(1, 16)[:, :12], "^picture: expected a square, found 12 x 16"),
        (random_pictures(1)[:, :0, :0], "multiple of 4, found 0 x 0"),
        (
            random_pictures(1).astype(np.float32),
            r"^picture: expected uint8 of shape .*, found float32 of shape \(1, 16",
        ),
        (random_pictures(1)[..., :1], r"found uint8 of shape \(1, 16, 16, 1\)"),
        (random_pictures(1)[..., 0][0], r"found uint8 of shape \(16, 16\)"),
    ],
)
def test_wrong_pictures(small, pictures, match):
    sentence(lambda: small.encode(pictures), match)


@pytest.mark.parametrize(
    ("codes", "match"),
    [
        (torch.tensor([[0] * 4, [0, 63, 64, 70]]), "^codes, row 1: expected 0 to 63, found 64 at place 2"),
        (torch.tensor([[0, -1, 0, 0]]), "^codes, row 0: expected 0 to 63, found -1 at place 1"),
        (torch.zeros(1, 15, dtype=torch.long), "^codes: expected a square number of them for a picture, found 15"),
        (torch.zeros(1, 0, dtype=torch.long), "for a picture, found 0"),
        (torch.zeros(16, dtype=torch.long), r"^codes: expected whole .* \(B, N\), found int64 of shape \(16,\)"),
        (torch.zeros(1, 16), r"found float32 of shape \(1, 16\)"),
        (torch.zeros(1, 16, dtype=torch.bool), "found bool"),
    ],
)
def test_wrong_codes(small, codes, match):
    sentence(lambda: small.decode(codes), match)


def refused(folder, match: str) -> None:
    sentence(lambda: load_image_tokenizer(str(folder)), f"^image tokenizer '.*': {match}")


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_weights(tmp_path, kind):
    state, name = random_weights(SMALL), "encoder.mid.attn_1.q.weight"
    folder = write(tmp_path / "a", SMALL, {k: v for k, v in state.items() if k != name}, kind)
    refused(folder, r"expected the weights of its config, found missing weight encoder\.mid\.attn_1\.q\.weight")
    folder = write(tmp_path / "b", SMALL, state | {"encoder.extra": torch.zeros(1)}, kind)
    refused(folder, r"expected the weights of its config, found unexpected weight encoder\.extra")
    folder = write(tmp_path / "c", SMALL, state | {name: torch.zeros(16, 8, 1, 1)}, kind)
    refused(folder, rf"expected weight {name} of shape \[16, 16, 1, 1\] from its config, found \[16, 8, 1, 1\]")
    turned = {"quantize.power_vals": reference.buffers(SMALL)["quantize.power_vals"].flip(0)}
    folder = write(tmp_path / "d", SMALL, state | turned, kind)
    refused(folder, "expected quantize.power_vals to put the first channel's bit highest, found other values")
    folder = write(tmp_path / "e", {}, state, kind)
    refused(folder, "expected the weights of its config, found missing weight")


def test_wrong_files(tmp_path, monkeypatch):
    state = random_weights(SMALL)
    for kind, name in (("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")):
        file = write(tmp_path / kind, SMALL, state, kind) / name
        file.write_bytes(file.read_bytes()[:1000])
        refused(tmp_path / kind, rf"expected weights in {name}, found a broken file \(")
        file.unlink()
        refused(tmp_path / kind, "expected model.safetensors or pytorch_model.bin in .*, found neither")
    torch.save({"state": state, "step": 1}, tmp_path / "bin" / "pytorch_model.bin")
    refused(tmp_path / "bin", "expected pytorch_model.bin to hold weights by their names, found something else")
    (tmp_path / "bin" / "config.json").write_text(json.dumps({"ch": -1}))
    refused(tmp_path / "bin", "config.json: expected ch to be a whole number above 0, found -1")
    (tmp_path / "bin" / "config.json").unlink()
    refused(tmp_path / "bin", "expected .*config.json, found no such file")
    refused("no/such/folder", "expected 'tiny-vq', a local folder or a hub's OWNER/NAME, found no such thing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    refused("nobody/nothing", "expected a local folder or a copy in the hub's cache, found neither")


@pytest.mark.parametrize(
    ("kind", "patterns"), [("image tokenizer", True), ("model", False)], ids=["tokenizer", "language model"]
)
def test_only_an_image_tokenizer_fetches_pickled_weights(tmp_path, monkeypatch, kind, patterns):
    """A language model's snapshot may hold tens of gigabytes in both kinds of file."""
    folder, asked = write(tmp_path, SMALL, random_weights(SMALL), "bin"), []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append(allow_patterns) or str(folder)
    )
    if kind == "model":
        from stabledllm.models.families.source import find_folder

        find_folder("showlab/magvitv2")
    else:
        assert load_image_tokenizer("showlab/magvitv2").name == "showlab/magvitv2"
    assert ("pytorch_model.bin" in asked[0]) is patterns
    assert "config.json" in asked[0] or "*.json" in asked[0]


def test_the_shipped_tokenizer_keeps_what_a_picture_shows():
    tokenizer = load_image_tokenizer("tiny-vq")
    assert (tokenizer.name, tokenizer.side, tokenizer.downsampling) == ("tiny-vq", 32, 4)
    scenes = [scene(split, 11, i) for split in ("train", "test") for i in range(32)]
    pictures = np.stack([draw(wanted, i) for i, wanted in enumerate(scenes)])
    codes = tokenizer.encode(pictures)
    assert codes.shape == (64, 64)
    decoded = tokenizer.decode(codes)
    right = [judge(picture, wanted).correct for picture, wanted in zip(decoded, scenes, strict=True)]
    assert np.mean(right) >= 0.98
    assert np.abs(decoded.astype(int) - pictures).mean() < 4
    assert len(codes.unique()) > 40, "codes are used"


def test_sizes_and_weights_that_cannot_be(tmp_path):
    """A million blocks are refused before one is built, and weights that are no numbers before they are used."""
    write(tmp_path, SMALL, random_weights(SMALL), "safetensors")
    keys = json.loads((tmp_path / "config.json").read_text())
    blocks = [10**6] * len(keys["encoder_num_res_blocks"])
    for changed in ({"encoder_num_res_blocks": blocks}, {"z_channels": 10**6}, {"ch": 2**30}):
        (tmp_path / "config.json").write_text(json.dumps(keys | changed))
        with pytest.raises(
            UserError, match=r"image tokenizer .*: (config\.json: )?expected|config\.json: \w+: expected"
        ):
            load_image_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(keys))
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in sorted(weights) if name.startswith("encoder"))
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="expected finite weights, found NaN or infinity in encoder"):
        load_image_tokenizer(str(tmp_path))

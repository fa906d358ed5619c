"""The architecture is the published one: its names, its shapes, its numbers, its order of bits."""

from __future__ import annotations

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.images.magvit import Magvit, MagvitConfig, Quantizer
from tests.images import magvit_reference as reference
from tests.images.magvit_reference import PUBLISHED, SMALL


def model(sizes: dict, state: dict) -> Magvit:
    built = Magvit(MagvitConfig.parse(sizes, "config.json"))
    built.load_state_dict(state | reference.buffers(sizes))
    return built.double().eval()


@pytest.mark.parametrize("config", [{}, PUBLISHED], ids=["the hub's, which states no size", "spelled out"])
def test_names_and_shapes_are_the_hubs(config):
    with torch.device("meta"):
        built = Magvit(MagvitConfig.parse(config, "config.json"))
    assert {k: tuple(v.shape) for k, v in built.state_dict().items()} == reference.shapes(PUBLISHED)
    assert (built.config.downsampling, built.config.codebook_size, built.config.resolution) == (16, 8192, 256)


def test_the_helper_knows_the_hubs_names():
    """Some of the published names, by hand."""
    shapes = reference.shapes(PUBLISHED)
    assert shapes["encoder.down.1.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert shapes["encoder.down.3.downsample.conv.bias"] == (512,)
    assert shapes["encoder.mid.attn_1.proj_out.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.up.4.upsample.conv.weight"] == (512, 512, 3, 3)
    assert shapes["decoder.up.0.block.3.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["quantize.embedding"] == (8192, 13)
    assert "encoder.down.4.downsample.conv.weight" not in shapes
    assert "decoder.up.0.upsample.conv.weight" not in shapes


@pytest.mark.parametrize("attention", [True, False])
def test_numbers_are_those_of_the_published_architecture(attention):
    sizes = SMALL | {"mid_attention": attention}
    state = {k: v for k, v in reference.random_weights(sizes).items() if attention or "attn_1" not in k}
    built, pixels = model(sizes, state), torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        z = built.encoder(pixels)
        codes = built.quantize.codes(z)
        decoded = built.decoder(built.quantize.bits(codes))
    plain = reference.encode(state, sizes, pixels)
    assert plain.std() > 0.3, "numbers near zero would hide a difference"
    torch.testing.assert_close(z, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codes, reference.codes(plain))
    plain = reference.decode(state, sizes, codes)
    assert plain.std() > 0.3
    torch.testing.assert_close(decoded, plain, rtol=1e-5, atol=1e-5)


def test_attention_matters():
    """At these weights a picture's codes would differ without it, so that the comparison above sees it."""
    state, pixels = reference.random_weights(SMALL), torch.rand(2, 3, 16, 16) * 2 - 1
    without = {k: v for k, v in state.items() if "attn_1" not in k}
    assert (reference.encode(state, SMALL, pixels) - reference.encode(without, SMALL, pixels)).abs().max() > 0.05


def test_the_first_channel_is_the_highest_bit_and_zero_is_no_bit():
    z = torch.tensor([[[2.0, -1.0]], [[0.0, 0.1]], [[0.5, -3.0]]]).view(1, 3, 1, 2)
    assert Quantizer(3).codes(z).tolist() == [[0b101, 0b010]]


def test_bits_and_codes_are_inverse():
    quantizer = Quantizer(6)
    codes = torch.randperm(64).view(1, 64)
    bits = quantizer.bits(codes)
    assert bits.shape == (1, 6, 8, 8)
    assert set(bits.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(quantizer.codes(bits * torch.rand(bits.shape).add(0.1)), codes)


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"ch": 0}, "expected ch to be a whole number above 0, found 0"),
        ({"ch": True}, "expected ch to be a whole number above 0, found True"),
        ({"z_channels": "13"}, "expected z_channels to be a whole number above 0, found '13'"),
        ({"encoder_ch_mult": [1, 0]}, r"expected encoder_ch_mult to be a list of whole numbers .*, found \[1, 0\]"),
        ({"mid_attention": 1}, "expected mid_attention to be true or false, found 1"),
        ({"decoder_num_res_blocks": [1, 1]}, "expected lists of one length.*'decoder_num_res_blocks': 2"),
        ({"ch": 48}, "expected ch a multiple of norm_groups 32, found 48"),
        ({"resolution": 100}, "expected a resolution that is a multiple of 16, found 100"),
    ],
)
def test_sizes_that_cannot_be(sizes, match):
    with pytest.raises(UserError, match=f"^here: {match}.*\\.$"):
        MagvitConfig.parse(sizes, "here")

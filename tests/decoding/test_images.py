"""Pictures are decoded as published, whatever the batch: compared with the algorithm written out plainly below."""

import math
from dataclasses import replace

import pytest
import torch

from stabledllm.decoding import DecodingStats, ImageOptions, ImagePrompt, generate_images
from stabledllm.decoding.images import remasked, temperatures
from stabledllm.errors import UserError
from stabledllm.models.image_tokens import ImageTokens
from stabledllm.models.loading import load_model
from stabledllm.noise.streams import Key, Stream
from tests.fakes.hub_models import LLADA_SPECIAL, write_mmada

N, WIDTH, MASK = 16, 36, LLADA_SPECIAL["<|mdm_mask|>"]
TOKENS = ImageTokens(soi=262, eoi=263, t2i=264, ipad=265, bos=260, eos=256, first=270, codebook_size=16)
"""Rows 266 to 269 and 286 to 287 of the embedding are no image tokens."""


def prompt(caption: str, width: int = WIDTH) -> ImagePrompt:
    row = [TOKENS.t2i, TOKENS.bos, *caption.encode(), TOKENS.eos, TOKENS.soi, *[MASK] * N, TOKENS.eoi]
    return ImagePrompt([TOKENS.ipad] * (width - len(row)) + row, width - len(row))


PROMPTS = [prompt(caption) for caption in ("red circle", "a", "two blue dots", "green")]
EMPTY = [prompt("")] * len(PROMPTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights large enough to tell the codes apart, float64."""
    folder = write_mmada(tmp_path_factory.mktemp("mmada"), std=0.5)
    return load_model(str(folder), torch.float64).model.eval()


def decode(model, prompts, options, unconditional=None, **more) -> list[list[int]]:
    unconditional = EMPTY[: len(prompts)] if unconditional is None else unconditional
    return generate_images(model, prompts, unconditional, options, tokens=TOKENS, mask_id=MASK, **more).tolist()


@torch.no_grad()
def row_logits(model, row: ImagePrompt, picture: list[int]) -> torch.Tensor:
    """Logits of all codes at all places of one row, shape (N, C)."""
    ids = torch.tensor([[*row.input_ids[: -N - 1], *picture, row.input_ids[-1]]])
    seen = torch.tensor([[place >= row.hidden for place in range(ids.shape[1])]])
    return model(ids, seen).logits[0, -N - 1 : -1, TOKENS.first : TOKENS.first + TOKENS.codebook_size]


def uniforms(seed: int, step: int, stream: Stream, number: int) -> list[float]:
    return Key(seed, step).token_uniforms(stream, torch.tensor([number]), torch.arange(N))[0].tolist()


def first_beyond(law: list[float], u: float) -> int:
    """The inverse of the law's distribution at u."""
    total = 0.0
    for code, p in enumerate(law):
        total += p
        if u < total:
            return code
    return len(law) - 1


def reference(model, row, empty, options: ImageOptions, number: int, counts: list[int] | None = None) -> list[int]:
    """``t2i_generate`` of one prompt, place by place; ``counts`` gets how many tokens it masks after each step."""
    picture, temperature = [MASK] * N, options.temperature
    drawn: dict[int, int] = {}
    for step in range(options.steps):
        logits = row_logits(model, row, picture)
        if options.guidance > 0:
            without = row_logits(model, empty, picture)
            logits = (1 + options.guidance) * logits - options.guidance * without
        unknown = [place for place in range(N) if picture[place] == MASK]
        tokens = uniforms(options.seed, step, Stream.DECODING, number)
        order = uniforms(options.seed, step, Stream.DECODING_ORDER, number)
        ratio = (step + 1) / options.steps
        temperature *= 1 - ratio
        confidence = {}
        for place in unknown:
            law = logits[place].softmax(-1).tolist()
            drawn[place] = first_beyond(law, tokens[place])
            noise = -math.log(-math.log(order[place]))
            confidence[place] = math.log(law[drawn[place]]) + temperature * noise
            picture[place] = TOKENS.first + drawn[place]
        number_masked = int((N * torch.cos(torch.tensor(ratio) * math.pi * 0.5)).floor())
        number_masked = max(1, min(len(unknown) - 1, number_masked))
        for place in sorted(unknown, key=confidence.get)[:number_masked]:
            picture[place] = MASK
        if counts is not None:
            counts.append(picture.count(MASK))
    return [drawn[place] for place in range(N)]


@pytest.mark.parametrize(
    "options",
    [
        ImageOptions(steps=6, seed=3),
        ImageOptions(steps=6, guidance=0.0, seed=3),
        ImageOptions(steps=5, guidance=0.7, temperature=4.0),
        ImageOptions(steps=5, guidance=0.0, temperature=0.0),
        ImageOptions(steps=1, guidance=3.5),
        ImageOptions(steps=18, guidance=0.0),
    ],
    ids=str,
)
def test_equals_the_reference(model, options):
    """18 steps for 16 tokens: the last ones draw a single token anew."""
    pairs = zip(PROMPTS, EMPTY, strict=True)
    expected = [reference(model, *pair, options, number) for number, pair in enumerate(pairs)]
    assert decode(model, PROMPTS, options) == expected
    assert len({tuple(codes) for codes in expected}) == len(PROMPTS)


@pytest.mark.parametrize("other", [{"guidance": 1.0}, {"temperature": 6.0}, {"seed": 1}, {"steps": 7}])
def test_every_option_has_an_effect(model, other):
    options = ImageOptions(steps=6)
    assert decode(model, PROMPTS, options) != decode(model, PROMPTS, replace(options, **other))


def test_the_unconditional_rows_are_those_given(model):
    options = ImageOptions(steps=4)
    other = [prompt("none")] * len(PROMPTS)
    expected = [reference(model, row, other[0], options, number) for number, row in enumerate(PROMPTS)]
    assert decode(model, PROMPTS, options, other) == expected
    assert decode(model, PROMPTS, options) != expected


@pytest.mark.parametrize("guidance", [0.0, 3.5])
def test_any_split_into_batches_gives_the_same_pictures(model, guidance):
    options = ImageOptions(steps=6, guidance=guidance)
    whole = decode(model, PROMPTS, options, first=7)
    for size in (1, 3):
        starts = range(0, len(PROMPTS), size)
        parts = [decode(model, PROMPTS[i : i + size], options, first=7 + i) for i in starts]
        assert [codes for part in parts for codes in part] == whole
    assert decode(model, PROMPTS, options) != whole


def test_hidden_padding_changes_nothing(model):
    options = ImageOptions(steps=6)
    for i, row in enumerate(PROMPTS):
        short = ImagePrompt(row.input_ids[row.hidden :], 0)
        empty = prompt("", len(short.input_ids))
        assert decode(model, [short], options, [empty], first=i) == decode(model, [row], options, first=i)
    # The same tokens, seen: another picture.
    seen = [replace(row, hidden=0) for row in PROMPTS]
    assert decode(model, seen, options) != decode(model, PROMPTS, options)


def test_counts_of_masked_tokens_are_the_published_ones(model):
    for steps in (1, 2, 6, 18):
        counts: list[int] = []
        reference(model, PROMPTS[0], EMPTY[0], ImageOptions(steps, guidance=0.0), 0, counts)
        assert remasked(N, steps) == [*counts[:-1], 0]
    assert remasked(16, 3) == [13, 7, 0]  # 16 cos 60 degrees, in float32
    assert remasked(3, 5) == [2, 1, 1, 1, 0]
    assert temperatures(ImageOptions(4, temperature=2.0)) == pytest.approx([1.5, 0.75, 0.1875, 0.0])


def test_stats_and_masked_tokens_of_every_step(model):
    """Logits are computed at masked positions only: a step decides as many as the schedule says, and keeps them."""
    options, shown = ImageOptions(steps=5), []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: shown.append((args[0].clone(), kwargs["selected"].clone())), with_kwargs=True
    )
    stats = DecodingStats()
    codes = generate_images(model, PROMPTS, EMPTY, options, tokens=TOKENS, mask_id=MASK, stats=stats)
    hook.remove()
    masked = [N, *remasked(N, 5)[:-1]]
    rows = 2 * len(PROMPTS)
    for (ids, selected), count in zip(shown, masked, strict=True):
        assert torch.equal(selected, ids == MASK)
        assert (selected.sum(1) == count).all()
        picture = ids[:, -N - 1 : -1]
        assert torch.equal(picture[: len(PROMPTS)], picture[len(PROMPTS) :])
    # What a step shows decided stands in the picture: nothing decided changes.
    for ids, _ in shown:
        picture = ids[: len(PROMPTS), -N - 1 : -1]
        assert ((picture == MASK) | (picture == codes + TOKENS.first)).all()
    assert (stats.model_calls, stats.forward_rows, stats.tokens) == (5, 5 * rows, N * len(PROMPTS))
    assert (stats.logit_positions, stats.forward_positions) == (rows * sum(masked), 5 * rows * WIDTH)
    assert stats.seconds > 0
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < TOKENS.codebook_size


def test_without_guidance_no_unconditional_row_is_read(model):
    stats = DecodingStats()
    assert decode(model, PROMPTS, ImageOptions(steps=3, guidance=0.0), [], stats=stats)
    assert stats.forward_rows == 3 * len(PROMPTS)


def test_equally_confident_tokens_keep_the_count():
    """Every token equally likely, no noise: exactly as many are masked again as the schedule says, the first ones."""

    class Even(torch.nn.Linear):
        def forward(self, ids, attention, *, selected):
            seen.append((ids == MASK)[0, -N - 1 : -1].nonzero()[:, 0].tolist())
            return type("Output", (), {"logits": torch.zeros(int(selected.sum()), 300)})

    seen: list[list[int]] = []
    decode(Even(1, 1), PROMPTS[:1], ImageOptions(5, temperature=0.0))
    assert seen == [list(range(count)) for count in [N, *remasked(N, 5)[:-1]]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "image_decoding.steps: expected at least 1, found 0."),
        ({"guidance": -1.0}, "image_decoding.guidance: expected a number of at least 0, found -1."),
        ({"guidance": math.nan}, "image_decoding.guidance: expected a number of at least 0, found nan."),
        ({"temperature": math.inf}, "image_decoding.temperature: expected a number of at least 0, found inf."),
    ],
)
def test_options_out_of_range_are_refused(wrong, said):
    with pytest.raises(UserError) as error:
        ImageOptions(**wrong)
    assert str(error.value) == said


LONG = prompt("green", WIDTH + 1)
FEWER = replace(PROMPTS[0], input_ids=[*PROMPTS[0].input_ids[:-2], 5, TOKENS.eoi])
ELSEWHERE = replace(PROMPTS[0], input_ids=[MASK, *PROMPTS[0].input_ids[1:]])
NONE = ImagePrompt([1, 2, 3], 0)


@pytest.mark.parametrize(
    ("prompts", "unconditional", "said"),
    [
        ([], [], "picture prompts: expected at least one"),
        (PROMPTS[:2], EMPTY[:1], "unconditional prompts: expected 2, found 1"),
        ([PROMPTS[0], LONG], EMPTY[:2], f"row 1: expected {WIDTH} tokens as in the first, found {WIDTH + 1}"),
        (PROMPTS[:1], [LONG], f"row 1: expected {WIDTH} tokens as in the first"),
        ([PROMPTS[0], FEWER], EMPTY[:2], "row 1: expected 16 mask tokens 261 right before the last token"),
        ([PROMPTS[0], ELSEWHERE], EMPTY[:2], "row 1: expected 16 mask tokens"),
        ([NONE], [NONE], "row 0: expected 1 mask tokens 261"),
        ([replace(PROMPTS[0], hidden=WIDTH - N)], EMPTY[:1], f"row 0: expected 0 to {WIDTH - N - 1} hidden tokens"),
    ],
)
def test_rows_of_another_layout_are_refused(model, prompts, unconditional, said):
    with pytest.raises(UserError, match=said):
        decode(model, prompts, ImageOptions(steps=2), unconditional)

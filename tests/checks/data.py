"""Checks of the data path, shared by the tests and the mutation tests."""

from __future__ import annotations

import itertools

import torch

from stabledllm.data import holding_out
from stabledllm.data import rows as rows_module
from stabledllm.data.rows import EncodingOptions, TokenRow
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method, Rows
from stabledllm.noise.streams import Key
from stabledllm.tasks import synthetic

TOKENIZER = ByteTokenizer()


def example(prompt: str, response: str, origin: str = "here:1") -> dict:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {"messages": messages, "origin": origin}


def check_nothing_is_cut(over_length: str = "drop") -> None:
    """Of a short and an over-length row the short one is kept whole and the long one is dropped and named."""
    given = [example("q", "short", "f:1"), example("q", "x" * 60, "f:2")]
    encoded = rows_module.encode_examples(given, TOKENIZER, EncodingOptions(max_len=40, over_length=over_length))
    assert encoded.dropped == ["f:2"], f"dropped {encoded.dropped}"
    assert [TOKENIZER.decode(r.input_ids[r.prompt_length :]) for r in encoded.rows] == ["short"]


def check_end_token() -> None:
    """The response ends with one supervised end token, after the chat template that generation uses."""
    row = rows_module.encode_examples([example("q", "abc")], TOKENIZER, EncodingOptions()).rows[0]
    assert row.input_ids[: row.prompt_length] == TOKENIZER.chat([{"role": "user", "content": "q"}])
    assert row.input_ids[row.prompt_length :] == [*TOKENIZER.encode("abc"), TOKENIZER.eos_token_id]


def check_padding() -> None:
    """Padding is neither attended to nor maskable nor a delimiter; the prompt is attended to, not maskable."""
    rows = [TokenRow([1, 2, 3, 4, 5], 2, delimiter=[3]), TokenRow([6, 7], 1)]
    batch = rows_module.collate(rows, pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]
    assert batch["attention_mask"].int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch["maskable"].int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert batch["delimiter"].int().tolist() == [[0, 0, 0, 1, 0], [0] * 5]


def check_syrm() -> None:
    """SyRM's syntax tokens of the prompt are masked in what the model sees, and carry a loss; its others are not."""
    batch = rows_module.collate([TokenRow([5] * 8, 5, syntax=[1, 3])] * 200, pad_id=0, syrm=True)
    noise = Rows(torch.arange(200), 200, batch["maskable"], torch.arange(8))
    draw = Method.parse("syrm").draw_at(torch.full((200,), 0.5).double(), Key(0, 0), noise, Uniform())
    seen, mask, _ = draw.noisy(batch["input_ids"], 99)
    masked = (seen == 99).double().mean(0)
    assert masked[[0, 2, 4]].tolist() == [0.0] * 3
    assert bool((masked[[1, 3, 5, 6, 7]] > 0.3).all()), f"share masked per place: {masked.tolist()}"
    assert torch.equal(mask & (draw.coefficient[:, 0] > 0), seen == 99)


def check_synthetic_splits() -> None:
    """No problem of one split occurs in another, whatever the seeds."""
    level = synthetic.LEVELS["easy"]
    prompts = {
        (split, seed): {r["prompt"] for r in synthetic.examples(split, 250, seed, level)}
        for split, seed in itertools.product(("train", "validation", "test"), (0, 1))
    }
    for (a, first), (b, second) in itertools.combinations(prompts.items(), 2):
        assert a[0] == b[0] or not first & second, f"{a} and {b} share {len(first & second)} problems"


def check_hold_out() -> None:
    """Identical prompts never part, and every row is on exactly one side."""
    examples = [example(f"question {i % 40}", f"answer {i}", f"f:{i}") for i in range(120)]
    train, held = holding_out.hold_out(examples, 0.3, seed=1)
    assert sorted(e["origin"] for e in (*train, *held)) == sorted(e["origin"] for e in examples)
    shared = {e["messages"][0]["content"] for e in train} & {e["messages"][0]["content"] for e in held}
    assert not shared, f"{len(shared)} prompts are on both sides"

"""``lm_eval --model stabledllm``: what the harness asks and reads, on a minimal stand-in for its interface.

The stand-in has what lm-evaluation-harness 0.4.13 gives to a model (its ``LM`` and registry) and hands over. The
harness itself was run once on three small local tasks, on one process and on two (``docs/evaluation.md``).
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import shutil
import sys
from dataclasses import dataclass, field
from types import ModuleType

import pytest
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.decoding import DecodingOptions, generate
from stabledllm.errors import UserError
from stabledllm.forward.elbo import elbo
from stabledllm.likelihood.duel import duel
from stabledllm.likelihood.orders import OrderScores, log_mean, tangent
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import load_model
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from tests.checks.statistics import Z
from tests.cli.runner import ROOT
from tests.fakes.hub_models import write_qwen2
from tests.fakes.runs import write_run

PACKAGE = "stabledllm.integrations.lm_eval"


@dataclass
class Request:
    """What the harness hands over."""

    args: tuple
    task_name: str = "task"
    doc_id: int = 0
    idx: int = 0


@dataclass
class CacheHook:
    kept: list = field(default_factory=list)

    def add_partial(self, attr, request, result):
        self.kept.append((attr, request, result))


class LM:
    def __init__(self):
        self.cache_hook = CacheHook()

    @classmethod
    def create_from_arg_obj(cls, arg_dict, additional_config=None):
        return cls(**arg_dict, **{k: v for k, v in (additional_config or {}).items() if v is not None})


@pytest.fixture(scope="module")
def harness():
    """The registered class, and the registry that it is in."""
    registered: dict[str, type] = {}

    def register_model(*names):
        def decorate(cls):
            registered.update(dict.fromkeys(names, cls))
            return cls

        return decorate

    patch = pytest.MonkeyPatch()
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        patch.delitem(sys.modules, name)
    modules = {
        name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry")
    }
    modules["lm_eval.api.model"].LM = LM
    modules["lm_eval.api.registry"].register_model = register_model
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)
    importlib.import_module(PACKAGE)
    yield registered
    patch.undo()
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    model = TinyMDM(config)
    for parameter in model.parameters():
        parameter.data *= 3  # far from uniform, so that orders and noise matter
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(harness, folder):
    def of(batch_size=1, **arguments):
        extra = {"batch_size": batch_size, "max_batch_size": None, "device": "cpu"}
        return harness["stabledllm"].create_from_arg_obj({"pretrained": folder} | arguments, extra)

    return of


def test_it_is_registered_and_named_by_the_entry_point(harness):
    assert issubclass(harness["stabledllm"], LM)
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["stabledllm"].partition(":")
    assert getattr(importlib.import_module(module), name) is harness["stabledllm"]
    assert any(need.startswith("lm-eval") for need in project["optional-dependencies"]["lm-eval"])


def test_without_the_harness_it_says_what_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match=r"stabledllm\[lm-eval\]"):
        importlib.import_module(PACKAGE)


def plain(folder: str, prompt: list[int], **options) -> list[int]:
    model = load_model(folder).model.eval()
    return generate(model, [prompt], DecodingOptions(**options), mask_id=256, eos_id=257, pad_id=257)[0]


def test_a_run_brings_its_way_of_decoding(make, folder, tmp_path, capsys):
    decoding = {"length": 16, "steps": 8, "block": 4, "order": "margin", "temperature": 0.5}
    config = {"decoding": decoding, "data": {"train": "synthetic", "system_prompt": "Add."}, "dtype": "bfloat16"}
    run = write_run(tmp_path / "run", config=config)
    shutil.copytree(folder, run / "model", dirs_exist_ok=True)
    model = make(pretrained=str(run))
    info = model.get_model_info()
    assert info["pretrained"] == str(run / "model")
    assert {key: info["decoding"][key] for key in ("block", "order", "temperature", "tokens_per_step")} == {
        "block": 4, "order": "margin", "temperature": 0.5, "tokens_per_step": 2,
    }  # fmt: skip
    assert model._loaded.model.dtype == torch.bfloat16
    told = capsys.readouterr().err
    assert f"stabledllm: from {run}: dtype=bfloat16, block=4, order=margin, temperature=0.5, tokens_per_step=2" in told
    assert "give it as --system_instruction" in told
    given = make(pretrained=str(run), tokens_per_step=1, order="entropy", dtype="float32").get_model_info()["decoding"]
    assert (given["tokens_per_step"], given["order"], given["temperature"]) == (1, "entropy", 0.5)


def test_generation_is_this_library_s_cut_at_the_task_s_strings(make, folder):
    tokenizer, texts = ByteTokenizer(), ["7+5=?", "a longer question than that", "z", "x" * 20, "one", "two"]
    whole = [plain(folder, tokenizer.encode(t), length=24, steps=12, block=8) for t in texts]
    stop = tokenizer.decode(whole[1])[5:7]
    asked = {"until": [stop], "do_sample": False, "temperature": 0.0, "max_gen_toks": 20}
    requests = [Request((text, asked)) for text in texts]
    requests.insert(3, Request(("7+5=?", {"until": "\0never", "max_gen_toks": 24})))
    expected = [tokenizer.decode(ids[:20]).split(stop)[0] for ids in whole]
    expected.insert(3, tokenizer.decode(whole[0]))
    for batch in (1, 4):
        lm = make(batch, block=8, tokens_per_step=2)
        assert lm.generate_until(requests) == expected
        assert lm.cache_hook.kept == [
            ("generate_until", r.args, text) for r, text in zip(requests, expected, strict=True)
        ]
    assert len(set(expected)) > 3


def test_sampling_is_the_task_s_and_seeded(make):
    asked = {"until": [], "do_sample": True, "temperature": 0.9, "top_p": 0.95, "max_gen_toks": 16}
    requests = [Request((f"question {i}", asked)) for i in range(5)]
    texts = make(1, block=8, seed=3).generate_until(requests)
    assert make(2, block=8, seed=3).generate_until(requests) == texts, "whatever the batches"
    assert make(2, block=8, seed=4).generate_until(requests) != texts


def bound(model, prompt: list[int], continuation: list[int]) -> float:
    """The exact bound by enumeration: E over uniform counts k and masks of that size of P/k times their log p."""
    n, total = len(continuation), 0.0
    for k in range(1, n + 1):
        masks = list(itertools.combinations(range(n), k))
        for mask in masks:
            ids = torch.tensor([[*prompt, *(256 if i in mask else c for i, c in enumerate(continuation))]])
            with torch.no_grad():
                logp = model(ids, torch.ones_like(ids, dtype=torch.bool)).logits[0].double().log_softmax(-1)
            total += sum(float(logp[len(prompt) + i, continuation[i]]) for i in mask) / k / len(masks)
    return total


def test_likelihoods_are_the_exact_bound_s_within_their_standard_errors(make, folder, tmp_path):
    model = load_model(folder).model.eval()
    pairs = [("ab", "x"), ("", "yz"), ("what?", "yes"), ("7+5=", "12;"), ("q", "abcd")]
    exact = [bound(model, list(c.encode()), list(t.encode())) for c, t in pairs]
    lm = make(draws=400, replicates=20, greedy=False, likelihood_out=str(tmp_path / "out.jsonl"))
    found = lm.loglikelihood([Request(pair, idx=i) for i, pair in enumerate(pairs)])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for (value, greedy), row, wanted in zip(found, rows, exact, strict=True):
        assert row["value"] == value
        assert greedy is False
        assert abs(value - wanted) <= Z * row["stderr"] + 1e-5, (value, wanted, row["stderr"])
        assert row["stderr"] < 0.1 * abs(wanted), "a test that could not fail otherwise"
    assert rows[0]["stderr"] == pytest.approx(0.0, abs=1e-6), "one token: nothing is random"
    info = lm.get_model_info()["likelihood"]
    assert (info["draws"], info["replicates"]) == (400, 20)
    assert info["mean_stderr"] == pytest.approx(sum(row["stderr"] for row in rows) / len(rows))
    rolling = lm.loglikelihood_rolling([Request(("yz",)), Request(("",))])
    assert rolling == [found[1][0], 0.0], "the whole text without a prompt"


def test_standard_errors_are_honest(make):
    """The spread over seeds is what a single estimate says of itself, on average over them."""
    pair, values, errors = ([7, 8, 9], [20, 30, 40, 50]), [], []
    for seed in range(40):
        estimate = make(draws=16, replicates=4, likelihood_seed=seed).estimate(*pair)
        values.append(estimate.value)
        errors.append(estimate.stderr)
    said = float(torch.tensor(errors).square().mean())
    seen = float(torch.tensor(values).var())
    assert 0.4 < seen / said < 2.5, "an F of about (39, 120) degrees of freedom"


def test_a_number_depends_on_the_texts_and_the_seed_alone(make):
    requests = [Request((f"question {i}", f" answer {i}")) for i in range(6)]
    lm = make(draws=8)
    values = lm.loglikelihood(requests)
    assert make(4, draws=8).loglikelihood(requests[::-1]) == values[::-1]
    assert make(draws=8).loglikelihood(requests[3:4]) == values[3:4]
    assert make(draws=8, likelihood_seed=1).loglikelihood(requests) != values


def test_the_greedy_completion_is_known_as_such(make, folder):
    tokenizer, prompt = ByteTokenizer(), "7+5=?"
    ids = plain(folder, tokenizer.encode(prompt), length=3, steps=3, block=3)
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text) == ids
    other = text[:-1] + ("a" if text[-1] != "a" else "b")
    requests = [Request((prompt, text)), Request((prompt, other))]
    assert [greedy for _, greedy in make(draws=8).loglikelihood(requests)] == [True, False]
    assert [greedy for _, greedy in make(draws=8, greedy=False).loglikelihood(requests)] == [False, False]


def test_a_model_in_blocks_gives_the_bound_of_decoding_block_by_block(make, folder, tmp_path):
    model = TinyMDM.from_pretrained(folder)
    model.config.block_size = 2
    model.save_pretrained(tmp_path)
    tokenizer, prompt = ByteTokenizer(), "7+5=?"
    ids = plain(str(tmp_path), tokenizer.encode(prompt), length=4, steps=4, block=2)[:3]
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text) == ids
    lm = make(draws=8, pretrained=str(tmp_path))
    (value, greedy), (other, not_greedy) = lm.loglikelihood(
        [Request((prompt, text)), Request((prompt, text[1:] + "a"))]
    )
    assert (greedy, not_greedy) == (True, False)
    assert other < value < 0
    row = TokenRow([*tokenizer.encode(prompt), *ids], len(tokenizer.encode(prompt)))
    with torch.no_grad():
        exact = elbo(model.eval(), [row], budget=256, eps=0.0)
    assert abs(value - float(exact.value)) < 5 * (float(exact.stderr) + lm.estimate(row.input_ids[:-3], ids).stderr)


def test_conversations_reach_the_model_s_own_template(make, folder):
    lm, tokenizer = make(block=8), ByteTokenizer()
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<assistant> 7+5=?"}]
    asked = {"until": [], "max_gen_toks": 8}
    texts = lm.generate_until([Request((lm.apply_chat_template(history), asked))])
    assert texts == [tokenizer.decode(plain(folder, tokenizer.chat(history), length=8, steps=8, block=8))]
    started = [*history, {"role": "assistant", "content": "It is"}]
    context = lm.apply_chat_template(started, add_generation_prompt=False)
    prompt = [*tokenizer.chat(history), *tokenizer.encode("It is")]
    assert lm.generate_until([Request((context, asked))]) == [
        tokenizer.decode(plain(folder, prompt, length=8, steps=8, block=8))
    ]
    values = make(draws=8).loglikelihood([Request((context, " 12"))])
    assert values[0][0] == make(draws=8).estimate(prompt, list(b" 12")).value
    assert lm.chat_template(True)
    assert lm.chat_template(False) == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"blok": 8}, "blok.*did you mean 'block'"),
        ({"steps": 8}, "tokens_per_step"),
        ({"tokens_per_step": 3}, "divide a block of 32"),
        ({"length": 40}, "whole blocks of 32"),
        ({"batch_size": "auto"}, "batch_size"),
        ({"draws": 6, "replicates": 4}, "replicates"),
        ({"temperature": -1}, "temperature"),
        ({"dtype": "float8"}, "dtype"),
        ({"pretrained": "nowhere"}, "nowhere"),
    ],
)
def test_bad_arguments_are_a_sentence(make, arguments, words):
    with pytest.raises(UserError, match=words):
        make(**arguments)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"do_sample": True, "top_k": 5}, "top_k"),
        ({"num_beams": 4}, "num_beams"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
    ],
)
def test_generation_arguments_without_a_meaning_here_are_refused(make, request_, words):
    with pytest.raises(UserError, match=words):
        make(block=8).generate_until([Request(("a", request_))])


def test_an_autoregressive_model_is_for_the_harness_s_own(make, tmp_path):
    with pytest.raises(UserError, match=r"found an autoregressive one, which lm_eval --model hf evaluates exactly"):
        make(pretrained=str(write_qwen2(tmp_path / "q")))


def step_of(pair) -> int:
    """The step that stands for two texts in their noise."""
    return int.from_bytes(hashlib.sha256(json.dumps(list(pair)).encode()).digest()[:4], "big") >> 1


PAIRS = [("ab", "xyz"), ("", "yz"), ("what?", "yes"), ("7+5=", "12;4")]


def test_duel_is_exact_in_any_batch(make, folder):
    lm, loaded = make(likelihood="duel", block=2, greedy=False), load_model(folder)
    rows = [TokenRow([*c.encode(), *t.encode()], len(c)) for c, t in PAIRS]
    options = DecodingOptions(length=4, steps=4, block=2)
    exact = duel(loaded.model.eval(), rows, options, mask_id=256, pad_id=257).tolist()
    requests = [Request(pair) for pair in PAIRS]
    assert [value for value, _ in lm.loglikelihood(requests)] == pytest.approx(exact)
    together = make(3, likelihood="duel", block=2, greedy=False)
    assert [value for value, _ in together.loglikelihood(requests)] == pytest.approx(exact)
    info = together.get_model_info()["likelihood"]
    assert (info["kind"], info["is"], info["forwards"]) == ("duel", "exact for the decoder", 3 + 2 + 3 + 4)
    assert info["mean_stderr"] == 0
    assert together.loglikelihood_rolling([Request(("yz",)), Request(("",))]) == pytest.approx([exact[1], 0.0])


@pytest.mark.parametrize("kind", ["multisample", "tube", "stepmerge"])
def test_other_likelihoods_are_means_of_replicates(make, folder, kind):
    model, pair = load_model(folder).model.eval(), ([*b"ab"], [*b"xyz"])
    lm = make(likelihood=kind, draws=8, replicates=2, **({"segments": 2} if kind == "stepmerge" else {}))
    estimate = lm.estimate(*pair)
    scores = OrderScores.of(model, [TokenRow([*pair[0], *pair[1]], 2)], [0], seed=0, step=step_of(pair))
    if kind == "stepmerge":
        each = scores.merged(range(8), 2)[0].view(2, 4).mean(1)
    else:
        value = log_mean if kind == "multisample" else tangent
        each = torch.stack([value(scores.orders(range(start, start + 4)))[0] for start in (0, 4)])
    assert estimate.value == pytest.approx(float(each.mean()), rel=1e-5)
    assert estimate.stderr == pytest.approx(float((each[0] - each[1]).abs()) / 2, rel=1e-3, abs=1e-6)
    assert lm.get_model_info()["likelihood"]["forwards"] == 8 * (2 if kind == "stepmerge" else 3)
    assert lm.estimate(*pair).value == estimate.value
    assert make(likelihood=kind, draws=8, replicates=2, likelihood_seed=1).estimate(*pair).value != estimate.value


def test_guidance_is_that_of_log_likelihoods_too(make, folder):
    pair = ([*b"ab"], [*b"xyz"])
    plain, guided = make(draws=8), make(draws=160, replicates=4, guidance=1.0)
    found = guided.estimate(*pair)
    scores = OrderScores.of(
        load_model(folder).model.eval(), [TokenRow([*pair[0], *pair[1]], 2)], [0], seed=7, guidance=1.0
    )  # fmt: skip
    other = scores.counts(range(160), 160)[0]
    assert abs(found.value - float(other.mean())) < Z * (found.stderr + float(other.std()) / 160**0.5)
    assert abs(found.value - plain.estimate(*pair).value) > 0.1
    assert guided.get_model_info()["likelihood"]["forwards"] == 320


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"likelihood": "dual"}, "likelihood: unknown 'dual'.*'duel'"),
        ({"likelihood": "duel", "order": "random"}, r"found decoding\.order=random"),
        ({"likelihood": "tube", "draws": 12, "replicates": 4}, "expected an even number of orders for 'tube'"),
        ({"likelihood": "multisample", "draws": 6, "replicates": 4}, "replicates"),
        ({"likelihood": "stepmerge", "segments": 0}, "segments"),
        ({"likelihood": "duel", "draws": 8}, "draws: expected none with likelihood=duel"),
        ({"segments": 4}, "segments: expected none with likelihood=elbo"),
    ],
)
def test_likelihoods_that_there_are_not_are_a_sentence(make, arguments, words):
    with pytest.raises(UserError, match=words):
        make(**arguments)

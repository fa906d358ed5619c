"""Likelihoods beyond the bound in ``stabledllm eval``: numbers, forwards, records, kills, refusals."""

from __future__ import annotations

import json

import pytest
import torch

from stabledllm.build import build_decoding
from stabledllm.config.likelihoods import MEANING
from stabledllm.config.settings import EvalSettings
from stabledllm.data.bundle import encode_split
from stabledllm.data.rows import Encoded
from stabledllm.data.sources import load_examples, task_options
from stabledllm.errors import UserError
from stabledllm.evaluation import likelihoods
from stabledllm.evaluation.likelihoods import measure_likelihoods, refuse_unmeasurable
from stabledllm.evaluation.ranks import ALONE
from stabledllm.evaluation.validation import NOISE_SEED
from stabledllm.likelihood.duel import duel
from stabledllm.likelihood.orders import OrderScores, log_mean, tangent
from stabledllm.models.loading import LoadedModel, load_model
from tests.cli.runner import assert_refused, in_process
from tests.fakes import tiny
from tests.fakes.hub_models import write_qwen2

ALL = ["duel", "multisample", "stepmerge", "tube"]
DECODING = {"length": 16, "steps": 16, "block": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("likelihoods")
    tiny.model(layers=1, intermediate_size=16).float().save_pretrained(folder / "model")
    return folder


def settings_of(folder, kinds, **more) -> EvalSettings:
    likelihood = {"kinds": kinds, "orders": 2, "segments": 3}
    given = {"model": str(folder / "model"), "data": {"train": "synthetic:easy"}, "rows": 10, "decoding": DECODING}
    return EvalSettings.model_validate(given | {"likelihood": likelihood} | more)


def rows_of(settings: EvalSettings, loaded: LoadedModel, n: int = 10) -> Encoded:
    """Few rows with short answers."""
    examples = load_examples(
        settings.data.train, split="test", n=n, seed=0, options=task_options(settings.data), settings=settings.data,
        text_fields=settings.data.text_fields, image=settings.data.image, note=lambda _: None,
    )  # fmt: skip
    return encode_split(list(examples), loaded.tokenizer, settings.data, "test", n)


def measured(settings: EvalSettings, loaded: LoadedModel, encoded: Encoded, out, told=None):
    settings = settings.model_copy(update={"out": str(out)})
    say = (lambda _: None) if told is None else told.append
    return measure_likelihoods(loaded, encoded, settings, {"a": 1}, ALONE, say)[0]


def test_each_is_the_mean_over_rows_of_what_it_names(folder, tmp_path):
    settings = settings_of(folder, ALL)
    loaded = load_model(settings.model)
    encoded = rows_of(settings, loaded)
    told: list[str] = []
    metrics = measured(settings, loaded, encoded, tmp_path, told)
    rows, size = encoded.rows, torch.tensor([row.response_length for row in encoded.rows])
    assert len(rows) == 10, "two runs of rows, of which the second has numbers of its own"
    assert len(set(size.tolist())) > 1
    scores = OrderScores.of(loaded.model, rows, range(10), seed=NOISE_SEED)
    logs = scores.orders(range(2))
    ids = {"mask_id": loaded.mask_id, "pad_id": loaded.pad_id}
    expected = {
        "duel": duel(loaded.model, rows, build_decoding(settings.decoding), **ids),
        "multisample": log_mean(logs),
        "stepmerge": scores.merged(range(2), 3).mean(1),
        "tube": tangent(logs),
    }
    tokens = int(size.sum())
    forwards = {"duel": tokens, "multisample": 2 * tokens, "stepmerge": 2 * 3 * 10, "tube": 2 * tokens}
    assert list(metrics) == ["duel_nll", "stepmerge_nll", "multisample_nll", "tube_nll"]
    for kind in ALL:
        each, found = -expected[kind] / size, metrics[f"{kind}_nll"]
        assert found["value"] == pytest.approx(float(each.mean()), rel=1e-5)
        assert found["stderr"] == pytest.approx(float(each.std()) / 10**0.5, rel=1e-4)
        assert (found["n"], found["unit"], found["is"]) == (10, "nats/token", MEANING[kind])
        assert found["forwards"] == forwards[kind]
        lines = [json.loads(line) for line in (tmp_path / f"{kind}.jsonl").read_text().splitlines()]
        assert [line["origin"] for line in lines] == [row.origin for row in rows]
        assert [line["nll"] for line in lines] == pytest.approx(each.tolist(), rel=1e-4)
    assert 1 <= metrics["tube_nll"]["effective_orders"] <= 2
    assert any("exact for the decoder" in line and f"{tokens:,} forwards" in line for line in told)


def test_guidance_is_the_decoder_s_and_gives_the_bound_a_kind_of_its_own(folder, tmp_path):
    settings = settings_of(folder, ["elbo"], decoding=DECODING | {"guidance": 1.0}, draws=4)
    loaded = load_model(settings.model)
    encoded = rows_of(settings, loaded, 3)
    found = measured(settings, loaded, encoded, tmp_path)["elbo_nll"]
    scores = OrderScores.of(loaded.model, encoded.rows, range(3), seed=NOISE_SEED, guidance=1.0)
    size = torch.tensor([row.response_length for row in encoded.rows])
    assert found["value"] == pytest.approx(float((-scores.counts(range(4), 4).mean(1) / size).mean()), rel=1e-5)
    assert found["forwards"] == 3 * 4 * 2, "each with the prompt and without"


def test_a_killed_one_goes_on_and_repeats_nothing(folder, tmp_path, monkeypatch):
    settings = settings_of(folder, ["multisample"])
    loaded = load_model(settings.model)
    encoded = rows_of(settings, loaded)
    whole = measured(settings, loaded, encoded, tmp_path / "whole")
    ordinary, seen = likelihoods._values, []

    def killed(model, rows, numbers, *rest):
        seen.append(numbers)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return ordinary(model, rows, numbers, *rest)

    monkeypatch.setattr(likelihoods, "_values", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(settings, loaded, encoded, tmp_path / "killed")
    assert measured(settings, loaded, encoded, tmp_path / "killed") == whole
    assert seen == [range(8), range(8, 10), range(8, 10)]
    one, other = ((tmp_path / name / "multisample.jsonl").read_bytes() for name in ("killed", "whole"))
    assert one == other


def test_the_command_writes_and_prints_them(folder):
    words = [
        "eval", "--model", "model", "--data", "synthetic:easy", "--rows", "2", "--length", "16", "--steps", "16",
        "--block", "8", "--likelihood", "duel", "--draws", "1", "--beside", "none", "--out", "out",
    ]  # fmt: skip
    dry = in_process(*words, "--dry-run", cwd=folder)
    assert "likelihoods: duel" in dry.stdout
    result = in_process(*words, cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "duel NLL" in result.stdout
    record = json.loads((folder / "out" / "eval.json").read_text())
    assert record["metrics"]["duel_nll"]["is"] == "exact for the decoder"
    assert record["identity"]["likelihood"]["kinds"] == ["duel"]
    other = in_process(*["stepmerge" if word == "duel" else word for word in words], cwd=folder)
    assert_refused(other, "likelihood.kinds=['duel'], found likelihood.kinds=['stepmerge']")
    words[words.index("--likelihood") : words.index("--draws")] = []
    assert_refused(in_process(*words, cwd=folder), "likelihood=", "found likelihood=None")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["likelihood=[duel]", "decoding.order=random"], "found decoding.order=random"),
        (["likelihood=[duel]", "temperature=0.7"], "found decoding.order=confidence at decoding.temperature=0.7"),
        (["likelihood=[elbo]"], "expected decoding.guidance above 0 for 'elbo', which without it is validation_nll"),
        (["likelihood=[tube]", "likelihood.orders=3"], "expected an even number of orders for 'tube'"),
        (["likelihood=[duel,duel]"], "found 'duel' twice"),
        (["likelihood=[dual]"], "likelihood.kinds"),
        (
            ["likelihood=[duel]", "likelihood.orders=4"],
            "expected multisample, stepmerge or tube among likelihood.kinds",
        ),
        (["likelihood=[tube]", "likelihood.segments=4"], "expected stepmerge among likelihood.kinds"),
    ],
)
def test_what_there_is_not_is_refused_before_anything_is_loaded(words, sentence, folder):
    result = in_process("eval", "--model", "model", "--data", "synthetic", *words, "out=refused", cwd=folder)
    assert_refused(result, sentence)
    assert not (folder / "refused").exists()


def test_models_without_them_are_refused(folder, tmp_path):
    autoregressive = load_model(str(write_qwen2(tmp_path / "q")))
    with pytest.raises(UserError, match="expected none for an autoregressive model, whose validation_nll is exact"):
        refuse_unmeasurable(autoregressive, settings_of(folder, ["multisample"]))
    blocks = load_model(str(folder / "model"))
    blocks.model.config.block_size = 8
    with pytest.raises(UserError, match="expected 0 for likelihoods of a model in blocks"):
        refuse_unmeasurable(blocks, settings_of(folder, ["stepmerge"], decoding=DECODING | {"guidance": 1.0}))
    refuse_unmeasurable(blocks, settings_of(folder, ["duel"], decoding=DECODING))

"""What is wrong with what a command without a recipe is given is told at once, all of it, with what to write."""

from __future__ import annotations

import json

import pytest

from stabledllm.errors import Mistakes, UserError
from stabledllm.experiment.commands_at_once import COMMANDS, check_command, check_plan, check_prompts
from stabledllm.experiment.stored_at_once import QUANTITIES, check_stored
from stabledllm.lab.measure import recommendation
from stabledllm.models.choices import FAMILY_NAMES
from stabledllm.models.families.registry import FAMILIES
from tests.cli.runner import assert_refused, in_process

GIVEN = {
    "fit": {"method": "ppots", "data": {"train": "synthetic"}},
    "decompose": {"data": {"train": "synthetic"}},
    "recommend": {"data": {"train": "synthetic"}},
    "eval": {"data": {"train": "synthetic"}},
    "generate": {},
    "convert": {"model": "owner/name", "out": "out"},
    "merge": {"adapter": "adapter", "out": "out"},
    "rescore": {"rows": "rows.jsonl", "task": "gsm8k", "out": "out.jsonl"},
}
"""What each command is given where nothing is wrong."""
TOLD = [
    ("fit", {"method": "standrad"}, (), "unknown part 'standrad' (did you mean 'standard'?)."),
    ("fit", {"method": "mirror"}, (), "fit: expected a method with 'ppots', found 'mirror'."),
    ("fit", {"method": "ppots,mirror"}, (), "write ppots+mirror."),
    ("fit", {"model": "tny"}, (), "found no such thing (did you mean 'tiny'?)."),
    ("fit", {"model": "meta-llama/Llama-3.1-8B"}, (), "expected method 'autoregressive', found 'ppots'."),
    ("fit", {"data": {"train": "rwos.jsonl"}}, (), "found nothing at 'rwos.jsonl' (did you mean 'rows.jsonl'?)."),
    ("fit", {"data": {"train": "qa.csv"}}, (), '"data.columns={prompt: Q, completion: A}"'),
    ("fit", {}, ["metod=ppots"], "fit: unknown key 'metod' (did you mean 'method'?); write method."),
    ("fit", {}, ["ppots.row=5"], "write ppots.rows."),
    ("fit", {}, ["methods=[ppots]"], "of one training run, whose key is method;"),
    ("fit", {}, ["steps=5"], "key 'steps': expected a key that 'fit' uses"),
    ("fit", {"seed": -1}, (), "fit: key 'seed': expected a number greater than or equal to 0, found -1."),
    ("decompose", {}, ["row=5"], "decompose: unknown key 'row' (did you mean 'rows'?); write rows."),
    ("decompose", {}, ["method=ppots"], "(did you mean 'methods'?); write methods."),
    ("decompose", {}, ["batch=5"], "unknown key 'batch'; write forwards."),
    ("decompose", {}, ["lr=5"], "unknown key 'lr', which is one of a training run: leave it out."),
    ("decompose", {}, ["grad.rows=8"], "--gradient"),
    ("decompose", {"methods": ["adaptive"]}, (), "expected a density that is fixed"),
    ("decompose", {"methods": ["ppots;mirror"]}, (), "write ppots+mirror."),
    ("decompose", {"methods": [""]}, (), "write standard."),
    ("decompose", {}, ["objective.power=2"], "expected none for weighting 'elbo', found 2"),
    ("decompose", {}, ["gradient=true", "objective.weighting=cosine"], "objective.weighting 'cosine' contradict"),
    (
        "decompose",
        {},
        ["gradient=true", "objective.name=gift", "grad.split_rows=8"],
        "expected objective.tokens=all or",
    ),
    ("decompose", {}, ["objective.eps=0"], "the variance of method 'standard', whose masks are independent, is"),
    ("recommend", {}, ["forward=8"], "write forwards."),
    ("eval", {"model": "adaptr"}, (), "(did you mean 'adapter'?)."),
    ("eval", {"base": "tiny"}, (), "expected an adapter's folder to take base 'tiny', found none."),
    ("eval", {"beside": "untuned"}, (), "model 'untuned': expected 'tiny'"),
    ("eval", {}, ["decoding.ordr=random"], "(did you mean 'order'?); write decoding.order."),
    ("eval", {}, ["decoding.order=conf"], "write decoding.order=confidence."),
    ("eval", {}, ["decoding.block=7"], "block 7 does not divide length 64; block 4 or 8 does"),
    ("eval", {}, ["few_shot=3"], "write data.few_shot."),
    ("eval", {}, ["max_new_tokens=3"], "write decoding.length."),
    ("eval", {"dtype": "fp16"}, (), "found 'fp16'; write dtype=bfloat16."),
    ("eval", {"rows": 0}, (), "key 'rows': expected a number greater than or equal to 1, found 0."),
    ("eval", {"clip": "vit"}, (), "CLIP model 'vit': expected a local folder or a hub's OWNER/NAME"),
    ("eval", {"family": "bert"}, (), "family: unknown 'bert'; write mlm."),
    ("generate", {"model": "tny"}, (), "(did you mean 'tiny'?)."),
    ("generate", {"decoding": {"length": 7, "block": 4}}, (), "block 1 or 7 does"),
    ("generate", {"attention": "flash"}, (), "(did you mean 'flash_attention_2'?)."),
    ("generate", {}, ["decoding.top_k=3"], "(did you mean 'top_p'?); write decoding.top_p."),
    ("convert", {"model": "modle.gguf"}, (), "expected a file, found nothing (did you mean 'model.gguf'?)."),
    ("convert", {"dtype": "bf16"}, (), "write dtype=bfloat16."),
    ("convert", {"mask_embedding": "average"}, (), "expected 'kept' or 'mean'"),
    ("merge", {"adapter": "tiny"}, (), "merge: expected a folder with adapter_config.json, as a LoRA run's, found the"),
    ("merge", {"base": "tny"}, (), "(did you mean 'tiny'?)."),
    ("merge", {"dtype": "half"}, (), "found 'half'; write dtype=float16."),
    (
        "rescore",
        {"rows": "rwos.jsonl"},
        (),
        "a file of rows, found nothing (did you mean 'rows.jsonl'?).",
    ),
    ("rescore", {"task": "gsm9k"}, (), "found none (did you mean 'gsm8k'?)."),
    ("rescore", {"out": "adapter"}, (), "adapter: expected a file to write, found a folder."),
]
"""A command, what is given otherwise, overrides, and the end of the one sentence that they give."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with rows and an adapter."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1+1=?", "response": "2"}) + "\n")
    (tmp_path / "qa.csv").write_text("Q,A\n1+1=?,2\n")
    (tmp_path / "model.gguf").touch()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "tiny"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(of: tuple) -> str:
    command, given, overrides, _ = of
    return " ".join([command, *map(str, given.items()), *overrides])


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_in_order_is_read(here, command):
    given = json.loads(json.dumps(GIVEN[command]))
    assert isinstance(check_command(command, given), COMMANDS[command][0])
    assert given == GIVEN[command], "the caller's options stay as they are"


@pytest.mark.parametrize(("command", "given", "overrides", "words"), TOLD, ids=map(names, TOLD))
def test_a_mistake_is_told_with_what_to_write(here, command, given, overrides, words):
    with pytest.raises(Mistakes) as told:
        check_command(command, GIVEN[command] | given, overrides)
    (sentence,) = told.value.sentences
    assert words in sentence


def test_all_are_told(here):
    with pytest.raises(Mistakes) as told:
        check_command(
            "fit", {"model": "tny", "method": "ppotz", "data": {"train": "x.jsonl"}}, ["metod=x", "seed=y", "batch"],
            also=[lambda: check_prompts([""])],
        )  # fmt: skip
    assert [next(word for word in words if word in one) for one, words in zip(told.value.sentences, [
        ["prompt 1"], ["override 'batch'"], ["metod"], ["seed"], ["ppotz"], ["tny"], ["x.jsonl"],
    ], strict=True)]  # fmt: skip


def test_a_plans_options_are_told_with_its_recipe():
    with pytest.raises(Mistakes) as told:
        check_plan("gsm8k/llada-8b", ["metod=x", "model=tny"], "much", 1, "zero4", None)
    assert len(told.value.sentences) == 4
    settings, layout, limit = check_plan("gsm8k/llada-8b", [], "80GiB", 8, "zero2", None)
    assert (settings.model, layout.devices, limit) == ("GSAI-ML/LLaDA-8B-Instruct", 8, 80 * 2**30)


def test_stored_decompositions(here):
    for stored, by, overrides, words in (
        (here / "nothing", None, [], "'stabledllm decompose' writes it"),
        (here, None, [], "found none in"),
        (here / "rows.jsonl", "los", [], "(did you mean 'loss'?)"),
        (here / "rows.jsonl", None, ["rows=3"], "expected no settings beside --from, found 'rows=3'"),
    ):
        with pytest.raises(UserError) as told:
            check_stored(stored, by, overrides)
        assert words in str(told.value)


def test_names_that_are_known_without_torch_are_the_real_ones():
    assert ("auto", *FAMILIES) == FAMILY_NAMES
    assert QUANTITIES == recommendation.QUANTITIES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--model", "tny", "--data", "x.jsonl", "metod=x"], ["3 mistakes", "did you mean 'tiny'"]),
        (["recommend", "--by", "los", "row=3"], ["2 mistakes", "did you mean 'loss'"]),
        (["eval", "--set", "ordr=x", "--model", "tny"], ["2 mistakes", "write decoding.order"]),
        (["generate", " ", "--model", "tny"], ["2 mistakes", "prompt 1", "did you mean 'tiny'"]),
        (["merge", "tny", "--out", "x", "--dtype", "half"], ["2 mistakes", "write dtype=float16"]),
        (["rescore", "x.jsonl", "--task", "gsm9k", "--out", "y"], ["2 mistakes", "did you mean 'gsm8k'"]),
        (["plan", "gsm8k/llada-8b", "--memory", "much", "model=tny"], ["2 mistakes", "such as 80GiB"]),
    ],
    ids=lambda value: value[0] if value[0].isalpha() else None,
)
def test_the_commands_begin_with_it(tmp_path, arguments, words):
    assert_refused(in_process(*arguments, cwd=tmp_path), *words)
    assert not list(tmp_path.iterdir()), "nothing was written"

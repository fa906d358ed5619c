"""System prompt and worked examples: the same in training and evaluation, and never a row's own answer."""

import pytest

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import encoding_options, load_bundle, load_rows
from stabledllm.data.prompting import choose_shots, prompted
from stabledllm.data.sources import load_examples
from stabledllm.errors import UserError
from tests.checks.data import TOKENIZER, example
from tests.fakes.tasks import gsm8k_folder, gsm8k_row, openscience_row, write


@pytest.fixture
def settings(tmp_path):
    folder = gsm8k_folder(tmp_path / "gsm8k")
    return DataSettings(train=f"gsm8k:{folder}", system_prompt="Think.", few_shot=3, max_len=2000, validation_share=0.2)


def turns(messages):
    return [m["role"] for m in messages]


def test_system_prompt_then_worked_examples_then_the_question(settings):
    rows = load_examples(settings.train, split="test", n=0, seed=0)
    found = prompted(rows, settings)
    for before, after in zip(rows, found, strict=True):
        assert after["messages"][0] == {"role": "system", "content": "Think."}
        assert turns(after["messages"]) == ["system", *["user", "assistant"] * 4]
        assert after["messages"][-2:] == before["messages"]
        assert (after["gold"], after["origin"]) == (before["gold"], before["origin"])
    assert len({repr(e["messages"][:-2]) for e in found}) == 1, "the same worked examples for every row"


def test_training_and_evaluation_see_the_same_prompt(settings):
    bundle = load_bundle(settings, TOKENIZER)
    alone = prompted(load_examples(settings.train, split="test", n=0, seed=0), settings)
    assert bundle.test == alone
    shots = bundle.test[0]["messages"][:-2]
    start = TOKENIZER.chat(shots)[:-1]  # without the mark that opens the assistant's turn
    same = [row for row in (*bundle.train, *bundle.validation) if row.input_ids[: len(start)] == start]
    # All but the rows that are worked examples themselves.
    assert len(bundle.train) + len(bundle.validation) - len(same) <= settings.few_shot
    assert len(same) > 30
    measured, _ = load_rows(settings.train, TOKENIZER, settings, "train", None)
    assert sum(row.input_ids[: len(start)] == start for row in measured) == 40 - settings.few_shot


def test_no_row_is_shown_its_own_answer(settings):
    train = load_examples(settings.train, split="train", n=0, seed=0)
    shots = choose_shots(settings)
    assert len(shots) == settings.few_shot + 1
    for row in prompted(train, settings, shots):
        asked = [m["content"] for m in row["messages"] if m["role"] == "user"]
        assert len(set(asked)) == settings.few_shot + 1, asked


def test_worked_examples_are_in_no_validation_row_and_like_no_test_row(settings):
    bundle = load_bundle(settings, TOKENIZER)
    shots = {s["origin"] for s in choose_shots(settings)}
    assert not shots & {row.origin for row in bundle.validation}
    every = load_examples(settings.train, split="train", n=0, seed=0)
    assert choose_shots(settings, every[:30])[0]["origin"] not in {e["origin"] for e in every[:30]}


def test_the_choice_depends_on_the_seed_not_on_order_or_train_rows(settings, tmp_path):
    chosen = choose_shots(settings)
    assert choose_shots(settings.model_copy(update={"train_rows": 5})) == chosen
    assert choose_shots(settings.model_copy(update={"seed": 1})) != chosen
    backwards = gsm8k_folder(tmp_path / "back", train=[gsm8k_row(i) for i in reversed(range(40))])
    other = choose_shots(settings.model_copy(update={"train": f"gsm8k:{backwards}"}))
    assert [s["messages"] for s in other] == [s["messages"] for s in chosen]


def test_nothing_asked_for_nothing_changed():
    rows = [example("q", "a")]
    assert prompted(rows, DataSettings(train="jsonl:none")) is rows


def test_a_rows_own_system_turn_comes_first():
    row = {"messages": [{"role": "system", "content": "own"}, *example("q", "a")["messages"]], "origin": "f:1"}
    settings = DataSettings(train="synthetic", few_shot=1)
    (found,) = prompted([row], settings)
    assert turns(found["messages"]) == ["system", "user", "assistant", "user", "assistant"]
    with pytest.raises(UserError, match=r"^f:1: expected no system turn beside data\.system_prompt"):
        prompted([row], settings.model_copy(update={"system_prompt": "x"}))


def test_what_cannot_be_prompted_is_refused(tmp_path):
    ids = {"input_ids": [1, 2], "prompt_length": 1, "origin": "f:1"}
    with pytest.raises(UserError, match=r"^f:1: expected a conversation for data\.system_prompt and data\.few_shot"):
        prompted([ids], DataSettings(system_prompt="x"))
    path = write(tmp_path / "rows.jsonl", [gsm8k_row(i) for i in range(3)])
    settings = DataSettings(train=f"gsm8k:{path}", few_shot=1)
    with pytest.raises(UserError, match="training split apart from the tested rows"):
        prompted([example("q", "a")], settings)
    with pytest.raises(UserError, match="expected more than 3 different training rows, found 3"):
        choose_shots(settings.model_copy(update={"few_shot": 3}))


def test_delimiters_are_the_tasks_own_unless_given(tmp_path):
    path = write(tmp_path / "rows.jsonl", [openscience_row(i) for i in range(30)])
    settings = DataSettings(train=f"openscience:{path}")
    assert encoding_options(settings).delimiters == ("\\boxed{",)
    rows, _ = load_rows(settings.train, TOKENIZER, settings, "train", 5)
    assert all(len(row.delimiter) == len("\\boxed{") for row in rows)
    assert encoding_options(DataSettings(train="gsm8k")).delimiters == ("####",)
    assert encoding_options(DataSettings(train="jsonl:x")).delimiters == ("####",)
    assert encoding_options(DataSettings(train="gsm8k", delimiters=["so"])).delimiters == ("so",)
    assert encoding_options(DataSettings(train="gsm8k", delimiters=[])).delimiters == ()

r"""Each mistake of docs/published_mistakes.md that concerns data or scoring, absent here.

``tests/mutation/test_paper_mistakes.py`` injects such mistakes to show that the checks notice them.
"""

import pytest

from stabledllm.config.settings import DataSettings
from stabledllm.data.bundle import encoding_options, load_bundle, load_rows
from stabledllm.data.overlap import likeness
from stabledllm.data.rows import collate, encode_examples
from stabledllm.errors import UserError
from stabledllm.tasks.registry import TASKS
from tests.checks.data import TOKENIZER, check_end_token, check_padding
from tests.fakes.tasks import gsm8k_folder, gsm8k_row, question

LONG = " and so on" * 60


def score(task: str, completion: str, gold, **flexible) -> bool | None:
    return TASKS[task].score(completion, gold, **flexible).correct


@pytest.fixture
def settings(tmp_path):
    """GSM8K with an over-length row and a row of the test split among the training rows."""
    rows = [gsm8k_row(i) for i in range(40)]
    rows += [gsm8k_row(50, question(50) + LONG), gsm8k_row(105, question(105).upper()), gsm8k_row(106)]
    return DataSettings(train=f"gsm8k:{gsm8k_folder(tmp_path, train=rows)}", max_len=300, validation_share=0.2)


def test_4_p_of_t_probed_on_held_out_and_over_length_rows(settings):
    """The probe draws from ``train`` alone: none of it is held out, tested on or too long."""
    found = load_bundle(settings, TOKENIZER)
    train = {row.origin for row in found.train}
    assert not train & {row.origin for row in found.validation}
    assert not train & {e["origin"] for e in found.test}
    assert max(map(len, found.train)) <= settings.max_len
    again = load_bundle(settings, TOKENIZER)
    assert [row.origin for row in again.train] == [row.origin for row in found.train], "on every rank the same"


def test_7_over_length_rows_truncated_silently(settings):
    found = load_bundle(settings, TOKENIZER)
    for row in (*found.train, *found.validation):
        assert TOKENIZER.decode(row.input_ids[row.prompt_length :]).rpartition("####")[2].strip().isdigit()
    assert not any(row.origin.endswith(":41") for row in (*found.train, *found.validation))
    assert any("dropped 1 longer than max_len=300" in note and ":41" in note for note in found.notes)


@pytest.mark.parametrize("extra", [{}, {"system_prompt": "Think."}, {"system_prompt": "Think.", "few_shot": 2}])
def test_8_training_text_without_the_template_of_evaluation(settings, extra):
    settings = settings.model_copy(update=extra | {"max_len": 3000})
    found = load_bundle(settings, TOKENIZER)
    encoded = encode_examples(found.test, TOKENIZER, encoding_options(settings)).rows
    for example, row in zip(found.test, encoded, strict=True):
        assert row.input_ids[: row.prompt_length] == TOKENIZER.chat(example["messages"][:-1])
    trained, _ = load_rows(settings.train, TOKENIZER, settings, "train", None)
    opening = encoded[0].input_ids[: encoded[0].prompt_length - len(question(100)) - 2]
    share = sum(row.input_ids[: len(opening)] == opening for row in trained) / len(trained)
    assert share > 0.9, "training rows open as tested ones do, but for the worked examples themselves"


def test_8_no_end_token_and_padding_attended(settings):
    check_end_token()
    check_padding()
    rows = load_bundle(settings, TOKENIZER).train[:5]
    batch = collate(rows, TOKENIZER.pad_token_id)
    for row, attended, maskable in zip(rows, batch["attention_mask"], batch["maskable"], strict=True):
        assert int(attended.sum()) == len(row)
        assert int(maskable.sum()) == row.response_length
        ends = [i for i in row.input_ids[row.prompt_length :] if i == TOKENIZER.eos_token_id]
        assert len(ends) == 1
        assert row.input_ids[-1] == TOKENIZER.eos_token_id


def test_10_training_rows_taken_from_the_test_range(settings):
    found = load_bundle(settings, TOKENIZER)
    tested = {likeness(e) for e in found.test}
    assert len(tested) == 10
    for row in (*found.train, *found.validation):
        prompt = TOKENIZER.decode(row.input_ids[: row.prompt_length])
        assert likeness({"messages": [{"role": "user", "content": prompt}, {}]}) not in tested
    assert any("dropped 2 rows found in test" in note for note in found.notes)
    spec = settings.train
    both = {"train": f"{spec}/train.jsonl", "test": f"{spec}/test.jsonl"}
    with pytest.raises(UserError, match="expected test rows that are not in the training data"):
        load_bundle(settings.model_copy(update=both), TOKENIZER)


def test_11_thousands_read_as_1():
    assert score("gsm8k", "#### 1,234", "#### 1234") is True
    assert score("gsm8k", "#### 1,234", "#### 1") is False
    assert score("gsm8k", "it is 1,234", "#### 1,234", flexible=True) is True


def test_11_decimals_read_as_integers():
    assert score("gsm8k", "#### 2.5", "#### 2.5") is True
    assert score("gsm8k", "#### 2.5", "#### 2") is False
    assert score("gsm8k", "it is 2.5.", "#### 2", flexible=True) is False


def test_11_18_point_0_not_equal_to_18():
    assert score("gsm8k", "#### 18.0", "#### 18") is True
    assert score("gsm8k", "#### 18", "#### 18.00") is True
    assert score("openscience", r"\boxed{18.0}", "18") is True


def test_11_nested_braces_of_a_box_cut():
    assert TASKS["openscience"].score(r"\boxed{\text{B}}", "B").parsed == "B"
    assert score("openscience", r"\boxed{\text{B}}", "B") is True
    assert score("openscience", r"\boxed{\frac{1}{\sqrt{2}}}", r"\dfrac{1}{\sqrt2}") is True


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("completion", ["", "nothing", "####", r"\boxed{}", "None"])
def test_11_none_equal_to_none_counted_correct(task, completion):
    found = TASKS[task].score(completion, 7 if task != "hitab" else [7])
    assert (found.parsed, found.correct) in ((None, None), (found.parsed, False))
    assert found.correct is not True
    for gold in ("", None):
        with pytest.raises(UserError, match="expected"):
            TASKS[task].score(completion, gold)


@pytest.mark.skipif("hitab" not in TASKS, reason="HiTab is not registered")
def test_11_list_answers_of_hitab_never_correct():
    assert score("hitab", "Answer: 3, 4", [3.0, 4.0]) is True
    assert score("hitab", "Answer: 4, 3", [3.0, 4.0]) is False

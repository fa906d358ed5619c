"""Chat templates are programs of strangers: those that fail or do not end are refused in a sentence."""

from __future__ import annotations

import sys
import threading

import pytest
from transformers import PreTrainedTokenizerFast

from stabledllm.errors import UserError
from stabledllm.models import chat_template
from stabledllm.models.chat_template import bounded
from stabledllm.models.hf_tokenizer import HFTokenizer, load_tokenizer
from tests.fakes.hub_models import LLADA_SPECIAL, write_tokenizer

NAMED = {"eos_token": "<|endoftext|>", "mask_token": "<|mdm_mask|>"}
_FOR, _END = "{% for i in range(99999) %}", "{% endfor %}"
LOOP = _FOR + _FOR + _FOR + _END + _END + _END
BAD = {
    "a syntax error": ("{% for m in messages %}{{ m['content'] }}", "chat template that can be read|takes, found"),
    "a range too long": ("{% for i in range(10000000000000) %}x{% endfor %}", "Range too big"),
    "a power": ("{{ 10 ** (10 ** 12) }}", r"without powers \(\*\*\)"),
    "nested loops": (LOOP, "a chat template that ends"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "takes, found: maximum recursion"),
    "a long text": ("{{ 'x' * 5000000 }}", "a short text for a question"),
    "all memory": ("{{ 'x' * 100000000000 }}", "takes, found: MemoryError"),
    "doubling": (
        "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "takes, found|short text",
    ),
    "nothing there": ("{{ messages[0].nothing.more }}", "takes, found: .*no attribute"),
    "a way out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "takes, found"),
}  # fmt: skip


def load(folder, template) -> HFTokenizer:
    write_tokenizer(folder, LLADA_SPECIAL, NAMED, template)
    return load_tokenizer(folder, "m", vocab_size=272, mask_token_id=261)


@pytest.mark.parametrize("case", BAD)
def test_bad_templates_are_refused_at_once(tmp_path, case, monkeypatch):
    monkeypatch.setattr(chat_template, "_STEPS", 100_000)
    template, words = BAD[case]
    with pytest.raises(UserError, match=words) as error:
        load(tmp_path, template)
    assert "\n" not in str(error.value)


def test_templates_that_are_no_text(tmp_path):
    for other in (5, True, {"a": 1}):
        with pytest.raises(UserError):
            load(tmp_path, other)


def test_an_ending_that_a_row_brings_about_is_bounded_too(tmp_path, monkeypatch):
    """A loop that only some conversations run; the message's own length bounds nothing."""
    monkeypatch.setattr(chat_template, "_STEPS", 100_000)
    body = "{{ m['content'] }}{% if 'go' in m['content'] %}" + LOOP + "{% endif %}"
    tokenizer = load(tmp_path, "{% for m in messages %}" + body + "{% endfor %}")
    tokenizer.chat([{"role": "user", "content": "stop"}])
    with pytest.raises(UserError, match="a chat template that ends, found one that runs on at step 100,001"):
        tokenizer.chat([{"role": "user", "content": "go"}])


def test_a_trace_of_others_stays(tmp_path):
    """Coverage and debuggers trace as well."""
    seen, before = [], sys.gettrace()

    def mine(*_):
        seen.append(1)

    def work():
        sys.settrace(mine)
        with bounded("m"):
            pass
        seen.append(sys.gettrace() is mine)
        sys.settrace(None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[-1] is True
    assert sys.gettrace() is before


def test_published_templates_take_a_small_share_of_the_bound(tmp_path, monkeypatch):
    """A thousand turns of the layout that LLaDA publishes."""
    template = (
        "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
        "<|eot_id|>{% endfor %}"
    )
    tokenizer = load(tmp_path, template)
    monkeypatch.setattr(chat_template, "_STEPS", chat_template._STEPS // 50)
    tokenizer.chat([{"role": "user", "content": "hello"}] * 1000)
    assert isinstance(tokenizer._tokenizer, PreTrainedTokenizerFast)

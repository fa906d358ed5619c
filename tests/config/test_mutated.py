"""Whatever a recipe or an override holds, it is settings or one sentence: never another exception, never a hang."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stabledllm.config import ExperimentSettings, TrainSettings, load_recipe, shipped_recipes
from stabledllm.errors import UserError
from stabledllm.experiment.validation import check_run, runs_of

TEXTS = [text for name, text in shipped_recipes().items() if not name.startswith("accelerate/")]
VALUES = [
    "true", "no", "null", "~", "", "[]", "{}", "[[", "}", "0", "-1", "1e999", "nan", ".inf", "9" * 400, "1_000",
    "0o7",
    "!!python/object:x", "*a", "&a [*a]", "\t", "\x00", "\x1b[2J", "\ufeff", "\u2028", "\ud800", "'", '"', "#", " # x",
    "---", "...", "? x", "<<", "extends", "a: b: c", "- - -", "{a: {a: {a: 1}}}", "[1, [2, [3]]]", "%YAML 1.1", "|",
    ">", "standard+standard", "ppots", "tiny", "1.5", "1" + "0" * 30, "\U0001f600", "a" * 3000, "[" * 60, "../x",
    "/dev/zero",
]  # fmt: skip


def _keys(kind: type, above: str = "") -> list[str]:
    found = []
    for name, field in kind.model_fields.items():
        found.append(above + name)
        if hasattr(field.annotation, "model_fields"):
            found += _keys(field.annotation, f"{above}{name}.")
    return found


KEYS = [*_keys(TrainSettings), *_keys(ExperimentSettings), "lora.rank", "extends", "base.extends", "nothing", "a.b.c"]
ASKED = st.one_of(st.sampled_from(VALUES), st.text(max_size=30), st.integers().map(str), st.floats().map(str))


def settled_or_refused(name: str, overrides: list[str]) -> None:
    """Load and check; anything but a :class:`UserError` is the test's failure."""
    try:
        for run in runs_of(load_recipe(name, overrides))[:2]:
            check_run(run)
    except UserError as error:
        for said in getattr(error, "sentences", [str(error)]):
            assert said
            assert "\n" not in said
            assert "\x1b" not in said
            assert len(said) < 2000


def mutated(text: str, seed: int) -> bytes:
    """A recipe with a few of its lines, characters or bytes changed."""
    chance = random.Random(seed)
    lines = text.splitlines()
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(lines))
        kind = chance.randrange(7)
        if kind == 0:
            lines[place] = lines[place].partition(":")[0] + ": " + chance.choice(VALUES)
        elif kind == 1:
            lines.insert(place, chance.choice(lines))
        elif kind == 2:
            lines[place] = chance.choice(["  ", "\t", "- ", "? ", "!x ", "&a ", "%"]) + lines[place]
        elif kind == 3:
            lines.insert(place, f"{chance.choice(KEYS).rpartition('.')[2]}: {chance.choice(VALUES)}")
        elif kind == 4 and lines[place]:
            at = chance.randrange(len(lines[place]))
            lines[place] = lines[place][:at] + chance.choice(string.printable + "\x07é") + lines[place][at + 1 :]
        elif kind == 5:
            del lines[place:]
            lines.append(chance.choice(VALUES))
        else:
            lines[place] = "  " * chance.randrange(30) + lines[place].strip()
    content = "\n".join(lines).encode(errors="surrogatepass")
    if chance.random() < 0.1:
        at = chance.randrange(len(content) + 1)
        content = content[:at] + bytes([chance.randrange(256)]) + content[at:]
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated")


@settings(max_examples=150, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(st.sampled_from(TEXTS), st.integers(0, 2**32))
def test_recipes(folder, text, seed):
    path = folder / "r.yaml"
    path.write_bytes(mutated(text, seed))
    settled_or_refused(str(path), [])


@settings(max_examples=150, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.sampled_from(["sft-synthetic", "quickstart", "sft-scenes", "gsm8k/llada-8b"]),
    st.lists(st.tuples(st.sampled_from(KEYS), ASKED), min_size=1, max_size=3),
)
def test_overrides(recipe, changes):
    settled_or_refused(recipe, [f"{key}={value}" for key, value in changes])


@settings(max_examples=80, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(st.text(max_size=40), st.lists(st.text(max_size=40), max_size=2))
def test_any_text_at_all(name, overrides):
    settled_or_refused(name, overrides)
    settled_or_refused("sft-synthetic", overrides)

"""The rows of an evaluation: those that are given, or those that training with the same data holds out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from stabledllm.config.from_run import naming_run
from stabledllm.config.run_folder import run_behind
from stabledllm.config.settings import EvalSettings
from stabledllm.data.bundle import choose, encode_chosen, encode_split, limited
from stabledllm.data.digests import content_digest
from stabledllm.data.formats import PROMPTS
from stabledllm.data.images import of_images
from stabledllm.data.prompt_rows import first_unanswered
from stabledllm.data.prompting import prompted
from stabledllm.data.rows import Encoded
from stabledllm.data.sources import load_examples, task_options
from stabledllm.data.splits import answered, has_validation
from stabledllm.errors import UserError
from stabledllm.evaluation.accuracy import has_answers
from stabledllm.evaluation.identity import digest_of
from stabledllm.evaluation.trained_rows import count_trained_on
from stabledllm.tasks.examples import Examples

Say = Callable[[str], None]


@dataclass(frozen=True)
class EvaluatedRows:
    """What an evaluation is made on.

    ``scored``: examples to complete or draw, with the prompts that the model is shown. ``encode``: makes the rows whose
    NLL is measured; None for captions alone, which have no likelihood. ``content`` and ``examples``: digests for the
    identity. ``trained_on``: the number of rows by the run that they were trained in, as far as it is known.
    """

    scored: list[dict]
    encode: Callable[[Any], Encoded] | None
    content: str | dict[str, str]
    examples: str
    trained_on: dict[str, int]


def evaluated_rows(settings: EvalSettings, say: Say) -> EvaluatedRows:
    """The rows of an evaluation with these settings; ``say`` gets what was read, dropped, or seen in training.

    Raises:
        UserError: anything wrong with the data.
    """
    return _held_out(settings, say) if settings.held_out else _given(settings, say)


def _given(settings: EvalSettings, say: Say) -> EvaluatedRows:
    data, options = settings.data, task_options(settings.data)
    spec = data.test or data.train
    kind = {"options": options, "settings": data, "text_fields": data.text_fields, "image": data.image, "note": say}
    loaded = load_examples(spec, split="test", n=settings.rows, seed=data.seed, **kind)
    scored, notes = answered(loaded, spec)
    for note in notes:
        say(note)
    bare = limited(scored, settings.rows)
    trained_on = count_trained_on(settings.model, bare, say)
    examples = list(prompted(bare, data))
    has_likelihood = "codes" in examples[0] if of_images(examples) else _have_answers(examples, examples)

    def encode(tokenizer) -> Encoded:
        return encode_split(examples, tokenizer, data, "test", settings.rows)

    # The digest of the content covers the answers too, which that of the examples never did.
    content = content_digest(examples)
    return EvaluatedRows(examples, encode if has_likelihood else None, content, _parts(examples), trained_on)


def _held_out(settings: EvalSettings, say: Say) -> EvaluatedRows:
    data, most = settings.data, settings.rows if "rows" in settings.model_fields_set else None
    run = run_behind(settings.model)
    try:
        chosen = choose(data, say)
    except UserError as error:
        raise naming_run(error, settings.model, data) from None
    for note in chosen.notes:
        say(note)
    content = {name: chosen.digests[name] for name in ("validation", "test") if name in chosen.digests}
    if run is not None and (others := [n for n in content if n in run.content and content[n] != run.content[n]]):
        say(f"note: the {' and '.join(others)} rows are others now than when {run.name} was trained")
    test = chosen.test[:most]
    if not has_validation(data) and not test:
        whose = f"{run.name}, which was trained on all of its rows" if run else "'held_out', which has none here"
        raise UserError(f"data: expected rows that were held out of {whose}, found none; name some with --data.")

    validated = has_validation(data)
    if data.format == PROMPTS and validated:
        validated = _have_answers(chosen.splits["validation"], test)

    def encode(tokenizer) -> Encoded:
        encoded = encode_chosen(chosen, "validation", tokenizer, data, say)
        return replace(encoded, rows=encoded.rows[:most]) if most else encoded

    return EvaluatedRows(test, encode if validated else None, content, _parts(test), {})


def _have_answers(examples: Examples, scored: list[dict]) -> bool:
    """Whether all rows have answers, whose NLL can be measured.

    Raises:
        UserError: not all have one, and there is nothing to score completions against either.
    """
    without = first_unanswered(examples)
    if without and not has_answers(scored):
        without = first_unanswered([e for e in examples if not has_answers([e])]) or without
        raise UserError(
            f"{without}: expected a row with an answer to evaluate on, or a right answer under 'gold' to score "
            f"completions against, found a prompt alone."
        )
    return not without


def _parts(examples: list[dict]) -> str:
    return digest_of([[each.get(key) for key in ("messages", "input_ids", "text")] for each in examples])

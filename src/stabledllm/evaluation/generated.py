"""Generates for the test rows and scores the result: completions of problems, or images of captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stabledllm.build import build_decoding, build_image_decoding
from stabledllm.config.settings import EvalSettings, TrainSettings
from stabledllm.data.images import image_tokenizer, of_images
from stabledllm.evaluation.accuracy import AccuracyResult, accuracy, has_answers
from stabledllm.evaluation.identity import digest_of, fingerprint
from stabledllm.evaluation.images import save_scored_images, score_images
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.ranks import ALONE, Ranks
from stabledllm.models.loading import LoadedModel
from stabledllm.runtime.files import write_jsonl

COMPLETIONS = "completions.jsonl"
Settings = TrainSettings | EvalSettings


def can_be_scored(examples: list[dict]) -> bool:
    """Whether the examples are captions to draw, or problems with an answer."""
    return of_images(examples) or has_answers(examples)


def journal_name(examples: list[dict]) -> str:
    """Name of the journal that keeps what is generated across a kill."""
    return "pictures" if of_images(examples) else "completions"


def decoded_by(settings: Settings, examples: list[dict]) -> dict:
    """Everything but the model that decides the results: the decoding and the examples."""
    if of_images(examples):
        image = settings.data.image
        return {
            "image_decoding": settings.image_decoding.model_dump(),
            "image_tokenizer": image_tokenizer(image.tokenizer).fingerprint,
            "side": image.side,
            "fit": image.fit,
            "max_text": image.max_text,
            "clip": settings.clip,
            "clip_weights": fingerprint(settings.clip) if settings.clip else None,
            "examples": digest_of([example["caption"] for example in examples]),
        }
    return {
        "decoding": settings.decoding.model_dump(),
        "examples": digest_of([example.get("messages") for example in examples]),
    }


def score_generated(
    loaded: LoadedModel,
    examples: list[dict],
    settings: Settings,
    journal: Journal,
    out: Path | None,
    *,
    ranks: Ranks = ALONE,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, dict], str]:
    """Generate, and return the metrics and one line on them; the first rank writes what was generated into ``out``.

    Problems give ``accuracy`` and ``completions.jsonl``; captions ``accuracy`` (scenes) or ``clip_score``, and
    ``pictures/`` with ``pictures.jsonl`` and ``pictures.png``.
    """
    batch = settings.generate_batch
    if of_images(examples):
        options = build_image_decoding(settings.image_decoding)
        image, clip = settings.data.image, settings.clip
        scores = score_images(loaded, examples, image, options, batch, journal, clip=clip, progress=progress)
        if out is not None and ranks.rank == 0:
            save_scored_images(scores, out)
        return scores.metrics, "; ".join(_metric_line(name, metric) for name, metric in scores.metrics.items())
    result = accuracy(loaded, examples, build_decoding(settings.decoding), batch, progress, journal)
    if out is not None and ranks.rank == 0:
        write_jsonl(out / COMPLETIONS, result.completions)
    return {"accuracy": result.as_dict()}, f"{_accuracy_line(result)}{_speed(result, ranks)}"


def _metric_line(name: str, metric: dict) -> str:
    low, high = metric["ci_low"], metric["ci_high"]
    line = f"{name.replace('_', ' ')} {metric['value']:.3f} (95 % {low:.3f} to {high:.3f}, n={metric['n']}"
    parts = {part: share["value"] for part, share in metric.get("parts", {}).items()}
    line += "".join(f"; {part} {value:.2f}" for part, value in parts.items()) + ")"
    return f"{line}; {metric['note']}" if metric.get("note") else line


def _accuracy_line(result: AccuracyResult) -> str:
    share, (low, high) = result.strict.accuracy, result.strict.interval
    credit = "" if result.strict.credit is None else f"; credit {result.strict.credit}"
    return (
        f"accuracy {share.value:.3f} (95 % {low:.3f} to {high:.3f}, n={share.n}, "
        f"no answer in {result.strict.no_answer}){credit}"
    )


def _speed(result: AccuracyResult, ranks: Ranks) -> str:
    device = " a device" if ranks.count > 1 else ""
    return f"; {result.stats}{device}"

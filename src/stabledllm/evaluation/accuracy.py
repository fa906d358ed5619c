"""Exact-match accuracy of greedy completions, with a binomial interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.errors import UserError
from stabledllm.estimate import Estimate
from stabledllm.models.loading import LoadedModel, evaluating
from stabledllm.tasks.scoring import is_correct, parse_answer, wilson_interval


@dataclass(frozen=True)
class AccuracyResult:
    """Accuracy and what it was computed from."""

    accuracy: Estimate
    interval: tuple[float, float]
    """95 % Wilson interval."""
    no_answer: int
    """Completions without an answer; they count as not correct, and are told apart from wrong ones."""
    completions: list[dict]
    decoding: DecodingOptions
    stats: DecodingStats
    """Model calls, tokens per second: what decoding took."""

    def as_dict(self) -> dict:
        """JSON form, without the completions."""
        low, high = self.interval
        return self.accuracy.as_dict() | {
            "ci_low": low,
            "ci_high": high,
            "no_answer": self.no_answer,
            "decoding": asdict(self.decoding) | {"approximate": not self.decoding.exact},
            "decoding_stats": self.stats.as_dict(),
        }


def complete(
    loaded: LoadedModel,
    conversations: list[list[dict]],
    options: DecodingOptions,
    batch: int,
    progress: Callable[[int], None] = lambda _: None,
    stats: DecodingStats | None = None,
    first: int = 0,
) -> list[str]:
    """Completions of conversations that end with a user turn, through the model's chat template.

    ``first`` is the place of the first conversation among all, for what is drawn at random.
    """
    texts = []
    with evaluating(loaded.model) as model:
        for start in range(0, len(conversations), batch):
            prompts = [loaded.tokenizer.chat(c) for c in conversations[start : start + batch]]
            ids = generate(
                model,
                prompts,
                options,
                mask_id=loaded.mask_id,
                eos_id=loaded.eos_id,
                pad_id=loaded.pad_id,
                first=first + start,
                stats=stats,
            )
            texts += [loaded.tokenizer.decode(i) for i in ids]
            progress(len(prompts))
    return texts


def has_answers(examples: list[dict]) -> bool:
    """Whether every example has a ``#### NUMBER`` to be scored against."""
    return bool(examples) and all("messages" in e and parse_answer(e["messages"][-1]["content"]) for e in examples)


def accuracy(
    loaded: LoadedModel,
    examples: list[dict],
    options: DecodingOptions,
    batch: int = 32,
    progress: Callable[[int], None] = lambda _: None,
    completer: Callable[..., list[str]] = complete,
) -> AccuracyResult:
    """Share of the examples whose completion ends with the right number after ``####``.

    ``completer`` takes the place of :func:`complete`, such as one that continues after a kill.

    Raises:
        UserError: an example without an answer to compare with.
    """
    for example in examples:
        if not has_answers([example]):
            raise UserError(f"{example['origin']}: expected an answer '#### NUMBER' to score against, found none.")
    stats = DecodingStats()
    texts = completer(loaded, [e["messages"][:-1] for e in examples], options, batch, progress, stats)
    golds = [e["messages"][-1]["content"] for e in examples]
    verdicts = [is_correct(t, g) for t, g in zip(texts, golds, strict=True)]
    n, correct = len(examples), sum(v is True for v in verdicts)
    share = correct / n
    return AccuracyResult(
        accuracy=Estimate(value=share, stderr=(share * (1 - share) / n) ** 0.5, n=n, unit="share"),
        interval=wilson_interval(correct, n),
        no_answer=sum(v is None for v in verdicts),
        completions=[
            {"origin": e["origin"], "completion": t, "gold": g, "parsed": parse_answer(t), "correct": v}
            for e, t, g, v in zip(examples, texts, golds, verdicts, strict=True)
        ],
        decoding=options,
        stats=stats,
    )

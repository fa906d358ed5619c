"""The exact-match accuracy of completions, with a binomial interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from stabledllm.decoding import DecodingOptions, DecodingStats, left_to_right
from stabledllm.errors import UserError
from stabledllm.evaluation.completing import complete, complete_resumably
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.validation import mean_over_rows
from stabledllm.models.loading import LoadedModel
from stabledllm.stats.estimate import Estimate
from stabledllm.tasks.registry import task_and_gold
from stabledllm.tasks.scoring import wilson_interval
from stabledllm.tasks.task import Scored, verdicts


@dataclass(frozen=True)
class Share:
    """The share of verdicts that are correct; None (no answer found) counts as not correct and is counted apart too."""

    accuracy: Estimate
    interval: tuple[float, float]
    """95 % Wilson interval."""
    no_answer: int
    """Verdicts that are None."""
    credit: Estimate | None = None
    """The mean of the scores with partial credit; None for tasks that give none."""

    @classmethod
    def of(cls, verdicts: Sequence[bool | None]) -> Share:
        """The share of these verdicts, of which there is at least one."""
        n, correct = len(verdicts), sum(v is True for v in verdicts)
        share = correct / n
        return cls(
            Estimate(value=share, stderr=(share * (1 - share) / n) ** 0.5, n=n, unit="share"),
            wilson_interval(correct, n),
            sum(v is None for v in verdicts),
        )

    @classmethod
    def of_scored(cls, scored: Sequence[Scored]) -> Share:
        """The share of these scores that are correct, with their mean credit where the task gives any."""
        share = cls.of([each.correct for each in scored])
        credits = torch.tensor([each.credit for each in scored if each.credit is not None], dtype=torch.float64)
        return replace(share, credit=mean_over_rows(credits, unit="share")) if len(credits) else share

    def as_dict(self) -> dict:
        """The JSON form."""
        low, high = self.interval
        own = self.accuracy.as_dict() | {"ci_low": low, "ci_high": high, "no_answer": self.no_answer}
        return own | ({} if self.credit is None else {"credit": self.credit.as_dict()})


@dataclass(frozen=True)
class AccuracyResult:
    """The accuracy of completions, with the completions it was computed from."""

    strict: Share
    """By the strict extraction of the answer."""
    flexible: Share
    """By the flexible extraction."""
    completions: list[dict]
    decoding: DecodingOptions
    exact: bool
    """Whether the decoding is exact for this model."""
    stats: DecodingStats
    """The cost of decoding: model calls, tokens, seconds."""

    def as_dict(self) -> dict:
        """The JSON form, without the completions."""
        return self.strict.as_dict() | {
            "flexible": self.flexible.as_dict(),
            "decoding": asdict(self.decoding) | {"approximate": not self.exact},
            "decoding_stats": self.stats.as_dict(),
        }


def has_answers(examples: list[dict]) -> bool:
    """Whether there are examples and each has an answer of its task to be scored against."""
    return bool(examples) and all(task_and_gold(e) for e in examples)


def accuracy(
    loaded: LoadedModel,
    examples: list[dict],
    options: DecodingOptions,
    batch: int = 32,
    progress: Callable[[int], None] = lambda _: None,
    journal: Journal | None = None,
) -> AccuracyResult:
    """Share of the examples whose completion gives the right answer, by the scorer of each example's task.

    With a ``journal`` a killed evaluation continues.

    Raises:
        UserError: an example without an answer to compare with.
    """
    for example in examples:
        if not has_answers([example]):
            raise UserError(
                f"{example['origin']}: expected an answer to score against, such as '#### NUMBER', found none."
            )
    if loaded.autoregressive:
        options = left_to_right(options)
    stats = DecodingStats()
    conversations, tools = [e["messages"][:-1] for e in examples], [e.get("tools", ()) for e in examples]
    if journal is None:
        texts = complete(loaded, conversations, options, batch, progress, stats, tools=tools)
    else:
        texts = complete_resumably(loaded, conversations, options, batch, journal, progress, stats, tools=tools)
    golds = [task_and_gold(e) for e in examples]
    strict, flexible = (
        [task.score(t, gold, flexible=is_flexible) for t, (task, gold) in zip(texts, golds, strict=True)]
        for is_flexible in (False, True)
    )
    return AccuracyResult(
        strict=Share.of_scored(strict),
        flexible=Share.of_scored(flexible),
        completions=[
            {"origin": e["origin"], "completion": t, "gold": gold} | verdicts(s, f)
            for e, t, (_, gold), s, f in zip(examples, texts, golds, strict, flexible, strict=True)
        ],
        decoding=options,
        exact=options.exact_for(getattr(loaded.model.config, "block_size", None)),
        stats=stats,
    )

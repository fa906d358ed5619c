"""Responses that the model draws to learn from; each is on disk as soon as it is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.data.token_rows import TokenRow
from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.evaluation.completing import decoded_into
from stabledllm.evaluation.journal import Journal
from stabledllm.models.evaluating import evaluating
from stabledllm.models.loading import LoadedModel


@dataclass(frozen=True)
class Response:
    """A response as it was decoded: its tokens before the end token, and whether one came within the length."""

    ids: list[int]
    ended: bool

    def whole(self, end: int) -> list[int]:
        """The tokens, with the end token that the model decided."""
        return [*self.ids, end] if self.ended else list(self.ids)

    def row(self, prompt: RolloutPrompt, end: int, fill: int = 1) -> TokenRow:
        """The row of prompt and response, with the end token that the model decided.

        Args:
            fill: end tokens follow up to a multiple of it, where the model saw masks while it decoded. Without them
                the masks would say where the response ends.
        """
        tail = [end] * (1 + -(len(self.ids) + 1) % fill) if self.ended else []
        return TokenRow([*prompt.ids, *self.ids, *tail], len(prompt.ids), origin=prompt.origin)


@dataclass(frozen=True)
class Rollouts:
    """How responses are drawn.

    Args:
        loaded: whose tokenizer and special tokens count. options: of decoding. group: responses of each prompt.
        at_once: responses decoded together, which changes none of them. fill: end tokens behind a response, see
            :meth:`Response.row`.
    """

    loaded: LoadedModel
    options: DecodingOptions
    group: int
    at_once: int = 32
    fill: int = 1

    @property
    def identity(self) -> dict:
        """What decides the responses besides model and prompts."""
        return {"rollout": asdict(self.options), "group": self.group}

    def draw(
        self,
        model,
        prompts: Sequence[RolloutPrompt],
        first: int,
        journal: Journal,
        progress: Callable[[int], None] = lambda _: None,
    ) -> tuple[list[Response], DecodingStats]:
        """The responses of all prompts, those of one next to each other, and what decoding them took on all ranks.

        Those that are in the journal are not decoded again. What is drawn at random depends on a response's number.

        Args:
            first: number of the first response among all of the run.
        """

        def decode(run: range, own: DecodingStats) -> list[dict]:
            ids = generate(
                model, [prompts[item // self.group].ids for item in run], self.options, mask_id=self.loaded.mask_id,
                eos_id=self.loaded.eos_id, pad_id=self.loaded.pad_id, first=first + run.start, stats=own,
                ends=self.loaded.ends,
            )  # fmt: skip
            return [{"ids": each} for each in ids]

        stats = DecodingStats()
        with evaluating(model):
            found = decoded_into(journal, len(prompts) * self.group, self.at_once, decode, progress, stats)
        return [Response(each["ids"], len(each["ids"]) < self.options.length) for each in found], stats

    def rows(self, prompts: Sequence[RolloutPrompt], responses: Sequence[Response]) -> list[TokenRow]:
        """The row of each prompt and its response."""
        end = self.loaded.eos_id
        return [each.row(prompt, end, self.fill) for prompt, each in zip(prompts, responses, strict=True)]

    def text(self, response: Response) -> str:
        """The response in words."""
        return self.loaded.tokenizer.decode(response.ids)

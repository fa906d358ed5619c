"""The block before a run's first step: what is trained, on what, how and where, with a row for the eye to check."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from transformers import TrainingArguments

from stabledllm.config.parts_in_words import in_words, objective_in_words, policy_in_words, preferences_in_words
from stabledllm.config.settings import TrainSettings
from stabledllm.data.bundle import DataBundle
from stabledllm.data.splits import own_splits
from stabledllm.data.token_rows import TokenRow
from stabledllm.models.families.block_loading import assumed_in_words
from stabledllm.models.families.registry import family_of
from stabledllm.models.loading import LoadedModel
from stabledllm.noise.methods import Method
from stabledllm.plain_text import plain_text
from stabledllm.runtime.device import emulates
from stabledllm.runtime.provenance import device_name
from stabledllm.training.block_schedule import BlockSizes
from stabledllm.training.first_row import RESPONSE, STYLES, parts_of

_DROPPED = re.compile(r"(^|[:;] )dropped ")


@dataclass(frozen=True)
class StartBlock:
    """Everything that the block tells of a run.

    Args:
        first: the first training row. rows: how many there are; None where they are read as they come.
        done: steps that a resumed run has behind it.
    """

    settings: TrainSettings
    arguments: TrainingArguments
    method: Method
    loaded: LoadedModel
    data: DataBundle
    first: TokenRow
    rows: int | None
    done: int = 0

    def __rich__(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column(overflow="fold")
        for label, value in self.lines():
            grid.add_row(label, value)
        return Group("", grid, "")

    def lines(self) -> Iterator[tuple[str, Text]]:
        """Each line's label and text, in order."""
        yield "model", Text(self.model())
        if assumed := assumed_in_words(self.loaded.model.config):
            yield "", Text(assumed)
        yield "rows", Text(self.counts())
        for note in self.notes():
            yield "", Text(plain_text(note))
        if not self.settings.untuned and len(self.data.validation):
            yield "", Text("the untuned model is not evaluated (untuned=false): no NLL stands beside the final one")
        yield from self.first_row()
        yield "method", Text(self.method_in_words())
        if not self.method.autoregressive:
            yield "objective", Text(self.objective())
        yield "steps", Text(self.steps())
        yield "device", Text(self.device())
        yield "folder", Text(plain_text(Path(self.settings.out)))

    def model(self) -> str:
        """The model, its family and how many of its parameters are trained."""
        model = self.loaded.model
        total, trained = (_count(p for p in model.parameters() if p.requires_grad or not only) for only in (0, 1))
        share = "all trained" if trained == total else f"{trained:,} trained ({trained / total:.2%})"
        return f"{plain_text(self.loaded.name)}, family {family_of(model)}: {total:,} parameters, {share}"

    def counts(self) -> str:
        """How many rows are trained on, held out, tested and dropped."""
        data = self.data
        counts = [f"{self.rows:,} to train on" if self.rows is not None else "read as they come"]
        if len(data.validation):
            counts.append(f"{len(data.validation):,} held out ({self.held_out()})")
        else:
            counts.append("none held out")
        if data.test:
            counts.append(f"{len(data.test):,} to test")
        is_known = self.rows is not None and not any(map(_DROPPED.search, data.notes))
        dropped = "; none dropped" if is_known else ""
        return ", ".join(counts) + dropped

    def held_out(self) -> str:
        """Where the held-out rows come from."""
        given = self.settings.data
        if given.validation:
            return plain_text(f"data.validation={given.validation}")
        if "validation" in own_splits(given.train):
            return "the data's own split"
        return f"data.validation_share={given.validation_share:g}"

    def notes(self) -> list[str]:
        """The notes on the data that say more than the number of rows: what was dropped and why, how it was read."""
        told = (f"none longer than {self._longest}", "trains on every row)")  # what the line on the rows says too
        return [note for note in self.data.notes if not note.endswith(told)]

    @property
    def _longest(self) -> str:
        return f"max_len={self.settings.data.max_len}"

    def first_row(self) -> Iterator[tuple[str, Text]]:
        """The first training row, its parts marked by labels, and in a terminal by colours as well."""
        row = self.first
        if self.settings.objective.kind == "grpo":
            row = replace(row, input_ids=list(row.input_ids[: row.prompt_length]))
            length = f"{row.prompt_length:,} tokens, which the model answers"
        else:
            length = f"{len(row.input_ids):,} tokens, of which {row.response_length:,} are trained"
        yield "first row", Text(f"{plain_text(row.origin)}, {length}" if row.origin else length)
        for part in parts_of(row, self.loaded.tokenizer):
            yield f"  {part.kind}", part.text
        if other := next(iter(self.data.rejected.get("train", [])), None):
            yield "  rejected", next(p.text for p in parts_of(other, self.loaded.tokenizer) if p.kind == RESPONSE)
        if not row.prompt_length:
            yield "", Text(f"no prompt: the whole row is {RESPONSE}", style=STYLES[RESPONSE])

    def method_in_words(self) -> str:
        """The method's name and what it does, with blocks if there are any."""
        method = self.method
        if self.settings.objective.kind == "grpo" and self.settings.grpo.estimator != "method":
            return f"{self.settings.grpo.estimator}: the published estimator's own noise"
        text = f"{method.name}: {in_words([named.part.name for named in method.parts], unbiased=method.unbiased)}"
        if self.settings.objective.kind != "masked":  # each response is an estimate of its own
            text = text.replace("over the rows of a step", "over the forwards of a response")
        if self.settings.block_size:
            shared = "all of a row with one t" if self.settings.block_t == "row" else "each with its own t"
            blocks = f"blocks of {self.settings.block_size} tokens"
            if self.settings.block_schedule:
                blocks = f"{BlockSizes.of(self.settings).in_words()}, in which it is evaluated"
            text += f" In {blocks}; {shared}." if self.settings.block_schedule else f" In {blocks}, {shared}."
        return text

    def objective(self) -> str:
        """What is minimised, and over what its mean is taken."""
        if self.settings.objective.kind == "dpo":
            return preferences_in_words(self.settings.dpo, adapters=self.settings.lora is not None)
        if self.settings.objective.kind == "grpo":
            return policy_in_words(self.settings.grpo, adapters=self.settings.lora is not None)
        return objective_in_words(self.settings.objective)

    def steps(self) -> str:
        """How many steps of how many rows, and what part of the data they are."""
        settings, arguments = self.settings, self.arguments
        steps = steps_of(settings, self.rows)
        micro, parts, ranks = (
            arguments.per_device_train_batch_size,
            arguments.gradient_accumulation_steps,
            arguments.world_size,
        )
        split = f"{micro} at once" + (f" x {parts} accumulated" if parts > 1 else "")
        split += f" x {ranks} devices" if ranks > 1 else ""
        each, inner = "rows", 1
        if settings.objective.kind == "grpo":
            each, inner = f"prompts with {settings.grpo.group} responses", settings.grpo.inner
        epochs = f", {_epochs(steps / steps_per_epoch(settings, self.rows))}" if self.rows is not None else ""
        of = f"{settings.batch:,} {each} each" + (f" ({split})" if parts * ranks > 1 else "")
        of += f", the same in {inner} steps in turn" if inner > 1 else ""
        behind = f"; {self.done:,} are done" if self.done else ""
        return f"{steps:,} of {of}{epochs}{behind}"

    def device(self) -> str:
        """The device or devices, the precision, and the threads of this process."""
        arguments, ranks = self.arguments, self.arguments.world_size
        name = device_name(arguments.device).partition(" (")[0] if arguments.device.type == "cpu" else None
        device = name or device_name(arguments.device)
        threads = torch.get_num_threads()
        return (
            f"{f'{ranks} x ' if ranks > 1 else ''}{device}, {threads} thread{'s' if threads > 1 else ''}, "
            f"{self.precision()}"
        )

    def precision(self) -> str:
        """The precision of the weights, and that of the computation where it is another."""
        weights = f"weights in {self.settings.quantised or self.settings.dtype}"
        mixed = "bfloat16" if self.arguments.bf16 else "float16" if self.arguments.fp16 else None
        told = f"{weights}, computed in {mixed}" if mixed and mixed != self.settings.dtype else weights
        name = mixed or self.settings.dtype
        slow = f"; this CPU has no instructions for {name}: several times slower than float32"
        return told + slow * emulates(getattr(torch, name))


def steps_of(settings: TrainSettings, rows: int | None) -> int:
    """The optimizer steps of a run on that many rows; None is possible where ``steps`` is given."""
    return settings.steps or math.ceil(settings.epochs * steps_per_epoch(settings, rows))


def steps_per_epoch(settings: TrainSettings, rows: int) -> int:
    """The optimizer steps of one pass over that many rows."""
    if settings.objective.kind == "grpo":  # rounds are full, and have several steps
        return rows // settings.batch * settings.grpo.inner
    return math.ceil(rows / settings.batch)


def _epochs(epochs: float) -> str:
    return f"{epochs:,.0f} epochs" if epochs >= 100 else f"{epochs:.3g} epoch{'' if epochs == 1 else 's'}"


def _count(parameters: Iterable) -> int:
    """The number of weights; one that is held in 4 bits counts by the shape that it stands for."""
    return sum(math.prod(getattr(getattr(p, "quant_state", None), "shape", None) or p.shape) for p in parameters)

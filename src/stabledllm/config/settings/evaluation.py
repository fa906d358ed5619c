"""How completions are decoded, how images are drawn, and what ``stabledllm eval`` measures."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stabledllm.config.decoding_fit import calls_of, fitting_block, fitting_steps
from stabledllm.config.settings.data import DataSettings
from stabledllm.config.settings.likelihood import LikelihoodSettings
from stabledllm.config.settings.method import ObjectiveSettings
from stabledllm.config.settings.model import ModelSettings
from stabledllm.config.settings.values import MOST, PathText, Seed
from stabledllm.config.typed import Strict


class DecodingSettings(Strict):
    """How completions are decoded; part of every result. The defaults are LLaDA's low-confidence decoding, greedy."""

    usual_steps: ClassVar[int] = 128
    usual_block: ClassVar[int] = 32

    length: int = Field(128, ge=1, le=MOST)
    """New tokens."""
    steps: int | None = Field(None, ge=1, le=MOST)
    """Model calls in all; unless given 128, or the nearest number that the blocks share evenly."""
    block: int | None = Field(None, ge=1, le=MOST)
    """Tokens of a semi-autoregressive block, ``length`` for none, as Dream decodes; unless given ``block_size``, or 32,
    or the divisor of ``length`` that is nearest to it."""
    order: Literal["confidence", "margin", "entropy", "random", "sequential"] = "confidence"
    """Which masked positions are decided first; ``sequential``: those on the left."""
    schedule: Literal["even", "dream", "origin"] = "even"
    """How many tokens a step decides: ``even``: the same number (LLaDA); ``dream``: Dream's share of those left;
    ``origin``: each with that share as its probability."""
    temperature: float = Field(0.0, ge=0)
    """Temperature at which tokens are drawn; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Tokens are chosen among the most probable ones that together have this probability."""
    guidance: float = Field(0.0, ge=0)
    """Strength of classifier-free guidance, which doubles the forwards; 0 for none."""
    threshold: float | None = Field(None, gt=0, le=1)
    """Decide at once every token whose probability is above this. Approximate: fewer model calls, other completions."""
    entropy_bound: float | None = Field(None, gt=0)
    """Decide at once the tokens of least entropy, as long as their entropies sum to less than this, in nats; with order
    ``entropy``. Approximate."""
    sub_block: int | None = Field(None, ge=1, le=MOST)
    """Tokens of a sub-block, decided before those on its right are begun; for models trained in blocks. None: the block
    is not divided. Fast-dLLM v2 has 8."""
    first_token: Literal["ahead", "in_turn"] | None = None
    """How a block's first token is decided under shifted logits in blocks: ``ahead``: the most probable one after the
    block before it, before the block's others; ``in_turn``: like the others. None: ``ahead``, as Fast-dLLM v2 does."""
    cache: Literal["none", "prefix", "dual"] = "none"
    """Keep keys and values while a block is decoded: ``prefix``: of all before it; ``dual``: of all around it.
    Approximate, except ``prefix`` for models trained in blocks."""
    logits_eos_inf: bool = False
    """Never choose the tokenizer's end-of-sequence token, as LLaDA may for some tasks."""
    confidence_eos_eot_inf: bool = False
    """Decide the positions whose token ends the sequence or the turn last, as LLaDA may for some tasks."""
    seed: Seed = 0
    """Seed of what is drawn at random while decoding."""

    @model_validator(mode="after")
    def _fitted(self) -> DecodingSettings:
        given = {name for name in ("steps", "block") if getattr(self, name) is not None}
        if "block" not in given:
            self.block = fitting_block(self.length, self.usual_block)
        if "steps" not in given:
            part = self.sub_block or self.block
            whole = self.length % part == 0  # else it is refused where the options are built
            self.steps = fitting_steps(self.length, part, self.usual_steps) if whole else self.usual_steps
        self.model_fields_set.difference_update({"steps", "block"} - given)
        return self

    @property
    def calls(self) -> int:
        """The model calls that a completion takes at most."""
        return calls_of(self.length, self.steps, self.schedule)

    def in_blocks_of(self, size: int | None) -> DecodingSettings:
        """These settings for a model trained in blocks of ``size`` (None: in none); a given ``block`` stays."""
        if not size or "block" in self.model_fields_set:
            return self
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(given | {"block": size})


class ShortDecodingSettings(DecodingSettings):
    """The same with the defaults of ``generate`` and ``eval``: 64 tokens in blocks of 8."""

    usual_steps: ClassVar[int] = 64
    usual_block: ClassVar[int] = 8

    length: int = Field(64, ge=1, le=MOST)
    """New tokens."""
    steps: int | None = Field(None, ge=1, le=MOST)
    """Model calls in all; unless given 64, or the nearest number that the blocks share evenly."""
    block: int | None = Field(None, ge=1, le=MOST)
    """Tokens of a semi-autoregressive block; unless given 8, or the divisor of ``length`` that is nearest to it."""


class ImageDecodingSettings(Strict):
    """How images are drawn: MaskGIT's decoding as MMaDA does it; part of every result."""

    steps: int = Field(18, ge=1, le=MOST)
    """Model calls."""
    guidance: float = Field(3.5, ge=0)
    """Strength of classifier-free guidance, which doubles the forwards; 0 for none."""
    temperature: float = Field(1.0, ge=0)
    """Scale of the noise added to the confidences by which tokens are kept; it falls with the steps."""
    seed: Seed = 0
    """Seed of the drawing; the same for every model and training seed, so that their images are paired."""


class EvalSettings(ModelSettings):
    """Settings of ``stabledllm eval``: one model on test rows, beside the model it was tuned from."""

    base: PathText | None = None
    """The base model of an adapter, where it has moved since the adapter was saved."""
    beside: PathText = "auto"
    """The untuned model: its name, or the folder of its evaluation; ``auto``: an adapter's base, or the model that a
    run started from; ``none``."""
    data: DataSettings = DataSettings()
    """The rows come from ``data.test``, or without it from ``data.train``: from the test split, where there is one."""
    held_out: bool = False
    """The rows that training with these ``data`` holds out instead: the NLL of its validation rows, and completions of
    its test rows. So it is for the folder of a run, unless other data are given."""
    rows: int = Field(128, ge=1, le=MOST)
    """At most this many problems; with ``held_out`` as many as ``data`` says, unless this is given."""
    draws: int = Field(4, ge=1, le=MOST)
    """Views of each row in the NLL."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """Where it is not the bound, the mean loss under it is measured beside the NLL."""
    likelihood: LikelihoodSettings = LikelihoodSettings()
    decoding: ShortDecodingSettings = ShortDecodingSettings()
    image_decoding: ImageDecodingSettings = ImageDecodingSettings()
    clip: PathText | None = None
    """Scores drawn images: a CLIP model's folder or name on the hub."""
    generate_batch: int = Field(32, ge=1, le=MOST)
    """Prompts decoded together; no result depends on it."""
    out: PathText = "runs/eval"
    """Folder of ``eval.json`` and what was generated."""

"""The data of a run: where rows come from, and how text and images become rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stabledllm.config.settings.values import MOST, PathText, Seed
from stabledllm.config.typed import Strict

FormatName = Literal[
    "messages", "sharegpt", "ids", "alpaca", "prompt-response", "prompt-completion", "question-answer",
    "query-response", "input-output", "text", "preference", "prompts",
]  # fmt: skip
"""The names of :data:`stabledllm.data.formats.FORMATS`; a test holds the two together."""


class ImageSettings(Strict):
    """How captioned images become rows; read only where the data are images.

    ``tokenizer``, ``side`` and ``max_text`` default to those the model was trained with, else to MMaDA's.
    """

    tokenizer: PathText | None = None
    """Turns images into codes and back: ``tiny-vq`` (shipped), a local folder, or a name on the hub
    (``showlab/magvitv2``)."""
    side: int | None = Field(None, ge=1, le=MOST)
    """Side of the images in pixels; the tokenizer's own where the model says none."""
    fit: Literal["crop", "refuse"] = "crop"
    """Images of another size: ``crop`` resizes the shorter side to ``side`` and keeps the middle, as MMaDA does
    (smaller images are bad); ``refuse`` takes each of them for bad."""
    on_bad: Literal["refuse", "drop"] = "refuse"
    """A bad image (corrupt, without a caption, of a wrong size) ends the work, or is dropped and counted."""
    max_text: int | None = Field(None, ge=3, le=MOST)
    """Positions of the caption's part of a row, padding and three special tokens included."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Probability that a row is trained on without its caption, for guidance; drawn anew in every step."""
    cache: PathText = "runs/codes"
    """Folder of the codes made so far."""


class DataSettings(Strict):
    """Where rows come from and how they are encoded."""

    train: PathText = "synthetic:hard"
    """``synthetic``, ``synthetic:LEVEL``, ``reasoning-gym:SET,KEY=VALUE``, ``TASK:PATH`` or ``TASK`` (its data set on
    the hub), see ``docs/tasks.md``.
    Your own: a file or folder, ``FORMAT:PATH`` or ``hub:OWNER/NAME``, see ``docs/data.md``; ``text:PATH`` to pre-train
    on. Images: ``scenes``, ``text-to-image-2m[:PATH]``, ``images:PATH``, ``codes:FOLDER``, see ``docs/images.md``."""
    format: FormatName | None = None
    """The format of every row of your own data (``sharegpt``, ``alpaca``, ...); without it each row's keys tell it."""
    columns: dict[str, str] | None = None
    """For keys of a format, your own names of them: ``{prompt: question, completion: solution}``."""
    split: str | None = None
    """For ``hub:OWNER/NAME``: the hub's name of the split to train on; ``train`` without it. Elsewhere:
    ``data.validation=hub:OWNER/NAME:SPLIT``."""
    subset: str | None = None
    """For ``hub:OWNER/NAME``: the hub's name of the subset (configuration), where there are several."""
    validation: PathText | None = None
    """Rows of the evaluation loss; without it, a share of ``train`` is held out by content."""
    validation_share: float = Field(0.1, ge=0, lt=1)
    """Share of ``train`` held out where ``validation`` is not given and ``train`` has no such split; 0 trains on every
    row, without an evaluation loss."""
    test: PathText | None = None
    """Rows whose completions are scored; without it the test split of ``train``, where it has one."""
    train_rows: int | None = Field(None, ge=1)
    """At most this many training rows (the synthetic task makes 4,000 by default, reasoning-gym 500)."""
    validation_rows: int | None = Field(256, ge=2)
    """At most this many rows in the evaluation loss."""
    test_rows: int | None = Field(128, ge=0)
    """At most this many test problems; 0 for none, and training rows are then not compared with them."""
    max_len: int = Field(1024, ge=2, le=MOST)
    """Longest row in tokens; longer rows are counted and dropped, or refused: never cut."""
    over_length: Literal["drop", "refuse"] = "drop"
    """Rows longer than ``max_len`` are dropped and counted, or refused."""
    delimiters: list[str] | None = None
    """Answer delimiters for ISAD, matched on the tokenised response; without them those of ``train``'s task."""
    syntax: Literal["html", "markdown", "code"] | None = "code"
    """Which prompt tokens are syntax for SyRM."""
    pad_response_to: int = Field(1, ge=1, le=MOST)
    """Fill responses with supervised end tokens to a multiple of this; 1 supervises one end token."""
    text_fields: list[str] = Field(["text"], min_length=1)
    """For ``text:PATH.jsonl``: the keys of a line that make its document, in this order."""
    short_share: float = Field(0.01, ge=0, le=1)
    """For ``text:PATH``: share of the training rows that get a random length, as in LLaDA's pre-training."""
    every_turn: bool = False
    """One row per assistant turn of a conversation instead of the last turn only; turns with flags need none of it."""
    system_prompt: str | None = None
    """Stands before every conversation, in training and evaluation."""
    few_shot: int = Field(0, ge=0, le=MOST)
    """Worked examples from the training split before each question, in training and evaluation; never that question."""
    annotations: Literal["keep", "remove"] = "keep"
    """Whether responses keep GSM8K's calculator annotations such as ``<<48/2=24>>``."""
    table: Literal["markdown", "html"] = "markdown"
    """How HiTab's tables are written."""
    seed: Seed = 0
    """Seed of rows that are made, the held-out share and the choice of worked examples; not of the training order."""
    cache: PathText | None = None
    """Folder of the tokenised rows, see ``docs/tokenised_rows.md``; without it ``STABLEDLLM_CACHE`` or the user's cache
    folder, and only data of 32 MiB or more are stored there. Data that are made, and images, never are."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Processes that tokenise rows: for the cache, without it one per processor, at most 8; under ``streaming``,
    without it none but the command's own."""
    streaming: bool = False
    """Read and tokenise training rows as they come, again in every pass, and store none: for pre-training on files
    larger than memory and disk. Wants ``steps`` and ``validation``, see ``docs/data.md``."""
    shuffle_buffer: int = Field(10_000, ge=1, le=MOST)
    """Under ``streaming``: rows that wait in memory and leave it in random order; 1 takes all rows as they are stored,
    file after file."""
    image: ImageSettings = ImageSettings()

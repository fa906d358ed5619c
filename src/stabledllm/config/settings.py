"""Every setting of a recipe, with its default and its meaning. Builders turn them into plain arguments."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainSerializer, field_validator

from stabledllm.config.trainer_keys import TrainerSettings
from stabledllm.config.twice import refuse_equal_methods, refuse_equal_seeds
from stabledllm.config.typed import Strict, as_name

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every library that draws accepts."""
Name = Annotated[str, Field(min_length=1), AfterValidator(as_name)]
"""Of a folder, a model, a method: text, but never none."""


def at_home(path: str) -> str:
    """A path, or KIND:PATH, with the user's home folder in the place of a leading ``~``."""
    kind, colon, where = path.partition(":")
    if where.startswith("~"):
        return kind + colon + os.path.expanduser(where)
    return os.path.expanduser(path)


PathText = Annotated[Name, AfterValidator(at_home)]
"""Text that is, or may be, the name of a file or folder."""
_MOST = 1_000_000
"""Of rows, steps, draws and the like where more could only be a slip of the pen."""
GivenTrainerSettings = Annotated[
    TrainerSettings,
    AfterValidator(lambda checked: checked.model_dump(exclude_unset=True)),
    PlainSerializer(lambda given: given),
]
"""Checked as :class:`TrainerSettings`, kept as a dictionary of what was given."""


class ImageSettings(Strict):
    """How captioned pictures become rows; acts where the data are pictures.

    ``tokenizer``, ``side`` and ``max_text`` are the model's unless given: what it was trained with, or MMaDA's.
    """

    tokenizer: PathText | None = None
    """Turns pictures into codes and back: ``tiny-vq`` (shipped), a local folder, or a name on the hub
    (``showlab/magvitv2``)."""
    side: int | None = Field(None, ge=1, le=_MOST)
    """Side of the pictures in pixels; the tokenizer's own where the model says none."""
    fit: Literal["crop", "refuse"] = "crop"
    """Pictures of another size: shorter side resized to ``side`` and the middle kept, as MMaDA does (smaller ones are
    bad pictures), or each of them bad."""
    on_bad: Literal["refuse", "drop"] = "refuse"
    """A bad picture (corrupt, without a caption, of a wrong size) ends the work, or is dropped and counted."""
    max_text: int | None = Field(None, ge=3, le=_MOST)
    """Positions of the caption's part of a row, padding and three special tokens included."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Probability that a row is trained on without its caption, for guidance; drawn anew in every step."""
    cache: PathText = "runs/codes"
    """Folder of the codes made so far."""


class DataSettings(Strict):
    """Where rows come from and how they are encoded."""

    train: PathText = "synthetic:hard"
    """``synthetic``, ``synthetic:LEVEL``, ``TASK:PATH``, ``TASK`` (its data set on the hub) or ``jsonl:PATH``; see
    ``docs/tasks.md`` for the tasks. ``text:PATH`` to pre-train on. Pictures: ``scenes``, ``text-to-image-2m[:PATH]``,
    ``images:PATH``, ``codes:FOLDER``, see ``docs/images.md``."""
    validation: PathText | None = None
    """Rows of the evaluation loss; without it, a share of ``train`` is held out by content."""
    validation_share: float = Field(0.1, gt=0, lt=1)
    """Share of ``train`` held out where ``validation`` is not given and the task has no splits."""
    test: PathText | None = None
    """Rows whose completions are scored; without it the test split of ``train``, where it has one."""
    train_rows: int | None = Field(None, ge=1)
    """At most this many training rows (the synthetic task makes 4,000 by default)."""
    validation_rows: int | None = Field(256, ge=2)
    """At most this many rows in the evaluation loss."""
    test_rows: int | None = Field(128, ge=1)
    """At most this many test problems."""
    max_len: int = Field(1024, ge=2, le=_MOST)
    """Longest row in tokens; longer rows are counted and dropped, or refused: never cut."""
    over_length: Literal["drop", "refuse"] = "drop"
    delimiters: list[str] | None = None
    """Answer delimiters for ISAD, matched on the tokenised response; without them those of ``train``'s task."""
    syntax: Literal["html", "markdown", "code"] | None = "code"
    """Which prompt tokens are syntax for SyRM."""
    pad_response_to: int = Field(1, ge=1, le=_MOST)
    """Fill responses with supervised end tokens to a multiple of this; 1 supervises one end token."""
    text_fields: list[str] = Field(["text"], min_length=1)
    """Of ``text:PATH.jsonl``: the keys of a line that make its document, in this order."""
    short_share: float = Field(0.01, ge=0, le=1)
    """Of ``text:PATH``: share of the training rows that are of a random length, as in LLaDA's pre-training."""
    every_turn: bool = False
    """One row per assistant turn of ``messages`` instead of the last turn only."""
    system_prompt: str | None = None
    """Stands before every conversation, in training and evaluation."""
    few_shot: int = Field(0, ge=0, le=_MOST)
    """Worked examples from the training split before every question, in training and evaluation; never itself."""
    annotations: Literal["keep", "remove"] = "keep"
    """GSM8K's calculator annotations ``<<48/2=24>>`` in the responses."""
    table: Literal["markdown", "html"] = "markdown"
    """How HiTab's tables are written."""
    seed: Seed = 0
    """Seed of the synthetic task, the held-out share and the choice of worked examples; not of the training order."""
    image: ImageSettings = ImageSettings()


class MethodSettings(Strict):
    """Settings of the parts of a method; each acts only where its part is named."""

    strata: int | None = Field(None, ge=1, le=_MOST)
    clip_low: float = 0.3
    clip_high: float = 0.8
    isad_delta: float = 0.2
    mirror_below: float = 1.0
    ema_bins: int = Field(10, ge=2, le=_MOST)


class ObjectiveSettings(Strict):
    """What is minimised."""

    weighting: Literal["elbo", "unweighted", "power", "cosine"] = "elbo"
    """Masked tokens weigh p_mask^(a - 1): a = 0 for ``elbo``, 1 for ``unweighted``, ``power`` for ``power``.
    ``cosine``: MMaDA's for images, the mean over round(P cos(pi u / 2)) masked tokens."""
    power: float | None = Field(None, ge=0, allow_inf_nan=False)
    """a >= 0 of weighting ``power``; needed there and nowhere else."""
    normalization: Literal["row", "token"] = "row"
    eps: float = Field(1e-3, ge=0, lt=1)


class PPOTSSettings(Strict):
    """The probe and the fit of p(t).

    The paper's probe is a grid of 15 rows x 70 rates x 15 masks, 15,750 forwards. Many rows with few masks find p* at
    least as exactly with a fifth of them (``benchmarks/probe_error.py``).
    """

    design: Literal["grid", "stratified"] = "stratified"
    """``stratified``: each row at rates of its own, one per cell of t; ``grid``: all rows at the cells' midpoints."""
    rows: int = Field(112, ge=2, le=_MOST)
    rates: int = Field(8, ge=4, le=_MOST)
    """Equal cells of t; the lowest is split further (into 7 of them for 8, so that there are 14 cells)."""
    masks: int = Field(2, ge=2, le=_MOST)
    starts: int = Field(20, ge=1, le=_MOST)
    family: Literal["epr", "tabulated"] = "epr"
    uniform_share: float = Field(0.05, ge=0, le=1)
    """Defensive mixture: bounds every weight by 1 / uniform_share."""
    check_proxy: bool = False
    """For ``ppots-head``: measure the whole gradient as well, and record how well the output layer stands for it."""


class AdaptiveSettings(Strict):
    """P-POTS that follows the training losses (methods with ``adaptive``)."""

    every: int = Field(25, ge=1, le=_MOST)
    """Optimizer steps between refits of p(t)."""
    half_life: float = Field(100.0, gt=0)
    """Optimizer steps after which a loss counts half."""
    rates: int = Field(12, ge=2, le=_MOST)
    """Equal cells of t whose second moments are kept; the lowest is split further."""
    uniform_share: float = Field(0.05, ge=0, le=1)
    """Defensive mixture: bounds every weight by 1 / uniform_share."""


class DecodingSettings(Strict):
    """LLaDA's low-confidence decoding, greedy, unless told otherwise; part of every result."""

    length: int = Field(128, ge=1, le=_MOST)
    """New tokens."""
    steps: int = Field(128, ge=1, le=_MOST)
    """Model calls in all."""
    block: int = Field(32, ge=1, le=_MOST)
    """Tokens of a semi-autoregressive block; ``length`` for none, as Dream decodes."""
    order: Literal["confidence", "margin", "entropy", "random"] = "confidence"
    """Which masked positions are decided first."""
    schedule: Literal["even", "dream", "origin"] = "even"
    """How many each step decides: as many (LLaDA), Dream's share of those left, or each with that probability."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Tokens are chosen among the most probable that hold this share."""
    guidance: float = Field(0.0, ge=0)
    """Classifier-free guidance; doubles the forward rows."""
    threshold: float | None = Field(None, gt=0, le=1)
    """Decide every token surer than this at once. Approximate: fewer model calls, other completions."""
    cache: Literal["none", "prefix", "dual"] = "none"
    """Keep keys and values within a block: of all before it, or of all around it. Approximate, but ``prefix`` for
    models trained in blocks."""
    seed: Seed = 0
    """Of what is drawn at random while decoding."""


class ImageDecodingSettings(Strict):
    """How pictures are drawn: MaskGIT's decoding as MMaDA does it; part of every result."""

    steps: int = Field(18, ge=1, le=_MOST)
    """Model calls."""
    guidance: float = Field(3.5, ge=0)
    """Classifier-free guidance; doubles the forward rows."""
    temperature: float = Field(1.0, ge=0)
    """Of the noise in which tokens are kept; it falls with the steps."""
    seed: Seed = 0
    """The same for every model and training seed, so that their pictures are paired."""


class LoRASettings(Strict):
    """Low-rank adapters beside frozen weights; the run saves the adapter alone."""

    rank: int = Field(16, ge=1, le=_MOST)
    alpha: float = Field(32.0, gt=0)
    """What the adapters add is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapters' inputs. Drawn by torch: with it, a step's result depends on how it is split over devices."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the adapted layers, or their ends; ``all-linear``: every linear layer but the output layer."""
    modules_to_save: list[str] = []
    """Modules trained whole and saved with the adapter, such as the output layer."""
    seed: Seed = 0
    """Of the adapters' first values; the same for every seed of an experiment, as a base's weights are."""


class ModelSettings(Strict):
    """Which model, and how it is loaded."""

    model: PathText = "tiny"
    """``tiny``, a local folder, or a name on the hub; random weights: ``new:tiny``, ``new:FOLDER`` (config.json and
    tokenizer)."""
    init_seed: Seed | None = None
    """Of a new model's weights, 0 unless given; the same for every seed of an experiment."""
    family: Name = "auto"
    """``llada``, ``dream``, ``mmada``, ``mlm``, ``arm``; ``auto``: what the model's config.json says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights; mixed precision over float32 weights is ``trainer.bf16``."""
    attention: Name = "sdpa"
    """Back end: ``sdpa``, ``eager`` or ``flash_attention_2``."""
    end_token: Name | None = None
    """Ends a response; without it the token that closes an assistant's turn in the model's chat template."""
    trust_remote_code: bool = False
    """Run code that lies beside the weights; needed only for models of no native family."""
    allow_pickle: bool = False
    """Read weights from PyTorch's own files (``*.bin``) where there are no safetensors, as plain tensors only."""


class TrainSettings(ModelSettings):
    """One training run."""

    lora: LoRASettings | None = None
    """Train adapters instead of the weights."""
    quantised: Literal["4bit", "8bit"] | None = None
    """Hold the frozen base in so many bits (bitsandbytes); with ``lora``, or for a ``model`` that is an adapter."""
    packing: bool = False
    """Lay the rows of a micro-batch end to end, without padding; no t or mask changes."""
    group_by_length: bool = False
    """Deal the rows of an optimizer step to its micro-batches by length; no t or mask changes."""
    views_per_forward: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Views of a row (MIRROR's two) in one forward and backward; without it all. Less memory, the same result.
    ``auto``: as many as the memory estimate says fit the device."""
    data: DataSettings = DataSettings()
    method: Name = "standard"
    method_options: MethodSettings = MethodSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    ppots: PPOTSSettings = PPOTSSettings()
    adaptive: AdaptiveSettings = AdaptiveSettings()
    p_of_t: PathText | None = None
    """A density fitted before (``stabledllm fit``); without it P-POTS probes before training, ``adaptive`` starts
    from uniform t."""
    block_size: int | None = Field(None, ge=1, le=_MOST)
    """Block diffusion: response tokens of a block, each with a t and a maskable set of its own, predicted from the
    clean blocks before it; without it the whole response is one."""
    batch: int = Field(32, ge=1)
    """Rows per optimizer step, over all devices and accumulation."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows per device and forward; must divide ``batch``. Without it the whole share of the device."""
    steps: int | None = Field(None, ge=1, le=10**9)
    """Optimizer steps; without it ``epochs`` counts."""
    epochs: float = Field(5.0, gt=0)
    eval_every: int | None = Field(None, ge=1)
    """Steps between evaluation losses; without it only at the end."""
    eval_draws: int = Field(4, ge=1, le=_MOST)
    """Masked copies of each validation row in the evaluation loss."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints, the last one at the end; without it there are none, and a killed run begins anew."""
    log_every: int = Field(10, ge=1)
    trainer: GivenTrainerSettings = {}  # type: ignore[assignment]
    """Anything else that transformers' TrainingArguments take, by their names."""
    decoding: DecodingSettings = DecodingSettings()
    image_decoding: ImageDecodingSettings = ImageDecodingSettings()
    clip: PathText | None = None
    """Scores drawn pictures: a CLIP model's folder or name on the hub; without it only the scenes' own judge does."""
    generate_batch: int = Field(32, ge=1, le=_MOST)
    """Prompts decoded together."""
    seed: Seed = 42
    """Of the noise and the order of the training rows."""
    order_seed: Seed | None = None
    """Of the order of the training rows alone; without it ``seed``. Fixed, it leaves only the noise to vary."""
    allow_changed: list[str] = []
    """Keys under which the run in ``out`` goes on from its last checkpoint with another value than so far, such as
    ``steps`` or ``trainer.learning_rate``; any other difference is refused."""
    out: PathText = "runs/train"


class ExperimentSettings(Strict):
    """Methods x seeds, each an own training run."""

    base: TrainSettings = TrainSettings()
    """The run that every method and seed varies."""
    methods: list[str] = Field(["standard", "ppots", "mirror", "ppots+mirror"], min_length=1)
    seeds: list[Seed] = Field([42, 731, 20231], min_length=1)
    equal: Literal["compute", "steps"] = "compute"
    """``compute``: Standard's forward passes for every method to within one step, under ``epochs`` too: rows a step by
    the method's mean cost (half for 2 views), steps by what it will draw. ``steps``: the same rows and steps, as in the
    paper, whatever they cost."""
    baselines: list[str] = ["standard", "clipped"]
    """Methods whose best run a method's worst run is compared with."""
    out: PathText = "runs/experiment"

    @field_validator("methods", "baselines")
    @classmethod
    def _methods_once(cls, methods: list[str]) -> list[str]:
        return refuse_equal_methods(methods)

    @field_validator("seeds")
    @classmethod
    def _seeds_once(cls, seeds: list[int]) -> list[int]:
        return refuse_equal_seeds(seeds)


class GradientSettings(Strict):
    """How the gradient's noise is measured."""

    rows: int = Field(384, ge=4, le=_MOST)
    """Rows behind A, B, C and every single-view method."""
    view_rows: int = Field(16, ge=4, le=_MOST)
    """Rows behind each method of several views or with a masker of its own."""
    rates: int = Field(4, ge=2, le=_MOST)
    """Equal cells of t; the lowest is split further."""
    masks: int = Field(2, ge=2, le=_MOST)
    """Masks per row and cell; up to three times as many where t is small."""
    steps: int = Field(16, ge=4, le=_MOST)
    """Training steps drawn for each method: raw, clipped, and as Adam's update."""
    clip: float = Field(1.0, gt=0)
    """Norm to which the optimizer's gradients are clipped."""
    parameters: list[str] | None = None
    """Patterns of the parameters whose gradient is meant, such as ``head.*``; without it all that are trained."""
    projection: Literal["auto", "exact", "sketch"] = "auto"
    """``exact`` gradients or a seeded random projection of them; ``auto`` projects where they do not fit."""


class DecomposeSettings(ModelSettings):
    """``stabledllm decompose``: how much is drawn for each part of the answer."""

    data: DataSettings = DataSettings()
    method_options: MethodSettings = MethodSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    rows: int = Field(48, ge=2, le=_MOST)
    """Rows of the nested design."""
    rates: int = Field(12, ge=2, le=_MOST)
    """Rates per row of the nested design."""
    masks: int = Field(3, ge=2, le=_MOST)
    """Masks per rate of the nested design."""
    design: Literal["cells", "iid"] = "cells"
    """``cells``: one rate in each cell of t, which tames the tail near t = 0; ``iid``: the plain nested design."""
    probe: PPOTSSettings = PPOTSSettings(rows=24, rates=16, masks=3)
    """The probe behind g(t), v(t), rho(t), p(t) and the predicted variances."""
    methods: list[str] = [
        "standard",
        "ppots",
        "mirror",
        "ppots+mirror",
        "multisample",
        "strats",
        "fixedcount",
        "lowdisc+fixedcount",
        "lowdisc+ppots+fixedcount",
        "lowdisc+ppots-head+fixedcount",
        "lowdisc+complement",
        "clipped",
    ]
    """Methods to compare; Standard is always among them."""
    forwards: int = Field(32, ge=2, le=_MOST)
    """Forward passes of a training step: what methods are given equally."""
    steps: int = Field(48, ge=4, le=_MOST)
    """Training steps drawn to measure each method's variance."""
    gradient: bool = False
    """Measure the gradient's noise as well."""
    grad: GradientSettings = GradientSettings()
    seed: Seed = 0
    out: PathText = "runs/decompose"


class EvalSettings(ModelSettings):
    """``stabledllm eval``: one model on test rows, and what it was tuned from beside it."""

    base: PathText | None = None
    """Of an adapter: its base model, where it is not where it was."""
    beside: PathText = "auto"
    """The untuned model: its name, or the folder of its evaluation; ``auto``: an adapter's base, or the model that a
    run started from; ``none``."""
    data: DataSettings = DataSettings()
    """The rows are those of ``data.test``, without it of ``data.train``: their test split, where they have splits."""
    rows: int = Field(128, ge=1, le=_MOST)
    """At most this many problems."""
    draws: int = Field(4, ge=1, le=_MOST)
    """Masked copies of each row in the NLL."""
    decoding: DecodingSettings = DecodingSettings(length=64, steps=64, block=8)
    image_decoding: ImageDecodingSettings = ImageDecodingSettings()
    clip: PathText | None = None
    """Scores drawn pictures: a CLIP model's folder or name on the hub."""
    generate_batch: int = Field(32, ge=1, le=_MOST)
    """Prompts decoded together; no result depends on it."""
    out: PathText = "runs/eval"

"""A training run, and an experiment of many."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, field_validator, model_validator

from stabledllm.config.settings.average import AverageSettings
from stabledllm.config.settings.blocks import BlockScheduleSettings
from stabledllm.config.settings.data import DataSettings
from stabledllm.config.settings.evaluation import DecodingSettings, ImageDecodingSettings
from stabledllm.config.settings.method import AdaptiveSettings, MethodSettings, ObjectiveSettings, PPOTSSettings
from stabledllm.config.settings.model import LoRASettings, ModelSettings, RouterSettings
from stabledllm.config.settings.policy import GRPOSettings
from stabledllm.config.settings.preference import DPOSettings
from stabledllm.config.settings.values import MOST, Name, PathText, Seed
from stabledllm.config.trainer_keys import TrainerSettings
from stabledllm.config.twice import refuse_equal_methods, refuse_equal_numbers
from stabledllm.config.typed import Strict
from stabledllm.config.written import Written

GivenTrainerSettings = Annotated[
    TrainerSettings,
    AfterValidator(lambda checked: checked.model_dump(exclude_unset=True)),
    PlainSerializer(lambda given: given),
]
"""A dictionary of the keys that were given, checked as :class:`TrainerSettings`."""


class SpikeSettings(Strict):
    """What is noted of outlier steps, whose gradient norm is far above that of the steps before."""

    factor: float = Field(5.0, gt=1)
    """A step is an outlier where its gradient norm is above this many times the median of the steps before it."""
    window: int = Field(100, ge=10, le=MOST)
    """Steps of that running median; the first ten of a run are only counted."""
    keep: int = Field(0, ge=0, le=MOST)
    """Newest outlier steps whose checkpoint before them is kept beyond ``trainer.save_total_limit``, so that ``replay``
    can rebuild them."""


class TrainSettings(ModelSettings):
    """One training run."""

    lora: LoRASettings | None = None
    """Train adapters instead of the weights."""
    quantised: Literal["4bit", "8bit"] | None = None
    """Bits that each weight of the frozen base is held in (bitsandbytes); with ``lora``, or where ``model`` is an
    adapter."""
    packing: bool = False
    """Lay the rows of a micro-batch end to end, without padding; changes no t and no mask."""
    group_by_length: bool = False
    """Deal the rows of an optimizer step to its micro-batches by length; changes no t and no mask."""
    views_per_forward: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Views of a row (MIRROR's two) in one forward and backward; without it all. Less memory, the same result.
    ``auto``: as many as the memory estimate says fit the device."""
    data: DataSettings = DataSettings()
    method: Name = "standard"
    """Parts of the method, joined by ``+``, such as ``ppots+mirror``."""
    method_options: MethodSettings = MethodSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    dpo: DPOSettings = DPOSettings()
    grpo: GRPOSettings = GRPOSettings()
    ppots: PPOTSSettings = PPOTSSettings()
    adaptive: AdaptiveSettings = AdaptiveSettings()
    p_of_t: PathText | None = None
    """File of a density fitted before (``stabledllm fit``); without it P-POTS probes before training, and ``adaptive``
    starts from uniform t."""
    router: RouterSettings = RouterSettings()
    """How the load of a model's experts is balanced; without it not at all, as LLaDA's fine-tuning is published."""
    block_size: int | None = Field(None, ge=1, le=MOST)
    """Block diffusion: response tokens per block. Each block has its own t and maskable set and is predicted from the
    clean blocks before it; without it the whole response is one block, or the blocks are those of a model that is
    trained in nothing else (SDAR, Fast-dLLM v2, LLaDA2)."""
    block_schedule: BlockScheduleSettings | None = None
    """Other block sizes before ``block_size``, each for a number of steps."""
    block_t: Literal["own", "row"] = "own"
    """In blocks, a t of its ``own`` for each, or one for all blocks of a ``row``, as SDAR and dllm train: the same
    objective with more noise."""
    block_start: Literal["noisy", "clean"] = "noisy"
    """What predicts a block's first token in training where logits are shifted (Fast-dLLM v2): the last position of the
    noisy block before it, as published, or of the clean one, as in decoding."""
    batch: int = Field(32, ge=1)
    """Rows per optimizer step, over all devices and accumulation; with ``objective.kind=grpo`` prompts."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows per device and forward; must divide ``batch``. Without it the whole share of the device."""
    steps: int | None = Field(None, ge=1, le=10**9)
    """Optimizer steps; without it ``epochs`` counts."""
    epochs: float = Field(5.0, gt=0)
    """Passes over the training rows, where ``steps`` is not given."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between evaluation losses; ``null``: never while it trains, so once, at the end."""
    eval_draws: int = Field(4, ge=1, le=MOST)
    """Views of each validation row in the evaluation loss."""
    untuned: bool = True
    """Evaluate the model before its first step too, whose NLL stands beside the trained one's at the end; an experiment
    evaluates it once for all its runs."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints, the last one at the end; without it there are none, and a killed run begins anew."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of the training log."""
    spikes: SpikeSettings = SpikeSettings()
    average: AverageSettings = AverageSettings()
    trainer: GivenTrainerSettings = {}  # type: ignore[assignment]
    """Other fields of transformers' TrainingArguments, by their names."""
    callbacks: list[Name] = []
    """Dotted names of your own classes of transformers' TrainerCallback, in a module of the working directory or an
    installed one, such as ``my_callbacks.SaveSamples``; each is made without arguments."""
    decoding: DecodingSettings = DecodingSettings()
    image_decoding: ImageDecodingSettings = ImageDecodingSettings()
    clip: PathText | None = None
    """Scores drawn images: a CLIP model's folder or name on the hub; without it only scenes are scored."""
    generate_batch: int = Field(32, ge=1, le=MOST)
    """Prompts decoded together."""
    seed: Seed = 42
    """Seed of the noise and of the order of the training rows."""
    order_seed: Seed | None = None
    """Seed of the order of the training rows alone; without it ``seed``. If it is fixed, only the noise varies."""
    allow_changed: list[str] = []
    """Keys, such as ``steps`` or ``trainer.learning_rate``, that may have another value when the run in ``out`` goes on
    from its last checkpoint; any other difference is refused."""
    out: PathText = "runs/train"
    """Folder of the run."""

    @field_validator("average", mode="before")
    @classmethod
    def _no_average(cls, value: Any) -> Any:
        """``null`` switches off what a recipe asks for, as with ``lora``."""
        return {} if value is None or (isinstance(value, Written) and value.null and value) else value

    @model_validator(mode="after")
    def _of_its_kind(self) -> TrainSettings:
        form = {"dpo": "preference", "grpo": "prompts"}.get(self.objective.kind)
        if form and self.data.format is None:
            self.data.__dict__["format"] = form
        return self

    @model_validator(mode="after")
    def _decoded_as_trained(self) -> TrainSettings:
        if self.block_schedule and self.block_schedule.sizes and self.block_size is None:
            self.__dict__["block_size"] = self.block_schedule.sizes[-1]
        given = set(self.model_fields_set)
        self.decoding = self.decoding.in_blocks_of(self.block_size)
        self.grpo = self.grpo.in_blocks_of(self.block_size)
        self.model_fields_set.intersection_update(given)
        return self


class ExperimentSettings(Strict):
    """One training run for every method and seed, and at every learning rate where several are given."""

    base: TrainSettings = TrainSettings()
    """The run that every method and seed varies."""
    methods: list[str] = Field(["standard", "ppots", "mirror", "ppots+mirror"], min_length=1)
    """Methods to compare; each is run with every seed. Of policy gradients also published estimators by name: ``espo``,
    ``coupled``, ``one-step``, ``unigrpo``."""
    seeds: list[Seed] = Field([42, 731, 20231], min_length=1)
    """Seeds of the runs, the same for every method."""
    standard_at: list[Annotated[float, Field(gt=0, le=100)]] = []
    """Multiples of Standard's forward passes at which Standard is trained as well, with the same seeds, such as
    ``[0.75, 1.25, 1.5, 2]``; how much of Standard's compute each method needs is then read off. 1 is Standard itself,
    among ``methods``."""
    equal: Literal["compute", "steps"] = "compute"
    """``compute``: every method makes Standard's forward passes to within one step, under ``epochs`` too: its rows per
    step follow from its mean cost (half for 2 views), its steps from what it will draw. ``steps``: the same rows and
    steps, as in the paper, whatever they cost. With pairs and policy gradients both are the same: a response has the
    same budget of forwards under every method."""
    learning_rates: list[Annotated[float, Field(gt=0)]] = []
    """Learning rates at which every method is run with every seed, in the place of ``base.trainer.learning_rate``: over
    how wide a range of them a method ends near its best. Without it the one of ``base``."""
    max_grad_norms: list[Annotated[float, Field(ge=0)]] = []
    """Norms to clip gradients at, each with every learning rate, in the place of ``base.trainer.max_grad_norm``; 0: no
    clipping. Without it the one of ``base``."""
    baselines: list[str] = ["standard", "clipped"]
    """Methods whose best run a method's worst run is compared with."""
    out: PathText = "runs/experiment"
    """Folder of the experiment and its runs."""

    @field_validator("methods", "baselines")
    @classmethod
    def _methods_once(cls, methods: list[str]) -> list[str]:
        return refuse_equal_methods(methods)

    @field_validator("seeds", "standard_at", "learning_rates", "max_grad_norms")
    @classmethod
    def _numbers_once(cls, numbers: list[float]) -> list[float]:
        return refuse_equal_numbers(numbers)

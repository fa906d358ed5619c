"""How much the study does: on 2 cores, where a GPU is found, and in a rehearsal of seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

DOWN_PROJECTIONS = "grad.parameters=[model.layers.*.mlp.down_proj.weight]"
"""One matrix of every layer: a projection of all 134.5 M coordinates takes three times as long as their backward."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of one run of the study.

    Args:
        rows: of text, by the file that :mod:`problems` writes.
        adapt: overrides of ``recipes/adapt.yaml``. finetune: of ``recipes/finetune.yaml``.
        arms: the conversions that part 1 compares. seeds: of part 3.
        familiar: rows whose NLL under every fine-tuned model is taken: new ones of the training rows' templates.
        decompose: what part 2 measures. lengths: how many rows and draws of it for each response length.
        jobs: commands at the same time, unless told otherwise.
    """

    rows: dict[str, int]
    decompose: tuple[str, ...]
    lengths: tuple[str, ...]
    toy: tuple[str, ...]
    adapt: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    arms: tuple[str, ...] = ("shift", "no-shift", "annealed", "mean-embedding", "random")
    anneal_steps: int = 60
    seeds: int = 5
    familiar: int = 48
    longest: int = 160
    layers: int | None = None
    jobs: int = 1
    source: str = "reasoning-gym:gsm_symbolic"
    measured: tuple[str, ...] = field(
        default=("standard", "ppots", "mirror", "ppots+mirror", "lowdisc+fixedcount", "lowdisc+complement")
    )


CPU = Sizes(
    rows={"adapt": 960, "tune": 48, "held_out": 36, "problems": 9, "measure": 128},
    decompose=(
        "dtype=bfloat16", "rows=16", "rates=6", "masks=2", "forwards=8", "steps=8",
        "probe.rows=10", "probe.rates=6", "probe.masks=2",
        "grad.rows=16", "grad.rates=4", "grad.masks=2", "grad.view_rows=6", "grad.steps=4", DOWN_PROJECTIONS,
    ),
    lengths=("rows=12", "grad.rows=10", "steps=4", "grad.steps=4", "grad.view_rows=4", "probe.rows=4"),
    toy=("rows=96", "forwards=8", "steps=32", "grad.rows=96", "grad.steps=16"),
)  # fmt: skip
GPU = Sizes(
    rows={"adapt": 6400, "tune": 256, "held_out": 128, "problems": 64, "measure": 512},
    decompose=("dtype=bfloat16", "rows=48", "forwards=32", "grad.rows=48", "grad.view_rows=8", "grad.steps=6"),
    lengths=("rows=32", "grad.rows=24"),
    toy=("rows=96", "forwards=32", "steps=32", "grad.rows=96", "grad.steps=16"),
    adapt=("batch=32", "steps=200", "eval_every=50", "save_every=100"),
    finetune=("base.batch=16", "base.steps=48", "base.ppots.rows=64"),
    anneal_steps=100,
    seeds=8,
    familiar=128,
    jobs=4,
)  # fmt: skip
REHEARSAL = Sizes(
    rows={"adapt": 16, "tune": 8, "held_out": 6, "problems": 2, "measure": 8},
    decompose=(
        "rows=4", "rates=2", "masks=2", "forwards=4", "steps=4", "probe.rows=2", "probe.rates=4", "probe.masks=2",
        "probe.starts=2", "grad.rows=4", "grad.rates=2", "grad.masks=2", "grad.view_rows=4", "grad.steps=4",
        DOWN_PROJECTIONS,
    ),
    lengths=("rows=4",),
    toy=("rows=4", "rates=2", "masks=2", "forwards=4", "steps=4", "probe.rows=4", "probe.rates=4", "probe.masks=2",
         "probe.starts=2", "grad.rows=4", "grad.rates=2", "grad.masks=2", "grad.view_rows=4", "grad.steps=4"),
    adapt=("batch=4", "steps=4", "eval_every=2", "save_every=2", "decoding.length=8", "decoding.steps=2",
           "decoding.block=8", "trainer.bf16=false", "trainer.warmup_steps=0"),
    finetune=("base.steps=2", "base.ppots.rows=2", "base.ppots.rates=4", "base.ppots.starts=2",
              "base.decoding.length=8", "base.decoding.steps=2", "base.decoding.block=8", "base.trainer.bf16=false"),
    arms=("shift", "no-shift", "annealed", "mean-embedding", "random"),
    anneal_steps=2,
    seeds=2,
    familiar=4,
    layers=2,
    source="synthetic",
    measured=("standard", "ppots", "mirror", "lowdisc+fixedcount"),
)  # fmt: skip

"""How log-likelihoods of requests are computed: the bound, or one of the likelihoods beyond it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stabledllm.config.likelihoods import MEANING, check_duel, check_halves
from stabledllm.data.rows import TokenRow
from stabledllm.decoding import DecodingOptions, DecodingStats
from stabledllm.errors import UserError, did_you_mean
from stabledllm.forward.elbo import elbo
from stabledllm.likelihood.duel import check_model, duel
from stabledllm.likelihood.orders import OrderScores, log_mean, tangent
from stabledllm.models.loading import LoadedModel
from stabledllm.stats.estimate import Estimate

METHOD = "strats+fixedcount"
"""Exactly counted masks at stratified ratios: the bound with little of the noise of either."""
_DEFAULTS = {"draws": 32, "replicates": 4, "segments": 8}
Pair = tuple[list[int], list[int]]


@dataclass
class Likelihoods:
    """Estimates of log p(continuation | prompt) in nats, with the standard error of their noise.

    The noise is a function of ``seed`` and the two texts alone. ``forwards`` counts the rows through the model.

    Args:
        kind: see :data:`~stabledllm.config.likelihoods.MEANING`; all but ``duel`` with the guidance of ``decoding``.
        draws: masks (``elbo``) or random orders (the others) in all. replicates: groups that they fall into, of each
            of which the estimate is made; the value is their mean.
        segments: parallel steps of ``stepmerge``. decoding: the decoder of ``duel``.

    Raises:
        UserError: an unknown kind, draws that do not fall into replicates, or a decoder without an exact likelihood.
    """

    kind: str
    draws: int
    replicates: int
    seed: int
    segments: int
    decoding: DecodingOptions
    forwards: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.kind not in MEANING:
            raise UserError(f"lm_eval: likelihood: unknown '{self.kind}'{did_you_mean(self.kind, MEANING)}.")
        if self.kind == "duel":
            check_duel(self.decoding, "likelihood")
        elif self.draws < 2 * self.replicates or self.replicates < 2 or self.draws % self.replicates:
            raise UserError(
                f"lm_eval: expected draws that fall into 2 replicates or more of 2 or more each, found {self.draws} "
                f"into {self.replicates}."
            )
        if self.kind == "tube":
            check_halves(self.draws // self.replicates, "lm_eval: draws of a replicate")
        if self.segments < 1:
            raise UserError(f"lm_eval: segments: expected at least 1, found {self.segments}.")

    @classmethod
    def of_arguments(cls, kind: str, decoding: DecodingOptions, *, seed: int, **given: int | None) -> Likelihoods:
        """Those of ``--model_args``, of which what is None has its default.

        Raises:
            UserError: a number that is given to a kind that takes none, too.
        """
        if kind in MEANING:
            of_kind = {"duel": (), "stepmerge": ("draws", "replicates", "segments")}.get(kind, ("draws", "replicates"))
            if idle := next((name for name, value in given.items() if value is not None and name not in of_kind), None):
                raise UserError(f"lm_eval: {idle}: expected none with likelihood={kind}, where it would do nothing.")
        named = {name: _DEFAULTS[name] if value is None else value for name, value in given.items()}
        return cls(kind, seed=seed, decoding=decoding, **named)

    def refuse_unsuited(self, loaded: LoadedModel) -> None:
        """Refuse a model that has no such likelihood.

        Raises:
            UserError: as :func:`~stabledllm.likelihood.duel.check_model` and :class:`OrderScores` do.
        """
        if self.kind == "duel":
            check_model(loaded.model, self.decoding)
        elif self._beyond:
            OrderScores.check(loaded.model, self.decoding.guidance)

    @torch.no_grad()
    def of(self, loaded: LoadedModel, pairs: Sequence[Pair]) -> list[Estimate]:
        """The estimate of each pair of prompt and continuation; those of ``duel`` go through the model together."""
        rows = [TokenRow([*prompt, *continuation], len(prompt)) for prompt, continuation in pairs]
        if self.kind != "duel":
            return [self._one(loaded, row, _step(pair)) for row, pair in zip(rows, pairs, strict=True)]
        stats, ids = DecodingStats(), {"mask_id": loaded.mask_id, "pad_id": loaded.pad_id, "ends": loaded.ends}
        values = duel(loaded.model, rows, self.decoding, stats=stats, **ids)
        self.forwards += stats.forward_rows
        return [Estimate(value=value, stderr=0.0, n=1, unit="nats") for value in values.tolist()]

    def told(self, stderr: float, n: int) -> str:
        """A line on n log-likelihoods of which this is the mean standard error."""
        if self.kind == "duel":
            return f"{n} log-likelihoods by duel, {MEANING['duel']} ({self.forwards:,} forwards so far)"
        by = "" if self.kind == "elbo" else f" by {self.kind}"
        return f"{n} log-likelihoods{by} from {self.draws} draws each, standard error {stderr:.3g} nats on average"

    @property
    def info(self) -> dict:
        """What the harness's results say of it."""
        own = {"kind": self.kind, "is": MEANING[self.kind], "forwards": self.forwards}
        if self.kind == "duel":
            return own
        how = {"method": METHOD} if self.kind == "elbo" else {}
        how |= {"segments": self.segments} if self.kind == "stepmerge" else {}
        draws = {"draws": self.draws, "replicates": self.replicates, "seed": self.seed}
        return own | how | draws | {"guidance": self.decoding.guidance}

    @property
    def _beyond(self) -> bool:
        return self.kind != "elbo" or bool(self.decoding.guidance)

    def _one(self, loaded: LoadedModel, row: TokenRow, step: int) -> Estimate:
        if not self._beyond:
            bound = elbo(
                loaded.model, [row], METHOD, self.draws, seed=self.seed, step=step, eps=0.0,
                replicates=self.replicates, mask_id=loaded.mask_id, pad_id=loaded.pad_id,
            )  # fmt: skip
            self.forwards += bound.forwards
            value, stderr = float(bound.value), float(bound.stderr)
            return Estimate(value=value, stderr=stderr, n=self.replicates, unit="nats")
        scores = OrderScores.of(loaded.model, [row], [0], seed=self.seed, step=step, guidance=self.decoding.guidance)
        each = self._replicates(scores)
        self.forwards += scores.forwards
        stderr = float(each.std()) / self.replicates**0.5
        return Estimate(value=float(each.mean()), stderr=stderr, n=self.replicates, unit="nats")

    def _replicates(self, scores: OrderScores) -> Tensor:
        """The estimate of each replicate for one response, shape (R,)."""
        every, of_one = range(self.draws), self.draws // self.replicates
        if self.kind == "elbo":
            return scores.counts(every, of_one).view(self.replicates, of_one).mean(1)
        if self.kind == "stepmerge":
            return scores.merged(every, self.segments).view(self.replicates, of_one).mean(1)
        logs = scores.orders(every)[0].view(-1, self.replicates, of_one).transpose(0, 1)
        return (log_mean if self.kind == "multisample" else tangent)(logs)


def _step(pair: Pair) -> int:
    """The step that stands for a pair of texts in its noise."""
    text = json.dumps(list(pair)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") >> 1

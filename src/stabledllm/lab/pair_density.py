"""The fit of p(t) to pairs of preferences: to what draws add to their losses, or to the gradient of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from stabledllm.build import build_model, loading_beside
from stabledllm.config.settings import DecomposeSettings, TrainSettings
from stabledllm.data.bundle import load_bundle
from stabledllm.errors import UserError
from stabledllm.forward.meter import LossMeter
from stabledllm.gradient.density import norm_profile
from stabledllm.gradient.output_layer import OutputLayerNorms
from stabledllm.gradient.per_row import RowGradients
from stabledllm.lab.bar import progress_bar
from stabledllm.lab.from_settings import build_probing
from stabledllm.lab.measure.fit_change import change_of
from stabledllm.lab.measure.options import ProbeOptions
from stabledllm.lab.measure.plan import probe_forwards
from stabledllm.method_checks import check_finite_variance, check_model
from stabledllm.models.loading import LoadedModel, load_model
from stabledllm.noise.methods import Method
from stabledllm.noise.streams import Key, Stream
from stabledllm.ppots.cells import weights_of
from stabledllm.ppots.fit import FitOptions
from stabledllm.ppots.fitted_for import KIND
from stabledllm.ppots.profile import probe
from stabledllm.ppots.record import FittedDensity, ProbeProfile, fit_density
from stabledllm.preference.density import DifferenceMeter, DifferenceProfile, responses_of, slopes_of, weighed
from stabledllm.preference.draws import BoundEstimator, Pair
from stabledllm.preference.loss import DPOLoss
from stabledllm.preference.reference import check_reference
from stabledllm.runtime.device import place

_STEP = 0xD1FF
"""Number of the draws that find the slopes and of the choice of pairs, far from the epochs of training."""


@dataclass(frozen=True)
class PairProbe:
    """What p(t) is fitted with: two models, the loss of pairs, the forwards of a response, and the sizes of the probe.

    Args:
        progress: called with the forward rows just done.
    """

    policy: LoadedModel
    reference: LoadedModel
    loss: DPOLoss
    budget: int
    options: ProbeOptions
    seed: int
    tokens_per_batch: int = 4096
    progress: Callable[[int], object] = lambda forwards: None

    def fit(self, method: Method, pairs: Sequence[Pair]) -> FittedDensity:
        """The best p(t) for a method with ``ppots``, ``ppots-gradient`` or ``ppots-head``, from at most half as many
        pairs as the probe has rows; nothing is written.

        Raises:
            UserError: fewer than two pairs, or policy and reference that are alike, whose difference is 0 everywhere.
        """
        check_finite_variance(method, "ppots")
        if len(pairs) < 2:
            raise UserError(f"ppots: expected at least 2 pairs to probe, found {len(pairs)}.")
        order = Key(self.seed, _STEP).permutation(Stream.RESAMPLE, len(pairs), torch.device("cpu")).tolist()
        chosen = [pairs[i] for i in order[: self._responses // 2]]
        rows, slopes, points = responses_of(chosen), *self._slopes(method, chosen)
        if method.signal == "loss":
            profile = self._differences(method, rows, slopes, points)
        else:
            profile = self._norms(method, rows, slopes)
        return self._fitted(method, profile, [rows[i] for i in self._probed(profile)], len(chosen))

    def forwards(self, method: Method, pairs: Sequence[Pair]) -> int:
        """The forward passes of the probe; those that find the slopes, few beside them, are not counted."""
        rows = responses_of(pairs)[: self._responses]
        return probe_forwards(method, replace(self.options, rows=len(rows)), rows) * (
            2 if method.signal == "loss" else 1
        )

    @property
    def _responses(self) -> int:
        """The most responses that are probed: those of whole pairs."""
        return 2 * max(2, -(-self.options.rows // 2))

    def _slopes(self, method: Method, pairs: Sequence[Pair]) -> tuple[torch.Tensor, int]:
        """The slopes of the responses, shape (n, 2), and the points of t in a replicate, under uniform t."""
        plain = Method.parse(without_density(method.name), method.options, method.objective)
        how = BoundEstimator(plain, self.budget, eps=method.objective.eps, tokens_per_batch=self.tokens_per_batch)
        parts = []
        for number, pair in enumerate(pairs):
            draws = how.draw(self.policy.model, [pair], [number], seed=self.seed, step=_STEP)
            values = [draws.values(loaded.model) for loaded in (self.policy, self.reference)]
            parts.append(slopes_of(self.loss, *values, draws.tokens)[0])
        return torch.cat(parts).cpu(), draws.plan.t.shape[2] // draws.replicates

    def _differences(self, method, rows, slopes, points) -> DifferenceProfile:
        common = {"progress": self.progress, "tokens_per_batch": self.tokens_per_batch}
        meters = [LossMeter(each, rows, method.objective, **common) for each in (self.policy, self.reference)]
        options = self.options
        probed = probe(
            DifferenceMeter(*meters, slopes), method, rows=len(rows), rates=options.rates, masks=options.masks,
            seed=self.seed, design=options.design,
        )  # fmt: skip
        if not bool((probed.values != 0).any()):
            raise UserError(
                f"ppots: expected a policy that has moved from its reference '{self.reference.name}', found no "
                f"difference on any mask; fit p(t) to a run that has learnt, or take method=adaptive."
            )
        return DifferenceProfile(probed, method.source, points, options.uniform_share)

    def _norms(self, method, rows, slopes) -> ProbeProfile:
        """Norms of what a draw adds to the loss's gradient, which the reference has no part in."""
        kind = RowGradients if method.signal == "gradient" else OutputLayerNorms
        factors = (slopes[:, 0].abs() * torch.tensor([row.response_length for row in rows])).double()
        meter = weighed(kind, factors)(self.policy, rows, method.objective, progress=self.progress)
        options = self.options
        found = norm_profile(
            meter, method, rows=len(rows), rates=options.rates, masks=options.masks, seed=self.seed
        )  # fmt: skip
        order = found.moments.points.rows.argsort()  # a pair's two stand together
        return replace(found, moments=found.moments.in_order(order, together=2), norm=found.norm[order])

    @staticmethod
    def _probed(profile: ProbeProfile) -> list[int]:
        """The index of the response behind each row of the profile's moments."""
        if isinstance(profile, DifferenceProfile):
            return profile.probed.rows[profile.order].tolist()
        return profile.moments.points.rows.tolist()

    def _fitted(self, method: Method, profile: ProbeProfile, rows, pairs: int) -> FittedDensity:
        own = self.options
        options = FitOptions(starts=own.starts, family=own.family, uniform_share=own.uniform_share, seed=self.seed)
        config = {"rows": len(rows), "pairs": pairs, "rates": own.rates, "masks": own.masks, "budget": self.budget}
        config |= {"model": self.policy.name, "reference": self.reference.name} | asdict(self.loss)
        weighs_by = weights_of(method, rows)
        density = fit_density(profile, method, options, config, weighs_by=weighs_by)
        diagnostics = density.record["diagnostics"]
        unit = "nats²" if profile.signal == "difference" else "(nats/param)²"
        for name in ("variance_uniform", "variance_fitted"):
            diagnostics[name]["unit"] = unit
        if method.source.independent:
            diagnostics["change"] = change_of(profile.moments, density.crossfit, unit, weighs_by).as_dict()
        density.record.update({"objective": asdict(method.objective), KIND: "dpo"})
        return density


def without_density(name: str) -> str:
    """A method's name without the part that fits or follows a density.

    >>> without_density("lowdisc+ppots+fixedcount"), without_density("ppots")
    ('lowdisc+fixedcount', 'standard')
    """
    kept = [part for part in name.split("+") if not part.startswith("ppots") and part != "adaptive"]
    return "+".join(kept) or "standard"


def fit_to_pairs(
    settings: TrainSettings, method: Method, say: Callable[[str], None], quicker: str = ""
) -> FittedDensity:
    """The density p(t) for training on preferences with these settings; nothing is written.

    Args:
        settings: whose model is the policy and ``dpo.reference`` the model that it is held against.
        quicker: what is said of a quicker way where it takes long.

    Raises:
        UserError: bad data, models that do not load or do not go together, or too few pairs.
    """
    policy = build_model(settings)
    check_model(method, policy.name, policy.autoregressive)
    reference = load_model(settings.dpo.reference, **loading_beside(settings, settings.dpo.reference))
    check_reference(policy, reference)
    for loaded in (policy, reference):
        place(loaded.model)
    pairs = pairs_in(settings, policy, say)
    dpo, options = settings.dpo, build_probing(settings.ppots)
    known = PairProbe(
        policy, reference, DPOLoss(dpo.beta, sft=dpo.sft), dpo.budget, options, settings.seed, dpo.tokens_per_forward
    )
    with progress_bar(f"probe {method.name}", known.forwards(method, pairs), quicker) as progress:
        return replace(known, progress=progress.update).fit(method, pairs)


def pairs_in(
    settings: TrainSettings | DecomposeSettings, policy: LoadedModel, say: Callable[[str], None]
) -> list[Pair]:
    """All pairs of the data, of which none are held out."""
    data = settings.data.model_copy(update={"validation_share": 0.0, "validation": None, "test": None})
    bundle = load_bundle(data, policy.tokenizer, say)
    return [Pair(*both) for both in zip(bundle.train, bundle.rejected["train"], strict=True)]

"""What each part of a method does, and each objective, in a sentence: for the screen, and for lists of methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stabledllm.config.objectives import NAMED, in_keys

if TYPE_CHECKING:
    from stabledllm.config.settings import DPOSettings, GRPOSettings, ObjectiveSettings

DOES = {
    "standard": "draws a mask ratio t evenly from 0 to 1 for each row and masks each response token with probability t",
    "autoregressive": "predicts each token from those before it: no masks, and no noise from them",
    "strats": "draws t from equal strata, so that the rows of a step cover 0 to 1",
    "lowdisc": "spreads t over the rows of a step as evenly as can be",
    "ppots": "draws t more often where a short probe found the losses to vary most, and weighs by 1/p(t)",
    "ppots-gradient": "draws t more often where a short probe found the gradient to vary most, and weighs by 1/p(t)",
    "ppots-head": "draws t more often where a short probe found the gradient of the output layer to vary most, and "
    "weighs by 1/p(t)",
    "adaptive": "draws t more often where the losses of training vary most, and weighs by 1/p(t)",
    "clipped": "draws t from the middle of its range only",
    "bell": "draws t more often from the middle of its range, by a fixed bell, and weighs by 1/p(t)",
    "fixedcount": "masks an exact number of tokens for each t",
    "complement": "masks k tokens in one view of a row and all the others in a second, with exact weights",
    "isad": "masks the delimiter before the answer more often",
    "isad-exact": "masks the delimiter before the answer more often, and weighs that out again",
    "mirror": "averages two views of a row, the second with the other tokens masked",
    "multisample": "averages several independent masks of a row",
    "partition": "averages several masks of a row that overlap as little as they can",
    "syrm": "masks syntax tokens of the prompt too",
    "ema": "steadies the reported loss; the training is not changed",
}
"""By the name of the part; ``standard`` is the method without parts."""
OBJECTIVES = {
    "elbo": "the bound on the NLL per response token: masked tokens weigh 1/t",
    "unweighted": "every masked token weighs the same",
    "power": "masked tokens weigh t^(a - 1)",
    "bell": "mask ratios from a bell-shaped density, where masked tokens weigh 1/t",
    "cosine": "MMaDA's for images: t sets the number of masked tokens by a cosine, and each weighs the same",
}
"""By the name of ``objective.weighting``."""

TOKENS = {
    "cart": "a masked token weighs the more, the more visible tokens are near it",
    "lift": "of more tokens than are masked in the end, the easiest stay masked at high t and the hardest at low t",
    "gift": "tokens whose prediction from the prompt alone is uncertain are masked more often",
}
"""By the name of ``objective.tokens``."""
MEANS = {"row": "rows", "token": "tokens", "masked": "masked tokens"}
"""What ``objective.normalization`` takes the mean over, within a step."""


def objective_in_words(objective: ObjectiveSettings) -> str:
    """What is minimised: the keys that a name stands for, the weighting, the mask ratios and the mean.

    >>> from stabledllm.config.settings import ObjectiveSettings
    >>> objective_in_words(ObjectiveSettings(name="llada2"))[:69]
    'llada2 (weighting=unweighted normalization=masked window=[0.3,0.8]): '
    """
    power = f" (a = {objective.power:g})" if objective.power is not None else ""
    text = f"{objective.weighting}{power}: "
    if objective.name:
        stands = {key: getattr(objective, key) for key in NAMED[objective.name].keys}
        text = f"{objective.name} ({in_keys(stands)}): "
    text += OBJECTIVES[objective.weighting]
    if objective.window:
        part = "the bound's own part from" if objective.corrected else "at"
        text += f"; {part} mask ratios from {objective.window[0]:g} to {objective.window[1]:g} alone"
    text += f" (Beta({objective.bell[0]:g}, {objective.bell[1]:g}))" if objective.bell else ""
    text += f"; {TOKENS[objective.tokens]}" if objective.tokens in TOKENS else ""
    text += f"; the mean over the {MEANS[objective.normalization]} of a step"
    if objective.name and (noise := NAMED[objective.name].noise):
        text += f". Its own trainer's noise is {noise}: another method has the same objective with less noise or more"
    return text


def preferences_in_words(dpo: DPOSettings, *, adapters: bool) -> str:
    """What is minimised on pairs, from how many forwards, against what.

    >>> from stabledllm.config.settings import DPOSettings
    >>> preferences_in_words(DPOSettings(sft=0.05), adapters=False)[:58]
    '-log sigmoid(0.1 x margin) of pairs, plus 0.05 x the chose'
    """
    held = {"copy": "a frozen copy", "adapter": "the model without adapters", "kept": "values computed before step 1"}
    kind = dpo.held_against(adapters=adapters)
    text = f"-log sigmoid({dpo.beta:g} x margin) of pairs"
    text += f", plus {dpo.sft:g} x the chosen response's NLL per token" if dpo.sft else ""
    against = held.get(kind, f"the model {kind}")
    text += f"; the margin is of bounds from {dpo.budget} forwards a response, against {against}, on the same draws"
    return text + ("; less the bias that their noise gives" if dpo.correction == "jackknife" else "")


def policy_in_words(grpo: GRPOSettings, *, adapters: bool) -> str:
    """What is minimised on responses, from how many forwards, against what.

    >>> from stabledllm.config.settings import GRPOSettings
    >>> policy_in_words(GRPOSettings(), adapters=False)[:70]
    '-min(rho A, clip(rho) A) of responses, A their advantages in groups of'
    """
    of = {
        "token": "of each token",
        "mean": "of the response, its logarithm divided by the tokens",
        "sequence": "of the response",
    }
    reward = " + ".join(grpo.reward)
    high = grpo.clip if grpo.clip_high is None else grpo.clip_high
    text = f"-min(rho A, clip(rho) A) of responses, A their advantages in groups of {grpo.group} by the reward {reward}"
    text += f"; rho, policy over old policy {of[grpo.ratio_in_force]}, in [{1 - grpo.clip:g}, {1 + high:g}]"
    text += f", from {grpo.budget} forwards a response on the same draws" if grpo.estimator == "method" else ""
    held = {"copy": "a frozen copy", "adapter": "the model without adapters"}
    if kind := grpo.held_against(adapters=adapters):
        text += f"; plus {grpo.beta:g} x {grpo.kl} of {held.get(kind, f'the model {kind}')}"
    return text


def in_words(parts: list[str], *, unbiased: bool) -> str:
    """What a method of these parts does, in a sentence or two.

    Args:
        parts: their names without numbers; none for ``standard``. unbiased: the mean of loss and gradient is
            Standard's.

    >>> in_words(["lowdisc", "fixedcount"], unbiased=True)[:58]
    'spreads t over the rows of a step as evenly as can be; mas'
    """
    text = "; ".join(DOES[name] for name in parts or ["standard"])
    kept = "" if unbiased else ". This is another objective than Standard's: the mean of the loss changes"
    return f"{text}{kept}."

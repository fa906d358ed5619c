"""The names of the model families and attention back ends, for who checks a name and loads no framework."""

from __future__ import annotations

from stabledllm.errors import UserError, did_you_mean

FAMILY_NAMES = ("auto", "llada", "llada-moe", "dream", "mmada", "a2d", "sdar", "fast-dllm", "llada2", "mlm", "arm")
"""The keys of :data:`~stabledllm.models.families.registry.FAMILIES`, a test says, and ``auto``."""
BACK_ENDS = ("sdpa", "eager", "flash_attention_2", "flex_attention")
_FAMILY_OF = {
    "llama": "arm", "qwen": "arm", "qwen2": "arm", "qwen3": "arm", "mistral": "arm", "gpt2": "arm", "causal": "arm",
    "autoregressive": "arm", "bert": "mlm", "roberta": "mlm", "masked": "mlm", "trado": "sdar",
    "fast_dllm": "fast-dllm", "fastdllm": "fast-dllm", "llada2": "llada2",
}  # fmt: skip
"""Models' own names of what is a family here."""


def check_family(name: str) -> None:
    """Refuse an unknown family.

    Raises:
        UserError: with the nearest name.
    """
    if name not in FAMILY_NAMES:
        meant = next((family for known, family in _FAMILY_OF.items() if name.lower().startswith(known)), None)
        raise UserError(f"family: unknown '{name}'{f'; write {meant}' if meant else did_you_mean(name, FAMILY_NAMES)}.")


def check_attention(name: str) -> None:
    """Refuse an unknown attention back end.

    Raises:
        UserError: with the nearest name.
    """
    if name not in BACK_ENDS:
        near = did_you_mean(name, BACK_ENDS, most=0)
        raise UserError(f"attention: expected one of {', '.join(BACK_ENDS)}, found {name!r}{near}.")

"""``lm_eval --model stabledllm``: lm-evaluation-harness's tasks on this library's models (extra ``lm-eval``).

Releases of the harness that look for plugins find the class through this package's entry point; with others,
``python -m stabledllm.integrations.lm_eval`` replaces ``lm_eval`` and takes all of its arguments.
"""

from __future__ import annotations

from stabledllm.errors import UserError

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise UserError(
        "integrations.lm_eval: expected lm-evaluation-harness, found none; pip install 'stabledllm[lm-eval]', then "
        "python -m stabledllm.integrations.lm_eval --model stabledllm --model_args pretrained=MODEL --tasks TASKS."
    ) from None

from stabledllm.integrations.lm_eval.model import HarnessModel


@register_model("stabledllm")
class StableDLLM(HarnessModel, LM):
    """The model under the harness's own base class."""


__all__ = ["StableDLLM"]

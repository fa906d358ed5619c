"""Hugging Face's TRL with masked diffusion models: ``DPOTrainer`` and ``GRPOTrainer`` on shared draws of noise.

The lines to change::

    from stabledllm.integrations.trl import MaskedDPOTrainer    # in place of trl.DPOTrainer

or, beside other changes to a trainer of one's own, the mixin on its left::

    class MyTrainer(MaskedDPO, trl.DPOTrainer): ...

Everything else stays TRL's: data, arguments, loop, logging, adapters. Importing this needs the extra ``trl``.
"""

from stabledllm.integrations.trl.package import check_package

check_package()

from trl import DPOTrainer, GRPOTrainer  # noqa: E402

from stabledllm.integrations.trl.dpo import MaskedDPO  # noqa: E402
from stabledllm.integrations.trl.grpo import MaskedGRPO  # noqa: E402
from stabledllm.integrations.trl.loading import load_for_trl  # noqa: E402


class MaskedDPOTrainer(MaskedDPO, DPOTrainer):
    """TRL's ``DPOTrainer`` for a masked diffusion model; see :class:`MaskedDPO`."""


class MaskedGRPOTrainer(MaskedGRPO, GRPOTrainer):
    """TRL's ``GRPOTrainer`` for a masked diffusion model; see :class:`MaskedGRPO`."""


__all__ = ["MaskedDPO", "MaskedDPOTrainer", "MaskedGRPO", "MaskedGRPOTrainer", "load_for_trl"]

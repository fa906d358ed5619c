"""Sets up the libraries that the commands use for a program that works offline and prints its own lines."""

from __future__ import annotations

import logging
import os
import sys
import warnings


def quiet_libraries() -> None:
    """Switch off the libraries' network, advice and progress bars, and let their waiting threads sleep.

    What the user chose in the environment stays. Call this before the libraries are imported.
    """
    # In a log file a progress bar writes a line at every update: one in 5 seconds is enough.
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "5")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # OpenMP threads that spin while they wait take the cores from whatever else runs there: benchmarks/busy.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # advice meant for other programs
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)  # peft's call
    # transformers warns about configs that it merely reads.
    warnings.filterwarnings("ignore", message=".*rope_scaling.*", category=FutureWarning)
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)

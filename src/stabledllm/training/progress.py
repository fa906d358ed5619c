"""One progress bar a run, with the last logged figures beside it."""

from __future__ import annotations

from tqdm import tqdm
from transformers import TrainerCallback


class StepBar(TrainerCallback):
    """Optimizer steps done; in place of the Trainer's own bar, which prints a dictionary at every log."""

    def __init__(self, label: str):
        self.label, self.bar = label, None

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.label, unit="step", leave=False, delay=1
            )

    def on_step_end(self, args, state, control, **_):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **_):
        shown = {
            name: logs[name] for name in ("loss", "loss_ema", "eval_loss", "grad_norm", "ess") if name in (logs or {})
        }
        if self.bar is not None and shown:
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)

    def on_train_end(self, args, state, control, **_):
        if self.bar is not None:
            self.bar.close()

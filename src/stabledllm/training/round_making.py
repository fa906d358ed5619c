"""Makes a round of policy gradients, or takes up one that is on disk: responses, rewards, advantages, old values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import tensor

from stabledllm.data.rollout_prompts import RolloutPrompt
from stabledllm.errors import UserError
from stabledllm.evaluation.identity import digest_of
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.progress import shared_bar
from stabledllm.evaluation.rollouts import Response
from stabledllm.runtime.showing import busy
from stabledllm.training.checkpoints import in_order, step_of
from stabledllm.training.old_values import OLD, REFERENCE, values_of_round
from stabledllm.training.rounds import (
    RESPONSES,
    ROLLOUTS,
    Begun,
    Round,
    RoundFolder,
    counts_of,
    figures_of,
    folder_of,
    number_of,
    scored_rows,
    with_advantages,
)
from stabledllm.training.weights_digest import weights_digest

if TYPE_CHECKING:
    from stabledllm.training.policy import GRPOTrainer

_OF_STEPS = (
    "steps", "epochs", "trainer", "order_seed", "decoding", "image_decoding", "eval_draws", "clip", "clip_weights",
)  # fmt: skip
"""Keys of a run's identity that change no response, reward or value of a round that is begun."""


class RoundMaker:
    """Makes the rounds of one Trainer; every rank must call it, and gets the same round.

    Args:
        prompts: of the step that begins or goes on with the round, in their order.
    """

    def __init__(self, trainer: GRPOTrainer):
        self.trainer, self.ranks = trainer, trainer.ranks
        self.out = Path(trainer.args.output_dir) / ROLLOUTS

    def round_of(self, prompts: Sequence[RolloutPrompt]) -> Round:
        """The round of the Trainer's current step.

        At its first step the weights say whether what is on disk is of this round: then it is taken up, and what is
        missing is made. Later, when a run is resumed, the checkpoint says it; weights have moved since. Where neither
        is so the round is made anew from here.

        Raises:
            UserError: a reward failed; on every rank.
        """
        trainer, step = self.trainer, self.trainer.state.global_step
        begun = trainer.statistics.begun if step % trainer.inner else None
        folder = self._folder(begun, prompts) if begun and begun.number == step // trainer.inner else None
        if folder is None or not self._is_whole(folder, len(prompts)):
            begun = Begun(step // trainer.inner, step, weights_digest(trainer.bare))
            folder = self._folder(begun, prompts)
            self._clear(folder, step)
        with trainer.gathered():
            made = self._drawn(folder, begun, prompts)
            self._add_values(folder, made)
        self._drop_old_values(made)
        return made

    def _folder(self, begun: Begun, prompts: Sequence[RolloutPrompt]) -> RoundFolder:
        trainer = self.trainer
        identity = {
            "round": begun.number,
            "begun": begun.step,
            "weights": begun.weights,
            "prompts": digest_of([prompt.ids for prompt in prompts]),
            "run": digest_of({key: value for key, value in trainer.identity.items() if key not in _OF_STEPS}),
            "seed": trainer.noise_seed,
            **trainer.rollouts.identity,
        }
        return RoundFolder(folder_of(self.out, begun.number), identity)

    def _is_whole(self, folder: RoundFolder, prompts: int) -> bool:
        """Whether a round whose first step is past has all that it needs."""
        responses = prompts * self.trainer.rollouts.group
        return self.ranks.agree(
            folder.holds_this() and folder.scores(responses) is not None and folder.values() is not None
        )

    def _clear(self, folder: RoundFolder, step: int) -> None:
        """Begin a round whose first step comes, unless this very one was begun already."""
        if self.ranks.rank == 0 and not folder.holds_this():
            if not folder.is_empty() or step % self.trainer.inner:
                name = folder.folder.name
                self.trainer.say(
                    f"{name}: what is there is of other weights or settings; made anew from step {step + 1}"
                )
            folder.begin()
        self.ranks.agree(None)

    def _drawn(self, folder: RoundFolder, begun: Begun, prompts: Sequence[RolloutPrompt]) -> Round:
        trainer, rollouts = self.trainer, self.trainer.rollouts
        n = len(prompts) * rollouts.group
        journal = Journal(folder.folder, ROLLOUTS, folder.identity, self.ranks)
        with (
            shared_bar(n, f"round {begun.number + 1}", "response", self.ranks) as progress,
            trainer.accelerator.autocast(),
        ):
            responses, stats = rollouts.draw(trainer.bare, prompts, begun.number * n, journal, progress)
        each = [prompt for prompt in prompts for _ in range(rollouts.group)]
        rows, metrics = self._scored(folder, each, responses)
        _, found = with_advantages(rows, rollouts.group, trainer.scale)
        return Round(
            begun,
            rollouts.rows(each, responses),
            found,
            figures_of(rows, rollouts.group, metrics),
            stats.forward_rows,
            self._counted(begun, folder, rows),
        )

    def _counted(self, begun: Begun, folder: RoundFolder, rows: list[dict]) -> dict[str, int]:
        """The counts of a round's groups; the first time that none teaches anything, the user is told."""
        trainer = self.trainer
        counts = counts_of(rows, trainer.rollouts.group)
        if counts["groups_all_equal"] == counts["groups"] and not trainer.statistics.told_equal:
            trainer.statistics.told_equal = True
            length = sum(row["tokens"] for row in rows) / len(rows)
            trainer.say(
                f"note: round {begun.number + 1}: all responses to each prompt have the same reward, so that nothing "
                f"is learnt from it ({length:.3g} tokens a response; see {folder.folder / RESPONSES})"
            )
        return counts

    def _scored(
        self, folder: RoundFolder, prompts: Sequence[RolloutPrompt], responses: Sequence[Response]
    ) -> tuple[list[dict], dict[str, float]]:
        """The responses with their rewards: those on disk, or as the first rank asks for them once."""
        outcome = None
        if self.ranks.rank == 0:
            try:
                outcome = folder.scores(len(responses)) or self._ask(folder, prompts, responses)
            except UserError as error:
                outcome = error
        outcome = self.ranks.agree(outcome)
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    def _ask(self, folder, prompts, responses) -> tuple[list[dict], dict[str, float]]:
        trainer = self.trainer
        texts = [trainer.rollouts.text(response) for response in responses]
        with busy("asking for rewards"):
            scores = trainer.rewards.score(prompts, texts, [list(r.ids) for r in responses], trainer.state)
        rows, _ = with_advantages(scored_rows(prompts, texts, responses, scores), trainer.rollouts.group, trainer.scale)
        folder.keep_scores(rows, scores.metrics)
        return rows, scores.metrics

    def _add_values(self, folder: RoundFolder, made: Round) -> None:
        """Give the round the values of old policy and reference, from disk or computed now."""
        trainer = self.trainer
        first, end = made.begun.step, (made.begun.number + 1) * trainer.inner
        if end - first == 1 and not trainer.reference:
            return
        tables = self.ranks.agree(folder.values() if self.ranks.rank == 0 else None)
        forwards = 0
        if tables is None:
            tables, forwards = values_of_round(trainer, made.rows, first, end)
            if self.ranks.rank == 0 and end - first > 1:  # a round of one step has no middle to resume from
                folder.keep_values(tables | {"forward_rows": tensor(forwards)})
        made.value_rows = forwards or int(tables["forward_rows"])
        made.old, made.reference = (
            {int(key.partition("/")[2]): table for key, table in tables.items() if key.startswith(name)}
            for name in (OLD, REFERENCE)
        )

    def _drop_old_values(self, now: Round) -> None:
        """Delete the values of rounds in whose middle there is no checkpoint."""
        if self.ranks.rank:
            return
        inner = self.trainer.inner
        steps = [step_of(folder) for folder in in_order(Path(self.trainer.args.output_dir))]
        needed = {step // inner for step in steps if step % inner} | {now.begun.number}
        for folder in self.out.glob("round-*"):
            if number_of(folder) not in needed:
                RoundFolder(folder, {}).drop_values()

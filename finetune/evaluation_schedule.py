"""When a run is evaluated, which of its states was the best, and when it stops because none better comes."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.config import FinetuneConfig


@dataclass
class Best:
    """The best score on --dev so far. Saved with every checkpoint, so that a resumed run judges as one never stopped."""

    score: float | None = None
    """By the task's main metric, larger is better; None before the first evaluation."""
    step: int = 0
    """When it was reached."""
    without_better: int = 0
    """Evaluations since then."""
    heard: int = 0
    """The step of the last evaluation, better or not."""

    def hear(self, step: int, score: float) -> None:
        """Take the score of ``step`` into account. An equal one is not better: the earlier state is kept."""
        self.heard = step
        if self.score is None or score > self.score:
            self.score, self.step, self.without_better = score, step, 0
        else:
            self.without_better += 1

    def exhausted(self, patience: int | None) -> bool:
        """Whether ``patience`` evaluations in a row were no better."""
        return patience is not None and self.without_better >= patience


def evaluates_after(step: int, config: FinetuneConfig, steps_per_epoch: int, total_steps: int) -> bool:
    """Whether the run is evaluated when ``step`` (from 1) is done.

    The last step's evaluation is that of the finished model, after the loop; where the best is kept it may not be the
    finished one, so the loop judges it too.
    """
    if config.dev is None:
        return False
    if step == total_steps:
        return config.keeps_best
    every = config.evaluate_every
    if every is None and (config.evaluate_each_epoch or config.keeps_best):
        every = steps_per_epoch
    return every is not None and step % every == 0

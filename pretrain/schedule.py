"""How far a run is, and the learning rate there: warm-up, then linear decay to zero (§4.2)."""

from __future__ import annotations

from dataclasses import dataclass, field

from pretrain.config import PretrainConfig
from spanbert.errors import UserError
from spanbert.training.optim import linear_schedule

#: Optimizer steps when no length is given, and those of warm-up: the paper's.
PAPER_STEPS, PAPER_WARMUP = 2_400_000, 10_000
#: Warm-up, as a share of the run, by default when the paper's would be a larger share.
SHORT_WARMUP = 0.06


@dataclass
class Counters:
    """How far a run is. Saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Wall-clock time in the loop, over all sessions, as far as a checkpoint keeps it."""
    bad_in_a_row: int = 0
    """Steps up to now that were skipped because something was not finite, without a good one in between."""
    cursor: list[int] | None = None
    """The place in the stream with --stream (``pretrain.data.streaming.Cursor``)."""
    window: list[list[float]] = field(default_factory=list)
    """Steps since the last record in metrics.jsonl (``StepLog.stored``), so that a resumed run writes the same next one."""


class Schedule:
    """Warm-up and linear decay over steps, tokens or minutes, whichever the config bounds.

    tokens_per_step: about how many there are, to tell a warm-up that is longer than the run.
    Raises UserError for such a one.
    """

    def __init__(self, config: PretrainConfig, tokens_per_step: float):
        if config.minutes is not None:
            self.unit, self.total = "min", config.minutes
        elif config.tokens is not None:
            self.unit, self.total = "tokens", config.tokens
        else:
            self.unit, self.total = "steps", config.steps or PAPER_STEPS
        self.last_step = int(self.total) if self.unit == "steps" else 2**31
        steps = {"steps": self.total, "tokens": self.total / tokens_per_step, "min": float("inf")}[self.unit]
        default = PAPER_WARMUP if SHORT_WARMUP * steps >= PAPER_WARMUP and self.unit != "min" else SHORT_WARMUP
        self.warmup = default if config.warmup is None else config.warmup
        if self.warmup >= 1 and steps <= self.warmup:
            raise UserError(
                f"--warmup {self.warmup:,.0f} steps would take the whole run of {steps:,.0f} steps: give fewer, "
                "or a share of the run such as --warmup 0.06"
            )

    def __str__(self) -> str:
        """For the line that says what to expect, e.g. "3,000 steps, warm-up over 6 % of them"."""
        length = {
            "steps": f"{self.total:,} steps",
            "tokens": f"{self.total:,} tokens",
            "min": f"{self.total:g} minutes",
        }
        warmup = f"{self.warmup:,.0f} steps" if self.warmup >= 1 else f"{100 * self.warmup:g} % of the run"
        return f"{length[self.unit]}, warm-up over {warmup}"

    def position(self, counters: Counters) -> float:
        """How far, in the schedule's own unit, for a progress bar."""
        if self.unit == "min":
            return round(min(counters.seconds / 60, self.total), 2)
        return counters.tokens if self.unit == "tokens" else counters.step

    def progress(self, counters: Counters) -> float:
        """How far, as a share of the run: the number that decides both the learning rate and the end."""
        done = counters.seconds / 60 if self.unit == "min" else self.position(counters)
        return min(done / self.total, 1.0)

    def steps_in_all(self, counters: Counters) -> int:
        """Length of the run in steps; of one told in tokens or minutes, an estimate from how far it is."""
        if self.unit == "steps":
            return int(self.total)
        return max(round(counters.step / max(self.progress(counters), 1e-9)), counters.step)

    def done(self, counters: Counters) -> bool:
        return self.progress(counters) >= 1.0

    def multiplier(self, counters: Counters) -> float:
        """Learning rate ÷ peak of the coming step. The first step already moves, the last one still does."""
        progress, step = self.progress(counters), counters.step
        if self.warmup < 1:
            one_step = 1 / self.total if self.unit == "steps" else progress / max(step, 1)
            if progress < self.warmup:
                return min(max(progress + one_step, 1e-4) / self.warmup, 1.0)
            return linear_schedule(progress, self.warmup)
        if step < self.warmup:
            return (step + 1) / self.warmup
        # the share of the run that the warm-up took: exact for steps, as good as the rate is even for tokens
        return linear_schedule(progress, progress * self.warmup / step)

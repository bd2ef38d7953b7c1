"""The options of ``spanbert pretrain`` and the schedule they imply. Defaults: the paper's recipe (§4.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from pretrain.masking import MaskConfig
from spanbert.errors import UserError
from spanbert.optim import linear_schedule


@dataclass(frozen=True)
class PretrainConfig:
    data: tyro.conf.Positional[Path]
    """Folder that `spanbert prepare` wrote."""
    output: Path
    """Folder of the run: config, metrics, curves, checkpoints, and at the end the model."""
    size: Literal["mini", "small", "base", "large"] = "base"
    """Shape of a new encoder (ignored with --init-from)."""
    init_from: Path | None = None
    """Go on from this model folder or run (ours, BERT's or SpanBERT's after `spanbert import`)."""

    steps: int | None = None
    """Length of the run in optimizer steps. Give one of --steps, --tokens, --minutes (none: the paper's 2,400,000 steps)."""
    tokens: int | None = None
    """Length of the run in tokens seen."""
    minutes: float | None = None
    """Length of the run in minutes of training time: warm-up and decay are planned for that."""
    batch_size: int = 256
    """Sequences an optimizer step."""
    micro_batch_size: int = 16
    """Sequences a forward pass; the step's gradient does not depend on it."""
    lr: float = 1e-4
    """Peak learning rate."""
    warmup: float = 10_000
    """Linear warm-up: a share of the run when below 1, else a number of steps."""
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Gradient norm above which the gradient is scaled down; 0 never."""
    dropout: float = 0.1
    """On embeddings and at the end of each half layer."""
    attention_dropout: float = 0.1
    """On attention probabilities; 0 makes training faster and is often better for short runs."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    sbo: bool = True
    """Train the span-boundary objective beside MLM."""

    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the device has matrix units for it, else fp32."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Who computes attention; auto: triton on a GPU, eager on a CPU."""
    workers: int = 0
    """Processes that prepare batches ahead; 0: the training process itself. Does not change the data."""

    log_every: int = 10
    """Steps between records in metrics.jsonl."""
    eval_every: int = 1000
    """Steps between validations."""
    eval_sequences: int = 512
    """Held-out blocks to validate on, always the same under the same masks."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints to keep, besides the best."""
    resume: bool = False
    """Go on with the run in --output from its newest whole checkpoint."""

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "tokens", "minutes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} exclude each other: give the length of the run once")
        for name in ("batch_size", "micro_batch_size", "log_every", "eval_every", "eval_sequences", "save_every", *given):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        for name in ("lr", "weight_decay", "clip_norm", "warmup"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.keep_last < 1:
            raise UserError("--keep-last must be at least 1: without a checkpoint a run cannot be resumed")


#: Options that a resumed run may change without changing what it computes from the data.
MAY_DIFFER_ON_RESUME = (
    "resume", "data", "output", "workers", "device", "precision", "backend", "micro_batch_size",
    "log_every", "eval_every", "save_every", "keep_last", "steps", "tokens", "minutes",
)  # fmt: skip


@dataclass
class Counters:
    """How far a run is. Saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Schedule:
    """Warm-up and linear decay over steps, tokens or minutes, whichever the config bounds."""

    def __init__(self, config: PretrainConfig):
        self.warmup = config.warmup
        if config.minutes is not None:
            self.unit, self.total = "min", config.minutes
        elif config.tokens is not None:
            self.unit, self.total = "tokens", config.tokens
        else:
            self.unit, self.total = "steps", config.steps or 2_400_000
        self.last_step = int(self.total) if self.unit == "steps" else 2**31

    def position(self, counters: Counters) -> float:
        """How far, in the schedule's own unit."""
        if self.unit == "min":
            return round(min(counters.seconds / 60, self.total), 2)
        return counters.tokens if self.unit == "tokens" else counters.step

    def progress(self, counters: Counters) -> float:
        """How far, as a share of the run."""
        done = counters.seconds / 60 if self.unit == "min" else self.position(counters)
        return min(done / self.total, 1.0)

    def multiplier(self, counters: Counters) -> float:
        """Learning rate ÷ peak for the coming step (the first step of a warm-up already moves)."""
        progress = self.progress(counters)
        if self.warmup < 1:
            one_step = 1 / self.total if self.unit == "steps" else progress / max(counters.step, 1)
            return linear_schedule(max(progress, one_step, 1e-4), self.warmup)
        return min((counters.step + 1) / self.warmup, linear_schedule(progress, 0.0))

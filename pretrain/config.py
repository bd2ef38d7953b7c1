"""The options of ``spanbert pretrain``. Defaults: the paper's recipe (§4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from pretrain.masking.masker import MaskConfig
from spanbert.config import check_range
from spanbert.errors import UserError


@dataclass(frozen=True)
class PretrainConfig:
    data: tyro.conf.Positional[Path]
    """Folder that `spanbert prepare` wrote."""
    output: Path
    """Folder of the run: config, metrics, curves, checkpoints, and at the end the model."""
    stream: tuple[str, ...] = ()
    """Train on this text as it comes (hf:NAME[:CONFIG[:SPLIT]], files, folders); DATA, prepared from a sample, then gives tokenizer, block length and held-out blocks."""
    size: Literal["mini", "small", "base", "large"] = "base"
    """Shape of a new encoder (ignored with --init-from)."""
    init_from: Path | None = None
    """Start from this model folder or run (ours, BERT's or SpanBERT's after `spanbert import`), or from "bundled", the encoder that comes with this program."""

    steps: int | None = None
    """Length of the run in optimizer steps. Give one of --steps, --tokens, --minutes (none: the paper's 2,400,000 steps)."""
    tokens: int | None = None
    """Length of the run in tokens seen."""
    minutes: float | None = None
    """Length of the run in minutes of wall-clock time, validation and saving included: warm-up and decay are planned for that."""
    batch_size: int = 256
    """Sequences an optimizer step."""
    micro_batch_size: int = 16
    """Full blocks whose tokens a forward pass holds at most (more sequences when they are shorter); the gradient does not depend on it."""
    lr: float = 1e-4
    """Peak learning rate."""
    warmup: float | None = None
    """Linear warm-up, after which the rate falls linearly to 0: a share of the run when below 1, else a number of steps. By default the paper's 10,000 steps, and 6 % of a run for which these are more than that."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and embeddings; biases and LayerNorm have none."""
    beta1: float = 0.9
    """AdamW's decay of the gradient's mean."""
    beta2: float = 0.999
    """AdamW's decay of the gradient's square; 0.98 suits short runs."""
    eps: float = 1e-8
    """AdamW's denominator floor."""
    clip_norm: float = 1.0
    """Gradient norm above which the gradient is scaled down; 0 never."""
    dropout: float = 0.1
    """On embeddings and at the end of each half layer."""
    attention_dropout: float = 0.1
    """On attention probabilities; 0 makes training faster and is often better for short runs."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    """What is masked and how."""
    sbo: bool = True
    """Train the span-boundary objective beside MLM."""

    shift_positions: bool = False
    """Begin each training sequence at a random position, so that short blocks train the whole table of positions."""

    seed: int = 0
    """Decides initialisation, order, masks and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the device has matrix units for it, else fp32."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Who computes attention; auto: triton on a GPU, eager on a CPU."""
    workers: int | None = None
    """Processes that prepare batches ahead; 0: the training process itself; by default 4 beside a GPU, else 0. Does not change the data."""

    log_every: int = 10
    """Steps between records in metrics.jsonl."""
    eval_every: int = 1000
    """Steps between validations."""
    eval_sequences: int = 512
    """Held-out blocks to validate on, always the same under the same masks."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints to keep, besides the best; never fewer than 2, for the newest may turn out damaged."""
    resume: bool = False
    """Continue the run in --output from its newest whole checkpoint."""
    stop_after_bad_steps: int = 20
    """Give up after so many steps in a row whose loss or gradient was not finite (each is skipped and logged)."""
    replay: int | None = None
    """Train nothing: go from the run's last checkpoint before this step to it, and examine its loss and gradient."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every rank holds the model (ddp), or a slice of weights, gradients and moments (fsdp)."""
    compile: bool = False
    """Compile the encoder's layers (torch.compile); the first steps then take long."""
    profile: bool = False
    """Record steps 5 to 7 of this session into profile/table.txt and profile/trace.json (for Perfetto)."""
    wandb: bool = False
    """Also log to Weights & Biases; WANDB_MODE=offline needs no account."""

    def __post_init__(self) -> None:
        lengths = [name for name in ("steps", "tokens", "minutes") if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise UserError(f"--{lengths[0]} and --{lengths[1]} exclude each other: give the length of the run once")
        counted = ("batch_size", "micro_batch_size", "log_every", "eval_every", "eval_sequences", "save_every")
        check_range(self, 1, math.inf, *counted, "stop_after_bad_steps", "keep_last", "steps", "tokens")
        check_range(self, 0, math.inf, "minutes", "eps", above=True)
        check_range(self, 0, math.inf, "lr", "weight_decay", "clip_norm", "warmup", "workers")
        check_range(self, 1, math.inf, "replay")
        check_range(self, 0, 1, "dropout", "attention_dropout", "beta1", "beta2", below=True)
        check_range(self, 0, 2**63, "seed", below=True)
        if self.minutes is not None and self.warmup is not None and self.warmup >= 1:
            raise UserError(
                "--minutes needs --warmup as a share of the run, such as --warmup 0.06: nobody can say whether "
                f"{self.warmup:,.0f} steps of warm-up would ever end in {self.minutes:g} minutes"
            )


#: Options that a resumed run may change: they change neither the data nor the masks, but for how long, where and how
#: fast. (Another micro-batch size, precision, device or back-end rounds differently, and draws other dropout.)
MAY_DIFFER_ON_RESUME = (
    "resume", "data", "output", "workers", "device", "precision", "backend", "micro_batch_size", "log_every",
    "eval_every", "save_every", "keep_last", "steps", "tokens", "minutes", "init_from", "stop_after_bad_steps",
    "replay", "parallel", "compile", "profile", "wandb",
)  # fmt: skip

"""The options of `spanbert finetune qa`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spanbert.errors import UserError


@dataclass(frozen=True)
class FinetuneQAConfig:
    """Fine-tune on extractive questions: SQuAD 1.1, SQuAD 2.0 or MRQA files, plain or .gz."""

    train: Path
    """Training questions. Malformed records are skipped, counted and listed in OUTPUT/skipped.txt."""
    output: Path
    """The run's folder: config, metrics, predictions, and the final model in OUTPUT/model."""
    init: str
    """Where the encoder comes from: a model or run folder, "shipped" (the one that comes with this program), or "random"."""
    dev: Path | None = None
    """Questions to evaluate on at the end, and on which the null threshold is chosen. Must be well-formed."""
    size: Literal["mini", "small", "base", "large"] = "mini"
    """Shape of the encoder with --init random."""
    tokenizer: Path | None = None
    """Tokenizer folder or vocab.txt with --init random; otherwise the model brings its own."""
    lowercase: bool | None = None
    """Lower-case text, instead of what the tokenizer's own files say."""
    max_train_questions: int | None = None
    """Train on the first N questions of a shuffle fixed by --shuffle-seed."""
    shuffle_seed: int = 0
    """Seed of that shuffle, apart from --seed so that runs of several seeds see the same questions."""
    epochs: int = 4
    """Passes over the training windows."""
    batch_size: int = 32
    """Windows of an optimizer step."""
    micro_batch_size: int = 0
    """Windows of a forward pass, to save memory; 0 for all of the batch. The gradients are the same."""
    lr: float = 3e-5
    """Peak learning rate (the paper picks from 5e-6, 1e-5, 2e-5, 3e-5, 5e-5)."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises; then it falls linearly to 0."""
    weight_decay: float = 0.01
    """AdamW's, for matrices only."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    dropout: float = 0.1
    """Of hidden states and of attention."""
    window: int = 384
    """Length of a window in pieces, question and special tokens included."""
    stride: int = 128
    """Step between windows, in context pieces."""
    max_question: int = 64
    """Pieces kept of a question; cut ones are counted and reported."""
    max_answer: int = 30
    """Longest answer at decoding, in pieces."""
    seed: int = 0
    """Of the head's initialisation, the data order and dropout."""
    save_every: int = 500
    """Steps between checkpoints to resume from."""
    evaluate_each_epoch: bool = False
    """Also evaluate on --dev after every epoch but the last."""
    resume: bool = False
    """Go on with the run in OUTPUT."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; weights and optimizer are fp32."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Attention implementation."""

    def check(self) -> None:
        """UserError for values that make no sense together."""
        for name in ("epochs", "batch_size", "max_answer", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: give at least 1.")
        if self.max_train_questions is not None and self.max_train_questions < 1:
            raise UserError(f"--max-train-questions {self.max_train_questions}: give at least 1.")
        if self.micro_batch_size < 0:
            raise UserError(f"--micro-batch-size {self.micro_batch_size}: give 0 or more.")
        if not 0 <= self.dropout < 1 or not 0 <= self.warmup <= 1:
            raise UserError("--dropout must be in [0, 1) and --warmup in [0, 1].")
        if self.init == "random" and self.tokenizer is None:
            raise UserError("--init random needs --tokenizer (a folder or a vocab.txt).")
        if self.init != "random" and self.tokenizer is not None:
            raise UserError(f"--tokenizer goes with --init random only; {self.init} brings its own.")
        if self.evaluate_each_epoch and self.dev is None:
            raise UserError("--evaluate-each-epoch needs --dev.")


#: Options that may change when a run is resumed: they do not touch the numbers.
MAY_DIFFER_ON_RESUME = ("resume", "save_every", "device")

"""The options that all tasks have; a task's own commands add theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from spanbert.config import check_range
from spanbert.errors import UserError
from spanbert.model.lora import LoRAConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of `spanbert finetune TASK`."""

    train: Path
    """Labelled examples. Malformed records are skipped, counted and listed in OUTPUT/skipped.txt."""
    output: Path
    """The run's folder: config, metrics, predictions, and the final model in OUTPUT/model."""
    init: str
    """Where the encoder comes from: a model or run folder, "bundled" (the one that comes with this program), or "random"."""
    dev: Path | None = None
    """Examples to evaluate on at the end, and on which settings such as a null threshold are chosen. Must be well-formed."""
    limit: int | None = None
    """Only the first N examples of each file, to try a command out."""
    size: Literal["mini", "small", "base", "large"] = "mini"
    """Shape of the encoder with --init random."""
    tokenizer: Path | None = None
    """Tokenizer folder or vocab.txt with --init random; otherwise the model brings its own."""
    lowercase: bool | None = None
    """Lower-case text, instead of what the tokenizer's own files say."""
    shuffle_seed: int = 0
    """Seed of the shuffle that chooses when only some examples are trained on; apart from --seed, so that runs of several seeds see the same ones."""
    examples_per_class: int | None = None
    """Train on so many examples of each class, drawn by --seed (tasks with one class an example)."""
    rehearse: Path | None = None
    """Examples that the model was trained on before: a share of each batch is drawn from them, so that they are not forgotten. What the task learns from its data, such as the set of labels, is then learned from these."""
    rehearse_share: float = 0.2
    """Share of a batch's windows that --rehearse has."""
    rehearse_dev: Path | None = None
    """Examples of the old data to score before and after; the new ones are those of --dev."""
    pull: float = 0.0
    """Strength of the pull towards the weights of --init (L2-SP): this ÷ 2 × the squared distance is added to the loss."""
    epochs: int = 4
    """Passes over the training windows."""
    batch_size: int = 32
    """Windows of an optimizer step, on all ranks together."""
    micro_batch_size: int = 0
    """Windows of a forward pass, to save memory; 0 for all that a rank has of a batch. The gradients are the same."""
    lr: float = 3e-5
    """Peak learning rate (the paper picks from 5e-6, 1e-5, 2e-5, 3e-5, 5e-5)."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises; then it falls linearly to 0."""
    weight_decay: float = 0.01
    """AdamW's, for matrices only."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    layer_decay: float = 1.0
    """Each layer learns at this times the rate of the layer above it, the embeddings slowest, the head at --lr."""
    freeze: str = ""
    """Parts that are not trained: embeddings, layers by number or range, with commas between: embeddings,0-3."""
    bias_only: bool = False
    """Train the biases and the head alone (BitFit); takes a higher --lr, such as 1e-3."""
    lora: str = ""
    """Train low-rank additions and the head alone: rank=8,alpha=16,on=attention (or feed-forward, or both). OUTPUT/model is then an adapter of --init; takes a higher --lr, such as 1e-3."""
    dropout: float = 0.1
    """Of hidden states and of attention."""
    seed: int = 0
    """Of the head's initialisation, the data order and dropout."""
    seeds: tuple[int, ...] = ()
    """Train once with each of these seeds, in OUTPUT/seed-N, and write mean and standard deviation of the scores on --dev."""
    log_every: int = 10
    """Steps between records of metrics.jsonl."""
    save_every: int = 500
    """Steps between checkpoints to resume from; the newest two are kept."""
    stop_after_bad_steps: int = 10
    """Give up after so many steps in a row whose loss or gradient is not finite; such steps are skipped."""
    evaluate_each_epoch: bool = False
    """Also evaluate on --dev after every epoch but the last."""
    evaluate_every: int | None = None
    """Also evaluate on --dev every N steps, instead of after epochs."""
    keep_best: bool = False
    """Leave the model that was best on --dev by the task's main metric, of all evaluations (after epochs, or by --evaluate-every), instead of the last one."""
    patience: int | None = None
    """Stop when N evaluations in a row were no better than the best one before them; goes with --keep-best."""
    resume: bool = False
    """Resume the run in OUTPUT."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; weights and optimizer are fp32."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Attention implementation."""
    wandb: bool = False
    """Also log to Weights & Biases; WANDB_MODE=offline needs no account."""

    @property
    def keeps_best(self) -> bool:
        """Whether the best state on --dev is the run's model; stopping early without that would leave a worse one."""
        return self.keep_best or self.patience is not None

    @property
    def max_examples(self) -> int | None:
        """How many examples to train on, where that is limited."""
        return None

    def check(self) -> None:
        """UserError for values that make no sense together."""
        check_range(self, 1, math.inf, "epochs", "batch_size", "save_every", "log_every", "stop_after_bad_steps")
        check_range(self, 0, math.inf, "micro_batch_size", "lr", "weight_decay", "clip_norm")
        check_range(self, 0, 1, "dropout", below=True)
        check_range(self, 0, 1, "warmup")
        check_range(self, 0, 1, "layer_decay", above=True)
        if self.lora:
            LoRAConfig.parse(self.lora)
        if sum(map(bool, (self.lora, self.bias_only, self.freeze))) > 1:
            raise UserError("--freeze, --bias-only and --lora exclude each other: each says what is trained.")
        if self.lora and self.init == "random":
            raise UserError("--lora needs a trained --init: a random one would stay random.")
        check_range(self, 0, 2**63, "seed", "shuffle_seed", below=True)
        if self.init == "random" and self.tokenizer is None:
            raise UserError("--init random needs --tokenizer (a folder or a vocab.txt).")
        if self.init != "random" and self.tokenizer is not None:
            raise UserError(f"--tokenizer goes with --init random only; {self.init} brings its own.")
        check_range(self, 1, math.inf, "limit", "evaluate_every", "patience", "examples_per_class")
        check_range(self, 0, math.inf, "pull")
        check_range(self, 0, 1, "rehearse_share", above=True, below=True)
        if self.rehearse is not None and not 0 < round(self.rehearse_share * self.batch_size) < self.batch_size:
            raise UserError(
                f"--rehearse-share {self.rehearse_share}: of {self.batch_size} windows that leaves none old, or none new."
            )
        if self.pull and (self.lora or self.init == "random"):
            raise UserError(
                "--pull goes towards the weights of --init: not with --lora, which leaves them, nor from random ones."
            )
        if self.examples_per_class is not None and self.max_examples is not None:
            raise UserError("--examples-per-class and a largest number of examples exclude each other.")
        if self.rehearse_dev is not None and self.dev is None:
            raise UserError("--rehearse-dev needs --dev: the scores of old and new data are told together.")
        for option in ("evaluate_each_epoch", "evaluate_every", "keep_best", "patience", "seeds"):
            if getattr(self, option) and self.dev is None:
                raise UserError(f"--{option.replace('_', '-')} needs --dev.")
        if self.evaluate_each_epoch and self.evaluate_every is not None:
            raise UserError("--evaluate-each-epoch and --evaluate-every exclude each other: say once when to evaluate.")
        if len(set(self.seeds)) < len(self.seeds) or any(not 0 <= seed < 2**63 for seed in self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: give different numbers of at least 0.")


#: Options that a resumed run may change. What lies at "train" is compared by its hash, wherever it lies now. Another device,
#: precision, back-end or micro-batch size rounds differently and draws other dropout; the rest touches no weight at all.
MAY_DIFFER_ON_RESUME = (
    "resume", "log_every", "save_every", "stop_after_bad_steps", "evaluate_each_epoch", "train", "dev", "output",
    "rehearse", "rehearse_dev",
    "device", "precision", "backend", "micro_batch_size", "wandb",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of `spanbert evaluate TASK`."""

    model: Positional[Path]
    """Model or run folder."""
    file: Positional[Path | None] = None
    """Labelled examples, in a format that the task trains on."""
    output: Path | None = None
    """Folder for metrics.json and the predictions."""
    limit: int | None = None
    """Only the first N examples of the file."""
    batch_tokens: int = 16384
    """Tokens of a batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Arithmetic of the forward pass; int8 is for CPUs with units for it."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Attention implementation."""


@dataclass(frozen=True)
class PredictConfig:
    """Options of `spanbert predict TASK`."""

    model: Positional[Path]
    """Model or run folder."""
    file: Positional[Path]
    """Examples without labels (those there are are not looked at)."""
    output: Path | None = None
    """File for the predictions, one JSON object a line, instead of standard output."""
    limit: int | None = None
    """Only the first N examples of the file."""
    batch_tokens: int = 16384
    """Tokens of a batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Arithmetic of the forward pass; int8 is for CPUs with units for it."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Attention implementation."""

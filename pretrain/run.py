"""One session of a pretraining run, made ready: the data, the model, the optimizer, the folder, where it begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from pretrain.config import MAY_DIFFER_ON_RESUME, PretrainConfig
from pretrain.data.batches import StepBatch, StepBatches, load_steps
from pretrain.data.blocks import Blocks, read_settings
from pretrain.data.integrity import QUICK_BYTES, check_hashes
from pretrain.data.sampler import DataOrder
from pretrain.data.streaming import StreamedSteps, stream_of
from pretrain.data.unigram import read_unigram_counts
from pretrain.masking.masker import Masker
from pretrain.metrics import Validation
from pretrain.schedule import Counters, Schedule
from pretrain.step import TargetCounts, step_loss
from spanbert.checkpoint.training_state import load_training_state
from spanbert.device import choose_precision
from spanbert.distributed import Group, restarts
from spanbert.errors import UserError
from spanbert.model.batch import MaskedBatch
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.init_model import init_model
from spanbert.training.optim import adamw
from spanbert.training.parallel import parallelise
from spanbert.training.resume import RunStart, data_identity
from spanbert.training.run_folder import RunFolder
from spanbert.training.step import OptimizerStep, StepResult


@dataclass(frozen=True)
class PretrainData:
    """A prepared corpus under a run's masks and order."""

    blocks: Blocks
    tokenizer: Tokenizer
    unigram_V: np.ndarray
    masker: Masker
    order: DataOrder
    validation: Validation

    @property
    def identity(self) -> str:
        """What makes two prepared corpora the same to a run: tokenizer, block lengths, token counts."""
        return data_identity(self.tokenizer.fingerprint, self.blocks.lengths, self.unigram_V)

    @property
    def attended(self) -> float:
        """How many tokens a token sees on average, itself included."""
        lengths = self.blocks.lengths
        return float((lengths.astype(np.float64) ** 2).sum() / lengths.sum())


@dataclass
class PretrainRun:
    """What the loop works with. ``folder`` is None on all ranks but the main one, and in a replay."""

    config: PretrainConfig
    group: Group
    start: RunStart
    folder: RunFolder | None
    precision: str
    data: PretrainData
    model: SpanBertForPretraining
    parallel: nn.Module
    step: OptimizerStep
    schedule: Schedule
    counters: Counters

    @property
    def budget(self) -> int:
        """Tokens that a forward pass holds at most."""
        return self.config.micro_batch_size * self.data.blocks.block_length

    def batches(self) -> Iterator[StepBatch]:
        """This rank's share of the steps to come, prepared ahead; it ends with the run (or after the step to replay)."""
        config, group, data = self.config, self.group, self.data
        on_gpu = group.device.type == "cuda"
        workers = config.workers if config.workers is not None else 4 if on_gpu else 0
        batches: StreamedSteps | StepBatches
        if config.stream:
            block_length = data.blocks.block_length
            batches = stream_of(config, data.tokenizer, data.masker, block_length, self.budget, self.counters, group)
        else:
            batches = StepBatches(data.blocks, data.masker, data.order, self.budget, group.rank, group.world)
        last = max(self.schedule.last_step, config.replay or 0)
        return load_steps(batches, self.counters.step, last, workers, pin=on_gpu)

    def micro_batches(self, batch: StepBatch) -> list[MaskedBatch[Tensor]]:
        """This rank's parts of a step, positions shifted where the run asks for it."""
        table = self.model.config.max_position_embeddings if self.config.shift_positions else None
        return batch.micro_batches(self.config.seed, table)

    def gradients(self, batch: StepBatch, counts: TargetCounts) -> StepResult:
        """The gradient of sums ÷ the whole step's targets."""
        loss = step_loss(counts, self.config.sbo, self.group.device)
        return self.step.gradients(batch.step, self.micro_batches(batch), loss)

    def take(self, result: StepResult) -> float:
        """Take the step at the rate of its place in the schedule → that rate."""
        lr = self.config.lr * self.schedule.multiplier(self.counters)
        self.step.take(lr, result)
        return lr


def begin_run(config: PretrainConfig, group: Group) -> RunStart:
    """Where the run begins, before anything is read; it is to be closed. Raises UserError as ``RunStart`` does.

    A rank that torchrun started again resumes by itself, unless the ranks died before they had begun.
    """
    return RunStart(
        config.output,
        config,
        MAY_DIFFER_ON_RESUME,
        resume=config.resume or restarts() > 0 or config.replay is not None,
        optional=restarts() > 0,
        before=config.replay,
        keep_last=config.keep_last,
        complete=lambda: config.replay is None and (config.output / "model" / "config.json").is_file(),
        group=group,
    )


def set_up(config: PretrainConfig, group: Group, start: RunStart) -> PretrainRun:
    """Everything that the loop needs; a resumed run finds its model, optimizer and counters as it left them.

    The folder is written to last of all, when nothing can be refused any more. Raises UserError for data that cannot be
    trained on, or that another run was started with, and as ``init_model``, ``Schedule`` and ``parallelise`` do.
    """
    blocks, tokenizer = _open_blocks(config, group)
    model = _make_model(config, group, start, tokenizer, blocks.block_length)
    data = _mask(config, group, blocks, tokenizer, model.config.sbo_positions)
    schedule = Schedule(config, tokens_per_step=config.batch_size * float(blocks.lengths.mean()))

    precision = choose_precision(group.device, config.precision)
    parallel = parallelise(model, model.encoder.layers, group, config.parallel)
    optimizer = adamw(model, config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay)
    start.check_data(data.identity, config.data)
    counters = Counters()
    if start.checkpoint is not None:
        counters = Counters(**load_training_state(start.checkpoint, model, optimizer))
        group.print_main(f"resuming from {start.checkpoint}: step {counters.step:,}, {counters.tokens:,} tokens")
    step = OptimizerStep(
        model, parallel, optimizer, group,
        precision=precision, clip_norm=config.clip_norm, seed=config.seed, seed_as_tensor=config.compile,
    )  # fmt: skip
    folder = None
    if config.replay is None:
        folder = start.open(counters.step, data.identity, config.data, tokenizer)
    if config.compile:
        model.encoder.compile_layers()
    return PretrainRun(config, group, start, folder, precision, data, model, parallel, step, schedule, counters)


def _open_blocks(config: PretrainConfig, group: Group) -> tuple[Blocks, Tokenizer]:
    group.on_main(lambda: check_hashes(config.data, read_settings(config.data), at_most=QUICK_BYTES))
    blocks = Blocks.open(config.data, "train")
    if not len(blocks):
        raise UserError(f"{config.data} holds no block to train on: prepare it again from more text")
    if config.batch_size < group.world:
        raise UserError(f"--batch-size {config.batch_size} is less than one sequence for each of {group.world} ranks")
    return blocks, Tokenizer.load(config.data / "tokenizer")


def _make_model(
    config: PretrainConfig, group: Group, start: RunStart, tokenizer: Tokenizer, block_length: int
) -> SpanBertForPretraining:
    started = init_model(
        SpanBertForPretraining,
        init=config.init_from or "random",
        size=config.size,
        tokenizer=tokenizer,
        seed=config.seed,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        backend=config.backend,
        device=group.device,
        min_positions=block_length,
        checkpoint=start.checkpoint,
    )
    if started.report is not None:
        group.print_main(str(started.report))
    if not config.sbo:
        started.model.sbo.requires_grad_(False)
    return started.model


def _mask(
    config: PretrainConfig, group: Group, blocks: Blocks, tokenizer: Tokenizer, sbo_positions: int
) -> PretrainData:
    unigram_V = read_unigram_counts(config.data, tokenizer.vocab_size)
    masker = Masker.from_tokenizer(
        config.mask, tokenizer, seed=config.seed, unigram_counts=unigram_V, sbo_positions=sbo_positions
    )
    order = DataOrder(len(blocks), config.batch_size, config.seed)
    held_out = StepBatches(
        Blocks.open(config.data, "validation"), masker, order, config.micro_batch_size * blocks.block_length
    )
    validation = Validation(held_out, config.eval_sequences, config.seed, group)
    return PretrainData(blocks, tokenizer, unigram_V, masker, order, validation)

"""``spanbert pretrain``: the training loop, top to bottom.

Nothing random is consumed on the way: data order and masks are functions of (seed, step), dropout is seeded per
micro-batch from (seed, step). A resumed run therefore only needs weights, optimizer state and counters, and on a CPU
ends bit-identical to one that was never stopped.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
from tqdm import tqdm

from pretrain.config import PretrainConfig
from pretrain.data.batches import StepBatches, load_steps
from pretrain.data.blocks import Blocks, read_settings
from pretrain.data.integrity import QUICK_BYTES, check_hashes
from pretrain.data.sampler import DataOrder
from pretrain.data.streaming import stream_of
from pretrain.masking.masker import Masker
from pretrain.replay import replay
from pretrain.run import TrainingSession, data_identity
from pretrain.schedule import Schedule
from pretrain.step import Stepper, agree
from pretrain.step_window import StepWindow
from pretrain.validation import Validation
from spanbert.device import choose_precision, describe, measured_peak_flops, tune_allocator
from spanbert.distributed import Group, join_group
from spanbert.errors import UserError
from spanbert.model.encoder import count_parameters, train_flops_per_token
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.optim import adamw
from spanbert.training.parallel import parallelise
from spanbert.training.profiler import profiled
from spanbert.training.signals import StopRequest


def run_pretrain(config: PretrainConfig) -> None:
    tune_allocator()
    with join_group(config.device) as group, contextlib.closing(TrainingSession(config, group)) as session:
        train(config, group, session)


def train(config: PretrainConfig, group: Group, session: TrainingSession) -> None:
    # the data: blocks of tokens, masks on top, both by address
    on_gpu, precision = group.device.type == "cuda", choose_precision(group.device, config.precision)
    check_hashes(config.data, read_settings(config.data), at_most=QUICK_BYTES)
    blocks, held_out = Blocks.open(config.data, "train"), Blocks.open(config.data, "validation")
    if not len(blocks):
        raise UserError(f"{config.data} holds no block to train on: prepare it again from more text")
    if config.batch_size < group.world:
        raise UserError(f"--batch-size {config.batch_size} is less than one sequence for each of {group.world} ranks")
    tokenizer, unigram_V = Tokenizer.load(config.data / "tokenizer"), np.load(config.data / "unigram.npy")
    model = session.build_model(tokenizer, blocks.block_length)
    masker = Masker.from_tokenizer(
        config.mask, tokenizer, seed=config.seed, unigram_counts=unigram_V, sbo_positions=model.config.sbo_positions
    )
    order = DataOrder(len(blocks), config.batch_size, config.seed)
    budget = config.micro_batch_size * blocks.block_length
    validation = Validation(StepBatches(held_out, masker, order, budget), config.eval_sequences, config.seed, group)
    schedule = Schedule(config, tokens_per_step=config.batch_size * float(blocks.lengths.mean()))

    # the optimizer and the run's folder; a resumed run finds both as it left them
    parallel = parallelise(model, model.encoder.layers, group, config.parallel)
    optimizer = adamw(model, config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay)
    counters = session.open(model, optimizer, tokenizer, data_identity(tokenizer, blocks.lengths, unigram_V))
    stepper = Stepper(config, group, model, parallel, optimizer, precision)
    window = StepWindow(group, counters.window)
    if config.compile:
        model.encoder.compile_layers()

    # what to expect
    peak = measured_peak_flops(group.device, precision, model.config.hidden_size) * group.world
    attended = float((blocks.lengths.astype(np.float64) ** 2).sum() / blocks.lengths.sum())  # tokens that a token sees
    flops_per_token = train_flops_per_token(model.config, attended, config.mask.mask_share, config.sbo)
    baseline = validation.unigram_baseline(unigram_V)
    group.print_main(
        f"{count_parameters(model):,} parameters · {len(blocks):,} blocks of up to {blocks.block_length} tokens · "
        f"steps of {config.batch_size} blocks, passes of {budget:,} tokens, {group.world} × {describe(group.device)} · "
        f"{precision} · attention: {model.encoder.backend} · matrix rate {peak / 1e9:,.0f} GFLOP/s\n"
        + "unigram baseline: " + (", ".join(f"{name[:3].upper()} {nats:.3f} nats" for name, nats in baseline.items())
                                  or "none, for there are no held-out blocks to validate on")
    )  # fmt: skip
    workers = config.workers if config.workers is not None else 4 if on_gpu else 0
    if config.stream:
        batches = stream_of(config, tokenizer, masker, blocks.block_length, budget, counters, group)
    else:
        batches = StepBatches(blocks, masker, order, budget, group.rank, group.world)
    steps = load_steps(batches, counters.step, max(schedule.last_step, config.replay or 0), workers, pin=on_gpu)
    parallel.train()
    if config.replay is not None:
        return replay(config, group, counters, schedule, steps, stepper)

    bar = tqdm(total=schedule.total, initial=schedule.position(counters), unit=schedule.unit, dynamic_ncols=True,
               unit_scale=schedule.unit == "tokens", mininterval=0.5, disable=not group.is_main)  # fmt: skip

    def validate() -> None:
        if not validation.empty and session.scored_step != counters.step:
            scores = validation.run(parallel, precision, config.sbo)
            session.report_validation(counters, scores, baseline, bar.write)

    if counters.step == 0:
        validate()
    stopped, window_tokens, window_seconds = False, 0, 0.0
    began = time.perf_counter() - counters.seconds
    with StopRequest() as stop, profiled(config.output if config.profile and group.is_main else None) as profiler:
        while not schedule.done(counters):
            # the batch, and what all ranks agree on: how much there is in it, what time it is, whether to stop
            started = time.perf_counter()
            batch = next(steps)
            agreed = agree(group, batch, started - began, stop.requested)
            counters.seconds = agreed.seconds
            stopped = agreed.stop
            if stopped or schedule.done(counters):
                break

            # one optimizer step: gradients of sums ÷ the whole step's targets
            lr = config.lr * schedule.multiplier(counters)
            sums_4, norm = stepper.gradients(batch, agreed.counts)
            stepper.take(lr, sums_4, norm)

            # count, report, validate, save
            counters.step += 1
            counters.tokens += agreed.tokens
            counters.cursor = batch.cursor
            window.add(counters.step, agreed.counts, sums_4, norm)
            reports = counters.step % config.log_every == 0
            if reports:
                window.settle()  # waits for the device, so it belongs to the time that the steps took
            window_tokens += agreed.tokens
            window_seconds += time.perf_counter() - started
            bar.update(schedule.position(counters) - bar.n)
            profiler.step()
            if reports:
                rate = window_tokens / window_seconds
                speed = {"tokens_per_second": rate, "model_flops_utilisation": rate * flops_per_token / peak}
                values = session.report_window(
                    counters, window, None if config.stream else order, lr=lr, tokens=counters.tokens, **speed
                )
                bar.set_postfix(session.postfix(values, speed), refresh=False)
                window_tokens, window_seconds = 0, 0.0
            if counters.step % config.eval_every == 0:
                validate()
            if counters.step % config.save_every == 0:
                session.save(counters, window)
        if not stopped:
            validate()
        session.save(counters, window)
    bar.close()
    session.finish(counters, complete=not stopped, baseline=baseline)

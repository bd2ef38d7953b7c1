"""`spanbert finetune TASK`: the fine-tuning loop of every task, top to bottom (§5).

Nothing random is consumed on the way: the order of the windows is a function of (seed, epoch), dropout of (seed, step,
micro-batch). A resumed run needs weights, optimizer state and a step number only, and on a CPU ends bit-identical to
one that was never stopped.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from finetune.config import FinetuneConfig
from finetune.epoch_draws import in_epoch, unit_of
from finetune.evaluation_schedule import evaluates_after
from finetune.prepare import Prepared, prepare
from finetune.rehearsal import Pull, new_windows_of
from finetune.run import FinetuneRun, trained_parameters
from finetune.seeds import run_seeds
from finetune.task import Features, Task
from spanbert.device import choose_precision, describe, tune_allocator
from spanbert.distributed import Group, join_group
from spanbert.training.console import output_may_fail
from spanbert.training.optim import adamw, layer_rates, linear_schedule
from spanbert.training.parallel import parallelise
from spanbert.training.signals import Stopped, StopRequest, voted, votes
from spanbert.training.step import Loss, OptimizerStep


@functools.lru_cache(maxsize=1)
def epoch_order(windows: int, seed: int, epoch: int) -> np.ndarray:
    """The windows of an epoch in training order: a permutation that depends on (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(windows)


def step_windows(step: int, windows: int, lengths_W: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """The windows of optimizer step `step` (from 0), longest first: neighbours of one length share attention calls.

    The last step of an epoch has what is left. Order within a step does not change its gradient.
    """
    steps_per_epoch = -(-windows // batch_size)
    epoch, place = divmod(step, steps_per_epoch)
    chosen = epoch_order(windows, seed, epoch)[place * batch_size : (place + 1) * batch_size]
    return chosen[np.argsort(-lengths_W[chosen], kind="stable")]


def share_of(windows: np.ndarray, micro_batch_size: int, rank: int, world: int) -> list[np.ndarray]:
    """This rank's micro-batches of a step's windows; every rank has equally many, some of them maybe empty.

    Micro-batch number n of the whole step is number n // world of rank n % world, so that dropout, which is drawn by
    step and micro-batch, is the same on any number of ranks that cuts the step alike.
    """
    size = micro_batch_size or max(-(-len(windows) // world), 1)
    parts = [windows[begin : begin + size] for begin in range(0, len(windows), size)]
    parts += [windows[:0]] * (-len(parts) % world)
    return parts[rank::world]


class MicroBatch(NamedTuple):
    """Windows of one forward pass."""

    packed: Any
    """What the model takes, on the host (``finetune.task.Batch.tensors``)."""
    labels: Tensor
    divisor: float
    """Labels of the whole step; infinite, so that nothing is added, for a rank that has no window left."""
    pulls: bool
    """Whether it carries the step's pull towards the old weights: each rank's first one does."""


class Drawn(NamedTuple):
    """Windows of one source that a step sees."""

    features: Features
    windows: np.ndarray


def micro_batches(drawn: Sequence[Drawn], config: FinetuneConfig, group: Group) -> list[MicroBatch]:
    """This rank's share of a step, ready for the device: of each of the step's sources, in their order."""
    count = float(sum(features.count(windows) for features, windows in drawn))
    parts: list[MicroBatch] = []
    for features, windows in drawn:
        for chosen in share_of(windows, config.micro_batch_size, group.rank, group.world):
            taken = chosen if len(chosen) else windows[-1:]
            labels = torch.from_numpy(features.labels(taken))
            divisor = count if len(chosen) else math.inf
            parts.append(MicroBatch(features.packed(taken).tensors(), labels, divisor, pulls=not parts))
    return parts


def loss_of(task: Task, group: Group, pull: Pull | None = None) -> Loss[MicroBatch]:
    """The loss that ``OptimizerStep`` takes the gradient of: the task's, and the pull towards the old weights."""

    def loss(parallel: nn.Module, part: MicroBatch) -> tuple[Tensor, Tensor]:
        batch, labels = part.packed.to(group.device), part.labels.to(group.device, non_blocking=True)
        total = task.loss(parallel(batch), labels, batch)
        value = total / part.divisor
        if pull is not None and part.pulls:
            value = value + pull.penalty() / group.world
        return value, total.detach().double() * math.isfinite(part.divisor)

    return loss


def run_finetune(task: Task, config: FinetuneConfig) -> None:
    """Train, evaluate, and leave OUTPUT/model. Raises UserError for anything that cannot be, before it trains."""
    config.check()
    tune_allocator()
    with output_may_fail(), join_group(config.device) as group:
        if config.seeds:
            run_seeds(task, config, group, run_one)
        else:
            run_one(task, config, group)


def run_one(task: Task, config: FinetuneConfig, group: Group) -> None:
    """The same for one seed, in the ranks of ``group``."""
    run = FinetuneRun(config, group)
    try:
        if run.start.complete:
            return
        train(run, prepare(task, config, group, run.start.checkpoint), group)
    finally:
        run.close()


def train(run: FinetuneRun, prepared: Prepared, group: Group) -> None:
    """The loop, from where the run stands."""
    # the data, the model, and the optimizer; the run's folder puts weights, moments and the step number back
    config, task, features, model = run.config, prepared.task, prepared.features, prepared.model
    parallel = parallelise(model, model.encoder.layers, group, "ddp")
    rates = layer_rates(len(model.encoder.layers), config.layer_decay)
    optimizer = adamw(model, config.lr, weight_decay=config.weight_decay, rate_of=rates)
    state = run.open(prepared, optimizer)
    precision = choose_precision(group.device, config.precision)
    stepper = OptimizerStep(
        model, parallel, optimizer, group, precision=precision, clip_norm=config.clip_norm, seed=config.seed
    )
    windows = len(features.lengths)
    rehearsal, loss = prepared.rehearsal, loss_of(task, group, prepared.pull)
    new_windows = new_windows_of(config.batch_size, rehearsal.share if rehearsal else 0.0)
    steps_per_epoch = -(-windows // new_windows)
    total_steps = config.epochs * steps_per_epoch
    unit = unit_of(features)
    group.print_main(
        f"{trained_parameters(model)} · {features.examples:,} {task.noun} in {windows:,} {unit} · "
        f"{config.epochs} × {steps_per_epoch:,} steps of {config.batch_size} {unit} · {precision} · "
        f"attention: {model.encoder.backend} · {describe(group.device)}"
    )

    def rate(step: int) -> float:
        return config.lr * linear_schedule(step / (total_steps + 1), config.warmup)

    if state.step == 0:
        run.score_before()
    model.train()
    bar = tqdm(
        total=total_steps,
        initial=state.step,
        unit=" steps",
        desc="training",
        dynamic_ncols=True,
        disable=not group.is_main,
    )

    def evaluate_report_save(evaluates: bool) -> None:
        if evaluates:
            run.evaluate(state)
        ends = state.step == total_steps or state.best.exhausted(config.patience)
        if ends or state.step % config.log_every == 0:
            bar.set_postfix_str(
                run.report(state, epoch=state.step / steps_per_epoch, lr=rate(state.step)), refresh=False
            )
        if state.step % config.save_every == 0 or state.best.step == state.step or ends:
            run.save(state, optimizer, total_steps)

    asked: int | None = None
    with StopRequest() as stop, bar:
        if state.step == total_steps and config.keeps_best and state.best.heard < state.step:
            evaluate_report_save(True)  # the session before was killed in this evaluation
        begun = time.perf_counter()
        while state.step < total_steps and not state.best.exhausted(config.patience):
            asked = voted(group.sum(votes(stop.number)))
            if asked is not None:
                break

            # one optimizer step: the gradient of the mean loss of its windows
            epoch = state.step // steps_per_epoch
            features = in_epoch(prepared.features, config.seed, epoch)
            chosen = step_windows(state.step, windows, features.lengths, new_windows, config.seed)
            drawn = [Drawn(features, chosen)]
            if rehearsal is not None:
                old = in_epoch(rehearsal.features, config.seed, epoch)
                drawn.append(Drawn(old, rehearsal.draw(state.step, len(chosen))))
            result = stepper.gradients(state.step, micro_batches(drawn, config, group), loss)
            stepper.take(rate(state.step + 1), result)
            state.step += 1
            labels = sum(source.count(windows) for source, windows in drawn)
            tokens = sum(int(source.lengths[windows].sum()) for source, windows in drawn)
            state.log.add(state.step, (labels, tokens), result)

            # evaluate, report, save
            evaluates = evaluates_after(state.step, config, steps_per_epoch, total_steps)
            if evaluates or state.step % config.log_every == 0:
                state.log.settle()  # waits for the device, so it belongs to the time that the steps took
            state.seconds += time.perf_counter() - begun
            bar.update()
            if evaluates and state.step == total_steps:
                run.save(state, optimizer, total_steps)  # an evaluation that fails takes no step along
            evaluate_report_save(evaluates)
            begun = time.perf_counter()
        bar.close()
        if asked is not None:
            run.save(state, optimizer, total_steps)
            group.print_main(
                f"stopped after step {state.step:,} of {total_steps:,}, saved.\n"
                "resume with: the same command and --resume"
            )
            raise Stopped(asked)
    run.finish(state, total_steps)

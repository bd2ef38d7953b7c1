"""``spanbert pretrain``: the training loop, top to bottom.

Nothing random is consumed on the way: data order and masks are functions of (seed, step), dropout is seeded per
micro-batch from (seed, step). A resumed run therefore only needs weights, optimizer state and counters, and on a CPU
ends bit-identical to one that was never stopped.
"""

from __future__ import annotations

import contextlib
import time

from pretrain.config import PretrainConfig
from pretrain.data.batches import report_lost_worker
from pretrain.progress import Progress
from pretrain.replay import replay
from pretrain.run import PretrainRun, begin_run, set_up
from pretrain.saving import Saver
from pretrain.step import TargetCounts, agree
from spanbert.device import tune_allocator
from spanbert.distributed import join_group
from spanbert.training.console import output_may_fail
from spanbert.training.profiler import profiled
from spanbert.training.signals import Stopped, StopRequest
from spanbert.training.step_log import StepLog


def run_pretrain(config: PretrainConfig) -> None:
    """Train, and leave OUTPUT/model. Raises Stopped when a signal asked for the end, after saving."""
    tune_allocator()
    with (
        output_may_fail(),
        report_lost_worker(),
        join_group(config.device) as group,
        contextlib.closing(begin_run(config, group)) as start,
    ):
        if start.complete:
            final = config.output / "model"
            group.print_main(
                f"{config.output} is complete; its model is {final}. It has no whole checkpoint to go on from: to train "
                f"that model further, start another run with --init-from {final}"
            )
            return
        # nobody here holds what is set up: DDP must be gone before its group is
        stop_signal = (train if config.replay is None else replay)(set_up(config, group, start))
    if stop_signal is not None:
        raise Stopped(stop_signal)


def train(run: PretrainRun) -> int | None:
    """From where the run is to its end → the signal that stopped it before, when one did."""
    config, group, schedule, counters = run.config, run.group, run.schedule, run.counters
    log = StepLog(group, len(TargetCounts._fields), counters.window)
    saver, progress = Saver(run, log), Progress(run, log)
    steps, stop_signal = run.batches(), None
    run.parallel.train()
    if counters.step == 0:
        progress.validate()
    with (
        StopRequest() as stop,
        profiled(config.output if config.profile and group.is_main else None) as profiler,
        progress,
    ):
        while not schedule.done(counters):
            # the batch, and what all ranks agree on: how much there is in it, what time it is, whether to stop
            started = time.perf_counter()
            batch = next(steps)
            agreed = agree(group, batch, config.sbo, progress.seconds(), stop.number)
            counters.seconds, stop_signal = agreed.seconds, agreed.stop
            if stop_signal is not None or schedule.done(counters):
                break

            # one optimizer step
            result = run.gradients(batch, agreed.counts)
            lr = run.take(result)

            # count, report, validate, save
            counters.step += 1
            counters.tokens += agreed.tokens
            counters.cursor = batch.cursor
            log.add(counters.step, agreed.counts, result)
            progress.step_taken(agreed, lr, started)
            profiler.step()
            if counters.step % config.eval_every == 0:
                progress.validate()
            if counters.step % config.save_every == 0:
                saver.save(progress.score)
        if stop_signal is None:
            progress.validate()
        saver.save(progress.score)
    saver.finish(progress.baseline, stopped=stop_signal is not None)
    return stop_signal

"""``spanbert pretrain``: the training loop, top to bottom.

Nothing random is consumed on the way: data order and masks are functions of (seed, step), dropout is seeded per
micro-batch from (seed, step). A resumed run therefore only needs weights, optimizer state and counters, and on a CPU
ends bit-identical to one that was never stopped.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from tqdm import tqdm

from pretrain.batches import DataOrder, StepBatches, load_steps
from pretrain.blocks import Blocks
from pretrain.config import PretrainConfig, Schedule
from pretrain.masking import Masker
from pretrain.objective import LossSums, count_targets, micro_batch_loss
from pretrain.session import StopRequest, TrainingSession, build_model, dropout_key
from pretrain.validation import Validation
from spanbert.device import autocast, choose_device, choose_precision, describe, matrix_rate, tune_allocator
from spanbert.encoder import count_parameters, train_flops_per_token
from spanbert.errors import UserError
from spanbert.optim import adamw, clip_gradients, set_learning_rate
from spanbert.tokenizer import Tokenizer


def run_pretrain(config: PretrainConfig) -> None:
    # the machine
    tune_allocator()
    device = choose_device(config.device)
    precision = choose_precision(device, config.precision)

    # the data: blocks of tokens, masks on top, both by address
    blocks, held_out = Blocks.open(config.data, "train"), Blocks.open(config.data, "validation")
    tokenizer = Tokenizer.load(config.data / "tokenizer")
    unigram_V = np.load(config.data / "unigram.npy")
    model = build_model(config, tokenizer, blocks.block_length, device)
    masker = Masker(
        config.mask,
        starts_word=tokenizer.starts_word,
        special_ids=tokenizer.special_ids,
        mask_id=tokenizer.mask_id,
        unigram_counts=unigram_V,
        seed=config.seed,
        sbo_positions=model.config.sbo_positions,
    )
    order = DataOrder(len(blocks), config.batch_size, config.seed)
    batches = StepBatches(blocks, masker, order, config.micro_batch_size)
    validation = Validation(held_out, masker, config.eval_sequences, config.micro_batch_size, config.seed)

    # the optimizer, the schedule, the run's folder; --resume puts all of them back
    optimizer = adamw(model, config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay)
    schedule = Schedule(config)
    session = TrainingSession(config, model, optimizer, tokenizer)
    counters = session.open()
    baseline = validation.unigram_baseline(unigram_V)
    peak = matrix_rate(device, precision, model.config.hidden_size)
    flops_per_token = train_flops_per_token(model.config, blocks.block_length, config.mask.mask_share, config.sbo)
    print(
        f"{count_parameters(model):,} parameters · {len(blocks):,} blocks of up to {blocks.block_length} tokens · "
        f"batch {config.batch_size} in {len(batches.parts)} × {len(batches.parts[0])} · {precision} · "
        f"attention: {model.encoder.backend} · {describe(device)} · matrix rate {peak / 1e9:,.0f} GFLOP/s\n"
        f"unigram baseline: MLM {baseline['mlm_loss']:.3f}, SBO {baseline['sbo_loss']:.3f} nats"
    )

    steps = load_steps(batches, counters.step, schedule.last_step, config.workers, pin=device.type == "cuda")
    bar = tqdm(total=schedule.total, initial=schedule.position(counters), unit=schedule.unit, dynamic_ncols=True)
    bar.unit_scale = schedule.unit == "tokens"
    window, window_start, window_tokens = LossSums.zero(device), time.perf_counter(), 0
    parameters = list(model.parameters())
    model.train()
    with StopRequest() as stop:
        for batch in steps:
            if schedule.progress(counters) >= 1.0 or stop.requested:
                break
            started = time.perf_counter()

            # one optimizer step: gradients of sums ÷ the whole step's targets
            lr = config.lr * schedule.multiplier(counters)
            set_learning_rate(optimizer, lr)
            step_counts = count_targets(batch.micro_batches, device)
            sums = LossSums.zero(device)
            for number, micro_batch in enumerate(batch.micro_batches):
                torch.manual_seed(dropout_key(config.seed, batch.step, number))
                model.encoder.dropout_seed = dropout_key(config.seed, batch.step, number)
                with autocast(device, precision):
                    loss, part = micro_batch_loss(model, micro_batch.to(device), step_counts, config.sbo)
                loss.backward()
                sums = sums.plus(part)
            norm = clip_gradients(parameters, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            # count, report, validate, save
            counters.step += 1
            counters.tokens += batch.tokens
            counters.seconds += time.perf_counter() - started
            window, window_tokens = window.plus(sums), window_tokens + batch.tokens
            bar.n = schedule.position(counters)
            ended = schedule.progress(counters) >= 1.0
            if counters.step % config.log_every == 0 or ended:
                rate = window_tokens / (time.perf_counter() - window_start)
                values = window.means() | {"lr": lr, "gradient_norm": float(norm), "tokens": counters.tokens}
                speed = {"tokens_per_second": rate, "model_flops_utilisation": rate * flops_per_token / peak}
                session.run.log(counters.step, "train", **values, **speed)
                bar.set_postfix(session.postfix(values, speed), refresh=False)
                window, window_start, window_tokens = LossSums.zero(device), time.perf_counter(), 0
            bar.refresh()
            if counters.step % config.eval_every == 0 or ended:
                scores = validation.run(model, device, precision, config.sbo)
                session.validated(counters, scores, baseline, bar.write)
                window_start = time.perf_counter() if window_tokens == 0 else window_start
            if counters.step % config.save_every == 0:
                session.save(counters)
    bar.close()
    session.finish(counters, stopped=stop.requested and schedule.progress(counters) < 1.0, baseline=baseline)
    if counters.step == 0:
        raise UserError("no step was trained: the schedule was over before it began")

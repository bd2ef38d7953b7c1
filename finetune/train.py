"""`spanbert finetune qa`: the fine-tuning loop, top to bottom (§5).

Nothing random is consumed on the way: the order of the windows is a function of (seed, epoch), dropout of (seed, step,
micro-batch). A resumed run needs weights, optimizer state and a step number only, and on a CPU ends bit-identical to
one that was never stopped.
"""

from __future__ import annotations

import functools
import time

import numpy as np
import torch
from tqdm import tqdm

from finetune.config import FinetuneQAConfig
from finetune.predict import Machine
from finetune.run import QASession, read_training_set, start_model
from finetune.tasks.qa.loss import qa_loss_sum
from spanbert.device import autocast, choose_device, choose_precision, describe, tune_allocator
from spanbert.errors import UserError
from spanbert.model.dropout import dropout_key
from spanbert.model.encoder import count_parameters
from spanbert.training.optim import adamw, clip_gradients, linear_schedule, set_learning_rate
from spanbert.training.signals import StopRequest


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


def run_finetune_qa(config: FinetuneQAConfig) -> None:
    """Train, evaluate, and leave OUTPUT/model, which `evaluate qa` and `ask` take."""
    # the machine
    config.check()
    tune_allocator()
    device = choose_device(config.device)
    machine = Machine(device, choose_precision(device, config.precision))

    # the model and the windows
    model, tokenizer = start_model(config, device)
    session = QASession(config, model, tokenizer, machine)
    questions, report = read_training_set(config, tokenizer)
    session.read_dev()  # a malformed dev file should be known before the training, not after it
    labels_W2, lengths_W = questions.labels(), questions.window_lengths_W
    steps_per_epoch = -(-questions.windows // config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    micro_batch = config.micro_batch_size or config.batch_size

    # the optimizer and the run's folder; --resume puts both back
    optimizer = adamw(model, config.lr, weight_decay=config.weight_decay)
    step = session.open(optimizer, report)
    print(
        f"{count_parameters(model):,} parameters · {len(questions):,} questions in {questions.windows:,} windows · "
        f"{config.epochs} × {steps_per_epoch:,} steps of {config.batch_size} windows · {machine.precision} · "
        f"attention: {model.encoder.backend} · {describe(device)}"
    )

    parameters = list(model.parameters())
    model.train()
    bar = tqdm(total=total_steps, initial=step, unit=" steps", desc="training", dynamic_ncols=True)
    trained_windows, trained_tokens, seconds = 0, 0, 0.0
    with StopRequest() as stop:
        while step < total_steps and not stop.requested:
            # one optimizer step: the gradient of the mean loss of its windows
            begun = time.perf_counter()
            lr = config.lr * linear_schedule((step + 1) / (total_steps + 1), config.warmup)
            set_learning_rate(optimizer, lr)
            loss_sum, tokens = 0.0, 0
            windows = step_windows(step, questions.windows, lengths_W, config.batch_size, config.seed)
            for part, begin in enumerate(range(0, len(windows), micro_batch)):
                chosen = windows[begin : begin + micro_batch]
                batch = questions.packed(chosen).tensors().to(device)
                model.encoder.dropout_seed = dropout_key(config.seed, step, part)
                torch.manual_seed(model.encoder.dropout_seed)  # for the back-ends that draw from PyTorch's generator
                with autocast(device, machine.precision):
                    start_T, end_T = model(batch)
                labels_B2 = torch.from_numpy(labels_W2[chosen]).to(device)
                loss = qa_loss_sum(start_T, end_T, batch.cu_seqlens, batch.max_seqlen, labels_B2)
                (loss / len(windows)).backward()
                loss_sum += loss.item()
                tokens += batch.tokens
            norm = clip_gradients(parameters, config.clip_norm)
            if not torch.isfinite(norm):
                raise UserError(
                    f"step {step + 1}: the gradient is not finite; lower --lr, or use --precision fp32. "
                    "The last checkpoint stands."
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1

            # report, evaluate, save
            seconds += (spent := time.perf_counter() - begun)
            trained_windows, trained_tokens = trained_windows + len(windows), trained_tokens + tokens
            values = {"loss": loss_sum / len(windows), "lr": lr, "gradient_norm": float(norm)}
            session.run.log(step, "train", epoch=step / steps_per_epoch, **values, tokens=tokens, seconds=spent)
            rates = trained_windows / questions.windows * len(questions) / seconds, trained_tokens / seconds
            bar.set_postfix_str(
                f"loss {values['loss']:.3f}, {rates[0]:.1f} questions/s, {rates[1]:,.0f} tokens/s", False
            )
            bar.update()
            if step % steps_per_epoch == 0 and step < total_steps and config.evaluate_each_epoch:
                session.evaluate(step)
            if step % config.save_every == 0 or step == total_steps:
                session.save(step, optimizer)
    bar.close()
    if step < total_steps:
        session.save(step, optimizer)
        print(f"stopped after step {step:,} of {total_steps:,}, saved.\ngo on with: the same command and --resume")
        return
    session.finish(step)

"""What surrounds the loop: building or loading the model, the run's folder, saving, resuming, stopping politely."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Self

import torch

from pretrain.config import MAY_DIFFER_ON_RESUME, Counters, PretrainConfig
from spanbert.backend import resolve_backend
from spanbert.checkpoint import load_model, write_model
from spanbert.checkpoint_store import CheckpointStore, load_training_state, save_training_state
from spanbert.config import EncoderConfig
from spanbert.errors import UserError
from spanbert.files import atomic_folder
from spanbert.models import SpanBertForPretraining
from spanbert.runs import RunFolder, find_model, plot_curves
from spanbert.tokenizer import Tokenizer


def dropout_key(seed: int, step: int, micro_batch: int) -> int:
    """Seed of one micro-batch's dropout: a 63-bit mix of its address (the multipliers are odd and large: SplitMix64's)."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + micro_batch * 0x94D049BB133111EB) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    return (value ^ (value >> 27)) >> 1


def build_model(
    config: PretrainConfig, tokenizer: Tokenizer, block_length: int, device: torch.device
) -> SpanBertForPretraining:
    """A new model of ``config.size`` or the one at ``config.init_from``; missing heads are initialised and named."""
    torch.manual_seed(config.seed)
    backend = resolve_backend(config.backend, device)
    dropout = {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.attention_dropout}
    if config.init_from is None:
        shape = EncoderConfig.preset(
            config.size, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id, **dropout
        )
        shape = dataclasses.replace(shape, max_position_embeddings=max(shape.max_position_embeddings, block_length))
        return SpanBertForPretraining(shape, backend).to(device)
    folder = find_model(config.init_from)
    model, report = load_model(folder, SpanBertForPretraining, config_overrides=dropout, backend=backend)
    theirs = Tokenizer.load(folder)
    if theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{config.data} was prepared with another tokenizer ({tokenizer.vocab_size} pieces) than {folder} has "
            f"({theirs.vocab_size} pieces): run `spanbert prepare … --tokenizer {folder}` again"
        )
    if block_length > model.config.max_position_embeddings:
        raise UserError(
            f"{config.data} has blocks of {block_length} tokens but {folder} has only "
            f"{model.config.max_position_embeddings} positions: prepare with --block-length "
            f"{model.config.max_position_embeddings}"
        )
    print(report)
    return model.to(device)


class StopRequest:
    """While active, SIGINT and SIGTERM only ask the loop to stop after its step; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


class TrainingSession:
    """One process's stretch of a run."""

    def __init__(
        self,
        config: PretrainConfig,
        model: SpanBertForPretraining,
        optimizer: torch.optim.Optimizer,
        tokenizer: Tokenizer,
    ):
        self.config, self.model, self.optimizer, self.tokenizer = config, model, optimizer, tokenizer
        self.store = CheckpointStore(config.output / "checkpoints", config.keep_last)
        self.score: float | None = None
        self.scored_step = -1

    def open(self) -> Counters:
        """Start the run's folder, or with --resume load the newest whole checkpoint → where to go on."""
        config = self.config
        if not config.resume:
            self.run = RunFolder.start(config.output, config)
            self.tokenizer.save(config.output / "tokenizer")
            return Counters()
        if not (config.output / "config.json").exists():
            raise UserError(f"--resume: {config.output} holds no run; leave --resume out to start one")
        newest = self.store.newest_whole()
        if newest is None:
            self.run = RunFolder.reopen(config.output, config, MAY_DIFFER_ON_RESUME, step=0)
            print(f"{config.output} has no checkpoint yet: starting from the beginning")
            return Counters()
        loaded, _ = load_model(newest, SpanBertForPretraining)
        self.model.load_state_dict(loaded.state_dict())
        counters = Counters(**load_training_state(newest, self.model, self.optimizer))
        self.run = RunFolder.reopen(config.output, config, MAY_DIFFER_ON_RESUME, counters.step)
        print(f"resuming from {newest}: step {counters.step:,}, {counters.tokens:,} tokens")
        return counters

    def validated(
        self, counters: Counters, scores: dict[str, float], baseline: dict[str, float], say: Callable[[str], None]
    ) -> None:
        """Log a validation; its total loss scores the next checkpoint."""
        self.run.log(counters.step, "validation", **scores, tokens=counters.tokens)
        self.score = scores["mlm_loss"] + scores.get("sbo_loss", 0.0)
        self.scored_step = counters.step
        parts = [
            f"{name.upper()} {scores[f'{name}_loss']:.3f} nats (unigram {baseline[f'{name}_loss']:.3f}), "
            f"accuracy {scores[f'{name}_accuracy']:.1%}, perplexity {scores[f'{name}_perplexity']:,.1f}"
            for name in ("mlm", "sbo")
            if f"{name}_loss" in scores
        ]
        say(f"step {counters.step:,} validation: " + " · ".join(parts))

    def save(self, counters: Counters) -> Path:
        """Write a checkpoint of this step."""

        def write(folder: Path) -> None:
            write_model(folder, self.model, self.tokenizer)
            save_training_state(folder, self.model, self.optimizer, dataclasses.asdict(counters))

        score = self.score if self.scored_step == counters.step else None
        return self.store.save(counters.step, write, score)

    def finish(self, counters: Counters, stopped: bool, baseline: dict[str, float]) -> None:
        """Last checkpoint, curves, and, when the run is complete, the model folder; says what to do next."""
        checkpoint = self.save(counters)
        names = ["mlm_loss", "sbo_loss"] if self.config.sbo else ["mlm_loss"]
        curves = self.config.output / "curves.png"
        plotted = plot_curves(self.run.metrics(), names, curves, f"{self.config.output.name}", baseline)
        self.run.close()
        drawn = f", curves in {curves}" if plotted else ""
        if stopped:
            print(f"stopped at step {counters.step:,}, saved {checkpoint}{drawn}\ngo on with: the same command and --resume")
            return
        final = self.config.output / "model"
        with atomic_folder(final) as aside:
            write_model(aside, self.model, self.tokenizer)
        print(
            f"wrote {final} ({counters.step:,} steps, {counters.tokens:,} tokens, {counters.seconds / 60:.1f} minutes of "
            f"training){drawn}\nnext: spanbert fill {final} 'a text with a [SPAN:2] in it'   or   "
            f"spanbert finetune qa --model {final} --train train-v1.1.json --output RUN"
        )

    @staticmethod
    def postfix(values: dict[str, float], speed: dict[str, float]) -> dict[str, str]:
        """What the progress bar shows."""
        shown = {name: f"{values[f'{name}_loss']:.3f}" for name in ("mlm", "sbo") if f"{name}_loss" in values}
        shown["tokens/s"] = f"{speed['tokens_per_second']:,.0f}"
        shown["mfu"] = f"{speed['model_flops_utilisation']:.0%}"
        return shown

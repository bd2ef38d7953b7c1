"""What surrounds the loop: where the run stands, its model, its folder, what it reports, saves and leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretrain.config import MAY_DIFFER_ON_RESUME, PretrainConfig
from pretrain.data.sampler import DataOrder
from pretrain.schedule import Counters
from pretrain.step_window import StepWindow
from spanbert.checkpoint.architectures import UNTRAINED
from spanbert.checkpoint.model_folder import build_model, load_model_and_tokenizer, write_model
from spanbert.checkpoint.store import CheckpointStore, find_model
from spanbert.checkpoint.training_state import is_sharded, load_training_state, save_training_state
from spanbert.config import read_json, save_json
from spanbert.distributed import Group, restarts
from spanbert.errors import UserError
from spanbert.files import atomic_folder
from spanbert.model.backend import resolve_backend
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import RunFolder, check_same_config, plot_curves, refuse_existing_run


class TrainingSession:
    """One process's stretch of a run. Made first: it refuses what cannot be, before anything is read or written.

    Attributes: checkpoint, from where the run goes on (None: from the beginning).
    """

    def __init__(self, config: PretrainConfig, group: Group):
        self.config, self.group = config, group
        self.store = CheckpointStore(config.output / "checkpoints", config.keep_last, group)
        self.run: RunFolder | None = None
        self.checkpoint: Path | None = None
        self.saved_step = self.scored_step = -1
        self.score: float | None = None
        self.resumes = config.resume or restarts() > 0 or config.replay is not None
        if not self.resumes:
            refuse_existing_run(config.output)
        elif not (config.output / "config.json").exists():
            if restarts() == 0:
                raise UserError(f"--resume: {config.output} holds no run; leave --resume out to start one")
            self.resumes = False  # the ranks died before they had begun
        else:
            check_same_config(config.output, config, MAY_DIFFER_ON_RESUME)
            if group.is_main:
                self.checkpoint = self.store.newest_whole(before=config.replay)
            self.checkpoint = group.broadcast(self.checkpoint)
            if self.checkpoint is None:
                group.print_main(
                    f"{config.output} has no {'earlier ' if config.replay else ''}checkpoint: starting from the beginning"
                )
        group.barrier()  # nobody makes the folder before all have looked

    def build_model(self, tokenizer: Tokenizer, block_length: int) -> SpanBertForPretraining:
        """The run's own model, or a new one of ``config.size``, or that at ``config.init_from`` (what it lacks is named).

        Raises UserError when the data is of another tokenizer than the weights, or its blocks are longer than the
        table of positions.
        """
        config, device = self.config, self.group.device
        backend = resolve_backend(config.backend, device)
        dropout = {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.attention_dropout}
        source = self.checkpoint or (find_model(config.init_from) if config.init_from is not None else None)
        if source is None:
            vocabulary = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
            shape = EncoderConfig.preset(config.size, **vocabulary, **dropout)
            positions = max(shape.max_position_embeddings, block_length)
            shape = dataclasses.replace(shape, max_position_embeddings=positions)
            model = build_model(SpanBertForPretraining, shape, config.seed, backend=backend)
        else:
            model, theirs, report = load_model_and_tokenizer(
                source, SpanBertForPretraining, seed=config.seed, config_overrides=dropout, backend=backend
            )
            _check_fits(config.data, tokenizer, theirs, block_length, source, model)
            if source != self.checkpoint:
                self.group.print_main(str(report))
        if not config.sbo:
            model.sbo.requires_grad_(False)
        return model.to(device)

    def open(
        self, model: SpanBertForPretraining, optimizer: torch.optim.Optimizer, tokenizer: Tokenizer, data: str
    ) -> Counters:
        """Open or start the run's folder and put the optimizer back → where to go on.

        ``data`` identifies the training data. Raises UserError when a resumed run had other data.
        """
        self.model, self.optimizer, self.tokenizer = model, optimizer, tokenizer
        config, counters = self.config, Counters()
        identity = config.output / "data.json"
        if self.resumes and identity.exists() and read_json(identity)["sha256"] != data:
            raise UserError(f"{config.data} is not the data that {config.output} was started with: resume with that")
        if self.checkpoint is not None:
            counters = Counters(**load_training_state(self.checkpoint, model, optimizer))
            self.saved_step = counters.step
            self.group.print_main(
                f"resuming from {self.checkpoint}: step {counters.step:,}, {counters.tokens:,} tokens"
            )
        if config.replay is not None:
            return counters
        if self.group.is_main:
            self._open_folder(counters, identity, data)
        self.scored_step, self.score = self.group.broadcast((self.scored_step, self.score))
        return counters

    def _open_folder(self, counters: Counters, identity: Path, data: str) -> None:
        config = self.config
        if self.resumes:
            self.run = RunFolder.reopen(config.output, config, MAY_DIFFER_ON_RESUME, counters.step)
            self.store.set_aside_after(self.checkpoint)
            for record in self.run.metrics():
                if record["split"] == "validation" and record["step"] == counters.step:  # no need to do it again
                    self.scored_step, self.score = counters.step, total_loss(record)
        else:
            self.run = RunFolder.start(config.output, config)
        if not (config.output / "tokenizer").exists():
            with atomic_folder(config.output / "tokenizer") as folder:
                self.tokenizer.save(folder)
        save_json({"path": str(config.data), "sha256": data}, identity)

    def log(self, step: int, split: str, **values: Any) -> None:
        if self.run is not None:
            self.run.log(step, split, **values)

    def report_window(
        self, counters: Counters, window: StepWindow, order: DataOrder | None, **extra: float
    ) -> dict[str, float]:
        """Log the steps since the last report → their means. Steps that were skipped are logged with their address.

        Raises UserError with advice when too many in a row were.
        """
        values, bad, steps = window.close(self.config.sbo)
        if values:
            self.log(counters.step, "train", **values, **extra)
        not_finite = {step.step: step for step in bad}
        for step in steps:
            counters.bad_in_a_row = counters.bad_in_a_row + 1 if step in not_finite else 0
            if step not in not_finite:
                continue
            found = not_finite[step]
            what = "gradient" if found.losses_finite else "loss"
            self.log(step, "skipped", reason=f"{what} not finite", **(order.locate(step - 1) if order else {}))
            self.group.print_main(
                f"step {step}: {what} not finite, skipped; look at it with the same command and --replay {step}"
            )
            if counters.bad_in_a_row >= self.config.stop_after_bad_steps:
                raise UserError(
                    f"{counters.bad_in_a_row} steps in a row had a loss or gradient that is not finite, the last of them "
                    f"step {step}: resume in fp32 (--precision fp32), or start again with a lower --lr or a longer "
                    f"--warmup; --replay {step} shows where it arises"
                )
        return values

    def report_validation(
        self, counters: Counters, scores: dict[str, float], baseline: dict[str, float], say: Callable[[str], None]
    ) -> None:
        """Log a validation; its total loss scores the next checkpoint."""
        self.log(counters.step, "validation", **scores, tokens=counters.tokens)
        self.scored_step, self.score = counters.step, total_loss(scores)
        parts = [
            f"{name.upper()} {scores[f'{name}_loss']:.3f} nats (unigram {baseline[f'{name}_loss']:.3f}), "
            f"accuracy {scores[f'{name}_accuracy']:.1%}, perplexity {scores[f'{name}_perplexity']:,.1f}"
            for name in ("mlm", "sbo")
            if f"{name}_loss" in scores
        ]
        if self.group.is_main:
            say(f"step {counters.step:,} validation: " + " · ".join(parts))

    def save(self, counters: Counters, window: StepWindow) -> None:
        """Write a checkpoint of this step, unless there is one. All ranks must call it."""
        counters.window = window.settle()
        if self.saved_step == counters.step:
            return
        whole = self._whole_model()

        def write(folder: Path) -> None:
            if self.group.is_main:
                write_model(folder, whole, self.tokenizer, self._untrained)
            save_training_state(folder, self.model, self.optimizer, dataclasses.asdict(counters), self.group)

        score = self.score if self.scored_step == counters.step else None
        self.store.save(counters.step, write, score)
        self.saved_step = counters.step

    @property
    def _untrained(self) -> dict[str, list[str]]:
        """For config.json: a head that this run never trained is not to be taken for a trained one."""
        return {} if self.config.sbo else {UNTRAINED: ["sbo"]}

    def finish(self, counters: Counters, complete: bool, baseline: dict[str, float]) -> None:
        """Curves, and, when the run is complete, the model folder; says what to do next."""
        whole = self._whole_model()
        if self.run is None:
            return
        names = ["mlm_loss", "sbo_loss"] if self.config.sbo else ["mlm_loss"]
        curves = self.config.output / "curves.png"
        drawn = (
            f", curves in {curves}"
            if plot_curves(self.run.metrics(), names, curves, self.config.output.name, baseline)
            else ""
        )
        self.run.close()
        if not complete:
            print(
                f"stopped at step {counters.step:,}, saved in {self.store.folder}{drawn}\n"
                "go on with: the same command and --resume"
            )
            return
        final = self.config.output / "model"
        with atomic_folder(final) as aside:
            write_model(aside, whole, self.tokenizer, self._untrained)
        print(
            f"wrote {final} ({counters.step:,} steps, {counters.tokens:,} tokens, {counters.seconds / 60:.1f} minutes)"
            f"{drawn}\nnext: spanbert fill {final} 'a text with a [SPAN:2] in it'   or   "
            f"spanbert finetune qa --init {final} --train train-v1.1.json --output RUN"
        )

    @staticmethod
    def postfix(values: dict[str, float], speed: dict[str, float]) -> dict[str, str]:
        """What the progress bar shows."""
        shown = {name: f"{values[f'{name}_loss']:.3f}" for name in ("mlm", "sbo") if f"{name}_loss" in values}
        shown["tokens/s"] = f"{speed['tokens_per_second']:,.0f}"
        shown["mfu"] = f"{speed['model_flops_utilisation']:.0%}"
        return shown

    def close(self) -> None:
        """Let go of the run's folder, whatever happened."""
        if self.run is not None:
            self.run.close()

    def _whole_model(self) -> nn.Module:
        """The model in one piece; of a sharded one a copy on the leader's host."""
        if not is_sharded(self.model):
            return self.model
        from spanbert.checkpoint.sharded_state import whole_weights

        weights = whole_weights(self.model)
        if not self.group.is_main:
            return self.model
        whole = SpanBertForPretraining(self.model.config)
        whole.load_state_dict(weights)
        return whole


def total_loss(scores: Mapping[str, float]) -> float | None:
    """MLM + SBO (§3.3), the number by which the best checkpoint is chosen."""
    losses = [scores["mlm_loss"], scores.get("sbo_loss", 0.0)]
    return None if None in losses else sum(losses)


def data_identity(tokenizer: Tokenizer, *arrays: Any) -> str:
    """A hash of what makes two prepared corpora the same to a run: tokenizer, block lengths, token counts."""
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for array in arrays:
        digest.update(memoryview(array).cast("B"))
    return digest.hexdigest()


def _check_fits(
    data: Path,
    tokenizer: Tokenizer,
    theirs: Tokenizer,
    block_length: int,
    folder: Path,
    model: SpanBertForPretraining,
) -> None:
    if theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{data} was prepared with another tokenizer ({tokenizer.vocab_size:,} pieces) than that of {folder} "
            f"({theirs.vocab_size:,} pieces): run `spanbert prepare … --tokenizer {folder}`"
        )
    if block_length > model.config.max_position_embeddings:
        raise UserError(
            f"{data} has blocks of {block_length} tokens, but {folder} has only {model.config.max_position_embeddings} "
            f"positions: prepare with --block-length {model.config.max_position_embeddings}"
        )

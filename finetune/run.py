"""What surrounds the fine-tuning loop: the starting model, the data, the run's folder, saving, resuming, the end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from finetune.config import MAY_DIFFER_ON_RESUME, FinetuneQAConfig
from finetune.evaluate import Evaluation, describe, evaluate_model, read_question_set, write_evaluation
from finetune.predict import Machine
from finetune.tasks.qa.answerer import SETTINGS_KEY, QASettings
from finetune.tasks.qa.features import QuestionSet, WindowConfig, build_question_set
from finetune.tasks.qa.records import QAReader, RecordReport
from spanbert.checkpoint.model_folder import build_model, load_model, load_model_and_tokenizer, save_model, write_model
from spanbert.checkpoint.store import CheckpointStore, find_model
from spanbert.checkpoint.training_state import load_training_state, save_training_state
from spanbert.config import to_dict
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.model.backend import resolve_backend
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.metrics import plot_curves
from spanbert.training.run_folder import RunFolder
from spanbert.weights import encoder_path


def start_model(config: FinetuneQAConfig, device: torch.device) -> tuple[SpanBertForQuestionAnswering, Tokenizer]:
    """A new model of `config.size`, or the encoder at `config.init`; a missing head is initialised and named."""
    backend = resolve_backend(config.backend, device)
    dropout = {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
    windows = WindowConfig(config.window, config.stride, config.max_question)
    if config.init == "random":
        assert config.tokenizer is not None
        tokenizer = Tokenizer.load(config.tokenizer, lowercase=config.lowercase)
        vocabulary = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
        shape = EncoderConfig.preset(config.size, **vocabulary, **dropout)
        windows.check(shape.max_position_embeddings)
        model = build_model(SpanBertForQuestionAnswering, shape, config.seed, backend=backend)
        print(f"starting from random weights: {config.size}")
        return model.to(device), tokenizer
    folder = encoder_path() if config.init == "shipped" else find_model(Path(config.init))
    model, tokenizer, report = load_model_and_tokenizer(
        folder,
        SpanBertForQuestionAnswering,
        lowercase=config.lowercase,
        seed=config.seed,
        config_overrides=dropout,
        backend=backend,
    )
    windows.check(model.config.max_position_embeddings)
    fresh = f", initialised: {', '.join(report.initialised)}" if report.initialised else ""
    print(f"starting from {report.file}: {len(report.loaded)} tensors loaded{fresh}")
    return model.to(device), tokenizer


def read_training_set(config: FinetuneQAConfig, tokenizer: Tokenizer) -> tuple[QuestionSet, RecordReport]:
    """The questions to train on, in the order of the file or, when limited, of the fixed shuffle. Says what it read."""
    reader = QAReader(config.train, skip_malformed=True)
    windows = WindowConfig(config.window, config.stride, config.max_question)
    questions = build_question_set(reader, tokenizer, windows, keep_text=False, malformed=reader.malformed)
    print(f"{config.train}: {reader.report.summary()}")
    for line in reader.report.lines[:5]:
        print(f"  skipped: {line}")
    if not len(questions):
        raise UserError(f"{config.train}: no usable question is left.")
    if questions.truncated:
        print(f"  {questions.truncated:,} questions cut to {config.max_question} pieces")
    if config.max_train_questions is not None and config.max_train_questions < len(questions):
        order = np.random.default_rng(config.shuffle_seed).permutation(len(questions))
        print(
            f"  training on the first {config.max_train_questions:,} of {len(questions):,} questions in the order of "
            f"numpy.random.default_rng({config.shuffle_seed}).permutation"
        )
        questions = questions.select(order[: config.max_train_questions])
    return questions, reader.report


class QASession:
    """One process's stretch of a fine-tuning run."""

    def __init__(
        self,
        config: FinetuneQAConfig,
        model: SpanBertForQuestionAnswering,
        tokenizer: Tokenizer,
        machine: Machine,
    ) -> None:
        self.config, self.model, self.tokenizer, self.machine = config, model, tokenizer, machine
        self.settings = QASettings(config.window, config.stride, config.max_question, config.max_answer)
        self.final = config.output / "model"
        self.dev: QuestionSet | None = None
        if config.resume:
            if not (config.output / "config.json").exists():
                raise UserError(f"--resume: {config.output} holds no run; leave --resume out to start one.")
            if self.final.exists():
                raise UserError(f"--resume: {config.output} is complete; its model is {self.final}.")
        elif (config.output / "config.json").exists():
            raise UserError(
                f"{config.output} already holds a run: add --resume to go on with it, or choose another --output."
            )

    def read_dev(self) -> None:
        """Read and check the dev file, if there is one."""
        if self.config.dev is not None:
            self.dev = read_question_set(self.config.dev, self.tokenizer, self.settings)
            print(f"{self.config.dev}: {len(self.dev):,} questions in {self.dev.windows:,} windows")

    def open(self, optimizer: torch.optim.Optimizer, report: RecordReport) -> int:
        """Start the run's folder, or with --resume load the newest whole checkpoint → the step to go on from."""
        config = self.config
        self.settings = replace(self.settings, null_allowed=report.impossible > 0)
        step, newest = 0, None
        self.store = CheckpointStore(config.output / "checkpoints", keep_last=1)
        if config.resume:
            newest = self.store.newest_whole()
            if newest is not None:
                loaded, _ = load_model(newest, SpanBertForQuestionAnswering)
                self.model.load_state_dict(loaded.state_dict())
                step = int(load_training_state(newest, self.model, optimizer)["step"])
            self.run = RunFolder.reopen(config.output, config, MAY_DIFFER_ON_RESUME, step)
            print(
                f"resuming from {newest}" if newest else f"{config.output} has no checkpoint yet: starting from step 0"
            )
        else:
            self.run = RunFolder.start(config.output, config)
        if report.lines:
            write_atomic(config.output / "skipped.txt", "\n".join(report.lines) + "\n")
        return step

    def save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint to resume from."""

        def write(folder: Path) -> None:
            write_model(folder, self.model, self.tokenizer, {SETTINGS_KEY: to_dict(self.settings)})
            save_training_state(folder, self.model, optimizer, {"step": step})

        self.store.save(step, write)

    def evaluate(self, step: int) -> Evaluation:
        """Score the model as it is on dev, with the null threshold that is best there, and log it."""
        assert self.dev is not None
        evaluation = evaluate_model(self.model, self.dev, self.settings, self.machine, search_threshold=True)
        self.run.log(step, "validation", **evaluation.metrics)
        print(describe(evaluation.metrics))
        return evaluation

    def finish(self, step: int) -> None:
        """Evaluate, write the model with its settings and the curves; the checkpoints have served."""
        evaluation = self.evaluate(step) if self.dev is not None else None
        if evaluation is not None:
            write_evaluation(self.config.output, evaluation)
            threshold = evaluation.metrics.get("null_threshold", 0.0)
            self.settings = replace(self.settings, null_threshold=threshold)
        elif self.settings.null_allowed:
            print(
                "no --dev: the null threshold stays 0; `spanbert evaluate qa` on labelled questions finds a better one"
            )
        save_model(self.final, self.model, self.tokenizer, {SETTINGS_KEY: to_dict(self.settings)})
        plot_curves(self.run.metrics(), ["loss"], self.config.output / "curves.png", self.config.output.name)
        self.run.close()
        shutil.rmtree(self.store.folder)
        written = (
            "predictions.json, nbest.json and metrics.json beside it" if evaluation else "no --dev, so no predictions"
        )
        print(f"wrote {self.final} ({step:,} steps); {written}")
        context = self.config.dev or "FILE"
        print(f'next: spanbert evaluate qa {self.final} {context}   or   spanbert ask {self.final} --context FILE "…"')

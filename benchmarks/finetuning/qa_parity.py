"""Training step for step beside transformers' BertForQuestionAnswering: same weights, windows, order; same losses?

    spanbert import … /tmp/minilm
    python -m benchmarks.finetuning.qa_parity --model /tmp/minilm --file train-v1.1.json.gz [--json FILE]

Both models start from one folder (a missing head is initialised once and given to both), with dropout 0, and take the
same windows in the same order with the same learning rates. Ours takes a batch packed; theirs takes it one window at
a time without padding, gradients adding up, so that its own loss, which would count padding tokens in the softmax, is
the loss of the definition. Their optimizer is torch.optim.AdamW with the parameter groups of transformers' examples.
Passes when no step's losses differ by more than `tolerance`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
import tyro
from tqdm import tqdm

from benchmarks.finetuning.peers import NO_DROPOUT, Pair, learning_rates, their_adamw, worst
from finetune.tasks.qa.encode import encode_questions
from finetune.tasks.qa.features import QuestionSet, WindowConfig
from finetune.tasks.qa.records import read_questions
from finetune.tasks.qa.task import qa_loss_sum
from finetune.train import step_windows
from spanbert.checkpoint.model_folder import load_model, save_model
from spanbert.checkpoint.store import find_model
from spanbert.device import describe
from spanbert.files import write_atomic
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.optim import adamw, clip_gradients, set_learning_rate

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ParityConfig:
    model: Path
    """Folder both start from, as `spanbert import` writes it."""
    file: Path
    """Training questions."""
    steps: int = 200
    batch_size: int = 8
    """Windows of a step; both sides together take about as long as 2 × steps × batch windows of training."""
    lr: float = 5e-5
    window: int = 384
    stride: int = 128
    seed: int = 0
    tolerance: float = 1e-3
    json: Path | None = None
    """Also write the result here."""


def train_ours(
    model: SpanBertForQuestionAnswering,
    questions: QuestionSet,
    batches: Iterable[np.ndarray],
    rates: list[float],
    weight_decay: float = 0.01,
) -> Iterator[float]:
    """The losses of our steps, each given before the next is taken."""
    optimizer = adamw(model, rates[0], weight_decay=weight_decay)
    labels_W2 = questions.labels_W2
    for windows, rate in zip(batches, rates, strict=True):
        set_learning_rate(optimizer, rate)
        batch = questions.packed(windows).tensors()
        loss = qa_loss_sum(*model(batch), batch.cu_seqlens, batch.max_seqlen, torch.from_numpy(labels_W2[windows]))
        loss = loss / len(windows)
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def train_theirs(
    model: transformers.BertForQuestionAnswering,
    questions: QuestionSet,
    batches: Iterable[np.ndarray],
    rates: list[float],
    weight_decay: float = 0.01,
) -> Iterator[float]:
    """The losses of transformers' steps."""
    optimizer = their_adamw(model, rates[0], weight_decay)
    labels_W2 = questions.labels_W2
    for windows, rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for window in windows:
            packed = questions.packed([window])
            first, last = labels_W2[window]
            loss = model(
                input_ids=torch.from_numpy(packed.input_ids_T)[None],
                token_type_ids=torch.from_numpy(packed.token_type_ids_T)[None],
                start_positions=torch.tensor([first]),
                end_positions=torch.tensor([last]),
            ).loss / len(windows)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield total


def load_both(
    folder: Path, tokenizer: Tokenizer, seed: int
) -> tuple[SpanBertForQuestionAnswering, transformers.BertForQuestionAnswering]:
    """One set of weights in both, in training mode with dropout 0."""
    ours, _ = load_model(folder, SpanBertForQuestionAnswering, seed=seed, config_overrides=NO_DROPOUT)
    with tempfile.TemporaryDirectory() as shared:
        save_model(Path(shared) / "model", ours, tokenizer)
        theirs = transformers.BertForQuestionAnswering.from_pretrained(f"{shared}/model", attn_implementation="eager")
    return ours.train(), theirs.train()


def compare(
    folder: Path, tokenizer: Tokenizer, questions: QuestionSet, steps: int, batch_size: int, lr: float, seed: int
) -> list[Pair]:
    """Both trained side by side over the same windows."""
    ours, theirs = load_both(folder, tokenizer, seed)
    lengths = questions.lengths
    batches = [step_windows(step, len(lengths), lengths, batch_size, seed) for step in range(steps)]
    rates = learning_rates(lr, steps)
    sides = zip(
        train_ours(ours, questions, batches, rates), train_theirs(theirs, questions, batches, rates), strict=True
    )
    pairs = []
    with tqdm(sides, total=steps, unit=" steps") as bar:
        for left, right in bar:
            pairs.append(Pair(left, right))
            bar.set_postfix_str(f"loss {left:.4f}, worst difference {worst(pairs):.1e}")
    return pairs


def main(config: ParityConfig) -> int:
    folder = find_model(config.model)
    tokenizer = Tokenizer.load(folder)
    found = read_questions(config.file, "train")
    windows = WindowConfig(config.window, config.stride)
    questions = encode_questions(found.paragraphs, tokenizer, windows, found.report.malformed)
    begin = time.perf_counter()
    pairs = compare(folder, tokenizer, questions, config.steps, config.batch_size, config.lr, config.seed)
    passed = worst(pairs) <= config.tolerance
    print(
        f"{config.steps} steps of {config.batch_size} windows: loss {pairs[0].ours:.4f} → {pairs[-1].ours:.4f}; largest "
        f"difference {worst(pairs):.2e} ({'within' if passed else 'ABOVE'} {config.tolerance:g}); "
        f"transformers {transformers.__version__}, {describe(CPU)}, {(time.perf_counter() - begin) / 60:.1f} minutes"
    )
    if config.json is not None:
        result = {
            "config": {key: str(value) for key, value in asdict(config).items()},
            "largest_difference": worst(pairs),
            "passed": passed,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "losses": [asdict(pair) for pair in pairs],
        }
        write_atomic(config.json, json.dumps(result, indent=1) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ParityConfig, description=(__doc__ or "").partition("\n")[0])))

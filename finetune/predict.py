"""Running a model over windows, in bounded memory, and decoding as it goes: the same for every task."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from finetune.task import Features, Task
from spanbert.checkpoint.architectures import architecture_of
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.checkpoint.store import find_model
from spanbert.device import autocast, choose_device
from spanbert.errors import UserError
from spanbert.files import check_writable, write_atomic
from spanbert.model.models import SpanBertModel
from spanbert.model.quantized import choose_inference_precision, quantize_encoder
from spanbert.tokenizer.wordpiece import Tokenizer

if TYPE_CHECKING:
    from finetune.config import EvaluateConfig, PredictConfig

CHUNK_WINDOWS = 4096  # logits of so many windows are held at a time

T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Machine:
    """Where and how a model runs."""

    device: torch.device
    precision: str  # "fp32", "bf16" or, for a model whose encoder was quantized, "int8"
    tokens: int = 16384  # of a batch at inference


@dataclass(frozen=True)
class TrainedModel(Generic[T]):
    """A model that was trained for a task, ready to predict."""

    folder: Path
    task: T
    model: SpanBertModel
    tokenizer: Tokenizer
    machine: Machine


def load_trained(
    task: type[T], folder: Path, *, device: str = "auto", precision: str = "auto", backend: str = "auto"
) -> TrainedModel[T]:
    """A folder that `spanbert finetune` wrote, or another of the Hugging Face layout with this task's heads.

    Raises UserError when it holds no model, or one whose heads were not trained for the task, and for a precision that
    there is not on the device.
    """
    folder = find_model(Path(folder))
    where = choose_device(device)
    machine = Machine(where, choose_inference_precision(where, precision))
    model, tokenizer, report = load_model_and_tokenizer(folder, task.model)
    if not all(report.has(head.name) for head in architecture_of(task.model).heads):
        raise UserError(
            f"{folder} has no trained head for this task; train one: spanbert finetune {task.name} --init {folder} …"
        )
    positions = model.config.max_position_embeddings
    stated = task.of_model(report.config, positions, f"{folder}/config.json")
    stated.check(positions)
    model.place(where, backend).eval()
    if machine.precision == "int8":
        quantize_encoder(model.encoder)
    return TrainedModel(folder, stated, model, tokenizer, machine)


def load_configured(task: type[T], folder: Path, config: EvaluateConfig | PredictConfig) -> TrainedModel[T]:
    """``load_trained`` with a command's options. Raises UserError as it does, and for a batch of no tokens."""
    if config.batch_tokens < 1:
        raise UserError(f"--batch-tokens {config.batch_tokens}: give at least 1.")
    trained = load_trained(task, folder, device=config.device, precision=config.precision, backend=config.backend)
    return replace(trained, machine=replace(trained.machine, tokens=config.batch_tokens))


def budget_batches(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Indices 0 … n−1, longest first, in groups whose lengths sum to at most `tokens` (one item at least)."""
    order = np.argsort(-lengths, kind="stable")
    begin, total = 0, 0
    for place, index in enumerate(order):
        if place > begin and total + lengths[index] > tokens:
            yield order[begin:place]
            begin, total = place, 0
        total += int(lengths[index])
    if begin < len(order):
        yield order[begin:]


@torch.inference_mode()
def window_logits(
    task: Task,
    model: SpanBertModel,
    features: Features,
    windows: np.ndarray,
    machine: Machine,
    advance: Callable[[int], object] = lambda windows: None,
) -> list[np.ndarray]:
    """The logits of every window asked for, float32, in the order asked.

    Raises UserError when the model gives a logit that is not finite.
    """
    logits: list[np.ndarray] = [np.zeros(0)] * len(windows)
    for group in budget_batches(features.lengths[windows], machine.tokens):
        packed = features.packed(windows[group])
        with autocast(machine.device, machine.precision):
            output = model(packed.tensors().to(machine.device))
        on_host = task.logits(output).float().cpu().numpy()
        if not np.isfinite(on_host).all():
            raise UserError("the model's logits are not finite: the checkpoint is damaged or its training diverged.")
        for place, part in zip(group, task.by_window(on_host, packed.cu_seqlens), strict=True):
            logits[place] = part
        advance(len(group))
    return logits


def predict(
    task: Task,
    model: SpanBertModel,
    features: Features,
    machine: Machine,
    advance: Callable[[int], object] = lambda windows: None,
) -> Iterator[Any]:
    """Predictions for all examples, in order. The model must be in eval mode; `advance` hears of windows done."""
    bounds = features.bounds.tolist()
    begin = 0
    for example in range(features.examples):
        first, stop = bounds[begin], bounds[example + 1]
        if stop - first < CHUNK_WINDOWS and example + 1 < features.examples:
            continue
        logits = window_logits(task, model, features, np.arange(first, stop), machine, advance)
        for member in range(begin, example + 1):
            yield task.decode(features, member, logits[bounds[member] - first : bounds[member + 1] - first])
        begin = example + 1


def run_predict(trained: TrainedModel[Any], file: Path, output: Path | None, limit: int | None) -> None:
    """Predictions for the examples of `file` (- for standard input) as JSON lines, to `output` or standard output."""
    task = trained.task
    if output is not None:
        check_writable(output, "file")
    records = task.read(file, "predict").first(limit)
    features = task.encode(records, trained.tokenizer, "predict")
    for note in features.notes:
        print(f"{file}: {note}", file=sys.stderr)
    predictions = predict(task, trained.model, features, trained.machine)
    found = (task.record(features, n, one) for n, one in enumerate(predictions))
    write_records(found, output, f"{features.examples:,} {task.noun}")


def write_records(records: Iterable[dict[str, Any]], output: Path | None, content: str) -> None:
    """JSON lines to ``output``, with a line that says so and of what they are, or to standard output."""
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    if output is None:
        for line in lines:
            print(line)
        return
    write_atomic(output, "".join(f"{line}\n" for line in lines))
    print(f"wrote {output} ({content})")

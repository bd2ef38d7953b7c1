"""What a task states. Training, evaluation and prediction are written against this and know no task.

A file holds examples (questions, texts). ``encode`` makes windows of them, at least one each, for a text may be longer
than the model: the model sees windows, a prediction is made for an example from all of its windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from torch import Tensor

from finetune.records import Purpose, RecordReport
from spanbert.model.models import SpanBertModel
from spanbert.tokenizer.wordpiece import Tokenizer


class Records(Protocol):
    """The examples of one file, checked."""

    report: RecordReport

    def summary(self) -> str:
        """What was read and what was left out, in one line."""
        ...

    def first(self, limit: int | None) -> Self:
        """The first ``limit`` examples. Raises UserError for a limit below 1."""
        ...


class Batch(Protocol):
    """What a model takes: a ``PackedBatch``, or something that holds one."""

    @property
    def cu_seqlens(self) -> np.ndarray: ...

    def tensors(self) -> Any:
        """The same for the model, still on the host; its ``to(device)`` brings it to the model."""
        ...


class Features(Protocol):
    """E examples as W windows of tokens."""

    @property
    def examples(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """(W,) int64: tokens of each window, special tokens included."""
        ...

    @property
    def bounds(self) -> np.ndarray:
        """(E + 1,) int64: the windows of example e are bounds[e] … bounds[e + 1] − 1."""
        ...

    @property
    def notes(self) -> list[str]:
        """What the model does not see, or sees in parts: one phrase each, for people."""
        ...

    def packed(self, windows: np.ndarray) -> Batch:
        """These windows as one batch."""
        ...

    def labels(self, windows: np.ndarray) -> np.ndarray:
        """What ``Task.loss`` compares these windows with: a row for each, or for each token of ``packed(windows)``."""
        ...

    def count(self, windows: np.ndarray) -> int:
        """How many labels these windows have: a step's loss is their sum ÷ this. A number of the host, known before
        anything is computed, so that a step in several parts has the gradient of the whole."""
        ...

    def select(self, chosen: np.ndarray) -> Self:
        """Only these examples, in this order."""
        ...


class Task(Protocol):
    """One task, with the settings of one model. Immutable: what is learned on the way makes another task."""

    name: ClassVar[str]
    """Word of the command line, and key of config.json under which the settings are kept."""
    noun: ClassVar[str]
    """What an example is called, in the plural."""
    model: ClassVar[type[SpanBertModel]]
    """A class of the table ``spanbert.checkpoint.architectures``."""

    @property
    def main_metric(self) -> str:
        """The key of ``score`` by which states of a run are compared and seeds are summed up; larger is better."""
        ...

    @property
    def settings(self) -> Any:
        """A frozen dataclass: what a model of this task remembers beside its weights."""
        ...

    # --- a model ---------------------------------------------------------------------------------------------------

    @classmethod
    def of_model(cls, config: Mapping[str, Any], max_positions: int, source: str) -> Self:
        """The task as a model's config.json states it; defaults for a model that was trained elsewhere."""
        ...

    def check(self, max_positions: int) -> None:
        """Raises UserError unless every window fits a model of so many positions."""
        ...

    def head(self) -> dict[str, Any]:
        """What ``model`` takes beside the shape of the encoder, such as ``num_labels``."""
        ...

    def new_tokens(self) -> Sequence[str]:
        """Tokens that the vocabulary needs beside its own, such as markers: rows are added for those it lacks."""
        ...

    def model_config(self) -> dict[str, Any]:
        """Keys for config.json: the settings under ``name``, and what other programs look for."""
        ...

    # --- data ------------------------------------------------------------------------------------------------------

    def read(self, path: Path, purpose: Purpose) -> Records:
        """Raises UserError for a file that cannot be used."""
        ...

    def learned_from(self, records: Any) -> Self:
        """The task with what the training data decide: the set of labels, whether a question may have no answer."""
        ...

    def encode(self, records: Any, tokenizer: Tokenizer, purpose: Purpose) -> Features:
        """Examples without any token are malformed records. Texts are kept unless it is to train."""
        ...

    # --- training --------------------------------------------------------------------------------------------------

    def loss(self, output: Any, labels: Tensor, batch: Any) -> Tensor:
        """Sum over the labels of a batch of windows, () fp32; ``output`` is what the model returned for ``batch``."""
        ...

    def training_notes(self, *, evaluated: bool) -> list[str]:
        """What a person should know of a model that was just trained; ``evaluated``: on labelled examples."""
        ...

    # --- prediction ------------------------------------------------------------------------------------------------

    def logits(self, output: Any) -> Tensor:
        """What the model returned as one tensor, to bring to the host at once."""
        ...

    def by_window(self, logits: np.ndarray, cu_seqlens: np.ndarray) -> Sequence[np.ndarray]:
        """The same on the host (fp32), cut into windows."""
        ...

    def decode(self, features: Any, example: int, logits: Sequence[np.ndarray]) -> Any:
        """The prediction for an example from the logits of its windows."""
        ...

    def record(self, features: Any, example: int, prediction: Any) -> dict[str, Any]:
        """A prediction as a line of ``spanbert predict``."""
        ...

    # --- evaluation ------------------------------------------------------------------------------------------------

    def tuned(self, features: Any, predictions: Sequence[Any]) -> Self:
        """The task with the settings that are best on these labelled examples; itself where there is nothing to tune."""
        ...

    def score(self, features: Any, predictions: Sequence[Any]) -> dict[str, float]:
        """Metrics in percent."""
        ...

    def scoring(self, features: Any) -> Mapping[str, str]:
        """Which of several metrics ``score`` uses, for people and metrics.json; empty where there is one."""
        ...

    def describe(self, metrics: Mapping[str, float]) -> str:
        """The metrics as lines for people."""
        ...

    def files(self, features: Any, predictions: Sequence[Any]) -> Mapping[str, str | bytes]:
        """Name → content of the files that an evaluation leaves beside metrics.json."""
        ...

    def next_command(self, folder: Path) -> str:
        """What a person does next with a finished model."""
        ...

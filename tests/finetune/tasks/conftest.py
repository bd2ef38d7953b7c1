"""What the tests of every task do alike: a run that is stopped and resumed, and the same loss in transformers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import finetune.train as training
from finetune.config import FinetuneConfig
from finetune.task import Features, Task
from spanbert.checkpoint.model_folder import save_model
from spanbert.model.models import SpanBertModel
from spanbert.model.packing import unpack
from spanbert.training.run_folder import read_metrics
from spanbert.training.signals import Stopped


@pytest.fixture
def resumes_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """resumes_bit_for_bit(run_finetune, config): a run stopped in its third step and resumed ends with the weights, and
    logs the losses, of one that was not."""

    def check(run_finetune: Callable[[Any], None], config: FinetuneConfig) -> None:
        config = replace(config, epochs=2, dropout=0.1, log_every=1, dev=None)
        whole, parted = (replace(config, output=config.output.with_name(name)) for name in ("whole", "parted"))
        run_finetune(whole)
        real = training.step_windows

        def stop_in_third(step: int, *rest: Any) -> np.ndarray:
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return real(step, *rest)

        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(training, "step_windows", stop_in_third)
            run_finetune(parted)
        run_finetune(replace(parted, resume=True))
        left, right = (load_file(run.output / "model" / "model.safetensors") for run in (whole, parted))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
        losses = [[r["loss"] for r in read_metrics(run.output / "metrics.jsonl") if r["split"] == "train"]
                  for run in (whole, parted)]  # fmt: skip
        assert losses[0] == losses[1]
        assert len(losses[0]) > 4

    return check


@pytest.fixture
def losses_here_and_in_transformers(tmp_path: Path) -> Callable[..., tuple[float, float]]:
    """losses_here_and_in_transformers(task, model, features, hub class, labels): the mean loss of all windows in one
    batch, by our task, and by transformers from the saved weights (``labels(batch)`` as it takes them)."""

    def compare(
        task: Task, model: SpanBertModel, features: Features, hub_class: type, labels: Callable[[Any, Tensor], Tensor]
    ) -> tuple[float, float]:
        save_model(tmp_path / "compared", model, None, task.model_config())
        theirs = hub_class.from_pretrained(tmp_path / "compared").eval()
        windows = np.arange(len(features.lengths))
        batch, ours = features.packed(windows).tensors(), torch.from_numpy(features.labels(windows))
        with torch.no_grad():
            here = task.loss(model.eval()(batch), ours, batch) / features.count(windows)
            ids_BL = unpack(batch.input_ids_T, batch.cu_seqlens, batch.max_seqlen)
            types = torch.zeros_like(batch.input_ids_T) if batch.token_type_ids_T is None else batch.token_type_ids_T
            there = theirs(
                input_ids=ids_BL,
                attention_mask=unpack(torch.ones_like(batch.input_ids_T), batch.cu_seqlens, batch.max_seqlen),
                token_type_ids=unpack(types, batch.cu_seqlens, batch.max_seqlen),
                labels=labels(batch, ours),
            ).loss
        return float(here), float(there)

    return compare

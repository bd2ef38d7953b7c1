"""SpanBERT (Joshi et al., TACL 2020) from scratch: encoder, span masking, span-boundary objective, question answering."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def pipeline(task: str, model: Any = None, **options: Any) -> Any:
    """A callable for a task, as that of transformers was: ``pipeline("question-answering")(question=…, context=…)``.

    model: a model or run folder; left out, the bundled one. options: device (auto, cpu, cuda:N, or a number as there),
    precision, backend, batch_size, and any option of the calls, for those that do not say otherwise. What it takes and
    returns, and where it differs from what was there, is in ``finetune/tasks/qa/pipeline.py``, which is imported when this
    is called. Raises UserError for a task that there is not, and for a folder without a trained model.
    """
    return importlib.import_module("finetune.tasks.qa.pipeline").pipeline(task, model, **options)

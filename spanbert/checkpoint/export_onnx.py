"""``spanbert export --format onnx``: what that format adds to an export, with ``onnx_graph`` for the graph itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spanbert.checkpoint.architectures import Architecture, architectures_in
from spanbert.checkpoint.load_report import brief
from spanbert.checkpoint.model_folder import StoredModel
from spanbert.checkpoint.onnx_graph import LARGEST_FILE, build_onnx
from spanbert.config import save_json
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.model.config import EncoderConfig

FILE = "model.onnx"


def graph_for(stored: StoredModel, declared: str, folder: Path) -> Architecture:
    """The kind of model that a graph is made of where ``--task`` does not say: that of the class in config.json.

    Raises UserError where the file lacks its heads, or none of the kinds has that class.
    """
    rows = [row for row in architectures_in(stored.tensors) if row.hub_class == declared]
    if not rows:
        held = brief(list(stored.tensors))
        raise UserError(
            f"{folder} calls itself {declared}, of which there is no ONNX graph here: say which part with --task; it holds {held}"
        )
    return rows[0]


def write_onnx(
    folder: Path,
    tensors: Mapping[str, Tensor],
    shape: EncoderConfig,
    raw_config: Mapping[str, Any],
    task: str,
    int8: bool,
) -> int:
    """model.onnx and config.json in a folder that the caller makes atomic → bytes of the model.

    Raises UserError for a model that is too large for one file.
    """
    model = build_onnx(tensors, shape, task, int8=int8)
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    if size > LARGEST_FILE:
        raise UserError(f"an ONNX file holds at most 2 GiB, and this model has {size:,} bytes: try --int8")
    data = model.SerializeToString()
    write_atomic(folder / FILE, data)
    save_json({**raw_config, "dtype": "float32"}, folder / "config.json")
    return len(data)

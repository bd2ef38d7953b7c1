"""``spanbert export``: a folder for transformers and others, from a run, a checkpoint or a model folder.

Our own folders are in that layout already, so exporting is choosing: which checkpoint, which heads, which dtype; the
training state stays behind. In the place of the tensors there may be an ONNX graph (``export_onnx``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from spanbert.checkpoint.adapter import is_adapter, tokenizer_folder
from spanbert.checkpoint.architectures import (
    ARCHITECTURES,
    BARE_ENCODER,
    ENCODER_PREFIXES,
    UNTRAINED,
    Architecture,
    all_heads,
    architecture_for,
    architectures_in,
    holds,
)
from spanbert.checkpoint.export_adapter import export_adapter
from spanbert.checkpoint.export_onnx import FILE, graph_for, write_onnx
from spanbert.checkpoint.load_report import brief, untrained_heads
from spanbert.checkpoint.model_folder import (
    StoredModel,
    build_model,
    hub_config,
    read_model,
    refuse_existing,
    write_tensors,
)
from spanbert.checkpoint.onnx_graph import onnx_library
from spanbert.checkpoint.store import find_model
from spanbert.checkpoint.weight_checks import check_shapes, check_vocabulary
from spanbert.errors import UserError
from spanbert.files import atomic_folder
from spanbert.tokenizer.wordpiece import Tokenizer

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: ``--task``: everything in the source, under the class that the source names.
ALL = "all"


@dataclass(frozen=True)
class ExportConfig:
    """Write a Hugging Face folder (config.json, model.safetensors or model.onnx, tokenizer) from a run, a checkpoint or
    a model."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Run folder, one of its checkpoints, or a model folder."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to write; must not exist yet."""
    format: Literal["huggingface", "onnx"] = "huggingface"
    """huggingface: model.safetensors, for transformers. onnx: model.onnx, for onnxruntime and optimum; encoder and one head."""
    int8: bool = False
    """With --format onnx: int8 weights, by output channel, and activations rounded as they come."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the stored weights."""
    task: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join([ALL, *(row.task for row in ARCHITECTURES)])}}}")] = ALL
    """Which part: the encoder alone (with its pooler if it has one), with the head or heads of a task, or everything in
    the source under the class that the source names."""
    which: Literal["last", "best"] = "last"
    """Of a run: its finished model or newest checkpoint, or the checkpoint with the lowest validation loss."""
    merge: bool = False
    """Of an adapter (spanbert finetune --lora): write the whole model with the adapter in its weights. Without it, an adapter is written in PEFT's layout; an ONNX model is always whole."""


def run_export(config: ExportConfig) -> None:
    """Choose, check, convert, write, report. Raises UserError when the source is broken or lacks what was asked for."""
    architecture = None if config.task == ALL else architecture_for(config.task)
    if architecture is None and config.task != ALL:
        names = ", ".join([ALL, *(row.task for row in ARCHITECTURES)])
        raise UserError(f"--task {config.task}: there is no such task; choose one of {names}")
    onnx = config.format == "onnx"
    if config.int8 and not onnx:
        raise UserError("--int8 goes with --format onnx; spanbert's own commands take --precision int8 with any model")
    if onnx:
        onnx_library()
        if config.dtype != "fp32":
            raise UserError(f"--dtype {config.dtype}: an ONNX model is written in fp32, or with --int8")
    refuse_existing(config.output)
    folder = find_model(config.source, config.which)
    if config.merge and not is_adapter(folder):
        raise UserError(f"--merge: {folder} is a whole model; leave it out")
    if is_adapter(folder) and not config.merge and not onnx:
        if config.dtype != "fp32":
            raise UserError(f"--dtype {config.dtype}: an adapter is written in fp32; --merge writes the whole model")
        export_adapter(folder, config.output, config.task)
        return
    stored = read_model(folder)
    tokenizer = Tokenizer.load(tokenizer_folder(folder))
    check_vocabulary(tokenizer, stored.config.vocab_size, folder)
    check_heads(stored)
    if onnx and architecture is None:
        architecture = graph_for(stored, _declared_class(stored), folder)
    tensors = stored.tensors if architecture is None else part_of(stored, architecture, folder)
    _refuse_untied(stored, tensors, folder)
    hub_class = _declared_class(stored) if architecture is None else architecture.hub_class

    tensors = {name: convert(tensor, config.dtype, name) for name, tensor in tensors.items()}
    new_config = {**stored.raw, **hub_config(stored.config, hub_class)}
    new_config.pop(UNTRAINED, None)
    untrained = [head for head in untrained_heads(stored.raw) if holds(tensors, all_heads()[head])]
    if untrained:
        new_config[UNTRAINED] = untrained
    size = 0
    with atomic_folder(config.output, replace=False) as aside:
        if onnx:
            assert architecture is not None
            size = write_onnx(aside, tensors, stored.config, new_config, architecture.task, config.int8)
        else:
            write_tensors(aside, tensors, new_config)
        tokenizer.save(aside)
    print(f"from  {folder}")
    if onnx:
        assert architecture is not None
        kind = "int8 products" if config.int8 else "fp32"
        print(f"wrote {config.output}: an ONNX model of {size:,} bytes, {kind}: encoder and {architecture.task}")
    else:
        parameters = sum(tensor.numel() for tensor in tensors.values())
        print(
            f"wrote {config.output}: {hub_class}, {parameters:,} parameters in {config.dtype}: {brief(list(tensors))}"
        )
    if untrained:
        print(f"note  only initialised, never trained: {', '.join(untrained)}")
    if onnx:
        print(f"next: onnxruntime.InferenceSession({str(config.output / FILE)!r})")
    else:
        print(f"next: transformers.{hub_class}.from_pretrained({str(config.output)!r})")


def part_of(stored: StoredModel, architecture: Architecture, folder: Path) -> dict[str, Tensor]:
    """The tensors of one kind of model. Raises UserError when the folder lacks one of its heads."""
    for head in architecture.heads:
        if not holds(stored.tensors, head):
            held = brief(list(stored.tensors))
            raise UserError(f"{folder} has no {architecture.task} head ({head.start}*): it holds {held}")
    starts = (*ENCODER_PREFIXES, *(head.start for head in architecture.all_heads))
    return {name: tensor for name, tensor in stored.tensors.items() if name.startswith(starts)}


def check_heads(stored: StoredModel) -> None:
    """Every kind of model that the file holds has the shape that its configuration says. Raises UserError."""
    for row in architectures_in(stored.tensors):
        if row.model is None:
            continue
        options = {}
        if row.labels is not None:
            weight = stored.tensors.get(f"{all_heads()[row.labels].start}weight")
            if weight is None or not weight.shape:
                continue
            options["num_labels"] = weight.shape[0]
        with torch.device("meta"):
            model = build_model(row.model, stored.config, 0, **options)
        check_shapes(model, stored.tensors, stored.file)


def convert(tensor: Tensor, dtype: str, name: str) -> Tensor:
    """→ contiguous, in ``dtype``. Raises UserError when a finite number would become infinite (fp16 ends at 65,504)."""
    converted = tensor.to(DTYPES[dtype]).contiguous()
    if torch.isfinite(tensor).all() and not torch.isfinite(converted).all():
        raise UserError(f"{name} has numbers that {dtype} cannot hold: use --dtype bf16 or fp32")
    return converted


def _refuse_untied(stored: StoredModel, tensors: dict[str, Tensor], folder: Path) -> None:
    for name, matrix in stored.untied.items():
        if holds(tensors, all_heads()[name]):
            raise UserError(
                f"{folder}: {matrix} is not the word embeddings, and a folder written here has one matrix for both, so "
                f"its {name.upper()} head cannot be exported: --task encoder writes the rest"
            )


def _declared_class(stored: StoredModel) -> str:
    """The class that config.json names, as transformers wrote it."""
    named = stored.raw.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else BARE_ENCODER

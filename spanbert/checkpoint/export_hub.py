"""``spanbert export``: a folder for transformers and others, from a run, a checkpoint or a model folder.

Our own folders are in that layout already, so exporting is choosing: which checkpoint, which heads, which dtype; the
training state stays behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from spanbert.checkpoint.model_folder import (
    HEADS,
    UNTRAINED,
    brief,
    encoder_config,
    hub_config,
    refuse_existing,
    usual_names,
    write_tensors,
)
from spanbert.checkpoint.weight_files import read_weights
from spanbert.config import read_json
from spanbert.errors import UserError
from spanbert.files import atomic_folder
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import find_model

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: task → (transformers' class, tensors without which it makes no sense, beginnings of the names that go along)
TASKS = {
    "encoder": ("BertModel", "bert.embeddings.word_embeddings.weight", ("bert.",)),
    "pretraining": ("BertForMaskedLM", "cls.predictions.bias", ("bert.embeddings.", "bert.encoder.", "cls.")),
    "qa": ("BertForQuestionAnswering", "qa_outputs.weight", ("bert.embeddings.", "bert.encoder.", "qa_outputs.")),
}


@dataclass(frozen=True)
class ExportConfig:
    """Write a Hugging Face folder (config.json, model.safetensors, tokenizer) from a run, a checkpoint or a model."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Run folder, one of its checkpoints, or a model folder."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to write; must not exist yet."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the stored weights."""
    task: Literal["all", "encoder", "pretraining", "qa"] = "all"
    """Which part: the encoder alone (with its pooler if it has one), with the pretraining heads, with the question-answering
    head, or everything in the source under the class that the source names."""
    which: Literal["last", "best"] = "last"
    """Of a run: its finished model or newest checkpoint, or the checkpoint with the lowest validation loss."""


def run_export(config: ExportConfig) -> None:
    """Choose, convert, write, report. Raises UserError when the source lacks what was asked for."""
    refuse_existing(config.output)
    folder = find_model(config.source, config.which)
    stored, file = read_weights(folder)
    tensors = usual_names(stored, f"{folder}/{file}")
    raw = read_json(folder / "config.json")
    shape = encoder_config(raw, f"{folder}/config.json", tensors)
    architecture = (raw.get("architectures") or ["BertModel"])[0]
    if config.task != "all":
        architecture, needed, prefixes = TASKS[config.task]
        if needed not in tensors:
            raise UserError(f"{folder} has no {config.task} head ({needed}): it holds {brief(list(tensors))}")
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}
    tensors = {name: convert(tensor, config.dtype, name) for name, tensor in tensors.items()}
    new_config = {**raw, **hub_config(shape, architecture)}
    untrained = [head for head in new_config.pop(UNTRAINED, []) if any(n.startswith(HEADS[head]) for n in tensors)]
    if untrained:
        new_config[UNTRAINED] = untrained
    tokenizer = Tokenizer.load(folder)
    with atomic_folder(config.output) as aside:
        write_tensors(aside, tensors, new_config)
        tokenizer.save(aside)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    print(f"from  {folder}")
    print(f"wrote {config.output}: {architecture}, {parameters:,} parameters in {config.dtype}: {brief(list(tensors))}")
    if untrained:
        print(f"note  only initialised, never trained: {', '.join(untrained)}")
    print(f"next: transformers.{architecture}.from_pretrained({str(config.output)!r})")


def convert(tensor: Tensor, dtype: str, name: str) -> Tensor:
    """→ contiguous, in ``dtype``. Raises UserError when a finite number would become infinite (fp16 ends at 65,504)."""
    converted = tensor.to(DTYPES[dtype]).contiguous()
    if torch.isfinite(tensor).all() and not torch.isfinite(converted).all():
        raise UserError(f"{name} has numbers that {dtype} cannot hold: use --dtype bf16 or fp32")
    return converted

"""A model on disk: a folder in the Hugging Face layout, read and written without loss.

    config.json          BERT's keys, the class for transformers, our own keys beside them
    model.safetensors    fp32 under Hugging Face's names (``weight_names``), the tied output matrix left out
    tokenizer.json, vocab.txt, tokenizer_config.json

``load_model`` reads such folders from anywhere, not only our own (``weight_files`` says which files), and checks them
(``weight_checks``); what a folder lacks is initialised from a seed and named in the report.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spanbert.checkpoint.adapter import (
    ADAPTER,
    base_folder,
    fill_adapter,
    is_adapter,
    merged,
    read_adapter,
    tokenizer_folder,
    write_adapter,
)
from spanbert.checkpoint.architectures import ENCODER_PREFIXES, SBO, architecture_of
from spanbert.checkpoint.load_report import LoadReport
from spanbert.checkpoint.weight_checks import check_encoder, check_group, check_numbers, check_vocabulary
from spanbert.checkpoint.weight_files import read_weights
from spanbert.checkpoint.weight_names import groups_of, to_ours, to_theirs, untied_heads, usual_names
from spanbert.config import read_json_object, save_json
from spanbert.errors import UserError
from spanbert.files import atomic_folder, check_writable
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertModel
from spanbert.tokenizer.wordpiece import Tokenizer

M = TypeVar("M", bound=SpanBertModel)


@dataclass(frozen=True)
class StoredModel:
    """A model as it lies in a folder, checked, but not built: ``tensors`` have their usual names and stored dtypes."""

    file: str
    tensors: dict[str, Tensor]
    config: EncoderConfig
    raw: dict[str, Any]
    """config.json as it stands."""
    untied: dict[str, str] = field(default_factory=dict)
    """Heads whose output matrix is not the word embeddings → that matrix's name."""


def refuse_existing(output: Path) -> None:
    """UserError when ``output`` is there already (an empty folder is not) or cannot be written.

    A command must not replace what it finds, and must not find out after its work.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} already exists: name a new folder, or remove that one first")
    check_writable(output, "folder", "OUTPUT")


# --- writing -----------------------------------------------------------------------------------------------------


def save_model(
    folder: Path | str,
    model: SpanBertModel,
    tokenizer: Tokenizer | None,
    extra_config: Mapping[str, Any] | None = None,
    *,
    replace: bool = True,
) -> None:
    """Write ``folder`` whole or not at all, replacing an older one (see ``atomic_folder``)."""
    with atomic_folder(folder, replace) as aside:
        write_model(aside, model, tokenizer, extra_config)


def write_model(
    folder: Path, model: SpanBertModel, tokenizer: Tokenizer | None, extra_config: Mapping[str, Any] | None = None
) -> None:
    """Write the files of a model into an existing folder that the caller makes atomic (a checkpoint adds its own).

    Of a model with LoRA that is the adapter alone.
    """
    architecture = architecture_of(type(model))
    config = hub_config(model.config, architecture.hub_class)
    config.update(extra_config or {})
    if architecture.labels is not None and "id2label" not in config:
        labels = getattr(model, architecture.labels).out_features
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        config["label2id"] = {label: int(i) for i, label in config["id2label"].items()}
    if model.adapts is not None:
        write_adapter(folder, model, config)
    else:
        write_tensors(folder, to_theirs({name: tensor.cpu() for name, tensor in model.state_dict().items()}), config)
    if tokenizer is not None:
        tokenizer.save(folder)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """model.safetensors and config.json; ``dtype`` in the config is set from the tensors."""
    (dtype,) = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point()}
    save_json({**config, "dtype": dtype}, folder / "config.json")
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors makes it private to the user


def hub_config(config: EncoderConfig, architecture: str) -> dict[str, Any]:
    """``config.json`` as transformers expects it for a BERT of this shape; our SBO keys stay under their own names."""
    return {
        "architectures": [architecture],
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        **dataclasses.asdict(config),
    }


# --- reading -----------------------------------------------------------------------------------------------------


def load_model(
    folder: Path | str,
    cls: type[M],
    *,
    seed: int = 0,
    config_overrides: Mapping[str, Any] | None = None,
    **init: Any,
) -> tuple[M, LoadReport]:
    """Build ``cls`` with the shape and weights of a Hugging Face-layout folder, on the CPU, in fp32.

    Args:
        folder: config.json beside safetensors (whole or shards) or pytorch_model.bin.
        seed: of the initialisation of what the folder lacks; PyTorch's global generator is left alone.
        config_overrides: fields of EncoderConfig to change, e.g. dropout.
        init: passed to ``cls`` (``backend``, ``num_labels``; the latter by default from the folder's ``id2label``).

    Raises UserError when a file is missing or broken, a shape differs, a number is not finite, or there is no encoder
    in it.
    """
    stored = read_model(folder)
    config = dataclasses.replace(stored.config, **(config_overrides or {}))
    if architecture_of(cls).labels is not None:
        labels = stored.raw.get("id2label")
        init.setdefault("num_labels", len(labels) if isinstance(labels, dict) and labels else 2)
    model = build_model(cls, config, seed, **init)
    return model, fill_model(model, stored.tensors, stored.file, stored.raw, stored.untied)


def load_model_and_tokenizer(
    folder: Path | str, cls: type[M], *, lowercase: bool | None = None, **options: Any
) -> tuple[M, Tokenizer, LoadReport]:
    """``load_model`` (which takes ``options``) and the tokenizer beside it, proven to be of the same vocabulary.

    Every command that runs a model on text loads it here. Raises UserError as ``load_model`` and ``Tokenizer.load`` do,
    and when the vocabulary is another model's.
    """
    model, report = load_model(folder, cls, **options)
    tokenizer = Tokenizer.load(tokenizer_folder(Path(folder)), lowercase=lowercase)
    check_vocabulary(tokenizer, model.config.vocab_size, folder)
    return model, tokenizer, report


def read_model(folder: Path | str) -> StoredModel:
    """Read and check all of a folder's weights, whatever heads they have. Raises UserError as ``load_model`` does.

    An adapter is merged into its base.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    if is_adapter(folder):
        return _read_adapted(folder)
    raw = read_json_object(folder / "config.json", "BERT's keys")
    tensors, name = read_weights(folder)
    file = f"{folder}/{name}"
    usual = usual_names(tensors, file)
    config = encoder_config(raw, f"{folder}/config.json", usual)
    check_encoder(config, usual, file)
    check_numbers(usual, file)
    return StoredModel(file, usual, config, raw, untied_heads(tensors))


def _read_adapted(folder: Path) -> StoredModel:
    """Raises UserError when the base is an adapter itself: which weights were meant would depend on rounding."""
    adapter, base = read_adapter(folder), base_folder(folder)
    if is_adapter(base):
        raise UserError(f"{base}, the base of {folder}, is an adapter itself: merge it first (spanbert export --merge)")
    stored = read_model(base)
    raw = read_json_object(folder / "config.json", "BERT's keys") if (folder / "config.json").is_file() else stored.raw
    tensors = merged(adapter, stored.tensors)
    config = encoder_config(raw, f"{folder}/config.json", tensors)
    check_encoder(config, tensors, adapter.file)
    check_numbers(tensors, adapter.file)
    untied = {} if adapter.complete else stored.untied
    return StoredModel(adapter.file, tensors, config, {k: v for k, v in raw.items() if k != ADAPTER}, untied)


def restore_model(model: SpanBertModel, folder: Path) -> None:
    """Put a checkpoint's weights into the model that wrote it, of a model with LoRA the adapter. Raises UserError."""
    if model.adapts is not None:
        fill_adapter(model, folder)
        return
    stored = read_model(folder)
    fill_model(model, stored.tensors, stored.file, stored.raw)


def build_model(cls: type[M], config: EncoderConfig, seed: int, **init: Any) -> M:
    """A freshly initialised model that is a function of (cls, config, seed) and disturbs no other randomness."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config, **init)


def fill_model(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    file: str,
    raw_config: dict[str, Any],
    untied: Mapping[str, str] | None = None,
) -> LoadReport:
    """Copy a file's tensors (usual names, any dtype) into ``model``; what is absent stays as it is.

    Raises UserError on a shape that differs and when some of the encoder is missing.
    """
    targets = dict(model.named_parameters())
    loaded: list[str] = []
    initialised: list[str] = []
    with torch.no_grad():
        for group in groups_of(targets):
            if not all(name in tensors for name in group.theirs):
                initialised += group.theirs
                continue
            check_group(group, tensors, targets, file)
            widths = [targets[name].shape[group.dim] for name in group.ours]
            for name, part in to_ours(group, tensors, widths).items():
                targets[name].copy_(part)
            loaded += group.theirs
    missing = [name for name in initialised if name not in tensors and name.startswith(ENCODER_PREFIXES)]
    if missing:
        raise UserError(f"{file} lacks {len(missing)} of the encoder's tensors, {missing[0]!r} first: is it a BERT?")
    unused = set(tensors) - set(loaded)
    return LoadReport(file, tuple(loaded), tuple(initialised), tuple(sorted(unused)), raw_config, dict(untied or {}))


def encoder_config(raw: Mapping[str, Any], source: str, tensors: Mapping[str, Tensor]) -> EncoderConfig:
    """Our part of a Hugging Face ``config.json``; the SBO table's size, which BERT's keys lack, from the tensors.

    Raises UserError for architectures that are not BERT's, and for a value that cannot be.
    """
    for key, only in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        value = raw.get(key, only)
        if value != only:
            raise UserError(f"{source}: {key} is {value!r}: this encoder is that of BERT with {only!r}")
    fields = {field.name for field in dataclasses.fields(EncoderConfig)}
    values = {key: value for key, value in raw.items() if key in fields and value is not None}
    table = tensors.get(f"{SBO.prefix}.{SBO.modules['position']}.weight")
    if table is not None and table.dim() == 2:
        values["sbo_positions"], values["sbo_position_size"] = table.shape
    try:
        return EncoderConfig(**values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None

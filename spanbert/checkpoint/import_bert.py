"""``spanbert import``: any BERT or SpanBERT checkpoint becomes a model folder that every other command takes.

The folder holds the encoder, both pretraining heads (so that pretraining can go on from it) and whatever task head or
pooler the source had. Heads that the source lacks are initialised from a seed, named, and marked in config.json as
untrained. Reading, naming and checking are ``weight_files``, ``weight_names`` and ``weight_checks``; this file decides
and reports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from spanbert.checkpoint.architectures import (
    UNTRAINED,
    Architecture,
    architecture_of,
    architectures_in,
    head_starts,
)
from spanbert.checkpoint.file_kinds import snapshot_of
from spanbert.checkpoint.load_report import brief, untied_note
from spanbert.checkpoint.model_folder import (
    build_model,
    encoder_config,
    fill_model,
    hub_config,
    refuse_existing,
    write_tensors,
)
from spanbert.checkpoint.weight_checks import check_encoder, check_numbers, check_vocabulary, count_layers
from spanbert.checkpoint.weight_files import read_weights
from spanbert.checkpoint.weight_names import to_theirs, untied_heads, usual_names
from spanbert.config import check_range, read_json_object
from spanbert.errors import UserError
from spanbert.files import atomic_folder
from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import count_parameters
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer

#: Keys of a foreign config.json that describe its file or its library, not the model.
STALE_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", UNTRAINED)


@dataclass(frozen=True)
class ImportConfig:
    """Bring in a BERT or SpanBERT checkpoint: a Hugging Face folder, the authors' file, or a fairseq checkpoint."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder with model.safetensors or pytorch_model.bin (whole or in shards), one .safetensors or torch-saved file, or a
    Hugging Face download cache (models--owner--name)."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Model folder to write; must not exist yet."""
    vocab: Path | None = None
    """vocab.txt, tokenizer.json or a folder with one; by default what lies beside the weights."""
    lowercase: bool | None = None
    """Lower-case the text; by default as the tokenizer's files say (a bare vocab.txt: only if it has no capital)."""
    padding: bool = False
    """The embeddings' rows beyond the vocabulary are padding: no line of the vocab.txt was lost."""
    seed: int = 0
    """Of the initialisation of heads that the source lacks."""


def run_import(config: ImportConfig) -> None:
    """Read, check, report, write. Raises UserError, with nothing written, when the source cannot be used."""
    check_range(config, 0, 2**63, "seed", below=True)
    refuse_existing(config.output)
    place = (snapshot_of(config.source) if config.source.is_dir() else None) or config.source
    stored, file = read_weights(place)
    folder = place if place.is_dir() else place.parent
    source = str(folder / file)
    tensors = usual_names(stored, source)
    raw, where = _find_config(folder)
    shape = encoder_config(raw, where, tensors) if raw else infer_shape(tensors, source)
    check_encoder(shape, tensors, source)
    check_numbers(tensors, source)
    tokenizer = _find_tokenizer(config, folder)
    note = check_vocabulary(tokenizer, shape.vocab_size, source, padding=config.padding)
    shape = dataclasses.replace(shape, pad_token_id=tokenizer.pad_id)

    model = build_model(SpanBertForPretraining, shape, config.seed)
    report = fill_model(model, tensors, source, raw, untied_heads(stored))
    kept = {name: tensors[name].float() for name in report.unused if name.startswith(head_starts())}
    pretraining = architecture_of(SpanBertForPretraining)
    untrained = [head.name for head in pretraining.all_heads if not report.has(head.name)]
    finished = _finished_model(raw, kept, pretraining, untrained)
    written = {**to_theirs(model.state_dict()), **kept}
    with atomic_folder(config.output, replace=False) as aside:
        write_tensors(aside, written, _new_config(raw, shape, finished, untrained))
        tokenizer.save(aside)

    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()})
    ignored = [name for name in report.unused if name not in kept] + list(report.untied.values())
    lines = {
        "source": f"{source} ({len(stored)} tensors, {', '.join(kinds)})",
        "shape": f"{_describe_shape(shape)} ({where if raw else 'no config.json: from the shapes of the tensors'})",
        "imported": f"{brief(report.loaded)}, {count_parameters(model):,} parameters with both heads",
        "initialised": f"{brief(report.initialised)} from seed {config.seed}" if report.initialised else "",
        "kept": f"{brief(list(kept))} for tasks that use them" if kept else "",
        "ignored": ", ".join(ignored),
        "vocabulary": f"{tokenizer.vocab_size:,} tokens, {'un' * tokenizer.lowercase}cased{note}",
    }
    print("\n".join(f"{key:<12} {value}" for key, value in lines.items() if value))
    for head, matrix in report.untied.items():
        print(f"warning: {untied_note(head, matrix)}")
    print(f"wrote {config.output}")
    print(_next_commands(config.output, finished))


def infer_shape(tensors: Mapping[str, Tensor], source: str) -> EncoderConfig:
    """The shape of a BERT from its tensors (usual names). Heads do not show in them: taken as 64 wide, as in BERT.

    Raises UserError when these are not a BERT's tensors.
    """
    try:
        vocab_size, hidden = tensors["bert.embeddings.word_embeddings.weight"].shape
        positions = tensors["bert.embeddings.position_embeddings.weight"].shape[0]
        types = tensors["bert.embeddings.token_type_embeddings.weight"].shape[0]
        intermediate = tensors["bert.encoder.layer.0.intermediate.dense.weight"].shape[0]
    except KeyError as missing:
        raise UserError(f"{source} lacks {missing}: is it a BERT?") from None
    except (ValueError, IndexError):
        raise UserError(f"{source}: its embeddings are not matrices, as those of a BERT are") from None
    if hidden % 64:
        raise UserError(f"{source}: {hidden} hidden units are not a multiple of 64: put its config.json beside it")
    raw = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": count_layers(tensors),
        "num_attention_heads": hidden // 64,
        "intermediate_size": intermediate,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
    }
    return encoder_config(raw, source, tensors)


def _find_config(folder: Path) -> tuple[dict[str, Any], str]:
    for name in ("config.json", "bert_config.json"):
        if (folder / name).is_file():
            return read_json_object(folder / name, "BERT's keys"), str(folder / name)
    return {}, ""


def _find_tokenizer(config: ImportConfig, folder: Path) -> Tokenizer:
    if config.vocab is not None:
        return Tokenizer.load(config.vocab, lowercase=config.lowercase)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(
            f"{folder} has no vocabulary (tokenizer.json or vocab.txt): give the model's own with --vocab FILE"
        )
    return Tokenizer.load(folder, lowercase=config.lowercase)


def _finished_model(
    raw: Mapping[str, Any], kept: Mapping[str, Tensor], pretraining: Architecture, untrained: list[str]
) -> Architecture | None:
    """What the source can do as it is: predict masked tokens, or a task whose heads it has; None for an encoder alone.

    Of two tasks that its heads allow, the one whose class its config names.
    """
    if not any(head.name in untrained for head in pretraining.heads):
        return pretraining
    rows = [row for row in architectures_in(kept) if row.heads and row is not pretraining]
    named = raw.get("architectures")
    return next((row for row in rows if isinstance(named, list) and row.hub_class in named), rows[0] if rows else None)


def _new_config(
    raw: Mapping[str, Any], shape: EncoderConfig, finished: Architecture | None, untrained: list[str]
) -> dict[str, Any]:
    """The source's config with our shape on top; the class is that of what it can do."""
    hub_class = (finished or architecture_of(SpanBertForPretraining)).hub_class
    carried = {key: value for key, value in raw.items() if key not in STALE_KEYS}
    return {**carried, **hub_config(shape, hub_class), UNTRAINED: untrained}


def _describe_shape(shape: EncoderConfig) -> str:
    return (
        f"{shape.num_hidden_layers} layers × {shape.hidden_size}, {shape.num_attention_heads} heads, "
        f"{shape.vocab_size:,} tokens, {shape.max_position_embeddings} positions"
    )


def _next_commands(output: Path, finished: Architecture | None) -> str:
    commands = [
        finished.use.format(folder=output) if finished is not None else "",
        f"spanbert finetune qa --init {output} --train train-v1.1.json --output RUN",
        f"spanbert prepare TEXT --tokenizer {output} … and spanbert pretrain … --init-from {output}",
    ]
    return "next: " + "\n  or: ".join(command for command in commands if command)

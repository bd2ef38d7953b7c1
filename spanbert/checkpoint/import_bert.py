"""``spanbert import``: any BERT or SpanBERT checkpoint becomes a model folder that every other command takes.

The folder holds the encoder, both pretraining heads (so that pretraining can go on from it) and whatever task head or
pooler the source had. Heads that the source lacks are initialised from a seed, named, and marked in config.json as
untrained. Reading and naming are ``tensor_files`` and ``weight_names``; this file decides and reports.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from spanbert.checkpoint.model_folder import (
    ARCHITECTURES,
    HEADS,
    UNTRAINED,
    brief,
    build_model,
    encoder_config,
    fill_model,
    hub_config,
    refuse_existing,
    usual_names,
    write_tensors,
)
from spanbert.checkpoint.weight_files import read_weights
from spanbert.checkpoint.weight_names import TIED, their_usual_name, to_theirs
from spanbert.config import read_json
from spanbert.errors import UserError
from spanbert.files import atomic_folder
from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import count_parameters
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer

#: Parts that the pretraining model does not have but that the imported folder keeps for the tasks that use them.
KEPT = ("bert.pooler.", "qa_outputs.", "classifier.")
#: Keys of a foreign config.json that describe its file or its library, not the model.
STALE_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", UNTRAINED)
#: Embedding matrices are padded to multiples of these; a larger surplus over the vocabulary is another model's matrix.
PADDING_MULTIPLE, LARGEST_PADDING = 8, 128


@dataclass(frozen=True)
class ImportConfig:
    """Bring in a BERT or SpanBERT checkpoint: a Hugging Face folder, the authors' file, or a fairseq checkpoint."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder with model.safetensors or pytorch_model.bin (whole or in shards), or one .safetensors / torch-saved file."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Model folder to write; must not exist yet."""
    vocab: Path | None = None
    """vocab.txt, tokenizer.json or a folder with one; by default what lies beside the weights."""
    lowercase: bool | None = None
    """Lower-case the text; by default as the tokenizer's files say (a bare vocab.txt: only if it has no capital)."""
    seed: int = 0
    """Of the initialisation of heads that the source lacks."""


def run_import(config: ImportConfig) -> None:
    """Read, check, report, write. Raises UserError, with nothing written, when the source cannot be used."""
    refuse_existing(config.output)
    stored, file = read_weights(config.source)
    folder = config.source if config.source.is_dir() else config.source.parent
    source = str(folder / file)
    tensors = usual_names(stored, source)
    raw, where = _find_config(folder)
    shape = encoder_config(raw, where, tensors) if raw else infer_shape(tensors, source)
    tokenizer = _find_tokenizer(config, folder)
    note = check_vocabulary(tokenizer, tensors, shape)
    shape = dataclasses.replace(shape, pad_token_id=tokenizer.pad_id)

    model = build_model(SpanBertForPretraining, shape, config.seed)
    report = fill_model(model, tensors, source, raw)
    kept = {name: tensors[name].float() for name in report.unused if name.startswith(KEPT)}
    _refuse_broken_numbers({name: tensors[name] for name in (*report.loaded, *kept)}, source)
    own_output = _untied(stored)
    untrained = sorted({*(head for head in HEADS if not report.has(head)), *(("mlm",) if own_output else ())})
    written = {**to_theirs(model.state_dict()), **kept}
    with atomic_folder(config.output) as aside:
        write_tensors(aside, written, _new_config(raw, shape, kept, untrained))
        tokenizer.save(aside)

    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()})
    ignored = [name for name in report.unused if name not in kept] + own_output
    lines = {
        "source": f"{source} ({len(stored)} tensors, {', '.join(kinds)})",
        "shape": f"{_describe_shape(shape)} ({where if raw else 'no config.json: from the shapes of the tensors'})",
        "imported": f"{brief(report.loaded)}, {count_parameters(model):,} parameters with both heads",
        "initialised": f"{brief(report.initialised)} from seed {config.seed}" if report.initialised else "",
        "kept": f"{brief(list(kept))} for tasks that use them" if kept else "",
        "ignored": ", ".join(ignored),
        "vocabulary": f"{tokenizer.vocab_size:,} pieces, {'un' * tokenizer.lowercase}cased{note}",
    }
    print("\n".join(f"{key:<12} {value}" for key, value in lines.items() if value))
    if own_output:
        print(
            "warning: this model's MLM output matrix is not its word embeddings; here they are one, so its MLM head "
            "counts as untrained"
        )
    print(f"wrote {config.output}")
    print(_next_commands(config.output, kept, untrained))


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
        raise UserError(f"{source} has no tensor {missing}: is it a BERT?") from None
    numbers = [re.match(r"bert\.encoder\.layer\.(\d+)\.", name) for name in tensors]
    if hidden % 64:
        raise UserError(f"{source}: {hidden} hidden units are not a multiple of 64: put its config.json beside it")
    raw = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": 1 + max(int(match[1]) for match in numbers if match),
        "num_attention_heads": hidden // 64,
        "intermediate_size": intermediate,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
    }
    return encoder_config(raw, source, tensors)


def check_vocabulary(tokenizer: Tokenizer, tensors: Mapping[str, Tensor], shape: EncoderConfig) -> str:
    """→ a note for the log. Raises UserError when the vocabulary cannot be that of these embeddings."""
    rows, pieces = shape.vocab_size, tokenizer.vocab_size
    if rows == pieces:
        return ""
    if 0 < rows - pieces < LARGEST_PADDING and rows % PADDING_MULTIPLE == 0:
        return f"; the word embeddings have {rows - pieces} more rows, padding that no text uses"
    raise UserError(
        f"the vocabulary has {pieces:,} pieces but the model's embeddings have {rows:,} rows: it is another model's "
        "vocabulary; give the right one with --vocab"
    )


def _find_config(folder: Path) -> tuple[dict[str, Any], str]:
    for name in ("config.json", "bert_config.json"):
        if (folder / name).is_file():
            raw = read_json(folder / name)
            if not isinstance(raw, dict):
                raise UserError(f"{folder / name}: expected a JSON object with BERT's keys")
            return raw, str(folder / name)
    return {}, ""


def _find_tokenizer(config: ImportConfig, folder: Path) -> Tokenizer:
    if config.vocab is not None:
        return Tokenizer.load(config.vocab, lowercase=config.lowercase)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(
            f"{folder} has no vocabulary (tokenizer.json or vocab.txt): give the model's own with --vocab FILE"
        )
    return Tokenizer.load(folder, lowercase=config.lowercase)


def _untied(stored: Mapping[str, Tensor]) -> list[str]:
    """Output matrices that are not the word embeddings after all (their stored names)."""
    usual = {their_usual_name(name): (name, tensor) for name, tensor in stored.items()}
    _, words = usual["bert.embeddings.word_embeddings.weight"]
    return [usual[tied][0] for tied in TIED[:1] if tied in usual and not torch.equal(usual[tied][1], words)]


def _refuse_broken_numbers(tensors: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{source}: {name} holds NaN or infinite numbers; the file is damaged or its training diverged"
            )


def _new_config(
    raw: Mapping[str, Any], shape: EncoderConfig, kept: Mapping[str, Tensor], untrained: list[str]
) -> dict[str, Any]:
    """The source's config with our shape on top; the class is its own when it has a task head and no MLM head."""
    architecture = ARCHITECTURES[SpanBertForPretraining]
    if "mlm" in untrained and "qa_outputs.weight" in kept:
        architecture = "BertForQuestionAnswering"
    elif "mlm" in untrained and "classifier.weight" in kept:
        guess = "BertForSequenceClassification" if "bert.pooler.dense.weight" in kept else "BertForTokenClassification"
        architecture = (raw.get("architectures") or [guess])[0]
    carried = {key: value for key, value in raw.items() if key not in STALE_KEYS}
    return {**carried, **hub_config(shape, architecture), UNTRAINED: untrained}


def _describe_shape(shape: EncoderConfig) -> str:
    return (
        f"{shape.num_hidden_layers} layers × {shape.hidden_size}, {shape.num_attention_heads} heads, "
        f"{shape.vocab_size:,} pieces, {shape.max_position_embeddings} positions"
    )


def _next_commands(output: Path, kept: Mapping[str, Tensor], untrained: list[str]) -> str:
    commands = [f"spanbert finetune qa --init {output} --train train-v1.1.json --output RUN"]
    if "qa_outputs.weight" in kept:
        commands[0] = f"spanbert ask {output} --context FILE 'your question'"
    if "mlm" not in untrained:
        commands.append(f"spanbert fill {output} 'a text with a [SPAN:2] in it'")
    commands.append(f"spanbert prepare TEXT --tokenizer {output} … and spanbert pretrain … --init-from {output}")
    return "next: " + "\n  or: ".join(commands)

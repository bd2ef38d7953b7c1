"""The one way to start a model: from random weights, from the bundled encoder, or from a model or run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from spanbert.checkpoint.adapter import encoder_sha256, is_adapter
from spanbert.checkpoint.load_report import LoadReport
from spanbert.checkpoint.model_folder import build_model, load_model_and_tokenizer, read_model
from spanbert.checkpoint.store import find_model
from spanbert.checkpoint.weight_names import to_theirs
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.model.lora import LoRAConfig, add_lora
from spanbert.model.models import AdaptedBase, SpanBertModel
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import encoder_path

M = TypeVar("M", bound=SpanBertModel)

#: ``init`` for the encoder that comes with this program; the second is the older word.
BUNDLED = ("bundled", "shipped")


class StartedModel(NamedTuple, Generic[M]):
    model: M
    tokenizer: Tokenizer
    report: LoadReport | None
    """What loading found, to print; None for random weights, and for a checkpoint of the same run."""


def init_model(
    cls: type[M],
    *,
    init: str | Path,
    size: str,
    tokenizer: Tokenizer | None,
    seed: int,
    dropout: float,
    attention_dropout: float,
    backend: str,
    device: torch.device,
    min_positions: int = 0,
    head: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    lowercase: bool | None = None,
    new_tokens: Sequence[str] = (),
) -> StartedModel[M]:
    """A ``cls`` on ``device``: weights from ``init``, what it lacks (a head) initialised from ``seed`` and reported.

    Args:
        init: "random", "bundled" (the encoder that comes with this program), or a model or run folder.
        size: of the encoder with random weights.
        tokenizer: that of the data; needed for random weights. None: the folder's own, ``lowercase`` as told.
        min_positions: the longest sequence that the model has to take; random weights get at least as many.
        head: arguments of ``cls`` beside its shape, such as the number of labels.
        checkpoint: of the run that resumes, proven whole: taken in place of ``init``.
        new_tokens: that the vocabulary must have; those it lacks get rows at its end, initialised from ``seed``.

    Raises UserError where there is no such model, it is of another tokenizer, or it has too few positions.
    """
    options = head or {}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": attention_dropout}
    if init == "random" and checkpoint is None:
        if tokenizer is None:
            raise UserError("random weights need a tokenizer: give --tokenizer (a folder or a vocab.txt)")
        tokenizer = tokenizer.with_tokens(new_tokens)
        shape = EncoderConfig.preset(size, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id, **rates)
        positions = max(shape.max_position_embeddings, min_positions)
        shape = dataclasses.replace(shape, max_position_embeddings=positions)
        return StartedModel(build_model(cls, shape, seed, **options).place(device, backend), tokenizer, None)
    folder = checkpoint or model_path(init)
    model, own, report = load_model_and_tokenizer(
        folder, cls, lowercase=lowercase, seed=seed, config_overrides=rates, **options
    )
    if tokenizer is not None and own.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{folder} has another tokenizer ({own.vocab_size:,} tokens) than the data ({tokenizer.vocab_size:,} tokens): "
            f"prepare the data with `--tokenizer {folder}`"
        )
    positions = model.config.max_position_embeddings
    if positions < min_positions:
        raise UserError(
            f"{folder} has only {positions} positions, and the data has sequences of {min_positions} tokens: make those "
            f"at most {positions} long (spanbert prepare --block-length, spanbert finetune --window)"
        )
    grown = own.with_tokens(new_tokens)
    if grown.vocab_size > own.vocab_size:
        model.add_words(grown.vocab_size - own.vocab_size, seed)
    return StartedModel(model.place(device, backend), grown, report if checkpoint is None else None)


def model_path(init: str | Path) -> Path:
    """The model folder that ``init`` names (not "random"). Raises UserError when there is none."""
    if str(init) in BUNDLED:
        return encoder_path()
    return find_model(Path(init))


def adapt(model: SpanBertModel, init: str | Path, lora: LoRAConfig, seed: int) -> None:
    """Add LoRA to a model that ``init_model`` made from ``init``; from now on it is an adapter of that folder.

    Raises UserError when the folder is an adapter itself, or its encoder is not the model's (a larger vocabulary).
    """
    folder = model_path(init).resolve()
    if is_adapter(folder):
        raise UserError(f"--lora: {folder} is an adapter itself: merge it first (spanbert export --merge)")
    sha256 = encoder_sha256(to_theirs(dict(model.named_parameters())))
    if sha256 != encoder_sha256(read_model(folder).tensors):
        raise UserError(f"--lora: the encoder has been changed since {folder} was loaded, so there is nothing to adapt")
    path = "bundled" if str(init) in BUNDLED else str(folder)
    model.adapts = AdaptedBase(path, sha256, lora)
    add_lora(model, model.encoder.layers, lora, seed)

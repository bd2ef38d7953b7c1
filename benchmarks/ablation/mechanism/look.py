"""Looking at one model: probe, cross table and fills, over text and masks that are the same for every model.

The numbers are a function of the model and of the options: no seed but fixed ones decides anything.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.ablation.mechanism.cross_table import SCHEMES, score_masks, unigram_masks
from benchmarks.ablation.mechanism.fills import FillTask, find_tasks, score_fills
from benchmarks.ablation.mechanism.plan import MechanismConfig
from benchmarks.ablation.mechanism.probe import score_probe, span_states, train_probe
from benchmarks.ablation.mechanism.scores import unigram_log_probs
from benchmarks.ablation.mechanism.spans import LONGEST, UNIFORM_P, choose_blocks, hidden, means, where, whole
from pretrain.data.blocks import Blocks
from pretrain.masking.masker import MaskConfig
from spanbert.checkpoint.model_folder import load_model
from spanbert.device import choose_device, choose_precision
from spanbert.errors import UserError
from spanbert.model.batch import MaskedBatch
from spanbert.model.models import SpanBertForPretraining
from spanbert.spans.log_probs import Head
from spanbert.tokenizer.wordpiece import Tokenizer

Parts = list[MaskedBatch[np.ndarray]]


@dataclass(frozen=True)
class Material:
    """What all models are looked at with."""

    tokenizer: Tokenizer
    log_frequency_V: np.ndarray
    masked: dict[str, Parts]
    """Scheme → held-out blocks under it."""
    probe_train: Parts
    """Training text under the geometric masks of pretraining."""
    probe_score: Parts
    """Held-out text whose spans are of 1 … 10 words, each length as often."""
    probe_words_K: np.ndarray
    """Words of the span of each target that the probe is scored on."""
    tasks: list[FillTask]
    embedding_VH: Tensor
    """The start's word embeddings, with which every probe predicts."""

    @classmethod
    def prepare(cls, config: MechanismConfig, start: Path) -> Material:
        tokenizer = Tokenizer.load(config.data / "tokenizer")
        train, held_out = Blocks.open(config.data, "train"), Blocks.open(config.data, "validation")
        if not len(held_out):
            raise UserError(f"{config.data} has no held-out blocks: prepare it with a larger --validation-share")
        chosen = choose_blocks(held_out, config.held_out)
        uniform = MaskConfig(geometric_p=UNIFORM_P, max_span_words=LONGEST)
        score = hidden(held_out, choose_blocks(held_out, config.probe_held_out), tokenizer, uniform)
        words = [where(part, tokenizer.starts_word).words_M[part.targets.sbo_K] for part in score]
        model, _ = load_model(start, SpanBertForPretraining)
        counts_V = np.load(config.data / "unigram.npy")
        return cls(
            tokenizer,
            unigram_log_probs(counts_V),
            {scheme: hidden(held_out, chosen, tokenizer, MaskConfig(scheme=scheme), counts_V) for scheme in SCHEMES},
            hidden(train, choose_blocks(train, config.probe_blocks), tokenizer, MaskConfig()),
            score,
            np.concatenate(words),
            find_tasks(held_out, choose_blocks(held_out, len(held_out)), tokenizer, config.fills),
            model.encoder.embeddings.word.weight.detach(),
        )

    def baseline(self) -> dict[str, Any]:
        """What the corpus's token frequencies alone reach, in the places where a model's numbers stand."""
        ids_K = np.concatenate([part.targets.ids_M[part.targets.sbo_K] for part in self.probe_score])
        right_K = (ids_K == self.log_frequency_V.argmax()).astype(float)
        return rounded(
            {
                "probe": _by_words(-self.log_frequency_V[ids_K], right_K, self.probe_words_K),
                "masks": {
                    scheme: {"mlm": unigram_masks(parts, self.tokenizer, self.log_frequency_V)}
                    for scheme, parts in self.masked.items()
                },
            }
        )


def look_at(config: MechanismConfig, material: Material, folder: Path, with_sbo: bool) -> dict[str, Any]:
    """All numbers of the model in ``folder``; with_sbo: its SBO head belongs to its encoder."""
    began = _seconds()
    device = choose_device(config.device)
    precision = choose_precision(device, config.precision)
    model, _ = load_model(folder, SpanBertForPretraining)
    model.place(device).eval().requires_grad_(False)
    train = span_states(model.encoder, material.probe_train, precision)
    score = span_states(model.encoder, material.probe_score, precision)
    embedding_VH = material.embedding_VH.to(device)
    numbers: dict[str, Any] = {"probe": {}}
    for name, states in train.items():
        made = train_probe(states, model.config, embedding_VH, material.log_frequency_V, config.probe_steps, precision)
        scored = score_probe(made, score[name], embedding_VH, precision)
        numbers["probe"][name] = _by_words(*scored, material.probe_words_K)
    numbers["masks"] = {
        scheme: score_masks(model, parts, material.tokenizer, precision, with_sbo)
        for scheme, parts in material.masked.items()
    }
    heads: tuple[Head, ...] = ("mlm", "sbo", "both") if with_sbo else ("mlm",)
    numbers["fills"] = score_fills(model, material.tokenizer, material.tasks, heads, precision)
    return {**rounded(numbers), "cpu_seconds": round(_seconds() - began, 1)}


def _by_words(loss_K: np.ndarray, right_K: np.ndarray, words_K: np.ndarray) -> dict[str, Any]:
    """Over all targets, by words of the span, and ``loss_by_length``: the mean over lengths, each counting alike."""
    by_words = means(loss_K, right_K, words_K, range(1, LONGEST + 1))
    there = [loss for loss in by_words["loss"] if loss is not None]
    return {**whole(loss_K, right_K), "by_words": by_words, "loss_by_length": float(np.mean(there)) if there else None}


def rounded(numbers: Any) -> Any:
    """Floats to six places: beyond what any comparison shows."""
    if isinstance(numbers, dict):
        return {name: rounded(value) for name, value in numbers.items()}
    if isinstance(numbers, list):
        return [rounded(value) for value in numbers]
    return round(numbers, 6) if isinstance(numbers, float) else numbers


def _seconds() -> float:
    """Processor time of this process so far, on all its cores."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

"""BERT's other way to pretrain: sentence pairs and next-sentence prediction (NSP), the arm that SpanBERT dropped (§2, §6.2).

A sample is ``[CLS] A [SEP] B [SEP]`` with token types 0 and 1. A is the first half of a block; B is, for half of the
samples, the rest of the same block, for the others the second half of a block of another document. A linear layer on
the pooled ``[CLS]`` tells which. Masks, masker, optimizer, schedule and step size are those of ``spanbert pretrain``.

It exists for ``benchmarks.ablation.run`` alone, so it is short: a run that was stopped begins again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from pretrain.data.batches import StepBatch, StepBatches, load_steps
from pretrain.data.blocks import Blocks
from pretrain.data.sampler import DataOrder
from pretrain.masking.masker import Masker
from pretrain.schedule import Counters, Schedule
from spanbert.checkpoint.model_folder import load_model, save_model
from spanbert.device import autocast, choose_device, choose_precision
from spanbert.distributed import alone
from spanbert.errors import UserError
from spanbert.model.batch import MaskedBatch, PackedBatch, Targets, pack_sequences
from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import initialise
from spanbert.model.heads import MLMHead, Pooler
from spanbert.model.models import SpanBertModel
from spanbert.model.vocabulary_loss import VocabularyLoss, vocabulary_loss
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.optim import adamw
from spanbert.training.run_folder import RunFolder
from spanbert.training.signals import StopRequest
from spanbert.training.step import Loss, OptimizerStep

#: Blocks whose words are looked at together.
CHUNK = 8192


class Pairs:
    """Blocks as sentence pairs, in place of ``Blocks`` for whoever fetches by index. The pairs depend on ``seed`` alone.

    Attributes: lengths (P,) int32, specials included; is_next (P,) bool; second_at (P,), where B begins in the sample.
    Raises UserError when fewer than two documents have a block of two words.
    """

    def __init__(self, blocks: Blocks, tokenizer: Tokenizer, seed: int):
        self.blocks, self.sep_id = blocks, tokenizer.sep_id
        first_N = _first_halves(blocks, tokenizer.starts_word)
        content_N = blocks.lengths - 2
        room = blocks.block_length - 3
        self.own_P = np.flatnonzero((first_N > 0) & (first_N < content_N) & (first_N < room))
        document_P = blocks.document[self.own_P]
        if len(np.unique(document_P)) < 2:
            raise UserError("sentence pairs need at least two documents with blocks of two words: prepare more text")
        rng = np.random.default_rng(seed)
        self.is_next = rng.permutation(len(self.own_P)) % 2 == 0  # exactly half, not about half
        other_P = np.arange(len(self.own_P))
        while len(same := np.flatnonzero(~self.is_next & (document_P[other_P] == document_P))):
            other_P[same] = rng.integers(len(self.own_P), size=len(same))
        self.other_P = self.own_P[other_P]
        self.first_P = first_N[self.own_P]
        self.second_from_P = 1 + first_N[self.other_P]
        self.second_P = np.minimum(content_N[self.other_P] - first_N[self.other_P], room - self.first_P)
        self.second_at = self.first_P + 2
        self.lengths = (self.first_P + self.second_P + 3).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def packed(self, indices: np.ndarray) -> tuple[PackedBatch[np.ndarray], None]:
        """These pairs as one packed batch, types 0 and 1, and no linguistic spans."""
        own, _ = self.blocks.packed(self.own_P[indices])
        other, _ = self.blocks.packed(self.other_P[indices])
        pairs = []
        for row, index in enumerate(indices):
            first, second = own.cu_seqlens[row] + 1, other.cu_seqlens[row] + self.second_from_P[index]
            pairs.append(
                (
                    own.input_ids_T[first : first + self.first_P[index]],
                    other.input_ids_T[second : second + self.second_P[index]],
                )
            )
        return pack_sequences(pairs, self.blocks.cls_id, self.sep_id), None


def _first_halves(blocks: Blocks, starts_word_V: np.ndarray) -> np.ndarray:
    """Tokens in the first half of each block, (N,) int64: up to the first word that begins in the second half.

    Where there is none it is the whole block.
    """
    halves = []
    for begin in range(0, len(blocks), CHUNK):
        packed, _ = blocks.packed(np.arange(begin, min(begin + CHUNK, len(blocks))))
        cu_seqlens = packed.cu_seqlens
        stops_T = starts_word_V[packed.input_ids_T]
        stops_T[cu_seqlens[1:] - 1] = True
        middle_B = cu_seqlens[:-1] + (np.diff(cu_seqlens) + 1) // 2
        stops = np.flatnonzero(stops_T)
        halves.append(stops[np.searchsorted(stops, middle_B)] - cu_seqlens[:-1] - 1)
    return np.concatenate(halves) if halves else np.zeros(0, np.int64)


class PairPretraining(SpanBertModel):
    """Encoder + MLM head + NSP: is B what follows A?"""

    def __init__(self, config: EncoderConfig, backend: str = "eager"):
        super().__init__(config, backend)
        self.mlm = MLMHead(config)
        self.pooler = Pooler(config)
        self.nsp = nn.Linear(config.hidden_size, 2)
        initialise(self, config.initializer_range)

    def forward(self, batch: PackedBatch[Tensor], targets: Targets[Tensor]) -> tuple[VocabularyLoss, Tensor]:
        """→ the summed MLM loss (nats) and the logits (B, 2) of "not next" and "next"."""
        hidden_TH = self.encoder(*batch)
        embedding_VH = self.encoder.embeddings.word.weight
        features_MH = self.mlm(hidden_TH[targets.positions_M])
        mlm = vocabulary_loss(features_MH, embedding_VH, self.mlm.bias, targets.ids_M, self.encoder.backend)
        return mlm, self.nsp(self.pooler(hidden_TH[batch.cu_seqlens[:-1].long()]))


class PairMicroBatch(NamedTuple):
    """What one forward pass takes, and the answers to NSP."""

    batch: MaskedBatch[Tensor]
    is_next_B: Tensor  # int64


def pair_micro_batches(step: StepBatch, pairs: Pairs) -> Iterator[PairMicroBatch]:
    for masked, (_, indices) in zip(step.masked, step.addresses, strict=True):
        labels = torch.from_numpy(pairs.is_next[indices].astype(np.int64))
        yield PairMicroBatch(masked.tensors(), labels)


def run_pretrain_pairs(config: PretrainConfig) -> None:
    """Train from ``config.init_from`` and leave config.output/model; when asked to stop, leave none and raise Stopped."""
    shutil.rmtree(config.output, ignore_errors=True)
    device = choose_device(config.device)
    precision = choose_precision(device, config.precision)
    tokenizer = Tokenizer.load(config.data / "tokenizer")
    blocks = Blocks.open(config.data, "train")
    pairs, held_out = (
        Pairs(blocks, tokenizer, config.seed),
        Pairs(Blocks.open(config.data, "validation"), tokenizer, config.seed),
    )
    dropout = {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.attention_dropout}
    model, _ = load_model(config.init_from, PairPretraining, seed=config.seed, config_overrides=dropout)
    model.place(device, config.backend)
    masker = Masker.from_tokenizer(
        config.mask, tokenizer, seed=config.seed, unigram_counts=np.load(config.data / "unigram.npy")
    )
    budget = config.micro_batch_size * blocks.block_length
    batches = StepBatches(pairs, masker, DataOrder(len(pairs), config.batch_size, config.seed), budget)
    sample = DataOrder(len(held_out), min(config.eval_sequences, len(held_out)), config.seed)
    validation = StepBatches(held_out, masker, sample, budget)[0]
    schedule = Schedule(config, tokens_per_step=config.batch_size * float(pairs.lengths.mean()))
    optimizer = adamw(model, config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay)
    counters = Counters()
    run = RunFolder.start(config.output, config)
    optimizer_step = OptimizerStep(
        model, model, optimizer, alone(device), precision=precision, clip_norm=config.clip_norm, seed=config.seed
    )

    def losses(part: PairMicroBatch) -> tuple[VocabularyLoss, Tensor, Tensor]:
        """MLM, summed NSP loss, NSP answers that are right."""
        batch, labels_B = part.batch.to(device), part.is_next_B.to(device)
        with autocast(device, precision):
            mlm, logits_B2 = model(*batch)
        nsp = F.cross_entropy(logits_B2.float(), labels_B, reduction="sum")
        return mlm, nsp, (logits_B2.argmax(-1) == labels_B).sum()

    def step_loss(targets: int) -> Loss[PairMicroBatch]:
        def loss(_: nn.Module, part: PairMicroBatch) -> tuple[Tensor, Tensor]:
            mlm, nsp, _ = losses(part)
            sums = torch.stack([mlm.loss_sum.detach().double(), nsp.detach().double()])
            return mlm.loss_sum / max(targets, 1) + nsp / config.batch_size, sums

        return loss

    model.train()
    steps = load_steps(batches, 0, 2**31, workers=0, pin=False)
    with StopRequest() as stop:
        while not schedule.done(counters) and not stop.requested:
            step = next(steps)
            targets = step.target_counts[0]
            result = optimizer_step.gradients(step.step, list(pair_micro_batches(step, pairs)), step_loss(targets))
            lr = config.lr * schedule.multiplier(counters)
            optimizer_step.take(lr, result)
            counters.step += 1
            counters.tokens += step.tokens
            if counters.step % config.log_every == 0:
                mlm_sum, nsp_sum = result.sums_N.tolist()
                values = {"mlm_loss": mlm_sum / max(targets, 1), "nsp_loss": nsp_sum / config.batch_size}
                run.log(counters.step, "train", **values, lr=lr, tokens=counters.tokens)

    if not stop.requested:
        model.eval()
        with torch.no_grad():
            found = [losses(part) for part in pair_micro_batches(validation, held_out)]
        sequences = sum(len(indices) for _, indices in validation.addresses)
        scores = {
            "mlm_loss": sum(float(mlm.loss_sum) for mlm, _, _ in found) / validation.target_counts[0],
            "nsp_loss": sum(float(nsp) for _, nsp, _ in found) / sequences,
            "nsp_accuracy": sum(int(right) for _, _, right in found) / sequences,
        }
        run.log(counters.step, "validation", **scores, tokens=counters.tokens)
        print(f"step {counters.step:,}, {counters.tokens:,} tokens: {scores}")
        save_model(config.output / "model", model, tokenizer)
    run.close()
    stop.raise_if_requested()

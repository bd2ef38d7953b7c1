"""``spanbert init``: a new model that knows from its first step what counting can tell about the corpus.

A small model started from random weights spends its first ten minutes on a CPU learning how frequent each token is and
which tokens keep company, and short runs end there. Both are known by counting:

* the output biases of both heads become the tokens' log-frequencies, so the first loss is near the unigram baseline;
* the word embeddings become a factorisation of the positive pointwise mutual information of neighbouring tokens (Levy,
  Goldberg and Dagan 2015: weight 1/distance, contexts smoothed by the power 3/4), turned at random so that no
  coordinate is special, every row of the same length;
* the position embeddings, learned as ever, begin as sinusoids (Vaswani et al. 2017) of the size of the words: what
  attention learns of "the token to the left" in one place then holds in all, also beyond the blocks of a first stage.

Everything else is BERT's initialisation. Long runs do not need it; see docs/decisions.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from pretrain.data.blocks import Blocks
from pretrain.data.unigram import read_unigram_counts
from spanbert.checkpoint.architectures import UNTRAINED
from spanbert.checkpoint.model_folder import build_model, refuse_existing, save_model
from spanbert.config import check_range, to_dict
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer

PAIRS_AT_A_TIME = 1 << 23
SMOOTHING = 0.75
#: Key of config.json: the options that the model was made with.
MADE_BY = "start"
EXTRA_RANK = 16  # of the randomised factorisation, for its accuracy


@dataclass(frozen=True)
class InitConfig:
    """Make a new model from a prepared corpus's counts, for `spanbert pretrain --init-from`."""

    data: tyro.conf.Positional[Path]
    """Folder that `spanbert prepare` wrote."""
    output: Path
    """Model folder to write; must not exist yet."""
    size: Literal["mini", "small", "base", "large"] = "base"
    """Shape of the encoder."""
    neighbours: int = 5
    """Pieces on each side that count as neighbours."""
    tokens: int = 20_000_000
    """Count over blocks, drawn by the seed, of about this many tokens."""
    std: float = 0.1
    """Size of the embeddings' coordinates (BERT's is 0.02): larger ones let attention tell words and places apart sooner."""
    seed: int = 0
    """Of the sample, the factorisation and all other weights."""

    def __post_init__(self) -> None:
        check_range(self, 1, math.inf, "neighbours", "tokens")
        check_range(self, 0, math.inf, "std", above=True)
        check_range(self, 0, 2**63, "seed", below=True)


def run_init(config: InitConfig) -> None:
    """Count, factorise, write."""
    refuse_existing(config.output)
    blocks, tokenizer = Blocks.open(config.data, "train"), Tokenizer.load(config.data / "tokenizer")
    if not len(blocks):
        raise UserError(f"{config.data} holds no block to count: prepare it again from more text")
    counts_V = read_unigram_counts(config.data, tokenizer.vocab_size)
    shape = EncoderConfig.preset(config.size, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    model = build_model(SpanBertForPretraining, shape, config.seed)
    flat_ids, block_T = sample_tokens(blocks, config.tokens, config.seed)
    ppmi_VV = mutual_information(*count_neighbours(flat_ids, block_T, tokenizer, config.neighbours), len(counts_V))
    with torch.no_grad():
        biases_V = torch.from_numpy(np.log((counts_V + 1.0) / (counts_V.sum() + len(counts_V))))
        model.mlm.bias.copy_(biases_V)
        model.sbo.bias.copy_(biases_V)
        model.encoder.embeddings.word.weight.copy_(factorise(ppmi_VV, shape.hidden_size, config.std, config.seed))
        model.encoder.embeddings.position.weight.copy_(
            config.std * sinusoids(shape.max_position_embeddings, shape.hidden_size)
        )
    save_model(config.output, model, tokenizer, {UNTRAINED: ["mlm", "sbo"], MADE_BY: to_dict(config)}, replace=False)
    print(f"wrote {config.output}: {config.size}, from {len(flat_ids):,} tokens and {ppmi_VV._nnz():,} pairs of tokens")
    print(f"next: spanbert pretrain {config.data} --init-from {config.output} --output RUN_FOLDER")


def sample_tokens(blocks: Blocks, tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """→ ids (T,) int32 of whole blocks, and (T,) int32 the number of the block that each is in."""
    order = np.random.default_rng(seed).permutation(len(blocks))
    taken = np.searchsorted(np.cumsum(blocks.lengths[order], dtype=np.int64), tokens) + 1
    chosen = np.sort(order[:taken])
    flat_ids = blocks.packed(chosen)[0].input_ids_T
    return flat_ids, np.repeat(np.arange(len(chosen), dtype=np.int32), blocks.lengths[chosen])


def count_neighbours(
    flat_ids: np.ndarray, block_T: np.ndarray, tokenizer: Tokenizer, reach: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of tokens within `reach` of each other in a block, special tokens left out, both ways round.

    → (P,) int64 first, (P,) int64 second, (P,) float64 sum of 1/distance over all places; each pair once.
    """
    vocabulary = tokenizer.vocab_size
    is_special_V = np.zeros(vocabulary, bool)
    is_special_V[tokenizer.special_ids] = True
    codes: np.ndarray = np.zeros(0, np.int64)
    weights: np.ndarray = np.zeros(0)
    for distance in range(1, reach + 1):
        for begin in range(0, len(flat_ids) - distance, PAIRS_AT_A_TIME):
            end = min(begin + PAIRS_AT_A_TIME, len(flat_ids) - distance)
            left, right = flat_ids[begin:end].astype(np.int64), flat_ids[begin + distance : end + distance]
            kept = block_T[begin:end] == block_T[begin + distance : end + distance]
            kept &= ~(is_special_V[left] | is_special_V[right])
            new, times = np.unique(left[kept] * vocabulary + right[kept], return_counts=True)
            codes, inverse = np.unique(np.concatenate([codes, new]), return_inverse=True)
            weights = np.bincount(inverse, np.concatenate([weights, times / distance]), len(codes))
    first, second = np.divmod(codes, vocabulary)
    both, inverse = np.unique(np.concatenate([codes, second * vocabulary + first]), return_inverse=True)
    sums = np.bincount(inverse, np.concatenate([weights, weights]), len(both))
    return *np.divmod(both, vocabulary), sums


def mutual_information(first: np.ndarray, second: np.ndarray, weights: np.ndarray, vocabulary: int) -> Tensor:
    """Positive pointwise mutual information, sparse (V, V) fp32: log P(second | first) − log P'(second), where above 0."""
    total_V = np.bincount(first, weights, vocabulary)
    context_V = total_V**SMOOTHING
    context_V /= max(context_V.sum(), 1e-300)
    values = np.log(weights / (total_V[first] * context_V[second]))
    kept = values > 0
    places = torch.from_numpy(np.stack([first[kept], second[kept]]))
    numbers = torch.from_numpy(values[kept].astype(np.float32))
    return torch.sparse_coo_tensor(places, numbers, (vocabulary, vocabulary), check_invariants=True).coalesce()


def factorise(ppmi_VV: Tensor, hidden: int, std: float, seed: int) -> Tensor:
    """→ (V, H) fp32: the rows of U √S of the best rank-H approximation, rotated, their coordinates of size `std`.

    Pieces that the sample lacks get random rows of that size.
    """
    vocabulary = ppmi_VV.shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rank = min(hidden + EXTRA_RANK, vocabulary)
        left_VR, strength_R, _ = torch.svd_lowrank(ppmi_VV, q=rank, niter=2)
        rotation_HH = torch.linalg.qr(torch.randn(hidden, hidden))[0]
        random_VH = torch.randn(vocabulary, hidden)
    found_VR = (left_VR * strength_R.sqrt())[:, :hidden]
    rows_VH = found_VR @ rotation_HH[: found_VR.shape[1]]
    length_V1 = rows_VH.norm(dim=1, keepdim=True)
    known_V1 = length_V1 > 1e-6
    return std * torch.where(known_V1, rows_VH * hidden**0.5 / length_V1.clamp(min=1e-6), random_VH)


def sinusoids(positions: int, hidden: int) -> Tensor:
    """(P, H) fp32: sines and cosines of the position at H/2 wavelengths from 2π to 20,000π, their mean square 1."""
    wavelength_h = 10_000.0 ** (torch.arange(0, hidden, 2) / hidden)
    angle_Ph = torch.arange(positions)[:, None] / wavelength_h
    return 2**0.5 * torch.stack([angle_Ph.sin(), angle_Ph.cos()], -1).flatten(1)[:, :hidden]

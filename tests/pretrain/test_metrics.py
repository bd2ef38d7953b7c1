"""Validation sees the same tokens under the same masks every time, and its baseline is the unigram entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pretrain.data.batches import StepBatches
from pretrain.data.blocks import Blocks
from pretrain.data.sampler import DataOrder
from pretrain.masking.masker import MaskConfig, Masker
from pretrain.metrics import Validation
from spanbert.checkpoint.model_folder import load_model
from spanbert.distributed import Group, alone
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer


@pytest.fixture(scope="module")
def held_out(corpus):
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    masker = Masker.from_tokenizer(MaskConfig(), tokenizer, seed=5, unigram_counts=np.load(corpus / "unigram.npy"))

    def make(micro: int) -> StepBatches:
        return StepBatches(Blocks.open(corpus, "validation"), masker, DataOrder(1, 1, 0), micro * 32)

    return make


def test_it_is_fixed_however_it_is_cut(held_out, tiny_model):
    model, _ = load_model(tiny_model, SpanBertForPretraining)  # has dropout, which must be off
    model.train()
    scores = [Validation(held_out(micro), 20, 3, alone()).run(model, "fp32", True) for micro in (2, 2, 7)]
    assert scores[0] == scores[1]
    assert scores[2] == pytest.approx(scores[0], rel=1e-5)
    assert model.training, "left as it was found"
    other = Validation(held_out(2), 20, 4, alone()).run(model, "fp32", True)
    assert other != scores[0], "another seed, other sequences"


def test_baseline_is_the_cross_entropy_of_the_counts(held_out, corpus):
    counts = np.load(corpus / "unigram.npy")
    validation = Validation(held_out(4), 30, 3, alone())
    p = (counts + 1) / (counts.sum() + counts.size)
    assert p.sum() == pytest.approx(1.0)
    targets = [i for part in validation.masked for i in part.targets.ids_M.tolist()]
    expected = sum(-math.log(p[i]) for i in targets) / len(targets)
    assert validation.unigram_baseline(counts)["mlm_loss"] == pytest.approx(expected)
    uniform = validation.unigram_baseline(np.zeros(counts.size, int))
    assert uniform == pytest.approx({"mlm_loss": math.log(counts.size), "sbo_loss": math.log(counts.size)})


def test_ranks_share_it_out(held_out):
    two = [Validation(held_out(4), 30, 3, Group(rank, 2, torch.device("cpu"), True)) for rank in range(2)]
    assert len(two[0].own) == len(two[1].own) > 0
    assert two[0].counts == two[1].counts == Validation(held_out(4), 30, 3, alone()).counts
    with pytest.raises(UserError, match="only 1 held-out blocks for 2 ranks"):
        Validation(held_out(4), 1, 3, Group(0, 2, torch.device("cpu"), True))

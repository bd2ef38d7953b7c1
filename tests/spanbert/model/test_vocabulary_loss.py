"""Cross-entropy over the vocabulary in chunks: the same loss, count and gradients as the plain formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from spanbert.model import vocabulary_loss as module
from spanbert.model.vocabulary_loss import vocabulary_logits, vocabulary_loss

M, H, V = 29, 24, 113


def inputs(seed: int = 0, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    features_MH = (scale * torch.randn(M, H, generator=generator)).requires_grad_()
    embedding_VH = torch.randn(V, H, generator=generator).requires_grad_()
    bias_V = torch.randn(V, generator=generator).requires_grad_()
    return features_MH, embedding_VH, bias_V, torch.randint(0, V, (M,), generator=generator)


@pytest.mark.parametrize("rows", [1, 7, 29, 512])
def test_equals_the_plain_formula_whatever_the_chunk(monkeypatch, rows):
    monkeypatch.setitem(module.CHUNK_ROWS, "cpu", rows)
    *leaves, targets_M = inputs()
    loss_sum, correct = vocabulary_loss(*leaves, targets_M)
    (0.37 * loss_sum).backward()
    gradients = [leaf.grad.clone() for leaf in leaves]
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits_MV = vocabulary_logits(*doubles)
    expected = F.cross_entropy(logits_MV, targets_M, reduction="sum")
    (0.37 * expected).backward()
    assert loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    assert correct.item() == (logits_MV.argmax(-1) == targets_M).sum().item()
    for mine, exact in zip(gradients, doubles, strict=True):
        assert (mine - exact.grad).abs().max() < 1e-5


def test_no_targets_give_zero_loss_and_zero_gradients():
    features_MH, embedding_VH, bias_V, targets_M = inputs()
    loss_sum, correct = vocabulary_loss(features_MH[:0], embedding_VH, bias_V, targets_M[:0])
    loss_sum.backward()
    assert loss_sum.item() == 0.0 and correct.item() == 0
    assert not embedding_VH.grad.any() and not bias_V.grad.any()


def test_logits_near_ten_thousand_stay_finite():
    features_MH, embedding_VH, bias_V, targets_M = inputs(scale=1000.0)
    loss_sum, _ = vocabulary_loss(features_MH, embedding_VH, bias_V, targets_M)
    loss_sum.backward()
    exact = F.cross_entropy(vocabulary_logits(features_MH, embedding_VH, bias_V).double(), targets_M, reduction="sum")
    assert loss_sum.item() == pytest.approx(exact.item(), rel=1e-5)
    assert all(torch.isfinite(leaf.grad).all() for leaf in (features_MH, embedding_VH, bias_V))


def test_sums_over_micro_batches_are_the_sum_over_the_batch():
    *leaves, targets_M = inputs()
    whole = vocabulary_loss(*leaves, targets_M)
    parts = [vocabulary_loss(leaves[0][rows], *leaves[1:], targets_M[rows]) for rows in (slice(0, 10), slice(10, M))]
    assert sum(p.loss_sum for p in parts).item() == pytest.approx(whole.loss_sum.item(), rel=1e-6)
    assert sum(p.correct for p in parts) == whole.correct


def test_autocast_multiplies_in_bf16_and_returns_fp32():
    """Under autocast the error against float64 is at most twice that of the plain formula in bf16."""
    *leaves, targets_M = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        loss_sum, _ = vocabulary_loss(*leaves, targets_M)
    loss_sum.backward()
    assert loss_sum.dtype == torch.float32
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = F.cross_entropy(vocabulary_logits(*doubles), targets_M, reduction="sum")
    exact.backward()
    plain = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        logits_MV = vocabulary_logits(*plain)
    F.cross_entropy(logits_MV.float(), targets_M, reduction="sum").backward()
    assert abs(loss_sum.item() - exact.item()) / exact.item() < 0.01
    for mine, theirs, true in zip(leaves, plain, doubles, strict=True):
        assert mine.grad.dtype == torch.float32
        error, plain_error = ((g.grad - true.grad).norm().item() for g in (mine, theirs))
        assert 0 < error < 2 * plain_error


def test_validation_without_gradients_gives_the_loss_of_training():
    features_MH, embedding_VH, bias_V, targets_M = inputs()
    with torch.no_grad():
        loss_sum, correct = vocabulary_loss(features_MH, embedding_VH, bias_V, targets_M)
    assert not loss_sum.requires_grad
    trained = vocabulary_loss(features_MH, embedding_VH, bias_V, targets_M)
    assert loss_sum == trained.loss_sum and correct == trained.correct


def test_a_model_in_bf16_still_has_an_fp32_softmax():
    """The bias, also bf16 there, must not pull the logits' sum and the softmax down to eight bits."""
    torch.manual_seed(0)
    x, e, b = (torch.randn(shape).bfloat16() for shape in ((64, 16), (900, 16), (900,)))
    targets = torch.randint(900, (64,))
    logits = (x @ e.T).float() + b.float()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert abs(vocabulary_loss(x, e, b, targets).loss_sum - expected) < 1e-5 * expected

"""The one attention function against its definition: softmax(q kᵀ / √D) v in float64, sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from spanbert.errors import UserError
from spanbert.model import attention as module
from spanbert.model import backend as backend_module
from spanbert.model.attention import attention
from spanbert.model.packing import cumulative

BACKENDS = ("eager", "sdpa")
LENGTHS = ([5, 5, 5], [1, 9, 9, 2, 1], [17], [1, 1, 1, 1], [3, 64, 63, 64, 1])
HEADS, D = 3, 8


def qkv(total: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Views of one fused projection, so not contiguous, as the encoder passes them."""
    fused_T3HD = torch.randn(total, 3, HEADS, D, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return fused_T3HD.unbind(1)


def reference(q_THD, k_THD, v_THD, cu_seqlens):
    outputs = []
    for start, end in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False):
        q, k, v = (x[start:end].double().transpose(0, 1) for x in (q_THD, k_THD, v_THD))
        scores_HLL = q @ k.transpose(-1, -2) / D**0.5
        outputs.append((scores_HLL.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("slack", [0, 30])
def test_equals_the_definition_with_gradients(backend, lengths, slack):
    """``slack``: max_seqlen may be above the longest length."""
    cu_seqlens = cumulative(torch.tensor(lengths))
    leaves = [x.clone().requires_grad_() for x in qkv(sum(lengths))]
    exact_leaves = [x.detach().double().requires_grad_() for x in leaves]
    output_THD = attention(*leaves, cu_seqlens, max(lengths) + slack, backend=backend)
    exact_THD = reference(*exact_leaves, cu_seqlens)
    assert output_THD.shape == exact_THD.shape
    assert (output_THD - exact_THD).abs().max() < 2e-6
    cotangent_THD = torch.randn(exact_THD.shape, generator=torch.Generator().manual_seed(9))
    (output_THD * cotangent_THD).sum().backward()
    (exact_THD * cotangent_THD).sum().backward()
    for mine, exact in zip(leaves, exact_leaves, strict=True):
        assert (mine.grad - exact.grad).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_a_fused_projection_give_what_copies_give(backend):
    lengths = [4, 7, 7, 2]
    cu_seqlens = cumulative(torch.tensor(lengths))
    views = qkv(sum(lengths))
    assert not views[0].is_contiguous()
    copies = [x.contiguous() for x in views]
    assert torch.equal(
        attention(*views, cu_seqlens, 7, backend=backend), attention(*copies, cu_seqlens, 7, backend=backend)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_batches_are_cut_into_groups_without_a_trace(monkeypatch, backend):
    lengths = [6] * 11 + [3] * 5
    cu_seqlens = cumulative(torch.tensor(lengths))
    whole = attention(*qkv(sum(lengths)), cu_seqlens, 6, backend=backend)
    monkeypatch.setattr(module, "SCORES_AT_A_TIME", 3 * HEADS * 36)
    assert len(list(module._equal_length_groups(cu_seqlens, 6, sum(lengths), HEADS))) > 4
    cut = attention(*qkv(sum(lengths)), cu_seqlens, 6, backend=backend)
    assert (whole - cut).abs().max() < 1e-6


@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
def test_max_seqlen_below_a_length_is_refused(backend):
    """Sixteen tokens in sequences of 4 and 12, max_seqlen 8: the two PyTorch back-ends took them for two of 8, and were
    wrong by up to 3.0 without a word."""
    cu_seqlens = cumulative(torch.tensor([4, 12]))
    with pytest.raises(ValueError, match="max_seqlen is 8, but the longest sequence has 12 tokens"):
        attention(*qkv(16), cu_seqlens, 8, backend=backend)


@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
@pytest.mark.parametrize("lengths", [[], [0]], ids=str)
def test_an_empty_batch_is_refused(backend, lengths):
    """It was an error of torch.cat, about an empty list of tensors."""
    cu_seqlens = cumulative(torch.tensor(lengths, dtype=torch.int64))
    with pytest.raises(ValueError, match="an empty batch"):
        attention(*qkv(0), cu_seqlens, 0, backend=backend)
    with pytest.raises(ValueError, match="an empty batch"):
        module.attention_of_projection(torch.stack(qkv(0), 1), cu_seqlens, 0, backend=backend)


def test_heads_that_the_kernels_do_not_have(capsys):
    """`auto` takes sdpa and says so; `triton` was an exception out of the first batch."""
    from kernels.attention_config import HEAD_DIMS

    assert backend_module.KERNEL_HEAD_DIMS == HEAD_DIMS
    resolve = backend_module.resolve_backend
    assert [resolve("auto", "cuda", dim) for dim in (64, None, 80)] == ["triton", "triton", "sdpa"]
    assert capsys.readouterr().out == "heads of 80 dimensions: attention by sdpa, since the kernels take 32, 64, 128\n"
    assert resolve("auto", "cpu", 80) == "eager" and resolve("triton", "cpu", 80) == "triton"
    with pytest.raises(UserError, match="not 80: use --backend sdpa"):
        resolve("triton", "cuda", 80)


@pytest.mark.parametrize("lengths", [*LENGTHS, [2, 2, 3, 3, 3, 2]])
def test_groups_cover_every_sequence_once_in_order(lengths):
    cu_seqlens = cumulative(torch.tensor(lengths))
    groups = list(module._equal_length_groups(cu_seqlens, max(lengths), sum(lengths), HEADS))
    assert [length for count, length in groups for _ in range(count)] == lengths


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_near_minus_three_thousand_give_finite_numbers(backend, dtype):
    """SpanBERT-large in fp16 had such logits, and NaN with an additive mask and fp16 statistics (issue 36 of [ref])."""
    lengths = [5, 33]
    cu_seqlens = cumulative(torch.tensor(lengths))
    q_THD, k_THD, v_THD = qkv(sum(lengths), dtype=dtype)
    q_THD, k_THD = 32 * q_THD.abs() + 64, -32 * k_THD.abs() - 10
    scores = (q_THD[:5].double().transpose(0, 1) @ k_THD[:5].double().permute(1, 2, 0)) / D**0.5
    assert scores.max() < -1500
    output_THD = attention(q_THD, k_THD, v_THD, cu_seqlens, 33, backend=backend)
    assert output_THD.dtype == dtype and torch.isfinite(output_THD).all()
    assert output_THD.abs().max() <= v_THD.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_expectation_and_drops_the_stated_share(backend):
    """Equal scores and v = one-hot rows: each output entry is dropped (0) or 1 / (L · (1 − p))."""
    length, p = 64, 0.25
    cu_seqlens = cumulative(torch.tensor([length] * 40))
    zeros_THD = torch.zeros(40 * length, 1, length)
    v_THD = torch.eye(length).repeat(40, 1)[:, None]
    torch.manual_seed(3)
    output_THD = attention(zeros_THD, zeros_THD, v_THD, cu_seqlens, length, dropout_p=p, backend=backend)
    kept = output_THD > 0
    assert torch.allclose(output_THD[kept], torch.tensor(1 / (length * (1 - p))))
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs((~kept).double().mean().item() - p) < 5 * deviation

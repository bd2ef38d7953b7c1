"""The heads: equal to transformers' where transformers has them, to the paper's formula where it does not (SBO)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from spanbert.checkpoint.weight_names import to_theirs
from spanbert.model import models
from spanbert.model.batch import PackedBatch, Targets
from spanbert.model.config import EncoderConfig
from spanbert.model.heads import SBOHead
from spanbert.model.models import SpanBertForPretraining
from spanbert.model.vocabulary_loss import vocabulary_logits

SEEDS = range(20)
BACKENDS = ("eager", "sdpa")


def logits_of_ours(task: str, model, batch):
    """What each class answers, in the shape that transformers' answer has at the real tokens."""
    if task == "MaskedLM":
        hidden_TH = model.encoder(batch.ids_T, batch.cu_seqlens, batch.longest)
        return vocabulary_logits(model.mlm(hidden_TH), model.encoder.embeddings.word.weight, model.mlm.bias)
    answer = model(PackedBatch(batch.ids_T, batch.cu_seqlens, batch.longest, batch.types_T))
    return torch.stack(answer, -1) if task == "QuestionAnswering" else answer


def logits_of_theirs(task: str, model, batch):
    padded = dict(batch.padded)
    if task == "MaskedLM":
        padded["token_type_ids"] = torch.zeros_like(batch.types_BL)  # single-sequence training has one type
    answer = model(**padded)
    if task == "QuestionAnswering":
        return torch.stack([answer.start_logits, answer.end_logits], -1)[batch.real_BL]
    return answer.logits if task == "SequenceClassification" else answer.logits[batch.real_BL]


@pytest.mark.parametrize("task", ["MaskedLM", "QuestionAnswering", "TokenClassification", "SequenceClassification"])
@pytest.mark.parametrize("seed", SEEDS)
def test_task_models_equal_transformers(shape_of, batch_of, reference_of, copy_weights, gradient_gap, task, seed):
    """Logits to 1e-5 (of numbers of order 1), gradients to 1e-4 for random cotangents."""
    config = shape_of(seed)
    batch = batch_of(config, seed)
    extra = {"num_labels": 2 + seed % 5} if task.endswith("Classification") else {}
    theirs = reference_of(f"BertFor{task}", config, seed, **extra)
    theirs_logits = logits_of_theirs(task, theirs, batch)
    cotangent = torch.randn(theirs_logits.shape, generator=torch.Generator().manual_seed(seed)) / len(theirs_logits)
    (theirs_logits * cotangent).sum().backward()
    cls = models.SpanBertForPretraining if task == "MaskedLM" else getattr(models, f"SpanBertFor{task}")
    for backend in BACKENDS:
        ours = cls(config, backend=backend, **extra).eval()
        copy_weights(ours, theirs)
        logits = logits_of_ours(task, ours, batch)
        assert (logits - theirs_logits).abs().max() < 1e-5, backend
        (logits * cotangent).sum().backward()
        if task == "MaskedLM":
            assert all(p.grad is None for p in ours.sbo.parameters())
        assert gradient_gap(ours, theirs) < 1e-4, backend


@pytest.mark.parametrize("seed", range(0, 20, 4))
def test_mlm_loss_is_transformers_over_the_targets_only(
    shape_of, batch_of, reference_of, copy_weights, gradient_gap, seed
):
    """Our loss sees M gathered positions, theirs all of them with labels −100: sum ÷ M is their mean, gradients too."""
    config = shape_of(seed)
    batch = batch_of(config, seed)
    theirs = reference_of("BertForMaskedLM", config, seed)
    ours = SpanBertForPretraining(config)
    copy_weights(ours, theirs)
    generator = torch.Generator().manual_seed(seed)
    positions_M = (torch.rand(batch.ids_T.shape, generator=generator) < 0.2).nonzero()[:, 0]
    ids_M = torch.randint(0, config.vocab_size, positions_M.shape, generator=generator)
    labels_T = torch.full_like(batch.ids_T, -100)
    labels_T[positions_M] = ids_M
    labels_BL = torch.full_like(batch.ids_BL, -100)
    labels_BL[batch.real_BL] = labels_T
    expected = theirs(batch.ids_BL, attention_mask=batch.real_BL.long(), labels=labels_BL).loss
    expected.backward()
    nothing = torch.empty(0, dtype=torch.int64)
    targets = Targets(positions_M, ids_M, nothing, nothing, nothing, nothing, nothing)
    mlm, sbo = ours(PackedBatch(batch.ids_T, batch.cu_seqlens, batch.longest), targets, with_sbo=False)
    assert sbo is None
    assert mlm.loss_sum.item() / len(ids_M) == pytest.approx(expected.item(), abs=1e-5)
    (mlm.loss_sum / len(ids_M)).backward()
    assert gradient_gap(ours, theirs) < 1e-4


def sbo_by_the_paper(tensors: dict[str, torch.Tensor], left_KH, right_KH, offset_K, eps: float) -> torch.Tensor:
    """§3.2 word for word, with the authors' tensors: h0 = [x_left; x_right; p], two layers of LayerNorm(GELU(W h))."""
    head = {name.removeprefix("cls.pair_target_predictions."): tensor for name, tensor in tensors.items()}
    h_K = torch.cat([left_KH, right_KH, head["position_embeddings.weight"][offset_K]], dim=-1)
    for number in (1, 2):
        h_K = F.linear(h_K, head[f"mlp_layer_norm.linear{number}.weight"], head[f"mlp_layer_norm.linear{number}.bias"])
        norm = (head[f"mlp_layer_norm.layer_norm{number}.weight"], head[f"mlp_layer_norm.layer_norm{number}.bias"])
        h_K = F.layer_norm(F.gelu(h_K), h_K.shape[-1:], *norm, eps)
    return h_K


@pytest.mark.parametrize("seed", SEEDS)
def test_sbo_head_equals_the_papers_formula(shape_of, randomise, seed):
    """Three small products gathered and added = one product with the concatenation; values and gradients."""
    config = shape_of(seed)
    model = torch.nn.Module()
    model.sbo = SBOHead(config)
    randomise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    spans, targets = 5, 17
    left_SH = torch.randn(spans, config.hidden_size, generator=generator, requires_grad=True)
    right_SH = torch.randn(spans, config.hidden_size, generator=generator, requires_grad=True)
    span_K = torch.randint(0, spans, (targets,), generator=generator)
    offset_K = torch.randint(0, config.sbo_positions, (targets,), generator=generator)
    cotangent_KH = torch.randn(targets, config.hidden_size, generator=generator) / targets

    features_KH = model.sbo(left_SH, right_SH, span_K, offset_K)
    tensors = {name: t.requires_grad_() for name, t in to_theirs(model.state_dict()).items()}
    left_copy, right_copy = (x.detach().clone().requires_grad_() for x in (left_SH, right_SH))
    expected_KH = sbo_by_the_paper(tensors, left_copy[span_K], right_copy[span_K], offset_K, config.layer_norm_eps)
    assert (features_KH - expected_KH).abs().max() < 1e-5

    (features_KH * cotangent_KH).sum().backward()
    (expected_KH * cotangent_KH).sum().backward()
    ours = to_theirs({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert ours.pop("cls.pair_target_predictions.bias", None) is None  # the bias belongs to the loss
    for name, gradient in ours.items():
        assert (gradient - tensors[name].grad).abs().max() < 1e-4, name
    assert len(ours) == 9
    for mine, other in ((left_SH, left_copy), (right_SH, right_copy)):
        assert (mine.grad - other.grad).abs().max() < 1e-4


def test_pretraining_adds_the_two_objectives_each_over_its_own_targets(shape_of, batch_of, randomise):
    """§3.3: MLM over M targets, SBO over the K of them that have boundaries; both through the shared embeddings. Values
    and gradients are those of an encoder that computes all states, though its last layer works for these alone."""
    config = shape_of(8)
    model = SpanBertForPretraining(config).eval()
    randomise(model, 8)
    batch = batch_of(config, 8)
    start = int(batch.cu_seqlens[1:][batch.cu_seqlens.diff() > 12][0]) - 12  # inside a sequence of at least 13 tokens
    positions_M = start + torch.tensor([2, 3, 4, 6, 7])
    targets = Targets(
        positions_M=positions_M,
        ids_M=torch.tensor([5, 6, 7, 8, 9]),
        left_S=start + torch.tensor([1, 5]),
        right_S=start + torch.tensor([5, 8]),  # the first span's right one is the second's left one
        span_M=torch.tensor([0, 0, 0, 1, 1]),
        offset_M=torch.tensor([0, 1, 2, 0, 1]),
        sbo_K=torch.tensor([0, 1, 3, 4]),
    )
    rows = []
    model.encoder.layers[-1].feed_forward_in.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    mlm, sbo = model(PackedBatch(batch.ids_T, batch.cu_seqlens, batch.longest), targets)
    assert rows == [5 + 2 + 2]
    (mlm.loss_sum + sbo.loss_sum).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    hidden_TH = model.encoder(batch.ids_T, batch.cu_seqlens, batch.longest)
    assert rows[-1] == len(batch.ids_T)
    embedding_VH = model.encoder.embeddings.word.weight
    logits_MV = model.mlm(hidden_TH[positions_M]) @ embedding_VH.T + model.mlm.bias
    expected_mlm = F.cross_entropy(logits_MV, targets.ids_M, reduction="sum")
    assert mlm.loss_sum.item() == pytest.approx(expected_mlm.item(), 1e-5)
    features_KH = sbo_by_the_paper(
        to_theirs({n: t for n, t in model.named_parameters() if n.startswith("sbo.")}),
        hidden_TH[start + torch.tensor([1, 1, 5, 5])],
        hidden_TH[start + torch.tensor([5, 5, 8, 8])],
        torch.tensor([0, 1, 0, 1]),
        config.layer_norm_eps,
    )
    logits_KV = features_KH @ embedding_VH.T + model.sbo.bias
    expected = F.cross_entropy(logits_KV, torch.tensor([5, 6, 8, 9]), reduction="sum")
    assert sbo.loss_sum.item() == pytest.approx(expected.item(), 1e-5)
    (expected_mlm + expected).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("sbo.") and name != "sbo.bias":
            continue  # here by the paper's formula, from copies; the head has a test of its own
        assert (found[name] - parameter.grad).abs().max() < 1e-4 * max(1.0, parameter.grad.abs().max()), name


@pytest.mark.parametrize(("hidden", "expected"), [(64, "triton"), (40, "sdpa")])
def test_a_model_is_placed_with_the_attention_that_suits_its_heads(monkeypatch, hidden, expected):
    """The back-end used to be chosen before the shape was known, and heads that the kernels lack failed on a GPU."""
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, _device: self)
    config = EncoderConfig(
        vocab_size=20, hidden_size=hidden, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = SpanBertForPretraining(config).place(torch.device("cuda"))
    assert model.encoder.backend == expected

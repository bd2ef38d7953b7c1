"""What the MLM head, the SBO head, or both expect in the masked spans of texts, from one packed forward pass.

Both heads predict every token of a span at once: MLM from the token's own output, SBO from the two visible tokens around
the span and the token's place in it (§3.2). ``both`` averages their log-probabilities and normalises: the order is that of
the product, which is what the training objective adds up (§3.3), but the product itself counts twice what both heads
know, such as which words are frequent (6.90 nats a token against 9.15, on 287 held-out spans).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from spanbert.checkpoint.load_report import LoadReport, untied_note
from spanbert.errors import UserError
from spanbert.model.batch import pack_sequences
from spanbert.model.models import SpanBertForPretraining
from spanbert.model.vocabulary_loss import vocabulary_logits
from spanbert.spans.template import Masked
from spanbert.tokenizer.wordpiece import Tokenizer

Head = Literal["mlm", "sbo", "both"]


def choose_head(asked: str, report: LoadReport, path: str) -> Head:
    """The head or heads to use. Raises UserError when one that was asked for has never been trained."""
    trained = [head for head in ("mlm", "sbo") if report.has(head)]
    for head, matrix in report.untied.items():
        if not trained or asked in (head, "both"):
            raise UserError(f"{path} cannot fill: {untied_note(head, matrix)}")
    if not trained:
        raise UserError(
            f"{path} has no trained MLM or SBO head, only an encoder: pretrain from it first "
            f"(spanbert pretrain … --init-from {path})"
        )
    wanted = {"auto": trained, "both": ["mlm", "sbo"]}.get(asked, [asked])
    for head in wanted:
        if head not in trained:
            raise UserError(
                f"{path} has no trained {head.upper()} head (it was only initialised): use --head {trained[0]}, or go on "
                f"pretraining from it with spanbert pretrain … --init-from {path}"
            )
    return "both" if len(wanted) == 2 else wanted[0]  # type: ignore[return-value]


def check_width(model: SpanBertForPretraining, head: Head, widest: int) -> None:
    """Raises UserError when the SBO head is to predict a span of more tokens than its table has places."""
    if head != "mlm" and widest > model.config.sbo_positions:
        raise UserError(
            f"the SBO head was built for spans of at most {model.config.sbo_positions} tokens, not {widest}: use --head mlm"
        )


def span_log_probs(
    model: SpanBertForPretraining, tokenizer: Tokenizer, sequences: Sequence[Masked], head: Head
) -> list[Tensor]:
    """One (masked tokens, V) float32 tensor of log-probabilities for each sequence, on the model's device.

    A special token never fills a span, nor does a continuation token ("##…") begin one: their log-probability is −∞.
    """
    device = model.mlm.bias.device
    packed = pack_sequences([(s.ids,) for s in sequences], tokenizer.cls_id, tokenizer.sep_id)
    hidden_TH = model.encoder(*packed.tensors().to(device))
    embedding_VH = model.encoder.embeddings.word.weight
    unreachable_V = torch.ones(embedding_VH.shape[0], dtype=torch.bool, device=device)
    unreachable_V[: tokenizer.vocab_size] = False  # rows beyond the vocabulary are padding
    unreachable_V[torch.as_tensor(tokenizer.special_ids, device=device)] = True
    continues_V = unreachable_V.clone()
    continues_V[: tokenizer.vocab_size] |= ~torch.as_tensor(tokenizer.starts_word, device=device)

    begins = packed.cu_seqlens[:-1].tolist()
    spans = [(begin + a, begin + b) for begin, s in zip(begins, sequences, strict=True) for a, b in s.spans]
    first_S = torch.tensor([first for first, _ in spans], device=device)
    count_S = torch.tensor([end - first for first, end in spans], device=device)
    total_MV, offset_M = log_probs_in_spans(model, hidden_TH, first_S, count_S, head)
    forbidden_MV = torch.where((offset_M == 0)[:, None], continues_V, unreachable_V)
    rows = [sum(end - first for first, end in s.spans) for s in sequences]
    return list(total_MV.masked_fill(forbidden_MV, float("-inf")).split(rows))


def log_probs_in_spans(
    model: SpanBertForPretraining, hidden_TH: Tensor, first_S: Tensor, count_S: Tensor, head: Head
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (M, V) fp32 over the whole vocabulary for the M tokens of S spans, span by span, with gradient; and
    each token's place in its span, (M,).

    A span is the tokens first_S … first_S + count_S − 1 of the T in ``hidden_TH``, and has a token on either side.
    """
    embedding_VH = model.encoder.embeddings.word.weight
    span_M = torch.arange(len(first_S), device=first_S.device).repeat_interleave(count_S)
    offset_M = torch.arange(len(span_M), device=first_S.device) - (count_S.cumsum(0) - count_S)[span_M]
    found = []
    if head in ("mlm", "both"):
        features_MH = model.mlm(hidden_TH[first_S[span_M] + offset_M])
        found.append(vocabulary_logits(features_MH, embedding_VH, model.mlm.bias).float().log_softmax(-1))
    if head in ("sbo", "both"):
        features_MH = model.sbo(hidden_TH[first_S - 1], hidden_TH[first_S + count_S], span_M, offset_M)
        found.append(vocabulary_logits(features_MH, embedding_VH, model.sbo.bias).float().log_softmax(-1))
    return found[0] if len(found) == 1 else ((found[0] + found[1]) / 2).log_softmax(-1), offset_M

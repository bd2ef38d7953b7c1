"""What the explorer's views show: tokens, masks, attention, predictions and answers, from the project's own functions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spanbert
from finetune.predict import window_logits
from finetune.tasks.qa.answerer import QuestionAnswerer, ranked_answers
from finetune.tasks.qa.decode import best_pairs, decode_question
from finetune.tasks.qa.encode import encode_with_texts
from finetune.tasks.qa.features import TextQuestionSet, Windows
from finetune.tasks.qa.records import paragraphs_of
from finetune.tasks.qa.task import QATask
from pretrain.masking.masker import MaskConfig, Masker, truncated_geometric
from pretrain.masking.span_sampler import choose_spans
from pretrain.masking.word_sampler import choose_words
from spanbert.checkpoint.load_report import untied_note
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.errors import UserError
from spanbert.model.attention import attention
from spanbert.model.batch import PackedBatch, pack_sequences
from spanbert.model.encoder import Layer
from spanbert.model.heads import MLMHead, SBOHead
from spanbert.model.models import SpanBertForPretraining
from spanbert.model.vocabulary_loss import vocabulary_logits
from spanbert.tokenizer.wordpiece import Tokenizer

ROOT = Path(spanbert.__file__).parents[1]
BLOCK = 128  # tokens, [CLS] and [SEP] counted, of the part of a text that masks, attention and predictions show
BEST = 5
SCHEMES = ("geometric", "whole_word", "subword")
#: The histogram counts spans of so many draws over blocks as long as in pretraining, made by repeating the text.
DRAWS, DRAWN_TOKENS = 200, 512
#: view → what computes it; its place is looked up in the source, so that it is right whatever is edited
CODE: Mapping[str, tuple[Any, ...]] = {
    "tokens": (Tokenizer._build, Tokenizer.encode_batch),
    "masks": (Masker.mask, Masker._corrupt, choose_spans, choose_words, truncated_geometric),
    "attention": (attention,),
    "predictions": (MLMHead, SBOHead),
    "qa": (Windows.over, vars(Windows)["owned"], best_pairs),
    "answers": (decode_question, ranked_answers),
}


class Refused(Exception):
    """A request that cannot be shown: kind of problem (``web.problems``), a sentence, and the field."""

    def __init__(self, kind: str, detail: str, field: str) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.field = kind, detail, field


def place_in_source(thing: Any) -> str:
    """``path:first-last`` of a function, class or cached property, from the root of the repository."""
    function = thing.func if isinstance(thing, cached_property) else thing
    lines, first = inspect.getsourcelines(function)
    path = Path(inspect.getsourcefile(function) or "").resolve().relative_to(ROOT.resolve())
    return f"{path.as_posix()}:{first}-{first + len(lines) - 1}"


@dataclass(frozen=True)
class Pretrained:
    """The model of the first four views, with the heads that are trained; of one that is not, why it cannot be shown."""

    name: str
    model: SpanBertForPretraining
    tokenizer: Tokenizer
    missing: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path) -> Pretrained:
        """Raises UserError when the folder holds no encoder with its tokenizer."""
        model, tokenizer, report = load_model_and_tokenizer(folder, SpanBertForPretraining)
        missing = {}
        for head in ("mlm", "sbo"):
            if head in report.untied:
                missing[head] = (
                    f"{folder.name} cannot show its {head.upper()} head: {untied_note(head, report.untied[head])}"
                )
            elif not report.has(head):
                missing[head] = f"{folder.name} has no trained {head.upper()} head, so there is nothing to show here."
        return cls(folder.resolve().name, model.place(torch.device("cpu"), "eager").eval(), tokenizer, missing)


class Explorer:
    """One model, and one for questions. Every method is a pure function of its arguments."""

    def __init__(self, shown: Pretrained, answerer: QuestionAnswerer | None, no_answerer: str = "") -> None:
        self.shown, self.answerer, self.no_answerer = shown, answerer, no_answerer
        self.tokenizer, self.model = shown.tokenizer, shown.model
        self.block = min(BLOCK, shown.model.config.max_position_embeddings)

    def masker(self, scheme: Any, seed: int = 0) -> Masker:
        """As pretraining's, with random tokens drawn evenly: the counts of a corpus do not come with a model."""
        config = MaskConfig(scheme=scheme)
        return Masker.from_tokenizer(config, self.tokenizer, seed=seed, sbo_positions=self.model.config.sbo_positions)

    def describe(self) -> dict[str, Any]:
        config, answerer = self.model.config, self.answerer
        settings = answerer.settings if answerer else None
        return {
            "model": self.shown.name,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "width": config.hidden_size,
            "vocabulary": self.tokenizer.vocab_size,
            "positions": config.max_position_embeddings,
            "sboPositions": config.sbo_positions,
            "block": self.block,
            "hasMlm": "mlm" not in self.shown.missing,
            "hasSbo": "sbo" not in self.shown.missing,
            "hasQa": answerer is not None,
            "missing": {**self.shown.missing, **({} if answerer else {"qa": self.no_answerer})},
            "reader": answerer.folder.resolve().name if answerer and answerer.folder else None,
            "readerSettings": asdict(settings) if settings else None,
            "schemes": list(SCHEMES),
            "code": {view: ", ".join(map(place_in_source, things)) for view, things in CODE.items()},
        }

    # --- tokens and masks ---------------------------------------------------------------------------------------------

    def encode(self, text: str) -> dict[str, Any]:
        """All tokens of a text with [CLS] and [SEP]; offsets count code points, and words are numbered from 0."""
        ids, offsets = self.tokenizer.encode(text)
        if not len(ids):
            raise Refused("empty", "text holds no token that the tokenizer knows", "text")
        packed = pack_sequences([(ids,)], self.tokenizer.cls_id, self.tokenizer.sep_id).input_ids_T.tolist()
        words = (np.cumsum(self.tokenizer.starts_word[ids]) - 1).tolist()
        end = len(text)
        return {
            "tokens": [self.tokenizer.token(number) for number in packed],
            "ids": packed,
            "starts": [0, *offsets[:, 0].tolist(), end],
            "ends": [0, *offsets[:, 1].tolist(), end],
            "words": [None, *words, None],
        }

    def masks(self, text: str, seed: int) -> dict[str, Any]:
        """What each scheme masks of the first block of a text in the first epoch, and how long the spans of many draws are."""
        ids = self.tokenizer.encode(text).ids
        if not len(ids):
            raise Refused("empty", "text holds no token that the tokenizer knows", "text")
        packed = self._packed([ids[: self.block - 2]])
        drawn = {scheme: self._draw(scheme, seed, packed) for scheme in SCHEMES}
        return {"schemes": drawn, "histogram": self._lengths(ids, seed)}

    def _packed(self, sequences: Sequence[np.ndarray]) -> PackedBatch[np.ndarray]:
        return pack_sequences([(ids,) for ids in sequences], self.tokenizer.cls_id, self.tokenizer.sep_id)

    def _draw(self, scheme: str, seed: int, packed: PackedBatch[np.ndarray]) -> dict[str, Any]:
        batch = self.masker(scheme, seed).mask(packed, epoch=0, indices=np.zeros(1, np.int64))
        before, after, targets = packed.input_ids_T, batch.packed.input_ids_T, batch.targets
        replaced: list[str | None] = [None] * len(before)
        for position in targets.positions_M.tolist():
            same = "same" if after[position] == before[position] else "random"
            replaced[position] = "mask" if after[position] == self.tokenizer.mask_id else same
        return {
            "spans": np.stack([targets.left_S + 1, targets.right_S - 1], axis=1).tolist(),
            "replaced": replaced,
            "seen": [self.tokenizer.token(number) for number in after.tolist()],
        }

    def _lengths(self, ids: np.ndarray, seed: int) -> dict[str, Any]:
        """Spans of the geometric scheme by their length in words, counted and as the distribution has it."""
        masker = self.masker("geometric", seed)
        block = np.resize(ids, DRAWN_TOKENS - 2)
        packed = self._packed([block] * DRAWS)
        targets = masker.mask(packed, epoch=np.arange(DRAWS), indices=np.zeros(DRAWS, np.int64)).targets
        longest = masker.config.max_span_words
        starts_T = np.cumsum(self.tokenizer.starts_word[packed.input_ids_T])
        # a span begins with a word's first token, whatever token that is
        words_S = 1 + starts_T[targets.right_S - 1] - starts_T[targets.left_S + 1]
        counts = np.bincount(np.clip(words_S, 1, longest), minlength=longest + 1)[1:]
        theory = np.diff(truncated_geometric(masker.config.geometric_p, longest), prepend=0.0)
        return {
            "lengths": list(range(1, longest + 1)),
            "counts": counts.tolist(),
            "theory": theory.tolist(),
            "draws": DRAWS,
        }

    # --- attention and predictions ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self, ids: Sequence[int], spans: Sequence[Sequence[int]]) -> tuple[np.ndarray, dict[str, Any]]:
        """The text with its spans masked: attention (layers, heads, n, n) uint8 in 255ths, and both heads' predictions.

        spans: first and last token of each.
        """
        self._check(ids, spans)
        seen = torch.tensor(ids)
        for first, last in spans:
            seen[first : last + 1] = self.tokenizer.mask_id
        hidden_TH, attention_LHTT = self._encoded(seen)
        shares = (attention_LHTT * 255).round().to(torch.uint8).numpy()
        places = [(number, offset) for number, (first, last) in enumerate(spans) for offset in range(last - first + 1)]
        position_M = torch.tensor([spans[number][0] + offset for number, offset in places], dtype=torch.long)
        span_M, offset_M = (
            (torch.tensor(column, dtype=torch.long) for column in zip(*places)) if places else (position_M,) * 2
        )
        found: dict[str, Any] = {"mlm": None, "sbo": None}
        if "mlm" not in self.shown.missing:
            features_MH = self.model.mlm(hidden_TH[position_M])
            found["mlm"] = self._best(features_MH, self.model.mlm.bias, position_M)
        if "sbo" not in self.shown.missing:
            kept = offset_M < self.model.config.sbo_positions
            left_S = torch.tensor([first - 1 for first, _ in spans], dtype=torch.long)
            right_S = torch.tensor([last + 1 for _, last in spans], dtype=torch.long)
            features_KH = self.model.sbo(hidden_TH[left_S], hidden_TH[right_S], span_M[kept], offset_M[kept])
            found["sbo"] = self._best(features_KH, self.model.sbo.bias, position_M[kept])
        return shares, found

    def _check(self, ids: Sequence[int], spans: Sequence[Sequence[int]]) -> None:
        if not 3 <= len(ids) <= self.block:
            raise Refused(
                "invalid", f"ids has {len(ids)} tokens, expected 3 … {self.block} with [CLS] and [SEP]", "ids"
            )
        wrong = next((place for place, number in enumerate(ids) if not 0 <= number < self.tokenizer.vocab_size), None)
        if wrong is not None:
            detail = f"ids[{wrong}] is {ids[wrong]}, expected 0 … {self.tokenizer.vocab_size - 1}"
            raise Refused("invalid", detail, f"ids[{wrong}]")
        free = 1
        for number, (first, last) in enumerate(spans):
            if not free <= first <= last <= len(ids) - 2:
                detail = (
                    f"spans[{number}] is [{first}, {last}], expected first and last token of spans in order and apart"
                )
                raise Refused("invalid", f"{detail}, between 1 and {len(ids) - 2}", f"spans[{number}]")
            free = last + 2

    def _encoded(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (T, H), and the attention of each layer and head, (layers, heads, T, T), from its projections."""
        projected: list[Tensor] = []
        layers = [layer for layer in self.model.encoder.layers if isinstance(layer, Layer)]
        hooks = [layer.qkv.register_forward_hook(lambda _m, _i, out: projected.append(out)) for layer in layers]
        try:
            hidden_TH = self.model.encoder(ids, torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))
        finally:
            for hook in hooks:
                hook.remove()
        heads, dim = self.model.config.num_attention_heads, self.model.config.head_dim
        shares = []
        for qkv in projected:
            q_HTD, k_HTD, _ = qkv.view(len(ids), 3, heads, dim).permute(1, 2, 0, 3)
            shares.append((q_HTD @ k_HTD.transpose(-1, -2) / dim**0.5).softmax(-1))
        return hidden_TH, torch.stack(shares)

    def _best(self, features: Tensor, bias: Tensor, positions: Tensor) -> list[dict[str, Any]]:
        embedding_VH = self.model.encoder.embeddings.word.weight
        log_probs = (
            vocabulary_logits(features, embedding_VH, bias).float().log_softmax(-1)[:, : self.tokenizer.vocab_size]
        )
        values, ids = log_probs.exp().topk(BEST)
        return [
            {
                "position": position,
                "best": [{"token": self.tokenizer.token(i), "id": i, "p": p} for p, i in zip(ps, row, strict=True)],
            }
            for position, ps, row in zip(positions.tolist(), values.tolist(), ids.tolist(), strict=True)
        ]

    # --- questions ----------------------------------------------------------------------------------------------------

    def answer(self, question: str, text: str) -> dict[str, Any]:
        """Each window's logits over its part of the text, the null score, and the answers that come of them, best first."""
        answerer = self.answerer
        if answerer is None:
            raise Refused("invalid", self.no_answerer, "question")
        settings = answerer.settings
        tokens = len(answerer.tokenizer.encode(question).ids)
        if not tokens:
            raise Refused("empty", "question holds no token that the tokenizer knows", "question")
        if tokens > settings.max_question:
            detail = f"question has {tokens} tokens, this model reads questions of at most {settings.max_question}"
            raise Refused("question-too-long", detail, "question")
        try:
            asked = encode_with_texts(paragraphs_of(text, [question]), answerer.tokenizer, settings.windows, _refuse)
        except UserError as error:
            raise Refused("invalid", str(error), "text") from None
        task = QATask(replace(settings, n_best=max(8, settings.n_best)))
        logits = window_logits(task, answerer.model, asked, np.arange(len(asked.windows)), answerer.machine)
        decoded = task.decode(asked, 0, logits)
        answers = ranked_answers(decoded, settings.threshold)
        return {
            "tokens": [answerer.tokenizer.token(number) for number in asked.contexts.tokens.tolist()],
            "starts": asked.offsets[:, 0].tolist(),
            "ends": asked.offsets[:, 1].tolist(),
            "windows": _windows(asked, logits, tokens + 2),
            "nullScore": decoded.null_score,
            "nullAllowed": settings.null_allowed,
            "nullThreshold": settings.null_threshold,
            "maxAnswer": settings.max_answer,
            "answers": [
                {
                    "text": one.text,
                    "start": one.start,
                    "end": one.end,
                    "score": one.score,
                    "confidence": one.probability,
                }
                for one in answers[:8]
            ],
        }


def _windows(asked: TextQuestionSet, logits: Sequence[np.ndarray], skip: int) -> list[dict[str, Any]]:
    owned_first, owned_last = asked.windows.owned
    return [
        {
            "first": int(asked.windows.first_W[number]),
            "count": int(asked.windows.count_W[number]),
            "ownedFirst": int(owned_first[number]),
            "ownedLast": int(owned_last[number]),
            "start": start[skip:-1].tolist(),
            "end": end[skip:-1].tolist(),
        }
        for number, (start, end) in enumerate(logits)
    ]


def _refuse(_where: str, error: Exception) -> None:
    raise UserError(f"cannot answer: {error}")


def load_explorer(model: Path, reader: Path | None) -> Explorer:
    """``reader`` None: the model itself answers, where it can. Raises UserError when a folder holds no model."""
    shown = Pretrained.load(model)
    if reader is not None:
        return Explorer(shown, QuestionAnswerer.load(reader, device="cpu", precision="fp32", backend="eager"))
    try:
        return Explorer(shown, QuestionAnswerer.load(model, device="cpu", precision="fp32", backend="eager"))
    except UserError:
        return Explorer(
            shown, None, f"{shown.name} has no trained head for questions, so there is nothing to show here."
        )

"""Who takes part in benchmarks.pretraining.throughput: each is a training step from raw sequences to updated weights.

transformers' BertForMaskedLM is trained as its documentation shows: its token-masking collator, logits at every
position, fused AdamW. Ours comes in variants, each with one idea more, so that a reader sees what each of them buys.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.masking.masker import MaskConfig, Masker
from spanbert.device import autocast
from spanbert.model.backend import resolve_backend
from spanbert.model.batch import MaskedBatch, PackedBatch
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.model.vocabulary_loss import vocabulary_loss
from spanbert.training.optim import adamw, clip_gradients

PAD, UNK, CLS, SEP, MASK, SPECIALS = 0, 1, 2, 3, 4, 5
#: Share of the tokens that continue a word, as in English.
CONTINUING = 0.25


@dataclass(frozen=True)
class Workload:
    """Model and batch that all share."""

    size: str
    length: int
    tokens: int
    vocabulary: int
    dropout: float
    device: str
    precision: str
    seed: int = 0

    @property
    def shape(self) -> EncoderConfig:
        dropout = {"hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": self.dropout}
        return EncoderConfig.preset(self.size, vocab_size=self.vocabulary, **dropout)

    def sequences(self, step: int) -> list[np.ndarray]:
        """Full blocks of int32 ids: [CLS] … [SEP]; which word it is follows Zipf's law."""
        rng = np.random.default_rng([self.seed, step])
        count = max(1, self.tokens // self.length)
        ranks = rng.zipf(1.2, (count, self.length)) % (self.vocabulary - SPECIALS)
        ids = (SPECIALS + ranks).astype(np.int32)
        ids[:, 0], ids[:, -1] = CLS, SEP
        return list(ids)

    @property
    def starts_word(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        starts = rng.random(self.vocabulary) >= CONTINUING
        starts[:SPECIALS] = True
        return starts

    @cached_property
    def _masker(self) -> Masker:
        return Masker(
            MaskConfig(), starts_word=self.starts_word, special_ids=np.arange(SPECIALS), mask_id=MASK,
            unigram_counts=np.ones(self.vocabulary, np.int64), seed=self.seed,
        )  # fmt: skip

    def masked(self, step: int) -> MaskedBatch[np.ndarray]:
        """The same blocks under geometric spans."""
        sequences = self.sequences(step)
        packed = PackedBatch.of(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]))
        return self._masker.mask(packed, epoch=step, indices=np.arange(len(sequences)))

    def states_per_token(self, label: str) -> float:
        """Of how many tokens the last layer works, in the variant of that name."""
        if "SBO" not in label and "last layer" not in label:
            return 1.0
        batches = [self.masked(step) for step in range(8)]
        states = sum(len(batch.targets.tensors().states("SBO" in label)) for batch in batches)
        return states / sum(batch.packed.tokens for batch in batches)


class Variant(ABC):
    """``step(n)`` is one whole training step on the sequences of step n → its MLM loss, still on the device."""

    def __init__(self, work: Workload):
        self.work = work
        self.device = torch.device(work.device)
        torch.manual_seed(work.seed)

    @abstractmethod
    def step(self, number: int) -> Tensor: ...


class Transformers(Variant):
    """BertForMaskedLM beside DataCollatorForLanguageModeling (MLM only)."""

    def __init__(self, work: Workload, attention: str, compiled: bool):
        import transformers
        from tokenizers import Tokenizer, models

        super().__init__(work)
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(work.vocabulary - SPECIALS))]
        words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
        specials = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **specials)
        self.collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        sizes = {k: v for k, v in dataclasses.asdict(work.shape).items() if not k.startswith("sbo_")}
        config = transformers.BertConfig(**sizes, attn_implementation=attention)
        self.model = transformers.BertForMaskedLM(config).to(self.device).train()
        self.called = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def step(self, number: int) -> Tensor:
        batch = self.collate([{"input_ids": ids.tolist()} for ids in self.work.sequences(number)])
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        with autocast(self.device, self.work.precision):
            loss = self.called(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class ReducedModel(nn.Module):
    """Our model with some of its ideas taken out, MLM only unless ``sbo``."""

    def __init__(self, model: SpanBertForPretraining, heads: str, sbo: bool):
        super().__init__()
        self.model, self.heads, self.sbo = model, heads, sbo

    def forward(self, batch: MaskedBatch[Tensor]) -> tuple[Tensor, Tensor]:
        """(what to call backward on, the MLM loss)."""
        targets, count = batch.targets, batch.targets.ids_M.numel()
        if self.heads == "whole":
            mlm, sbo = self.model(batch.packed, targets, self.sbo)
            loss = mlm.loss_sum / count
            return (loss + sbo.loss_sum / targets.sbo_K.numel() if sbo else loss), loss
        hidden_TH = self.model.encoder(*batch.packed)
        labels = targets.ids_M
        if self.heads == "dense":
            labels = torch.full_like(batch.packed.input_ids_T, -100).index_put_((targets.positions_M,), labels)
        else:
            hidden_TH = hidden_TH[targets.positions_M]
        embedding_VH = self.model.encoder.embeddings.word.weight
        if self.heads == "fused":
            features_MH, backend = self.model.mlm(hidden_TH), self.model.encoder.backend
            loss = vocabulary_loss(features_MH, embedding_VH, self.model.mlm.bias, labels, backend).loss_sum / count
            return loss, loss
        logits = F.linear(self.model.mlm(hidden_TH), embedding_VH, self.model.mlm.bias.to(hidden_TH.dtype))
        loss = F.cross_entropy(logits.float(), labels)
        return loss, loss


class Ours(Variant):
    """Ours with some of its ideas.

    heads: "dense" (logits everywhere), "sparse" (on targets), "fused" (loss and gradient in one pass of bounded
    memory), "whole" (the model itself, whose last layer works for the heads' states alone). plain_dropout: F.dropout instead of bytes. backend: of attention and the fused dropout-add-LayerNorm, "auto" by the device.
    """

    def __init__(
        self,
        work: Workload,
        heads: str,
        sbo: bool,
        compiled: bool = False,
        plain_dropout: bool = False,
        backend: str = "auto",
    ):
        super().__init__(work)
        model = SpanBertForPretraining(work.shape, resolve_backend(backend, self.device))
        model.sbo.requires_grad_(sbo)
        self.model = ReducedModel(model, heads, sbo).to(self.device).train()
        if plain_dropout:
            _use_plain_dropout()
        if compiled:
            model.encoder.compile_layers()
        self.optimizer = adamw(model, lr=1e-4, weight_decay=0.01)
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def batch(self, number: int) -> MaskedBatch[Tensor]:
        return self.work.masked(number).tensors(pin=self.device.type == "cuda").to(self.device)

    def step(self, number: int) -> Tensor:
        batch = self.batch(number)
        self.model.model.encoder.dropout_seed = torch.full((), number, dtype=torch.int64, device=self.device)
        with autocast(self.device, self.work.precision):
            loss, mlm = self.model(batch)
        loss.backward()
        clip_gradients(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mlm.detach()

    def fault(self) -> str | None:
        """None when, without dropout, this variant has the loss of transformers' model with the same weights."""
        from transformers import BertConfig, BertForMaskedLM

        from spanbert.checkpoint.model_folder import fill_model
        from spanbert.checkpoint.weight_names import usual_names

        shape = dataclasses.replace(self.work.shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        sizes = {k: v for k, v in dataclasses.asdict(shape).items() if not k.startswith("sbo_")}
        theirs = BertForMaskedLM(BertConfig(**sizes, attn_implementation="eager")).to(self.device).eval()
        ours = SpanBertForPretraining(shape, self.model.model.encoder.backend).to(self.device).eval()
        fill_model(ours, usual_names(theirs.state_dict(), "transformers"), "transformers", {})
        batch = self.batch(0)
        count = batch.packed.sequences
        labels = torch.full_like(batch.packed.input_ids_T, -100)
        labels[batch.targets.positions_M] = batch.targets.ids_M
        with torch.no_grad(), autocast(self.device, self.work.precision):
            expected = theirs(
                input_ids=batch.packed.input_ids_T.view(count, -1), labels=labels.view(count, -1)
            ).loss.item()
            found = ReducedModel(ours, self.model.heads, self.model.sbo)(batch)[1].item()
        most = 2e-2 if self.work.precision == "bf16" else 1e-4
        return None if abs(found - expected) <= most * expected else f"MLM loss {found:.5f}, expected {expected:.5f}"


def _use_plain_dropout() -> None:
    """In this process masks are drawn by PyTorch, one number an element, as if ``spanbert.model.dropout`` had no bytes."""
    import spanbert.model.attention
    import spanbert.model.dropout

    spanbert.model.dropout.draws_bytes = spanbert.model.attention.draws_bytes = lambda _: False


@dataclass(frozen=True)
class Entry:
    """A line of the table. ``keeps_memory``: its process runs with ``spanbert.device.tune_allocator``."""

    make: Callable[[Workload], Variant]
    keeps_memory: bool = False
    full_objective: bool = False


def entries(on_gpu: bool) -> dict[str, Entry]:
    """All that take part, by name. On a GPU the variants with fewer ideas use PyTorch's own fused attention."""
    table: dict[str, Entry] = {}
    for attention in ("eager", "sdpa"):
        for compiled in (False, True):
            make = partial(Transformers, attention=attention, compiled=compiled)
            table[f"transformers {attention}{' compiled' * compiled}"] = Entry(make)
    plain = partial(Ours, sbo=False, plain_dropout=True, backend="sdpa" if on_gpu else "eager")
    table["ours: naive"] = Entry(partial(plain, heads="dense"))
    table["ours: + heads on targets only"] = Entry(partial(plain, heads="sparse"))
    table["ours: + loss in bounded memory"] = Entry(partial(plain, heads="fused"))
    fast = partial(Ours, heads="fused", sbo=False)
    table[f"ours: + {'fused kernels' if on_gpu else 'dropout by bytes'}"] = Entry(fast)
    table["ours: + freed memory kept"] = Entry(fast, keeps_memory=True)
    table["ours: + last layer for the heads alone"] = Entry(partial(Ours, heads="whole", sbo=False), True)
    table["ours: + SBO"] = Entry(partial(Ours, heads="whole", sbo=True), True, True)
    table["ours: + SBO, compiled"] = Entry(partial(Ours, heads="whole", sbo=True, compiled=True), True, True)
    return table

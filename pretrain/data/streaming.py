"""Training on text as it comes, for corpora bigger than the disk: ``--stream hf:NAME`` (or files, or folders).

What is kept of the promises of ``pretrain.data.batches``: the same stream and seed give the same steps, masks and order
for any number of workers, ranks or micro-batches, and a resumed run continues with the very next block. What is not:

* order is shuffled within windows of ``WINDOW`` blocks only, since what has not been read cannot be drawn from;
* a step's content cannot be computed from its number: the place in the stream is saved with every checkpoint, and
  resuming reads up to it again (documents before it are read but neither encoded nor masked);
* standard input cannot be read twice: it can be trained on, but not resumed;
* every rank reads and encodes the whole stream, or else another number of ranks would mean other batches. Where that is
  slower than training, prepare the corpus on disk instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import IterableDataset

from pretrain.config import PretrainConfig
from pretrain.data.batches import StepBatch
from pretrain.data.corpus import Corpus
from pretrain.data.sampler import split_batch
from pretrain.data.shards import REFUSED_UNKNOWN, cut_text
from pretrain.masking.masker import Masker
from pretrain.schedule import Counters
from spanbert.config import read_json
from spanbert.distributed import Group
from spanbert.errors import UserError
from spanbert.model.batch import MaskedBatch, pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer

#: Blocks that are shuffled together.
WINDOW = 32_768
#: Tokens of a stream after which one that is nearly all unknown is refused.
LOOKED_AT = 10_000


class Cursor(NamedTuple):
    """A place between two sequences. A window begins at block ``skip`` of the document (part) at ``start``."""

    epoch: int = 0
    document: int = 0
    start: int = 0
    skip: int = 0
    index: int = 0  # type: ignore[assignment]  # the running number, within the epoch, of the window's first block
    taken: int = 0  # sequences already taken from the window


START = Cursor()


class Sequence(NamedTuple):
    epoch: int
    index: int  # type: ignore[assignment]
    ids: np.ndarray  # without specials
    after: Cursor


@dataclass(frozen=True)
class StreamPlan:
    """What a stream's steps are made of; equal plans give equal steps."""

    sources: tuple[str, ...]
    block_length: int
    batch_size: int
    """Sequences in a step, of all ranks."""
    budget: int
    """Tokens in a micro-batch."""
    seed: int
    validation_share: float
    """Documents whose hash is below this share of its range are left out."""
    text_field: str = "text"
    document_per_file: bool = False
    window: int = WINDOW


@dataclass(frozen=True)
class StreamPlace:
    """Where in the stream this process stands: its next step, the data's cursor there, and its rank."""

    first: int = 0
    cursor: Cursor = START
    rank: int = 0
    world: int = 1


class StreamedSteps(IterableDataset):
    """Yields this rank's share of step ``place.first`` and all that follow, for ever.

    Documents that ``spanbert prepare`` would hold out (by the hash of their text) are left out, so validation on the
    sample that was prepared stays clean. Raises UserError when the stream has no text.
    """

    def __init__(self, plan: StreamPlan, tokenizer: Tokenizer, masker: Masker, place: StreamPlace | None = None):
        self.plan, self.tokenizer, self.masker, self.place = plan, tokenizer, masker, place or StreamPlace()

    def __iter__(self) -> Iterator[StepBatch]:
        sequences = self._sequences(self.place.cursor)
        for step in itertools.count(self.place.first):
            batch = list(itertools.islice(sequences, self.plan.batch_size))
            lengths = np.array([len(sequence.ids) + 2 for sequence in batch])
            parts = split_batch(lengths, self.plan.budget, self.place.world)[self.place.rank :: self.place.world]
            chosen = [[batch[position] for position in part] for part in parts]
            addresses = [
                (np.array([s.epoch for s in part]), np.array([s.index for s in part], np.int64)) for part in chosen
            ]
            masked = [self._mask(part, *address) for part, address in zip(chosen, addresses, strict=True)]
            yield StepBatch(step, masked, addresses, cursor=batch[-1].after)

    def _mask(self, sequences: list[Sequence], epochs: np.ndarray, indices: np.ndarray) -> MaskedBatch[np.ndarray]:
        packed = pack_sequences([(s.ids,) for s in sequences], self.tokenizer.cls_id, self.tokenizer.sep_id)
        return self.masker.mask(packed, epoch=epochs, indices=indices)

    def _sequences(self, cursor: Cursor) -> Iterator[Sequence]:
        """Windows of the stream, each in an order of its own, from ``cursor`` on; epoch after epoch."""
        while True:
            blocks = self._blocks(cursor)
            seen = False
            while window := list(itertools.islice(blocks, self.plan.window)):
                seen = True
                (document, start, skip), _ = window[0]
                begin = cursor._replace(document=document, start=start, skip=skip)
                bits = np.random.Philox(key=[self.plan.seed, begin.epoch]).jumped(begin.index // self.plan.window)
                order = np.random.Generator(bits).permutation(len(window))
                for taken in range(cursor.taken, len(window)):
                    place = int(order[taken])
                    after = begin._replace(taken=taken + 1)
                    yield Sequence(begin.epoch, begin.index + place, window[place][1], after)
                cursor = begin._replace(index=begin.index + len(window), taken=0)
            if not seen and cursor.index == 0:
                raise UserError(f"no text to train on in {', '.join(self.plan.sources)}")
            cursor = Cursor(epoch=cursor.epoch + 1)

    def _blocks(self, cursor: Cursor) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
        """((document, start, block within), ids) of the stream from ``cursor``'s window on."""
        room = self.plan.block_length - 2
        here = (cursor.document, cursor.start)
        held_out_below = self.plan.validation_share * 2**64
        plan, seen, unknown = self.plan, 0, 0
        for document in Corpus(plan.sources, text_field=plan.text_field, document_per_file=plan.document_per_file):
            place = (document.index, document.start)
            if place < here or document.hash < held_out_below:
                continue
            ids = np.concatenate([self.tokenizer.encode_ids(part) for part in cut_text(document.text)])
            if seen < LOOKED_AT:
                seen, unknown = seen + len(ids), unknown + int((ids == self.tokenizer.unk_id).sum())
                if seen >= LOOKED_AT and unknown >= REFUSED_UNKNOWN * seen:
                    raise UserError(
                        f"{unknown / seen:.0%} of the first {seen:,} tokens of {', '.join(plan.sources)} are "
                        f"{self.tokenizer.unk_token}: the tokenizer is of another script or language"
                    )
            for number, begin in enumerate(range(0, len(ids), room)):
                if place > here or number >= cursor.skip:
                    yield (*place, number), ids[begin : begin + room]


def stream_of(
    config: PretrainConfig,
    tokenizer: Tokenizer,
    masker: Masker,
    block_length: int,
    budget: int,
    counters: Counters,
    group: Group,
) -> StreamedSteps:
    """The stream that ``config`` names, read as the prepared sample was, from where ``counters`` say."""
    prepared = read_json(config.data / "prepare.json")
    plan = StreamPlan(
        config.stream,
        block_length=block_length,
        batch_size=config.batch_size,
        budget=budget,
        seed=config.seed,
        validation_share=prepared["validation_share"],
        text_field=prepared["text_field"],
        document_per_file=prepared["document_per_file"],
    )
    cursor = Cursor(*counters.cursor) if counters.cursor else START
    return StreamedSteps(plan, tokenizer, masker, StreamPlace(counters.step, cursor, group.rank, group.world))

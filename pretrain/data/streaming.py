"""Training on text as it comes, for corpora bigger than the disk: ``--stream hf:NAME`` (or files, or folders).

What is kept of the promises of ``pretrain.data.batches``: the same stream and seed give the same steps, masks and order
for any number of workers, ranks or micro-batches, and a resumed run goes on with the very next block. What is not:

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
from typing import NamedTuple

import numpy as np
from torch.utils.data import IterableDataset

from pretrain.config import PretrainConfig
from pretrain.data.batches import StepBatch, split_batch
from pretrain.data.corpus import Corpus
from pretrain.data.shards import cut_text
from pretrain.masking.masker import Masker
from pretrain.schedule import Counters
from spanbert.config import read_json
from spanbert.distributed import Group
from spanbert.errors import UserError
from spanbert.model.batch import MaskedBatch, pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer

#: Blocks that are shuffled together.
WINDOW = 32_768


class Cursor(NamedTuple):
    """A place between two sequences. A window begins at block ``skip`` of the document (part) at ``start``."""

    epoch: int = 0
    document: int = 0
    start: int = 0
    skip: int = 0
    index: int = 0  # the running number, within the epoch, of the window's first block
    taken: int = 0  # sequences already taken from the window


class Sequence(NamedTuple):
    epoch: int
    index: int
    ids: np.ndarray  # without specials
    after: Cursor


class StreamedSteps(IterableDataset):
    """Yields this rank's share of step ``first``, ``first`` + 1, … from ``cursor`` on, for ever.

    Documents that ``spanbert prepare`` would hold out (by the hash of their text) are left out, so validation on the
    sample that was prepared stays clean. Raises UserError when the stream has no text.
    """

    def __init__(
        self, sources: tuple[str, ...], tokenizer: Tokenizer, masker: Masker, *, block_length: int, batch_size: int,
        budget: int, seed: int, validation_share: float, first: int = 0, cursor: Cursor | None = None,
        rank: int = 0, world: int = 1, window: int | None = None,
    ):  # fmt: skip
        self.sources, self.tokenizer, self.masker = sources, tokenizer, masker
        self.block_length, self.batch_size, self.budget = block_length, batch_size, budget
        self.seed, self.window, self.held_out_below = seed, window or WINDOW, validation_share * 2**64
        self.first, self.cursor, self.rank, self.world = first, cursor or Cursor(), rank, world

    def __iter__(self) -> Iterator[StepBatch]:
        sequences = self._sequences(self.cursor)
        for step in itertools.count(self.first):
            batch = list(itertools.islice(sequences, self.batch_size))
            lengths = np.array([len(sequence.ids) + 2 for sequence in batch])
            parts = split_batch(lengths, self.budget, self.world)[self.rank :: self.world]
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
            while window := list(itertools.islice(blocks, self.window)):
                seen = True
                (document, start, skip), _ = window[0]
                begin = cursor._replace(document=document, start=start, skip=skip)
                bits = np.random.Philox(key=[self.seed, begin.epoch]).jumped(begin.index // self.window)
                order = np.random.Generator(bits).permutation(len(window))
                for taken in range(cursor.taken, len(window)):
                    place = int(order[taken])
                    after = begin._replace(taken=taken + 1)
                    yield Sequence(begin.epoch, begin.index + place, window[place][1], after)
                cursor = begin._replace(index=begin.index + len(window), taken=0)
            if not seen and cursor.index == 0:
                raise UserError(f"no text to train on in {', '.join(self.sources)}")
            cursor = Cursor(epoch=cursor.epoch + 1)

    def _blocks(self, cursor: Cursor) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
        """((document, start, block within), ids) of the stream from ``cursor``'s window on."""
        room = self.block_length - 2
        here = (cursor.document, cursor.start)
        for document in Corpus(self.sources):
            place = (document.index, document.start)
            if place < here or document.hash < self.held_out_below:
                continue
            ids = np.concatenate([self.tokenizer.encode_ids(piece) for piece in cut_text(document.text)])
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
    """The stream that ``config`` names, from where ``counters`` say."""
    share = read_json(config.data / "prepare.json")["validation_share"]
    return StreamedSteps(
        config.stream, tokenizer, masker, block_length=block_length, batch_size=config.batch_size, budget=budget,
        seed=config.seed, validation_share=share, first=counters.step, cursor=counters.cursor and Cursor(*counters.cursor),
        rank=group.rank, world=group.world,
    )  # fmt: skip

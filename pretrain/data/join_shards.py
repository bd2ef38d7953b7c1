"""Finished shards to the data sets `train` and `validation`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, concatenate_datasets

from pretrain.data.blocks import Blocks
from pretrain.data.shards import SPLITS, shard_file

FILE_BYTES = 1_000_000_000


def join_shards(
    work: Path, shards: int, folder: Path, block_length: int, validation_share: float
) -> tuple[dict, np.ndarray]:
    """Write folder/train and folder/validation; returns what is held out, and unigram counts (int64) over train.

    With few documents the hash may hold out none or all of them. Then the smallest document moves over, and of a
    single document its last blocks.
    """
    parts = {
        split: concatenate_datasets(
            [Dataset.from_file(str(shard_file(work, number, split))) for number in range(shards)]
        )
        for split in SPLITS
    }
    how = "hash of the text"
    if validation_share > 0 and 0 in (len(parts["train"]), len(parts["validation"])):
        parts, how = _rescue(concatenate_datasets([parts["train"], parts["validation"]]), validation_share)
    with _no_bars():
        for split in SPLITS:
            files = max(1, -(-parts[split].data.nbytes // FILE_BYTES))
            parts[split].save_to_disk(folder / split, num_shards=files)
    train, validation = (Blocks.map(folder / split, block_length) for split in SPLITS)
    held_out = {
        "chosen_by": how,
        "train_blocks": len(train),
        "validation_blocks": len(validation),
        "train_tokens": int(train.lengths.sum(dtype=np.int64)) - 2 * len(train),
        "validation_tokens": int(validation.lengths.sum(dtype=np.int64)) - 2 * len(validation),
        "validation_documents": len(np.unique(validation.document)),
    }
    return held_out, train.unigram_counts()


def _rescue(rows: Dataset, validation_share: float) -> tuple[dict[str, Dataset], str]:
    document = np.asarray(rows.data.column("document").to_numpy())
    names, sizes = np.unique(document, return_counts=True)
    if len(names) > 1:
        held = document == names[np.argmin(sizes)]
        how = "smallest document"
    else:
        held = np.zeros(len(document), dtype=bool)
        if len(document) > 1:
            held[-max(1, round(validation_share * len(document))) :] = True
        how = "last blocks of the only document" if held.any() else "nothing held out: a single block"
    indices = {"train": np.flatnonzero(~held), "validation": np.flatnonzero(held)}
    return {split: rows.select(indices[split]) for split in SPLITS}, how


@contextmanager
def _no_bars() -> Iterator[None]:
    """datasets shows bars of its own; ours is enough."""
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()

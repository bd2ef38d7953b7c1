"""Packed reading of prepared blocks."""

import json
import pickle
import time

import datasets
import numpy as np
import pytest

from pretrain.data.blocks import Blocks
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

BLOCK_LENGTH = 64
VOCABULARY = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(995))]
CLS, SEP = 2, 3


def write_corpus(folder, rows: list[list[int]], spans: list[list[list[int]]] | None = None, files: int = 1):
    """A prepared folder as datasets writes it, in several files and record batches."""
    tokenizer = Tokenizer({piece: i for i, piece in enumerate(VOCABULARY)})
    tokenizer.save(folder / "tokenizer")
    features = {
        "input_ids": datasets.List(datasets.Value("uint16")),
        "document": datasets.Value("int64"),
        "start": datasets.Value("int32"),
    }
    columns = {"input_ids": rows, "document": list(range(len(rows))), "start": [7] * len(rows)}
    if spans is not None:
        features["spans"] = datasets.List(datasets.List(datasets.Value("int32")))
        columns["spans"] = spans
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    data.save_to_disk(str(folder / "train"), num_shards=files)
    settings = {"block_length": BLOCK_LENGTH, "tokenizer_fingerprint": tokenizer.fingerprint}
    (folder / "prepare.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(5, 1000, draw.integers(1, BLOCK_LENGTH - 1)).tolist() for _ in range(2500)]


@pytest.fixture(scope="module")
def spans(rows) -> list[list[list[int]]]:
    return [[[i, min(i + 2, len(row))] for i in range(0, len(row), 10)] if len(row) % 3 else [] for row in rows]


@pytest.fixture(scope="module", params=[1, 3])
def folder(request, rows, spans, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), rows, spans, files=request.param)


def test_packed_is_what_was_written(folder, rows, spans):
    blocks = Blocks.open(folder, "train")
    assert len(blocks) == 2500 and blocks.block_length == BLOCK_LENGTH and blocks.has_spans
    assert blocks.lengths.dtype == np.int32 and blocks.lengths.tolist() == [len(row) + 2 for row in rows]
    assert blocks.document.tolist() == list(range(2500)) and set(blocks.start) == {7}
    draw = np.random.default_rng(1)
    for indices in ([0], [2499], [5, 5, 4], draw.permutation(2500), draw.integers(0, 2500, 64).astype(np.int32)):
        packed, given = blocks.packed(np.asarray(indices))
        flat_ids, cu_seqlens = packed.input_ids_T, packed.cu_seqlens
        assert flat_ids.dtype == np.int64 and cu_seqlens.dtype == np.int32 and cu_seqlens[0] == 0
        assert packed.max_seqlen == max(blocks.lengths[indices]) and packed.token_type_ids_T is None
        for i, index in enumerate(indices):
            assert flat_ids[cu_seqlens[i] : cu_seqlens[i + 1]].tolist() == [CLS, *rows[index], SEP]
            assert given[i].shape == (len(spans[index]), 2) and given[i].tolist() == spans[index]
        assert len(flat_ids) == cu_seqlens[-1]


def test_no_sequences_and_no_spans(tmp_path, rows):
    blocks = Blocks.open(write_corpus(tmp_path, rows[:3]), "train")
    packed, spans = blocks.packed(np.array([], dtype=np.int64))
    assert packed.tokens == packed.sequences == packed.max_seqlen == 0 and spans is None


def test_an_empty_split(tmp_path):
    blocks = Blocks.open(write_corpus(tmp_path, [], []), "train")
    assert len(blocks) == 0 and blocks.unigram_counts().sum() == 0


def test_unigram_counts(folder, rows):
    expected = np.bincount(np.concatenate(rows))
    assert Blocks.open(folder, "train").unigram_counts().tolist() == expected.tolist()


def test_a_copy_in_a_worker_maps_the_files_again(folder):
    blocks = Blocks.open(folder, "train")
    data = pickle.dumps(blocks)
    assert len(data) < 1000
    copy, own = (b.packed(np.arange(9))[0].input_ids_T for b in (pickle.loads(data), blocks))
    assert np.array_equal(copy, own)


def test_the_flat_buffers_are_mapped_not_copied(folder):
    blocks = Blocks.open(folder, "train")
    assert all(not values.flags.owndata and not values.flags.writeable for values in blocks._values)


def test_packing_is_fast(tmp_path):
    """It must never starve a GPU; measured 800,000 blocks a second on one core of a busy machine."""
    draw = np.random.default_rng(0)
    blocks = Blocks.open(write_corpus(tmp_path, [draw.integers(5, 1000, 510).tolist() for _ in range(2000)]), "train")
    best = min(_seconds(blocks, draw.integers(0, 2000, 64)) for _ in range(200))
    assert 64 / best > 20_000


def _seconds(blocks: Blocks, indices: np.ndarray) -> float:
    began = time.perf_counter()
    blocks.packed(indices)
    return time.perf_counter() - began


def test_what_is_not_a_prepared_corpus_is_named(tmp_path, rows):
    with pytest.raises(UserError, match=r"is not a prepared corpus with a 'train' split"):
        Blocks.open(tmp_path, "train")
    folder = write_corpus(tmp_path, rows[:3])
    with pytest.raises(UserError, match=r"'validation' split"):
        Blocks.open(folder, "validation")
    settings = json.loads((folder / "prepare.json").read_text())
    (folder / "prepare.json").write_text(json.dumps(settings | {"tokenizer_fingerprint": "another"}))
    with pytest.raises(UserError, match="not the one this corpus was prepared with"):
        Blocks.open(folder, "train")

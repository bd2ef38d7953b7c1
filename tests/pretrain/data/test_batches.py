"""Order, masks and micro-batches: functions of an address, whoever computes them and however they are cut."""

from __future__ import annotations

import itertools
import subprocess
import time

import numpy as np
import pytest
import torch

from pretrain.data.batches import StepBatches, load_steps, report_lost_worker
from pretrain.data.blocks import Blocks
from pretrain.data.sampler import DataOrder, split_batch
from pretrain.masking.masker import MaskConfig, Masker
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import Tokenizer


@pytest.fixture(scope="module")
def masker(corpus):
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    return Masker.from_tokenizer(MaskConfig(), tokenizer, seed=5, unigram_counts=np.load(corpus / "unigram.npy"))


@pytest.fixture(scope="module")
def blocks(corpus):
    return Blocks.open(corpus, "train")


def content(batches: list[StepBatches], step: int) -> set[tuple]:
    """A step as the set of its sequences: (corrupted tokens, targets, their places), over ranks and micro-batches."""
    found = set()
    for rank in batches:
        for part in rank[step].masked:
            for first, last in zip(part.packed.cu_seqlens[:-1], part.packed.cu_seqlens[1:], strict=True):
                mine = (part.targets.positions_M >= first) & (part.targets.positions_M < last)
                found.add(
                    (
                        tuple(part.packed.input_ids_T[first:last].tolist()),
                        tuple(part.targets.ids_M[mine].tolist()),
                        tuple((part.targets.positions_M[mine] - first).tolist()),
                    )
                )
    return found


@pytest.mark.parametrize(("micro", "world"), [(1, 1), (3, 1), (100, 1), (2, 2), (1, 4), (3, 3)])
def test_a_step_is_the_same_however_it_is_cut(blocks, masker, micro, world):
    order = DataOrder(len(blocks), 24, 5)
    whole = [StepBatches(blocks, masker, order, 24 * 32)]
    cut = [StepBatches(blocks, masker, order, micro * 32, rank, world) for rank in range(world)]
    for step in (0, 3, 1000):
        assert content(cut, step) == content(whole, step)
        parts = [len(rank.addresses(step)) for rank in cut]
        assert len(set(parts)) == 1, "ranks must do equally many passes"


def test_an_epoch_sees_every_block_once_and_epochs_differ(blocks):
    order = DataOrder(len(blocks), 16, 1)
    seen = [order.addresses(step) for step in range(-(-3 * len(blocks) // 16))]
    epochs, indices = (np.concatenate(part) for part in zip(*seen, strict=True))
    orders = [indices[epochs == epoch] for epoch in range(3)]
    for epoch in orders:
        assert sorted(epoch.tolist()) == list(range(len(blocks)))
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    again = DataOrder(len(blocks), 16, 1)  # from the middle, and backwards
    for step in (30, 2, 17):
        for here, there in zip(again.addresses(step), order.addresses(step), strict=True):
            assert np.array_equal(here, there)
    assert not np.array_equal(DataOrder(len(blocks), 16, 2).addresses(0)[1], order.addresses(0)[1])


def test_a_batch_larger_than_the_corpus_masks_a_block_anew(blocks, masker):
    order = DataOrder(4, 8, 0)
    (part,) = StepBatches(blocks, masker, order, 10_000)[0].masked
    assert part.packed.cu_seqlens.size == 9
    epochs, indices = order.addresses(0)
    assert sorted(zip(epochs.tolist(), indices.tolist(), strict=True)) == [(e, i) for e in (0, 1) for i in range(4)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_micro_batches_fill_their_budget(world):
    """Short documents share a row budget: as few passes as tokens need, none empty, none above the budget."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(3, 65, rng.integers(world, 60))
        parts = split_batch(lengths, 128, world)
        assert len(parts) % world == 0 and all(len(part) for part in parts)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
        loads = [int(lengths[part].sum()) for part in parts]
        if len(parts) + world <= len(lengths):
            assert max(loads) <= 128
            assert len(parts) <= 1.5 * -(-lengths.sum() // 128) + world
        for part in parts:
            assert (np.diff(lengths[part]) <= 0).all(), "equal lengths are neighbours"
    assert [len(part) for part in split_batch(np.full(32, 512), 8 * 512)] == [8, 8, 8, 8]
    assert len(split_batch(np.full(64, 32), 4 * 512)) == 1, "sixteen times shorter: one pass instead of sixteen"


def test_workers_do_not_change_the_data(blocks, masker):
    batches = StepBatches(blocks, masker, DataOrder(len(blocks), 8, 5), 64)
    alone = [next(load_steps(batches, step, 10, workers=0, pin=False)) for step in (4, 5, 6)]
    steps = load_steps(batches, 4, 7, workers=2, pin=False)
    helped = list(steps)
    assert [b.step for b in helped] == [4, 5, 6]
    for one, other in zip(alone, helped, strict=True):
        assert one.target_counts == other.target_counts and one.tokens == other.tokens
        for a, b in zip(one.masked, other.masked, strict=True):
            assert a.packed.input_ids_T.tolist() == b.packed.input_ids_T.tolist()
            assert all(np.array_equal(x, y) for x, y in zip(a.targets, b.targets, strict=True))


def test_workers_survive_the_signals_that_stop_a_run(blocks, masker):
    """Ctrl-C and a scheduler's SIGTERM go to the whole process group; the loop wants to finish its step and save."""
    batches = StepBatches(blocks, masker, DataOrder(len(blocks), 8, 5), 64)
    steps = load_steps(batches, 0, 40, workers=1, pin=False)
    next(steps)
    (worker,) = steps._workers
    for name in ("INT", "TERM"):  # from another process: a SIGTERM of the loop itself ends its worker
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    time.sleep(0.2)
    assert [batch.step for batch in steps] == list(range(1, 40))


def test_tensors_are_those_of_the_masked_batch(blocks, masker):
    batch = StepBatches(blocks, masker, DataOrder(len(blocks), 8, 5), 64)[0]
    for masked, micro in zip(batch.masked, batch.micro_batches(), strict=True):
        assert micro.packed.input_ids_T.tolist() == masked.packed.input_ids_T.tolist()
        assert micro.packed.max_seqlen == int(np.diff(masked.packed.cu_seqlens).max())
        assert micro.targets.positions_M.tolist() == masked.targets.positions_M.tolist()
        assert micro.targets.sbo_K.tolist() == masked.targets.sbo_K.tolist()


def test_shifted_positions_keep_order_fill_the_table_and_follow_the_address(blocks, masker):
    """Each sequence's positions are consecutive and within the table; another cut of the batch shifts nobody otherwise."""
    order, table, shifts = DataOrder(len(blocks), 24, 5), 40, {}
    for budget in (24 * 32, 64):
        batches = StepBatches(blocks, masker, order, budget)
        found = {}
        for step in range(20):
            batch = batches[step]
            parts = zip(batch.micro_batches(seed=5, shift_within=table), batch.addresses, strict=True)
            for micro, (epochs, indices) in parts:
                edges = micro.packed.cu_seqlens.tolist()
                for n, (first, last) in enumerate(itertools.pairwise(edges)):
                    positions = micro.packed.position_ids_T[first:last]
                    assert positions.diff().eq(1).all()
                    assert positions[0] >= 0
                    assert positions[-1] < table
                    found[int(epochs[n]), int(indices[n])] = int(positions[0]), last - first
        assert shifts in ({}, found)
        shifts = found
    full = [shift for shift, length in shifts.values() if length == 32]
    assert set(full) == set(range(table - 32 + 1)), "every place where a block fits is used"
    other_seed = batch.micro_batches(seed=6, shift_within=table)
    assert any(
        not a.packed.position_ids_T.equal(b.packed.position_ids_T)
        for a, b in zip(batch.micro_batches(5, table), other_seed)
    )


def test_an_error_in_a_worker_is_its_own_sentence():
    """PyTorch puts its traceback before the message, and the user read all of it."""
    for error in (UserError("the corpus is damaged: prepare it again"), OSError(5, "Input/output error", "blocks")):
        batches = FailingSteps(error)
        with pytest.raises(UserError) as caught, report_lost_worker():
            next(load_steps(batches, 0, 2, workers=1, pin=False))
        assert str(caught.value) == str(error)


class FailingSteps(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __getitem__(self, step):
        raise self.error

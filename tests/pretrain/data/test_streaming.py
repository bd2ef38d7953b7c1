"""A stream keeps order, masks and place: over micro-batches, ranks and resumes."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from pretrain.data.streaming import Cursor, StreamedSteps, StreamPlace, StreamPlan
from pretrain.masking.masker import MaskConfig, Masker
from pretrain.train import run_pretrain
from spanbert.checkpoint.model_folder import load_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import read_metrics

BATCH = 8


@pytest.fixture(scope="module")
def make(corpus):
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    masker = Masker.from_tokenizer(MaskConfig(), tokenizer, seed=5, unigram_counts=np.load(corpus / "unigram.npy"))
    plain = {
        "block_length": 32, "batch_size": BATCH, "budget": 96, "seed": 5, "validation_share": 0.25, "window": 50,
    }  # fmt: skip

    def build(**changes) -> StreamedSteps:
        sources = changes.pop("sources", (str(corpus.parent / "text.txt"),))
        place = StreamPlace(
            **{name: changes.pop(name) for name in ("first", "cursor", "rank", "world") if name in changes}
        )
        return StreamedSteps(StreamPlan(sources, **{**plain, **changes}), tokenizer, masker, place)

    return build


def sequences(batches) -> list[tuple[int, int, tuple[int, ...]]]:
    """(epoch, index, corrupted tokens) of every sequence."""
    found = []
    for batch in batches:
        for part, (epochs, indices) in zip(batch.masked, batch.addresses, strict=True):
            rows = np.split(part.packed.input_ids_T, part.packed.cu_seqlens[1:-1])
            found += zip(epochs.tolist(), indices.tolist(), (tuple(r.tolist()) for r in rows), strict=True)
    return found


def take(stream: StreamedSteps, count: int) -> list:
    return list(itertools.islice(iter(stream), count))


def test_an_epoch_holds_every_block_that_prepare_would_train_on(make, corpus):
    from pretrain.data.blocks import Blocks

    blocks = Blocks.open(corpus, "train")
    steps = take(make(), 2 * len(blocks) // BATCH + 1)
    seen = sequences(steps)
    for epoch in (0, 1):
        mine = sorted(index for e, index, _ in seen if e == epoch)
        assert mine == list(range(len(blocks)))
    lengths = sorted(len(ids) for e, _, ids in seen if e == 0)
    assert lengths == sorted(blocks.lengths.tolist())
    orders = [[index for e, index, _ in seen if e == epoch] for epoch in (0, 1)]
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
    assert max(orders[0][:40]) < 50, "shuffled within windows only"


def test_it_goes_on_from_any_step(make):
    """170 blocks in windows of 50: the 60 steps cross windows and epochs."""
    whole = take(make(), 60)
    for step in (1, 6, 7, 13, 21, 22, 42, 43):
        cursor = Cursor(*json.loads(json.dumps(whole[step - 1].cursor)))
        again = take(make(first=step, cursor=cursor), 3)
        assert [b.step for b in again] == [step, step + 1, step + 2]
        assert sequences(again) == sequences(whole[step : step + 3])


def test_ranks_and_micro_batches_share_out_the_same_steps(make):
    whole = take(make(), 8)
    ranks = [take(make(rank=rank, world=2, budget=40), 8) for rank in range(2)]
    for step in range(8):
        assert sorted(sequences([whole[step]])) == sorted(sequences([ranks[0][step], ranks[1][step]]))


def test_a_stream_without_text_is_refused(make, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no text to train on in"):
        take(make(sources=(str(tmp_path / "empty.txt"),)), 1)


def test_a_streamed_run_resumes_bit_identically(config, corpus, monkeypatch):
    stream = (str(corpus.parent / "text.txt"),)
    monkeypatch.setattr("pretrain.data.streaming.WINDOW", 50)
    whole = config(stream=stream, output=config().output.with_name("whole"))
    run_pretrain(whole)
    options = config(stream=stream, workers=1)
    from spanbert.training.step import OptimizerStep

    honest = OptimizerStep.gradients

    def fail(self, step, *rest):
        if step == 6:
            raise RuntimeError("as if the power had gone")
        return honest(self, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(OptimizerStep, "gradients", fail)
        run_pretrain(options)
    run_pretrain(dataclasses.replace(options, resume=True))
    one, other = (load_model(o.output / "model", SpanBertForPretraining)[0].state_dict() for o in (whole, options))
    assert all(one[name].equal(other[name]) for name in one)
    losses = [[r.get("mlm_loss") for r in read_metrics(o.output / "metrics.jsonl")] for o in (whole, options)]
    assert losses[0] == losses[1]


def test_a_stream_of_unknown_words_is_refused(make, tmp_path):
    """A whole run on [UNK] alone began without a word."""
    (tmp_path / "text.txt").write_text("\n\n".join(["ཀཁགང བོད་ཡིག " * 40 + str(i) for i in range(400)]))
    with pytest.raises(UserError, match=r"of the first 10,\d+ tokens of .*text.txt are \[UNK\]"):
        take(make(sources=(str(tmp_path / "text.txt"),), window=1000), 1)


def test_a_stream_is_read_as_the_sample_was_prepared(make, tmp_path):
    """--stream read the field "text" whatever the sample was prepared with."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": f"word {i}"}) + "\n" for i in range(40)))
    assert take(make(sources=(str(tmp_path / "a.jsonl"),), text_field="body"), 1)
    with pytest.raises(UserError, match="no field 'text'"):
        take(make(sources=(str(tmp_path / "a.jsonl"),)), 1)

"""A model made from counts: the counts are right, the factorisation keeps them, training begins near the baseline."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.init_from_counts import InitConfig, count_neighbours, factorise, mutual_information, run_init, sinusoids
from spanbert.checkpoint.model_folder import load_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer


def test_neighbours_are_counted_within_blocks_and_without_specials(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.init_from_counts.PAIRS_AT_A_TIME", 7)
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    words = np.random.default_rng(0).integers(5, 12, 40)
    flat_ids = np.concatenate([[tokenizer.cls_id], words[:20], [tokenizer.sep_id, tokenizer.cls_id], words[20:]])
    block_T = np.repeat([0, 1], [22, 21])
    expected: Counter[tuple[int, int]] = Counter()
    special = set(tokenizer.special_ids.tolist())
    for i, a in enumerate(flat_ids.tolist()):
        for j, b in enumerate(flat_ids.tolist()):
            near = 0 < abs(i - j) <= 3 and block_T[i] == block_T[j]
            if near and not special & {a, b}:
                expected[a, b] += 1 / abs(i - j)
    first, second, weights = count_neighbours(flat_ids.astype(np.int32), block_T, tokenizer, reach=3)
    found = dict(zip(zip(first.tolist(), second.tolist()), weights.tolist()))
    assert found == pytest.approx(dict(expected))


def test_mutual_information_is_the_dense_formula() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 4, (9, 9)).astype(float)
    counts[4] = counts[:, 4] = 0  # a piece that does not occur
    counts += counts.T
    first, second = np.nonzero(counts)
    ppmi = mutual_information(first, second, counts[first, second], 9).to_dense().numpy()
    context = counts.sum(1) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        dense = np.log(counts / counts.sum(1, keepdims=True) / (context / context.sum()))
    assert np.allclose(ppmi, np.where(np.isfinite(dense) & (dense > 0), dense, 0), atol=1e-6)


def test_rows_have_one_length_and_keep_who_is_alike() -> None:
    """Two groups of pieces that keep company only among themselves."""
    block = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) + 1
    ppmi = torch.block_diag(block @ block.T, block.T @ block, torch.zeros(1, 1)).to_sparse()
    rows_VH = factorise(ppmi, hidden=8, std=0.1, seed=0)
    assert rows_VH[:40].norm(dim=1).numpy() == pytest.approx(np.full(40, 0.1 * 8**0.5), rel=1e-4)
    assert 0 < rows_VH[40].norm() < 1, "a piece without company gets a random row"
    unit_VH = rows_VH / rows_VH.norm(dim=1, keepdim=True)
    assert (unit_VH[:20] @ unit_VH[:20].T).mean() > 0.9
    assert (unit_VH[:20] @ unit_VH[20:40].T).abs().mean() < 0.2


def test_the_model_is_a_function_of_its_options_and_trains(corpus: Path, config, tmp_path: Path) -> None:
    from pretrain.train import run_pretrain

    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_init(InitConfig(corpus, tmp_path / name, size="mini", seed=seed))
    a, b, c = (load_model(tmp_path / name, SpanBertForPretraining)[0].state_dict() for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["encoder.embeddings.word.weight"], c["encoder.embeddings.word.weight"])
    counts = np.load(corpus / "unigram.npy")
    assert a["mlm.bias"].numpy() == pytest.approx(np.log((counts + 1) / (counts.sum() + len(counts))), abs=1e-5)

    _, report = load_model(tmp_path / "a", SpanBertForPretraining)
    assert not report.has("mlm"), "its heads have not been trained"
    run_pretrain(config(init_from=tmp_path / "a", steps=2))
    _, report = load_model(tmp_path / "run" / "model", SpanBertForPretraining)
    assert report.has("mlm")
    assert report.has("sbo")


def test_mistakes_are_one_sentence(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(UserError, match="already exists"):
        run_init(InitConfig(corpus, tmp_path / "there"))
    with pytest.raises(UserError, match="is not a prepared corpus"):
        run_init(InitConfig(tmp_path / "there", tmp_path / "new"))
    with pytest.raises(UserError, match=r"std is 0\.0: expected above 0"):
        InitConfig(corpus, tmp_path / "new", std=0.0)


def test_positions_begin_as_sinusoids() -> None:
    """Against the formula written out; moving by one place is one rotation, the same everywhere."""
    table_PH = sinusoids(50, 8)
    for position in (0, 1, 49):
        expected = [f(position / 10_000 ** (2 * i / 8)) * 2**0.5 for i in range(4) for f in (math.sin, math.cos)]
        assert table_PH[position].tolist() == pytest.approx(expected, abs=1e-5)
    next_to = (table_PH[:-1] * table_PH[1:]).sum(1)
    assert next_to.numpy() == pytest.approx(np.full(49, next_to[0]), rel=1e-4)
    assert sinusoids(50, 7).shape == (50, 7)

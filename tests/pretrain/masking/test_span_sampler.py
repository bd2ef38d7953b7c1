"""The look-ahead placement of spans against the paper's sequential procedure, written out."""

import numpy as np
import pytest

from pretrain.masking.counter_rng import below, draw, sequence_keys, stream, unit
from pretrain.masking.masker import MaskConfig, Masker, truncated_geometric
from pretrain.masking.span_sampler import KIND, LENGTH, LISTED_ORDER, PATIENCE, START, draw_lengths
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch

CLS, SEP, UNK, MASK, VOCABULARY = 1, 2, 3, 4, 600
STARTS = np.arange(VOCABULARY) < 400


def make_sequence(rng, words, piece_shares, unknown_share):
    """[CLS] words [SEP]; a word has 1 + i pieces with probability piece_shares[i] or is [UNK]."""
    ids = [CLS]
    for _ in range(words):
        if rng.random() < unknown_share:
            ids.append(UNK)
            continue
        ids.append(int(rng.integers(5, 400)))
        ids += rng.integers(400, VOCABULARY, rng.choice(len(piece_shares), p=piece_shares)).tolist()
    return np.array([*ids, SEP])


def make_masker(**settings):
    return Masker(
        MaskConfig(**settings),
        starts_word=STARTS,
        special_ids=[0, CLS, SEP, UNK, MASK],
        mask_id=MASK,
        unigram_counts=np.ones(VOCABULARY),
        seed=11,
    )


def sequential_targets(ids, config, index, spans=()):
    """One sequence's target positions by the procedure as span_choice.py states it, one draw after another."""
    key = sequence_keys(11, 0, np.array([index]))
    ids = ids.tolist()
    starts = [i for i in range(len(ids)) if STARTS[ids[i]] or ids[i - 1] in (CLS, UNK)] + [len(ids)]
    allowed = [w for w in range(len(starts) - 1) if ids[starts[w]] not in (CLS, SEP, UNK)]
    may_mask = set(allowed)
    left = int(np.ceil(config.mask_share * sum(starts[w + 1] - starts[w] for w in allowed)))
    cdf = truncated_geometric(config.geometric_p, config.max_span_words)

    def number(purpose, counter):
        return draw(stream(key, purpose), np.array([counter]))

    order = sorted(range(len(spans)), key=lambda i: (int(number(LISTED_ORDER, i)[0]) >> 40, i))
    untried = []
    for begin, end in (spans[i] for i in order):
        first = max(w for w in range(len(starts)) if starts[w] <= begin + 1)
        untried.append((first, max(w for w in range(len(starts)) if starts[w] <= end) + 1 - first))
    taken, targets, placed = [], [], 0
    while left > 0:
        length, tries = int(draw_lengths(cdf, number(LENGTH, placed))[0]), 0
        is_listed = unit(number(KIND, placed))[0] < 0.5
        while True:  # until a start is accepted, or the sequence is done
            if is_listed and untried:
                begin, wanted = untried.pop(0)
            else:
                begin = allowed[int(below(number(START, (placed << 32) + tries), np.array([len(allowed)]))[0])]
                wanted = length - tries // PATIENCE
                wanted = max(1, wanted) if placed == 0 else wanted
                tries += 1
                if wanted <= 0:
                    return sorted(targets)
            end, spent = begin, 0
            while end < begin + wanted and end < len(starts) - 1:
                size = starts[end + 1] - starts[end]
                if config.budget == "reference" and spent < left:
                    size = min(size, left - spent)
                if (spent + size > left and (placed > 0 or end > begin)) or spent >= left:
                    break
                end, spent = end + 1, spent + size
            clash = any(b <= end and e >= begin for b, e in taken)
            if end == begin and not clash:
                return sorted(targets)
            if clash or end == begin or not may_mask.issuperset(range(begin, end)):
                continue
            taken.append((begin, end))
            targets += range(starts[begin], starts[begin] + spent)
            left, placed = left - spent, placed + 1
            if end < begin + wanted:
                return sorted(targets)
            break
    return sorted(targets)


KINDS = {
    "plain": (0.15, [0.75, 0.15, 0.07, 0.03], 0.0),
    "one piece a word": (0.15, [1.0], 0.0),
    "long words and unknowns": (0.15, [0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05], 0.1),
    "crowded": (0.6, [0.75, 0.25], 0.02),
}


@pytest.mark.parametrize("budget", ["whole_words", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["geometric", "entities"])
def test_is_the_sequential_procedure_bit_by_bit(scheme, kind, budget):
    share, pieces, unknown = KINDS[kind]
    rng = np.random.default_rng(5)
    sizes = [*range(9), 20, 40, 80, 150, *rng.integers(300, 500, 6)]
    sequences = [make_sequence(rng, words, pieces, unknown) for words in sizes]
    sequences[-1][1:3] = 450  # a block that begins in the middle of a word
    spans = []
    for ids in sequences:
        begin = rng.integers(0, max(1, len(ids) - 2), min(12, max(0, len(ids) - 2)))
        spans.append(np.stack([begin, np.minimum(begin + rng.integers(1, 6, len(begin)), len(ids) - 2)], axis=1))
    masker = make_masker(scheme=scheme, mask_share=share, budget=budget)
    cu_seqlens = np.concatenate([[0], np.cumsum([len(ids) for ids in sequences])])
    indices = rng.integers(0, 10**9, len(sequences))
    batch = masker.mask(PackedBatch.of(np.concatenate(sequences), cu_seqlens), epoch=0, indices=indices, spans=spans)
    for row, ids in enumerate(sequences):
        inside = (batch.targets.positions_M >= cu_seqlens[row]) & (batch.targets.positions_M < cu_seqlens[row + 1])
        listed = spans[row].tolist() if scheme == "entities" else ()
        expected = sequential_targets(ids, masker.config, indices[row], listed)
        assert (batch.targets.positions_M[inside] - cu_seqlens[row]).tolist() == expected


def test_listed_spans_are_half_of_the_spans_where_there_are_enough():
    """Listed spans of two words, geometric spans of one word: the share of two-word spans shows the coin."""
    rng = np.random.default_rng(0)
    ids = np.full((2000, 302), SEP)
    ids[:, 0], ids[:, 1:-1] = CLS, rng.integers(5, 400, (2000, 300))
    pairs = np.stack([np.arange(0, 300, 3), np.arange(2, 302, 3)], axis=1)
    masker = make_masker(scheme="noun_phrases", max_span_words=1)
    edges = np.arange(2001) * 302
    batch = masker.mask(PackedBatch.of(ids.ravel(), edges), epoch=0, indices=np.arange(2000), spans=[pairs] * 2000)
    words = np.bincount(batch.targets.span_M)
    begins = batch.targets.left_S[words == 2] % 302
    assert (begins % 3 == 0).all()
    # 45 tokens a sequence, 1.5 a span: about 30 spans, of which at most the last two-word one was shortened
    assert abs((words == 2).mean() - 0.5) < 0.02


def test_without_listed_spans_the_linguistic_schemes_are_geometric():
    rng = np.random.default_rng(1)
    ids = make_sequence(rng, 100, [0.8, 0.2], 0.0)
    geometric = make_masker().mask(PackedBatch.of(ids, [0, len(ids)]), epoch=0, indices=[3])
    entities = make_masker(scheme="entities")
    none = entities.mask(PackedBatch.of(ids, [0, len(ids)]), epoch=0, indices=[3], spans=[np.zeros((0, 2), np.int32)])
    assert (geometric.packed.input_ids_T == none.packed.input_ids_T).all()
    with pytest.raises(UserError, match="sidecar"):
        entities.mask(PackedBatch.of(ids, [0, len(ids)]), epoch=0, indices=[3])


def test_a_listed_span_inside_a_word_takes_the_whole_word():
    ids = np.array([CLS, 10, 11, 401, 402, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, SEP])
    masker = make_masker(scheme="entities", mask_share=0.16)
    found = set()
    for index in range(50):
        batch = masker.mask(PackedBatch.of(ids, [0, len(ids)]), epoch=0, indices=[index], spans=[[[2, 3]]])
        found.add(tuple(batch.targets.positions_M))
    assert (3 - 1, 3, 4) in found


@pytest.mark.parametrize("pair", [(-1, 2), (3, 3), (2, 19)])
def test_a_span_outside_its_sequence_is_an_error(pair):
    ids = np.array([CLS, *range(10, 28), SEP])
    with pytest.raises(UserError, match="18 tokens"):
        make_masker(scheme="entities").mask(PackedBatch.of(ids, [0, 20]), epoch=0, indices=[0], spans=[[pair]])

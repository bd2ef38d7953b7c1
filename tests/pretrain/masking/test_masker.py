"""What masks are like, over 20,000 sequences of mixed lengths and words of one to five pieces."""

import pickle

import numpy as np
import pytest
from scipy.stats import chisquare

from pretrain.masking.counter_rng import below, draw, sequence_keys, stream, unit
from pretrain.masking.masker import MaskConfig, Masker, truncated_geometric
from pretrain.masking.span_sampler import LENGTH, draw_lengths
from spanbert.errors import UserError
from spanbert.model.batch import MaskedBatch, PackedBatch

CLS, SEP, UNK, MASK, VOCABULARY, FIRST_CONTINUATION = 1, 2, 3, 4, 3000, 2000
SPECIAL = np.array([0, CLS, SEP, UNK, MASK])
STARTS = np.arange(VOCABULARY) < FIRST_CONTINUATION
UNIGRAM = (1e6 / (np.arange(VOCABULARY) + 10)).astype(np.int64)
SEQUENCES = 20_000
LEVEL = 1e-3  # of every chi-square test here: with fixed seeds it passes or fails for good
SCHEMES = ("geometric", "whole_word", "subword", "mixed")


def make_masker(seed=3, sbo_positions=20, **settings):
    return Masker(
        MaskConfig(**settings),
        starts_word=STARTS,
        special_ids=SPECIAL,
        mask_id=MASK,
        unigram_counts=UNIGRAM,
        seed=seed,
        sbo_positions=sbo_positions,
    )


def make_batch(lengths, piece_shares, seed=0):
    """Packed ids and cu_seqlens; lengths count [CLS] and [SEP], and a word has 1 + i pieces by piece_shares[i]."""
    rng = np.random.default_rng(seed)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    pieces = 1 + rng.choice(len(piece_shares), size=cu_seqlens[-1], p=piece_shares)
    begins_word = np.zeros(cu_seqlens[-1] + len(piece_shares), bool)
    edges = np.cumsum(pieces)
    begins_word[edges[edges < len(begins_word)]] = True
    begins_word = begins_word[: cu_seqlens[-1]]
    ids = rng.integers(FIRST_CONTINUATION, VOCABULARY, cu_seqlens[-1], dtype=np.int32)
    ids[begins_word] = rng.integers(5, FIRST_CONTINUATION, begins_word.sum())
    ids[cu_seqlens[:-1]], ids[cu_seqlens[1:] - 1] = CLS, SEP
    second = cu_seqlens[:-1][np.asarray(lengths) > 2] + 1
    ids[second[second % 2 == 0]] = 7  # the other sequences begin in the middle of a word
    return ids, cu_seqlens


MIXED = np.random.default_rng(1).choice([3, 8, 20, 50, 128, 512], p=[0.05, 0.1, 0.2, 0.3, 0.2, 0.15], size=SEQUENCES)
PIECES = [0.76, 0.14, 0.06, 0.03, 0.01]


@pytest.fixture(scope="module")
def mixed():
    return make_batch(MIXED, PIECES)


@pytest.fixture(scope="module")
def masked(mixed):
    """Every scheme's and budget's masks of the 20,000 sequences."""
    made = {}
    for scheme in SCHEMES:
        for budget in ("whole_words", "reference"):
            masker = make_masker(scheme=scheme, budget=budget, replacement="uniform")
            made[scheme, budget] = masker.mask(PackedBatch.of(*mixed), epoch=0, indices=np.arange(SEQUENCES))
    return made


def per_sequence(batch: MaskedBatch) -> np.ndarray:
    row = np.searchsorted(batch.packed.cu_seqlens, batch.targets.positions_M, side="right") - 1
    return np.bincount(row, minlength=len(batch.packed.cu_seqlens) - 1)


def word_starts(ids, cu_seqlens):
    starts = STARTS[ids]
    starts[cu_seqlens[:-1] + 1] = True
    return starts


ALL = [(scheme, budget) for scheme in SCHEMES for budget in ("whole_words", "reference")]


@pytest.mark.parametrize("key", ALL)
def test_targets_boundaries_and_spans_fit_together(masked, mixed, key):
    ids = mixed[0]
    batch = masked[key]
    is_target = np.zeros(len(ids), bool)
    is_target[batch.targets.positions_M] = True
    assert (np.diff(batch.targets.positions_M) > 0).all()
    assert not np.isin(ids[is_target], SPECIAL).any()
    assert (batch.targets.ids_M == ids[is_target]).all()
    assert (batch.packed.input_ids_T[~is_target] == ids[~is_target]).all()
    assert (
        not is_target[batch.targets.left_S].any() and not is_target[batch.targets.right_S].any()
    )  # visible, never touching
    size = np.bincount(batch.targets.span_M)
    assert (batch.targets.right_S - batch.targets.left_S - 1 == size).all()
    assert (batch.targets.left_S[batch.targets.span_M] + 1 + batch.targets.offset_M == batch.targets.positions_M).all()
    assert (batch.targets.offset_M[batch.targets.sbo_K] < 20).all()
    assert len(batch.targets.sbo_K) == (batch.targets.offset_M < 20).sum()
    assert batch.packed.cu_seqlens.dtype == np.int32
    assert batch.packed.input_ids_T.dtype == np.int64 and all(field.dtype == np.int64 for field in batch.targets)


@pytest.mark.parametrize("scheme", ["geometric", "whole_word"])
def test_only_whole_words(masked, mixed, scheme):
    batch = masked[scheme, "whole_words"]
    starts = word_starts(*mixed)
    assert starts[batch.targets.left_S + 1].all() and starts[batch.targets.right_S].all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_share_and_budget(masked, mixed, scheme):
    ids, cu_seqlens = mixed
    batch = masked[scheme, "whole_words"]
    content = np.diff(cu_seqlens) - 2
    budget = np.ceil(0.15 * content)
    spent = per_sequence(batch)
    assert (spent >= 1).all()
    over = np.flatnonzero(spent > budget)
    starts = word_starts(ids, cu_seqlens)
    inside = np.isin(np.searchsorted(cu_seqlens, batch.targets.positions_M, side="right") - 1, over)
    assert starts[batch.targets.positions_M[inside]].sum() == len(over)  # over the budget: one word, alone
    assert 0.96 < spent.sum() / budget.sum() < 1.03  # a word that cannot be paid leaves something; a large word adds
    assert abs(spent[content == 510].sum() / content[content == 510].sum() - 0.15) < 0.0012
    assert (masked[scheme, "reference"].targets.ids_M.size) == budget.sum()
    assert (per_sequence(masked[scheme, "reference"]) == budget).all()


def test_longer_spans_than_the_position_table_have_no_sbo_tail(mixed):
    batch = make_masker(sbo_positions=2).mask(PackedBatch.of(*mixed), epoch=0, indices=np.arange(SEQUENCES))
    assert (batch.targets.sbo_K == np.flatnonzero(batch.targets.offset_M < 2)).all()


def test_spans_at_the_edges_can_do_without_sbo(mixed):
    ids = mixed[0]
    batch = make_masker(special_boundaries=False).mask(PackedBatch.of(*mixed), epoch=0, indices=np.arange(SEQUENCES))
    edge = np.isin(ids[batch.targets.left_S], [CLS]) | np.isin(ids[batch.targets.right_S], [SEP])
    assert edge.any()
    assert (batch.targets.sbo_K == np.flatnonzero((batch.targets.offset_M < 20) & ~edge[batch.targets.span_M])).all()


def test_span_lengths_follow_the_truncated_geometric():
    """20,000 sequences of 512 one-piece words. The lengths as drawn, up to the last span of each sequence, have the
    distribution exactly; what is in the batch are these, except that the last one may be shorter."""
    shares = np.diff(truncated_geometric(0.2, 10), prepend=0)
    assert abs(shares @ np.arange(1, 11) - 3.80) < 0.005  # the paper's mean
    histogram, shortened = np.zeros(10), 0
    for part in range(20):
        ids, cu_seqlens = make_batch(np.full(SEQUENCES // 20, 512), [1.0], seed=part)
        indices = np.arange(SEQUENCES // 20) + part * 10**6
        batch = make_masker().mask(PackedBatch.of(ids, cu_seqlens), epoch=2, indices=indices)
        row = batch.targets.left_S // 512
        spans = np.bincount(row)
        drawn = draw_lengths(
            truncated_geometric(0.2, 10),
            draw(stream(sequence_keys(3, 2, indices), LENGTH)[:, None], np.arange(spans.max())),
        )
        drawn[np.arange(spans.max()) >= spans[:, None]] = 0
        histogram += np.bincount(drawn.ravel(), minlength=11)[1:]
        placed = np.zeros_like(drawn)
        placed[row, np.arange(len(row)) - (np.cumsum(spans) - spans)[row]] = np.bincount(batch.targets.span_M)
        last = drawn[np.arange(len(spans)), spans - 1].copy()
        drawn[np.arange(len(spans)), spans - 1] = 77 - (drawn.sum(1) - last)
        assert (np.sort(placed, axis=1) == np.sort(drawn, axis=1)).all()
        shortened += (last > drawn[np.arange(len(spans)), spans - 1]).sum()
    assert 0.5 < shortened / SEQUENCES < 0.9
    assert chisquare(histogram, histogram.sum() * shares).pvalue > LEVEL


def test_span_lengths_in_the_batch_follow_it_where_the_end_of_the_budget_is_rare():
    """The same from the batch alone: in sequences of 12,000 tokens one span in about 370 is cut short."""
    ids, cu_seqlens = make_batch(np.full(150, 12_000), PIECES)
    batch = make_masker().mask(PackedBatch.of(ids, cu_seqlens), epoch=0, indices=np.arange(150))
    starts = word_starts(ids, cu_seqlens)
    words = np.bincount(batch.targets.span_M, weights=starts[batch.targets.positions_M]).astype(int)
    assert len(words) > 50_000
    expected = len(words) * np.diff(truncated_geometric(0.2, 10), prepend=0)
    assert chisquare(np.bincount(words, minlength=11)[1:], expected).pvalue > LEVEL


def test_every_place_away_from_the_edges_is_masked_equally_often():
    length = 90
    ids, cu_seqlens = make_batch(np.full(SEQUENCES, length), [1.0])
    for scheme in SCHEMES:
        batch = make_masker(scheme=scheme).mask(PackedBatch.of(ids, cu_seqlens), epoch=0, indices=np.arange(SEQUENCES))
        count = np.bincount(batch.targets.positions_M % length, minlength=length)[1:-1]
        middle = count[12:-12]
        deviation = np.sqrt(middle.mean() * (1 - middle.mean() / SEQUENCES))
        assert np.abs(middle - middle.mean()).max() < 4.5 * deviation
        assert count.min() > 0.02 * SEQUENCES
        thin = middle[::13]  # further apart than a span is long
        assert chisquare(thin).pvalue > LEVEL


def test_words_of_every_number_of_pieces_are_masked_equally_often(masked, mixed):
    """Starts are uniform over words, not over tokens: a word's chance does not grow with its pieces."""
    ids, cu_seqlens = mixed
    starts = word_starts(ids, cu_seqlens)
    starts[cu_seqlens[1:] - 1] = True
    first = np.flatnonzero(starts)
    pieces = np.diff(np.append(first, len(ids)))
    length = np.diff(cu_seqlens)[np.searchsorted(cu_seqlens, first, side="right") - 1]
    for scheme in ("geometric", "whole_word"):
        is_target = np.zeros(len(ids), bool)
        is_target[masked[scheme, "whole_words"].targets.positions_M] = True
        rate = [
            is_target[first[(pieces == n) & (length == 512) & ~np.isin(ids[first], SPECIAL)]].mean() for n in (1, 3)
        ]
        assert abs(rate[1] / rate[0] - 1) < 0.05


@pytest.mark.parametrize("scheme", ["geometric", "whole_word", "subword"])
def test_mask_random_kept_is_decided_once_per_unit(masked, mixed, scheme):
    """Every unit (span, word or token) is all [MASK], all random or all kept, in the shares 80 : 10 : 10."""
    batch = masked[scheme, "whole_words"]
    if scheme == "geometric":
        unit_of = batch.targets.span_M
    elif scheme == "whole_word":
        unit_of = np.cumsum(word_starts(*mixed)[batch.targets.positions_M]) - 1
    else:
        unit_of = np.arange(len(batch.targets.ids_M))
    stands = batch.packed.input_ids_T[batch.targets.positions_M]
    size = np.bincount(unit_of)
    hidden = np.bincount(unit_of, weights=stands == MASK)
    same = np.bincount(unit_of, weights=stands == batch.targets.ids_M)
    assert np.isin(hidden, [0]).sum() + (hidden == size).sum() == len(size)
    is_kept = same == size
    # of the random ones, 1 in 3,000 tokens is the same by chance: for units of two tokens and more, 1 in 9 million
    assert (same[~is_kept & (hidden == 0)] <= 1).all()
    counts = [(hidden == size).sum(), (~is_kept & (hidden == 0)).sum(), is_kept.sum()]
    assert chisquare(counts, len(size) * np.array([0.8, 0.1, 0.1])).pvalue > LEVEL


def test_each_sequence_of_mixed_has_the_very_mask_of_one_of_its_two_schemes(masked):
    """Targets and what stands in their places, exactly; half of 20,000 sequences each, and another half next epoch."""
    mixed_mask, edges = masked["mixed", "whole_words"], masked["mixed", "whole_words"].packed.cu_seqlens

    def differs_B(scheme):
        ids = masked[scheme, "whole_words"].packed.input_ids_T
        is_target = [
            np.bincount(masked[name, "whole_words"].targets.positions_M, minlength=len(ids))
            for name in (scheme, "mixed")
        ]
        differs_T = (ids != mixed_mask.packed.input_ids_T) | (is_target[0] != is_target[1])
        return np.add.reduceat(differs_T, edges[:-1]) > 0

    spans, tokens = ~differs_B("geometric"), ~differs_B("subword")
    assert (spans | tokens).all()
    told_apart = spans != tokens  # the masks of a few tiny sequences agree
    assert told_apart.mean() > 0.9
    assert abs(spans[told_apart].mean() - 0.5) < 4.5 * 0.5 / np.sqrt(told_apart.sum())


@pytest.mark.parametrize("replacement", ["unigram", "uniform"])
def test_random_tokens_follow_the_chosen_distribution(mixed, replacement):
    ids, cu_seqlens = mixed[0], mixed[1][:8001]
    masker = make_masker(replacement=replacement, scheme="subword")
    batch = masker.mask(PackedBatch.of(ids[: cu_seqlens[-1]], cu_seqlens), epoch=1, indices=np.arange(8000))
    stands = batch.packed.input_ids_T[batch.targets.positions_M]
    drawn = stands[(stands != MASK) & (stands != batch.targets.ids_M)]
    assert not np.isin(drawn, SPECIAL).any()
    weight = UNIGRAM.astype(float) if replacement == "unigram" else np.ones(VOCABULARY)
    weight[SPECIAL] = 0
    share = weight / weight.sum()
    original = np.bincount(batch.targets.ids_M, minlength=VOCABULARY) / len(batch.targets.ids_M)
    assert len(drawn) > 10_000
    expected = share * (1 - original)  # a draw that equals the original cannot be told from a kept token
    seen = np.bincount(drawn, minlength=VOCABULARY)
    kept = expected > 0
    assert chisquare(seen[kept], len(drawn) * expected[kept] / expected.sum()).pvalue > LEVEL


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mask_depends_on_seed_epoch_and_index_alone(scheme):
    lengths = MIXED[:300]
    ids, cu_seqlens = make_batch(lengths, PIECES)
    rng = np.random.default_rng(0)
    indices, epochs = rng.integers(0, 2**40, 300), rng.integers(0, 100, 300)
    masker = make_masker(scheme=scheme)
    whole = masker.mask(PackedBatch.of(ids, cu_seqlens), epoch=epochs, indices=indices)

    order = rng.permutation(300)
    shuffled = np.concatenate([ids[cu_seqlens[i] : cu_seqlens[i + 1]] for i in order])
    edges = np.concatenate([[0], np.cumsum(lengths[order])])
    worker = pickle.loads(pickle.dumps(masker))
    again = worker.mask(PackedBatch.of(shuffled, edges), epoch=epochs[order], indices=indices[order])
    for place, i in enumerate(order):
        part = slice(cu_seqlens[i], cu_seqlens[i + 1])
        assert (again.packed.input_ids_T[edges[place] : edges[place + 1]] == whole.packed.input_ids_T[part]).all()
        if place < 40:
            alone = masker.mask(
                PackedBatch.of(ids[part], [0, lengths[i]]), epoch=int(epochs[i]), indices=indices[i : i + 1]
            )
            assert (alone.packed.input_ids_T == whole.packed.input_ids_T[part]).all()

    def overlap(other):
        return np.isin(whole.targets.positions_M, other.targets.positions_M).mean()

    assert overlap(again.__class__(*masker.mask(PackedBatch.of(ids, cu_seqlens), epoch=epochs, indices=indices))) == 1
    assert overlap(masker.mask(PackedBatch.of(ids, cu_seqlens), epoch=epochs + 1, indices=indices)) < 0.2
    assert overlap(masker.mask(PackedBatch.of(ids, cu_seqlens), epoch=epochs, indices=indices + 1)) < 0.2
    assert (
        overlap(make_masker(seed=4, scheme=scheme).mask(PackedBatch.of(ids, cu_seqlens), epoch=epochs, indices=indices))
        < 0.2
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "content, expected",
    [
        ([], 0),
        ([UNK], 0),
        ([10], 1),
        ([10, 11], 1),
        ([10] + [2500] * 60, 61),
        ([UNK, 10, UNK], 1),
        ([UNK] * 200 + [10], 1),
    ],
)
def test_tiny_sequences(scheme, content, expected):
    ids = np.array([CLS, *content, SEP])
    for index in range(30):
        batch = make_masker(scheme=scheme).mask(PackedBatch.of(ids, [0, len(ids)]), epoch=0, indices=[index])
        allowed = {"subword": {10}, "mixed": {10, 61}}.get(scheme, {expected}) if expected == 61 else {expected}
        assert len(batch.targets.positions_M) in allowed
        assert not np.isin(batch.targets.ids_M, SPECIAL).any()


def test_an_empty_batch_gives_empty_arrays():
    for scheme in (*SCHEMES, "entities"):
        empty = np.zeros(0, np.int64)
        batch = make_masker(scheme=scheme).mask(
            PackedBatch.of(empty, np.zeros(1, np.int32)), epoch=0, indices=empty, spans=[]
        )
        assert batch.packed.tokens == batch.packed.sequences == 0
        assert [len(field) for field in batch.targets] == [0] * 7


def test_the_arguments_stay_as_they_are(mixed):
    ids, cu_seqlens = mixed[0][: mixed[1][50]].copy(), mixed[1][:51].copy()
    make_masker().mask(PackedBatch.of(ids, cu_seqlens), epoch=0, indices=np.arange(50))
    assert (ids == mixed[0][: mixed[1][50]]).all() and (cu_seqlens == mixed[1][:51]).all()


def test_what_cannot_be_masked_is_refused():
    for settings in ({"mask_share": 0.0}, {"mask_share": 1.0}, {"geometric_p": 0.0}, {"max_span_words": 0}):
        with pytest.raises(UserError):
            MaskConfig(**settings)
    config = MaskConfig()
    facts = {"starts_word": STARTS, "special_ids": SPECIAL, "mask_id": MASK, "seed": 0}
    with pytest.raises(UserError, match="vocabulary of 3000"):
        Masker(config, unigram_counts=UNIGRAM[:-1], **facts)
    with pytest.raises(UserError, match="count"):
        Masker(config, unigram_counts=np.zeros(VOCABULARY), **facts)
    with pytest.raises(ValueError, match="index per sequence"):
        make_masker().mask(PackedBatch.of([CLS, 9, SEP], [0, 3]), epoch=0, indices=[1, 2])


def test_random_numbers_are_splitmix64_and_even():
    first = draw(np.array([1234567], np.uint64), np.arange(1, 4))
    assert first.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    keys = sequence_keys(-1, 2**70, np.arange(100_000))
    assert len(np.unique(keys)) == 100_000
    bits = draw(stream(keys, 5), 7)
    ones = [((bits >> np.uint64(i)) & np.uint64(1)).mean() for i in range(64)]
    assert np.abs(np.array(ones) - 0.5).max() < 0.007
    assert chisquare(np.bincount(below(bits, 10))).pvalue > LEVEL
    assert chisquare(np.histogram(unit(bits), bins=50, range=(0, 1))[0]).pvalue > LEVEL


@pytest.mark.parametrize("change", [{"scheme": "spans"}, {"budget": "exact"}, {"replacement": "random"}])
def test_a_choice_that_does_not_exist_is_refused(change):
    """The command line checks its choices; a config made in Python with a misspelt scheme masked geometric spans."""
    with pytest.raises(UserError, match="expected one of"):
        MaskConfig(**change)


# --- annotated words ---------------------------------------------------------------------------------------------


def annotate(ids, cu_seqlens):
    """The same words as annotations: no id continues a word any more, and spans hold those of several tokens."""
    starts = word_starts(ids, cu_seqlens)
    starts[cu_seqlens[1:] - 1] = True
    flat = np.where(ids >= FIRST_CONTINUATION, ids - FIRST_CONTINUATION + 5, ids)
    spans = []
    for begin, end in zip(cu_seqlens[:-1] + 1, cu_seqlens[1:] - 1, strict=True):
        edges = np.append(np.flatnonzero(starts[begin:end]), end - begin)
        pairs = np.stack([edges[:-1], edges[1:]], axis=1)
        spans.append(pairs[np.diff(edges) > 1].astype(np.int32))
    return flat, spans


@pytest.mark.parametrize("budget", ["whole_words", "reference"])
@pytest.mark.parametrize("scheme", ["geometric", "whole_word", "mixed"])
def test_annotated_words_are_masked_as_the_tokenizers_are(scheme, budget):
    """Token for token: it makes no difference whether ids or annotations say where words begin."""
    ids, cu_seqlens = make_batch(MIXED[:2000], PIECES)
    flat, spans = annotate(ids, cu_seqlens)
    options = {"epoch": 1, "indices": np.arange(2000)}
    expected = make_masker(scheme=scheme, budget=budget).mask(PackedBatch.of(ids, cu_seqlens), **options)
    annotated = make_masker(scheme=scheme, budget=budget, words="annotated")
    masked = annotated.mask(PackedBatch.of(flat, cu_seqlens), spans=spans, **options)
    assert (masked.targets.positions_M == expected.targets.positions_M).all()
    assert (masked.targets.span_M == expected.targets.span_M).all()
    characters = make_masker(scheme=scheme, budget=budget).mask(
        PackedBatch.of(flat, cu_seqlens), spans=spans, **options
    )
    assert (
        len(masked.targets.positions_M) != len(characters.targets.positions_M)
        or (masked.targets.positions_M != characters.targets.positions_M).any()
    )


def test_an_annotation_takes_the_whole_words_it_touches_and_no_special():
    """Tokens: a ##a b ##b ##b [UNK] c d; annotations from ##a to b, and from [UNK] to c."""
    ids = np.array([CLS, 10, 2010, 11, 2011, 2012, UNK, 12, 13, SEP])
    masker = make_masker(scheme="whole_word", words="annotated", mask_share=0.01, replacement="uniform")
    seen = set()
    for epoch in range(60):
        spans = [np.array([[1, 3], [5, 7]])]
        batch = masker.mask(PackedBatch.of(ids, np.array([0, 10])), epoch=epoch, indices=np.array([0]), spans=spans)
        seen.add(tuple(batch.targets.positions_M))
    assert seen == {(1, 2, 3, 4, 5), (7,), (8,)}


def test_annotated_words_want_annotations():
    batch, options = (
        PackedBatch.of(np.array([CLS, 10, 11, SEP]), np.array([0, 4])),
        {"epoch": 0, "indices": np.array([0])},
    )
    with pytest.raises(UserError, match=r"words annotated needs spans, .*--spans"):
        make_masker(words="annotated").mask(batch, **options)
    with pytest.raises(UserError, match=r"span \[1, 3\] is empty or outside its sequence of 2 tokens"):
        make_masker(words="annotated").mask(batch, spans=[np.array([[1, 3]])], **options)
    for scheme in ("subword", "entities", "noun_phrases"):
        with pytest.raises(UserError, match=f"scheme {scheme} does not mask by words"):
            MaskConfig(scheme=scheme, words="annotated")
    with pytest.raises(UserError, match="mask words 'characters': expected one of tokenizer, annotated"):
        MaskConfig(words="characters")

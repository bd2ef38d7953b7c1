"""Tag schemes, decoding and scores: against conlleval's rules written out, against seqeval, against enumeration."""

import itertools

import numpy as np
import pytest
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_scores
from seqeval.scheme import IOB2, IOBES

from finetune.records import MalformedRecord
from finetune.tasks.ner.decode import TagDecoder
from finetune.tasks.ner.metrics import entity_metrics
from finetune.tasks.ner.records import Span
from finetune.tasks.ner.schemes import Entity, Tag, check_sentence, entities_of, scheme_of, tags_of

ENTITIES = [Entity(0, 2, "PER"), Entity(2, 3, "PER"), Entity(4, 5, "LOC"), Entity(6, 9, "ORG")]
WRITTEN = {
    "IOB1": "I-PER I-PER B-PER O I-LOC O I-ORG I-ORG I-ORG",
    "IOB2": "B-PER I-PER B-PER O B-LOC O B-ORG I-ORG I-ORG",
    "BIOES": "B-PER E-PER S-PER O S-LOC O B-ORG I-ORG E-ORG",
    "BILOU": "B-PER L-PER U-PER O U-LOC O B-ORG I-ORG L-ORG",
}


def tags(text: str) -> list[Tag]:
    return [Tag.of(tag) for tag in text.split()]


@pytest.mark.parametrize("scheme", WRITTEN)
def test_all_schemes_say_the_same_and_are_told_apart(scheme: str) -> None:
    assert entities_of(tags(WRITTEN[scheme])) == ENTITIES
    assert scheme_of([tags(WRITTEN[scheme])]) == {"BILOU": "BIOES"}.get(scheme, scheme)
    assert tags_of(ENTITIES, 9) == WRITTEN["IOB2"].split()


def test_neighbours_of_another_type_are_two_entities_without_b() -> None:
    assert entities_of(tags("O I-A I-B I-B O I-A")) == [Entity(1, 2, "A"), Entity(2, 4, "B"), Entity(5, 6, "A")]
    assert scheme_of([tags("O I-A I-A B-A")]) == "IOB1"
    assert scheme_of([tags("O I-A"), tags("B-A")]) == "IOB2"


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("X-PER", "unknown tag scheme"),
        ("PER", "unknown tag scheme"),
        ("B", "unknown tag scheme"),
        ("B-", "empty class"),
    ],
)
def test_a_tag_of_no_scheme(tag: str, message: str) -> None:
    with pytest.raises(MalformedRecord, match=message):
        Tag.of(tag)


def test_an_entity_across_the_end_of_a_sentence() -> None:
    check_sentence(tags("I-A O"), Tag.of("I-A"), "IOB1")  # there it is how entities begin
    check_sentence(tags("I-A O"), Tag.of("O"), "IOB2")
    for words, before, scheme in (("I-A O", "B-A", "IOB2"), ("E-A O", "I-A", "BIOES"), ("O B-A", "O", "BIOES")):
        with pytest.raises(MalformedRecord, match="an entity across a sentence's end"):
            check_sentence(tags(words), Tag.of(before), scheme)


def conlleval(sentence: list[str]) -> set[tuple[int, int, str]]:
    """Chunks by the subroutines startOfChunk and endOfChunk of conlleval, for the letters B, I, E and O."""
    found, begun = set(), None
    before, kind_before = "O", ""
    for place, text in enumerate([*sentence, "O"]):
        tag, _, kind = text.partition("-")
        ends = (before + tag) in ("BB", "BO", "IB", "IO", "EE", "EI", "EO") or (before != "O" and kind_before != kind)
        starts = (before + tag) in ("BB", "IB", "OB", "OI", "EE", "EI", "OE") or (tag != "O" and kind_before != kind)
        if begun is not None and ends:
            found.add((begun, place, kind_before))
            begun = None
        if starts and tag != "O":
            begun = place
        before, kind_before = tag, kind
    return found


def test_entities_are_those_of_conlleval_and_of_seqeval_on_random_tags() -> None:
    """2,000 sentences of tags in any order, legal or not."""
    draw = np.random.default_rng(0)
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    sentences = [[names[k] for k in draw.integers(0, 5, draw.integers(1, 12))] for _ in range(2000)]
    ours = [[Span(*entity) for entity in entities_of([Tag.of(tag) for tag in sentence])] for sentence in sentences]
    assert [set(map(tuple, one)) for one in ours] == [conlleval(sentence) for sentence in sentences]
    for _ in range(20):
        chosen, others = draw.permutation(2000)[:100], draw.permutation(2000)[:100]
        golds, predicted = [], []
        for a, b in zip(chosen, others):  # seqeval wants sentences of one length
            length = min(len(sentences[a]), len(sentences[b]))
            golds.append(sentences[a][:length])
            predicted.append([g if draw.random() < 0.5 else p for g, p in zip(sentences[a], sentences[b])][:length])
        metrics = entity_metrics(*[
            [[Span(*e) for e in entities_of([Tag.of(tag) for tag in one])] for one in side] for side in (golds, predicted)
        ])  # fmt: skip
        precision, recall, f1, count = precision_recall_fscore_support(golds, predicted, average=None, zero_division=0)
        for n, kind in enumerate("AB"):
            assert metrics[f"precision/{kind}"] == pytest.approx(100 * precision[n])
            assert metrics[f"recall/{kind}"] == pytest.approx(100 * recall[n])
            assert metrics[f"f1/{kind}"] == pytest.approx(100 * f1[n])
            assert metrics[f"entities/{kind}"] == count[n]
        assert metrics["f1"] == pytest.approx(100 * f1_score(golds, predicted, zero_division=0))


@pytest.mark.parametrize(("letters", "scheme"), [("BI", IOB2), ("BIES", IOBES)])
def test_decoded_entities_score_as_in_seqevals_strict_mode(letters: str, scheme: type) -> None:
    """1,000 sentences decoded from random logits: there is nothing among them that a strict reading would drop."""
    draw = np.random.default_rng(1)
    names = ["O", *(f"{letter}-{kind}" for kind in "AB" for letter in letters)]
    decoder = TagDecoder(names)
    golds, predicted, spans = [], [], ([], [])
    for _ in range(1000):
        logits = draw.normal(size=(int(draw.integers(1, 9)), len(names)))
        for texts, side, noise in ((golds, spans[0], 0.0), (predicted, spans[1], 0.7)):
            path = decoder.best(logits + noise * draw.normal(size=logits.shape))
            texts.append([names[label] for label in path])
            side.append([Span(*entity) for entity in entities_of([decoder.tags[label] for label in path])])
    metrics = entity_metrics(*spans)
    precision, recall, f1, _ = strict_scores(golds, predicted, average="micro", scheme=scheme, zero_division=0)
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == pytest.approx(
        (100 * precision, 100 * recall, 100 * f1)
    )
    assert 20 < metrics["f1"] < 90


def test_scores_by_hand() -> None:
    golds = [[Span(0, 4, "PER"), Span(5, 9, "LOC")], [Span(0, 3, "LOC")]]
    found = [[Span(0, 4, "PER"), Span(5, 8, "LOC")], [Span(0, 3, "PER")]]  # right; a boundary; a type
    metrics = entity_metrics(golds, found)
    assert [metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx([100 / 3] * 3)
    assert (metrics["precision/PER"], metrics["recall/PER"], metrics["f1/LOC"]) == (50, 100, 0)
    assert entity_metrics([[]], [[]])["f1"] == 0


@pytest.mark.parametrize(
    "names", [["O", "B-A", "I-A", "B-B", "I-B"], ["O", "B-A", "I-A", "E-A", "S-A"], ["O", "I-A", "I-B"]]
)
def test_the_best_sequence_and_its_entities_by_enumeration(names: list[str]) -> None:
    """Of all 5⁴ sequences, the legal ones alone: the most probable, and the share in which an entity stands."""
    draw = np.random.default_rng(2)
    decoder = TagDecoder(names)

    def legal(path: tuple[int, ...]) -> bool:
        spelled = [names[label] for label in path]
        if "E-A" in names:
            return all(
                (a in ("B-A", "I-A")) == (b in ("I-A", "E-A")) for a, b in itertools.pairwise(["O", *spelled, "O"])
            )
        if "B-A" not in names:
            return True
        return all(not b.startswith("I-") or a[1:] == b[1:] for a, b in itertools.pairwise(["O", *spelled]))

    for _ in range(30):
        logits = 2 * draw.normal(size=(4, len(names)))
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        weight = {
            path: float(np.prod(p[np.arange(4), path]))
            for path in itertools.product(range(len(names)), repeat=4)
            if legal(path)
        }
        best = max(weight, key=weight.__getitem__)
        assert tuple(decoder.best(logits)) == best
        found = decoder.decode(logits)
        assert [one.entity for one in found] == entities_of([decoder.tags[label] for label in best])
        for entity, probability in found:
            holding = [w for path, w in weight.items() if entity in entities_of([decoder.tags[n] for n in path])]
            assert probability == pytest.approx(sum(holding) / sum(weight.values()))


def test_extreme_logits_leave_probabilities_finite() -> None:
    decoder = TagDecoder(["O", "B-A", "I-A"])
    (found,) = decoder.decode(np.array([[-5e4, 0, 5e4], [0, -5e4, 5e4], [5e4, 0, 0]]))
    assert found.entity == Entity(0, 2, "A")
    assert 0 <= found.probability <= 1
    assert decoder.decode(np.zeros((0, 3))) == []

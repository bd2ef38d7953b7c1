"""Entity-level precision, recall and F1: an entity is right when its boundaries and its type are (conlleval)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from finetune.tasks.ner.records import Span


def entity_metrics(golds: Sequence[Collection[Span]], predictions: Sequence[Collection[Span]]) -> dict[str, float]:
    """In percent, over all entities (micro-averaged), and for each type under "f1/TYPE" and so on; counts beside them.

    A share of nothing (no entity predicted, or none there) is 0, as in conlleval.
    """
    gold, predicted, right = Counter[str](), Counter[str](), Counter[str]()
    for wanted, found in zip(golds, predictions, strict=True):
        gold.update(span.type for span in wanted)
        predicted.update(span.type for span in found)
        right.update(span.type for span in set(wanted) & set(found))
    metrics = _shares(right.total(), predicted.total(), gold.total())
    metrics |= {"entities": gold.total(), "predicted": predicted.total(), "right": right.total()}
    for kind in sorted(gold.keys() | predicted.keys()):
        shares = _shares(right[kind], predicted[kind], gold[kind])
        metrics |= {f"{name}/{kind}": value for name, value in shares.items()}
        metrics[f"entities/{kind}"] = gold[kind]
    return metrics


def _shares(right: int, predicted: int, gold: int) -> dict[str, float]:
    return {
        "precision": 100.0 * right / predicted if predicted else 0.0,
        "recall": 100.0 * right / gold if gold else 0.0,
        "f1": 200.0 * right / (predicted + gold) if predicted + gold else 0.0,
    }


def describe(metrics: Mapping[str, float]) -> str:
    """All entities in the first line, then a line for each type."""
    lines = [
        f"precision {metrics['precision']:.2f}   recall {metrics['recall']:.2f}   F1 {metrics['f1']:.2f}   "
        f"({metrics['entities']:,} entities, {metrics['predicted']:,} predicted)"
    ]
    kinds = [key.removeprefix("f1/") for key in metrics if key.startswith("f1/")]
    width = max(map(len, kinds), default=0)
    for kind in kinds:
        precision, recall, f1, count = (metrics[f"{name}/{kind}"] for name in ("precision", "recall", "f1", "entities"))
        lines.append(f"  {kind:<{width}}  P {precision:6.2f}   R {recall:6.2f}   F1 {f1:6.2f}   ({count:,})")
    return "\n".join(lines)

"""The official scores of the two data sets that most work on relations reports.

SemEval-2010 Task 8   macro-averaged F1 over the relations without ``Other``, direction taken into account: a right relation
                      in the wrong direction counts as predicted and as gold, not as right (Hendrickx et al. 2010)
TACRED                micro-averaged precision, recall and F1 over all pairs, where ``no_relation`` is no answer (Zhang et
                      al. 2017)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from finetune.tasks.classification.metrics import confusion

#: Names of the class that says that there is none of the relations.
NONE = ("no_relation", "Other")
DIRECTED = re.compile(r"(.+)\(e[12],e[12]\)")


def relation_metrics(gold_E: np.ndarray, predicted_E: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """In percent, and how many: accuracy; precision, recall and micro F1; macro F1 over relations, and each one's."""
    table = confusion(gold_E, predicted_E, len(labels)).astype(np.float64)
    names = [found[1] if (found := DIRECTED.fullmatch(label)) else label for label in labels]
    counted = np.array([label not in NONE for label in labels])
    right, golds, predicted = np.diag(table), table.sum(1), table.sum(0)
    metrics = {"accuracy": 100.0 * right.sum() / table.sum()}
    # as TACRED's script has it, nothing predicted is predicted without a mistake
    all_right, all_predicted, all_golds = right[counted].sum(), predicted[counted].sum(), golds[counted].sum()
    metrics["precision"] = 100.0 * all_right / all_predicted if all_predicted else 100.0
    metrics["recall"] = 100.0 * all_right / all_golds if all_golds else 0.0
    metrics["micro_f1"] = 200.0 * all_right / (all_predicted + all_golds) if all_right else 0.0
    by_name = {}
    for name in sorted({name for name, counts in zip(names, counted, strict=True) if counts}):
        mine = np.array([one == name for one in names])
        share = predicted[mine].sum() + golds[mine].sum()
        by_name[f"f1/{name}"] = 200.0 * right[mine].sum() / share if share else 0.0
    metrics["macro_f1"] = sum(by_name.values()) / len(by_name) if by_name else 0.0
    return {key: float(value) for key, value in (metrics | by_name).items()} | {"total": int(table.sum())}


def describe(metrics: Mapping[str, float], directed: bool) -> str:
    """directed: SemEval's score first, otherwise TACRED's."""
    macro = f"macro F1 {metrics['macro_f1']:.2f}"
    micro = (
        f"precision {metrics['precision']:.2f}   recall {metrics['recall']:.2f}   micro F1 {metrics['micro_f1']:.2f}"
    )
    scores = f"{macro} (official)   {micro}" if directed else f"{micro} (official)   {macro}"
    lines = [f"{scores}   accuracy {metrics['accuracy']:.2f}   ({metrics['total']:,} pairs)"]
    kinds = [key.removeprefix("f1/") for key in metrics if key.startswith("f1/")]
    width = max(map(len, kinds), default=0)
    return "\n".join(lines + [f"  {kind:<{width}}  F1 {metrics[f'f1/{kind}']:6.2f}" for kind in kinds])

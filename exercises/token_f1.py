"""Exercise: what an answer is worth beside a gold one, as the SQuAD 1.1 script counts.

The project's own: token_f1 in finetune/tasks/qa/metrics.py.
"""

from __future__ import annotations


def token_f1(prediction: str, gold: str) -> float:
    """The harmonic mean of precision and recall over the words of the two answers; 0 where they share no word.

    Both are normalised first, in this order: lower-case; delete the ASCII punctuation (string.punctuation; the letters
    around it close up); replace the words a, an, the by a space; split at white space.

    A word counts as often as it stands in both: "to be or not to be" shares "to" twice with "to and to", once with "to".
    Precision is the number of shared words by the number of the prediction's words, recall by the number of the gold's.

    Hints: collections.Counter has an operator for what two bags of words share. The harmonic mean of p and r is
    2 p r / (p + r). Think of a prediction without any word.
    """
    raise NotImplementedError

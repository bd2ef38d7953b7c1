"""Exercise: the span-boundary objective's head, as the paper writes it (§3.2).

The project's own: SBOHead in spanbert/model/heads.py, which never builds the concatenation.
"""

from __future__ import annotations

from torch import Tensor

from spanbert.model.batch import Targets
from spanbert.model.heads import SBOHead


def sbo_features(head: SBOHead, hidden_TH: Tensor, targets: Targets[Tensor]) -> Tensor:
    """What is multiplied with the word embeddings, (K, H): for each of the K tokens that have an SBO target

        h0 = [x_left ; x_right ; p_offset]      h1 = LN(GELU(W1 h0 + b1))      y = LN(GELU(W2 h1 + b2))

    hidden_TH: the encoder's output for all T tokens of the batch. targets: see spanbert/model/batch.py. `left_S` and
    `right_S` are the places in T of the two visible tokens around each span; `span_M` and `offset_M` say of each masked
    token in which span it is and at which place in it; `sbo_K` which of the masked tokens have an SBO target at all.

    The head has the parameters: `position` (the table of p), W1 in three parts, `left`, `right` and `from_position`
    (which carries b1), then `norm1`, `dense2` (W2 and b2), `norm2`.

    Hints: select the K targets first, then gather. W1 is the three weights side by side, torch.cat(…, dim=1).
    """
    raise NotImplementedError

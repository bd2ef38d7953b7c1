"""`pytest exercises`: the reader's functions. `pytest exercises -k token_f1` for one of them."""

import pytest

from exercises import checks
from exercises.online_softmax import online_attention
from exercises.owned_range import owned_ranges
from exercises.sbo_features import sbo_features
from exercises.span_sampler import sample_spans
from exercises.token_f1 import token_f1

EXERCISES = {
    "span_sampler": (checks.check_span_sampler, sample_spans),
    "sbo_features": (checks.check_sbo_features, sbo_features),
    "owned_range": (checks.check_owned_range, owned_ranges),
    "token_f1": (checks.check_token_f1, token_f1),
    "online_softmax": (checks.check_online_softmax, online_attention),
}


@pytest.mark.parametrize("name", EXERCISES)
def test_exercise(name):
    message = checks.verdict(*EXERCISES[name], f"exercises/{name}.py")
    if message:
        pytest.fail(message, pytrace=False)

"""Messages for users stay readable whatever they quote."""

from pathlib import Path

import pytest

from spanbert.checkpoint.model_folder import encoder_config
from spanbert.errors import LONGEST_MESSAGE, UserError


def test_a_very_long_value_is_cut_in_the_message():
    """A config.json whose model_type was a number of 4,200 digits filled the screen with it. Found by the fuzzer."""
    with pytest.raises(UserError) as refused:
        encoder_config({"model_type": 10**4200}, str(Path("m/config.json")), {})
    message = str(refused.value)
    assert len(message) <= LONGEST_MESSAGE + 3
    assert message.startswith("m/config.json: model_type is 1000")
    assert message.endswith("this encoder is that of BERT with 'bert'")

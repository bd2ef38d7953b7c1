"""Precisions side by side: the same windows, each precision its own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.finetuning.precisions import PrecisionsConfig, measure
from spanbert.device import has_int8_units
from spanbert.errors import UserError
from spanbert.model.quantized import kernels_run
from spanbert.weights import bundled_path

FILE = Path(__file__).parents[3] / "sample" / "squad-dev.json.gz"


@pytest.mark.skipif(
    not (has_int8_units() and kernels_run()), reason="this processor or build of PyTorch has no int8 products"
)
def test_logits_are_compared_with_those_of_the_first_precision():
    tokens, rows = measure(PrecisionsConfig(FILE, bundled_path("scratch"), questions=3, rounds=1, batch_tokens=600))
    assert tokens > 100
    assert [row.precision for row in rows] == ["fp32", "bf16", "int8"]
    assert rows[0].difference == 0 < rows[1].difference < rows[2].difference < 1


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="--rounds"):
        measure(PrecisionsConfig(FILE, rounds=0))

"""Schemathesis asks what the OpenAPI document allows and what it forbids, and holds the answers against it."""

from __future__ import annotations

import pytest

pytest.importorskip("schemathesis", reason="needs schemathesis")

import hypothesis
import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.web.conftest import instant


@pytest.mark.slow
def test_the_document_keeps_its_word(live):
    schema = schemathesis.openapi.from_url(f"{live(instant)}/openapi.json")
    seen = []
    for found in schema.get_all_operations():
        operation = found.ok()
        seen.append(operation.label)

        # What a schema cannot say (a text that is blank for this model, one of three fields) may be refused with 422.
        @hypothesis.given(operation.as_strategy())
        @hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
        def hold(case):
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        hold()
    assert "POST /v1/answers" in seen and len(seen) >= 10

"""Schemathesis asks what the OpenAPI document allows and what it forbids, and holds the answers against it."""

from __future__ import annotations

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

import hypothesis

from tests.web.conftest import instant


@pytest.fixture
def api(live):
    return schemathesis.openapi.from_url(f"{live(instant)}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@pytest.mark.slow
@schema.parametrize()
@hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_the_document_keeps_its_word(case):
    case.call_and_validate()

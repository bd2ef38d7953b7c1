"""The slow tests' shares of the time there is, and a summary of what all cases came to."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz.cases import OUTCOMES, SLOW_SECONDS, listed


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """For one of the tests of this session that ask for it."""
    sharing = [item for item in request.session.items if "seconds" in getattr(item, "fixturenames", ())]
    return SLOW_SECONDS / len(sharing)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases of each format ended how, and of all."""
    if not OUTCOMES:
        return
    terminalreporter.section("broken inputs")
    for name, outcomes in OUTCOMES.items():
        terminalreporter.write_line(f"{name}: {listed(outcomes)}")
    total = sum(OUTCOMES.values(), Counter())
    terminalreporter.write_line(f"{total.total():,} in all: {listed(total)}")

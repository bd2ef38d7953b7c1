"""Running seeded cases of one format: how they end is counted, and none may end otherwise, hang or fill the memory.

The slow tests share SPANBERT_FUZZ_SECONDS, 900 if it is not given; SPANBERT_FUZZ_SEED is the seed of all. At the end
of a run, how many cases of each format ended how is printed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import math
import os
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from unittest import mock

from spanbert.errors import UserError

C = TypeVar("C")

SEED = int(os.environ.get("SPANBERT_FUZZ_SEED", "0"))
SLOW_SECONDS = float(os.environ.get("SPANBERT_FUZZ_SECONDS", "900"))
LEAST_AN_HOUR = 3000  # cases that a slow test tries, whatever its format
LONGEST = 60  # seconds for one case; then the process ends, with every thread's stack
MOST_FAILURES = 10  # of different origins, after which a format is left
#: What ended how in this session: format → outcomes.
OUTCOMES: dict[str, Counter[str]] = {}
MOST_MEMORY = 1 << 30  # bytes of address space that a format's cases may take beyond what there was


def fuzz(
    name: str,
    cases: int | None,
    make: Callable[[random.Random], C],
    read: Callable[[C], str],
    seed: int = SEED,
    *,
    seconds: float = math.inf,
    printable: bool = False,
) -> Counter[str]:
    """``read`` what ``make`` gives for each of so many seeds, or for as many as ``seconds`` allow; print and return how
    often which outcome.

    read: returns a word for what came of it. A UserError is an outcome, too: one line. Anything else that is
    raised is a failure, whose message says how to have the same case again; those of the same origin are told once.
    printable: messages have nothing in them that
    a terminal would not show as it is.
    """
    outcomes = OUTCOMES.setdefault(name, Counter())
    outcomes.clear()
    failures: dict[tuple[str, str], str] = {}
    begun = time.monotonic()
    with bounded_memory(MOST_MEMORY), mock.patch("os.fsync"):  # nothing here has to outlive a power cut
        for number in itertools.count() if cases is None else range(cases):
            if time.monotonic() - begun > seconds or len(failures) == MOST_FAILURES:
                break
            content = make(random.Random(f"{seed} {number}"))
            faulthandler.dump_traceback_later(LONGEST, exit=True, file=sys.__stderr__)
            try:
                outcomes[outcome_of(read, content, printable=printable)] += 1
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a panic of a library in Rust is no Exception
                outcomes["failed"] += 1
                told = f"seed {seed}, case {number}: {type(error).__name__}: {error}: {repr(content)[:3000]}"
                failures.setdefault(
                    (type(error).__name__, origin(error)), f"{told}\n{''.join(traceback.format_exception(error))}"
                )
            finally:
                faulthandler.cancel_dump_traceback_later()
    print(f"{name}: {listed(outcomes)}")
    assert not failures, f"{outcomes['failed']:,} cases failed, of {len(failures)} origins:\n" + "\n".join(
        failures.values()
    )
    assert math.isinf(seconds) or outcomes.total() >= seconds * LEAST_AN_HOUR / 3600 - 1, "too slow"
    return outcomes


def origin(error: BaseException) -> str:
    """File and line where an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def listed(outcomes: Counter[str]) -> str:
    """``1,200 read whole, 30 refused``."""
    return ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))


def outcome_of(read: Callable[[C], str], content: C, *, printable: bool) -> str:
    """The word that ``read`` gives, or "refused" for a UserError whose message is one."""
    try:
        return read(content)
    except UserError as error:
        check_message(str(error), printable=printable)
        return "refused"


def check_message(message: str, *, printable: bool) -> None:
    """One line of a bearable length; what no terminal takes, ``spanbert.terminal`` shows."""
    assert message.strip(), "an empty message"
    assert "\n" not in message, repr(message)
    assert message.isprintable() or not printable, repr(message)
    assert len(message) < 3000, f"a message of {len(message)} characters: {message[:500]!r}"


@contextlib.contextmanager
def bounded_memory(most: int) -> Iterator[None]:
    """A MemoryError for whoever asks for more address space than there is now and ``most`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

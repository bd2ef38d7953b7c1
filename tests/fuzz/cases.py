"""Running seeded cases of one format: how they end is counted, and none may end otherwise, hang or fill the memory.

SPANBERT_FUZZ_CASES is the number of cases of each format in the slow tests, SPANBERT_FUZZ_SEED the seed of all.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from unittest import mock

from spanbert.errors import UserError

C = TypeVar("C")

SEED = int(os.environ.get("SPANBERT_FUZZ_SEED", "0"))
SLOW_CASES = int(os.environ.get("SPANBERT_FUZZ_CASES", "3000"))
LONGEST = 60  # seconds for one case; then the process ends, with every thread's stack
MOST_MEMORY = 1 << 30  # bytes of address space that a format's cases may take beyond what there was


def fuzz(
    name: str,
    cases: int,
    make: Callable[[random.Random], C],
    read: Callable[[C], str],
    seed: int = SEED,
    *,
    printable: bool = False,
) -> Counter[str]:
    """``read`` what ``make`` gives for each of so many seeds; print and return how often which outcome.

    read: returns a word for what came of it. A UserError is an outcome, too: one line. Anything else that is
    raised is a failure, whose message says how to have the same case again. printable: messages have nothing in them that
    a terminal would not show as it is.
    """
    outcomes: Counter[str] = Counter()
    with bounded_memory(MOST_MEMORY), mock.patch("os.fsync"):  # nothing here has to outlive a power cut
        for number in range(cases):
            content = make(random.Random(f"{seed} {number}"))
            faulthandler.dump_traceback_later(LONGEST, exit=True, file=sys.__stderr__)
            try:
                outcomes[read(content)] += 1
            except UserError as error:
                check_message(str(error), f"seed {seed}, case {number}", printable=printable)
                outcomes["refused"] += 1
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a panic of a library in Rust is no Exception
                raise AssertionError(
                    f"seed {seed}, case {number}: {type(error).__name__}: {error}: {repr(content)[:3000]}"
                ) from error
            finally:
                faulthandler.cancel_dump_traceback_later()
    print(f"{name}: {', '.join(f'{count:,} {outcome}' for outcome, count in sorted(outcomes.items()))}")
    return outcomes


def check_message(message: str, where: str, *, printable: bool) -> None:
    """One line of a bearable length; what no terminal takes, ``spanbert.terminal`` shows."""
    assert message.strip(), f"{where}: an empty message"
    assert "\n" not in message, f"{where}: {message!r}"
    assert message.isprintable() or not printable, f"{where}: {message!r}"
    assert len(message) < 3000, f"{where}: a message of {len(message)} characters: {message[:500]!r}"


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

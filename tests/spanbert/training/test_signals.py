"""A signal asks for the end of the loop; the command then ends with the status that shells expect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import spanbert.cli
from spanbert.training.signals import STOP_SIGNALS, Stopped, StopRequest, voted, votes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_stop_signal_only_asks(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        stop.raise_if_requested()
        os.kill(os.getpid(), number)
        assert stop.requested and stop.number == number
        with pytest.raises(Stopped) as stopped:
            stop.raise_if_requested()
    assert stopped.value.status == 128 + number and signal.getsignal(number) == before


@pytest.mark.parametrize("number", [None, *STOP_SIGNALS])
def test_ranks_agree_on_a_signal_that_one_of_them_got(number):
    ranks = [votes(None), votes(number), votes(None)]
    assert voted([sum(asked) for asked in zip(*ranks, strict=True)]) == number


def test_a_second_interrupt_does_not_wait():
    with StopRequest(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_nohup_stays_in_force():
    """Under nohup a closed terminal must not end training."""
    program = (
        "import os, signal\nfrom spanbert.training.signals import StopRequest\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with StopRequest() as stop:\n    os.kill(os.getpid(), signal.SIGHUP)\n    assert not stop.requested\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_stopped_command_has_a_status_of_its_own(monkeypatch):
    """It used to be 0, and `pretrain && finetune` went on with half a model."""
    import types

    from spanbert.training.list_runs import RunsConfig

    def stage(config: RunsConfig) -> None:
        raise Stopped(signal.SIGTERM)

    stage.__annotations__ = {"config": RunsConfig, "return": None}
    monkeypatch.setattr(spanbert.cli.importlib, "import_module", lambda name: types.SimpleNamespace(run_runs=stage))
    assert spanbert.cli.main(["runs"]) == 143

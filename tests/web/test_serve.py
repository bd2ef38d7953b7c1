"""The command itself: what it refuses to start with, what a signal does to it, and model processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from spanbert.cli import main
from spanbert.device import has_int8_units
from spanbert.errors import UserError
from spanbert.model.quantized import kernels_run
from spanbert.weights import bundled_path
from tests.web.conftest import CANAL
from tests.web.test_problems import in_background, until
from web import workers
from web.config import Limits, ServeConfig
from web.queue import Stopped
from web.reader import Refused, Work, load_reader
from web.workers import Forget, ModelProcess, model_processes

ROOT = Path(__file__).parents[2]
GOOD = {"questions": ["When was the canal opened?"], "text": CANAL}
#: Keeps a model busy for more than a second
LONG = {
    "questions": ["When did nothing of note happen?"] * 32,
    "text": "Nothing of note happened on that day either. " * 300 + CANAL,
    "passages": 20,
}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"host": "0.0.0.0"}, "token"),
        ({"host": "192.168.1.5"}, "token"),
        ({"host": "example.org"}, "token"),
        ({"port": 70000}, "port"),
        ({"workers": 0}, "workers"),
        ({"limits": Limits(deadline=0)}, "deadline"),
        ({"limits": Limits(deadline=float("nan"))}, "deadline"),
        ({"token_file": Path("/nowhere/token")}, "token-file"),
    ],
)
def test_what_it_does_not_start_with(monkeypatch, options, words):
    monkeypatch.delenv("SPANBERT_TOKEN", raising=False)
    with pytest.raises(UserError, match=words):
        config = ServeConfig(**options)
        config.check()
        config.token()


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "with some spaces in it", "tök" * 10])
def test_weak_tokens_are_refused(monkeypatch, token):
    monkeypatch.setenv("SPANBERT_TOKEN", token)
    with pytest.raises(UserError, match="at least 16"):
        ServeConfig(host="0.0.0.0").check()


def test_a_token_lets_it_listen_elsewhere(monkeypatch, tmp_path):
    monkeypatch.delenv("SPANBERT_TOKEN", raising=False)
    (tmp_path / "token").write_text("correct-horse-battery\n")
    config = ServeConfig(host="0.0.0.0", token_file=tmp_path / "token", allowed_hosts=("Qa.Example.org",))
    config.check()
    assert config.token() == "correct-horse-battery"
    assert config.host_names() == {"127.0.0.1", "::1", "localhost", "qa.example.org"}


def test_the_command_line_refuses(monkeypatch, capsys):
    monkeypatch.delenv("SPANBERT_TOKEN", raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "--token-file" in capsys.readouterr().err


@pytest.fixture
def started(tmp_path) -> Iterator:
    """started(arguments …) → (process, address), from `spanbert serve` in a process of its own."""
    running = []

    def make(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "spanbert", "serve", "--port", "0", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        running.append(process)
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address, line + process.stdout.read()
        return process, address.group()

    yield make
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_port_that_is_taken_is_told_at_once(started, capsys):
    _, address = started()
    assert main(["serve", "--port", address.rpartition(":")[2]]) == 2
    assert "cannot listen" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_finishes_what_is_running(started):
    """The request that is being answered gets its answer, a new one gets none, and the status says SIGTERM."""
    process, address = started()
    thread, results = in_background(httpx2.post, f"{address}/v1/answers", json=LONG, timeout=120)
    time.sleep(0.5)
    assert thread.is_alive(), "it has to be running when the signal comes: make the text longer"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(httpx2.TransportError):
        httpx2.post(f"{address}/v1/answers", json=GOOD)
    thread.join()
    assert results[0].status_code == 200 and results[0].json()["results"][0]["answers"]
    assert process.wait(30) == 143


@pytest.fixture(scope="module")
def processes(reader) -> Iterator[list[ModelProcess]]:
    with model_processes(reader, None, 2) as started:
        yield started


@pytest.mark.slow
def test_model_processes_answer_as_the_model_does(processes, reader):
    work = [Work(("When was the canal opened?", "Who dug it?"), text=CANAL), Work(("why " * 70,), text=CANAL)]
    expected = reader(work, lambda: False)
    for process in processes:
        found = process(work, lambda: False)
        assert found[0] == expected[0]
        assert isinstance(found[1], Refused) and found[1].args == expected[1].args


@pytest.mark.slow
@pytest.mark.skipif(
    not (has_int8_units() and kernels_run()), reason="this processor or build of PyTorch has no int8 products"
)
def test_model_processes_answer_in_int8_as_the_model_does():
    reader = load_reader(bundled_path("scratch"), device="cpu", precision="int8")
    work = [Work(("When was the canal opened?", "Who dug it?"), text=CANAL)]
    with model_processes(reader, None, 1) as (process,):
        assert process(work, lambda: False) == reader(work, lambda: False)


@pytest.mark.slow
def test_model_processes_map_one_file(processes):
    """The weights are no process's own memory: both have the same file mapped."""
    for process in processes:
        process([Work(("Who?",), text=CANAL)], lambda: False)
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        assert "spanbert-serve-" in mapped and "model.safetensors" in mapped


@pytest.mark.slow
def test_a_model_process_that_dies_fails_its_batch_alone(processes):
    process = processes[0]
    work = [Work(("When was the canal opened?",), text=CANAL)]
    os.kill(process.pid, signal.SIGKILL)
    with contextlib.suppress(RuntimeError):  # the batch that it dies on fails, if it was not seen to be dead before
        process(work, lambda: False)
    found = process(work, lambda: False)
    assert found[0][0].answers[0].text == "17 November 1869"


@pytest.mark.slow
def test_a_model_process_stops_when_it_is_told(processes):
    process = processes[1]
    long = [Work(("When was it built?",) * 8, text="The bridge was built in 1894. " * 300)]
    with pytest.raises(Stopped):
        process(long, lambda: True)
    assert process([Work(("When was the canal opened?",), text=CANAL)], lambda: False)[0][0].answers[0].text


@pytest.mark.slow
def test_workers_on_the_command_line(started):
    process, address = started("--workers", "2")
    responses = [httpx2.post(f"{address}/v1/answers", json=GOOD, timeout=120) for _ in range(3)]
    assert [one.json()["results"][0]["answers"][0]["text"] for one in responses] == ["17 November 1869"] * 3
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def children(pid: int) -> set[int]:
    """Processes of which it is the parent."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(status.parent.name))
    return found


def is_running(pid: int) -> bool:
    """Not so once it has ended, even where nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def weights_aside() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("spanbert-serve-*"))


@pytest.mark.slow
def test_sigterm_ends_the_workers_after_their_answers(started):
    """The signal goes to all processes, as init systems send it: the running request is answered, and nothing is left.

    SIGTERM killed the server within uvicorn, before it took its files away: each end left a copy of the weights behind.
    """
    before = weights_aside()
    process, address = started("--workers", "2")
    first = httpx2.post(f"{address}/v1/answers", json=GOOD, timeout=60)
    assert first.json()["results"][0]["answers"][0]["text"] == "17 November 1869"
    assert httpx2.post(f"{address}/v1/answers", json=GOOD, timeout=60).status_code == 200
    kin = children(process.pid)
    (aside,) = weights_aside() - before
    assert len([pid for pid in kin if str(aside) in Path(f"/proc/{pid}/maps").read_text()]) == 2
    thread, results = in_background(httpx2.post, f"{address}/v1/answers", json=LONG, timeout=60)
    time.sleep(0.3)
    assert thread.is_alive(), "it has to be running when the signal comes: make the text longer"
    for pid in (process.pid, *kin):
        os.kill(pid, signal.SIGTERM)
    thread.join()
    assert results[0].status_code == 200 and len(results[0].json()["results"]) == 32
    assert process.wait(20) == 143
    until(lambda: not any(map(is_running, kin)))  # multiprocessing's own one notices a moment later
    assert not aside.exists()


@pytest.mark.slow
def test_a_model_process_that_was_ended_is_not_started_again(reader):
    """A batch that came after the end started a process for which nobody was left to end it."""
    with model_processes(reader, None, 1) as (process,):
        work = [Work(("When was the canal opened?",), text=CANAL)]
        assert process(work, lambda: False)
        pid = process.pid
    with pytest.raises(Stopped):
        process(work, lambda: False)
    assert process.pid == pid and not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_processes_that_were_started_end_when_another_cannot_be(reader, monkeypatch):
    made = []

    def start(recipe):
        if made:
            raise OSError("too many processes")
        made.append(ModelProcess(recipe))
        return made[0]

    monkeypatch.setattr(workers, "ModelProcess", start)
    with pytest.raises(OSError, match="too many"), model_processes(reader, None, 2):
        pass
    assert not Path(f"/proc/{made[0].pid}").exists()


@pytest.mark.slow
def test_forgetting_does_not_stop_what_is_running(processes):
    """To a process that has a batch, whatever it is sent means stop: what is to be forgotten waits for the end of it."""
    process = processes[0]
    work = Work(tuple(LONG["questions"]), text=LONG["text"], passages=20)
    assert process([Work(("Who?",), text=CANAL)], lambda: False)
    thread, results = in_background(process, [work], lambda: False)
    time.sleep(0.3)
    assert thread.is_alive()
    process.forget(["some"])
    assert process._forgotten == {"some"}
    thread.join()
    assert len(results[0][0]) == 32 and not process._forgotten
    process.forget(["others"])
    assert not process._forgotten
    assert process([Work(("When was the canal opened?",), text=CANAL)], lambda: False)[0][0].answers[0].text


def test_a_model_process_forgets_between_batches(monkeypatch):
    seen = []

    class Recorder:
        def __call__(self, batch, stop):
            seen.append((batch, stop()))
            return ["answer"]

        def forget(self, documents):
            seen.append(set(documents))

    class Made:
        def reader(self):
            return Recorder()

    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
    ours, theirs = multiprocessing.Pipe()
    life = threading.Thread(target=workers._read, args=(Made(), theirs))
    life.start()
    for message in (Forget(frozenset("ab")), ["batch"]):
        ours.send(message)
    assert ours.poll(5) and ours.recv() == ["answer"]
    for message in (None, Forget(frozenset("c"))):
        ours.send(message)
    ours.close()
    life.join(5)
    assert seen == [{"a", "b"}, (["batch"], False), {"c"}]

"""Model processes: each reads for one thread of the queue, over weights and index that are memory-mapped once for all.

The server's process keeps documents, queue and counters, so that every request sees the same ones; a model process is given
a batch through a pipe and gives back its answers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from finetune.predict import Machine
from finetune.retrieval.opensearch import open_retriever
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.task import QASettings
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.model.quantized import quantize_encoder
from spanbert.tokenizer.wordpiece import Tokenizer
from web.queue import Stopped
from web.reader import Found, Reader, Work

POLL = 0.05  # seconds between two looks at whether a batch is still wanted


@dataclass(frozen=True)
class Recipe:
    """All that a process needs to read as the first one does."""

    weights: Path
    folder: Path
    index: str | None
    config: EncoderConfig
    backend: str
    settings: QASettings
    machine: Machine
    threads: int

    def reader(self) -> Reader:
        """The model over the mapped weights: no process has a copy of its own on a CPU, but of int8 weights, as packed."""
        torch.set_num_threads(self.threads)
        with torch.device("meta"):
            model = SpanBertForQuestionAnswering(self.config, self.backend)
            if self.machine.precision == "int8":
                quantize_encoder(model.encoder)
        model.load_state_dict(load_file(self.weights), assign=True)
        model.requires_grad_(False)
        tokenizer = Tokenizer.load(self.folder)
        answerer = QuestionAnswerer(model, tokenizer, self.settings, self.machine, self.folder)
        return Reader(answerer, None if self.index is None else open_retriever(self.index))


@contextlib.contextmanager
def model_processes(reader: Reader, index: str | None, count: int) -> Iterator[list[ModelProcess]]:
    """``count`` processes that read as ``reader`` does; they end with the block."""
    answerer = reader.answerer
    assert answerer.folder is not None
    with tempfile.TemporaryDirectory(prefix="spanbert-serve-") as folder:
        weights = Path(folder) / "model.safetensors"
        save_file({name: tensor.cpu().contiguous() for name, tensor in answerer.model.state_dict().items()}, weights)
        recipe = Recipe(
            weights=weights,
            folder=answerer.folder,
            index=index,
            config=answerer.model.config,
            backend=answerer.model.encoder.backend,
            settings=answerer.settings,
            machine=answerer.machine,
            threads=max(1, len(os.sched_getaffinity(0)) // count),
        )
        with contextlib.ExitStack() as ends:  # those that were started, too, where a later one cannot be
            processes = []
            for _ in range(count):
                processes.append(ModelProcess(recipe))
                ends.callback(processes[-1].end)
            yield processes


@dataclass(frozen=True)
class Forget:
    """Tells a process to keep nothing of these uploaded documents."""

    documents: frozenset[str]


class ModelProcess:
    """A runner for ``BatchQueue``: one process, which is started again when it dies."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._ended = False
        self._forgotten: set[str] = set()  # what the process has not been told yet
        self._asking = threading.Lock()  # held while the process has a batch: what it is sent then means stop
        self._change = threading.Lock()  # ended by the server's thread while one of the queue starts or asks it
        self._start()

    def __call__(self, batch: Sequence[Work], stop: Callable[[], bool]) -> list[list[Found] | Exception]:
        """As ``Reader``. A process that dies on a batch fails that batch alone."""
        try:
            with self._asking:
                return self._ask(batch, stop)
        finally:
            self.forget(())  # what was to be forgotten meanwhile

    def forget(self, documents: Iterable[str]) -> None:
        """As ``Reader``: at once where the process does nothing, otherwise after what it does."""
        with self._change:
            self._forgotten.update(documents)
        if self._forgotten and self._asking.acquire(blocking=False):
            try:
                self._pipe.send(self._to_forget())
            except OSError:  # a process that has died holds nothing
                pass
            finally:
                self._asking.release()

    def _to_forget(self) -> Forget:
        with self._change:
            message = Forget(frozenset(self._forgotten))
            self._forgotten.clear()
        return message

    def _ask(self, batch: Sequence[Work], stop: Callable[[], bool]) -> list[list[Found] | Exception]:
        if not self._process.is_alive():
            self._start()
        pipe = self._pipe
        asked_to_stop = False
        try:
            pipe.send(self._to_forget())
            pipe.send(list(batch))
            while not pipe.poll(POLL):
                if not asked_to_stop and stop():
                    pipe.send(None)
                    asked_to_stop = True
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            with self._change:
                self._stop()
            raise RuntimeError(f"a model process died with status {self._process.exitcode}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def end(self) -> None:
        """For good: what it is asked from now on fails."""
        with self._change:
            self._ended = True
            self._stop()

    def _stop(self) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()  # it ignores SIGTERM
            self._process.join()

    def _start(self) -> None:
        with self._change:
            if self._ended:
                raise Stopped
            context = multiprocessing.get_context("spawn")  # a fork would copy locks that another thread holds
            pipe, theirs = context.Pipe()
            with theirs:
                process = context.Process(target=_read, args=(self.recipe, theirs), daemon=True)
                process.start()
            self._pipe, self._process = pipe, process


def _read(recipe: Recipe, pipe: Connection) -> None:
    """The process's life: a batch, its answers, until the pipe is closed. None asks to stop, and may come too late."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # terminals and init systems send them to all;
        signal.signal(number, signal.SIG_IGN)  # the server says when it is over
    reader = recipe.reader()
    while True:
        try:
            batch = pipe.recv()
        except (EOFError, OSError):
            return
        if isinstance(batch, Forget):
            reader.forget(batch.documents)
        if not isinstance(batch, list):
            continue
        answer: object
        try:
            answer = reader(batch, pipe.poll)
        except Stopped:
            answer = Stopped()
        except Exception as error:
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:  # the server is gone
            return

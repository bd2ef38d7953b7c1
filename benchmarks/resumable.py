"""What every comparison of many runs needs: folders that belong to one process at a time, runs that go on where they stopped,
and results that are kept as JSON and not made again."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from spanbert.config import save_json, to_dict
from spanbert.errors import UserError
from spanbert.locks import try_lock
from spanbert.training.run_folder import check_same_config
from spanbert.training.signals import Stopped

Name = TypeVar("Name", bound=str)


def begin(config: Any, may_differ: tuple[str, ...]) -> None:
    """Keep the comparison's options in its folder, or see that they are the ones it was begun with.

    Raises UserError when an option differs that is not among ``may_differ``.
    """
    if (config.output / "config.json").exists():
        check_same_config(config.output, config, may_differ)
    else:
        save_json(to_dict(config), config.output / "config.json")


def run_folders(output: Path, arms: Iterable[Name], seeds: Iterable[int]) -> Iterator[tuple[Name, int, Path]]:
    """All runs, one seed after the other: a whole comparison stands as early as can be."""
    for seed in seeds:
        for name in arms:
            yield name, seed, output / "runs" / name / f"seed-{seed}"


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Whether the folder is ours, rather than that of another process at work in it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = try_lock(folder / ".lock")
    try:
        yield handle is not None
    finally:
        if handle is not None:
            handle.close()


def finish(command: Callable[[Any], None], options: PretrainConfig | FinetuneConfig) -> Path:
    """Begin, or resume, the run in ``options.output`` until it has left its model → the model's folder."""
    finished = options.output / "model"
    if not finished.is_dir():
        try:
            command(dataclasses.replace(options, resume=(options.output / "config.json").exists()))
        except Stopped as stopped:
            raise KeyboardInterrupt from stopped
    if not finished.is_dir():  # a signal asked it to stop, and it did so politely
        raise KeyboardInterrupt
    return finished


@contextlib.contextmanager
def said_in(path: Path) -> Iterator[None]:
    """What is printed meanwhile goes to the end of this file."""
    log = path.open("a", encoding="utf-8")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def kept(folder: Path, name: str, compute: Callable[[Path], Mapping[str, Any]]) -> None:
    """Write what ``compute(folder)`` gives to folder/result.json, with the seconds that it took, the processor's too.

    Nothing is done where that file is, or another process is at work. What is printed goes to folder/log.txt; the folders
    that it made are removed.
    """
    with claim(folder) as ours:
        if not ours or (folder / "result.json").exists():
            return
        print(f"{time.strftime('%H:%M:%S')} {name}: see {folder / 'log.txt'}", flush=True)
        wall, cpu = time.perf_counter(), time.process_time()
        with said_in(folder / "log.txt"):
            result = dict(compute(folder))
        took = {
            "seconds": round(time.perf_counter() - wall, 1),
            "processor_seconds": round(time.process_time() - cpu, 1),
        }
        save_json(result | took, folder / "result.json")
        for part in folder.iterdir():
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)


def exit_status(function: Callable[[], None]) -> int:
    """Run a command → 0, 2 after a UserError, 130 when it was asked to stop."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's word for Ctrl-C
    try:
        function()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if multiprocessing.parent_process() is None:
            print("stopped; the same command resumes", file=sys.stderr)
        return 130
    return 0

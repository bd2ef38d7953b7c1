"""Comparisons of many short runs that may be stopped at any time: what is finished is kept as JSON and not done again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from finetune.config import FinetuneConfig
from spanbert.config import save_json, to_dict
from spanbert.errors import UserError
from spanbert.locks import try_lock
from spanbert.training.run_folder import check_same_config
from spanbert.training.signals import Stopped

C = TypeVar("C", bound=FinetuneConfig)


def begin(config: Any, may_differ: tuple[str, ...]) -> None:
    """Keep the comparison's options in its folder, or see that they are the ones it was begun with.

    Raises UserError when an option differs that is not among ``may_differ``.
    """
    if (config.output / "config.json").exists():
        check_same_config(config.output, config, may_differ)
    else:
        save_json(to_dict(config), config.output / "config.json")


def kept(folder: Path, name: str, compute: Callable[[Path], Mapping[str, Any]]) -> None:
    """Write what ``compute(folder)`` gives to folder/result.json, with the seconds that it took, the processor's too.

    Nothing is done where that file is, or another process is at work. What is printed goes to folder/log.txt; the folders
    that it made are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = try_lock(folder / ".lock")
    if handle is None:
        return
    with handle:
        if (folder / "result.json").exists():
            return
        print(f"{time.strftime('%H:%M:%S')} {name}: see {folder / 'log.txt'}", flush=True)
        wall, cpu = time.perf_counter(), time.process_time()
        log = (folder / "log.txt").open("a", encoding="utf-8")
        with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            result = dict(compute(folder))
        took = {
            "seconds": round(time.perf_counter() - wall, 1),
            "processor_seconds": round(time.process_time() - cpu, 1),
        }
        save_json(result | took, folder / "result.json")
        for part in folder.iterdir():
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)


def finish(command: Callable[[C], None], options: C) -> Path:
    """Begin, or resume, the run in ``options.output`` until it has left its model → the model's folder."""
    finished = options.output / "model"
    if not finished.is_dir():
        try:
            command(replace(options, resume=(options.output / "config.json").exists()))
        except Stopped as stopped:
            raise KeyboardInterrupt from stopped
    return finished


def exit_status(function: Callable[[], None]) -> int:
    """Of a benchmark's process: 2 for the user's mistake, 130 when it was stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's word for Ctrl-C
    try:
        function()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    return 0

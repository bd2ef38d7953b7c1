"""The one resume policy of all training stages: what a run may continue from, and what it must not overwrite.

Without --resume an existing run is refused, and with it a folder that holds none. A run continues with the options and
the data that it was started with, from its newest whole checkpoint; newer ones, which are damaged, are set aside. The
run is locked before any of this is read, so nobody else can change it in between.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from spanbert.checkpoint.store import CheckpointStore
from spanbert.config import read_json_object, save_json
from spanbert.distributed import Group, alone
from spanbert.errors import UserError
from spanbert.files import atomic_folder, remove_leftovers
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import RunFolder, check_same_config, hold_run, refuse_existing_run

DATA = "data.json"


class RunStart:
    """Where a run begins. Made first, before the data is read: it refuses what cannot be; nothing is written yet.

    Args:
        may_differ: options that a resumed run may change.
        resume: continue the run at ``output``; optional: where there is none yet, start one all the same.
        before: continue from the newest whole checkpoint before this step, only to look: the run is not locked, and
            must not be opened.
        keep_last: checkpoints to keep besides the best; 2 are kept even for 1, or there would be none to go back to
            from a newest one that turns out damaged.
        complete: whether a run that has no checkpoint any more is complete; asked while the run is held.

    Attributes: resumes; checkpoint, the newest whole one (None: from the beginning); complete; store.
    All ranks make one. Raises UserError, on all of them.
    """

    def __init__(
        self,
        output: Path,
        config: Any,
        may_differ: tuple[str, ...],
        *,
        resume: bool,
        optional: bool = False,
        before: int | None = None,
        keep_last: int = 2,
        complete: Callable[[], bool] = lambda: False,
        group: Group | None = None,
    ):
        self.output, self.config, self.may_differ, self.before = output, config, may_differ, before
        self.group = group or alone()
        self.store = CheckpointStore(output / "checkpoints", max(keep_last, 2), self.group)
        self._lock: IO[str] | None = None
        self._run: RunFolder | None = None
        self.resumes, self.checkpoint, self.complete = self.group.on_main(
            lambda: self._look(resume, optional, complete)
        )

    def _look(self, resume: bool, optional: bool, complete: Callable[[], bool]) -> tuple[bool, Path | None, bool]:
        if not resume:
            refuse_existing_run(self.output)
            return False, None, False
        if not (self.output / "config.json").exists():
            if optional:
                return False, None, False
            raise UserError(f"--resume: {self.output} holds no run; leave --resume out to start one")
        if self.before is None:
            self._lock = hold_run(self.output)
        try:
            check_same_config(self.output, self.config, self.may_differ)
            checkpoint = self.store.newest_whole(before=self.before)
        except BaseException:
            self.close()
            raise
        if checkpoint is None and complete():
            with contextlib.suppress(OSError):  # nothing else comes here any more
                remove_leftovers(self.output)
            return True, None, True
        if checkpoint is None:
            earlier = "earlier " if self.before else ""
            print(f"{self.output} has no {earlier}checkpoint: starting from the beginning", flush=True)
        return True, checkpoint, False

    def check_data(self, sha256: str, data: Path) -> None:
        """Raises UserError when the run that resumes was started with other data than ``sha256`` identifies."""
        self.group.on_main(lambda: self._check_data(sha256, data))

    def _check_data(self, sha256: str, data: Path) -> None:
        identity = self.output / DATA
        if self.resumes and identity.exists() and read_json_object(identity, "a hash").get("sha256") != sha256:
            raise UserError(f"{data} is not the data that {self.output} was started with: resume with that")

    def open(self, step: int, sha256: str, data: Path, tokenizer: Tokenizer | None = None) -> RunFolder | None:
        """Start the run's folder, or open it again at ``step`` → the folder on the main rank, None on the others.

        sha256: identifies ``data`` (``data_identity``); tokenizer: to keep a copy of. All ranks call it.
        Raises UserError, on all of them.
        """
        self.group.on_main(lambda: self._open(step, sha256, data, tokenizer))
        return self._run

    def _open(self, step: int, sha256: str, data: Path, tokenizer: Tokenizer | None) -> None:
        assert self.before is None, "a run that is only looked at is not opened"
        self._check_data(sha256, data)
        if self.resumes:
            self._run = RunFolder.reopen(self.output, self.config, self.may_differ, step, self._lock)
            self._lock = None  # the folder's now
            self.store.set_aside_after(self.checkpoint)
        else:
            self._run = RunFolder.start(self.output, self.config)
        if tokenizer is not None and not (self.output / "tokenizer").exists():
            with atomic_folder(self.output / "tokenizer") as folder:
                tokenizer.save(folder)
        save_json({"path": str(data), "sha256": sha256}, self.output / DATA)

    def close(self) -> None:
        """Let go of the run, whatever happened."""
        if self._lock is not None:
            self._lock.close()
        if self._run is not None:
            self._run.close()


def data_identity(*parts: str | bytes | memoryview | Any) -> str:
    """A hash of what makes two sets of data the same to a run: strings, bytes, arrays, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else memoryview(part).cast("B"))
    return digest.hexdigest()

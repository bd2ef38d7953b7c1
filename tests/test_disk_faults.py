"""Every command, while the disk fails it: each opening, reading, writing, syncing and renaming in turn.

Whatever fails: one sentence and an exit status that is not 0, or success with a whole output, for tidying and extras may
fail. No process is left, and beside finished outputs only names of ``LEFT_OVER`` are. The same command then comes to its
end, so nothing half-written was taken for whole, and leaves nothing but finished outputs.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.retrieval.confidence import load_calibration
from finetune.retrieval.index import Index
from spanbert.checkpoint.model_folder import read_model, save_model
from spanbert.checkpoint.store import find_model
from spanbert.cli import main
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining, SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer

ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT", "ENAMETOOLONG", "ENOTDIR", "EISDIR", "EMFILE", "ESTALE")
#: What a command that ends well may leave: names that its next start clears.
LEFT_OVER = re.compile(r"\..+\.([0-9]+\.(partial|old)|preparing(\.lock)?)")
#: A sample of the calls for the fast tests: fractions of the way through a command.
PLACES = (0.25, 0.85)
READER = {"window": 48, "stride": 12, "max_question": 16, "null_threshold": 0.0}
TEXT = "\n\n".join(f"Anna saw the {a} fox and the {b} dog near a house.\nIt was {c}." for a in ("red", "old", "wet")
                   for b in ("big", "sad") for c in ("late", "good", "cold"))  # fmt: skip


class Faults:
    """Counts the file system's calls on paths below ``roots``, and lets call number ``fail_at`` fail."""

    def __init__(self, *roots: Path, fail_at: int = 0, error: str = "EIO"):
        self.roots = tuple(f"{root}{os.sep}" for root in roots)
        self.fail_at, self.error, self.calls = fail_at, getattr(errno, error), 0

    def meet(self, path: Any) -> None:
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        if not os.fsdecode(path).startswith(self.roots):
            return
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(self.error, os.strerror(self.error), os.fsdecode(path))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any = ".", *rest: Any, **options: Any) -> Any:
                self.meet(path)
                return function(path, *rest, **options)

            return call

        opened = io.open

        def open_file(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            self.meet(path)
            handle = opened(path, mode, *rest, **options)
            return FaultyFile(handle, path, self) if not isinstance(path, int) else handle

        patch.setattr(io, "open", open_file)
        patch.setattr(builtins, "open", open_file)
        for name in ("open", "replace", "rename", "mkdir", "fsync", "unlink", "listdir", "scandir"):
            patch.setattr(os, name, guarded(getattr(os, name)))


class FaultyFile:
    """An open file whose reading and writing may fail, too."""

    def __init__(self, handle: Any, path: Any, faults: Faults):
        self._handle, self._path, self._faults = handle, path, faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._handle, name)
        if name in ("read", "readinto", "readline", "write", "readlines"):
            self._faults.meet(self._path)
        return found

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._handle)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands take: texts, a tokenizer, a corpus, models, labelled texts and questions, an index."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.txt").write_text(TEXT)
    (folder / "labelled.tsv").write_text(
        "text\tlabel\n" + "".join(f"the {word} fox\t{word}\n" for word in ("red", "old") * 4)
    )
    assert main([*f"tokenizer train {folder}/text.txt --output {folder}/tokenizer --vocab-size 90".split()]) == 0
    assert main(words("prepare", folder, folder)) == 0
    tokenizer = Tokenizer.load(folder / "tokenizer")
    torch.manual_seed(0)
    shape = EncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, sbo_position_size=4,
    )  # fmt: skip
    save_model(folder / "model", SpanBertForPretraining(shape), tokenizer)
    save_model(folder / "reader", SpanBertForQuestionAnswering(shape), tokenizer, {"qa": READER})
    (folder / "questions.json").write_text(json.dumps(questions()))
    (folder / "documents").mkdir()
    for number in range(3):
        (folder / "documents" / f"{number}.txt").write_text(TEXT)
    assert main(words("finetune classify", folder, folder)) == 0
    (folder / "finetune").rename(folder / "classifier")
    assert main(words("index", folder, folder)) == 0
    return folder


def questions() -> dict[str, Any]:
    """As many as a calibration wants."""
    context = TEXT.splitlines()[0]
    qas = [
        {"id": f"q{n}", "question": f"{asked} the fox?", "answers": [{"text": "Anna", "answer_start": 0}]}
        for n, asked in enumerate(("Who saw", "Anna saw") * 25)
    ]
    return {"data": [{"title": "fox", "paragraphs": [{"context": context, "qas": qas}]}]}


def words(command: str, made: Path, out: Path) -> list[str]:
    cpu = "--device cpu --precision fp32 --backend eager"
    rest = {
        "tokenizer train": f"{made}/text.txt --output {out}/tokenizer --vocab-size 90",
        "prepare": f"{made}/text.txt --tokenizer {made}/tokenizer --output {out}/corpus --block-length 24 "
        "--validation-share 0.2 --processes 1",
        "init": f"{made}/corpus --output {out}/init --size mini",
        "fill": f"{made}/model 'the [SPAN:1-2] fox' --device cpu --backend eager",
        "masks": f"'Anna saw the fox' --tokenizer {made}/corpus --html {out}/masks.html",
        "index": f"{made}/documents --output {out}/index",
        "ask": f"{made}/reader 'Who saw the fox?' --index {made}/index {cpu}",
        "ask a text": f"{made}/reader 'Who saw the fox?' --context {made}/text.txt {cpu}",
        "calibrate": f"{out}/reader {made}/questions.json {cpu}",
        "pretrain": f"{made}/corpus --output {out}/pretrain --init-from {made}/model --steps 2 --batch-size 4 {cpu} "
        "--save-every 1 --eval-every 1 --log-every 1 --warmup 0",
        "finetune classify": f"--train {made}/labelled.tsv --dev {made}/labelled.tsv --init {made}/model --epochs 1 --window 32 "
        f"--output {out}/finetune --batch-size 4 --save-every 1 {cpu}",
        "evaluate classify": f"{made}/classifier {made}/labelled.tsv --output {out}/scores {cpu}",
        "predict classify": f"{made}/classifier {made}/labelled.tsv --output {out}/predicted.jsonl {cpu}",
        "import": f"{made}/model {out}/imported",
        "export": f"{made}/model {out}/exported",
        "runs": f"{made}",
        "plot": f"{made}/classifier --output {out}/curves.png",
    }[command]
    return [*command.removesuffix(" a text").split(), *shlex.split(rest)]


def begin(command: str, made: Path, out: Path) -> None:
    """The folder of the outputs, with what a command changes in place."""
    out.mkdir()
    if command == "calibrate":
        shutil.copytree(made / "reader", out / "reader")


def whole(command: str, out: Path) -> None:
    """The output is what the command promises."""
    if command in ("import", "export", "init"):
        read_model(next(path for path in out.iterdir()))
    elif command in ("pretrain", "finetune classify"):
        run = out / command.split()[0]
        assert find_model(run) == run / "model"
        read_model(run / "model")
    elif command == "tokenizer train":
        Tokenizer.load(out / "tokenizer")
    elif command == "index":
        assert Index.open(out / "index").search("fox", 1)
    elif command == "calibrate":
        assert load_calibration(out / "reader", "text") and load_calibration(out / "reader", "documents")
    elif command == "masks":
        assert (out / "masks.html").read_text().endswith("</html>\n")


COMMANDS = (
    "tokenizer train", "prepare", "init", "pretrain", "finetune classify", "evaluate classify", "predict classify", "index",
    "calibrate", "ask", "ask a text", "fill", "masks", "import", "export", "runs", "plot",
)  # fmt: skip


def hidden(out: Path) -> list[str]:
    """What lies below ``out`` under the names of left-overs; a run's lock is its own."""
    return [path.name for path in out.rglob(".*") if path.name != ".lock"]


def children() -> list[str]:
    """The processes that this one started and that still are, but for Python's own tracker of shared memory."""
    numbers: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends while it is looked at
            numbers += (task / "children").read_text().split()
    commands = []
    for pid in numbers:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            commands.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [command for command in commands if "resource_tracker" not in command]


def calls_of(command: str, made: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    begin(command, made, out)
    faults = Faults(made, out)
    with monkeypatch.context() as patch:
        faults.install(patch)
        assert main(words(command, made, out)) == 0
    whole(command, out)
    shutil.rmtree(out)
    return faults.calls


def fail_once(
    command: str, made: Path, out: Path, at: int, error: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    begin(command, made, out)
    faults = Faults(made, out, fail_at=at, error=error)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        faults.install(patch)
        status = main(words(command, made, out))
    said = capsys.readouterr().err
    where = f"{command}: {error} at call {at}, status {status}: {said}"
    assert "Traceback" not in said and "this is a bug" not in said, where
    assert status in (0, 1, 2), where
    assert not children(), where
    if status:
        errors = [line for line in said.replace("\r", "\n").split("\n") if line.startswith("error: ")]
        assert len(errors) == 1, where
    else:
        whole(command, out)
        strange = [name for name in hidden(out) if not LEFT_OVER.fullmatch(name)]
        assert not strange, f"{where}\nleft: {strange}"
    if status or hidden(out):
        again = words(command, made, out)
        begun = command in ("pretrain", "finetune classify") and (out / command.split()[0] / "config.json").exists()
        status = main([*again, "--resume"] if begun else again)
        assert status == 0, f"{where}\nagain: {capsys.readouterr().err}"
        assert not hidden(out), f"{where}\nleft: {hidden(out)}"
    whole(command, out)
    shutil.rmtree(out)


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what is slow and beside the point."""
    monkeypatch.setattr("spanbert.device.measured_peak_flops", lambda *_: 1e12)
    monkeypatch.setattr("spanbert.training.run_folder.open_trackers", lambda *_, **__: [])
    monkeypatch.setattr("finetune.run.plot_curves", lambda *_: False)
    monkeypatch.setattr("pretrain.saving.plot_curves", lambda *_: False)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_failing_disk_is_one_sentence(command, made, tmp_path, monkeypatch, capsys):
    """A folder where a file belonged, EIO, a quota: each was a traceback in one command or another."""
    calls = calls_of(command, made, tmp_path / "out", monkeypatch)
    for number, place in enumerate(PLACES):
        error = ERRORS[(calls + number) % len(ERRORS)]
        fail_once(command, made, tmp_path / "out", 1 + int(place * calls), error, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_call_may_fail(command, made, tmp_path, monkeypatch, capsys):
    """All that fails is told together."""
    calls = calls_of(command, made, tmp_path / "out", monkeypatch)
    wrong = []
    for at in range(1, calls + 1):
        try:
            fail_once(command, made, tmp_path / "out", at, ERRORS[at % len(ERRORS)], monkeypatch, capsys)
        except AssertionError as error:
            wrong.append(str(error))
            shutil.rmtree(tmp_path / "out")
    assert not wrong, f"{len(wrong)} of {calls} calls:\n" + "\n\n".join(wrong[:20])

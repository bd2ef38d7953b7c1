"""What an answer costs: questions a second of processor time, beside other libraries with the same weights.

    python -m venv peers; peers/bin/pip install torch==2.13.0
    peers/bin/pip install transformers==4.57.6 haystack-ai==2.31.0 onnxruntime==1.32.0 onnx accelerate
    python -m benchmarks.finetuning.serving --peers-python peers/bin/python --file dev-v1.1.json --output results

Libraries run with one thread in processes of their own, ours in one and the peers in one (`serving_worker.py`). A draw of
questions, with their own paragraphs, is cut into groups; each group is answered by all of them in turn, each time beginning
with another one, so that whatever the machine does meanwhile strikes all. Where memory is short it strikes the system's
part of the time: results.json has that by itself. Rates are medians over the groups; ratios are medians of each group's
ratio. Exact match and F1 over the same questions show whether an answer costs less by being worse. The best span counts:
no library may answer nothing. Left out, --peers-python leaves this project alone.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from statistics import median
from typing import IO

import numpy as np
import torch
import tyro
from tqdm import tqdm

from benchmarks.pretraining.masking import cpu_name
from finetune.tasks.qa.metrics import score_question
from finetune.tasks.qa.records import read_questions
from spanbert.checkpoint.export_hub import ExportConfig, run_export
from spanbert.device import PRECISIONS, has_int8_units
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.model.quantized import choose_answering_precision, kernels_run
from spanbert.weights import model_path

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("serving_worker.py")
REFERENCE = "transformers, fp32, 1 at a time"


@dataclass(frozen=True)
class ServingConfig:
    """Compare what answers cost."""

    models: tuple[Path, ...] = (Path("reader"), Path("scratch"))
    """Model folders, or words for the bundled ones."""
    file: Path = ROOT / "sample" / "squad-dev.json.gz"
    """Questions with answers, in SQuAD's form; those without an answer are left out."""
    questions: int = 300
    """How many are drawn."""
    group: int = 20
    """How many are answered by one library before the next one's turn; also what "in one call" means."""
    repetitions: int = 1
    """How often all groups are gone through."""
    minutes: float | None = None
    """Stop after the group during which so much time has passed, for each model; left out, never."""
    seed: int = 0
    peers_python: Path | None = None
    """Python of an environment with transformers 4.57, haystack-ai and onnxruntime."""
    output: Path | None = None
    """Folder for results.json and results.md."""


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    library: str
    precision: str
    batch: int
    """Questions handed over at a time; 0: the whole group."""
    ours: bool = False

    @property
    def label(self) -> str:
        how = f"{self.batch} at a time" if self.batch else "in one call"
        return f"{self.library}, {self.precision}, {how if self.library != 'onnxruntime' else 'the model alone'}"


@dataclass
class Measured:
    """What an entry did: seconds of each group in the order of their times, and its answers."""

    precision: str
    versions: dict[str, str]
    seconds: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    system: list[float] = field(default_factory=list)
    """What of the seconds was the operating system's."""


@dataclass(frozen=True)
class Example:
    question: str
    context: str
    golds: tuple[str, ...]


def entries(peers: bool) -> list[Entry]:
    """Our pipeline in every precision that there is, what it is made of in the machine's own, and the peers."""
    precisions = [name for name in PRECISIONS if name != "auto"]
    if has_int8_units() and kernels_run():
        precisions.append("int8")
    found = [Entry("spanbert.pipeline", one, batch, True) for one in precisions for batch in (1, 0)]
    found += [Entry("QuestionAnswerer", "auto", batch, True) for batch in (1, 0)]
    if peers:
        found += [Entry("transformers", "fp32", batch) for batch in (1, 16)]
        found += [Entry("haystack", "fp32", 1), *(Entry("onnxruntime", one, 1) for one in ("fp32", "int8"))]
    return found


def draw(file: Path, count: int, seed: int) -> list[Example]:
    """Answerable questions in a random order. Raises UserError when there are fewer."""
    found = read_questions(file, "evaluate")
    every = [
        Example(question.text, paragraph.context, question.answers)
        for paragraph in found.paragraphs
        for question in paragraph.questions
        if question.answers
    ]
    if count > len(every):
        raise UserError(f"{file} has {len(every)} questions with answers; lower --questions {count}.")
    return [every[place] for place in np.random.default_rng(seed).permutation(len(every))[:count]]


class Worker:
    """A process that answers with the libraries of one Python."""

    def __init__(self, python: Path, log: IO[bytes]) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HAYSTACK_TELEMETRY_ENABLED": "False",
        }
        self.log = log
        self.process = subprocess.Popen(
            [str(python), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
        )

    def ask(self, entry: Entry, model: Path, examples: Sequence[Example]) -> dict:
        """Raises UserError, with the last line that it wrote, when the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {
            "library": entry.library,
            "model": str(model),
            "precision": entry.precision,
            "pairs": [(one.question, one.context) for one in examples],
            "batch": entry.batch or len(examples),
        }
        with suppress(OSError):  # it has ended; that no line comes says so
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            said = self.log.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"{entry.label} ended: {said[-1] if said else self.process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.process.wait()


@contextmanager
def workers(peers_python: Path | None) -> Iterator[dict[bool, Worker]]:
    """Ours under True, the peers' under False."""
    pythons = {True: Path(sys.executable)} | ({} if peers_python is None else {False: peers_python})
    with ExitStack() as stack:
        started = {}
        for ours, python in pythons.items():
            if not python.is_file():
                raise UserError(f"--peers-python {python}: no such file.")
            started[ours] = Worker(python, stack.enter_context(tempfile.TemporaryFile()))
            stack.callback(started[ours].stop)
        yield started


def measure(
    chosen: Sequence[Entry],
    examples: Sequence[Example],
    model: Path,
    started: Mapping[bool, Worker],
    config: ServingConfig,
) -> dict[Entry, Measured]:
    """Every entry over every group of the examples, or over those that the minutes allowed."""
    groups = [examples[place : place + config.group] for place in range(0, len(examples), config.group)]
    turns = [(turn, group) for turn in range(config.repetitions) for group in groups]
    measured = {}
    for entry in chosen:  # loads it, too, and the first answers take longer
        reply = started[entry.ours].ask(entry, model, examples[:2])
        measured[entry] = Measured(reply["precision"], reply["versions"])
    end = None if config.minutes is None else time.monotonic() + 60 * config.minutes
    for number, (turn, group) in enumerate(tqdm(turns, unit=" groups", desc=model.name)):
        first = number % len(chosen)
        for entry in [*chosen[first:], *chosen[:first]]:
            reply = started[entry.ours].ask(entry, model, group)
            measured[entry].seconds.append(sum(reply["seconds"]))
            measured[entry].system.append(reply["seconds"][1])
            if turn == 0:
                measured[entry].answers += reply["answers"]
        if end is not None and time.monotonic() > end:
            break
    return measured


def rows_of(measured: dict[Entry, Measured], examples: Sequence[Example], group: int) -> list[dict]:
    """Of each entry its rate, its share of the reference's seconds, and its scores."""
    reference = next((one.seconds for entry, one in measured.items() if entry.label == REFERENCE), None)
    sizes = [len(examples[place : place + group]) for place in range(0, len(examples), group)]
    rows = []
    for entry, one in measured.items():
        asked = examples[: len(one.answers)]
        scores = [
            score_question(answer, example.golds, version_2=False)
            for answer, example in zip(one.answers, asked, strict=True)
        ]
        rates = [sizes[place % len(sizes)] / seconds for place, seconds in enumerate(one.seconds)]
        exact, f1 = (100 * float(np.mean(column)) for column in zip(*scores, strict=True))
        rows.append(
            {
                "label": entry.label,
                **asdict(entry),
                "questions": len(asked),
                "questions_per_second": median(rates),
                "times_reference": None
                if reference is None
                else median(theirs / ours for theirs, ours in zip(reference, one.seconds, strict=True)),
                "exact_match": exact,
                "f1": f1,
                "seconds": one.seconds,
                "system_seconds": one.system,
            }
        )
    return rows


def table(record: dict) -> str:
    """The record in Markdown."""
    lines = [
        f"{record['processor']}, one thread, processor time; commit {record['commit']}, {record['date']}, seed "
        f"{record['seed']}. On this machine `--precision auto` is {record['auto']}.",
        *(
            f"Versions {where}: {', '.join(f'{name} {version}' for name, version in found.items())}."
            for where, found in record["versions"].items()
        ),
        "",
    ]
    for model, rows in record["models"].items():
        lines += [
            f"`{model}`, {rows[0]['questions']} questions of {record['file']}:",
            "",
            "| | questions/s | × transformers, one at a time | EM | F1 |",
            "|---|--:|--:|--:|--:|",
        ]
        for row in rows:
            times = "" if row["times_reference"] is None else f"{row['times_reference']:.2f}"
            rate = f"{row['questions_per_second']:.1f}"
            lines.append(f"| {row['label']} | {rate} | {times} | {row['exact_match']:.1f} | {row['f1']:.1f} |")
        lines.append("")
    return "\n".join(lines)


def run(config: ServingConfig) -> dict:
    """Raises UserError for a file or a model that is not there, and for a library that does not start."""
    if config.questions < 1 or config.group < 1 or config.repetitions < 1:
        raise UserError("give at least one question, a group of one and one repetition.")
    examples = draw(config.file, config.questions, config.seed)
    chosen = entries(config.peers_python is not None)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    record: dict = {
        "processor": cpu_name(),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "seed": config.seed,
        "auto": choose_answering_precision(torch.device("cpu")),
        "file": config.file.name,
        "group": config.group,
        "versions": {},
        "models": {},
    }
    with tempfile.TemporaryDirectory() as folder, workers(config.peers_python) as started:
        for given in config.models:
            exported = Path(folder) / given.name
            run_export(ExportConfig(model_path(given), exported, task="qa"))
            measured = measure(chosen, examples, exported, started, config)
            record["models"][given.name] = rows_of(measured, examples, config.group)
            for entry, one in measured.items():
                record["versions"].setdefault("here" if entry.ours else "peers", {}).update(one.versions)
    record["load_average"] = os.getloadavg()[0]
    return record


def main() -> int:
    config = tyro.cli(ServingConfig, description=ServingConfig.__doc__)
    try:
        record = run(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(record))
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        write_atomic(config.output / "results.json", json.dumps(record, indent=1) + "\n")
        write_atomic(config.output / "results.md", table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())

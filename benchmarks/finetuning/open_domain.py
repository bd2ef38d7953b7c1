"""Question answering over a whole encyclopedia: what the index costs, how often it finds, how often the answer is right.

    python -m benchmarks.finetuning.open_domain CORPUS QUESTIONS --output FOLDER [--model MODEL] [--read 400]

CORPUS is an encyclopedia as ``benchmarks.finetuning.encyclopedia`` reads it, QUESTIONS a SQuAD file of which those questions
are asked whose article is in it. Each stage keeps what it found in FOLDER and is not done again; an interrupted one goes on
where it was. To have a stage made anew, remove its file:

    documents.jsonl    the articles             index/, index.json   `spanbert index` over them, and what it cost
    questions.json     those asked              recall.jsonl         the ranks at which a search first met the answer
    readings.jsonl     the candidate answers of all passages read, from which every setting is scored

results.json and results.md come of these in seconds, so other --calibrations are compared without reading again.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm
from tyro.conf import Positional

from benchmarks.finetuning.encyclopedia import Asked, Match, match_questions, read_documents, write_documents
from benchmarks.finetuning.index_costs import folder_bytes, open_costs, query_costs, run_costs
from benchmarks.finetuning.open_domain_report import report
from benchmarks.finetuning.open_domain_scores import (
    READER_ALONE,
    Found,
    Read,
    answer_rows,
    confidence_rows,
    found_by,
    recall_rows,
)
from benchmarks.pretraining.masking import cpu_name
from finetune.retrieval.answer_documents import SPANS_PER_PASSAGE, DocumentAnswerer
from finetune.retrieval.combine import DEFAULT_COMBINATION
from finetune.retrieval.confidence import Calibration, load_calibration
from finetune.retrieval.index import Index
from finetune.tasks.qa.answerer import QuestionAnswerer
from spanbert.config import read_json
from spanbert.errors import UserError
from spanbert.files import sha256, write_atomic
from spanbert.weights import qa_model_path

AT_ONCE = 8  # questions read together
TIMED = 200  # queries


@dataclass(frozen=True)
class OpenDomainConfig:
    """Answer questions from a whole encyclopedia, and count."""

    corpus: Positional[Path]
    """Articles: a title a line, then a paragraph a line, a blank line behind each; plain, .gz or .xz."""
    questions: Positional[Path]
    """SQuAD file."""
    output: Path
    """Folder that keeps what each stage found."""
    model: Path | None = None
    """Model folder; left out, the bundled reader."""
    passages: tuple[int, ...] = (1, 5, 20, 50)
    """Numbers of passages to score; the largest is read."""
    read: int = 400
    """Questions whose passages are read."""
    search: int | None = None
    """Questions that recall is counted over; left out, all."""
    calibrations: tuple[Path, ...] = ()
    """Folders with a calibration.json whose weights are compared with the model's own."""
    seed: int = 0
    """Of the draw of questions."""


def run(config: OpenDomainConfig) -> dict[str, Any]:
    """All stages. Raises UserError as reading, indexing and asking do, and where --output is of other files or settings."""
    model = config.model or qa_model_path()
    config.output.mkdir(parents=True, exist_ok=True)
    _check_same(config, model)
    asked, matches = _questions(config)
    by_id = {one.id: one for one in asked}
    order = [asked[number] for number in np.random.default_rng(config.seed).permutation(len(asked))]
    costs = _index(config, [one.text for one in order[:TIMED]])
    index = Index.open(config.output / "index")
    searched = order[: config.search]
    found = [Found(**one) for one in _lines(config, "recall.jsonl", searched, _searching(index, max(config.passages)))]
    read = order[: config.read]
    answerer = QuestionAnswerer.load(model)
    reads = [
        Read.from_json(one)
        for one in _lines(config, "readings.jsonl", read, _reading(answerer, index, max(config.passages)))
    ]
    threshold = answerer.settings.threshold
    calibrations = _calibrations(model, config.calibrations)
    ways = {"reader alone": READER_ALONE, "default weights": DEFAULT_COMBINATION}
    ways |= {name: one.combination for name, one in calibrations.items()}
    results = {
        "about": _about(config, answerer),
        "questions": {
            "asked": len(asked),
            "articles": sum(one.kept for one in matches),
            "of_articles": len(matches),
            "answer_stands": sum(one.answer_stands for one in asked) / len(asked),
            "matches": [asdict(one) for one in matches],
        },
        "index": costs,
        "recall": recall_rows(by_id, found, config.passages),
        "read": len(reads),
        "read_seconds": float(np.median([one.seconds for one in reads])),
        "combinations": {name: asdict(one) for name, one in ways.items()},
        "answers": answer_rows(by_id, reads, config.passages, ways, threshold),
        "confidence": confidence_rows(by_id, reads, config.passages, calibrations, threshold),
    }
    write_atomic(config.output / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomic(config.output / "results.md", report(results))
    return results


def _check_same(config: OpenDomainConfig, model: Path) -> None:
    now = {
        "corpus": sha256(config.corpus),
        "questions": sha256(config.questions),
        "model": sha256(model / "model.safetensors"),
        "passages": max(config.passages),
        "seed": config.seed,
    }
    file = config.output / "made-of.json"
    if file.is_file() and (before := read_json(file)) != now:
        others = ", ".join(name for name, value in now.items() if before.get(name) != value)
        raise UserError(f"{config.output} holds results of another {others}; name a new --output.")
    write_atomic(file, json.dumps(now, indent=1) + "\n")


def _questions(config: OpenDomainConfig) -> tuple[list[Asked], list[Match]]:
    documents, file = config.output / "documents.jsonl", config.output / "questions.json"
    if not documents.is_file():
        print(f"{documents}: {write_documents(config.corpus, documents):,} articles")
    if not file.is_file():
        found, matched = match_questions(config.questions, read_documents(documents))
        content = {"asked": [asdict(one) for one in found], "matches": [asdict(one) for one in matched]}
        write_atomic(file, json.dumps(content) + "\n")
    content = read_json(file)
    asked = [Asked(**one | {"answers": tuple(one["answers"])}) for one in content["asked"]]
    if not asked:
        raise UserError(f"{config.questions}: no question is about an article of {config.corpus}.")
    print(f"{len(asked):,} questions are about articles of the corpus")
    return asked, [Match(**one) for one in content["matches"]]


def _index(config: OpenDomainConfig, queries: Sequence[str]) -> dict[str, Any]:
    folder, file = config.output / "index", config.output / "index.json"
    costs: dict[str, Any] = read_json(file) if file.is_file() else {}

    def keep(name: str, measure: Callable[[], Any]) -> None:
        if name not in costs:
            costs[name] = measure()
            write_atomic(file, json.dumps(costs, indent=1) + "\n")

    if not (folder / "index.json").is_file():
        costs.clear()
        keep("made", lambda: run_costs(config.output / "documents.jsonl", folder))
    keep("unchanged", lambda: run_costs(config.output / "documents.jsonl", folder))
    keep("opened", lambda: open_costs(folder))
    index = Index.open(folder)
    costs |= {"documents": index.document_count, "passages": index.passages, "bytes": folder_bytes(folder)}
    keep("query", lambda: query_costs(index, queries, max(config.passages)))
    return costs


def _searching(index: Index, k: int) -> Callable[[Sequence[Asked]], list[Found]]:
    return lambda asked: [found_by(index, one, k) for one in asked]


def _reading(answerer: QuestionAnswerer, index: Index, k: int) -> Callable[[Sequence[Asked]], list[Read]]:
    documents = DocumentAnswerer(answerer, index)

    def read(asked: Sequence[Asked]) -> list[Read]:
        begin = time.process_time()
        readings = documents.read([one.text for one in asked], k)
        seconds = (time.process_time() - begin) / len(asked)
        given = answerer.read([one.paragraph for one in asked], [[one.text] for one in asked], n_best=SPANS_PER_PASSAGE)
        return [
            Read.of(one, reading, own[0], seconds) for one, reading, own in zip(asked, readings, given, strict=True)
        ]

    return read


def _lines(
    config: OpenDomainConfig, name: str, asked: Sequence[Asked], make: Callable[[Sequence[Asked]], Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    """For each question its line of the file of that name; those that it lacks are made, some at a time, and added."""
    file = config.output / name
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    whole = text[: text.rfind("\n") + 1]  # what was being written when the command was stopped is left out
    if whole != text:
        write_atomic(file, whole)
    held = {one["id"]: one for one in map(json.loads, whole.splitlines())}
    missing = [one for one in asked if one.id not in held]
    with file.open("a", encoding="utf-8") as lines:
        for begin in tqdm(range(0, len(missing), AT_ONCE), desc=name, mininterval=5, disable=not missing):
            for one in make(missing[begin : begin + AT_ONCE]):
                entry = asdict(one)
                held[entry["id"]] = entry
                lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
            lines.flush()
    return (held[one.id] for one in asked)


def _calibrations(model: Path, others: Sequence[Path]) -> dict[str, Calibration]:
    """Name → calibration for many documents: the model's own, where it has one, and others."""
    found = {}
    for folder, name in [(model, "calibrated"), *((one, f"calibrated, {one.name}") for one in others)]:
        calibration = load_calibration(folder, "documents")
        if calibration is not None:
            found[name] = calibration
        elif folder != model:
            raise UserError(f'{folder}: holds no calibration for "documents"; make one: spanbert calibrate.')
    return found


def _about(config: OpenDomainConfig, answerer: QuestionAnswerer) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "corpus": config.corpus.name,
        "questions": config.questions.name,
        "model": "bundled" if config.model is None else config.model.name,
        "precision": answerer.machine.precision,
        "machine": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seed": config.seed,
    }


def main() -> int:
    try:
        config = tyro.cli(OpenDomainConfig, description=OpenDomainConfig.__doc__)
        run(config)
        print((config.output / "results.md").read_text(encoding="utf-8"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

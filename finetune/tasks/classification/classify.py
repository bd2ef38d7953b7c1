"""``spanbert classify``: classes for texts from a pretrained model as it is, by the word that fits a prompt best."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tyro.conf import Positional

from finetune.predict import write_records
from finetune.records import NoTokens, printable
from finetune.tasks.classification.metrics import classification_metrics
from finetune.tasks.classification.prompt import parse_prompt, parse_words, room_for_text, softmax, word_scores
from finetune.tasks.classification.prompt_task import parse_label_words
from finetune.tasks.classification.records import Columns, TextFile, read_texts
from finetune.tasks.classification.task import ClassifySettings, ClassifyTask, Predicted
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.checkpoint.store import find_model
from spanbert.config import check_range
from spanbert.device import choose_device
from spanbert.errors import UserError
from spanbert.files import check_writable
from spanbert.model.models import SpanBertForPretraining
from spanbert.spans.log_probs import check_width, choose_head
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import model_path


@dataclass(frozen=True)
class ClassifyConfig:
    """Classes for texts without training: JSON lines of line number, text, label and probabilities."""

    prompt: str
    """Sentence with {text} in it and one [SPAN:n] for the words, of at most n tokens each."""
    words: tuple[str, ...]
    """A word for each class; the one that the model finds likeliest in the span is the answer. LABEL=WORD names the class, too."""
    file: Positional[Path | None] = None
    """TSV, CSV, JSON lines, or plain lines with a text each; - for standard input. May also stand last, after the words."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the words; left out, the words are the names."""
    model: str = "encoder"
    """Model folder or run with a trained MLM or SBO head; encoder is the bundled one."""
    head: Literal["auto", "mlm", "sbo", "both"] = "auto"
    """Which head scores the words; auto: every head that has been trained."""
    calibrate: bool = False
    """Subtract each word's score beside an empty text, so that words that are likely in any text do not win (Zhao et al., 2021)."""
    text: str = "text"
    """Column of a table, or key of JSON lines, that holds the text."""
    label: str = ""
    """Column or key of the right classes: accuracy is printed too. Plain lines are `label text` then."""
    output: Path | None = None
    """File for the answers, one JSON object a line, instead of standard output."""
    limit: int | None = None
    """Only the first N texts of the file."""
    batch_tokens: int = 4096
    """Tokens of a batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Attention implementation."""


def run_classify(config: ClassifyConfig) -> None:
    """Load, score, print."""
    check_range(config, 1, 1 << 24, "batch_tokens")
    path, words, labels = arguments(config)
    if config.output is not None:
        check_writable(config.output, "file")
    device = choose_device(config.device)
    file = read_texts(path, "evaluate" if config.label else "predict", Columns(config.text, config.label or "label"))
    file = file.first(config.limit)
    gold = gold_numbers(file, labels) if config.label else None

    given = model_path(Path(config.model))
    model, tokenizer, report = load_model_and_tokenizer(find_model(given), SpanBertForPretraining)
    head = choose_head(config.head, report, str(given))
    positions = model.config.max_position_embeddings
    prompt = parse_prompt(config.prompt, tokenizer, positions)
    word_ids = parse_words(words, tokenizer, prompt.width)
    check_width(model, head, max(map(len, word_ids)))
    texts = tokens_that_fit(file, tokenizer, room_for_text(prompt, word_ids, positions))

    asked = [*texts, np.zeros(0, np.int32)] if config.calibrate else texts
    model.place(device, config.backend).eval()
    scores_EW = word_scores(model, tokenizer, prompt, word_ids, asked, head, config.batch_tokens)
    if config.calibrate:
        scores_EW = scores_EW[:-1] - scores_EW[-1]
    chosen_E, probabilities_EW = scores_EW.argmax(1), softmax(scores_EW)

    task = ClassifyTask(ClassifySettings(labels=labels))
    records = (
        task.text_record(one, Predicted((chosen,), tuple(probabilities)))
        for one, chosen, probabilities in zip(file.texts, chosen_E.tolist(), probabilities_EW.tolist(), strict=True)
    )
    write_records(records, config.output, f"{len(file.texts):,} texts")
    if gold is not None:
        metrics = classification_metrics(gold, chosen_E, len(labels))
        print(task.describe(metrics), file=sys.stderr if config.output is None else sys.stdout)


def arguments(config: ClassifyConfig) -> tuple[Path, tuple[str, ...], tuple[str, ...]]:
    """File, words and labels. An option of several values takes all that follows: a file that stands last is given back.

    Raises UserError when no file is named, or the labels are not as many as the words, empty or not all different.
    """
    path, words, labels = config.file, config.words, config.labels
    if path is None and labels and _is_file(labels[-1]):
        path, labels = Path(labels[-1]), labels[:-1]
    elif path is None and words and _is_file(words[-1]):
        path, words = Path(words[-1]), words[:-1]
    if path is None:
        last = "".join(f"; {printable(one[-1], 200)!r} is none" for one in (labels or words,) if one)
        raise UserError(f"no file of texts is named{last}: spanbert classify FILE --prompt … --words …")
    if labels and len(labels) != len(words):
        raise UserError(f"--labels: there are {len(labels)} for {len(words)} words, give one for each, in their order.")
    if not all(label.strip() for label in labels) or len(set(labels)) < len(labels):
        raise UserError("--labels: one is empty or stands there twice, give each class a name of its own.")
    if labels:
        return path, words, labels
    named = parse_label_words(words)
    return path, tuple(named.values()), tuple(named)


def _is_file(name: str) -> bool:
    try:
        return name == "-" or (bool(name) and Path(name).exists() and not Path(name).is_dir())
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def gold_numbers(file: TextFile, labels: Sequence[str]) -> np.ndarray:
    """(texts,) int64, places in ``labels``. Raises UserError for a label that is not among them."""
    numbers = {label: number for number, label in enumerate(labels)}
    for text in file.texts:
        if text.label not in numbers:
            raise UserError(
                f"{file.report.path}: line {text.line}: the label {printable(str(text.label), 200)!r} is none of "
                f"{printable(', '.join(labels), 200)}: name the file's labels with --labels, in the order of the words."
            )
    return np.array([numbers[str(text.label)] for text in file.texts], dtype=np.int64)


def tokens_that_fit(file: TextFile, tokenizer: Tokenizer, room: int) -> list[np.ndarray]:
    """The first ``room`` tokens of each text; how many texts were longer is said. Raises UserError for one without any."""
    encoded = [one.ids for one in tokenizer.encode_batch([text.text for text in file.texts])]
    for text, ids in zip(file.texts, encoded, strict=True):
        if not len(ids):
            file.report.malformed(f"line {text.line}", NoTokens("text"))
    cut = sum(len(ids) > room for ids in encoded)
    if cut:
        print(
            f"{file.report.path}: {cut:,} of {len(encoded):,} texts have more than the {room} tokens that fit beside the "
            "prompt: cut at the end",
            file=sys.stderr,
        )
    return [ids[:room] for ids in encoded]

"""Going on learning: what a reader of SQuAD forgets while it learns questions of another kind, and what helps.

    python -m benchmarks.finetuning.going_on --old train-v1.1.json --old-dev dev-v1.1.json --new qed-train-squad.json --output GOING_ON

A model that has read SQuAD 1.1 only is trained on questions of Natural Questions (QED) in four ways: with the new ones alone,
with rehearsal (a share of each batch is old questions), with a pull towards the weights it had (L2-SP), with both. Old and
new questions that no run trains on are scored before and after. The new file is split by article: no article has
questions on both sides.

The same command again skips what is done, resumes what was interrupted, and reports what there is. It may run several
times side by side, with other --ways or --seeds first.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.ablation.plan import draw_questions
from benchmarks.ablation.report import mean_and_deviation
from benchmarks.resumable import begin, exit_status, finish, kept
from finetune.evaluate import evaluate
from finetune.predict import load_trained
from finetune.records import open_text
from finetune.tasks.qa.commands import FinetuneQAConfig, run_finetune
from finetune.tasks.qa.task import QATask
from spanbert.config import save_json, to_dict
from spanbert.device import choose_device, describe, tune_allocator
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.weights import model_path

Way = Literal["alone", "rehearsal", "pull", "both"]
WAYS: tuple[Way, ...] = ("alone", "rehearsal", "pull", "both")
METRICS = ("exact", "f1")


@dataclass(frozen=True)
class GoingOnConfig:
    """Options."""

    old: Path
    """Questions that the model was trained on: rehearsal draws from these."""
    old_dev: Path
    """Questions of the same kind that it was not trained on."""
    new: Path
    """Questions to learn, split into those to train on and those to score."""
    output: Path
    """Folder of the comparison."""
    init: str = "scratch"
    """The model to train."""
    ways: tuple[Way, ...] = WAYS
    """What is compared."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A run of each way for each; the data are the same."""
    questions: int = 5000
    """New questions to train on."""
    held_out: int = 1000
    """New questions to score."""
    old_questions: int = 5000
    """Old questions that rehearsal draws from."""
    old_dev_questions: int = 1000
    """Old questions to score."""
    epochs: int = 1
    """Passes over the new questions."""
    lr: float = 2e-4
    """Peak learning rate: half of that with which the bundled model learned SQuAD."""
    batch_size: int = 32
    """Windows of a step, old ones included."""
    window: int = 384
    """Length of a window in tokens, in training."""
    rehearse_share: float = 0.2
    """Share of a batch that is old, with rehearsal."""
    pull: float = 1e-3
    """Strength of the pull."""
    split_seed: int = 0
    """Of the split of the new questions."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def split_by_article(path: Path, held_out: int, train: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A SQuAD file as (questions to train on, held-out ones), each as many as asked for, of different articles.

    Articles are in the order of numpy.random.default_rng(seed).permutation: the first ones are held out. Raises UserError
    for a file that is no SQuAD file, or has too few questions.
    """
    try:
        with open_text(path) as stream:
            content = json.load(stream)
        by_title: dict[str, list[Any]] = {}
        for article in content["data"]:
            by_title.setdefault(article["title"], []).extend(article["paragraphs"])
        titles = list(by_title)
        order = [titles[place] for place in np.random.default_rng(seed).permutation(len(titles))]
        parts: list[dict[str, Any]] = []
        for wanted in (held_out, train):
            taken: list[dict[str, Any]] = []
            while wanted and order:
                title, paragraphs = order[0], []
                for paragraph in by_title[order.pop(0)]:
                    paragraphs.append({**paragraph, "qas": paragraph["qas"][:wanted]})
                    wanted -= len(paragraphs[-1]["qas"])
                taken.append({"title": title, "paragraphs": [one for one in paragraphs if one["qas"]]})
            if wanted:
                raise UserError(
                    f"{path}: {wanted:,} questions are missing for {held_out:,} to hold out and {train:,} of other articles to "
                    "train on: ask for fewer."
                )
            parts.append({"version": "1.1", "data": taken})
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{path} is not a SQuAD file ({type(error).__name__}: {error})") from None
    return parts[1], parts[0]


def finetune_config(config: GoingOnConfig, way: Way, seed: int, folder: Path) -> FinetuneQAConfig:
    rehearses, pulls = way in ("rehearsal", "both"), way in ("pull", "both")
    return FinetuneQAConfig(
        train=config.output / "new-train.json",
        output=folder / "run",
        init=str(model_path(Path(config.init))),
        rehearse=config.output / "old-train.json" if rehearses else None,
        rehearse_share=config.rehearse_share,
        pull=config.pull if pulls else 0.0,
        epochs=config.epochs,
        lr=config.lr,
        batch_size=config.batch_size,
        window=config.window,
        stride=config.window // 3,
        max_question=min(64, config.window // 4),
        dropout=0.0,
        seed=seed,
        device=config.device,
        save_every=50,
    )


def scores_of(config: GoingOnConfig, model: Path) -> dict[str, dict[str, float]]:
    """Exact match and F1 on the held-out questions, "old" and "new"."""
    trained = load_trained(QATask, model, device=config.device)
    task = QATask(trained.task.settings, check_offsets=False)  # answers are compared as texts
    scores = {}
    for which in ("old", "new"):
        records = task.read(config.output / f"{which}-dev.json", "evaluate")
        features = task.encode(records, trained.tokenizer, "evaluate")
        metrics = evaluate(task, trained.model, features, trained.machine).metrics
        scores[which] = {name: float(metrics[name]) for name in METRICS}
    return scores


def run(config: GoingOnConfig) -> None:
    """Do what is to be done, then report all that has been."""
    tune_allocator()
    begin(config, ("output", "ways", "seeds"))
    if not (config.output / "new-train.json").exists():
        draw_questions(config.old, config.old_questions, config.output / "old-train.json")
        draw_questions(config.old_dev, config.old_dev_questions, config.output / "old-dev.json")
        train, held_out = split_by_article(config.new, config.held_out, config.questions, config.split_seed)
        write_atomic(config.output / "new-dev.json", json.dumps(held_out, ensure_ascii=False))
        write_atomic(config.output / "new-train.json", json.dumps(train, ensure_ascii=False))
    start = model_path(Path(config.init))
    runs = config.output / "runs"
    kept(runs / "before", "before", lambda _: scores_of(config, start))
    for seed in config.seeds:
        for way in config.ways:

            def train_and_score(folder: Path, way: Way = way, seed: int = seed) -> Mapping[str, Any]:
                model = finish(run_finetune, finetune_config(config, way, seed, folder))
                return {"way": way, "seed": seed, **scores_of(config, model)}

            kept(runs / way / f"seed-{seed}", f"{way}, seed {seed}", train_and_score)
            write_report(config)


def write_report(config: GoingOnConfig) -> None:
    """OUTPUT/report.md, results.json and going_on.png of the runs that are finished."""
    runs = config.output / "runs"
    if not (runs / "before" / "result.json").exists():
        return  # another process is at it, and reports in its turn
    before = json.loads((runs / "before" / "result.json").read_text())
    found = {
        way: [json.loads(path.read_text()) for path in sorted((runs / way).glob("seed-*/result.json"))] for way in WAYS
    }
    found = {way: results for way, results in found.items() if results}
    machine = describe(choose_device(config.device))
    steps = -(-config.questions // config.batch_size)
    about = (
        f"{config.init} → {config.new.name}: {config.questions:,} questions, {config.epochs} pass(es), about {steps:,} steps of "
        f"{config.batch_size} windows a pass without rehearsal, lr {config.lr:g}, no dropout; rehearsal: {config.rehearse_share:g} of each "
        f"batch from {config.old_questions:,} questions of {config.old.name}; pull {config.pull:g}. Old: {config.old_dev_questions:,} "
        f"questions of {config.old_dev.name}; new: {config.held_out:,} questions of other articles than those trained on. "
        f"{machine}, {time.strftime('%Y-%m-%d')}."
    )
    text = table(before, found, about)
    write_atomic(config.output / "report.md", text + "\n")
    results = {
        "config": to_dict(config),
        "machine": machine,
        "before": before,
        "runs": [one for results in found.values() for one in results],
    }
    save_json(results, config.output / "results.json")
    drawn = ", going_on.png" if plot(before, found, config.output / "going_on.png") else " (no matplotlib, no picture)"
    print(f"\n{text}\n\nwrote report.md, results.json{drawn} in {config.output}", flush=True)


def table(before: Mapping[str, Any], found: Mapping[str, Sequence[Mapping[str, Any]]], about: str) -> str:
    """Markdown: a row before, and one for each way, mean ± standard deviation over seeds."""
    lines = [about, "", "| trained with | seeds | old EM | old F1 | new EM | new F1 |", "|---|---|---|---|---|---|"]
    cells = " | ".join(f"{before[which][name]:.2f}" for which in ("old", "new") for name in METRICS)
    lines.append(f"| nothing: before | – | {cells} |")
    for way, results in found.items():
        cells = " | ".join(
            mean_and_deviation([one[which][name] for one in results]) for which in ("old", "new") for name in METRICS
        )
        lines.append(f"| {'the new questions alone' if way == 'alone' else way} | {len(results)} | {cells} |")
    return "\n".join(lines)


def plot(before: Mapping[str, Any], found: Mapping[str, Sequence[Mapping[str, Any]]], output: Path) -> bool:
    """F1 on new questions against F1 on old ones, a point for each run → False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(before["old"]["f1"], before["new"]["f1"], "k*", markersize=12, label="before")
    for number, (way, results) in enumerate(found.items()):
        old, new = ([one[which]["f1"] for one in results] for which in ("old", "new"))
        axes.plot(old, new, ".", color=f"C{number}", alpha=0.5)
        axes.plot(statistics.fmean(old), statistics.fmean(new), "o", color=f"C{number}", label=way)
    axes.set(xlabel="F1 on old questions", ylabel="F1 on new questions", title="dots: runs; circles: their means")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomic(output, picture.getvalue())
    return True


def main() -> None:
    sys.exit(exit_status(lambda: run(tyro.cli(GoingOnConfig, description=__doc__))))


if __name__ == "__main__":
    main()

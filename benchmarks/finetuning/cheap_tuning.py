"""Ways to fine-tune for less: what is trained, what it costs in time, memory and disk, and what the model then scores.

    spanbert import … /tmp/minilm
    python -m benchmarks.finetuning.cheap_tuning --init /tmp/minilm --train trec-train.txt --dev trec-test.txt

A table of classifiers trained on the same texts in the same order, each with a learning rate that suits it: all
parameters, some of them frozen, low-rank additions (LoRA), the biases alone, rates that fall from layer to layer. Each is
a process of its own, with one thread; they take turns, a block of steps at a time (or come one after the other), and
examples a second are by processor time of whole steps. Memory is the most that the process held until its last step, Python and PyTorch included, which are
given too. One run each: differences of accuracy of a point or two say nothing.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro

from benchmarks.finetuning.engine import EngineSteps
from benchmarks.finetuning.peers import learning_rates
from benchmarks.finetuning.turns import Block, TrainingProcess, take_turns
from finetune.evaluate import evaluate
from finetune.prepare import Prepared, prepare
from finetune.tasks.classification.commands import FinetuneClassifyConfig
from finetune.tasks.classification.task import ClassifySettings
from spanbert.checkpoint.model_folder import write_model
from spanbert.device import describe
from spanbert.distributed import alone
from spanbert.files import write_atomic


@dataclass(frozen=True)
class CheapTuningConfig:
    init: str
    """Model folder that all start from, or "bundled"."""
    train: Path
    """Labelled texts."""
    dev: Path
    """Texts to score on."""
    text: str = "text"
    """Column of a table that holds the text."""
    label: str = "label"
    """Column that holds its label."""
    only: tuple[str, ...] = ()
    """Names of the ways to compare; none: all."""
    max_train_examples: int | None = 2000
    """Texts to train on, the first of a shuffle."""
    window: int = ClassifySettings.window
    """Longest window in tokens."""
    epochs: int = 2
    batch_size: int = 32
    block: int = 4
    """Steps of a turn; the first turn of each warms up and is not timed."""
    together: bool = True
    """All keep their memory and take turns; otherwise one comes after the other, which takes the memory of one, and a machine whose speed drifts is not evened out."""
    precision: Literal["fp32", "bf16"] = "fp32"
    dropout: float = 0.1
    seed: int = 0
    json: Path | None = None
    """Also write the result here."""


class Way(NamedTuple):
    """Options of `spanbert finetune` beside those that all have."""

    lr: float
    options: Mapping[str, Any]

    def told(self) -> str:
        """As they stand on the command line."""
        flags = [
            f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            for name, value in self.options.items()
        ]
        return " ".join([*flags, f"--lr {self.lr:g}"])


WAYS = {
    "full": Way(1e-4, {}),
    "frozen": Way(1e-4, {"freeze": "embeddings,0-2"}),
    "lora": Way(1e-3, {"lora": "rank=8,alpha=16,on=attention"}),
    "bias": Way(1e-3, {"bias_only": True}),
    "decay": Way(1e-4, {"layer_decay": 0.8}),
}


@dataclass(frozen=True)
class Cost:
    """What a training process says at its end."""

    trained: int
    """Parameters."""
    optimizer_bytes: int
    """Of the optimizer's state."""
    peak_bytes: int
    """Most resident memory of the process, until the last step."""
    before_bytes: int
    """The same before there were data or a model."""
    saved_bytes: int
    """Weights, or the adapter, as they are saved, with config.json and tokenizer."""
    accuracy: float


class Tuning(EngineSteps):
    """One way, from the data to a saved and scored model."""

    def __init__(self, config: FinetuneClassifyConfig):
        self.before_bytes = peak_resident_bytes()
        self.prepared: Prepared = prepare(config.task(), config, alone(), checkpoint=None)
        windows = len(self.prepared.features.lengths)
        rates = learning_rates(config.lr, config.epochs * -(-windows // config.batch_size))
        super().__init__(
            self.prepared.task, self.prepared.model, self.prepared.features, config, rates, config.precision
        )

    def finish(self) -> Cost:
        peak = peak_resident_bytes()
        prepared = self.prepared
        assert prepared.dev is not None
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), prepared.model, prepared.tokenizer, prepared.task.model_config())
            saved = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        found = evaluate(prepared.task, prepared.model, prepared.dev, prepared.machine, tune=False)
        return Cost(
            trained=sum(p.numel() for p in prepared.model.parameters() if p.requires_grad),
            optimizer_bytes=state_bytes(self.optimizer),
            peak_bytes=peak,
            before_bytes=self.before_bytes,
            saved_bytes=saved,
            accuracy=found.metrics[prepared.task.main_metric],
        )


def peak_resident_bytes() -> int:
    """The most memory that this process ever held (Linux: VmHWM)."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, "Linux says VmHWM"
    return int(found[1]) * 1024


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors of its state."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def tuning(config: CheapTuningConfig, way: Way) -> FinetuneClassifyConfig:
    """The options of a run, as `spanbert finetune classify` has them."""
    common = FinetuneClassifyConfig(
        config.train,
        Path(),
        config.init,
        dev=config.dev,
        text=config.text,
        label=config.label,
        window=config.window,
        max_train_examples=config.max_train_examples,
        epochs=config.epochs,
        batch_size=config.batch_size,
        precision=config.precision,
        dropout=config.dropout,
        seed=config.seed,
        device="cpu",
    )
    return replace(common, lr=way.lr, **way.options)


def measure(config: CheapTuningConfig) -> dict[str, Any]:
    """All ways → their rows by name."""
    ways = {name: WAYS[name] for name in config.only or WAYS}
    blocks: list[list[Block]] = []
    costs: list[Cost] = []
    for group in [list(ways.values())] if config.together else [[way] for way in ways.values()]:
        processes = [TrainingProcess(Tuning, tuning(config, way)) for way in group]
        blocks += take_turns(processes, config.block)
        costs += [process.finish() for process in processes]
    return {
        name: {
            "options": way.told(),
            **asdict(cost),
            "examples_per_second": _speed(taken, config.batch_size),
            "ratio": _ratio(taken, blocks[0]),
            "losses": [loss for block in taken for loss in block.losses],
            "seconds": [block.seconds for block in taken],
        }
        for (name, way), cost, taken in zip(ways.items(), costs, blocks, strict=True)
    }


def _speed(blocks: Sequence[Block], batch_size: int) -> float:
    return batch_size / statistics.median(block.seconds / len(block.losses) for block in blocks[1:])


def _ratio(blocks: Sequence[Block], full: Sequence[Block]) -> float:
    """How many times as fast as the first way: the median over blocks of the same steps."""
    return statistics.median(theirs.seconds / ours.seconds for ours, theirs in zip(blocks[1:], full[1:], strict=True))


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as Markdown. MB are millions of bytes."""
    first = next(iter(rows.values()))
    lines = [
        f"| way | options | trained parameters | optimizer state, MB | peak memory, MB | examples/s | × {next(iter(rows))} | "
        "saved, MB | accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        state, peak, saved = (row[f"{key}_bytes"] / 1e6 for key in ("optimizer", "peak", "saved"))
        lines.append(
            f"| {name} | `{row['options']}` | {row['trained']:,} | {state:.1f} | {peak:.0f} | {row['examples_per_second']:.1f} | "
            f"{row['ratio']:.2f} | {saved:.1f} | {row['accuracy']:.1f} |"
        )
    return "\n".join([*lines, "", f"Python and PyTorch alone: {first['before_bytes'] / 1e6:.0f} MB of the peak."])


def main(config: CheapTuningConfig) -> None:
    rows = measure(config)
    about = f"{describe(torch.device('cpu'), 1)}, {config.precision}, {time.strftime('%Y-%m-%d %H:%M')}"
    print(table(rows))
    print(about)
    if config.json is not None:
        told = {key: str(value) for key, value in asdict(config).items()}
        write_atomic(config.json, json.dumps({"config": told, "machine": about, "ways": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(CheapTuningConfig, description=(__doc__ or "").partition("\n")[0]))

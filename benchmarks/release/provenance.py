"""How a run came about, read from what it left behind: the commands that make it again, and what it cost.

Commands come from config.json (every option that differs from its default) and the prepared data's prepare.json, so a
model card cannot say anything else than what was done. A run that went on from a bundled model has that model's card for what was before. Folders are named by their last part: the commands fit one another in
any working directory.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.tasks.qa.commands import FinetuneQAConfig
from pretrain.config import PretrainConfig
from pretrain.data.prepare import PrepareConfig
from pretrain.init_from_counts import MADE_BY, InitConfig
from spanbert.config import from_dict, read_json
from spanbert.errors import UserError
from spanbert.training.run_folder import read_metrics

#: Options that change neither data nor weights.
UNSAID = ("resume", "device", "workers", "profile", "wandb", "replay")

#: Of the section of a card that tells how its model was made.
MADE_HEADING = "## How it was made"


@dataclass(frozen=True)
class Cost:
    """What a run's optimizer steps took; validation and saving not counted."""

    steps: int
    tokens: int
    hours: float


def config_of(run: Path) -> PretrainConfig | FinetuneQAConfig:
    """Raises UserError when `run` is no run of `spanbert pretrain` or `spanbert finetune qa`."""
    values = read_json(run / "config.json")
    for cls, key in ((PretrainConfig, "data"), (FinetuneQAConfig, "train")):
        if isinstance(values, dict) and key in values:
            return from_dict(cls, values, f"{run}/config.json")
    raise UserError(f"{run}: config.json is not that of a run; give the run's folder, not its model")


def run_of(path: Path) -> Path | None:
    """The run that a model came from: the folder itself or one above it. None when the model came from elsewhere."""
    for folder in (path, *list(path.parents)[:3]):
        if (folder / "metrics.jsonl").is_file() and (folder / "config.json").is_file():
            return folder
    return None


def place(path: Path, folder: Path, output: Path) -> Path:
    """A path in the config of a run (or start) that was told to write `output`, relative to where the command was given.

    `folder` is where it lies now: it may have been renamed, or moved together with its neighbours.
    """
    depth = 1 if output.is_absolute() else max(len(output.parts), 1)
    return path if path.is_absolute() else folder.resolve().parents[depth - 1] / path


def commands(run: Path) -> list[str]:
    """All commands from the text to `run`, in order, each once."""
    config = config_of(run)
    is_pretraining = isinstance(config, PretrainConfig)
    before = preparation(place(config.data, run, config.output)) if is_pretraining else []
    origin = config.init_from if is_pretraining else None if config.init == "random" else Path(config.init)
    if origin is not None:
        found = place(origin, run, config.output)
        earlier = run_of(found)
        before += commands(earlier) if earlier else beginning(found)
        origin = Path((earlier or origin).name)
    config = dataclasses.replace(config, output=Path(run.resolve().name))  # which later commands name
    if is_pretraining:
        last = command_line("pretrain", dataclasses.replace(config, init_from=origin), positional=("data",))
    else:
        last = command_line("finetune qa", dataclasses.replace(config, init=str(origin or config.init)))
    return list(dict.fromkeys([*before, last]))


def beginning(folder: Path) -> list[str]:
    """The commands behind a model whose run is not there: `spanbert init`'s, or those that its card tells."""
    made = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if MADE_BY not in made:
        return [line.strip() for line in told(folder) if line.startswith("    spanbert ")]
    config = from_dict(InitConfig, made[MADE_BY], f"{folder}/config.json")
    prepared = preparation(place(config.data, folder, config.output))
    return [*prepared, command_line("init", config, positional=("data",))]


def told(folder: Path) -> list[str]:
    """The lines of "How it was made" in a bundled model's card; none where there is no such card."""
    card = folder / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    if MADE_HEADING not in lines:
        return []
    section = lines[lines.index(MADE_HEADING) + 1 :]
    return list(itertools.takewhile(lambda line: not line.startswith("## "), section))


def costs_told(folder: Path) -> list[tuple[str, Cost]]:
    """The names and costs of the runs in a bundled model's card."""
    rows = [[cell.strip().replace(",", "") for cell in line.strip("| ").split("|")] for line in told(folder)]
    return [
        (row[0], Cost(int(row[1]), int(row[2]), float(row[3]))) for row in rows if len(row) == 4 and row[1].isdigit()
    ]


def preparation(data: Path) -> list[str]:
    """The commands behind a prepared folder. The tokenizer's own options are not recorded there, only its size."""
    record = read_json(data / "prepare.json")
    inputs = tuple(Path(entry[0]).name if isinstance(entry, list) else str(entry) for entry in record["inputs"])
    kept = {key: record[key] for key in ("block_length", "validation_share", "text_field", "document_per_file")}
    prepare = PrepareConfig(inputs=inputs, tokenizer=Path("tokenizer"), output=Path(data.name), **kept)
    vocabulary = f"--vocab-size {record['vocab_size']} --output tokenizer"
    return [
        f"spanbert tokenizer train {shlex.join(inputs)} {vocabulary}",
        command_line("prepare", prepare, positional=("inputs",)),
    ]


def command_line(words: str, config: Any, positional: tuple[str, ...] = ()) -> str:
    """`spanbert WORDS …` with every option whose value is not its default."""
    parts = ["spanbert", *words.split()]
    for name in positional:
        value = getattr(config, name)
        parts += [_said(item) for item in (value if isinstance(value, tuple) else (value,))]
    return " ".join([shlex.join(parts), *_options(config, positional, "")]).strip()


def _options(config: Any, left_out: tuple[str, ...], prefix: str) -> list[str]:
    options = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        flag = f"{prefix}{field.name.replace('_', '-')}"
        if field.name in (*left_out, *UNSAID) or value == default:
            continue
        if dataclasses.is_dataclass(value):
            options += _options(value, (), f"{flag}.")
        elif isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--{prefix}no-{field.name.replace('_', '-')}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            options.append(f"--{flag} {shlex.join(map(_said, values))}")
    return options


def _said(value: Any) -> str:
    return value.name if isinstance(value, Path) else f"{value:g}" if isinstance(value, float) else str(value)


def cost(run: Path) -> Cost:
    """From metrics.jsonl. Raises UserError when it holds no training step."""
    records = [record for record in read_metrics(run / "metrics.jsonl") if record.get("split") == "train"]
    if not records:
        raise UserError(f"{run}/metrics.jsonl holds no training step")
    steps = records[-1]["step"]
    if "seconds" in records[0]:  # fine-tuning logs each step with its own tokens and seconds
        return Cost(steps, sum(r["tokens"] for r in records), math.fsum(r["seconds"] for r in records) / 3600)
    tokens, seconds = 0, 0.0
    for record in records:  # pretraining logs tokens so far, and the rate since the record before
        seconds += (record["tokens"] - tokens) / record["tokens_per_second"]
        tokens = record["tokens"]
    return Cost(steps, tokens, seconds / 3600)

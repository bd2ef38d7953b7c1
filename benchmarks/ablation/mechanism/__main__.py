"""What each pretraining objective teaches, looked at in the models themselves: claims that a small budget can decide.

    python -m benchmarks.ablation.mechanism DATA --output FOLDER [--seeds 0 1 2] [--threads 1]

All arms begin with one model (--init-from) and get the same compute: MLM under geometric spans, the same with SBO, subword tokens, whole
words, and a mixture of spans and tokens. Then every model and the start are looked at on the same held-out text: a probe of
the states around a hidden span, a cross table of what is predicted under which masks, and how often names are filled in. With
--questions they are also fine-tuned on so many SQuAD questions.

The same command again skips what is done, resumes what was interrupted, and reports what there is. It may run
several times side by side over one output: a run belongs to the process that holds its folder. With --known FILE it goes on from
the numbers of an earlier call whose folder is gone, made on any machine.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.ablation.mechanism.look import Material, look_at
from benchmarks.ablation.mechanism.pictures import draw
from benchmarks.ablation.mechanism.plan import (
    ARMS,
    MAY_DIFFER,
    MAY_DIFFER_IN_KNOWN,
    ArmName,
    MechanismConfig,
    check_finished,
    pretrain_config,
)
from benchmarks.ablation.mechanism.report import report
from benchmarks.ablation.plan import draw_questions, finetune_config
from benchmarks.resumable import begin, claim, exit_status, finish, run_folders, said_in
from finetune.tasks.qa.commands import run_finetune as run_finetune_qa
from pretrain.data.blocks import Blocks
from pretrain.train import run_pretrain
from spanbert.checkpoint.model_folder import encoder_config
from spanbert.checkpoint.store import find_model
from spanbert.config import read_json, read_json_object, save_json, to_dict
from spanbert.device import choose_device, describe, tune_allocator
from spanbert.errors import UserError
from spanbert.files import sha256, write_atomic
from spanbert.model.config import EncoderConfig
from spanbert.training.run_folder import read_metrics

NUMBERS = "mechanism.json"
"""Of one model, in its run's folder; and of all, in the output."""


class Comparison:
    """The runs of one output, and what all of them share."""

    def __init__(self, config: MechanismConfig):
        self.config = config
        self.start = find_model(config.init_from)
        self.start_sha256 = sha256(self.start / "model.safetensors")
        self.shape: EncoderConfig = encoder_config(read_json(self.start / "config.json"), str(self.start), {})
        self.train = Blocks.open(config.data, "train")
        self._material: Material | None = None

    @property
    def material(self) -> Material:
        if self._material is None:
            self._material = Material.prepare(self.config, self.start)
        return self._material

    def run_arm(self, name: ArmName, seed: int, folder: Path) -> None:
        """One run as far as it is to go. What an earlier call finished is not done again."""
        model = self.model(name, seed, folder)
        if model is None:
            return
        if not (folder / NUMBERS).exists():
            save_json({"arm": name, "seed": seed, **self.numbers(name, folder, model)}, folder / NUMBERS)
        for questions in self.config.questions:
            files = self.config.output / f"train-{questions}.json", self.config.output / "dev.json"
            output = folder / f"qa-{questions}"
            finish(
                run_finetune_qa,
                finetune_config(self.config, files, seed, self.train.block_length, model, output),
            )

    def model(self, name: ArmName, seed: int, folder: Path) -> Path | None:
        """The arm's model, pretrained if need be; None where it is not there and is not to be made."""
        if ARMS[name].scheme is None:
            return self.start
        made = pretrain_config(self.config, name, seed, self.shape, self.train.lengths, self.start, folder)
        model = made.output / "model"
        if model.is_dir():
            check_finished(made, self.train.block_length)
        elif self.config.pretrain:
            tune_allocator()
            finish(run_pretrain, made)
        else:
            return None
        return model

    def numbers(self, name: ArmName, folder: Path, model: Path) -> dict[str, Any]:
        """What looking at the model found; the start, which is the same for every seed, is looked at once."""
        if ARMS[name].scheme is None:
            for other in sorted(folder.parent.glob(f"seed-*/{NUMBERS}")):
                return {key: value for key, value in read_json(other).items() if key not in ("arm", "seed")}
        own_sbo = ARMS[name].sbo or ARMS[name].scheme is None
        validations = [r for r in read_metrics(folder / "pretrain" / "metrics.jsonl") if r["split"] == "validation"]
        tokens = validations[-1]["tokens"] if validations else 0
        return {"tokens": tokens, **look_at(self.config, self.material, model, own_sbo)}

    def is_done(self, name: ArmName, folder: Path) -> bool:
        """Whether nothing is left to do; without pretraining, there is nothing to do about a model that is not there."""
        if not self.config.pretrain and ARMS[name].scheme is not None and not (folder / "pretrain" / "model").is_dir():
            return True
        tuned = all((folder / f"qa-{questions}" / "model").is_dir() for questions in self.config.questions)
        return tuned and (folder / NUMBERS).exists()


def work(comparison: Comparison) -> None:
    """Go through all runs and do those that nobody has done or is doing. What a run says goes to its log.txt."""
    config = comparison.config
    for name, seed, folder in run_folders(config.output, config.arms, config.seeds):
        with claim(folder) as ours:
            if not ours or comparison.is_done(name, folder):
                continue
            print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}: see {folder / 'log.txt'}", flush=True)
            with said_in(folder / "log.txt"):
                comparison.run_arm(name, seed, folder)


def run(config: MechanismConfig) -> None:
    """Do what is to be done, then report all that has been."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    comparison = Comparison(config)
    begin(config, MAY_DIFFER)
    for questions in config.questions:
        assert config.train is not None
        _draw_once(config.train, questions, config.output / f"train-{questions}.json")
    if config.questions:
        assert config.dev is not None
        _draw_once(config.dev, config.dev_questions, config.output / "dev.json")
    if config.known is not None:
        take_known(comparison, config.known)
    work(comparison)
    write_report(comparison)


def take_known(comparison: Comparison, file: Path) -> None:
    """Put the numbers of an earlier call where this one's belong, but for models that have theirs.

    Raises UserError when they were made with other options or over other text.
    """
    record = read_json_object(file, "an earlier comparison")
    own, told = to_dict(comparison.config), record.get("config")
    if not isinstance(told, dict) or not isinstance(record.get("runs"), list):
        raise UserError(f"{file}: not a mechanism.json")
    for key in own:
        if key not in MAY_DIFFER_IN_KNOWN and told.get(key) != own[key]:
            raise UserError(f"{file}: it was made with {key} = {told.get(key)!r}, now it is {own[key]!r}")
    if record.get("start") != comparison.start_sha256:
        raise UserError(
            f"{file}: its arms began with other weights than {comparison.start} has: give those to --init-from"
        )
    if record.get("baseline") != _baseline(comparison):
        raise UserError(f"{file}: it was made over other text: prepare the same corpus with the same tokenizer")
    for numbers in record["runs"]:
        if numbers.get("arm") not in ARMS or not isinstance(numbers.get("seed"), int):
            raise UserError(f"{file}: a run of arm {numbers.get('arm')!r}, seed {numbers.get('seed')!r}")
        folder = comparison.config.output / "runs" / numbers["arm"] / f"seed-{numbers['seed']}"
        with claim(folder) as ours:
            if ours and not (folder / NUMBERS).exists():
                save_json({key: value for key, value in numbers.items() if key != "questions"}, folder / NUMBERS)


def _draw_once(source: Path, count: int, output: Path) -> None:
    if not output.exists():
        draw_questions(source, count, output)


def read_scores(config: MechanismConfig) -> dict[str, dict[int, dict[str, Any]]]:
    """Arm → seed → the numbers of every model that was looked at, with those of its fine-tuning."""
    scores: dict[str, dict[int, dict[str, Any]]] = {}
    for name, seed, folder in run_folders(config.output, config.arms, config.seeds):
        if (folder / NUMBERS).exists():
            numbers = read_json(folder / NUMBERS)
            tuned = [path for path in sorted(folder.glob("qa-*/metrics.json")) if (path.parent / "model").is_dir()]
            numbers["questions"] = {path.parent.name.removeprefix("qa-"): _scored(read_json(path)) for path in tuned}
            scores.setdefault(name, {})[seed] = numbers
    return {name: scores[name] for name in ARMS if name in scores}


def _scored(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: metrics[key] for key in ("exact", "f1", "total")}


def write_report(comparison: Comparison) -> None:
    """OUTPUT/mechanism.md, mechanism.json and the pictures."""
    config = comparison.config
    scores = read_scores(config)
    if not scores:
        print("no model is there yet")
        return
    baseline = _baseline(comparison)
    machine = describe(choose_device(config.device))
    finished, planned = sum(map(len, scores.values())), len(config.arms) * len(config.seeds)
    seconds = [run["cpu_seconds"] for runs in scores.values() for run in runs.values()]
    about = (
        f"{comparison.shape.num_hidden_layers} layers × {comparison.shape.hidden_size}, vocabulary {comparison.shape.vocab_size:,}, from "
        f"the weights of {config.init_from}; blocks of {comparison.train.block_length}, the compute of {config.tokens:,} tokens of MLM + SBO, "
        f"steps of {config.batch_size} sequences, lr {config.lr:g}, seeds {', '.join(map(str, config.seeds))}; looking at a model took "
        f"{np.mean(seconds):.0f} s of processor time ({config.precision}); {machine}, {time.strftime('%Y-%m-%d')}; {finished} of {planned} models."
    )
    text = report(scores, baseline, about)
    write_atomic(config.output / "mechanism.md", text + "\n")
    runs = [numbers for seeds in scores.values() for numbers in seeds.values()]
    record = {"config": to_dict(config), "machine": machine, "start": comparison.start_sha256}
    record |= {"baseline": baseline, "runs": runs}
    save_json(record, config.output / NUMBERS)
    drawn = draw(scores, baseline, config.output)
    pictures = ", ".join(drawn) if drawn else "(no matplotlib, so no pictures)"
    print(f"\n{text}\n\nwrote mechanism.md, {NUMBERS}, {pictures} in {config.output}")


def _baseline(comparison: Comparison) -> dict[str, Any]:
    path = comparison.config.output / "baseline.json"
    if not path.exists():
        save_json(comparison.material.baseline(), path)
    return read_json(path)


def main() -> None:
    sys.exit(exit_status(lambda: run(tyro.cli(MechanismConfig, description=__doc__))))


if __name__ == "__main__":
    main()

"""What masks, the span-boundary objective and single sequences are worth: the paper's tables 6 and 7 at your budget.

    python -m benchmarks.ablation.run DATA --train train-v1.1.json --dev dev-v1.1.json --output ABLATION [--jobs 2 --threads 1]

Arms: masks {subword, whole word, geometric span} × {MLM, MLM + SBO}; geometric spans with sentence pairs and NSP; and no
pretraining at all, without which nobody could tell whether the budget suffices. Every arm of a seed begins with the
same weights, gets the same compute (an arm whose token costs more sees fewer), and is fine-tuned alike on SQuAD.
(The paper's table 6 compares masks under NSP; here masks are compared on single sequences, its final recipe.)

The same command again skips what is done, resumes what was interrupted, and reports what there is. It may run
several times side by side over one output: a run belongs to the process that holds its folder.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.ablation.nsp import run_pretrain_pairs
from benchmarks.ablation.plan import (
    ARMS,
    MAY_DIFFER,
    AblationConfig,
    ArmName,
    draw_questions,
    encoder_shape,
    equal_compute_tokens,
    finetune_config,
    pretrain_config,
)
from benchmarks.ablation.report import plot, report
from benchmarks.resumable import claim, exit_status, finish, run_folders, said_in
from finetune.tasks.qa.commands import run_finetune as run_finetune_qa
from pretrain.data.blocks import Blocks
from pretrain.train import run_pretrain
from spanbert.checkpoint.model_folder import build_model, save_model
from spanbert.checkpoint.store import find_model
from spanbert.config import read_json, save_json, to_dict
from spanbert.device import choose_device, describe, tune_allocator
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import check_same_config, read_metrics


def run_arm(config: AblationConfig, name: ArmName, seed: int, folder: Path) -> dict[str, Any]:
    """One run from its first weights to its score → its numbers. What an earlier call finished is not done again."""
    arm, blocks, tokenizer = ARMS[name], Blocks.open(config.data, "train"), Tokenizer.load(config.data / "tokenizer")
    shape = encoder_shape(config, tokenizer, blocks.block_length)
    init = folder / "start"
    if config.init_from is not None:
        init = find_model(config.init_from)
    elif not (folder / "pretrain" / "model").is_dir():
        save_model(init, build_model(SpanBertForPretraining, shape, seed), tokenizer)
    if arm.scheme is not None:
        tokens = equal_compute_tokens(config.tokens, shape, blocks.lengths, arm.sbo)
        pretraining = pretrain_config(config, arm, seed, tokens, init, folder)
        finish(run_pretrain_pairs if arm.pairs else run_pretrain, pretraining)
        init = folder / "pretrain" / "model"
    questions = config.output / "train.json", config.output / "dev.json"
    finish(run_finetune_qa, finetune_config(config, questions, seed, blocks.block_length, init, folder / "qa"))

    validations = [r for r in read_metrics(folder / "pretrain" / "metrics.jsonl") if r["split"] == "validation"]
    names = ("step", "tokens", "mlm_loss", "sbo_loss", "nsp_loss", "nsp_accuracy")
    numbers = {key: validations[-1][key] for key in names if key in validations[-1]} if validations else {"tokens": 0}
    scored = read_json(folder / "qa" / "metrics.json")
    numbers |= {"exact": scored["exact"], "f1": scored["f1"], "dev_questions": scored["total"]}
    for served in (folder / "start", folder / "pretrain" / "checkpoints"):
        shutil.rmtree(served, ignore_errors=True)
    return {"arm": name, "seed": seed, **numbers}


def work(config: AblationConfig) -> None:
    """Go through all runs and do those that nobody has done or is doing. What a run says goes to its log.txt."""
    tune_allocator()
    for name, seed, folder in run_folders(config.output, config.arms, config.seeds):
        with claim(folder) as ours:
            if not ours or (folder / "result.json").exists():
                continue
            print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}: see {folder / 'log.txt'}", flush=True)
            with said_in(folder / "log.txt"):
                result = run_arm(config, name, seed, folder)
            save_json(result, folder / "result.json")
            print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}: EM {result['exact']:.2f} F1 {result['f1']:.2f}")


def run(config: AblationConfig) -> None:
    """Do what is to be done, then report all that has been. Raises UserError when a job could not."""
    use_threads(config)
    if (config.output / "config.json").exists():
        check_same_config(config.output, config, MAY_DIFFER)
    else:
        draw_questions(config.train, config.questions, config.output / "train.json")
        draw_questions(config.dev, config.dev_questions, config.output / "dev.json")
        save_json(to_dict(config), config.output / "config.json")
    if config.jobs == 1:
        work(config)
    else:
        spawn = multiprocessing.get_context("spawn")
        jobs = [spawn.Process(target=_job, args=(config,)) for _ in range(config.jobs)]
        for job in jobs:
            job.start()
        try:
            for job in jobs:
                job.join()
        except KeyboardInterrupt:
            for job in jobs:
                job.terminate()  # they stop after their step, and save
            for job in jobs:
                job.join()
            raise
        if any(job.exitcode for job in jobs):
            raise UserError(f"{sum(bool(job.exitcode) for job in jobs)} of {len(jobs)} jobs failed: see above")
    write_report(config)


def write_report(config: AblationConfig) -> None:
    """OUTPUT/report.md, results.json and ablation.png of the runs that are finished."""
    scores: dict[str, dict[int, dict[str, Any]]] = {}
    folders = list(run_folders(config.output, config.arms, config.seeds))
    for name, seed, folder in folders:
        if (folder / "result.json").exists():
            scores.setdefault(name, {})[seed] = read_json(folder / "result.json")
    scores = {name: scores[name] for name in ARMS if name in scores}
    finished = sum(map(len, scores.values()))
    if not finished:
        print("no run is finished yet")
        return
    blocks, tokenizer = Blocks.open(config.data, "train"), Tokenizer.load(config.data / "tokenizer")
    shape, machine = encoder_shape(config, tokenizer, blocks.block_length), describe(choose_device(config.device))
    start = "random weights" if config.init_from is None else f"the weights of {config.init_from}"
    about = (
        f"{shape.num_hidden_layers} layers × {shape.hidden_size}, vocabulary {shape.vocab_size:,}, from {start}; pretraining: blocks of "
        f"{blocks.block_length}, the compute of {config.tokens:,} tokens of MLM, steps of {config.batch_size} sequences, "
        f"lr {config.lr:g}; SQuAD: {config.questions:,} questions × {config.epochs} epochs, lr {config.qa_lr:g}, scored on "
        f"{config.dev_questions:,}; {machine}, {time.strftime('%Y-%m-%d')}; {finished} of {len(folders)} runs finished."
    )
    text = report(scores, about)
    write_atomic(config.output / "report.md", text + "\n")
    runs = [result for seeds in scores.values() for result in seeds.values()]
    save_json({"config": to_dict(config), "machine": machine, "runs": runs}, config.output / "results.json")
    drawn = ", ablation.png" if plot(scores, config.output / "ablation.png") else " (no matplotlib, so no picture)"
    print(f"\n{text}\n\nwrote report.md, results.json{drawn} in {config.output}")


def use_threads(config: AblationConfig) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def _job(config: AblationConfig) -> None:
    use_threads(config)
    sys.exit(exit_status(lambda: work(config)))


def main() -> None:
    sys.exit(exit_status(lambda: run(tyro.cli(AblationConfig, description=__doc__))))


if __name__ == "__main__":
    main()

"""The arms of the mechanism comparison, and the options that say how they are trained and looked at."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benchmarks.ablation.plan import Arm, equal_compute_tokens
from benchmarks.ablation.plan import pretrain_config as ablation_config
from pretrain.config import MAY_DIFFER_ON_RESUME, PretrainConfig
from spanbert.config import check_range, read_json_object
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.training.run_folder import check_same_config

ArmName = Literal["none", "geometric", "geometric+sbo", "subword", "whole_word", "mixed"]

ARMS: dict[ArmName, Arm] = {
    "none": Arm(None),
    "geometric": Arm("geometric"),
    "geometric+sbo": Arm("geometric", sbo=True),
    "subword": Arm("subword"),
    "whole_word": Arm("whole_word"),
    "mixed": Arm("mixed"),
}


@dataclass(frozen=True)
class MechanismConfig:
    data: tyro.conf.Positional[Path]
    """Folder that `spanbert prepare` wrote."""
    output: Path
    """Folder of the comparison: a folder for each run, mechanism.md, mechanism.json, pictures."""
    init_from: Path = Path("encoder")
    """The one model that all arms begin with: a model folder, a run, or the name of a bundled model."""
    arms: tuple[ArmName, ...] = tuple(ARMS)
    """Which to run and report."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides order and masks of a run of every arm; later calls may add some."""
    threads: int | None = None
    """Threads on a CPU; none: PyTorch's choice."""
    known: Path | None = None
    """mechanism.json of an earlier call, perhaps on another machine: its models count as trained and looked at."""
    pretrain: bool = True
    """Pretrain the arms that are not; otherwise only models that are there are looked at."""

    tokens: int = 5_000_000
    """Tokens that the arm with SBO sees at least; what that computes is every arm's budget, so arms of MLM alone see more."""
    lr: float = 7e-4
    """Peak learning rate of pretraining."""
    batch_size: int = 8
    """Sequences of a pretraining step."""
    warmup: float = 0.06
    """Share of pretraining in which the rate rises."""
    dropout: float = 0.0
    """In pretraining."""

    held_out: int = 256
    """Held-out blocks for the cross table."""
    probe_held_out: int = 512
    """Held-out blocks that the probe is scored on."""
    probe_blocks: int = 2048
    """Blocks of training text whose spans the probe is trained on."""
    probe_steps: int = 400
    """Steps of 64 spans of the probe's training."""
    fills: int = 200
    """Spans of each kind and number of words to fill, at most."""

    questions: tuple[int, ...] = ()
    """Also fine-tune every model on so many questions of --train, and score it on --dev: takes minutes a model."""
    train: Path | None = None
    """SQuAD questions to fine-tune on."""
    dev: Path | None = None
    """SQuAD questions to score on."""
    dev_questions: int = 2_500
    """Questions to score on, drawn from all of --dev."""
    epochs: int = 2
    """Passes over the questions."""
    qa_lr: float = 3e-4
    """Peak learning rate of fine-tuning."""
    qa_batch_size: int = 16
    """Windows of a fine-tuning step."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "bf16"
    """Of pretraining, of looking at the models, and of fine-tuning."""

    def __post_init__(self) -> None:
        check_range(self, 1, math.inf, "threads", "tokens", "held_out", "probe_held_out", "probe_blocks", "probe_steps")
        check_range(self, 1, math.inf, "fills", "dev_questions", "epochs", "batch_size", "qa_batch_size")
        if self.questions and (self.train is None or self.dev is None):
            raise UserError("--questions needs --train and --dev, files of SQuAD questions")
        if any(count < 1 for count in self.questions):
            raise UserError(f"--questions must be above 0, not {' '.join(map(str, self.questions))}")
        if not self.seeds:
            raise UserError("--seeds needs at least one seed")


#: What a later call over the same output may change: it leaves the numbers of a run alone.
MAY_DIFFER = ("output", "arms", "seeds", "threads", "known", "pretrain", "questions", "train", "dev")

#: What may be otherwise where known numbers come from: data and start have other names, but are the same.
MAY_DIFFER_IN_KNOWN = (*MAY_DIFFER, "data", "init_from", "device")

#: What a run that is found finished may have had otherwise: where it lay and who computed it.
_MAY_DIFFER_IN_RUN = tuple(name for name in MAY_DIFFER_ON_RESUME if name not in ("micro_batch_size", "precision"))


def pretrain_config(
    config: MechanismConfig,
    name: ArmName,
    seed: int,
    shape: EncoderConfig,
    lengths_N: np.ndarray,
    start: Path,
    folder: Path,
) -> PretrainConfig:
    """The run of an arm, in ``folder``/pretrain. It validates at its end alone."""
    arm = ARMS[name]
    tokens = equal_compute_tokens(config.tokens, shape, lengths_N, arm.sbo, given_sbo=True)
    made = ablation_config(config, arm, seed, tokens, start, folder)
    return dataclasses.replace(made, eval_sequences=256, eval_every=1_000_000, save_every=500, log_every=20)


def check_finished(made: PretrainConfig, block_length: int) -> None:
    """Raises UserError when the finished run in ``made.output`` was trained otherwise.

    It may have been told to see other tokens by less than a step, for whole steps are what it is made of.
    """
    told = read_json_object(made.output / "config.json", "a run's options").get("tokens")
    step = made.batch_size * block_length
    if made.tokens is None or not isinstance(told, int) or abs(told - made.tokens) >= step:
        raise UserError(
            f"{made.output}: the run was to see {told} tokens, now it is {made.tokens}, more than a step of {step} off: "
            "give the same --tokens, or start in another --output"
        )
    check_same_config(made.output, made, _MAY_DIFFER_IN_RUN)

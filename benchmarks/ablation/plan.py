"""The arms of the ablation, what each is given, and the options that say how much of it.

Every arm of a seed begins with the same weights, gets the same compute, and is fine-tuned alike. An arm whose token
costs more sees fewer tokens; its learning rate falls to 0 within them, so no arm is a longer one cut off.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import tyro

from finetune.records import open_text
from finetune.tasks.qa.commands import FinetuneQAConfig
from pretrain.config import PretrainConfig
from pretrain.masking.masker import MaskConfig
from spanbert.checkpoint.model_folder import encoder_config
from spanbert.checkpoint.store import find_model
from spanbert.config import read_json
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import train_flops_per_token
from spanbert.tokenizer.wordpiece import Tokenizer

ArmName = Literal[
    "none", "subword", "subword+sbo", "whole_word", "whole_word+sbo", "geometric", "geometric+sbo", "geometric+nsp"
]


@dataclass(frozen=True)
class Arm:
    scheme: Literal["subword", "whole_word", "geometric", "mixed"] | None
    """None: no pretraining."""
    sbo: bool = False
    pairs: bool = False
    """Sentence pairs with NSP instead of single sequences."""


ARMS: dict[ArmName, Arm] = {
    "none": Arm(None),
    "subword": Arm("subword"),
    "subword+sbo": Arm("subword", sbo=True),
    "whole_word": Arm("whole_word"),
    "whole_word+sbo": Arm("whole_word", sbo=True),
    "geometric": Arm("geometric"),
    "geometric+sbo": Arm("geometric", sbo=True),
    "geometric+nsp": Arm("geometric", pairs=True),
}


@dataclass(frozen=True)
class AblationConfig:
    data: tyro.conf.Positional[Path]
    """Folder that `spanbert prepare` wrote. Its block length is also the window of fine-tuning: further positions would be untrained."""
    train: Path
    """SQuAD questions to fine-tune on."""
    dev: Path
    """SQuAD questions to score on."""
    output: Path
    """Folder of the ablation: a folder for each run, report.md, results.json, ablation.png."""
    arms: tuple[ArmName, ...] = tuple(ARMS)
    """Which to run and report."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides initialisation, order, masks and dropout of a run of every arm; later calls may add some."""
    jobs: int = 1
    """Runs at a time, each in a process of its own."""
    threads: int | None = None
    """Threads of a job on a CPU; none: PyTorch's choice."""

    size: Literal["mini", "small", "base", "large"] = "mini"
    """Shape of the encoder."""
    layers: int | None = None
    """Another number of layers than the size's."""
    hidden: int | None = None
    """Another width than the size's; heads of 64 and a feed-forward layer of four times the width go with it."""

    init_from: Path | None = None
    """Begin all runs with this model folder or run instead of random weights of a size; a seed then decides order, masks and dropout."""

    tokens: int = 6_000_000
    """Tokens that an arm of single sequences with MLM only is pretrained on; what that computes is every arm's budget."""
    lr: float = 1e-3
    """Peak learning rate of pretraining."""
    batch_size: int = 16
    """Sequences of a pretraining step."""
    warmup: float = 0.06
    """Share of pretraining in which the rate rises."""
    dropout: float = 0.0
    """In pretraining; none is better for runs that never see a sequence twice."""

    questions: int = 10_000
    """Questions to fine-tune on, drawn from all of --train, the same for all runs."""
    epochs: int = 2
    """Passes over them."""
    qa_lr: float = 3e-4
    """Peak learning rate of fine-tuning; small models want more than the paper's."""
    qa_batch_size: int = 16
    """Windows of a fine-tuning step."""
    dev_questions: int = 2_000
    """Questions to score on, drawn from all of --dev, the same for all runs."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of pretraining and fine-tuning."""

    def __post_init__(self) -> None:
        above_zero = ("jobs", "threads", "layers", "hidden", "tokens", "questions", "dev_questions")
        for name in above_zero:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, not {value}")
        if self.hidden is not None and self.hidden > 64 and self.hidden % 64:
            raise UserError(f"--hidden {self.hidden} is above 64 and not a multiple of it, the width of a head")


#: What a later call over the same output may change: it leaves the numbers of a run alone.
MAY_DIFFER = ("output", "arms", "seeds", "jobs", "threads")


def encoder_shape(config: AblationConfig, tokenizer: Tokenizer, block_length: int) -> EncoderConfig:
    if config.init_from is not None:
        start = find_model(config.init_from)
        return encoder_config(read_json(start / "config.json"), str(start), {})
    changes: dict[str, Any] = {}
    if config.layers is not None:
        changes["num_hidden_layers"] = config.layers
    if config.hidden is not None:
        changes |= {"hidden_size": config.hidden, "intermediate_size": 4 * config.hidden}
        changes["num_attention_heads"] = max(1, config.hidden // 64)
    vocabulary = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
    return EncoderConfig.preset(config.size, **vocabulary, max_position_embeddings=block_length, **changes)


def equal_compute_tokens(
    tokens: int, shape: EncoderConfig, lengths_N: np.ndarray, sbo: bool, given_sbo: bool = False
) -> int:
    """Tokens for what ``tokens`` of MLM alone (given_sbo: of MLM + SBO) compute, over sequences of these lengths.

    Sentence pairs count as single sequences: their layer on one token a sequence, and their one [SEP] more, are less
    than a thousandth of the work.
    """
    attended = float((lengths_N.astype(np.float64) ** 2).sum() / lengths_N.sum())
    given, own = (train_flops_per_token(shape, attended, sbo=with_sbo) for with_sbo in (given_sbo, sbo))
    return round(tokens * given / own)


class Recipe(Protocol):
    """What the options of a comparison say of how its runs are trained."""

    @property
    def data(self) -> Path: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def warmup(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def qa_lr(self) -> float: ...
    @property
    def qa_batch_size(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> Literal["auto", "fp32", "bf16"]: ...


def pretrain_config(config: Recipe, arm: Arm, seed: int, tokens: int, start: Path, folder: Path) -> PretrainConfig:
    assert arm.scheme is not None
    return PretrainConfig(
        data=config.data,
        output=folder / "pretrain",
        init_from=start,
        tokens=tokens,
        batch_size=config.batch_size,
        micro_batch_size=config.batch_size,
        lr=config.lr,
        warmup=config.warmup,
        weight_decay=0.01,
        beta2=0.98,
        dropout=config.dropout,
        attention_dropout=config.dropout,
        mask=MaskConfig(scheme=arm.scheme),
        sbo=arm.sbo,
        seed=seed,
        device=config.device,
        precision=config.precision,
        keep_last=2,
    )


def finetune_config(
    config: Recipe, questions: tuple[Path, Path], seed: int, window: int, init: Path, output: Path
) -> FinetuneQAConfig:
    """questions: files to train and to score on. window: tokens, those of the blocks of pretraining."""
    train, dev = questions
    return FinetuneQAConfig(
        train=train,
        dev=dev,
        output=output,
        init=str(init),
        epochs=config.epochs,
        batch_size=config.qa_batch_size,
        lr=config.qa_lr,
        window=window,
        stride=max(1, window // 3),  # as the paper's 128 of 384
        max_question=max(1, min(64, window // 4)),
        seed=seed,
        device=config.device,
        precision=config.precision,
    )


def draw_questions(source: Path, count: int, output: Path) -> None:
    """``count`` questions from all over a SQuAD file, as a file of their own; the same ones in every call.

    A file's first questions would be about a few articles only, and reading all of them again would take each run longer
    than a short fine-tuning. Raises UserError for what is no SQuAD file.
    """
    try:
        with open_text(source) as stream:
            content = json.load(stream)
        paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
        ids = [question["id"] for paragraph in paragraphs for question in paragraph["qas"]]
        chosen = {ids[place] for place in np.random.default_rng(0).permutation(len(ids))[:count]}
        for paragraph in paragraphs:
            paragraph["qas"] = [question for question in paragraph["qas"] if question["id"] in chosen]
        for article in content["data"]:
            article["paragraphs"] = [paragraph for paragraph in article["paragraphs"] if paragraph["qas"]]
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{source} is not a SQuAD file ({type(error).__name__}: {error})") from None
    write_atomic(output, json.dumps(content, ensure_ascii=False))

"""The gradient of a step does not depend on how the step was cut: over micro-batches, over ranks, or not at all."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from pretrain.config import PretrainConfig
from pretrain.data.batches import StepBatches
from pretrain.data.blocks import Blocks
from pretrain.data.sampler import DataOrder
from pretrain.masking.masker import MaskConfig, Masker
from pretrain.metrics import summarise
from pretrain.step import TargetCounts, agree, step_loss
from spanbert.checkpoint.model_folder import load_model
from spanbert.distributed import Group, alone, join_group
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.optim import adamw
from spanbert.training.parallel import parallelise
from spanbert.training.step import OptimizerStep

Result = tuple[dict[str, torch.Tensor], list[float], float]


def gradients(config: PretrainConfig, group: Group, micro: int, world_parts: int = 1, kind: str = "ddp") -> Result:
    """Whole gradients by name, loss sums over ranks, and the norm, of step 3."""
    blocks, tokenizer = Blocks.open(config.data, "train"), Tokenizer.load(config.data / "tokenizer")
    masker = Masker.from_tokenizer(MaskConfig(), tokenizer, seed=5, unigram_counts=np.load(config.data / "unigram.npy"))
    model, _ = load_model(config.init_from, SpanBertForPretraining, config_overrides={
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})  # fmt: skip
    parallel = parallelise(model, model.encoder.layers, group, kind)
    optimizer = adamw(model, 1e-3)
    step = OptimizerStep(
        model, parallel.train(), optimizer, group, precision="fp32", clip_norm=config.clip_norm, seed=5
    )
    order = DataOrder(len(blocks), 32, 5)
    batch = StepBatches(blocks, masker, order, micro * blocks.block_length, group.rank, group.world)[3]
    assert len(batch.micro_batches()) >= world_parts
    loss = step_loss(agree(group, batch, True, 0.0).counts, True, group.device)
    sums_4, norm = step.gradients(batch.step, batch.micro_batches(), loss)
    named = {name: p.grad for name, p in model.named_parameters()}
    whole = {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in named.items()}
    return whole, group.sum(sums_4.tolist()), norm.item()


def _rank(rank: int, world: int, port: int, config: PretrainConfig, kind: str, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    with join_group("cpu") as group:
        torch.save(gradients(config, group, micro=8, world_parts=2, kind=kind), folder / f"{rank}.pt")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_two_ranks(config: PretrainConfig, kind: str, folder: Path) -> list[Result]:
    mp.start_processes(_rank, (2, free_port(), config, kind, folder), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture
def plain(config) -> PretrainConfig:
    return config(clip_norm=0.0)


def assert_close(result: Result, expected: Result) -> None:
    assert result[0].keys() == expected[0].keys()
    for name, gradient in expected[0].items():
        gap = (result[0][name] - gradient).abs().max().item()
        assert gap < 1e-6, f"{name}: {gap:.1e} (largest {gradient.abs().max().item():.1e})"
    assert result[1] == pytest.approx(expected[1], rel=1e-6)
    assert result[2] == pytest.approx(expected[2], rel=1e-5)


def test_one_times_32_is_four_times_8_is_32_times_1(plain):
    """The last is packing's promise: sequences that share a pass learn as if each had been alone."""
    expected = gradients(plain, alone(), micro=32)
    assert expected[2] > 1e-2
    for micro in (8, 1):
        assert_close(gradients(plain, alone(), micro), expected)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_times_2_times_8(plain, tmp_path, kind):
    expected = gradients(plain, alone(), micro=32)
    for result in on_two_ranks(plain, kind, tmp_path):
        assert_close(result, expected)


def test_a_mean_of_means_would_be_noticed(plain):
    """The check above can fail: micro-batches have unequal numbers of targets."""
    honest = gradients(plain, alone(), micro=8)
    backward = OptimizerStep.backward

    def each_its_own_mean(self, step, number, micro_batch, loss):
        own = TargetCounts(micro_batch.targets.ids_M.numel() * 4, micro_batch.targets.sbo_K.numel() * 4)
        return backward(self, step, number, micro_batch, step_loss(own, True, self.group.device))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OptimizerStep, "backward", each_its_own_mean)
        other = gradients(plain, alone(), micro=8)
    with pytest.raises(AssertionError):
        assert_close(other, honest)


def test_summary():
    values = summarise([20.0, 3, 9.0, 1], TargetCounts(10, 4))
    assert values == {
        "mlm_loss": 2.0, "mlm_accuracy": 0.3, "mlm_perplexity": math.exp(2.0),
        "sbo_loss": 2.25, "sbo_accuracy": 0.25, "sbo_perplexity": math.exp(2.25),
    }  # fmt: skip
    assert summarise([0.0, 0, 0.0, 0], TargetCounts(0, 0)) == {}
    assert "sbo_loss" not in summarise([20.0, 3, 0.0, 0], TargetCounts(10, 4), with_sbo=False)
    assert summarise([1e6, 0, 0.0, 0], TargetCounts(1, 0))["mlm_perplexity"] < math.inf

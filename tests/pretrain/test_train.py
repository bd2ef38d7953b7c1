"""The whole command on a small corpus: what it writes, what it learns, what it refuses before it begins."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.data.prepare import PrepareConfig, run_prepare
from pretrain.masking.masker import MaskConfig
from pretrain.schedule import Counters, Schedule
from pretrain.train import run_pretrain
from spanbert.checkpoint.model_folder import load_model
from spanbert.checkpoint.store import find_model
from spanbert.config import read_json
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import read_metrics
from spanbert.training.step import OptimizerStep


def prepare_again(corpus: Path, output: Path, **changes: object) -> None:
    """The same text with other settings."""
    options = {"block_length": 32, "processes": 1, "validation_share": 0.25} | changes
    run_prepare(PrepareConfig((str(corpus.parent / "text.txt"),), corpus / "tokenizer", output, **options))


def test_a_run_leaves_metrics_checkpoints_and_a_model(config, capsys):
    options = config(steps=30, lr=3e-2, eval_every=10, save_every=7, keep_last=2)
    run_pretrain(options)
    metrics = read_metrics(options.output / "metrics.jsonl")
    assert [r["step"] for r in metrics if r["split"] == "train"] == list(range(3, 31, 3))
    validation = [r for r in metrics if r["split"] == "validation"]
    assert [r["step"] for r in validation] == [0, 10, 20, 30], "before training, every 10 steps, and at the end once"
    learned = [r["mlm_loss"] for r in metrics if r["split"] == "train"]
    assert min(learned[-3:]) < learned[0] - 0.3 and validation[-1]["mlm_loss"] < validation[0]["mlm_loss"]
    assert validation[-1]["mlm_perplexity"] == pytest.approx(math.exp(validation[-1]["mlm_loss"]))
    wanted = {"mlm_loss", "mlm_accuracy", "sbo_loss", "sbo_accuracy", "lr", "gradient_norm", "tokens_per_second"}
    assert wanted <= set(metrics[1])
    steps = sorted(p.name for p in (options.output / "checkpoints").iterdir())
    assert steps == ["step-00000028", "step-00000030"], "the last two; the best is the last"
    model, report = load_model(find_model(options.output), SpanBertForPretraining)
    assert not report.initialised and not report.unused
    assert Tokenizer.load(options.output / "model").vocab_size == model.config.vocab_size
    assert set(read_json(options.output / "model" / "manifest.json")["sha256"]) == {"model.safetensors"}
    assert "next: spanbert" in capsys.readouterr().out


def test_curves_and_tensorboard(config, monkeypatch):
    """The picture is drawn where matplotlib is, and neither package is needed."""
    import spanbert.training.metrics

    monkeypatch.setattr("pretrain.saving.plot_curves", spanbert.training.metrics.plot_curves)
    monkeypatch.setattr("spanbert.training.run_folder.open_trackers", spanbert.training.metrics.open_trackers)
    pytest.importorskip("matplotlib", reason="curves are drawn where matplotlib is")
    options = config(steps=3)
    run_pretrain(options)
    assert (options.output / "curves.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    without = config(steps=3, output=options.output.with_name("without"))
    run_pretrain(without)
    assert not (without.output / "curves.png").exists() and not (without.output / "tensorboard").exists()
    assert (without.output / "model").exists()


def test_shifted_positions_reach_the_model_in_training_only(config, tmp_path, monkeypatch):
    seen = {True: [], False: []}
    forward = SpanBertForPretraining.forward

    def watch(model, *inputs):
        seen[model.training].append(inputs[0].position_ids_T)
        return forward(model, *inputs)

    monkeypatch.setattr(SpanBertForPretraining, "forward", watch)
    plain = {"steps": 3, "eval_every": 3, "dropout": 0.0, "attention_dropout": 0.0}
    run_pretrain(config(**plain, shift_positions=True, output=tmp_path / "shifted"))
    assert seen[False] == [None] * len(seen[False])
    assert seen[True]
    starts = torch.cat([p[:1] for p in seen[True]])
    assert any((positions.diff() != 1).any() and positions.max() < 32 for positions in seen[True])
    assert len(starts) > 3
    run_pretrain(config(**plain, shift_positions=True, output=tmp_path / "again", micro_batch_size=8))
    run_pretrain(config(**plain, output=tmp_path / "plain"))
    losses = [read_metrics(tmp_path / name / "metrics.jsonl")[-1]["mlm_loss"] for name in ("shifted", "again", "plain")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5), "shifts do not depend on how a step is cut"
    assert abs(losses[0] - losses[2]) > 1e-5


def test_without_sbo_and_without_held_out_blocks(config, corpus, tmp_path, capsys):
    prepare_again(corpus, tmp_path / "data", validation_share=0.0)
    options = config(sbo=False, data=tmp_path / "data")
    run_pretrain(options)
    metrics = read_metrics(options.output / "metrics.jsonl")
    assert {r["split"] for r in metrics} == {"train"} and all("sbo_loss" not in r for r in metrics)
    assert "no held-out blocks" in capsys.readouterr().out


def test_entities_masks_come_from_the_sidecar(config, corpus, tiny_model, tmp_path):
    """From characters in a file to masked tokens: every masked span of a block is one that the tagger gave, or a
    geometric one when the block has too few."""
    from pretrain.data.batches import StepBatches
    from pretrain.data.blocks import Blocks
    from pretrain.data.sampler import DataOrder
    from pretrain.masking.masker import Masker

    text = (corpus.parent / "text.txt").read_text()
    spans = []
    for document in text.split("\n\n"):
        ends = [i for i, c in enumerate(document) if c == " "]
        spans.append([[a + 1, b] for a, b in zip(ends[::2], ends[1::2], strict=False) if b > a + 1])
    (tmp_path / "spans.jsonl").write_text("\n".join(map(json.dumps, spans)) + "\n")
    prepare_again(corpus, tmp_path / "data", spans=tmp_path / "spans.jsonl")
    blocks = Blocks.open(tmp_path / "data", "train")
    tokenizer = Tokenizer.load(tiny_model)
    masker = Masker.from_tokenizer(MaskConfig(scheme="entities"), tokenizer, seed=1)
    batches = StepBatches(blocks, masker, DataOrder(len(blocks), 16, 1), 64)
    given = masked = 0
    for (_, indices), part in zip(batches.addresses(0), batches[0].masked, strict=True):
        packed, listed = blocks.packed(indices)
        cu = packed.cu_seqlens
        known = {(int(cu[b]) + 1 + s, int(cu[b]) + 1 + e) for b, pairs in enumerate(listed) for s, e in pairs}
        for left, right in zip(part.targets.left_S, part.targets.right_S, strict=True):
            masked += 1
            given += (int(left) + 1, int(right)) in known
    assert given >= masked // 3, f"{given} of {masked} masked spans are the tagger's"
    options = config(data=tmp_path / "data", mask=MaskConfig(scheme="entities"), steps=2)
    run_pretrain(options)
    assert (options.output / "model").exists()


# --- refusals: one sentence each, and nothing written ---------------------------------------------------------------


def refused(options: PretrainConfig) -> str:
    existed = options.output.exists()
    with pytest.raises(UserError) as refusal:
        run_pretrain(options)
    assert options.output.exists() == existed, "refused, but a folder was made"
    return str(refusal.value)


def test_refuses_what_cannot_be_trained(config, corpus, tmp_path, tiny_model):
    assert "is not a prepared corpus" in refused(config(data=tmp_path))
    assert "--parallel fsdp: start it with torchrun" in refused(config(parallel="fsdp"))
    assert "is a file" in refused(config(output=corpus.parent / "text.txt"))
    assert "holds no run" in refused(config(resume=True))
    assert "no such folder" in refused(config(init_from=tmp_path / "nowhere"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    assert "already holds a run" in refused(config(output=tmp_path / "old"))
    assert "needs a tagger's spans" in refused(config(mask=MaskConfig(scheme="entities")))


def test_refuses_a_position_table_that_is_too_short(config, corpus, tiny_model, tmp_path):
    model, _ = load_model(tiny_model, SpanBertForPretraining)
    from spanbert.checkpoint.model_folder import save_model

    shape = dataclasses.replace(model.config, max_position_embeddings=16)
    save_model(tmp_path / "short", SpanBertForPretraining(shape), Tokenizer.load(tiny_model))
    assert "has only 16 positions, and the data has sequences of 32 tokens" in refused(
        config(init_from=tmp_path / "short")
    )


def test_refuses_data_of_another_tokenizer(config, corpus, tiny_model, tmp_path):
    """All ways round: weights beside another vocabulary, or with one of the same size, and data whose tokenizer was
    exchanged."""
    from pretrain.data.train_tokenizer import train_wordpiece

    other = train_wordpiece(["a quite different text about different things"] * 5, vocab_size=60)
    shutil.copytree(tiny_model, tmp_path / "model")
    other.save(tmp_path / "model")
    assert "another model's vocabulary" in refused(config(init_from=tmp_path / "model"))
    tokens = Tokenizer.load(tiny_model).tokens
    Tokenizer({token: number for number, token in enumerate([*tokens[:-2], tokens[-1], tokens[-2]])}).save(
        tmp_path / "model"
    )
    assert "another tokenizer" in refused(config(init_from=tmp_path / "model"))
    shutil.copytree(corpus, tmp_path / "data")
    other.save(tmp_path / "data" / "tokenizer")
    assert "not the one this corpus was prepared with" in refused(config(data=tmp_path / "data"))


def test_refuses_an_empty_corpus(config, corpus, tmp_path):
    prepare_again(corpus, tmp_path / "data", validation_share=0.0)
    shutil.rmtree(tmp_path / "data" / "train")
    shutil.copytree(tmp_path / "data" / "validation", tmp_path / "data" / "train")  # it has no block
    settings = json.loads((tmp_path / "data/prepare.json").read_text())
    del settings["files"], settings["report"]["held_out"]  # or the exchange would be found
    (tmp_path / "data/prepare.json").write_text(json.dumps(settings))
    assert "no block to train on" in refused(config(data=tmp_path / "data"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"minutes": 1.0}, "exclude each other"),
        ({"batch_size": 0}, "batch_size is 0: expected at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0: expected 0 to below 1"),
        ({"lr": float("nan")}, "lr is nan: expected at least 0"),
        ({"clip_norm": float("nan")}, "clip_norm is nan: expected at least 0"),
        ({"lr": float("inf")}, "lr is inf: expected at least 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1: expected at least 0"),
        ({"warmup": -1}, "warmup is -1: expected at least 0"),
        ({"eps": 0.0}, "eps is 0.0: expected above 0"),
        ({"seed": -1}, "seed is -1: expected 0 to below"),
        ({"seed": 2**63}, "seed is 9223372036854775808: expected 0 to below"),
        ({"keep_last": 0}, "keep_last is 0: expected at least 1"),
        ({"steps": None, "minutes": 5.0, "warmup": 10_000}, "--warmup as a share"),
    ],
)
def test_refuses_bad_flags(config, changes, says):
    with pytest.raises(UserError, match=says):
        config(**changes)


def test_refuses_a_warm_up_longer_than_the_run(config):
    assert "would take the whole run of 12 steps" in refused(config(warmup=10_000))
    assert "would take the whole run" in refused(config(steps=None, tokens=3000, warmup=10_000))


def test_the_default_warm_up_fits_the_run(config, capsys):
    """The paper's 10,000 steps were the default of every run: one of 3,000 steps could not even begin."""
    assert PretrainConfig(Path("data"), Path("run")).warmup is None
    assert Schedule(config(steps=None, warmup=None), 1.0).warmup == 10_000, "the paper's length"
    assert Schedule(config(steps=1_000_000, warmup=None), 1.0).warmup == 10_000
    assert Schedule(config(steps=3000, warmup=None), 1.0).warmup == 0.06
    assert Schedule(config(steps=None, tokens=10**9, warmup=None), tokens_per_step=100.0).warmup == 10_000
    assert Schedule(config(steps=None, tokens=10**6, warmup=None), tokens_per_step=100.0).warmup == 0.06
    assert Schedule(config(steps=None, minutes=10**6, warmup=None), 1.0).warmup == 0.06
    run_pretrain(config(steps=2, warmup=None))
    assert "2 steps, warm-up over 6 % of the run" in capsys.readouterr().out


# --- the schedule ---------------------------------------------------------------------------------------------------


def rates(config: PretrainConfig, tokens_per_step: int = 0, seconds_per_step: float = 0.0) -> list[float]:
    schedule, counters, seen = Schedule(config, 10), Counters(), []
    while not schedule.done(counters):
        seen.append(schedule.multiplier(counters))
        counters.step += 1
        counters.tokens += tokens_per_step
        counters.seconds += seconds_per_step
    return seen


def test_schedule_by_steps_tokens_and_minutes_is_one_curve(config):
    """Twenty even steps, told in three units; and the warm-up as a share or in steps."""
    by_steps = rates(config(steps=20, warmup=0.25))
    assert by_steps[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]), "the first step moves, and no two are alike"
    assert by_steps[5:] == pytest.approx([(20 - s) / 15 for s in range(5, 20)]) and by_steps[-1] > 0
    in_steps = rates(config(steps=20, warmup=5))
    assert in_steps == pytest.approx(by_steps)
    by_tokens = rates(config(steps=None, tokens=2000, warmup=5), tokens_per_step=100)
    assert by_tokens == pytest.approx(by_steps)
    shares = (rates(config(steps=None, tokens=2000, warmup=0.25), tokens_per_step=100),
              rates(config(steps=None, minutes=2.0, warmup=0.25), seconds_per_step=6.0))  # fmt: skip
    for other in shares:
        assert other[1:] == pytest.approx(by_steps[1:], abs=1e-9) and 0 < other[0] < 0.21


def test_minutes_bound_the_run(config, capsys):
    """The bar counted what no one counts: 63.83s/min."""
    options = config(steps=None, minutes=0.02, warmup=0.1, log_every=1)
    run_pretrain(options)
    metrics = [r for r in read_metrics(options.output / "metrics.jsonl") if r["split"] == "train"]
    assert metrics, "1.2 seconds are enough for a step"
    assert metrics[-1]["lr"] < 1e-3
    bar = capsys.readouterr().err
    assert "of 0.02 min" in bar and "s/min" not in bar and "min/s" not in bar


# --- what is not finite ---------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], where: str) -> None:
    """Let the gradient (or the loss too) of these steps, counted from 1, be infinite."""
    honest = OptimizerStep.backward

    def backward(self, step, number, micro_batch, loss):
        sums = honest(self, step, number, micro_batch, loss)
        if step + 1 in steps and number == 0:
            next(iter(self.model.parameters())).grad[0, 0] = torch.inf
            return sums * torch.nan if where == "loss" else sums
        return sums

    monkeypatch.setattr(OptimizerStep, "backward", backward)


@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_step_that_is_not_finite_is_skipped_and_logged(config, corpus, monkeypatch, where):
    from pretrain.data.blocks import Blocks
    from pretrain.data.sampler import DataOrder

    poison(monkeypatch, {5}, where)
    options = config(steps=8)
    run_pretrain(options)
    metrics = read_metrics(options.output / "metrics.jsonl")
    (skipped,) = [r for r in metrics if r["split"] == "skipped"]
    assert skipped["step"] == 5 and where in skipped["reason"]
    assert skipped["blocks"] == DataOrder(len(Blocks.open(corpus, "train")), 8, 3).addresses(4)[1].tolist()
    assert all(math.isfinite(r["mlm_loss"]) for r in metrics if r["split"] == "train")
    model, _ = load_model(options.output / "model", SpanBertForPretraining)
    assert all(p.isfinite().all() for p in model.parameters())


def test_skipping_leaves_weights_and_optimizer_alone(config, monkeypatch):
    poison(monkeypatch, {3}, "gradient")
    options = config(steps=3, save_every=1)
    run_pretrain(options)
    before, after = (options.output / "checkpoints" / f"step-0000000{n}" for n in (2, 3))
    for file in ("model.safetensors", "training_state.safetensors"):
        assert (before / file).read_bytes() == (after / file).read_bytes()


def test_stops_with_advice_when_nothing_is_finite(config, monkeypatch):
    poison(monkeypatch, set(range(4, 100)), "loss")
    with pytest.raises(UserError, match=r"5 steps in a row .* step 8: .*--lr"):
        run_pretrain(config(steps=50, stop_after_bad_steps=5, log_every=4))


def test_replay_goes_to_the_step_and_shows_where_it_broke(config, monkeypatch, capsys):
    options = config(steps=8)
    run_pretrain(options)
    before = {f: f.stat().st_mtime_ns for f in options.output.rglob("*") if f.is_file()}
    losses = []
    honest = OptimizerStep.backward

    def record(self, step, number, micro_batch, loss):
        sums = honest(self, step, number, micro_batch, loss)
        losses.append((step + 1, number, sums.tolist()))
        return sums

    monkeypatch.setattr(OptimizerStep, "backward", record)
    again = dataclasses.replace(options, output=options.output.with_name("again"))
    run_pretrain(again)
    trained = {(step, number): sums for step, number, sums in losses}
    losses.clear()
    run_pretrain(dataclasses.replace(options, replay=7))
    assert {step for step, *_ in losses} == {5, 6, 7}, "from the checkpoint of step 4"
    assert all(trained[step, number] == sums for step, number, sums in losses), "not the run's own numbers"
    assert "everything is finite" in capsys.readouterr().out
    assert before == {f: f.stat().st_mtime_ns for f in options.output.rglob("*") if f.is_file()}, (
        "replay wrote something"
    )

    poison(monkeypatch, {7}, "gradient")
    run_pretrain(dataclasses.replace(options, replay=7))
    assert "gradients that are not finite: 1" in capsys.readouterr().out


def test_profile_writes_a_table_and_a_trace(config):
    options = config(steps=8, profile=True)
    run_pretrain(options)
    assert "aten::" in (options.output / "profile" / "table.txt").read_text()
    assert json.loads((options.output / "profile" / "trace.json").read_text())["traceEvents"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_train_the_same(config):
    """Without dropout; lengths differ from batch to batch, so the compiled code must take them all."""
    plain = config(steps=4, log_every=1, dropout=0.0, attention_dropout=0.0)
    run_pretrain(plain)
    compiled = dataclasses.replace(plain, compile=True, output=plain.output.with_name("compiled"))
    run_pretrain(compiled)
    losses = [
        [r["mlm_loss"] for r in read_metrics(o.output / "metrics.jsonl") if r["split"] == "train"]
        for o in (plain, compiled)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)

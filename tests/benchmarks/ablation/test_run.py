"""The ablation gives every arm the same compute, judges by its rule, makes BERT's pairs, and goes on where it stopped."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

import benchmarks.ablation.run as ablation
from benchmarks.ablation.nsp import Pairs, pair_micro_batches
from benchmarks.ablation.plan import ARMS, AblationConfig, draw_questions, encoder_shape, equal_compute_tokens
from benchmarks.ablation.report import CLAIMS, FAILS, HOLDS, OPEN, compare, paired_difference, plot, report
from finetune.train import micro_batches
from pretrain.data.batches import StepBatches
from pretrain.data.blocks import Blocks
from pretrain.data.sampler import DataOrder
from pretrain.masking.masker import MaskConfig, Masker
from spanbert.checkpoint.model_folder import load_model, save_model
from spanbert.errors import UserError
from spanbert.model.encoder import train_flops_per_token
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.step import OptimizerStep

DATA = Path(__file__).parents[2] / "data"
BLOCK = 48


@pytest.fixture
def config(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AblationConfig:
    """Two arms, one seed, a very small encoder; without what is slow and beside the point."""
    monkeypatch.setattr("spanbert.device.measured_peak_flops", lambda *_: 1e12)
    monkeypatch.setattr("spanbert.training.run_folder.open_trackers", lambda *_, **__: [])
    for module in ("pretrain.saving", "finetune.run"):
        monkeypatch.setattr(f"{module}.plot_curves", lambda *_: False)
    return AblationConfig(
        data=corpus, train=DATA / "qa_v1.json", dev=DATA / "qa_v1.json", output=tmp_path / "ablation",
        arms=("geometric+sbo", "geometric+nsp"), seeds=(5,), threads=1, layers=1, hidden=32, tokens=6000, lr=1e-2, batch_size=4,
        questions=6, epochs=1, qa_batch_size=4, dev_questions=5, device="cpu", precision="fp32",
    )  # fmt: skip


# --- the plan --------------------------------------------------------------------------------------------------------


def test_tokens_of_all_arms_compute_the_same(corpus, config):
    lengths = Blocks.open(corpus, "train").lengths
    shape = encoder_shape(config, Tokenizer.load(corpus / "tokenizer"), BLOCK)
    assert (shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads) == (1, 32, 1)
    attended = sum(int(n) ** 2 for n in lengths) / int(lengths.sum())
    without, with_sbo = (equal_compute_tokens(10**6, shape, lengths, sbo) for sbo in (False, True))
    assert without == 10**6 and with_sbo < 0.9 * 10**6
    spent = [n * train_flops_per_token(shape, attended, sbo=sbo) for n, sbo in ((without, False), (with_sbo, True))]
    assert spent[0] == pytest.approx(spent[1], rel=1e-5)


def test_questions_come_from_the_whole_file(tmp_path):
    draw_questions(DATA / "qa_v1.json", 5, tmp_path / "drawn.json")
    content = json.loads((tmp_path / "drawn.json").read_text(encoding="utf-8"))
    kept = [[q["id"] for p in article["paragraphs"] for q in p["qas"]] for article in content["data"]]
    assert sum(map(len, kept)) == 5 and all(kept)
    with pytest.raises(UserError, match="not a SQuAD file"):
        draw_questions(DATA / "wikinews_sentences.txt", 5, tmp_path / "none.json")
    with pytest.raises(UserError, match="no such file"):
        draw_questions(DATA / "absent.json", 5, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


# --- the verdict -----------------------------------------------------------------------------------------------------


def test_verdict_is_that_of_the_paired_interval():
    """Student's t with 2 degrees of freedom: 4.303 standard errors either way."""
    clear = paired_difference([1.0, 1.2, 1.1])
    assert (clear.mean, clear.error) == (pytest.approx(1.1), pytest.approx(0.1 / 3**0.5))
    assert clear.reach == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert clear.verdict == HOLDS
    assert paired_difference([-1.0, -1.2, -1.1]).verdict == FAILS
    assert paired_difference([1.0, 3.0, 0.2]).verdict == OPEN
    assert paired_difference([7.0]).verdict == OPEN, "one seed has no spread"
    assert paired_difference([0.0, 0.0, 0.0]).verdict == OPEN


def test_differences_are_taken_within_seeds():
    """The arms vary by tens over seeds, one is better by 1 in each: only the seeds that both have count."""
    scores = {
        "a": {0: {"f1": 11.0}, 1: {"f1": 31.1}, 2: {"f1": 50.9}, 3: {"f1": 0.0}},
        "b": {0: {"f1": 10.0}, 1: {"f1": 30.0}, 2: {"f1": 50.0}},
    }
    found = compare(scores, [("a", "b")], "f1")
    assert (found.seeds, found.verdict) == (3, HOLDS) and found.mean == pytest.approx(1.0)
    both = compare(scores, [("a", "b"), ("b", "a")], "f1")
    assert both.mean == pytest.approx(0.0), "over several comparisons it is their mean in each seed that counts"
    assert compare(scores, [("a", "c")], "f1") is None


def test_report_states_what_holds_what_does_not_and_what_is_open(tmp_path):
    gains = {"none": -9.0, "subword": -1.0, "whole_word": 0.0, "geometric": 0.0, "geometric+nsp": 2.0}
    wobble = {"whole_word": (3.0, -2.0, 0.5)}
    scores = {
        arm: {
            seed: {
                "tokens": 9,
                "mlm_loss": 5.0,
                "exact": 10.0,
                "f1": 20 + gain + wobble.get(arm, (0.0, 0.1, 0.2))[seed],
            }
            for seed in range(3)
        }
        for arm, gain in gains.items()
    }
    lines = report(scores, "about").splitlines()
    (row,) = [line for line in lines if line.startswith("| subword | 3 |")]
    assert row == "| subword | 3 | 9 | 5.000 ± 0.000 |  | 10.00 ± 0.00 | 19.10 ± 0.10 |"
    verdicts = {line.split(" | ")[1]: line.split(" | ")[-1] for line in lines if line.startswith("| geometric | ")}
    assert verdicts["none"] == verdicts["subword"] == f"{HOLDS} |"
    assert (verdicts["whole_word"], verdicts["geometric+nsp"]) == (f"{OPEN} |", f"{FAILS} |")
    assert "**Holds:**" in lines and "**Does not hold:**" in lines and "**The budget cannot tell:**" in lines
    fails = lines[lines.index("**Does not hold:**") + 1]
    assert fails.startswith("* A single sequence is better than sentence pairs with NSP: F1 -2.00 ± 0.00")
    assert lines[-1].startswith("Not run yet: ") and "MLM + SBO is better" in lines[-1], "its arms are not there"
    none = {seed: {**run, "f1": run["f1"] + 5} for seed, run in scores["geometric"].items()}
    unlearned = report({**scores, "none": none}, "about").splitlines()
    rows = [
        line
        for arm in ("subword", "whole_word", "geometric+nsp")
        for line in unlearned
        if f"geometric | {arm} |" in line
    ]
    assert [line.split(" | ")[-1] for line in rows] == [f"{OPEN} |"] * 3
    one = report({**scores, "none": scores["geometric"]}, "about").splitlines()
    (decided,) = [line for line in one if line.startswith("| geometric | geometric+nsp |")]
    assert decided.endswith(f"| {FAILS} |"), "the other arm is shown to have learned"
    assert plot(scores, tmp_path / "plot.png") and (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"


def test_claims_name_arms_that_exist():
    assert {arm for claim in CLAIMS for pair in claim.pairs for arm in pair} == set(ARMS)


# --- sentence pairs --------------------------------------------------------------------------------------------------


def test_pairs_are_berts(corpus):
    """[CLS] A [SEP] B [SEP]: half continue A in its document, the others come from another; types change after [SEP]."""
    blocks, tokenizer = Blocks.open(corpus, "train"), Tokenizer.load(corpus / "tokenizer")
    pairs = Pairs(blocks, tokenizer, seed=1)
    assert abs(2 * int(pairs.is_next.sum()) - len(pairs)) <= 1 and len(pairs) > 0.8 * len(blocks)
    assert not np.array_equal(pairs.is_next, Pairs(blocks, tokenizer, seed=2).is_next)
    everything = np.arange(len(pairs))
    flat, cu_seqlens, longest, types, _ = pairs.packed(everything)[0]
    texts, _ = blocks.packed(np.arange(len(blocks)))
    block_texts = [texts.input_ids_T[a + 1 : b - 1].tolist() for a, b in itertools.pairwise(texts.cu_seqlens)]
    assert longest <= BLOCK and len(flat) == len(types) == cu_seqlens[-1]
    for i in everything:
        sample = flat[cu_seqlens[i] : cu_seqlens[i + 1]].tolist()
        second_at = int(pairs.second_at[i])
        first, second = sample[1 : second_at - 1], sample[second_at:-1]
        assert sample[0] == tokenizer.cls_id and sample[second_at - 1] == sample[-1] == tokenizer.sep_id
        assert sample.count(tokenizer.sep_id) == 2 and tokenizer.starts_word[second[0]]
        own, other = pairs.own_P[i], pairs.other_P[i]
        assert block_texts[own][: len(first)] == first
        if pairs.is_next[i]:
            assert block_texts[own][len(first) : len(first) + len(second)] == second
        else:
            assert blocks.document[own] != blocks.document[other]
            assert any(block_texts[other][k : k + len(second)] == second for k in range(1, len(block_texts[other])))


def test_masked_pairs_keep_specials_types_and_labels(corpus):
    blocks, tokenizer = Blocks.open(corpus, "train"), Tokenizer.load(corpus / "tokenizer")
    pairs = Pairs(blocks, tokenizer, seed=1)
    masker = Masker.from_tokenizer(MaskConfig(), tokenizer, seed=1, unigram_counts=np.load(corpus / "unigram.npy"))
    step = StepBatches(pairs, masker, DataOrder(len(pairs), 12, 1), budget=4 * BLOCK)[0]
    parts = list(pair_micro_batches(step, pairs))
    assert len(parts) > 1
    for (_, indices), part in zip(step.addresses, parts, strict=True):
        batch = part.batch
        assert part.is_next_B.tolist() == pairs.is_next[indices].tolist()
        for b, (begin, end) in enumerate(itertools.pairwise(batch.packed.cu_seqlens.tolist())):
            ids, types = batch.packed.input_ids_T[begin:end].tolist(), batch.packed.token_type_ids_T[begin:end].tolist()
            assert end - begin == pairs.lengths[indices[b]]
            separators = [k for k, piece in enumerate(ids) if piece == tokenizer.sep_id]
            assert len(separators) == 2, "no special was masked and none was put in place of a token"
            assert types == [int(k > separators[0]) for k in range(len(ids))]


def test_pairs_need_two_documents(corpus, monkeypatch):
    blocks = Blocks.open(corpus, "train")
    monkeypatch.setattr(Blocks, "document", np.zeros(len(blocks), np.int64))
    with pytest.raises(UserError, match="two documents"):
        Pairs(blocks, Tokenizer.load(corpus / "tokenizer"), seed=1)


# --- the work --------------------------------------------------------------------------------------------------------


def test_finished_runs_are_skipped_and_reported(config, monkeypatch, capsys):
    ablation.run(config)
    record = json.loads((config.output / "results.json").read_text())
    boundary, pairs = record["runs"]
    assert (boundary["arm"], pairs["arm"]) == ("geometric+sbo", "geometric+nsp")
    assert boundary["tokens"] < pairs["tokens"] - BLOCK and 0 <= pairs["tokens"] - 6000 < 4 * BLOCK
    assert boundary["sbo_loss"] > 0 and 0 <= pairs["nsp_accuracy"] <= 1 and pairs["dev_questions"] == 5
    assert max(boundary["mlm_loss"], pairs["mlm_loss"]) < math.log(400) - 0.2, "both were trained"
    assert "2 of 2 runs finished" in (config.output / "report.md").read_text()
    assert (config.output / "ablation.png").exists()

    def again(*_):
        raise AssertionError("done again")

    monkeypatch.setattr(ablation, "run_arm", again)
    capsys.readouterr()
    ablation.run(config)
    assert "| geometric+sbo | 1 |" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="done again"):
        ablation.run(dataclasses.replace(config, seeds=(5, 6)))
    with pytest.raises(UserError, match="started with tokens = 6000"):
        ablation.run(dataclasses.replace(config, tokens=6001))


def test_an_interrupted_run_goes_on(config, monkeypatch, tmp_path):
    """Stopped in pretraining, then between two fine-tuning steps: the numbers are those of a run that never was."""
    config = dataclasses.replace(config, arms=("geometric+sbo",))
    undisturbed = dataclasses.replace(config, output=tmp_path / "undisturbed")
    ablation.run(undisturbed)
    folder = config.output / "runs/geometric+sbo/seed-5"

    taken = []
    take = OptimizerStep.take

    def take_five(self, *arguments):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(take(self, *arguments))

    plan = ablation.pretrain_config
    monkeypatch.setattr(ablation, "pretrain_config", lambda *told: dataclasses.replace(plan(*told), save_every=2))
    monkeypatch.setattr(OptimizerStep, "take", take_five)
    with pytest.raises(KeyboardInterrupt):
        ablation.run(config)
    assert (folder / "pretrain/config.json").exists() and not (folder / "pretrain/model").exists()

    monkeypatch.setattr(OptimizerStep, "take", take)
    monkeypatch.setattr("finetune.train.micro_batches", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        ablation.run(config)
    assert (folder / "pretrain/model").exists() and not (folder / "result.json").exists()
    assert "resuming from" in (folder / "log.txt").read_text()

    monkeypatch.setattr("finetune.train.micro_batches", micro_batches)
    monkeypatch.setattr(ablation, "run_pretrain", _interrupt)  # must not be called any more
    ablation.run(config)
    theirs = json.loads((undisturbed.output / "runs/geometric+sbo/seed-5/result.json").read_text())
    assert json.loads((folder / "result.json").read_text()) == theirs
    assert not (folder / "pretrain/checkpoints").exists() and not (folder / "start").exists()


def test_all_arms_of_a_seed_begin_with_the_same_weights(config, monkeypatch, tmp_path):
    """Random ones of that seed; with --init-from the given ones, whatever the seed."""
    begun = []

    def look(_command, options):
        begun.append(load_model(options.init_from, SpanBertForPretraining)[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "finish", look)
    given = tmp_path / "given"
    for name, seed, source in (
        ("subword", 5, None),
        ("geometric+nsp", 5, None),
        ("geometric", 6, None),
        ("geometric", 5, given),
    ):
        changed = dataclasses.replace(config, init_from=source, output=tmp_path / f"{name}-{seed}-{source is None}")
        if source is not None:
            save_model(given, begun[2], Tokenizer.load(config.data / "tokenizer"))
        with pytest.raises(KeyboardInterrupt):
            ablation.run_arm(changed, name, seed, changed.output)
    words = [model.encoder.embeddings.word.weight for model in begun]
    assert words[0].equal(words[1]) and not words[0].equal(words[2]) and words[2].equal(words[3])


def test_a_run_that_another_process_holds_is_left_alone(config, monkeypatch):
    done = []
    monkeypatch.setattr(
        ablation, "run_arm", lambda _config, name, seed, _folder: done.append(name) or {"exact": 0, "f1": 0}
    )
    with ablation.claim(config.output / "runs/geometric+sbo/seed-5") as ours:
        assert ours
        ablation.work(config)
    assert done == ["geometric+nsp"]
    ablation.work(config)
    assert done == ["geometric+nsp", "geometric+sbo"]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt

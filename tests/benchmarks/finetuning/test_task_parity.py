"""Short versions of the comparisons with transformers, and that they would notice a difference."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.finetuning import engine, task_parity
from benchmarks.finetuning.engine import engine_config, windows_of
from benchmarks.finetuning.peers import Pair, learning_rates, worst
from benchmarks.finetuning.sides import TheirSide, Work, our_side
from benchmarks.finetuning.task_parity import Comparison, TaskParityConfig
from benchmarks.finetuning.turns import Block
from finetune.tasks.classification.task import ClassifyTask
from finetune.tasks.ner.task import NerTask
from finetune.tasks.relation.task import RelationTask
from spanbert.checkpoint.model_folder import save_model
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer

#: Sentences of different lengths, whose words are one token or many.
SENTENCES = [
    [("Wikinews", "B-ORG"), ("met", "O"), ("Jo", "B-PER"), ("Longfellow", "I-PER")],
    [("the", "O"), ("end", "O")],
    [("from", "O"), ("Springfield", "B-LOC"), ("to", "O"), ("Uqbar", "B-LOC"), ("and", "O"), ("that", "O"), ("day", "O")],
    [("Ada", "B-PER"), ("said", "O"), ("no", "O")],
    [("nothing", "O")],
    [("more", "O"), ("than", "O"), ("five", "O"), ("words", "O"), ("of", "O"), ("Tlön", "B-LOC"), ("here", "O")],
]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path, make_model: Callable[..., SpanBertForQuestionAnswering], tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "model", make_model(), tokenizer)
    return tmp_path / "model"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Training files by task."""
    ner, classify, relation = tmp_path / "train.conll", tmp_path / "train.txt", tmp_path / "train.jsonl"
    ner.write_text("".join("".join(f"{word}\t{tag}\n" for word, tag in pairs) + "\n" for pairs in SENTENCES))
    lines = [f"{('short', 'long')[len(pairs) > 3]} {' '.join(word for word, _ in pairs)}\n" for pairs in SENTENCES]
    classify.write_text("".join(lines))
    pairs = []
    for n, words in enumerate(SENTENCES):
        text = " ".join(word for word, _ in words)
        first, last = [0, len(words[0][0])], [len(text) - len(words[-1][0]), len(text)]
        pairs.append({"text": text, "subject": first, "object": last, "relation": ("near", "far")[n % 2]})
    relation.write_text("".join(json.dumps(pair) + "\n" for pair in pairs if pair["subject"] != pair["object"]))
    return {"ner": ner, "classify": classify, "relation": relation}


@pytest.fixture
def work(tmp_path: Path, model: Path, files: dict[str, Path]) -> Callable[[str], Work]:
    def make(name: str) -> Work:
        task = {"ner": NerTask, "relation": RelationTask, "classify": ClassifyTask}[name]()
        records = task.read(files[name], "train")
        task = task.learned_from(records)
        features = task.encode(records, task_parity.start(tmp_path / name, model, task, seed=2), "train")
        options = engine_config(tmp_path / name, batch_size=4, seed=2)
        return Work(tmp_path / name, task, features, options, learning_rates(5e-3, 6))

    return make


def losses(work: Work) -> list[Pair]:
    ours, theirs = our_side(work), TheirSide(work)
    steps = range(len(work.rates))
    return [Pair(ours.step(number).item(), theirs.step(number).item()) for number in steps]


@pytest.mark.parametrize("name", ["ner", "relation", "classify"])
def test_six_steps_give_the_losses_of_transformers(work: Callable[[str], Work], name: str) -> None:
    """Batches of four and of two windows, so that a loss is a mean over another number of labels in each."""
    pairs = losses(work(name))
    assert len(pairs) == 6
    assert worst(pairs) < 2e-5
    assert len({round(pair.ours, 4) for pair in pairs}) == 6


@pytest.mark.parametrize("name", ["ner", "relation", "classify"])
def test_another_weight_decay_would_be_noticed(
    work: Callable[[str], Work], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = engine.adamw
    monkeypatch.setattr(engine, "adamw", lambda model, lr, weight_decay, rate_of: original(model, lr, weight_decay=2.0))
    assert worst(losses(work(name))) > 1e-4


def test_a_loss_over_all_tokens_would_be_noticed(work: Callable[[str], Work], monkeypatch: pytest.MonkeyPatch) -> None:
    """The words' first tokens are counted, not every token."""
    ner = work("ner")
    counted = type(ner.features).count
    monkeypatch.setattr(type(ner.features), "count", lambda features, windows: int(features.lengths[windows].sum()))
    assert worst(losses(ner)) > 1e-2
    monkeypatch.setattr(type(ner.features), "count", counted)


def test_the_ratio_is_taken_within_pairs_and_the_first_pair_warms_up(work: Callable[[str], Work]) -> None:
    """Here the machine becomes three times as slow on the way: ratios of the pairs stay 2, those of medians would not."""
    speed = [9.0, 1.0, 1.0, 3.0]
    ours = [Block(seconds, [0.5, 0.25]) for seconds in speed]
    theirs = [Block(factor * seconds, [0.5, 0.26]) for factor, seconds in zip((50, 2, 2, 2), speed)]
    pairs = [Pair(a, b) for left, right in zip(ours, theirs) for a, b in zip(left.losses, right.losses)]
    result = task_parity.summary(work("classify"), Comparison(pairs, ours, theirs), tolerance=1e-3)
    assert result["ratio"] == 2.0
    assert result["windows_per_second"] == {"ours": 8.0, "transformers": 4.0}
    assert result["largest_difference"] == pytest.approx(0.01)
    assert not result["passed"]


def test_tokens_are_counted_as_packed_and_as_padded(work: Callable[[str], Work]) -> None:
    classify = work("classify")
    lengths = classify.features.lengths
    real, padded = task_parity.tokens_of(classify)
    assert real == 3 * lengths.sum()  # six steps are three passes
    longest = [lengths[windows_of(classify.features, step, classify.config)].max() for step in range(6)]
    assert padded == sum(int(most) * count for most, count in zip(longest, (4, 2) * 3))


@pytest.mark.slow
def test_the_command_compares_both_in_processes_of_their_own(
    tmp_path: Path, model: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = TaskParityConfig(
        model, "classify", files["classify"], steps=6, block=2, batch_size=4, json=tmp_path / "result.json"
    )
    assert task_parity.main(config) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["largest_difference"] < 2e-5
    assert [len(result["seconds"][side]) for side in ("ours", "transformers")] == [3, 3]
    assert f"ratio {result['ratio']:.2f}" in capsys.readouterr().out

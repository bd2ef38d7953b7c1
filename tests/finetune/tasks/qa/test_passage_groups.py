"""`finetune qa --passages N`: which passages a question is trained on, that they stay together, and what the loss is."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.epoch_draws import in_epoch, unit_of
from finetune.retrieval.terms import terms
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.commands import FinetuneQAConfig, run_finetune
from finetune.tasks.qa.encode import encode_questions
from finetune.tasks.qa.features import QuestionSet
from finetune.tasks.qa.metrics import normalize_answer
from finetune.tasks.qa.negatives import holds_answer, near_contexts
from finetune.tasks.qa.passage_groups import PassageGroups
from finetune.tasks.qa.records import QuestionFile, read_questions
from finetune.tasks.qa.shared_loss import shared_loss_sum
from finetune.tasks.qa.task import QASettings, QATask, qa_loss_sum
from finetune.train import Drawn, micro_batches
from spanbert.checkpoint.model_folder import save_model
from spanbert.distributed import Group, alone
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import read_metrics

TOWNS = ("Oslo", "Turku", "Riga", "Visby", "Narva", "Bergen")
YEARS = ("1901", "1902", "1901", "1904", "1905", "1906")  # the first answers two paragraphs
SETTINGS = QASettings(window=64, stride=20, max_question=40, passages=3)


@pytest.fixture(scope="session")
def ships(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two articles: one of six paragraphs, of which the last is longer than a window, and one of a single paragraph."""
    paragraphs = []
    for town, year in zip(TOWNS, YEARS, strict=True):
        context = ("It was cold and dark, and no one sang. " * 6 if town == TOWNS[-1] else "") + (
            f"The ship of {town} left in {year} and sank."
        )
        asked = [
            ("where", f"Which town had the ship of {year}?", town),
            ("when", f"When did {town}'s ship sink?", year),
        ]
        paragraphs.append(
            {
                "context": context,
                "qas": [
                    {
                        "id": f"{town}-{kind}",
                        "question": question,
                        "answers": [{"text": answer, "answer_start": context.rindex(answer)}],
                    }
                    for kind, question, answer in asked
                ],
            }
        )
    paragraphs[0]["qas"].append({"id": "none", "question": "Who saw the ship?", "answers": [], "is_impossible": True})
    lone = {"context": "The ship of Rome.", "qas": [{"id": "lone", "question": "Whose ship?", "answers": [
        {"text": "Rome", "answer_start": 12}]}]}  # fmt: skip
    articles = [{"title": "Ships", "paragraphs": paragraphs}, {"title": "Rome", "paragraphs": [lone]}]
    path = tmp_path_factory.mktemp("ships") / "ships.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles}))
    return path


@pytest.fixture
def records(ships: Path) -> QuestionFile:
    return read_questions(ships, "train")


@pytest.fixture
def groups(records: QuestionFile, tokenizer: Tokenizer) -> PassageGroups:
    found = QATask(SETTINGS).encode(records, tokenizer, "train")
    assert isinstance(found, PassageGroups)
    return found


@pytest.fixture
def config(
    ships: Path, tmp_path: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> FinetuneQAConfig:
    """An epoch of 4 steps."""
    save_model(tmp_path / "start", make_model(), tokenizer)
    return FinetuneQAConfig(
        ships,
        tmp_path / "run",
        str(tmp_path / "start"),
        epochs=1,
        batch_size=4,
        lr=1e-3,
        window=64,
        stride=20,
        max_question=40,
        passages=3,
        log_every=1,
        device="cpu",
        precision="fp32",
        backend="eager",
    )


# --- the loss ----------------------------------------------------------------------------------------------------------


def by_hand(windows: list[Tensor], labels: list[int], questions: list[int]) -> Tensor:
    """The formula of ``shared_loss``'s docstring for starts, or for ends, question by question, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for question in set(questions):
        members = [w for w, owner in enumerate(questions) if owner == question]
        tokens = sum(windows[w][1:].exp().sum() for w in members)
        holding = [w for w in members if labels[w] > 0]
        gold = sum(windows[w][labels[w]].exp() for w in holding)
        counted = holding or members
        for w in counted:
            null = windows[w][0].exp()
            total += -torch.log((gold if holding else null) / (null + tokens)) / len(counted)
    return total


def test_the_loss_is_the_formula_and_leaves_the_nulls_of_other_windows_alone() -> None:
    """Three questions: the answer in one window of two, in two overlapping ones of three, and in none of two."""
    lengths = [5, 7, 4, 6, 3, 8, 2]
    starts, ends = [2, 0, 1, 3, 0, 0, 0], [4, 0, 1, 5, 0, 0, 0]
    questions = [9, 9, 4, 4, 4, 7, 7]
    logits_2T = torch.randn(2, sum(lengths), generator=torch.Generator().manual_seed(0)).mul(3).requires_grad_()
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    labels_B3 = torch.tensor([starts, ends, questions]).T
    loss = shared_loss_sum(*logits_2T, cu_seqlens, max(lengths), labels_B3)
    (gradient,) = torch.autograd.grad(loss, logits_2T)

    exact_2T = logits_2T.detach().double().requires_grad_()
    expected = sum(
        by_hand(list(torch.split(row, lengths)), labels, questions)
        for row, labels in zip(exact_2T, (starts, ends), strict=True)
    ) / 2  # fmt: skip
    (expected_gradient,) = torch.autograd.grad(expected, exact_2T)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(gradient, expected_gradient.float(), atol=1e-6)
    null_2B = gradient[:, cu_seqlens[:-1].long()]
    assert (null_2B[:, [1, 4]] == 0).all()  # a window without the answer, which stands in another one
    assert (null_2B[:, [0, 2, 3]] > 0).all()  # … with it: the null is wrong
    assert (null_2B[:, [5, 6]] < 0).all()  # no answer anywhere: every null is right


def test_a_question_with_one_window_costs_what_it_costs_without_passages() -> None:
    lengths = [5, 7, 4]
    logits_2T = torch.randn(2, sum(lengths), generator=torch.Generator().manual_seed(1)) * 3
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    labels_B3 = torch.tensor([[1, 3, 0], [0, 0, 1], [2, 2, 2]])
    shared = shared_loss_sum(*logits_2T, cu_seqlens, max(lengths), labels_B3)
    before = qa_loss_sum(*logits_2T, cu_seqlens, max(lengths), labels_B3[:, :2])
    assert shared.item() == pytest.approx(before.item(), rel=1e-6)


def test_one_passage_trains_as_ever(records: QuestionFile, tokenizer: Tokenizer) -> None:
    """The same windows, in the same order, with the same loss to the bit."""
    task = QATask(replace(SETTINGS, passages=1))
    found = task.encode(records, tokenizer, "train")
    plain = encode_questions(records.paragraphs, tokenizer, task.settings.windows, records.report.malformed)
    assert type(found) is QuestionSet
    assert in_epoch(found, 0, 3) is found
    assert unit_of(found) == "windows"
    windows = np.arange(len(plain.lengths))
    assert found.labels(windows).tolist() == plain.labels(windows).tolist()
    assert found.packed(windows).input_ids_T.tolist() == plain.packed(windows).input_ids_T.tolist()
    batch, labels = found.packed(windows).tensors(), torch.from_numpy(found.labels(windows))
    output = tuple(torch.randn(2, batch.tokens, generator=torch.Generator().manual_seed(2)))
    expected = qa_loss_sum(*output, batch.cu_seqlens, batch.max_seqlen, labels)
    assert torch.equal(task.loss((output[0], output[1]), labels, batch), expected)


# --- the negatives -----------------------------------------------------------------------------------------------------


def test_negatives_are_other_paragraphs_of_the_article_without_the_answer(records: QuestionFile) -> None:
    """A paragraph that holds another question's answer is one; those of 1901 are not for each other's "1901"."""
    ids, golds = records.golds()
    near_QK = near_contexts(records.paragraphs, ids, 10)
    articles = [paragraph.article for paragraph in records.paragraphs]
    own = {q.id: number for number, paragraph in enumerate(records.paragraphs) for q in paragraph.questions}
    for question, answers, row in zip(ids, golds, near_QK, strict=True):
        found = [number for number in row if number >= 0]
        assert row.tolist() == found + [-1] * (5 - len(found))
        assert len(set(found)) == len(found)
        assert own[question] not in found
        for number in found:
            assert articles[number] == articles[own[question]]
            assert not any(answer.lower() in records.paragraphs[number].context.lower() for answer in answers)
    counts = dict(zip(ids, (near_QK >= 0).sum(axis=1).tolist(), strict=True))
    assert counts["lone"] == counts["none"] == 0
    assert counts["Oslo-when"] == counts["Riga-when"] == 4
    assert counts["Oslo-where"] == counts["Turku-when"] == 5


def test_the_nearest_come_first(records: QuestionFile) -> None:
    """By how many of the question's rarer words stand there: only "1901" tells these paragraphs apart."""
    ids, _ = records.golds()
    near_QK = near_contexts(records.paragraphs, ids, 1)
    assert near_QK[ids.index("Oslo-where"), 0] == 2
    assert near_QK[ids.index("Riga-where"), 0] == 0
    assert "1901" in terms(records.paragraphs[2].context)


@pytest.mark.parametrize(
    ("text", "answer", "holds"),
    [
        ("The Norman kings", "norman", True),
        ("THE BATTLE of Hastings.", "battle of the Hastings", True),  # one answer to the metric
        ("It was soaked.", "oak", True),  # inside a word: it is left out all the same
        ("It was soaked.", "oaks", False),
        ("A cat", "the", False),  # nothing is left of it: as it is written
        ("By the sea", "the", True),
        ("sold for 5%", "%", True),
    ],
)
def test_an_answer_is_found_as_the_metric_compares(text: str, answer: str, holds: bool) -> None:
    assert holds_answer(text, normalize_answer(text), ["nowhere", answer]) is holds


def test_a_draw_is_a_function_of_seed_and_epoch(groups: PassageGroups) -> None:
    draws = [groups.in_epoch(3, epoch).drawn_QN for epoch in range(200)]
    assert groups.in_epoch(3, 5).drawn_QN.tolist() == draws[5].tolist()
    assert draws[0].tolist() != draws[1].tolist()
    assert groups.in_epoch(4, 0).drawn_QN.tolist() != draws[0].tolist()
    ids = groups.own.questions.ids
    of_oslo = np.array([draw[ids.index("Oslo-where")] for draw in draws])
    assert all(len(set(row)) == 2 for row in of_oslo.tolist())
    assert sorted(set(of_oslo.ravel().tolist())) == [1, 2, 3, 4, 5]
    # 200 draws of 2 out of 5: each 80 times, within 5 standard deviations of √(200 · .4 · .6) = 6.9
    assert abs(np.bincount(of_oslo.ravel())[1:] - 80).max() < 5 * 6.9
    assert all(draw[ids.index("lone")].tolist() == [-1, -1] for draw in draws)


# --- windows and batches -----------------------------------------------------------------------------------------------


def test_a_group_has_all_windows_of_the_own_paragraph_and_of_the_negatives(
    groups: PassageGroups, records: QuestionFile, tokenizer: Tokenizer
) -> None:
    """Cut here once more, step by step; the answer is labelled in the windows of its own paragraph that hold it."""
    drawn = groups.in_epoch(0, 0)
    asked = {question.id: question for question in records.questions}
    contexts = [tokenizer.encode(paragraph.context).ids.tolist() for paragraph in records.paragraphs]
    overlapping = 0
    for place, question in enumerate(drawn.own.questions.ids):
        passages = [int(drawn.own.questions.context_Q[place]), *(n for n in drawn.drawn_QN[place].tolist() if n >= 0)]
        words = tokenizer.encode(asked[question].text).ids.tolist()
        room, parts = 64 - 3 - len(words), []
        for passage in passages:
            first = 0
            while first == 0 or first - 20 + room < len(contexts[passage]):
                parts.append((passage, contexts[passage][first : first + room]))
                first += 20
        batch, labels = drawn.packed(np.array([place])), drawn.labels(np.array([place]))
        bounds = batch.cu_seqlens.tolist()
        read = [batch.input_ids_T[a:b].tolist() for a, b in pairwise(bounds)]
        assert read == [[tokenizer.cls_id, *words, tokenizer.sep_id, *part, tokenizer.sep_id] for _, part in parts]
        assert drawn.lengths[place] == batch.tokens
        assert (labels[:, 2] == place).all()
        answers = []
        for ids, (passage, _), (first, last, _) in zip(read, parts, labels.tolist(), strict=True):
            if last:
                assert passage == passages[0]
                answers.append(tokenizer.decode(np.array(ids[first : last + 1])))
        assert set(answers) == {tokenizer.decode(tokenizer.encode(one).ids) for one in asked[question].answers}
        overlapping += len(answers) > 1
    assert overlapping


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_question_is_never_cut_into_two_micro_batches(
    groups: PassageGroups, config: FinetuneQAConfig, size: int, world: int
) -> None:
    """On no number of ranks: every micro-batch has all windows of its questions."""
    drawn = groups.in_epoch(0, 1)
    chosen = np.array([4, 0, 11, 7, 2])
    config = replace(config, micro_batch_size=size)
    found = []
    for rank in range(world):
        group = Group(rank, world, torch.device("cpu"), world > 1)
        for part in micro_batches([Drawn(drawn, chosen)], config, group):
            assert part.packed.sequences == len(part.labels)
            if math.isfinite(part.divisor):
                assert part.divisor == 5
                found += sorted(set(part.labels[:, 2].tolist()))
                for question in set(part.labels[:, 2].tolist()):
                    windows = int((part.labels[:, 2] == question).sum())
                    assert windows == len(drawn.windows_of(np.array([question])))
    assert sorted(found) == sorted(chosen.tolist())


def test_select_keeps_each_questions_passages(groups: PassageGroups) -> None:
    order = np.array([11, 3, 0])
    part = groups.select(order)
    assert part.examples == 3
    assert part.lengths.tolist() == groups.lengths[order].tolist()
    for place, question in enumerate(order):
        one, other = np.array([place]), np.array([question])
        assert part.packed(one).input_ids_T.tolist() == groups.packed(other).input_ids_T.tolist()
        assert part.labels(one)[:, :2].tolist() == groups.labels(other)[:, :2].tolist()


# --- runs --------------------------------------------------------------------------------------------------------------


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl") if record["split"] == "train"]


def test_a_run_says_what_it_draws_and_the_model_remembers(
    config: FinetuneQAConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_finetune(config)
    output = capsys.readouterr().out
    assert "over 3 passages: its paragraph, and others of its article, drawn in each epoch from the 5 nearest" in output
    assert "1 questions have fewer such paragraphs, and 1 of them none" in output
    assert "1 questions without an answer stay with their own paragraph" in output
    assert "14 questions in 14 groups of passages · 1 × 4 steps of 4 groups of passages" in output
    assert json.loads((config.output / "model" / "config.json").read_text())["qa"]["passages"] == 3
    assert "| passages | 3 |" in (config.output / "model" / "README.md").read_text(encoding="utf-8")
    assert QuestionAnswerer.load(config.output, device="cpu").settings.passages == 3


def test_a_stopped_run_resumes_bit_for_bit(config: FinetuneQAConfig, resumes_bit_for_bit: Callable[..., None]) -> None:
    """In its second epoch, too, whose negatives are others."""
    resumes_bit_for_bit(run_finetune, config)


def test_micro_batches_do_not_change_the_gradient(config: FinetuneQAConfig) -> None:
    config = replace(config, dropout=0.0)
    parts = replace(config, output=config.output.with_name("parts"), micro_batch_size=1)
    run_finetune(config)
    run_finetune(parts)
    assert losses(config.output) == pytest.approx(losses(parts.output), rel=1e-4)


@pytest.mark.slow
def test_two_ranks_have_the_losses_of_one(config: FinetuneQAConfig) -> None:
    """And so the weights, on which every loss but the first depends; but for those that no loss depends on, such as the
    last LayerNorm's bias, which moves all logits alike: their gradients are rounding errors, of which Adam makes steps."""
    config = replace(config, micro_batch_size=1, epochs=2)
    run_finetune(config)
    options = {
        "train": config.train, "init": config.init, "epochs": 2, "batch-size": 4, "micro-batch-size": 1, "lr": "1e-3",
        "window": 64, "stride": 20, "max-question": 40, "passages": 3, "device": "cpu", "precision": "fp32",
        "backend": "eager", "log-every": 1, "output": config.output.with_name("two"),
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "spanbert"]
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run([*command, "finetune", "qa", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = losses(config.output), losses(config.output.with_name("two"))
    assert len(one) == 8
    assert one == pytest.approx(two, rel=1e-5)


def test_part_of_the_questions_and_old_ones_are_trained_on_alike(config: FinetuneQAConfig, data: Path) -> None:
    """With --max-train-questions a question keeps its passages; with --rehearse old questions come with theirs."""
    config = replace(config, max_train_questions=6, rehearse=config.train, rehearse_share=0.25)
    run_finetune(config)
    assert len(losses(config.output)) == 2
    assert all(math.isfinite(loss) for loss in losses(config.output))


def test_the_old_questions_of_a_step_are_whole_groups(groups: PassageGroups, config: FinetuneQAConfig) -> None:
    parts = micro_batches([Drawn(groups, np.arange(3)), Drawn(groups, np.arange(2))], config, alone())
    assert [part.divisor for part in parts] == [5.0, 5.0]
    assert [len(set(part.labels[:, 2].tolist())) for part in parts] == [3, 2]


def test_no_passages_are_refused(config: FinetuneQAConfig) -> None:
    with pytest.raises(UserError, match="passages is 0: expected at least 1"):
        run_finetune(replace(config, passages=0))
    assert not config.output.exists()


def test_more_passages_than_an_article_has_are_all_of_them(records: QuestionFile, tokenizer: Tokenizer) -> None:
    """However large the number is: nothing of its size is made."""
    found = QATask(replace(SETTINGS, passages=10**12)).encode(records, tokenizer, "train")
    assert isinstance(found, PassageGroups)
    drawn = found.in_epoch(0, 0)
    assert sorted(drawn.drawn_QN[drawn.own.questions.ids.index("Oslo-where")].tolist()) == [1, 2, 3, 4, 5]
    assert any(note.startswith("13 questions have fewer") for note in drawn.notes)


def test_a_file_without_other_paragraphs_is_refused(config: FinetuneQAConfig, data: Path) -> None:
    """Its articles have one paragraph, or two in different languages."""
    with pytest.raises(UserError, match=r"--passages 3: no question of .*qa_v1\.json has another paragraph"):
        run_finetune(replace(config, train=data / "qa_v1.json"))
    assert not config.output.exists()


def test_a_run_does_not_go_on_with_another_number_of_passages(config: FinetuneQAConfig) -> None:
    run_finetune(config)
    with pytest.raises(UserError, match="passages"):
        run_finetune(replace(config, passages=2, resume=True))

"""A tiny comparison of going on learning: nothing on both sides of the split, all ways run, a second call does nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.finetuning import going_on
from benchmarks.finetuning.going_on import GoingOnConfig, finetune_config, run, split_by_article
from spanbert.checkpoint.model_folder import save_model
from spanbert.config import to_dict
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer

DATA = Path(__file__).parents[2] / "data"


def squad_file(path: Path, articles: int, questions: int) -> Path:
    """So many questions of each article, whose title stands twice, as in files that were made question by question."""
    data = []
    for article in range(articles):
        qas = [
            {"id": f"{article}-{n}", "question": "who was it", "answers": [{"text": "end", "answer_start": 4}]}
            for n in range(questions)
        ]
        context = f"the end {'of ' * article}"
        for half in (qas[: questions // 2], qas[questions // 2 :]):
            data.append({"title": f"title {article}", "paragraphs": [{"context": context, "qas": half}]})
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return path


def ids_and_titles(content: dict) -> tuple[list[str], set[str]]:
    questions = [q for article in content["data"] for p in article["paragraphs"] for q in p["qas"]]
    return [question["id"] for question in questions], {article["title"] for article in content["data"]}


def test_the_split_is_by_article_seeded_and_as_large_as_asked(tmp_path: Path) -> None:
    path = squad_file(tmp_path / "new.json", articles=12, questions=5)
    train, held_out = split_by_article(path, 13, 30, seed=3)
    (train_ids, train_titles), (held_ids, held_titles) = map(ids_and_titles, (train, held_out))
    assert (len(set(train_ids)), len(set(held_ids))) == (30, 13)
    assert not train_titles & held_titles
    assert split_by_article(path, 13, 30, seed=3) == (train, held_out)
    assert split_by_article(path, 13, 20, seed=3)[1] == held_out
    assert ids_and_titles(split_by_article(path, 13, 30, seed=4)[1])[1] != held_titles
    with pytest.raises(
        UserError, match=r"new\.json: 5 questions are missing for 1 to hold out and 60 of other articles"
    ):
        split_by_article(path, 1, 60, seed=0)
    path.write_text('{"data": 3}')
    with pytest.raises(UserError, match="is not a SQuAD file"):
        split_by_article(path, 1, 1, seed=0)


@pytest.fixture
def config(
    tmp_path: Path, make_model: Callable[..., SpanBertForQuestionAnswering], tokenizer: Tokenizer
) -> GoingOnConfig:
    save_model(tmp_path / "start", make_model(), tokenizer)
    return GoingOnConfig(
        old=DATA / "qa_v1.json",
        old_dev=DATA / "qa_v1.json",
        new=squad_file(tmp_path / "new.json", articles=4, questions=4),
        output=tmp_path / "out",
        init=str(tmp_path / "start"),
        ways=("alone", "both"),
        seeds=(0,),
        questions=8,
        held_out=4,
        old_questions=4,
        old_dev_questions=3,
        batch_size=4,
        window=96,
        rehearse_share=0.25,
        device="cpu",
    )


def test_both_scores_are_kept_reported_and_not_made_again(
    config: GoingOnConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run(config)
    results = json.loads((config.output / "results.json").read_text())
    assert [one["way"] for one in results["runs"]] == ["alone", "both"]
    assert set(results["before"]) == {"old", "new", "seconds", "processor_seconds"}
    report = (config.output / "report.md").read_text()
    for one in results["runs"]:
        name = "the new questions alone" if one["way"] == "alone" else one["way"]
        cells = " | ".join(f"{one[which][metric]:.2f}" for which in ("old", "new") for metric in ("exact", "f1"))
        assert f"| {name} | 1 | {cells} |" in report
    assert {path.name for path in (config.output / "runs" / "both" / "seed-0").iterdir()} == {
        ".lock",
        "log.txt",
        "result.json",
    }
    monkeypatch.setattr(going_on, "run_finetune", lambda options: pytest.fail("it is done"))
    run(config)
    assert json.loads((config.output / "results.json").read_text())["runs"] == results["runs"]
    with pytest.raises(UserError, match="questions = 8, now it is 7"):
        run(GoingOnConfig(**{**vars(config), "questions": 7}))
    capsys.readouterr()


def test_each_way_is_its_options(config: GoingOnConfig) -> None:
    options = {way: finetune_config(config, way, 1, config.output) for way in going_on.WAYS}
    told = {way: (one.rehearse is not None, one.pull > 0) for way, one in options.items()}
    assert told == {"alone": (False, False), "rehearsal": (True, False), "pull": (False, True), "both": (True, True)}
    same = [
        {key: value for key, value in to_dict(one).items() if key not in ("rehearse", "pull")}
        for one in options.values()
    ]
    assert all(one == same[0] for one in same)

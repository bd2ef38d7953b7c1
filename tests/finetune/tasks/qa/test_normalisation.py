"""Values worked out by hand from the definitions of the scripts of CMRC 2018, DRCD and MLQA."""

from typing import get_args

import pytest

from finetune.tasks.qa.metrics import (
    Metric,
    exact_match,
    metric_of_file,
    qa_metrics,
    score_question,
    token_f1,
)
from finetune.tasks.qa.normalisation import FORMS, longest_run, shared_words


def scores(prediction: str, gold: str, metric: Metric) -> tuple[float, float]:
    return score_question(prediction, [gold], version_2=False, metric=metric)


def test_every_metric_has_a_form() -> None:
    assert set(get_args(Metric)) == {"squad", *FORMS}


@pytest.mark.parametrize(
    ("metric", "text", "tokens"),
    [
        ("cmrc", "《战国无双3》是Koei Tecmo的", ["战", "国", "无", "双", "3", "是", "koei", "tecmo", "的"]),
        ("cmrc", "光荣和ω-force", ["光", "荣", "和", "ωforce"]),  # the script drops the hyphen, and one word is left
        ("cmrc", "3.5万, 约", ["3.5", "万", ",", "约"]),  # an ASCII comma is none of the script's punctuation
        ("drcd", "約 1,786年（Sanskrit）", [*"約1786年sanskrit"]),
        ("mlqa-zh", "《战国无双3》是Koei Tecmo的", ["战", "国", "无", "双", "3", "是", "koei", "tecmo", "的"]),
        ("mlqa-zh", "the 猫", ["the", "猫"]),  # Chinese has no articles, and another language's stay
        ("mlqa-de", "Dem „großen“ Haus des Meisters", ["großen", "haus", "meisters"]),
        ("mlqa-de", "the Haus", ["the", "haus"]),
        ("mlqa-es", "¿Las unas del Río?", ["del", "río"]),
        ("mlqa-en", "The “quoted” cat", ["quoted", "cat"]),
    ],
)
def test_tokens(metric: str, text: str, tokens: list[str]) -> None:
    assert FORMS[metric].tokens(text) == tokens


def test_cmrc_counts_the_longest_run_and_not_all_shared_tokens() -> None:
    assert longest_run("abxcd", "abycd") == 2
    assert shared_words("abxcd", "abycd") == 4
    assert longest_run("xabc", "abcx") == 3
    assert longest_run("", "a") == longest_run("a", "") == 0


@pytest.mark.parametrize(
    ("metric", "f1"),
    [
        ("squad", 0.0),  # one word against another
        ("cmrc", 2 / 5),  # 北京 or 大学: 2 of 5 on both sides
        ("drcd", 4 / 5),
        ("mlqa-zh", 4 / 5),
    ],
)
def test_the_metrics_differ_where_a_character_in_the_middle_is_another(metric: Metric, f1: float) -> None:
    assert scores("北京和大学", "北京的大学", metric) == (0.0, pytest.approx(f1))


@pytest.mark.parametrize(
    ("metric", "exact", "f1"),
    [
        ("squad", 0.0, 0.0),
        ("cmrc", 0.0, 2 / 3),  # tokens 3, 年, abc against 3, 年, abd: 2 of 3
        ("drcd", 0.0, 4 / 5),  # 3 年 a b c against 3 年 a b d: 4 of 5
        ("mlqa-zh", 0.0, 2 / 3),
    ],
)
def test_only_drcd_splits_latin_words(metric: Metric, exact: float, f1: float) -> None:
    assert scores("3年abc", "3年abd", metric) == (exact, pytest.approx(f1))


def test_exact_match_differs_by_what_is_punctuation() -> None:
    # full-width signs: of CMRC's list and of Unicode, not of ASCII
    found = {metric: exact_match("《红楼梦》", "红楼梦", metric) for metric in get_args(Metric)}
    assert [metric for metric, same in found.items() if not same] == ["squad"]
    # an ASCII comma is in SQuAD's and Unicode's, not in CMRC's; white space counts for CMRC
    assert exact_match("1,786", "1786", "cmrc") == 0.0
    assert exact_match("1,786", "1786", "drcd") == exact_match("1,786", "1786") == 1.0
    assert exact_match("王 菲", "王菲", "cmrc") == 0.0
    assert exact_match("王 菲", "王菲", "drcd") == exact_match("王 菲", "王菲", "mlqa-zh") == 1.0


def test_each_language_has_its_own_articles() -> None:
    # German: "der alte Mann" without its article is "alte Mann"; other languages keep "der", 2 of 3 words are shared
    assert scores("der alte Mann", "alte Mann", "mlqa-de") == (1.0, 1.0)
    assert scores("der alte Mann", "alte Mann", "mlqa-es") == (0.0, pytest.approx(4 / 5))
    assert scores("der alte Mann", "alte Mann", "squad") == (0.0, pytest.approx(4 / 5))
    assert scores("la casa", "casa", "mlqa-es") == (1.0, 1.0)
    assert scores("la casa", "casa", "mlqa-en") == (0.0, pytest.approx(2 / 3))
    # "des" is a German article, and "dessen" is none
    assert scores("dessen", "sen", "mlqa-de") == (0.0, 0.0)


def test_mlqa_in_english_agrees_with_squad_but_for_unicode_punctuation() -> None:
    for prediction, gold in (("The Cat.", "cat"), ("new new york", "the New York City"), ("the", "an")):
        assert scores(prediction, gold, "mlqa-en") == scores(prediction, gold, "squad")
    assert scores("“cat”", "cat", "mlqa-en") == (1.0, 1.0)
    assert scores("“cat”", "cat", "squad") == (0.0, 0.0)


def test_the_best_gold_counts_and_no_answer_is_compared_with_every_metric() -> None:
    assert score_question("光荣", ["光", "光荣。"], version_2=False, metric="cmrc") == (1.0, 1.0)
    assert score_question("", [], version_2=True, metric="cmrc") == (1.0, 1.0)
    assert score_question("光", [], version_2=True, metric="cmrc") == (0.0, 0.0)
    assert token_f1("。", "，", version_2=True, metric="drcd") == 1.0
    assert score_question("猫", ["。"], version_2=True, metric="drcd") == (0.0, 0.0)  # that gold is left out


def test_means_are_of_the_chosen_metric() -> None:
    golds = {"a": ["北京的大学"], "b": ["红楼梦"]}
    answers = {"a": "北京和大学", "b": "《红楼梦》"}
    found = {metric: qa_metrics(golds, answers, version_2=False, metric=metric) for metric in get_args(Metric)}
    assert (found["squad"]["exact"], found["squad"]["f1"]) == (0.0, 0.0)
    assert (found["cmrc"]["exact"], found["cmrc"]["f1"]) == (50.0, pytest.approx(70.0))
    assert (found["drcd"]["exact"], found["drcd"]["f1"]) == (50.0, pytest.approx(90.0))


def test_a_metric_is_recognised_only_by_ids_and_never_against_what_was_asked() -> None:
    cmrc, other = ["DEV_0_QUERY_0", "TRIAL_12_QUERY_3"], ["DEV_0_QUERY_0", "1147-5-1"]
    assert metric_of_file(None, cmrc, [["光荣"], ["3"]]).metric == "cmrc"
    assert "ids are those of CMRC 2018" in metric_of_file(None, cmrc, [["光荣"], ["3"]]).notes[0]
    assert metric_of_file("drcd", cmrc, [["光荣"], ["3"]]) == ("drcd", ())
    assert metric_of_file(None, other, [["cat"], ["dog"]]) == ("squad", ())
    chosen = metric_of_file(None, other, [["光荣"], ["梵語"]])
    assert chosen.metric == "squad" and "choose --metric cmrc, drcd or mlqa-zh" in chosen.notes[0]
    assert metric_of_file(None, other, [["光荣"], ["cat"]]).notes == ()  # half of them are not most
    assert metric_of_file(None, [], []) == ("squad", ())

import gzip
import json
from pathlib import Path

import pytest

from finetune.records import RecordReport
from finetune.tasks.qa.encode import encode_with_texts
from finetune.tasks.qa.features import WindowConfig
from finetune.tasks.qa.records import Paragraph, read_questions
from finetune.tasks.qa.task import QATask
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import Tokenizer


def read(
    path: Path, *, skip_malformed: bool = False, check_offsets: bool = True
) -> tuple[list[Paragraph], RecordReport]:
    found = read_questions(path, "train" if skip_malformed else "evaluate", check_offsets=check_offsets)
    return found.paragraphs, found.report


def squad(question: dict, context: str = "The sky is blue.") -> str:
    paragraph = {"context": context, "qas": [question]}
    return json.dumps({"version": "1.1", "data": [{"title": "Sky", "paragraphs": [paragraph]}]})


def test_squad_1_1_spans_are_the_answers_in_the_files_order(data: Path) -> None:
    paragraphs, report = read(data / "qa_v1.json")
    assert [(p.article, p.number) for p in paragraphs] == [("Foxes", 0), ("北京", 0), ("北京", 1)]
    assert report.examples == 8
    assert not read_questions(data / "qa_v1.json", "train").impossible
    for paragraph in paragraphs:
        for question in paragraph.questions:
            assert question.answers
            assert [paragraph.context[a:b] for a, b in question.spans] == list(question.answers)
    fox = paragraphs[0].questions[0]
    assert fox.answers == ("Zürich", "Zürich", "to Zürich")
    first = paragraphs[0].context.index("Zürich")
    assert fox.spans[0][0] == paragraphs[0].context.index("Zürich", first + 1)  # as labelled, not the first occurrence


def test_squad_2_0_unanswerable_questions_have_no_answer_even_if_a_plausible_one_is_given(data: Path) -> None:
    paragraphs, report = read(data / "qa_v2.json")
    impossible = [q for p in paragraphs for q in p.questions if q.impossible]
    assert [q.id for q in impossible] == ["fox-x", "ada-x"]
    assert all(q.spans == () for q in impossible)
    assert report.examples == 10
    assert read_questions(data / "qa_v2.json", "train").summary() == "10 questions (2 unanswerable)"


def test_mrqa_counts_the_last_character_in_and_scores_against_answers(data: Path) -> None:
    paragraphs, _ = read(data / "qa_mrqa.jsonl")
    assert [p.article for p in paragraphs] == ["Toy", "Toy"]
    eye, stand = paragraphs[0].questions
    assert eye.id == "eye-1"
    assert eye.answers == ("The London Eye",)
    assert [paragraphs[0].context[a:b] for a, b in eye.spans] == ["London Eye", "london eye"]
    assert [paragraphs[0].context[a:b] for a, b in stand.spans] == ["London", "London"]
    rain = paragraphs[1].questions[0]
    assert paragraphs[1].context[slice(*rain.spans[0])] == "Bergen"


@pytest.mark.parametrize("name", ["qa_v2.json", "qa_mrqa.jsonl"])
def test_gzip_is_recognised_by_content_not_by_name(data: Path, tmp_path: Path, name: str) -> None:
    misleading = tmp_path / "questions.json"
    misleading.write_bytes(gzip.compress((data / name).read_bytes()))
    assert read(misleading)[0] == read(data / name)[0]


def test_a_squad_file_on_one_line_and_with_a_byte_order_mark_reads_the_same(data: Path, tmp_path: Path) -> None:
    compact = tmp_path / "compact.json"
    content = json.dumps(json.loads((data / "qa_v1.json").read_text(encoding="utf-8")))
    compact.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read(compact)[0] == read(data / "qa_v1.json")[0]


def test_training_skips_counts_and_names_every_malformed_record(data: Path, tokenizer: Tokenizer) -> None:
    found = read_questions(data / "qa_malformed.json", "train")
    report = found.report
    questions = encode_with_texts(found.paragraphs, tokenizer, WindowConfig(), report.malformed)
    assert questions.questions.ids == ["good-1", "control-question", "good-2"]
    assert report.skipped == {
        "answer not at its offset": 2,
        "duplicate id": 1,
        'missing field "answers"': 1,
        'missing field "answer_start"': 1,
        "no answer": 1,
        "contradiction": 1,
        'empty field "question"': 1,
        'field "question" of the wrong type': 1,
        'missing field "id"': 1,
        "record is not an object": 1,
        'missing field "context"': 1,
        "lone surrogate": 1,
        'missing field "paragraphs"': 1,
    }
    assert len(report.lines) == 14
    off_by_one = next(line for line in report.lines if "off-by-one" in line)
    assert 'article "Good and bad", paragraph 0, id off-by-one' in off_by_one
    assert "'2011'" in off_by_one
    assert "' 201'" in off_by_one
    assert "14 malformed records" in found.summary()


MALFORMED = {
    "offset": ({"id": "q", "question": "Why?", "answers": [{"text": "blue", "answer_start": 10}]}, "not at its offset"),
    "negative offset": (
        {"id": "q", "question": "Why?", "answers": [{"text": "blu", "answer_start": -5}]},
        "its offset",
    ),
    "past the end": ({"id": "q", "question": "Why?", "answers": [{"text": "blue", "answer_start": 99}]}, "its offset"),
    "no text": ({"id": "q", "question": "Why?", "answers": [{"answer_start": 0}]}, '"text"'),
    "true as offset": ({"id": "q", "question": "Why?", "answers": [{"text": "h", "answer_start": True}]}, "wrong type"),
    "no question": ({"id": "q", "answers": []}, '"question"'),
    "no answers": ({"id": "q", "question": "Why?", "answers": []}, "no answer"),
    "is_impossible null": ({"id": "q", "question": "?", "answers": [], "is_impossible": None}, "wrong type"),
    "both": ({"id": "q", "question": "?", "answers": [{"text": "T"}], "is_impossible": True}, "contradiction"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_evaluation_stops_at_a_malformed_record_and_says_where(tmp_path: Path, case: str) -> None:
    question, reason = MALFORMED[case]
    path = tmp_path / "dev.json"
    path.write_text(squad(question))
    with pytest.raises(UserError) as caught:
        read(path)
    for part in (str(path), 'article "Sky"', "paragraph 0", "id q", reason):
        assert part in str(caught.value)


def test_a_duplicate_id_is_found_across_articles(data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "qa_v1.json").read_text(encoding="utf-8"))
    content["data"][1]["paragraphs"][1]["qas"][2]["id"] = "fox-1"
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match='article "北京", paragraph 1, id fox-1: duplicate id'):
        read(path)


def test_offsets_may_be_ignored_for_scoring_by_text(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(squad({"id": "q", "question": "Why?", "answers": [{"text": "blue", "answer_start": -1}]}))
    with pytest.raises(UserError, match="--ignore-offsets"):
        read(path)
    (paragraph,), _ = read(path, check_offsets=False)
    assert paragraph.questions[0].answers == ("blue",)
    assert paragraph.questions[0].spans == ()
    assert not paragraph.questions[0].impossible


@pytest.mark.parametrize("last", [15, 16, 10**40])
def test_mrqa_span_beyond_its_context_is_malformed(last: int, tmp_path: Path) -> None:
    """Where the rest of the text was the answer, its end was believed however far it lay."""
    detected = [{"text": "blue.", "char_spans": [[11, last]]}]
    entry = {"qid": "q", "question": "?", "answers": ["blue."], "detected_answers": detected}
    (tmp_path / "mrqa.jsonl").write_text(json.dumps({"context": "The sky is blue.", "qas": [entry]}) + "\n")
    if last == 15:
        (paragraph,), _ = read(tmp_path / "mrqa.jsonl")
        assert paragraph.questions[0].spans == ((11, 16),)
    else:
        with pytest.raises(UserError, match="answer not at its offset"):
            read(tmp_path / "mrqa.jsonl")


def test_mrqa_span_that_is_another_text_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "mrqa.jsonl"
    answer = {"text": "blue", "char_spans": [[4, 6]]}  # "sky"
    entry = {"context": "The sky is blue.", "qas": [{"qid": "q", "question": "?", "answers": ["blue"]}]}
    entry["qas"][0]["detected_answers"] = [answer]
    path.write_text('{"header": {"dataset": "Toy"}}\n' + json.dumps(entry) + "\n{broken\n")
    with pytest.raises(UserError, match='article "Toy", line 2, id q: answer not at its offset'):
        read(path)
    answer["char_spans"] = [[11, 14]]
    path.write_text('{"header": {"dataset": "Toy"}}\n' + json.dumps(entry) + "\n{broken\n")
    with pytest.raises(UserError, match="line 3: line is not valid JSON"):
        read(path)
    (paragraph,), report = read(path, skip_malformed=True)
    assert paragraph.context[slice(*paragraph.questions[0].spans[0])] == "blue"
    assert report.skipped == {"line is not valid JSON": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no usable question"),
        (b"{", "not valid JSON"),
        (b"[1, 2]", "neither SQuAD"),
        (b'{"data": 3}', "neither SQuAD"),
        (b'{"data": []}', "no usable question"),
        (b'{"data": [\xff]}', "not UTF-8"),
        (gzip.compress(b'{"data": []}' * 50, mtime=0)[:-9], "damaged or cut short"),
    ],
)
def test_files_that_are_no_question_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for skip in (False, True):
        with pytest.raises(UserError, match=message):
            read(path, skip_malformed=skip)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        read(tmp_path / "absent.json")


def test_questions_without_answers_can_be_predicted(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text(squad({"id": "q", "question": "Why?"}))
    with pytest.raises(UserError, match=r'missing field "answers"; labels are needed.*`spanbert predict`'):
        read(path)
    (question,) = read_questions(path, "predict").questions
    assert (question.id, question.text, question.answers) == ("q", "Why?", ())


ROW = {"id": "a", "title": "T", "context": "The sky is blue.", "question": "How is the sky?"}
ANSWERS = {"text": ["blue"], "answer_start": [11]}


def test_files_that_were_joined_are_read_whole(data: Path, tmp_path: Path) -> None:
    """Of two SQuAD files joined by `cat`, 2 questions of 502 were read, and nothing was said."""
    path = tmp_path / "joined.json"
    first, second = (data / name for name in ("qa_v1.json", "qa_mrqa.jsonl"))
    compact = json.dumps(json.loads(first.read_text(encoding="utf-8")))
    other = squad({"id": "q", "question": "Why?", "answers": [{"text": "blue", "answer_start": 11}]})
    for separator in ("\n", "", "\n\n\ufeff"):
        path.write_text(compact + separator + other + separator, encoding="utf-8")
        found = read_questions(path, "evaluate")
        assert found.summary() == "9 questions (0 unanswerable)"
        assert found.paragraphs[-1].questions[0].spans == ((11, 15),)
    path.write_text(f"{compact}\n{squad({'id': 'q'})}\nrubbish")
    with pytest.raises(UserError, match=r'line 2, article "Sky", paragraph 0, id q: missing field "question"'):
        read_questions(path, "evaluate")
    with pytest.raises(UserError, match=r"joined\.json: line 3: not valid JSON"):
        read_questions(path, "train")
    # MRQA files bring a header each
    content = second.read_text(encoding="utf-8")
    path.write_text(content + content.replace("Toy", "Toy 2").replace('"qid": "', '"qid": "2-'), encoding="utf-8")
    again = read_questions(path, "evaluate")
    assert again.report.examples == 2 * read_questions(second, "evaluate").report.examples
    assert [p.article for p in again.paragraphs] == ["Toy", "Toy", "Toy 2", "Toy 2"]


@pytest.mark.parametrize("layout", ["lines", "data", "list", "nested"])
def test_flat_rows_are_read_as_the_same_questions(tmp_path: Path, layout: str) -> None:
    """As Hugging Face sets are exported: a row a question, answers as two lists, empty ones for an unanswerable one."""
    rows = [
        ROW | {"answers": ANSWERS},
        ROW | {"id": "b", "question": "Why?", "answers": {"text": [], "answer_start": []}},
        ROW | {"id": "c", "context": "It is blue.", "title": None, "answers": {"text": ["It"], "answer_start": [0]}},
    ]
    content: object = {"lines": None, "data": {"version": "1", "data": rows}, "list": rows}.get(layout)
    if layout == "nested":  # the same answers below paragraphs
        content = {"data": [{"paragraphs": [{"context": row["context"], "qas": [row]} for row in rows]}]}
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(row) for row in rows) if layout == "lines" else json.dumps(content, indent=1))
    found = read_questions(path, "evaluate")
    assert [(q.id, q.answers, q.spans) for q in found.questions] == [
        ("a", ("blue",), ((11, 15),)),
        ("b", (), ()),
        ("c", ("It",), ((0, 2),)),
    ]
    if layout != "nested":
        assert [len(p.questions) for p in found.paragraphs] == [2, 1]  # neighbours about one context share it
    assert [q.id for q in read_questions(path, "predict").questions] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("row", "place", "message"),
    [
        ({"answers": {"text": ["blue"], "answer_start": []}}, "id a", "lists of different lengths"),
        ({"answers": {"text": ["blue"]}}, "id a", 'missing field "answer_start"'),
        ({"answers": {"text": "blue", "answer_start": 11}}, "id a", 'field "text" of the wrong type: a string'),
        ({"answers": {"text": ["blue"], "answer_start": ["11"]}}, "id a", "a string, expected a whole number"),
        ({"answers": {"text": ["blue"], "answer_start": [float("nan")]}}, "id a", "a number, expected a whole number"),
        ({"answers": {"text": ["blue"], "answer_start": [11.0]}}, "id a", "a number, expected a whole number"),
        ({"answers": {"text": ["blue"], "answer_start": [10**4000]}}, "id a", "answer not at its offset"),
        ({"answers": {"text": ["blue"], "answer_start": [None]}}, "id a", "null, expected a whole number"),
        ({"answers": ANSWERS, "is_impossible": "false"}, "id a", '"is_impossible" of the wrong type: a string'),
        ({"answers": ANSWERS, "is_impossible": True}, "id a", "contradiction"),
        ({"answers": {"text": [], "answer_start": []}, "is_impossible": False}, "id a", "no answer"),
        ({"answers": ANSWERS, "id": None}, "question 0", '"id" of the wrong type: null'),
        ({"answers": ANSWERS, "id": "\ud800"}, "question 0", 'lone surrogate: in "id"'),
        ({"answers": ANSWERS, "context": ["x"]}, "line 2", '"context" of the wrong type: a list'),
        ({"answers": None}, "id a", 'missing field "answers"; labels are needed to train and to evaluate'),
    ],
)
def test_malformed_rows_are_named_by_line_and_field(tmp_path: Path, row: dict, place: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW | {"id": "good", "answers": ANSWERS}) + "\n" + json.dumps(ROW | row))
    with pytest.raises(UserError) as caught:
        read_questions(path, "evaluate")
    assert str(caught.value).startswith(f"{path}: line 2")
    for part in (place, message):
        assert part in str(caught.value)
    assert [q.id for q in read_questions(path, "train").questions] == ["good"]


@pytest.mark.parametrize("title", [None, 7, ["x"], {"a": 1}, True, "", "\ud800"])
def test_a_title_is_for_messages_alone(tmp_path: Path, title: object) -> None:
    """300 questions were lost for a title of null, which nothing uses, and counted as one record."""
    content = json.loads(squad({"id": "q", "question": "Why?", "answers": [{"text": "blue", "answer_start": 11}]}))
    content["data"][0] |= {"title": title}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    assert read_questions(path, "evaluate").summary() == "1 questions (0 unanswerable)"
    content["data"][0]["paragraphs"].append({"context": None, "qas": [{}] * 300})
    path.write_text(json.dumps(content))
    summary = read_questions(path, "train").summary()
    assert summary.startswith(
        "1 questions (0 unanswerable); skipped 1 malformed record with 300 questions: "
        '1 × field "context" of the wrong type (article '
    )
    assert summary.endswith(", paragraph 1)")
    summary.encode()


def test_losses_are_said_with_field_place_and_sum_when_nothing_is_left(tmp_path: Path) -> None:
    """ "2 × missing field" named neither field, nor place, nor how many questions that was."""
    questions = [{"id": str(n), "question": "Why?"} for n in range(300)]
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": [{"title": "Sky", "paragraphs": [{"context": "Blue.", "qas": questions}]}]}))
    expected = (
        'skipped 300 malformed records: 300 × missing field "answers" (first: article "Sky", paragraph 0, id 0); '
        "labels are needed to train and to evaluate, and none to run `spanbert predict`."
    )
    with pytest.raises(UserError) as caught:
        read_questions(path, "train")
    assert str(caught.value) == f"{path}: holds no usable questions. 0 questions (0 unanswerable); {expected}"
    assert read_questions(path, "predict").report.examples == 300


def test_questions_without_a_token_are_not_counted_as_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    answer = {"text": "\x01", "answer_start": 0}
    questions = [{"id": str(n), "question": "Why?", "answers": [answer]} for n in range(5)]
    content = json.loads(squad({"id": "q", "question": "Why?", "answers": [{"text": "blue", "answer_start": 11}]}))
    content["data"][0]["paragraphs"].append({"context": "\x01", "qas": questions})
    path.write_text(json.dumps(content))
    found = read_questions(path, "train")
    encode_with_texts(found.paragraphs, tokenizer, WindowConfig(), found.report.malformed)
    assert found.report.examples == 1
    assert found.report.losses == (
        '; skipped 1 malformed record with 5 questions: 1 × no tokens (article "Sky", paragraph 1)'
    )


def test_an_unanswerable_question_needs_no_answers(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(squad({"id": "q", "question": "Why?", "is_impossible": True, "answers": None, "qid": ""}))
    (question,) = read_questions(path, "evaluate").questions
    assert question.impossible
    assert question.id == "q"


CHINESE = "在歐洲，梵語由德國學者陸特開創。𠮷野家ω-force，梵語古老。"


@pytest.mark.parametrize("form", ["DRCD", "CMRC", "XQuAD"])
def test_chinese_files_are_read_by_characters(tmp_path: Path, form: str) -> None:
    """Offsets count characters, also after one beyond the basic plane; the second 梵語 is not taken for the first."""
    golds = [("梵語", CHINESE.rindex("梵語")), ("ω-force", CHINESE.index("ω")), ("𠮷野家", CHINESE.index("𠮷"))]
    qas = [
        {
            "id": f"{form}_{n}",
            "question": "什麼？",
            "answers": [{"text": text, "answer_start": start} | ({"id": "1"} if form == "DRCD" else {})],
        }
        for n, (text, start) in enumerate(golds)
    ]
    paragraph = {"context": CHINESE, "qas": qas} | ({} if form == "XQuAD" else {"id": "P"})
    content = {"version": "1.3", "data": [{"title": "梵文", "paragraphs": [paragraph]}]}
    path = tmp_path / "zh.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content, ensure_ascii=form == "XQuAD").encode()))
    paragraphs, report = read(path)
    assert report.examples == 3
    assert [q.spans for q in paragraphs[0].questions] == [((start, start + len(text)),) for text, start in golds]


@pytest.mark.parametrize("start", [-1, 4])
def test_an_answer_that_cmrc_did_not_find_is_named_skipped_or_scored_by_its_text(tmp_path: Path, start: int) -> None:
    """CMRC 2018 has -1, or a place one character off, where the annotators' answer is not in the text as it stands."""
    question = {"id": "DEV_6_QUERY_2", "question": "何時？", "answers": [{"text": "梵語古老", "answer_start": start}]}
    path = tmp_path / "cmrc.json"
    path.write_text(squad(question, CHINESE), encoding="utf-8")
    with pytest.raises(UserError, match='article "Sky", paragraph 0, id DEV_6_QUERY_2: answer not at its offset'):
        read(path)
    with pytest.raises(UserError, match="1 malformed record"):  # the only one, so that nothing is left to train on
        read(path, skip_malformed=True)
    paragraphs, _ = read(path, check_offsets=False)
    assert [(q.answers, q.spans) for q in paragraphs[0].questions] == [(("梵語古老",), ())]


def test_what_is_accepted_to_score_is_never_trained_on(tmp_path: Path) -> None:
    """A question without the place of its answer would teach that there is none."""
    question = {"id": "a", "question": "Why?", "answers": [{"text": "blue", "answer_start": -1}]}
    path = tmp_path / "off.json"
    path.write_text(squad(question))
    task = QATask(check_offsets=False)
    assert task.read(path, "evaluate").report.examples == 1
    with pytest.raises(UserError, match="1 malformed record"):
        task.read(path, "train")

"""The questions about Wikinews are whole: read without a warning, every answer stands in its text."""

import json
from pathlib import Path

import benchmarks.release
from finetune.tasks.qa.records import read_questions

FILE = Path(benchmarks.release.__file__).with_name("wikinews_questions.json")


def test_every_answer_stands_where_the_file_says() -> None:
    content = json.loads(FILE.read_text(encoding="utf-8"))
    assert "CC BY 2.5" in content["license"] and len(content["data"]) == 23
    found = 0
    for article in content["data"]:
        (paragraph,) = article["paragraphs"]
        for question in paragraph["qas"]:
            assert question["is_impossible"] == (not question["answers"])
            for answer in question["answers"]:
                begin = answer["answer_start"]
                assert paragraph["context"][begin : begin + len(answer["text"])] == answer["text"]
                found += 1
    assert found > 128
    questions = list(read_questions(FILE, "evaluate").questions)
    assert len(questions) == len({one.id for one in questions}) == 152
    assert sum(one.impossible for one in questions) == 24

"""Records what the question-answering pipeline of transformers 4.57 answers, for test_old_pipeline.py to compare with.

    spanbert export reader /tmp/models/reader --task qa
    spanbert export scratch /tmp/models/scratch --task qa
    python tests/finetune/tasks/qa/record_pipeline.py /tmp/models tests/finetune/tasks/qa/old_pipeline.json

The last line wants an environment with torch and transformers 4.57 (later ones have no such pipeline), and nothing of this
project. A call is written as its positional and named arguments, a text that several calls share as "@" and its name.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

TEXTS = {
    "canal": (Path(__file__).parents[4] / "sample" / "text.txt").read_text(encoding="utf-8"),
    "mill": (
        "The mill at Harrow Bend was built in 1782 by the brothers Amos and Silas Whitlow, who had bought the land from a "
        "tanner. It ground rye and barley for eleven villages, and in the dry summer of 1811 it stood still for nine weeks. "
        "Amos died in 1814; his daughter Judith, then twenty-three, ran the business until the railway came in 1847. She "
        "replaced the wooden wheel with one of cast iron, which a foundry in Leeds delivered in four parts by barge.\n\n"
        "In the winter of 1868 the dam broke. The flood carried off the sluice, two cottages and a herd of sheep, but nobody "
        "was killed, because the miller's boy had run from door to door to wake the sleepers. The repairs cost 1,240 pounds. "
        "A turbine took the place of the wheel in 1903, and from then on the mill made electricity as well as flour: at first "
        "for twelve lamps in the church, later for the whole village. The last sack of flour left it on 3 May 1931.\n\n"
        "After that the building served as a store for potatoes, a school during the war, and a youth hostel. A society of "
        "local people bought it in 1978 for one pound, on the condition that the roof be mended within two years. Today its "
        "museum shows the turbine, the iron wheel and Judith Whitlow's account books, which list every delivery between 1815 "
        "and 1846. About nine thousand visitors come each year; the museum is open from April to October, except on Mondays. "
        "On the first Sunday of September, the society bakes bread of flour that is ground on the old stones, and sells it "
        "beside the river. The money pays for the upkeep of the weir, where salmon have been seen again since 2009."
    ),
    "short": "Ada Lovelace wrote the notes; Luigi Menabrea described the engine in French.",
    "twice": "The bridge was opened in Paris. Everyone who was in PARIS saw the bridge. In Paris, bridges are many.",
    "unicode": (
        "Die Brücke über die Spree heißt „Oberbaumbrücke“ — sie wurde 1896 eröffnet. Зураб Церетели built a 98‑metre statue; "
        "café owner Renée Żółć paid €3.50 🙂 for it. 東京は日本の首都です。 The nai\u0308ve cafe\u0301 of Zoe\u0308 opened in 1921."
    ),
    "words": "Pneumonoultramicroscopicsilicovolcanoconiosis was diagnosed in Llanfairpwllgwyngyll by Dr. O'Shaughnessy-Featherstonehaugh.",
}

WHEN, WHO, NOTHING = "When was the canal opened?", "Who wrote the notes?", "Which painter cut off his ear?"


def call(name: str, *positional: Any, stream: bool = False, **named: Any) -> dict[str, Any]:
    """stream: the first argument is handed over by a generator."""
    return {"name": name, "positional": list(positional), "named": named} | ({"stream": True} if stream else {})


def about(question: str, context: str) -> dict[str, str]:
    return {"question": question, "context": context}


CALLS = [
    # one question
    call("defaults", **about(WHEN, "@canal")),
    call("two strings", WHEN, "@canal"),
    call("a dictionary", about(WHEN, "@canal")),
    *(call(f"top_k {k}", **about("Who founded the company?", "@canal"), top_k=k) for k in (1, 3, 10)),
    call("top_k's old name", **about(WHO, "@short"), topk=2),
    *(call(f"max_answer_len {n}", **about("What did the society buy?", "@mill"), top_k=3, max_answer_len=n) for n in (1, 3, 40)),
    call("options that are None", **about(WHO, "@short"), top_k=None, doc_stride=None, max_answer_len=None, align_to_words=None),
    # contexts longer than a window
    call("a long context", **about("Who ran the business after 1814?", "@mill")),
    call("a long context, top 3", **about("What did the repairs cost?", "@mill"), top_k=3),
    *(
        call(f"max_seq_len {n}, doc_stride {s}", **about("When did the dam break?", "@mill"), top_k=3, max_seq_len=n, doc_stride=s)
        for n, s in ((64, 16), (64, 0), (100, 50), (128, None), (384, 200), (512, 128))
    ),
    call("a window that takes the whole context", **about(WHO, "@short"), max_seq_len=60, doc_stride=55),
    call("a window longer than the model reads", **about(WHO, "@short"), max_seq_len=4096),
    # no answer
    *(
        call(f"may answer nothing, top {k}: {name}", **about(question, context), top_k=k, handle_impossible_answer=True)
        for name, question, context in (("there is one", WHEN, "@canal"), ("there is none", NOTHING, "@canal"), ("windows", NOTHING, "@mill"))
        for k in (1, 3)
    ),
    call("must answer where there is none", **about(NOTHING, "@short"), top_k=3),
    call("a blank context", **about(WHO, "  \n ")),
    call("a blank context, may answer nothing", **about(WHO, "  \n "), handle_impossible_answer=True),
    call("a context without tokens", **about(WHO, "\u0000\u0007")),
    # answers in words and in tokens
    *(
        call(f"align_to_words {whole}: {question}", **about(question, f"@{name}"), top_k=5, align_to_words=whole)
        for whole in (True, False)
        for name, question in (
            ("words", "What was diagnosed?"),
            ("twice", "Where was the bridge opened?"),
            ("unicode", "When was the bridge opened?"),
            ("unicode", "What is the capital of Japan?"),
            ("unicode", "Which café opened in 1921?"),
            ("unicode", "Wie heißt die Brücke?"),
        )
    ),
    call("no white space", **about("首都はどこですか", "東京は日本の首都です。"), top_k=2, align_to_words=False),
    # several
    call("a list of dictionaries", [about(WHEN, "@canal"), about(WHO, "@short")]),
    call("several dictionaries", about(WHEN, "@canal"), about(WHO, "@short")),
    call("a list of one", [about(WHEN, "@canal")]),
    call("an empty list", []),
    call("lists by name", question=[WHEN, WHO], context=["@canal", "@short"]),
    call("lists by name, top 2", question=[WHEN, WHO], context=["@canal", "@short"], top_k=2),
    call("questions about one context", question=[WHEN, "How long is it?", NOTHING], context="@canal"),
    call("a list of one question", question=[WHEN], context="@canal"),
    call("a dictionary of lists", {"question": [WHEN, WHO], "context": ["@canal", "@short"]}),
    call("batch_size 2", question=[WHEN, WHO, WHO], context=["@canal", "@short", "@mill"], batch_size=2),
    call("a generator", [about(WHEN, "@canal"), about(WHO, "@short"), about(WHO, "@mill")], stream=True),
    call("a generator of one", [about(WHEN, "@canal")], stream=True),
    call("a generator, batch_size 2, top 2", [about(WHEN, "@canal"), about(WHO, "@short")], stream=True, batch_size=2, top_k=2),
    call("padding", question=[WHEN, WHO], context=["@canal", "@short"], padding=True, num_workers=0),
    # what is otherwise there, or an error
    call("a question of more than 64 tokens", **about("the notes, the notes, " * 16 + WHO, "@short")),
    call("max_question_len", **about(WHO, "@short"), max_question_len=2),
    call("fewer answers than asked for", **about(WHO, "1834"), top_k=5),
    call("special tokens in the text", **about(WHO, "Ada [SEP] wrote [MASK] the notes."), top_k=2),
    call("a word cut by a window", **about("What was diagnosed?", "@words"), top_k=5, max_seq_len=24, doc_stride=4),
    call("a dictionary with other keys", about(WHO, "@short") | {"id": "7"}),
    call("a dictionary of questions about one context", {"question": [WHO, WHO], "context": "@short"}),
    call("one question, several contexts", question=WHO, context=["@short", "@short"]),
    call("questions and contexts of different number", question=[WHO, WHO], context=["@short"]),
    call("no argument"),
    call("a question alone", question=WHO),
    call("a string alone", WHO),
    call("a dictionary without context", {"question": WHO}),
    call("a context that is None", {"question": WHO, "context": None}),
    call("an empty context", **about(WHO, "")),
    call("an empty question", **about("", "@short")),
    call("a blank question", **about(" ", "@short")),
    call("a number for a question", question=3, context="@short"),
    call("an unknown option", **about(WHO, "@short"), max_answer_length=3),
    call("top_k 0", **about(WHO, "@short"), top_k=0),
    call("max_answer_len 0", **about(WHO, "@short"), max_answer_len=0),
    call("doc_stride above max_seq_len", **about(WHO, "@short"), max_seq_len=20, doc_stride=30),
    call("doc_stride as long as the room", **about(WHO, "@short"), max_seq_len=20, doc_stride=18),
    call("doc_stride below 0", **about(WHO, "@short"), max_seq_len=20, doc_stride=-1),
    call("max_seq_len below the question", **about(WHO, "@short"), max_seq_len=5),
]  # fmt: skip


def with_texts(value: Any, texts: dict[str, str]) -> Any:
    """The same with each "@name" replaced by its text."""
    if isinstance(value, str):
        return texts.get(value[1:], value) if value.startswith("@") else value
    if isinstance(value, dict):
        return {key: with_texts(one, texts) for key, one in value.items()}
    return [with_texts(one, texts) for one in value] if isinstance(value, list) else value


def outcome(pipeline: Any, one: dict[str, Any]) -> dict[str, Any]:
    """What the call returned, or the exception that it raised."""
    positional, named = with_texts(one["positional"], TEXTS), with_texts(one["named"], TEXTS)
    try:
        if one.get("stream"):
            return {"streamed": list(pipeline((entry for entry in positional[0]), **named))}
        return {"returned": pipeline(*positional, **named)}
    except BaseException as error:  # a panic of the tokenizer's library is no Exception
        return {"raised": type(error).__name__, "says": str(error).split("\n")[0][:200]}


def main(models: Path, output: Path) -> None:
    import transformers

    warnings.simplefilter("ignore")
    assert len({one["name"] for one in CALLS}) == len(CALLS), "two calls have one name"
    record: dict[str, Any] = {
        "made_by": "tests/finetune/tasks/qa/record_pipeline.py",
        "transformers": transformers.__version__,
        "weights": {},
        "texts": TEXTS,
        "calls": CALLS,
        "outcomes": {},
    }
    for name in ("reader", "scratch"):
        pipeline = transformers.pipeline("question-answering", model=str(models / name), device=-1)
        weights = (models / name / "model.safetensors").read_bytes()
        record["weights"][name] = hashlib.sha256(weights).hexdigest()
        record["outcomes"][name] = {one["name"]: outcome(pipeline, one) for one in CALLS}
    output.write_text(json.dumps(record, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

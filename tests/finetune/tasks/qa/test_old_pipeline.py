"""`spanbert.pipeline` beside that of transformers 4.57, whose answers record_pipeline.py has written down.

Every call is made as it was made there, with the same weights. Either both do the same, or the difference is one of
those that finetune/tasks/qa/pipeline.py states, and it is tested to be that one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import spanbert
from spanbert.checkpoint.export_hub import ExportConfig, run_export
from spanbert.weights import WEIGHTS
from tests.finetune.tasks.qa.record_pipeline import CALLS, TEXTS, outcome, with_texts

RECORD = json.loads(Path(__file__).with_name("old_pipeline.json").read_text(encoding="utf-8"))
Outcome = dict[str, Any]


@pytest.fixture(scope="module", params=["reader", "scratch"])
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def outcomes(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What our pipeline does, call by call, with the weights of the record."""
    folder = tmp_path_factory.mktemp("models") / model
    run_export(ExportConfig(WEIGHTS / model, folder, task="qa"))
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights == RECORD["weights"][model], f"other weights than the record's: make it again, {RECORD['made_by']}"
    pipeline = spanbert.pipeline("question-answering", model=folder, precision="fp32", device=-1)
    return {one["name"]: outcome(pipeline, one) for one in RECORD["calls"]}


def same(ours: Any, theirs: Any) -> bool:
    """Equal, scores within 1e-4 (theirs are fp32's)."""
    if isinstance(theirs, float) and isinstance(ours, float):
        return math.isclose(ours, theirs, rel_tol=0, abs_tol=1e-4)
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def agree(ours: Outcome, theirs: Outcome) -> bool:
    """The same result, or the same kind of exception, whose words are each one's own."""
    if "raised" in theirs:
        return ours.get("raised") == theirs["raised"]
    return same(ours, theirs)


def answers(one: Outcome) -> list[str]:
    returned = one["returned"]
    return [answer["answer"] for answer in (returned if isinstance(returned, list) else [returned])]


def _question_is_cut(ours: Outcome, theirs: Outcome, all_ours: dict[str, Outcome]) -> bool:
    return not same(ours, theirs) and 0 < ours["returned"]["score"] < 1


def _refused_as(name: str) -> Callable[[Outcome, Outcome, dict[str, Outcome]], bool]:
    return lambda ours, theirs, _: ours.get("raised") == name


def _only_answers(ours: Outcome, theirs: Outcome, _: dict[str, Outcome]) -> bool:
    worthless = [one for one in theirs["returned"] if one["score"] == 0]
    return bool(worthless) and same(ours["returned"], [one for one in theirs["returned"] if one not in worthless])


def _whole_words(ours: Outcome, theirs: Outcome, _: dict[str, Outcome]) -> bool:
    """None of ours stops between two letters; some of theirs does."""
    text = TEXTS["words"]

    def cuts(one: dict[str, Any]) -> bool:
        edges = [text[place - 1 : place + 1] for place in (one["start"], one["end"]) if 0 < place < len(text)]
        return any(edge.isalpha() for edge in edges)

    return any(map(cuts, theirs["returned"])) and not any(map(cuts, ours["returned"]))


def _brackets_are_text(ours: Outcome, theirs: Outcome, _: dict[str, Outcome]) -> bool:
    return not same(ours, theirs) and all(answer in "Ada [SEP] wrote [MASK] the notes." for answer in answers(ours))


def _as(name: str) -> Callable[[Outcome, Outcome, dict[str, Outcome]], bool]:
    """Ours is what another call gives, as often as it is asked."""

    def check(ours: Outcome, theirs: Outcome, all_ours: dict[str, Outcome]) -> bool:
        expected = all_ours[name]["returned"]
        found = ours["returned"] if isinstance(ours["returned"], list) else [ours["returned"]]
        return all(same(one, expected) for one in found)

    return check


#: Calls that ours answers otherwise, on purpose.
OTHERWISE: dict[str, Callable[[Outcome, Outcome, dict[str, Outcome]], bool]] = {
    "a question of more than 64 tokens": _question_is_cut,
    "max_question_len": _question_is_cut,
    "fewer answers than asked for": _only_answers,
    "special tokens in the text": _brackets_are_text,
    "a word cut by a window": _whole_words,
    "a dictionary with other keys": _as("a window longer than the model reads"),
    "a dictionary of questions about one context": _as("a window longer than the model reads"),
    "a blank question": _refused_as("ValueError"),
    "an unknown option": _refused_as("TypeError"),
    "doc_stride as long as the room": _refused_as("ValueError"),  # a panic of the tokenizer's library
    "doc_stride below 0": _refused_as("ValueError"),  # OverflowError
    "max_seq_len below the question": _refused_as("ValueError"),  # Exception
}


def test_the_record_is_of_these_calls() -> None:
    assert RECORD["transformers"].startswith("4.57.")
    assert json.loads(json.dumps(CALLS)) == RECORD["calls"], f"make the record again: {RECORD['made_by']}"
    assert RECORD["texts"] == TEXTS
    assert len({one["name"] for one in CALLS}) == len(CALLS) and OTHERWISE.keys() <= {one["name"] for one in CALLS}


@pytest.mark.parametrize("name", [one["name"] for one in CALLS if one["name"] not in OTHERWISE])
def test_a_call_does_what_it_did_there(model: str, outcomes: dict[str, Outcome], name: str) -> None:
    ours, theirs = outcomes[name], RECORD["outcomes"][model][name]
    assert agree(ours, theirs), f"\nours:   {ours}\ntheirs: {theirs}"


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_call_differs_as_it_is_meant_to(model: str, outcomes: dict[str, Outcome], name: str) -> None:
    ours, theirs = outcomes[name], RECORD["outcomes"][model][name]
    assert not agree(ours, theirs), "no difference any more"
    assert OTHERWISE[name](ours, theirs, outcomes), f"\nours:   {ours}\ntheirs: {theirs}"


def test_ours_quotes_the_text(outcomes: dict[str, Outcome]) -> None:
    """Every answer, of all calls with one context, is the stretch of it that it says."""
    checked = 0
    for call in CALLS:
        context, found = call["named"].get("context"), outcomes[call["name"]].get("returned")
        if isinstance(context, str) and isinstance(call["named"].get("question"), str) and found:
            text = with_texts(context, TEXTS)
            for one in found if isinstance(found, list) else [found]:
                assert text[one["start"] : one["end"]] == one["answer"]
                checked += 1
    assert checked > 100

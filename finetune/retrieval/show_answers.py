"""Answers over documents as lines for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from finetune.retrieval.answer_documents import DocumentAnswer, DocumentAnswers, Place
from finetune.retrieval.confidence import Calibration
from spanbert.terminal import colour as colour_code

PLACES_NAMED = 4


def show_answers(found: DocumentAnswers, calibration: Calibration | None, *, named: bool, colour: bool) -> str:
    """Question, best answer with its sentence and where it stands, the runners-up, and how much was read.

    named: say which document a place is in; otherwise there is only one.
    """
    best, *rest = found.answers
    lines = [found.question, f"  {one_line(best.text) or 'no answer found'}{_sure(best, calibration)}"]
    if best.places:
        first, *others = best.places
        lines.append(f"  in: {_marked(first, colour)}{_where(first, named)}")
        if others:
            listed = "; ".join(_where(place, named).strip(" []") for place in others[:PLACES_NAMED])
            listed = listed if named or any(place.section for place in others) else ""
            more = f" and {len(others) - PLACES_NAMED} more" if len(others) > PLACES_NAMED else ""
            named_places = f": {listed}{more}" if listed else ""
            lines.append(f"  also in {len(others)} other place{'s' * (len(others) > 1)}{named_places}")
    for answer in rest:
        number = answer.score if answer.confidence is None else answer.confidence
        place = _where(answer.places[0], named) if answer.places else ""
        lines.append(f"    {number:.2f}  {one_line(answer.text) or 'no answer'}{place}")
    if not found.passages_read:
        lines.append(f"  no word of the question stands in the {found.passages:,} passages")
    else:
        lines.append(f"  read {found.passages_read:,} of {found.passages:,} passages")
    return "\n".join(lines)


def answers_as_json(found: DocumentAnswers) -> str:
    """The same for programs: offsets count characters of the documents' texts."""
    entries = []
    for answer in found.answers:
        place = answer.places[0] if answer.places else None
        start, end, sentence = (place.start, place.end, place.sentence) if place else (0, 0, "")
        entry = {"text": answer.text, "start": start, "end": end, "score": answer.score}
        entry |= {"confidence": answer.confidence, "sentence": sentence}
        entries.append(entry | {"places": [asdict(one) for one in answer.places]})
    content: dict[str, Any] = {"question": found.question, "answer": found.answers[0].text, "answers": entries}
    content |= {"passages_read": found.passages_read, "passages": found.passages, "words": list(found.words)}
    return json.dumps(content, ensure_ascii=False)


def one_line(text: str) -> str:
    return " ".join(text.split())


def _sure(answer: DocumentAnswer, calibration: Calibration | None) -> str:
    if answer.confidence is None or calibration is None:
        return f"   (score {answer.score:.2f})" if answer.text else ""
    return f"   (sure {answer.confidence:.2f}: {calibration.in_words(answer.confidence)})"


def _where(place: Place, named: bool) -> str:
    """``   [gate.pdf, page 3]``"""
    parts = [one_line(part) for part in (place.document if named else None, place.section) if part]
    return f"   [{', '.join(parts)}]" if parts else ""


def _marked(place: Place, colour: bool) -> str:
    """The sentence with the answer in colour, or between » and «."""
    on, off = (colour_code("1;32"), colour_code("0")) if colour else ("»", "«")
    low = place.start - place.sentence_start
    high = low + len(place.match)
    return one_line(f"{place.sentence[:low]}{on}{place.match}{off}{place.sentence[high:]}")

"""What goes over the wire: the requests and responses of the API, as its OpenAPI document shows them.

All offsets count Unicode code points, as Python's strings do and JavaScript's do not: there, ``Array.from(text)``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from web.config import MOST_ANSWERS, MOST_DOCUMENTS, MOST_PASSAGES, MOST_QUESTIONS

Question = Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"\S")]


class Request(BaseModel):
    """A misspelt field is an error, not a field that is left out."""

    model_config = ConfigDict(extra="forbid", strict=True)


class AnswersRequest(Request):
    """Questions, and exactly one of text, documents and index to answer them from."""

    questions: list[Question] = Field(min_length=1, max_length=MOST_QUESTIONS, examples=[["When was it opened?"]])
    text: str | None = Field(
        default=None, description="A text that is read whole.", examples=["The canal was opened on 17 November 1869."]
    )
    documents: list[str] | None = Field(
        default=None, min_length=1, max_length=MOST_DOCUMENTS, description="Ids of uploaded documents."
    )
    index: Literal[True] | None = Field(default=None, description="true: the index that the server was started with.")
    n_best: int = Field(default=3, ge=1, le=MOST_ANSWERS, description="Most answers for each question.")
    passages: int = Field(
        default=5, ge=1, le=MOST_PASSAGES, description="Passages of documents or index that are read."
    )

    @model_validator(mode="after")
    def one_source(self) -> Self:
        given = [name for name in ("text", "documents", "index") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            raise ValueError(f"give exactly one of text, documents and index ({found})")
        return self


class PlaceOut(BaseModel):
    """Where an answer stands: characters start … end of a text, with what is around it."""

    start: int = Field(description="First code point of the answer in its text.")
    end: int = Field(description="One after the last.")
    before: str = Field(description="The text just before it.")
    match: str = Field(description="The characters start … end themselves.")
    after: str = Field(description="The text just after it.")
    sentence: str = Field(description="The sentence around it.")
    sentence_start: int = Field(description="First code point of that sentence.")
    document: str | None = Field(description="Id of the document; null where the request brought the text.")
    title: str | None
    section: str | None = Field(description="Page or heading.")
    passage_rank: int | None = Field(description="Rank of its passage in the search, from 1.")
    retrieval_score: float | None = Field(description="BM25 of its passage.")
    reader_score: float = Field(description="Start logit + end logit.")


class AnswerOut(BaseModel):
    """One answer, best place first. "" and no places: the model says that there is no answer."""

    text: str
    score: float = Field(description="What the answers are ordered by.")
    share: float | None = Field(
        description="Softmax of the scores over the answers considered in this text; null for documents."
    )
    confidence: float | None = Field(description="Chance that it is right, where the model was calibrated, else null.")
    confidence_words: str = Field(description="The same in words: what may be concluded from it, and what not.")
    places: list[PlaceOut]


class QuestionOut(BaseModel):
    question: str
    answers: list[AnswerOut] = Field(description="Best first.")
    words: list[str] = Field(description="Words of the question that stand in the passages read.")
    passages_read: int | None
    passages: int | None = Field(description="Of all documents asked about.")


class ModelOut(BaseModel):
    name: str
    fingerprint: str = Field(description="SHA-256 over the model's files.")
    can_decline: bool = Field(description="Whether it may say that there is no answer.")
    calibrated: bool


class AnswersResponse(BaseModel):
    results: list[QuestionOut] = Field(description="One for each question, in their order.")
    model: ModelOut
    milliseconds: float = Field(description="From the whole request to its answers.")
    waited: float = Field(description="Milliseconds of these that it waited for the model.")
    together: int = Field(description="Requests in the same model call.")
    notes: list[str] = Field(description="What to know when reading the answers.")


class HubInputs(Request):
    question: Question
    context: str


class HubParameters(Request):
    """Those of Hugging Face's task that this server has; another value of the others is refused, not ignored."""

    top_k: int = Field(default=1, ge=1, le=MOST_ANSWERS)
    handle_impossible_answer: bool = False
    doc_stride: int | None = None
    max_answer_len: int | None = None
    max_seq_len: int | None = None
    max_question_len: int | None = None
    align_to_words: Literal[True] | None = None


class HubRequest(Request):
    """Hugging Face's question-answering task."""

    inputs: HubInputs
    parameters: HubParameters | None = None


class HubAnswer(BaseModel):
    answer: str
    score: float
    start: int
    end: int


class SectionOut(BaseModel):
    start: int
    label: str


class DocumentOut(BaseModel):
    id: str
    title: str
    characters: int
    sections: int


class DocumentText(DocumentOut):
    text: str
    parts: list[SectionOut] = Field(description="Pages or headings, each from its start to the next one's.")


class Uploaded(DocumentOut):
    new: bool = Field(description="false: it was there already.")


class Deleted(BaseModel):
    deleted: int


class ModelCard(ModelOut):
    parameters: int
    precision: str = Field(description="Of the products: fp32, bf16 or int8.")
    window: int
    stride: int
    longest_question: int = Field(description="In tokens.")
    longest_answer: int = Field(description="In tokens.")
    confidence: str = Field(description="What confidence and share mean for this model.")
    calibration: dict[str, Any] | None = Field(description="calibration.json of the model, if it has one.")
    card: str | None = Field(description="README.md of the model (Markdown).")
    index: dict[str, int] | None = Field(description="Documents and passages of the server's index, if it has one.")
    limits: dict[str, float]


class ProblemOut(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    errors: list[dict[str, str]] | None = None
    retry_after: int | None = None

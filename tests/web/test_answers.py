"""What the API answers: right offsets, every source, and words that say what is known and what is not."""

from __future__ import annotations

import pytest

from tests.web.conftest import CANAL, INDEXED
from web.reader import Reader

QUESTION = "When was the canal opened?"


def ask(client, **fields):
    response = client.post("/v1/answers", json={"questions": [QUESTION], **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_an_answer_says_where_it_stands(serve):
    got = ask(serve(), text=CANAL)
    (result,) = got["results"]
    assert result["question"] == QUESTION and len(result["answers"]) == 3
    best = result["answers"][0]
    assert best["text"] == "17 November 1869"
    (place,) = best["places"]
    assert CANAL[place["start"] : place["end"]] == place["match"] == best["text"]
    assert place["sentence"] == "The canal was opened on 17 November 1869."
    assert place["before"] + place["match"] + place["after"] == place["sentence"]
    assert place["document"] is place["passage_rank"] is place["retrieval_score"] is None
    assert best["confidence"] is None and 0 < best["share"] <= 1
    assert got["milliseconds"] >= got["waited"] >= 0 and got["together"] == 1
    assert got["model"]["fingerprint"].startswith("sha256:") and len(got["model"]["fingerprint"]) == 71


def test_the_answers_are_those_of_the_model(serve, reader):
    """Held against the answerer itself: same spans, same scores, same order, several questions at once."""
    questions = [QUESTION, "Who dug the canal?"]
    response = serve().post("/v1/answers", json={"questions": questions, "text": CANAL, "n_best": 5}).json()
    for result, answers in zip(response["results"], reader.answerer.answers(questions, CANAL, n_best=5), strict=True):
        spans = [(one["places"][0]["start"], one["places"][0]["end"], one["text"]) for one in result["answers"]]
        assert spans == [(one.start, one.end, one.text) for one in answers]
        scores = [one["score"] for one in result["answers"]]
        assert scores == pytest.approx([one.score for one in answers], abs=1e-4)  # other batches, other sums


def test_of_a_long_text_a_few_passages_are_read(serve):
    """The reader's scores do not compare over a whole long text: the more of it was read, the fewer answers were right."""
    filler = "\n".join(
        f"Chapter {n}. " + f"The harbour master wrote letter {n} about rope and grain. " * 12 for n in range(12)
    )
    text = filler + "\n\U0001f6a2 " + CANAL
    (result,) = ask(serve(), text=text, passages=2)["results"]
    assert result["passages_read"] == 2 < result["passages"]
    best = result["answers"][0]
    (place,) = best["places"]
    assert text[place["start"] : place["end"]] == place["match"] == best["text"] == "17 November 1869"
    assert place["document"] is None and best["share"] is None


def test_offsets_count_code_points(serve):
    """An emoji is one, a combining accent is one: not two as in UTF-16, nor four as in UTF-8."""
    text = "\U0001f6a2\U0001f6a2 Cafe\u0301 Suez. " + CANAL
    place = ask(serve(), text=text)["results"][0]["answers"][0]["places"][0]
    assert text[place["start"] : place["end"]] == place["match"] == "17 November 1869"


def test_a_model_that_cannot_decline_says_so(serve):
    assert "cannot say that there is no answer" in ask(serve(), text=CANAL)["notes"][0]
    assert ask(serve(can_decline=True), text=CANAL)["notes"] == []


def test_the_index_answers_with_document_section_and_rank(serve):
    client = serve(index=INDEXED)
    (result,) = ask(client, index=True)["results"]
    place = result["answers"][0]["places"][0]
    assert (place["document"], place["title"], place["section"]) == ("canals.txt", "Canals", "page 2")
    assert place["passage_rank"] == 1 and place["retrieval_score"] > 0
    text = client.get("/v1/index/documents/canals.txt").json()["text"]
    assert text[place["start"] : place["end"]] == place["match"] == "17 November 1869"
    assert "canal" in result["words"] and result["passages"] == 2
    assert result["answers"][0]["confidence_words"].startswith("confidence not measured")
    assert client.get("/v1/index/documents/bridges/tower.txt").json()["title"] == "Tower Bridge"


def test_uploaded_documents_answer(serve):
    client = serve()
    first = client.post("/v1/documents", params={"name": "canal.txt"}, content=CANAL.encode())
    assert first.status_code == 201 and first.json()["new"] is True
    again = client.post("/v1/documents", params={"name": "canal.txt"}, content=CANAL.encode())
    assert again.status_code == 200 and again.json()["id"] == first.json()["id"]
    other = client.post("/v1/documents", params={"name": "tower.txt"}, content=INDEXED[0].text.encode()).json()
    ids = [first.json()["id"], other["id"]]
    assert [one["id"] for one in client.get("/v1/documents").json()] == ids
    place = ask(client, documents=ids)["results"][0]["answers"][0]["places"][0]
    assert place["document"] == ids[0] and place["match"] == "17 November 1869"
    text = client.get(f"/v1/documents/{ids[0]}").json()["text"]
    assert text[place["start"] : place["end"]] == place["match"]
    assert client.delete(f"/v1/documents/{ids[1]}").json() == {"deleted": 1}
    assert client.delete("/v1/documents").json() == {"deleted": 1}
    assert client.get("/v1/documents").json() == []


def test_a_deleted_document_is_not_kept_for_later_searches(reader, serve):
    """The passages of the last eight sets of documents stayed in memory, whole texts of deleted ones among them."""
    own = Reader(reader.answerer)
    client = serve(own)
    ids = [
        client.post("/v1/documents", params={"name": f"{name}.txt"}, content=f"{name}. {CANAL}".encode()).json()["id"]
        for name in ("one", "two", "three")
    ]
    for documents in (ids[:1], ids[1:], ids):
        ask(client, documents=documents)
    assert len(own._indexes) == 3
    client.delete(f"/v1/documents/{ids[0]}")
    assert list(own._indexes) == [tuple(ids[1:])]
    client.delete("/v1/documents")
    assert not own._indexes


def test_the_hub_contract(serve):
    client = serve()
    inputs = {"question": QUESTION, "context": CANAL}
    (best,) = client.post("/v1/hf", json={"inputs": inputs}).json()
    assert best.keys() == {"answer", "score", "start", "end"}
    assert CANAL[best["start"] : best["end"]] == best["answer"] == "17 November 1869"
    assert 0 < best["score"] <= 1
    three = client.post("/v1/hf", json={"inputs": inputs, "parameters": {"top_k": 3, "max_seq_len": 384}}).json()
    assert len(three) == 3 and three[0] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("parameter", [{"doc_stride": 7}, {"max_answer_len": 3}, {"handle_impossible_answer": True}])
def test_parameters_of_the_hub_that_this_model_cannot_follow_are_refused(serve, parameter):
    inputs = {"question": QUESTION, "context": CANAL}
    response = serve().post("/v1/hf", json={"inputs": inputs, "parameters": parameter})
    (name,) = parameter
    assert response.status_code == 422 and response.json()["field"] == f"parameters.{name}"


def test_the_model_shows_its_card_and_the_limits(serve, info):
    card = serve(index=INDEXED, waiting=7).get("/v1/model").json()
    assert card["card"].startswith("---\nlicense") and card["limits"]["waiting"] == 7
    assert card["index"] == {"documents": 2, "passages": 2}
    assert card["fingerprint"] == info.fingerprint and card["window"] == 384
    assert card["precision"] == info.precision and card["precision"] in ("fp32", "bf16", "int8")
    assert card["calibration"] is None and "not been measured" in card["confidence"]


def test_a_fingerprint_is_of_the_files(tmp_path):
    from web.service import fingerprint

    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert fingerprint(tmp_path) != before


def test_the_state_of_the_server(serve):
    client = serve()
    ask(client, text=CANAL)
    client.get("/v1/documents/none")
    assert client.get("/healthz").text == "ok\n"
    metrics = client.get("/metrics").text
    assert 'spanbert_requests_total{method="POST",route="/v1/answers",status="200"} 1' in metrics
    assert 'spanbert_requests_total{method="GET",route="/v1/documents/{number}",status="404"} 1' in metrics
    assert "spanbert_questions_total 1\n" in metrics and "spanbert_model_calls_total 1\n" in metrics
    assert 'spanbert_request_seconds_bucket{route="/v1/answers",le="+Inf"} 1' in metrics


def test_the_pages_allow_nothing_from_outside(serve):
    client = serve()
    for path in ("/", "/docs"):
        response = client.get(path)
        policy = response.headers["content-security-policy"]
        assert response.status_code == 200 and "default-src 'none'" in policy and "unsafe" not in policy
        assert "http://" not in policy and "https://" not in policy
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/v1/answers", "/v1/hf", "/v1/documents", "/v1/model"}
    assert "POST" in client.get("/docs").text


def test_the_docs_page_has_a_place_for_every_problem(serve):
    from web.problems import KINDS

    page = serve().get("/docs").text
    assert [kind for kind in KINDS if f'id="{kind}"' not in page] == []

"""Every refusal is a problem document with its status, its kind, and the field that is wrong."""

from __future__ import annotations

import json
import random
import socket
import threading
import time

import pytest

from tests.web.conftest import BASE, CANAL, INDEXED, instant
from web.problems import KINDS, MEDIA_TYPE

GOOD = {"questions": ["When was the canal opened?"], "text": CANAL}
TOKEN = "correct-horse-battery"


def problem(response, kind, field=None):
    """The response is that problem, in every part of it."""
    assert response.headers["content-type"] == MEDIA_TYPE, response.text
    body = response.json()
    assert (body["type"], body.get("field")) == (f"/docs#{kind}", field)
    assert response.status_code == body["status"] == KINDS[kind][0]
    assert body["title"] == KINDS[kind][1] and body["detail"]
    return body


@pytest.mark.parametrize(
    "change, kind, field",
    [
        ({"questions": []}, "invalid", "questions"),
        ({"questions": ["x?"] * 33}, "invalid", "questions"),
        ({"questions": ["Who?", " \n"]}, "invalid", "questions[1]"),
        ({"questions": ["Who?", 5]}, "invalid", "questions[1]"),
        ({"questions": "Who?"}, "invalid", "questions"),
        ({"questions": ["Who?", "\u0000\u0001"]}, "empty", "questions[1]"),
        ({"questions": ["Who?", "why " * 65]}, "question-too-long", "questions[1]"),
        ({"questions": ["w" * 2001]}, "invalid", "questions[0]"),
        ({"questions": ["\ud800 who?"]}, "invalid", "questions[0]"),
        ({"text": ""}, "empty", "text"),
        ({"text": " \t\n\u2003"}, "empty", "text"),
        ({"text": "\u0000\u0001"}, "invalid", "text"),
        ({"text": None}, "invalid", "body"),
        ({"text": "half \udc00"}, "invalid", "text"),
        ({"text": "x" * 200_001}, "too-large", "text"),
        ({"documents": ["a"]}, "invalid", "body"),
        ({"text": None, "documents": ["nothing"]}, "unknown-document", "documents[0]"),
        ({"text": None, "documents": []}, "invalid", "documents"),
        ({"text": None, "index": True}, "no-index", "index"),
        ({"text": None, "index": False}, "invalid", "index"),
        ({"n_best": 0}, "invalid", "n_best"),
        ({"n_best": "3"}, "invalid", "n_best"),
        ({"n_best": 1.5}, "invalid", "n_best"),
        ({"n_best": True}, "invalid", "n_best"),
        ({"n_best": 10**30}, "invalid", "n_best"),
        ({"passages": 21}, "invalid", "passages"),
        ({"pasages": 3}, "invalid", "pasages"),
    ],
)
def test_a_wrong_field_is_named(serve, change, kind, field):
    body = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    response = serve().post("/v1/answers", content=json.dumps(body), headers={"content-type": "application/json"})
    problem(response, kind, field)


def test_all_wrong_fields_are_listed(serve):
    found = problem(
        serve().post("/v1/answers", json={"questions": [], "text": CANAL, "n_best": 0}), "invalid", "questions"
    )
    assert [one["field"] for one in found["errors"]] == ["questions", "n_best"]


@pytest.mark.parametrize(
    "body, kind",
    [
        (b"", "invalid"),
        (b"{", "malformed-json"),
        (b'{"questions": ["a"],}', "malformed-json"),
        (b'{"questions": ["caf\xe9"]}', "not-utf-8"),
        ('{"questions": ["a"]}'.encode("utf-16"), "not-utf-8"),
        (b"[" * 100_000, "bad-request"),
        (b"[]", "invalid"),
        (b"null", "invalid"),
        (b'{"n_best": ' + b"9" * 5000 + b"}", "bad-request"),
    ],
)
def test_a_body_that_is_no_request(serve, body, kind):
    response = serve().post("/v1/answers", content=body, headers={"content-type": "application/json"})
    problem(response, kind, response.json().get("field"))


def test_one_bad_request_in_a_batch_spoils_no_other(serve, reader):
    from web.reader import Reader, Refused, Work

    good, bad = Work(("When was the canal opened?",), text=CANAL), Work(("Who?",), text="\u0001")
    found = Reader(reader.answerer)([good, bad, good], lambda: False)
    assert isinstance(found[1], Refused) and found[1].field == "text"
    assert found[0][0].answers[0].text == found[2][0].answers[0].text == "17 November 1869"


def test_a_body_that_is_too_large_is_refused_while_it_comes(serve):
    client = serve(body=1000)
    stated = client.post("/v1/answers", json={**GOOD, "text": "x" * 1000})
    problem(stated, "too-large", "body")

    sent = 0

    def parts():
        nonlocal sent
        yield b'{"text": "'
        for _ in range(100):
            sent += 1
            yield b"x" * 1000

    response = client.post("/v1/answers", content=parts(), headers={"content-type": "application/json"})
    problem(response, "too-large", "body")


def test_documents_that_cannot_be_kept(serve):
    client = serve(upload=2000, documents=2, stored=1200)

    def upload(name, content):
        return client.post("/v1/documents", params={"name": name}, content=content)

    problem(upload("a.txt", b""), "empty", "body")
    problem(upload("a.txt", b" \n "), "empty", "body")
    problem(upload("a.txt", b"caf\xe9"), "unreadable-document", "body")
    problem(upload("a.pdf", b"no PDF"), "unreadable-document", "body")
    problem(upload("a.exe", b"MZ"), "unreadable-document", "body")
    problem(upload("a.txt", b"x" * 2001), "too-large", "body")
    problem(client.post("/v1/documents", content=b"x"), "invalid", "query.name")
    assert upload("a.txt", b"some words " * 50).status_code == 201
    problem(upload("b.txt", b"other words " * 60), "store-full", "body")
    assert upload("b.txt", b"other words").status_code == 201
    problem(upload("c.txt", b"more words"), "store-full", None)
    for verb in (client.get, client.delete):
        problem(verb("/v1/documents/none"), "unknown-document")


def test_other_paths_and_methods(serve):
    client = serve(index=INDEXED)
    problem(client.get("/nowhere"), "not-found")
    assert "POST" in client.get("/v1/answers").headers["allow"]
    problem(client.get("/v1/answers"), "method")
    problem(client.get("/v1/index/documents/none"), "unknown-document")
    problem(serve().get("/v1/index/documents/none"), "no-index")
    problem(
        client.post("/v1/answers", content=b"{}", headers={"content-type": "text/plain"}),
        "content-type",
        "Content-Type",
    )


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]:8000"])
def test_only_its_own_names_are_answered(serve, host):
    """A page whose name is pointed at 127.0.0.1 (DNS rebinding) reads nothing."""
    client = serve()
    problem(client.get("/v1/model", headers={"host": host}), "host", "Host")
    for own in ("localhost:8000", "127.0.0.1", "[::1]:9", "LOCALHOST"):
        assert client.get("/healthz", headers={"host": own}).status_code == 200


@pytest.mark.parametrize(
    "headers, field",
    [
        ({"origin": "https://evil.example"}, "Origin"),
        ({"origin": "null"}, "Origin"),
        ({"origin": "http://127.0.0.1:9999"}, "Origin"),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, "Sec-Fetch-Site"),
    ],
)
def test_pages_of_other_sites_are_refused(serve, headers, field):
    """Also for uploads, which a page may send without asking first."""
    client = serve()
    problem(
        client.post("/v1/documents", params={"name": "a.txt"}, content=b"x y", headers=headers), "other-origin", field
    )
    problem(client.post("/v1/answers", json=GOOD, headers=headers), "other-origin", field)
    response = client.post("/v1/answers", json=GOOD, headers={"origin": BASE, "sec-fetch-site": "same-origin"})
    assert response.status_code == 200
    assert [name for name in response.headers if name.startswith("access-control")] == []


def test_a_token_is_asked_for(serve):
    client = serve(instant, token=TOKEN)
    for wrong in (
        {},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer é"},
    ):
        for path in ("/v1/model", "/metrics", "/v1/documents", "/nowhere"):
            raw = {name: value.encode("latin-1") for name, value in wrong.items()}
            response = client.get(path, headers=raw)
            problem(response, "token", "Authorization")
            assert response.headers["www-authenticate"] == "Bearer"
    assert client.post("/v1/answers", json=GOOD, headers={"authorization": f"bearer {TOKEN}"}).status_code == 200
    assert client.get("/").status_code == client.get("/healthz").status_code == client.get("/docs").status_code == 200


def test_a_mistake_of_the_server_tells_nothing(serve):
    def broken(batch, stop):
        raise RuntimeError("the secret path /home/me")

    response = serve(broken).post("/v1/answers", json=GOOD)
    problem(response, "internal")
    assert "secret" not in response.text


class Held:
    """A runner that waits until it is let go, or, if it obeys, until nobody wants its answer."""

    def __init__(self, obeys=True):
        self.obeys = obeys
        self.began, self.go = threading.Event(), threading.Event()
        self.batches, self.stopped = [], False

    def __call__(self, batch, stop):
        self.batches.append(len(batch))
        self.began.set()
        for _ in range(1000):
            if self.go.wait(0.01):
                return instant(batch, stop)
            if stop():
                self.stopped = True
                if self.obeys:
                    break
        return instant(batch, stop)


def in_background(function, *arguments, **options):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments, **options)))
    thread.start()
    return thread, results


def until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never became so")


def test_a_full_queue_says_when_to_come_back(serve):
    held = Held()
    client = serve(held, waiting=2)
    first = in_background(client.post, "/v1/answers", json=GOOD)
    held.began.wait(5)
    others = [in_background(client.post, "/v1/answers", json=GOOD) for _ in range(2)]
    until(lambda: client.service.queue.waiting() == 2)
    response = client.post("/v1/answers", json=GOOD)
    found = problem(response, "busy")
    assert int(response.headers["retry-after"]) == found["retry_after"] >= 1
    held.go.set()
    for thread, results in [first, *others]:
        thread.join()
        assert results[0].status_code == 200
    assert held.batches == [1, 2], "those that waited are answered together"
    assert sorted(results[0].json()["together"] for _, results in [first, *others]) == [1, 2, 2]


def test_a_deadline_ends_the_wait_and_the_work(serve):
    """504 for the one that is being answered, 503 for the one that was not begun."""
    held = Held(obeys=False)
    client = serve(held, deadline=0.3)
    first = in_background(client.post, "/v1/answers", json=GOOD)
    held.began.wait(5)
    response = client.post("/v1/answers", json=GOOD)
    first[0].join()
    problem(first[1][0], "deadline")
    problem(response, "busy")
    until(lambda: held.stopped)
    assert held.batches == [1]
    held.go.set()
    until(lambda: client.service.queue.calls == 1)
    assert client.post("/v1/answers", json=GOOD).status_code == 200


def test_the_model_stops_for_an_abandoned_request(reader):
    """Between two forward passes, not only before the first."""
    from web.queue import Stopped
    from web.reader import Reader, Work

    calls = 0

    def stop():
        nonlocal calls
        calls += 1
        return calls == 2

    text = "The bridge was built in 1894. " * 25  # of 32 questions about it, one forward pass takes a part
    with pytest.raises(Stopped):
        Reader(reader.answerer)([Work(("When was it built?",) * 32, text=text)], stop)
    assert calls == 2


def test_an_index_that_does_not_answer_is_a_problem_of_the_server(serve, reader, monkeypatch):
    """Not of the request (422): and questions that go to the model together are not each tried again, and waited for."""
    from finetune.retrieval.documents import Document
    from finetune.retrieval.index import Index, SearchFailed
    from web.reader import Reader, Work

    client = serve(index=INDEXED)
    assert client.get("/v1/index/documents/canals.txt").status_code == 200
    calls = []

    def fail(*_):
        calls.append(1)
        raise SearchFailed("http://search.example:9200: no answer within 10 s.")

    monkeypatch.setattr(Index, "search", fail)
    monkeypatch.setattr(Index, "document", fail)
    response = client.post("/v1/answers", json={"questions": ["When?"], "index": True})
    assert "no answer within 10 s" in problem(response, "search-failed")["detail"]
    problem(client.get("/v1/index/documents/canals.txt"), "search-failed")
    calls.clear()
    reader = Reader(reader.answerer, Index.of([Document("a", "A", CANAL)]))
    found = reader([Work(("When?",)), Work(("Who?",)), Work(("Why?",))], lambda: False)
    assert [one.kind for one in found] == ["search-failed"] * 3 and len(calls) == 1


def send_raw(address, data):
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(data)
    return connection


def head(path, length, **more):
    lines = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": length, **more}
    return (f"POST {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode()


def test_a_slow_client_is_cut_off(live):
    address = live(instant, receive=0.3)
    with send_raw(address, head("/v1/answers", 500) + b'{"questions"') as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # headers and body may come apart
    assert answer.startswith(b"HTTP/1.1 408 ") and b"/docs#too-slow" in answer


def test_a_client_that_leaves_frees_the_model(live):
    held = Held()
    address = live(held)
    body = json.dumps(GOOD).encode()
    connection = send_raw(address, head("/v1/answers", len(body)) + body)
    assert held.began.wait(5)
    connection.close()
    until(lambda: held.stopped)


def test_a_client_that_leaves_within_its_body_harms_nothing(live):
    import httpx2

    address = live(instant)
    send_raw(address, head("/v1/answers", 500) + b'{"ques').close()
    assert httpx2.post(f"{address}/v1/answers", json=GOOD).status_code == 200


def test_a_large_body_over_a_real_connection_gets_its_answer(live):
    """The client is still sending when the server knows: closing then would lose the answer on the way."""
    import httpx2

    address = live(instant, body=100_000)
    for _ in range(5):
        response = httpx2.post(f"{address}/v1/answers", json={**GOOD, "text": "x" * 8_000_000})
        problem(response, "too-large", "body")


def malformed(seed):
    """A request's bytes with something broken in them."""
    draw = random.Random(seed)
    body = bytearray(json.dumps({**GOOD, "n_best": 3, "passages": 2}).encode())
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(body))
        match draw.randrange(5):
            case 0:
                body[place] = draw.randrange(256)
            case 1:
                del body[place : place + draw.randint(1, 20)]
            case 2:
                body[place:place] = draw.choice(
                    [b'"', b"{", b"]", b",", b"\x00", b"\xff", b"1e999", b"NaN", b"\\ud800"]
                )
            case 3:
                body = body[: place + 1]
            case 4:
                body[place:place] = body[draw.randrange(len(body)) :]
    return bytes(body)


def hold_malformed(client, seeds):
    statuses = set()
    for seed in seeds:
        body = malformed(seed)
        response = client.post(
            random.Random(seed).choice(["/v1/answers", "/v1/hf"]),
            content=body,
            headers={"content-type": "application/json"},
        )
        statuses.add(response.status_code)
        assert response.status_code in (200, 400, 422), (seed, body, response.text)
        if response.status_code != 200:
            assert response.headers["content-type"] == MEDIA_TYPE and response.json()["detail"], (seed, body)
    return statuses


def test_malformed_bodies(serve):
    assert hold_malformed(serve(instant), range(200)) >= {400, 422}


@pytest.mark.slow
def test_more_malformed_bodies(serve):
    assert hold_malformed(serve(), range(1000, 2000)) >= {400, 422}

"""An index in OpenSearch: a stand-in that speaks its HTTP, what is found and written there, and everything that goes wrong."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from finetune.retrieval import upload_opensearch
from finetune.retrieval.answer_documents import DocumentAnswerer
from finetune.retrieval.documents import Document, Section, read_documents
from finetune.retrieval.index import Index, SearchFailed
from finetune.retrieval.opensearch import MAPPING, Address, OpenSearch, Refusal, open_retriever
from finetune.retrieval.terms import terms
from finetune.retrieval.upload_opensearch import bulk_lines, upload_index
from finetune.tasks.qa.ask import AskConfig, check
from spanbert.cli import main
from spanbert.errors import UserError
from spanbert.weights import bundled_path

ROOT = Path(__file__).parents[3]
USER = "Basic " + base64.b64encode(b"ann:s3cret").decode()
LIGHTHOUSE = "The lighthouse was built in 1894. It stands on the northern cliff. " + "Gulls sleep there all day. " * 30
MILL = (
    "# The mill\n\nThe mill was built in 1771. "
    + "Flour was ground there. " * 40
    + "\n\n## The wheel\n\nIts wheel is oak."
)


class StandIn(ThreadingHTTPServer):
    """As much of OpenSearch as is used here, strict about what it is sent. ``answer``: what it says instead, for a path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.indexes: dict[str, dict] = {}
        self.entries: dict[str, dict[str, dict]] = {}
        self.wanted: str | None = None
        self.answers: dict[str, Callable[[Handler], None]] = {}
        self.requests: list[tuple[str, str, object]] = []
        self.busy = 0  # passages that are refused for lack of time

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fill(self, name: str, documents: list[Document]) -> str:
        self.indexes[name] = MAPPING
        lines = [
            json.loads(one) for document in documents for pair in bulk_lines(document) for one in pair.splitlines()
        ]
        self.entries[name] = {head["create"]["_id"]: entry for head, entry in zip(lines[::2], lines[1::2], strict=True)}
        return f"{self.address}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def give(self, status: int, content: object, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, kind: str, reason: str) -> None:
        error = {"type": kind, "reason": reason}
        self.give(status, {"error": {"root_cause": [error], **error}, "status": status})

    def handle_any(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        name, _, verb = parts.path.strip("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, body))
        if self.server.wanted is not None and self.headers.get("Authorization") != self.server.wanted:
            self.give(401, b"Unauthorized")
        elif verb in self.server.answers:
            self.server.answers[verb](self)
        elif self.command == "PUT":
            if name in self.server.indexes:
                return self.refuse(400, "resource_already_exists_exception", f"index [{name}] already exists")
            self.server.indexes[name], self.server.entries[name] = json.loads(body), {}
            self.give(200, {"acknowledged": True})
        elif name not in self.server.indexes:
            self.refuse(404, "index_not_found_exception", f"no such index [{name}]")
        else:
            getattr(self, f"do_{verb.strip('_') or self.command.lower()}")(name, body)
        return None

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def do_delete(self, name: str, _: bytes) -> None:
        del self.server.indexes[name], self.server.entries[name]
        self.give(200, {"acknowledged": True})

    def do_mapping(self, name: str, _: bytes) -> None:
        self.give(200, {f"{name}-1": {"mappings": self.server.indexes[name]["mappings"]}})

    def do_refresh(self, _: str, body: bytes) -> None:
        self.give(200, {"_shards": {"failed": 0}})

    def do_count(self, name: str, _: bytes) -> None:
        self.give(200, {"count": len(self.server.entries[name])})

    def do_bulk(self, name: str, body: bytes) -> None:
        if self.headers["Content-Type"] != "application/x-ndjson" or not body.endswith(b"\n"):
            return self.refuse(
                400, "illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]"
            )
        lines = [json.loads(line) for line in body.splitlines()]
        items = []
        for head, entry in zip(lines[::2], lines[1::2], strict=True):
            status, error = 201, None
            if self.server.busy > 0:
                self.server.busy, status = self.server.busy - 1, 429
            elif head["create"]["_id"] in self.server.entries[name]:
                status, error = 409, {"reason": "version conflict, document already exists"}
            elif entry.keys() - self.server.indexes[name]["mappings"]["properties"].keys():
                status, error = 400, {"reason": "mapping set to strict, dynamic introduction is not allowed"}
            else:
                self.server.entries[name][head["create"]["_id"]] = entry
            items.append({"create": {"status": status, **({"error": error} if error else {})}})
        self.give(200, {"errors": any(one["create"]["status"] > 201 for one in items), "items": items})
        return None

    def do_search(self, name: str, body: bytes) -> None:
        asked, entries = json.loads(body), self.server.entries[name]
        hits = [{"_id": number, "_score": None, "_source": entry} for number, entry in entries.items()]
        if "match" in asked.get("query", {}):
            question = set(terms(asked["query"]["match"]["searched"]["query"]))
            for hit in hits:
                source = hit["_source"]
                hit["_score"] = float(len(question & set(terms(f"{source['title']} {source['text']}"))))
            hits = sorted((hit for hit in hits if hit["_score"]), key=lambda hit: -hit["_score"])
        elif "term" in asked.get("query", {}):
            hits = [hit for hit in hits if hit["_source"]["document"] == asked["query"]["term"]["document"]["value"]]
        for order in reversed(asked.get("sort", [])):
            (field,) = order
            hits.sort(key=lambda hit, field=field: hit["_source"][field])
        start = asked.get("from", 0)
        total = {"value": len(hits), "relation": "eq"}
        answer = {"took": 1, "timed_out": False, "hits": {"total": total, "hits": hits[start : start + asked["size"]]}}
        documents = {entry["document"] for entry in entries.values()}
        self.give(200, answer | {"aggregations": {name: {"value": len(documents)} for name in asked.get("aggs", {})}})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("SPANBERT_OPENSEARCH_USER", raising=False)
    monkeypatch.delenv("SPANBERT_OPENSEARCH_PASSWORD", raising=False)
    with StandIn() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "light.txt").write_text(LIGHTHOUSE)
    (tmp_path / "docs" / "mill.md").write_text(MILL)
    return tmp_path / "docs"


def test_what_is_uploaded_is_found_at_its_place(server: StandIn, folder: Path) -> None:
    """Through the network and back: each passage stands in its document where it says, with its heading."""
    documents = {one.id: one for one in read_documents([folder])[0]}
    uploaded = upload_index([folder], f"{server.address}/texts")
    opened, own = OpenSearch.open(f"{server.address}/texts"), Index.of(list(documents.values()))
    assert (uploaded.documents, uploaded.passages) == (opened.document_count, opened.passages) == (2, own.passages)
    for question in ("When was the lighthouse built?", "Is the wheel oak?", "flour"):
        hits = opened.search(question, 4)
        assert hits and [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        for hit in hits:
            part = opened.document_of(hit)
            whole = documents[part.id]
            assert part.text[hit.start : hit.end] == whole.text[part.offset : part.offset + len(part.text)]
            for place in range(len(part.text)):
                assert part.section_at(place) == whole.section_at(part.offset + place)
    assert opened.search("zeppelin", 4) == []
    ordered = [opened.document_of(opened.passage(number)) for number in range(opened.passages)]
    assert [(one.id, one.offset) for one in ordered] == sorted((one.id, one.offset) for one in ordered)


def test_answers_stand_where_those_of_the_index_on_disk_do(server: StandIn, folder: Path) -> None:
    """The same places in the documents' texts, though a passage alone comes back."""
    from finetune.tasks.qa.answerer import QuestionAnswerer

    documents = read_documents([folder])[0]
    reader = QuestionAnswerer.load(bundled_path("scratch"), device="cpu", precision="fp32")
    questions = ["When was the lighthouse built?", "When was the mill built?"]
    there = DocumentAnswerer(reader, open_retriever(server.fill("texts", documents))).answer(questions)
    here = DocumentAnswerer(reader, Index.of(documents)).answer(questions)
    for one, other in zip(there, here, strict=True):
        first, second = one.answers[0].places[0], other.answers[0].places[0]
        known = dataclasses.replace(first, retrieval_score=second.retrieval_score, passage_rank=second.passage_rank)
        assert known == second
        (text,) = (document.text for document in documents if document.id == first.document)
        assert text[first.start : first.end] == first.match
        assert text[first.sentence_start :].startswith(first.sentence)


def test_a_document_is_put_together_from_its_passages(server: StandIn) -> None:
    """Words stand at the offsets of the original; what no passage holds is blank."""
    text = "\n\n  First the gate. " + "Then the long road went on. " * 60 + "\n\n***\n\nThe end."
    whole = Document(
        "a/b é.txt",
        "Title",
        text,
        (Section(4, "page 1"), Section(text.index("Then", 900), "page 2"), Section(len(text) - 8, "page 3")),
    )
    found = OpenSearch.open(server.fill("texts", [whole, Document("other", "", "Other words.")])).document(whole.id)
    assert found is not None and (found.id, found.title, found.sections) == (whole.id, whole.title, whole.sections)
    assert len(found.text) == len(text)
    assert all(mine in (" ", theirs) for mine, theirs in zip(found.text, text, strict=True))
    assert terms(found.text) == terms(text)
    assert OpenSearch.open(f"{server.address}/texts").document("none") is None


def test_what_goes_wrong_is_a_sentence(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.fill("texts", [Document("a", "A", LIGHTHOUSE)])
    opened = OpenSearch.open(url, seconds=0.5)
    with pytest.raises(UserError, match=r"/none: there is no such index; make one: spanbert index PATHS --output"):
        OpenSearch.open(f"{server.address}/none")
    server.indexes["logs"] = {"mappings": {"properties": {"message": {"type": "text"}}}}
    with pytest.raises(UserError, match="has no field 'document' of type keyword"):
        OpenSearch.open(f"{server.address}/logs")
    server.indexes["empty"], server.entries["empty"] = MAPPING, {}
    with pytest.raises(UserError, match="the index is empty"):
        OpenSearch.open(f"{server.address}/empty")
    with pytest.raises(SearchFailed, match=r"http://127\.0\.0\.1:9: cannot be reached \(Connection refused\)"):
        OpenSearch.open("http://127.0.0.1:9/texts")

    def says(answer: Callable[[Handler], None], words: str) -> None:
        server.answers["_search"] = answer
        with pytest.raises(SearchFailed, match=words):
            opened.search("lighthouse", 3)

    def redirected(one: Handler) -> None:
        one.give(302, b"", Location=f"{server.address}/elsewhere")

    def cut(one: Handler) -> None:
        one.send_response(200)
        one.send_header("Content-Length", "1000")
        one.end_headers()
        one.wfile.write(b'{"hits": ')
        one.close_connection = True

    def trickling(one: Handler) -> None:
        one.send_response(200)
        one.send_header("Content-Length", "1000")
        one.end_headers()
        for _ in range(20):
            one.wfile.write(b" ")
            one.wfile.flush()
            time.sleep(0.1)

    hit = {"_id": "1", "_score": 1.0, "_source": {"document": "a", "text": "t", "start": 0}}
    wrong = [
        {"start": -1},
        {"start": "0"},
        {"text": None},
        {"document": 5},
        {"sections": [{"start": 1}]},
        {"sections": 5},
    ]
    for change in wrong:
        broken = {"hits": {"hits": [hit | {"_source": {**hit["_source"], **change}}]}}
        says(lambda one, broken=broken: one.give(200, broken), "answered, but not as OpenSearch does")
    says(
        lambda one: one.give(200, b'{"hits": {"hits": [{"_id": "1", "_score": NaN, "_source": {}}]}}'),
        "not as OpenSearch",
    )
    says(lambda one: one.give(200, b"<html>Welcome</html>"), "not as OpenSearch does .no JSON object")
    says(lambda one: one.give(200, {"hits": 5}), "not as OpenSearch does")
    says(lambda one: one.give(200, b"[" * 100_000), "not as OpenSearch does")
    says(lambda one: one.give(200, {"timed_out": True, "hits": {"hits": []}}), "took too long")
    says(
        lambda one: one.refuse(503, "search_phase_execution_exception", "shards\nfailed"),
        r"answered 503 \(shards failed\)",
    )
    says(lambda one: one.give(429, b""), "too much to do")
    says(lambda one: one.refuse(403, "security_exception", "no permissions"), r"may not do that \(no permissions\)")
    says(redirected, "leads elsewhere .302.")
    says(cut, "the connection broke")
    says(lambda one: time.sleep(1), r"no answer within 0\.5 s")
    says(trickling, r"no answer within 0\.5 s")
    monkeypatch.setattr("finetune.retrieval.opensearch.LARGEST_ANSWER", 1000)
    says(lambda one: one.give(200, b" " * 200_000), "more than 0 MiB")


def test_credentials_are_sent_and_never_shown(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    server.wanted = USER
    server.fill("texts", [Document("a", "A", LIGHTHOUSE)])
    host = server.address.removeprefix("http://")
    for url in (f"http://{host}/texts", f"http://ann:wrong-pass@{host}/texts"):
        with pytest.raises(Refusal, match="wants a user and a password") as caught:
            OpenSearch.open(url)
        assert "wrong-pass" not in str(caught.value)
    opened = OpenSearch.open(f"http://ann:s3cret@{host}/texts")
    assert opened.search("lighthouse", 1)
    assert "s3cret" not in f"{opened.client.address!r} {opened.client.address}" and USER[6:] not in repr(
        opened.client.address
    )
    monkeypatch.setenv("SPANBERT_OPENSEARCH_USER", "ann")
    with pytest.raises(UserError, match="belong together"):
        OpenSearch.open(f"http://{host}/texts")
    monkeypatch.setenv("SPANBERT_OPENSEARCH_PASSWORD", "s3cret")
    assert OpenSearch.open(f"http://{host}/texts").passages


def test_an_unknown_certificate_is_not_accepted(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose certificate nobody signed is refused; with the certificate named by SSL_CERT_FILE it is taken."""
    import shutil
    import ssl

    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    url = server.fill("texts", [Document("a", "A", LIGHTHOUSE)]).replace("http:", "https:")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with pytest.raises(SearchFailed, match=r"cannot be reached .*certificate"):
        OpenSearch.open(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert OpenSearch.open(url).passages


@pytest.mark.parametrize(
    "url",
    [
        "http://", "http:/host/name", "http://host", "http://host:9200/", "http://host:99999/name", "http://host/Name",
        "http://host/a,b", "http://host/a*", "http://host/_all", "http://host/name?x=1", "http://host/..", "http://[::1/name",
        "http://host/na%2Ame", "http://hö st/name",
    ],
)  # fmt: skip
def test_addresses_that_name_no_index(url: str) -> None:
    with pytest.raises(UserError, match="HOST:9200/NAME"):
        Address.parse(url)


def test_a_password_that_goes_unencrypted_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    for url in (
        "https://ann:s3cret@safe.example/texts",
        "http://ann:s3cret@localhost/texts",
        "http://open.example/texts",
    ):
        Address.parse(url)
    assert not capsys.readouterr().err
    Address.parse("http://ann:s3cret@open.example/texts")
    shown = capsys.readouterr().err
    assert "open.example unencrypted" in shown and "s3cret" not in shown


def test_an_address_may_have_a_path_before_the_index() -> None:
    assert str(Address.parse("https://[::1]:9200/search/texts/")) == "https://[::1]:9200/search/texts"


def test_a_busy_server_gets_passages_again(server: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(upload_opensearch.time, "sleep", waited.append)
    server.busy = 5
    uploaded = upload_index([folder], f"{server.address}/texts")
    assert len(server.entries["texts"]) == uploaded.passages and waited
    server.busy = 10**6
    with pytest.raises(SearchFailed, match="too much to do"):
        upload_index([folder], f"{server.address}/second")
    assert "second" not in server.indexes, "half an index was left"


def test_many_passages_go_in_several_requests(server: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_opensearch, "BATCH_BYTES", 1000)
    uploaded = upload_index([folder], f"{server.address}/texts")
    assert uploaded.passages == len(server.entries["texts"])
    assert sum(path.endswith("_bulk") for _, path, _ in server.requests) > 1


def test_an_upload_that_fails_leaves_nothing(server: StandIn, folder: Path, tmp_path: Path) -> None:
    upload_index([folder], f"{server.address}/texts")
    before = dict(server.entries["texts"])
    with pytest.raises(UserError, match="exists already"):
        upload_index([folder], f"{server.address}/texts")
    assert server.entries["texts"] == before
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no document could be read"):
        upload_index([tmp_path / "nothing"], f"{server.address}/second")

    def refused(one: Handler) -> None:
        body = server.requests[-1][2]
        assert isinstance(body, bytes)
        item = {"create": {"status": 400, "error": {"reason": "immense term"}}}
        one.give(200, {"errors": True, "items": [item] * (len(body.splitlines()) // 2)})

    server.answers["_bulk"] = refused
    with pytest.raises(UserError, match=r"refused a passage of light\.txt \(immense term\)"):
        upload_index([folder], f"{server.address}/second")
    server.answers["_bulk"] = lambda one: one.give(200, {"items": []})
    with pytest.raises(SearchFailed, match="no outcome for each passage"):
        upload_index([folder], f"{server.address}/second")
    del server.answers["_bulk"]
    server.answers["_count"] = lambda one: one.give(200, {"count": 1})
    with pytest.raises(UserError, match=r"holds 1 passages after \d+ were written"):
        upload_index([folder], f"{server.address}/second")
    assert server.indexes.keys() == {"texts"}


@pytest.mark.slow
def test_the_server_and_its_model_processes_search_there(server: StandIn, folder: Path, tmp_path: Path) -> None:
    """The credentials come from the environment, in the processes, too; a search that fails is not the client's mistake."""
    httpx2 = pytest.importorskip("httpx2")
    pytest.importorskip("fastapi")
    upload_index([folder], f"{server.address}/texts")
    server.wanted = USER
    known = {"SPANBERT_OPENSEARCH_USER": "ann", "SPANBERT_OPENSEARCH_PASSWORD": "s3cret", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "spanbert", "serve", "--port", "0", "--workers", "2", "--index"]
    process = subprocess.Popen(
        [*command, f"{server.address}/texts"], env=os.environ | known, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        (address,) = re.findall(r"http://\S+", process.stdout.readline())
        asked = {"questions": ["When was the lighthouse built?"], "index": True}
        answers = [httpx2.post(f"{address}/v1/answers", json=asked, timeout=60).json() for _ in range(3)]
        for one in answers:
            best = one["results"][0]["answers"][0]
            assert "1894" in best["text"] and best["places"][0]["document"] == "light.txt"
        whole = httpx2.get(f"{address}/v1/index/documents/light.txt").json()
        assert whole["text"].split() == LIGHTHOUSE.split()
        server.answers["_search"] = lambda one: one.give(500, b"")
        failed = httpx2.post(f"{address}/v1/answers", json=asked, timeout=60)
        assert (failed.status_code, failed.json()["type"]) == (502, "/docs#search-failed")
        process.terminate()
        assert process.wait(20) == 143
    finally:
        process.kill()
        process.wait()


def test_the_commands(server: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`index` and `ask` over HTTP, and the mistakes that end with a sentence and the status of a user's mistake."""
    url = server.address.replace("http://", "http://ann:s3cret@") + "/texts"
    server.wanted = USER
    assert main(["index", str(folder), "--output", url]) == 0
    shown = capsys.readouterr().out
    assert "2 documents in" in shown and "s3cret" not in shown
    assert main(["ask", "--index", url, "When was the lighthouse built?", "--json", "--device", "cpu"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "1894" in answer["answer"] and answer["answers"][0]["places"][0]["document"] == "light.txt"
    assert main(["ask", "--index", f"{server.address}/texts", "When?"]) == 2
    assert "wants a user and a password" in capsys.readouterr().err
    check(AskConfig(index=url))

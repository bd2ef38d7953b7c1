"""Passages that lie in OpenSearch: found there by a ``match`` query (BM25), read here.

An index of OpenSearch holds one entry a passage, as ``spanbert index PATHS --output http://HOST:9200/NAME`` writes them:

    document, title, text    the document's id and title, and the passage's text
    start                    code point of the document's text at which the passage begins
    sections                 pages or headings: [{"start": code point of the passage, "label": "page 3"}, …]
    searched                 title and text together, which ``MAPPING`` copies: what the query is matched with

BM25 there is the one of ``postings``, with the same constants, so scores weigh alike in both. Terms are not quite the same.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from finetune.retrieval.documents import Document, clean
from finetune.retrieval.index import Hit, Index, Retriever, SearchFailed
from finetune.retrieval.readers import Section
from spanbert.errors import UserError, note

USER, PASSWORD = "SPANBERT_OPENSEARCH_USER", "SPANBERT_OPENSEARCH_PASSWORD"
SECONDS = 10.0  # that a search may take
LARGEST_ANSWER = 64 * 2**20  # bytes
MOST_PASSAGES = 10_000  # in one answer: OpenSearch's own bound
LONGEST_DOCUMENT = 256 * 2**20  # code points
#: Folding as in ``terms``: case, accents, width; apostrophes and underscores divide; pairs of Chinese and Japanese letters.
MAPPING: dict[str, Any] = {
    "settings": {
        "analysis": {
            "char_filter": {"dividing": {"type": "mapping", "mappings": ["'=>\\u0020", "’=>\\u0020", "_=>\\u0020"]}},
            "analyzer": {
                "folded": {
                    "type": "custom",
                    "char_filter": ["dividing"],
                    "tokenizer": "standard",
                    "filter": ["cjk_width", "lowercase", "asciifolding", "cjk_bigram"],
                }
            },
        }
    },
    "mappings": {
        "dynamic": "strict",
        "properties": {
            "document": {"type": "keyword"},
            "title": {"type": "text", "index": False, "copy_to": "searched"},
            "text": {"type": "text", "index": False, "copy_to": "searched"},
            "start": {"type": "long"},
            "sections": {"properties": {"start": {"type": "long"}, "label": {"type": "keyword"}}},
            "searched": {"type": "text", "analyzer": "folded"},
        },
    },
}
NEEDED = {"document": ("keyword",), "start": ("long", "integer"), "searched": ("text",)}


def is_url(where: Path | str) -> bool:
    """Whether an index is named by its address rather than by its folder."""
    return isinstance(where, str) and re.match("https?:", where, re.IGNORECASE) is not None


def open_retriever(where: Path | str) -> Retriever:
    """The index in a folder, or in OpenSearch where it is an address. Raises UserError where there is none."""
    return OpenSearch.open(str(where)) if is_url(where) else Index.open(where)


@dataclass(frozen=True)
class Address:
    """Where an index is, apart from the credentials, which no message and no ``repr`` shows."""

    server: str  # http://host:9200
    name: str
    authorization: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"{self.server}/{self.name}"

    @classmethod
    def parse(cls, url: str) -> Address:
        """Credentials are those of the address, or of the environment. Raises UserError for what is no address."""
        wanted = "give the index as http(s)://HOST:9200/NAME"
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise UserError(f"the address of the index is malformed: {wanted}.") from None
        folder, _, name = urllib.parse.unquote(parts.path).rstrip("/").rpartition("/")
        if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise UserError(f"the address of the index is malformed: {wanted}.")
        if not re.fullmatch(r"[^\s\\/*?\"<>|,#:A-Z_+\-][^\s\\/*?\"<>|,#:A-Z]*", name) or name in (".", ".."):
            raise UserError(f"{name!r} is no name of one index (lower case, without spaces and * , #): {wanted}.")
        if not re.fullmatch(r"[!-~]+", host) or not re.fullmatch(r"[!-~]*", folder):
            raise UserError(f"the address of the index holds characters other than ASCII: {wanted}.")
        shown = f"[{host}]" if ":" in host else host
        server = f"{parts.scheme}://{shown}{'' if port is None else f':{port}'}{folder}"
        user = urllib.parse.unquote(parts.username or "") or os.environ.get(USER, "")
        password = urllib.parse.unquote(parts.password or "") or os.environ.get(PASSWORD, "")
        if bool(user) != bool(password):
            raise UserError(f"{server}/{name}: a user and a password belong together: set {USER} and {PASSWORD}.")
        if not user:
            return cls(server, name, None)
        if parts.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1"):
            note(f"user and password go to {host} unencrypted; use https://")
        return cls(server, name, "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An address that leads elsewhere is told, not followed: the credentials are for this server."""

    def redirect_request(self, *_: object) -> None:
        return None


class Refusal(SearchFailed):
    """OpenSearch answered with an error. ``kind``: its name for it, as in "index_not_found_exception"."""

    def __init__(self, message: str, status: int = 0, kind: str = "") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class Client:
    """One index of a server, over HTTP. Certificates are checked; SSL_CERT_FILE names those of one's own authority."""

    def __init__(self, address: Address, seconds: float = SECONDS) -> None:
        self.address, self.seconds = address, seconds
        self._open = urllib.request.build_opener(_NoRedirects).open

    def call(self, method: str, path: str = "", body: object = None) -> dict[str, Any]:
        """The answer to a request for a path below the index. body: bytes (lines of JSON) or what becomes JSON.

        Raises SearchFailed where there is no server or no answer in time, Refusal where the answer is an error.
        """
        lines = isinstance(body, bytes)
        data = cast(bytes, body) if lines else None if body is None else json.dumps(body).encode()
        url = f"{self.address.server}/{urllib.parse.quote(self.address.name)}{path}"
        request = urllib.request.Request(url, data, method=method)
        request.add_header("Content-Type", "application/x-ndjson" if lines else "application/json")
        if self.address.authorization is not None:
            request.add_unredirected_header("Authorization", self.address.authorization)
        until = time.monotonic() + self.seconds
        try:
            with self._open(request, timeout=self.seconds) as response:
                content = self._read(response, until)
        except urllib.error.HTTPError as error:
            raise self._refusal(error, until) from None
        except TimeoutError:
            raise self._late() from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise self._late() from None
            reason = getattr(error.reason, "strerror", None) or error.reason
            raise SearchFailed(f"{self.address.server}: cannot be reached ({reason}).") from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise SearchFailed(f"{self.address.server}: the connection broke ({reason}).") from None
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self.malformed("no JSON object")
        return answer

    def malformed(self, what: str) -> SearchFailed:
        return SearchFailed(f"{self.address}: answered, but not as OpenSearch does ({what}); is the address right?")

    def _late(self) -> SearchFailed:
        return SearchFailed(f"{self.address.server}: no answer within {self.seconds:g} s.")

    def _read(self, response: Any, until: float) -> bytes:
        content = bytearray()
        while block := response.read1(65536):
            content += block
            if time.monotonic() > until:
                raise TimeoutError
            if len(content) > LARGEST_ANSWER:
                raise self.malformed(f"more than {LARGEST_ANSWER // 2**20} MiB")
        if response.length:  # of what was announced
            raise http.client.IncompleteRead(b"", response.length)
        return bytes(content)

    def _refusal(self, error: urllib.error.HTTPError, until: float) -> SearchFailed:
        kind = reason = ""
        try:
            told = json.loads(self._read(error, until))["error"]
            kind, reason = str(told["type"]), str(told["reason"])
            if causes := told.get("root_cause"):
                kind, reason = str(causes[0]["type"]), str(causes[0]["reason"])
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError, OSError, http.client.HTTPException):
            pass
        except SearchFailed:
            pass
        where, status = self.address, error.code
        shown = " ".join(reason.split())[:300] or error.reason
        if status == 401:
            words = f"wants a user and a password that it knows: set {USER} and {PASSWORD}"
        elif status == 403:
            words = f"this user may not do that ({shown})"
        elif status == 404 and kind == "index_not_found_exception":
            words = f"there is no such index; make one: spanbert index PATHS --output {where}"
        elif status == 429:
            words = "the server has too much to do; try again later"
        elif 300 <= status < 400:
            words = f"leads elsewhere ({status}); give the address where the index is"
        else:
            words = f"the server answered {status} ({shown})"
        return Refusal(f"{where}: {words}.", status, kind)


@dataclass(frozen=True)
class _Passage(Hit):
    """A hit with what there is of its document: the passage."""

    part: Document


class OpenSearch:
    """A retriever over an index of OpenSearch. Nothing is kept here; counts are those of when it was opened."""

    def __init__(self, client: Client, passages: int, document_count: int) -> None:
        self.client = client
        self.passages, self.document_count = passages, document_count

    @classmethod
    def open(cls, url: str, seconds: float = SECONDS) -> OpenSearch:
        """Raises UserError where the server cannot be reached, and where the index is none, of another kind, or empty."""
        client = Client(Address.parse(url), seconds)
        for properties in _properties(client):
            for name, types in NEEDED.items():
                if not isinstance(properties.get(name), dict) or properties[name].get("type") not in types:
                    raise UserError(
                        f"{client.address}: has no field {name!r} of type {' or '.join(types)}, so it was not made for "
                        f"this; make an index: spanbert index PATHS --output http://HOST:9200/NAME"
                    )
        count = {"documents": {"cardinality": {"field": "document", "precision_threshold": 40_000}}}
        answer = client.call("POST", "/_search", {"size": 0, "track_total_hits": True, "aggs": count})
        try:
            passages = _whole(answer["hits"]["total"]["value"])
            documents = _whole(answer["aggregations"]["documents"]["value"])
        except (LookupError, TypeError, ValueError):
            raise client.malformed("no counts") from None
        if not passages:
            raise UserError(f"{client.address}: the index is empty.")
        return cls(client, passages, documents)

    def search(self, question: str, k: int) -> list[Hit]:
        """The k best passages by BM25, over all shards alike."""
        query = {"match": {"searched": {"query": question}}}
        return self._hits("/_search?search_type=dfs_query_then_fetch", {"query": query, "size": k})

    def passage(self, number: int) -> Hit:
        order = [{"document": "asc"}, {"start": "asc"}]
        found = self._hits("/_search", {"sort": order, "from": number, "size": 1}, number + 1)
        if not found:
            raise SearchFailed(f"{self.client.address}: holds fewer passages than before; ask again.")
        return found[0]

    def document_of(self, hit: Hit) -> Document:
        assert isinstance(hit, _Passage)
        return hit.part

    def document(self, name: str) -> Document | None:
        """The text put together from its passages; what no passage holds, which is no word, is spaces."""
        query = {"term": {"document": {"value": name}}}
        hits = self._hits("/_search", {"query": query, "sort": [{"start": "asc"}], "size": MOST_PASSAGES})
        parts = [self.document_of(hit) for hit in hits]
        if not parts:
            return None
        if len(parts) == MOST_PASSAGES or max(one.offset + len(one.text) for one in parts) > LONGEST_DOCUMENT:
            raise SearchFailed(f"{self.client.address}: the document is too long to be put together.")
        sections: dict[int, str] = {}
        pieces: list[str] = []
        end = 0
        for part in parts:
            pieces += [" " * (part.offset - end), part.text[max(0, end - part.offset) :]]
            end = max(end, part.offset + len(part.text))
            sections |= {part.offset + one.start: one.label for one in part.sections}
        return Document(name, parts[0].title, "".join(pieces), _without_repeats(sections))

    def _hits(self, path: str, body: dict[str, Any], first_rank: int = 1) -> list[Hit]:
        joiner = "&" if "?" in path else "?"
        answer = self.client.call("POST", f"{path}{joiner}allow_partial_search_results=false", body)
        if answer.get("timed_out"):
            raise SearchFailed(f"{self.client.address}: the search took too long.")
        try:
            return [_hit(one, rank) for rank, one in enumerate(answer["hits"]["hits"], first_rank)]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise self.client.malformed(f"in a passage, {type(error).__name__}: {str(error)[:100]}") from None


def _without_repeats(sections: dict[int, str]) -> tuple[Section, ...]:
    """Each passage names the section that it begins in: only where another begins is one begun."""
    found: list[Section] = []
    for start, label in sorted(sections.items()):
        if not found or found[-1].label != label:
            found.append(Section(start, label))
    return tuple(found)


def _properties(client: Client) -> list[dict[str, Any]]:
    """The fields of the index, or of each that an alias of that name stands for."""
    answer = client.call("GET", "/_mapping")
    try:
        return [dict(one["mappings"].get("properties", {})) for one in answer.values()]
    except (LookupError, TypeError, ValueError, AttributeError):
        raise client.malformed("no mapping") from None


def _hit(entry: Any, rank: int) -> _Passage:
    source = entry["_source"]
    text, start = _text(source["text"]), _whole(source["start"])
    sections = tuple(Section(_whole(one["start"]), _text(one["label"])) for one in source.get("sections") or ())
    part = Document(_text(source["document"]), _text(source.get("title") or ""), text, sections, start)
    number = int.from_bytes(hashlib.blake2b(_text(entry["_id"]).encode(), digest_size=8).digest(), "little")
    score = entry.get("_score")
    return _Passage(number, 0, len(text), 0.0 if score is None else _number(score), rank, part)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is missing")
    return clean(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise ValueError("a number is missing or wrong")
    return value


def _number(value: Any) -> float:
    number = float(value) if isinstance(value, int | float) else float("nan")
    if not 0 <= number < 1e30:
        raise ValueError("a score is missing or wrong")
    return number

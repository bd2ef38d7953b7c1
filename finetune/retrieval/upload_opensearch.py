"""`spanbert index PATHS --output http://HOST:9200/NAME`: passages written into a new index of OpenSearch.

Nothing there is updated or replaced: a name that is taken is refused, and an upload that fails deletes what it began. For
an index that changes, write a new one and point an alias at it, from which `ask` and `serve` read just as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from finetune.retrieval.documents import Document, Skipped, Sources
from finetune.retrieval.opensearch import MAPPING, Address, Client, Refusal, SearchFailed
from finetune.retrieval.passages import Passage, document_passages
from spanbert.errors import UserError

BATCH_BYTES = 4 * 2**20  # of a bulk request, about
SECONDS = 120.0  # that a bulk request may take
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before a passage is sent again that the server had no time for


@dataclass(frozen=True)
class Uploaded:
    """What was written."""

    address: str  # without credentials
    documents: int
    passages: int
    skipped: list[Skipped]

    def __str__(self) -> str:
        skipped = f"; skipped {len(self.skipped):,}" if self.skipped else ""
        return f"{self.documents:,} documents in {self.passages:,} passages{skipped}"


def upload_index(paths: Iterable[Path | str], url: str) -> Uploaded:
    """Make the index at ``url`` hold the documents under ``paths``.

    Raises UserError where the server cannot be reached or refuses, the index exists, or no document can be read.
    """
    client = Client(Address.parse(url), SECONDS)
    sources = Sources.under(paths)
    try:
        client.call("PUT", "", MAPPING)
    except Refusal as error:
        if error.kind != "resource_already_exists_exception":
            raise
        raise UserError(
            f"{client.address}: exists already; name a new index, and let an alias name the one to be read."
        ) from None
    try:
        uploaded = _write(client, sources)
        client.call("POST", "/_refresh")
        stored = client.call("GET", "/_count").get("count")
        if stored != uploaded.passages:
            raise UserError(f"{client.address}: holds {stored} passages after {uploaded.passages:,} were written.")
    except BaseException:
        with contextlib.suppress(SearchFailed):
            client.call("DELETE")
        raise
    return uploaded


def _write(client: Client, sources: Sources) -> Uploaded:
    skipped = list(sources.skipped)
    taken: set[str] = set()
    lines: list[bytes] = []
    size = passages = 0
    with tqdm(unit=" documents", desc="indexing", mininterval=0.5, disable=None) as bar:
        for document in (one for source in sources.files for one in source.documents(skipped)):
            if document.id in taken:
                skipped.append(Skipped(document.id, "a second document of this id"))
                continue
            taken.add(document.id)
            for line in bulk_lines(document):
                lines.append(line)
                passages, size = passages + 1, size + len(line)
                if size >= BATCH_BYTES:
                    _send(client, lines)
                    lines, size = [], 0
            bar.update()
    if not passages:
        listed = "".join(f"\n  {one}" for one in skipped[:20])
        raise UserError(f"no document could be read.{listed}")
    _send(client, lines)
    return Uploaded(str(client.address), len(taken), passages, skipped)


def bulk_lines(document: Document) -> Iterator[bytes]:
    """The two lines of the bulk API for each passage. Its id is a hash of document and place: the same each time."""
    for passage in document_passages(document.title, document.text):
        name = hashlib.sha256(f"{passage.start} {document.id}".encode()).hexdigest()[:32]
        source = {
            "document": document.id,
            "title": document.title,
            "text": document.text[passage.start : passage.end],
            "start": passage.start,
            "sections": _sections(document, passage),
        }
        yield f"{json.dumps({'create': {'_id': name}})}\n{json.dumps(source)}\n".encode()


def _sections(document: Document, passage: Passage) -> list[dict[str, Any]]:
    """Pages or headings of the passage, the one that it begins in included; starts count from the passage's."""
    first = document.section_at(passage.start)
    found = [] if first is None else [{"start": 0, "label": first}]
    return found + [
        {"start": one.start - passage.start, "label": one.label}
        for one in document.sections
        if passage.start < one.start < passage.end
    ]


def _send(client: Client, lines: list[bytes]) -> None:
    """One bulk request; passages that the server has no time for (429) are sent again after a while."""
    for wait in (*WAITS, None):
        try:
            answer = client.call("POST", "/_bulk", b"".join(lines))
        except Refusal as error:
            if error.status != 429 or wait is None:
                raise
        else:
            lines = _left(client, lines, answer)
            if not lines:
                return
        if wait is not None:
            time.sleep(wait)
    raise SearchFailed(f"{client.address}: the server has too much to do; try again later.")


def _left(client: Client, lines: list[bytes], answer: dict[str, Any]) -> list[bytes]:
    """Those that were refused for lack of time. Raises UserError where one was refused for good."""
    try:
        outcomes = [one["create"] for one in answer["items"]]
        pairs = [(line, int(one["status"]), one) for line, one in zip(lines, outcomes, strict=True)]
    except (LookupError, TypeError, ValueError):
        raise client.malformed("no outcome for each passage") from None
    for line, status, outcome in pairs:
        if status not in (200, 201, 429):
            document = json.loads(line.splitlines()[1])["document"]
            error = outcome.get("error")
            reason = str(error.get("reason") if isinstance(error, dict) else error)
            raise UserError(f"{client.address}: refused a passage of {document} ({' '.join(reason.split())[:300]}).")
    return [line for line, status, _ in pairs if status == 429]

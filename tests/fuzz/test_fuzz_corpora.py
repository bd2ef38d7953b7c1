"""Broken corpora, compressed or not, end in documents or in one sentence, and their reading takes bounded memory."""

import bz2
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pretrain.data.corpus import Corpus
from tests.fuzz.cases import SEED, fuzz
from tests.fuzz.mutations import dump, mutate_bytes, mutate_text, mutate_value

FAST_CASES = 60
MOST_READ = 8 << 20  # bytes of text after which reading stops: no mutation makes more of these few lines
RECORDS = [{"id": n, "text": f"Der Fluss {n} floß.\nIt was é 水.", "meta": {"title": "x"}} for n in range(6)]
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0), "xz": lzma.compress, "bz2": bz2.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}  # fmt: skip
FORMATS = (
    "a.txt", "tagged.txt", "a.jsonl", "a.json", "a.parquet", "none", "a.txt.gz", "a.jsonl.xz", "a.txt.bz2", "a.jsonl.zst",
    "a.parquet.gz", "a.json.xz",
)  # fmt: skip


def table(draw: random.Random) -> bytes:
    """A parquet file whose column may be of another type, empty, nested or encoded otherwise."""
    texts = [record["text"] for record in RECORDS]
    odd: list[pa.Array] = [
        pa.array(texts), pa.array(texts), pa.array(texts, pa.large_string()), pa.array([t.encode() for t in texts]),
        pa.array([b"\xff\xfe", b"", b"\x00a", *(t.encode() for t in texts[3:])]), pa.array([None, *texts[1:]]),
        pa.array(texts).dictionary_encode(), pa.array(range(6)), pa.array([{"text": t} for t in texts]), pa.nulls(6),
        pa.array([[t] for t in texts]), pa.array([], pa.string()), pa.array([1.5] * 6), pa.array(texts * 40),
    ]  # fmt: skip
    column = draw.choice(odd)
    name = draw.choice(("text", "text", "text", "text", "Text", "", "meta.text"))
    stream = io.BytesIO()
    parquet.write_table(
        pa.table({name: column, "n": pa.array(range(len(column)))}), stream,
        compression=draw.choice(("none", "snappy", "gzip", "zstd")), use_dictionary=draw.random() < 0.5,
        row_group_size=draw.choice((2, 1000)),
    )  # fmt: skip
    return stream.getvalue()


def maker(name: str) -> Callable[[random.Random], bytes]:
    plain = name.split(".")[1] if "." in name else "txt"

    def make(draw: random.Random) -> bytes:
        if plain == "parquet":
            content = table(draw)
            for _ in range(draw.choice((0, 1, 1, 3))):
                content = mutate_bytes(draw, content)
        else:
            if plain == "txt":
                text = "\n\n".join(str(record["text"]) for record in RECORDS)
                if name.startswith("tagged"):
                    text = "".join(f'<doc id="{r["id"]}" title="x">\n{r["text"]}\n</doc>\n' for r in RECORDS)
            else:
                value = RECORDS
                for _ in range(draw.randrange(4)):
                    value = mutate_value(draw, value)
                records = value if isinstance(value, list) else [value]
                text = dump(draw, value) if plain == "json" else "\n".join(json.dumps(r) for r in records)
            for _ in range(draw.choice((0, 0, 1, 2))):
                text = mutate_text(draw, text)
            content = text.encode("utf-8", "surrogatepass")
            content = mutate_bytes(draw, content) if draw.random() < 0.3 else content
        packer = PACKED.get(name.rpartition(".")[2])
        if packer is not None:
            content = packer(content)
            content = mutate_bytes(draw, content) if draw.random() < 0.5 else content
        return content

    return make


def reader(path: Path) -> Callable[[bytes], str]:
    number = 0

    def read(content: bytes) -> str:
        """Documents are text that can be written, in order, and the same every time; what is lost is counted."""
        nonlocal number
        number += 1
        path.write_bytes(content)
        corpus = Corpus((str(path),), document_per_file=number % 3 == 0)
        runs = []
        for _ in range(2):
            documents, size = [], 0
            for document in corpus:
                documents.append(document)
                size += len(document.text.encode())
                assert "\x00" not in document.text
                assert document.text.strip()
                assert size <= MOST_READ, "more text than the file can hold"
            runs.append(documents)
        assert runs[0] == runs[1]
        places = [(document.index, document.start) for document in documents]
        assert places == sorted(set(places))
        counts = corpus.counts
        assert counts.documents - counts.empty_documents == sum(document.start == 0 for document in documents)
        assert not documents or places[-1][0] < counts.documents
        assert corpus.progress.bytes == len(content)
        assert (counts.malformed_lines > 0) == (counts.first_malformed is not None)
        return ("read in part" if counts.malformed_lines else "read whole") if documents else "nothing left"

    return read


@pytest.mark.parametrize("name", FORMATS)
def test_broken_corpora_end_in_documents_or_in_a_sentence(name: str, tmp_path: Path) -> None:
    outcomes = fuzz(name, FAST_CASES, maker(name), reader(tmp_path / name))
    assert outcomes["read whole"] or outcomes["read in part"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_broken_corpora(name: str, seconds: float, tmp_path: Path) -> None:
    fuzz(name, None, maker(name), reader(tmp_path / name), SEED + 1, seconds=seconds)

"""Reading: every format and compression gives the same documents; damage is repaired, counted or named."""

import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard

from pretrain.data import corpus as corpus_module
from pretrain.data import readers as streams
from pretrain.data.corpus import Corpus
from spanbert.errors import UserError

DOCUMENTS = ["One.\nSecond line of one.", "Zwei: Füße", "三：中文", "four"]
TEXT = "\n\n".join(DOCUMENTS).encode() + b"\n"


def read(*inputs, **options) -> tuple[list[str], corpus_module.ReadCounts]:
    corpus = Corpus(tuple(map(str, inputs)), **options)
    return [document.text for document in corpus], corpus.counts


def json_lines(texts, field="text") -> bytes:
    return "".join(json.dumps({field: text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()


def write_parquet(path, texts, field="text") -> None:
    parquet.write_table(pa.table({field: texts, "id": list(range(len(texts)))}), path)


COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_formats_and_compressions_agree(kind, ending, tmp_path):
    if kind == ".parquet":
        write_parquet(tmp_path / "plain", DOCUMENTS)
        data = (tmp_path / "plain").read_bytes()
    else:
        data = TEXT if kind == ".txt" else json_lines(DOCUMENTS)
    path = tmp_path / f"corpus{kind}{ending}"
    path.write_bytes(COMPRESS[ending](data))
    corpus = Corpus((str(path),))
    documents = list(corpus)
    assert [d.text for d in documents] == DOCUMENTS
    assert [d.index for d in documents] == [0, 1, 2, 3] and {d.start for d in documents} == {0}
    assert corpus.counts.documents == 4 and corpus.counts.files == 1
    assert corpus.progress.bytes == corpus.stored_bytes == path.stat().st_size


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_compressed_parts_one_after_the_other(ending, tmp_path):
    """`cat a.gz b.gz` is a valid file, and parallel compressors write such."""
    middle = len(TEXT) // 2
    path = tmp_path / f"two.txt{ending}"
    path.write_bytes(COMPRESS[ending](TEXT[:middle]) + COMPRESS[ending](TEXT[middle:]))
    assert read(path)[0] == DOCUMENTS


def test_folder_is_read_in_sorted_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "c.txt").write_text("3\n\n4")
    (tmp_path / "a.jsonl").write_bytes(json_lines(["1"]))
    (tmp_path / "b" / "x.txt.gz").write_bytes(gzip.compress(b"2"))
    (tmp_path / ".hidden" / "x.txt").write_text("no")
    (tmp_path / "notes.pdf").write_text("no")
    assert read(tmp_path)[0] == ["1", "2", "3", "4"]
    assert read(tmp_path / "c.txt", tmp_path / "a.jsonl")[0] == ["3", "4", "1"]


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT)))
    corpus = Corpus(("-",))
    assert corpus.stored_bytes is None
    assert [d.text for d in corpus] == DOCUMENTS


def test_hugging_face_data_set_streams(monkeypatch, tmp_path):
    """Through datasets' own loader; a folder of files stands for a name on the hub."""
    (tmp_path / "some.jsonl").write_bytes(json_lines(DOCUMENTS, "content"))
    assert read(f"hf:{tmp_path}", text_field="content")[0] == DOCUMENTS
    with pytest.raises(UserError, match=r"no field 'text' \(it has content, id\)"):
        read(f"hf:{tmp_path}")
    with pytest.raises(UserError, match="cannot open the data set hf:/no/such/folder"):
        read("hf:/no/such/folder")
    with pytest.raises(UserError, match="hf:NAME"):
        read("hf:a:b:c:d")


def test_field_and_document_per_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x", "y"], "body"))
    write_parquet(tmp_path / "b.parquet", ["z"], "body")
    assert read(tmp_path, text_field="body")[0] == ["x", "y", "z"]
    with pytest.raises(UserError, match=r"b.parquet has no column 'text' \(it has body, id\)"):
        read(tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_bytes(TEXT)
    assert read(tmp_path / "c.txt", document_per_file=True)[0] == [TEXT.decode().rstrip()]


@pytest.mark.parametrize("block", [3, 4, 5, 7, 1 << 20])
def test_blank_lines_wherever_a_block_ends(block, monkeypatch, tmp_path):
    monkeypatch.setattr(streams, "BLOCK_BYTES", block)
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\r\n \n  one\r\nstill one\r\n\t\r\n\r\n\r\n\ntwo \n\n   \n\nthr\xc3\xa9e\n \n")
    assert read(path)[0] == ["  one\r\nstill one", "two", "thrée"]


# --- very long ---------------------------------------------------------------------------------------------------


def parts_of(corpus: Corpus) -> dict[int, list]:
    grouped: dict[int, list] = {}
    for document in corpus:
        grouped.setdefault(document.index, []).append(document)
    return grouped


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_a_very_long_document_comes_in_parts(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(corpus_module, "PART_BYTES", 1000)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 300)
    long_texts = ["short", "wörd " * 1000 + "end", "ü" * 5003, "last"]
    path = tmp_path / f"a{kind}"
    path.write_bytes("\n\n".join(long_texts).encode() if kind == ".txt" else json_lines(long_texts))
    corpus = Corpus((str(path),))
    grouped = parts_of(corpus)
    assert list(grouped) == [0, 1, 2, 3] and [len(grouped[i]) > 4 for i in grouped] == [False, True, True, False]
    for index, parts in grouped.items():
        assert "".join(part.text for part in parts) == long_texts[index]
        starts = [part.start for part in parts]
        assert starts == [sum(len(p.text) for p in parts[:i]) for i in range(len(parts))]
        assert len({part.hash for part in parts}) == 1
        assert (
            all(part.text[0] == " " for part in parts[1:]) or index == 2
        )  # cut before white space where there is some
    assert corpus.counts.long_documents == 2 and corpus.counts.documents == 4


def test_a_line_of_50_mb(tmp_path):
    path = tmp_path / "line.txt"
    path.write_bytes(b"before\n\n" + b"word and " * (50_000_000 // 9) + b"\n\nafter")
    corpus = Corpus((str(path),))
    sizes = [(d.index, len(d.text)) for d in corpus]
    assert sum(size for i, size in sizes if i == 1) == 50_000_000 // 9 * 9 - 1  # the last blank is no text
    assert max(size for _, size in sizes) <= corpus_module.PART_BYTES
    assert corpus.counts.documents == 3 and corpus.counts.long_documents == 1


# --- damage ------------------------------------------------------------------------------------------------------


def test_invalid_utf8_and_nul_are_repaired_and_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 ol\xe9\n\nn\x00u\x00l \xef\xbf\xbd genuine")
    texts, counts = read(tmp_path / "a.txt")
    assert texts == ["caf\ufffd ol\ufffd", "nul \ufffd genuine"]
    assert counts.invalid_utf8 == 2 and counts.nul_characters == 2


def test_surrogates_and_nul_in_json_are_repaired_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud83d b\\u0000c \\ud83d\\udc4d"}\n{"text": "\xff"}\n')
    texts, counts = read(tmp_path / "a.jsonl")
    assert texts == ["a\ufffd bc 👍", "\ufffd"]
    assert counts.invalid_utf8 == 2 and counts.nul_characters == 1


def test_malformed_json_lines_keep_their_number(tmp_path):
    lines = [b'{"text": "good"}', b"{broken", b'{"other": 1}', b'{"text": 5}', b"[1]", b'"text"', b"", b'{"text": ""}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b"[" * 100_000, b'{"text": "end"}']))
    corpus = Corpus((str(tmp_path / "a.jsonl"),))
    assert [(d.index, d.text) for d in corpus] == [(0, "good"), (9, "end")]
    assert corpus.counts.malformed_lines == 7 and corpus.counts.documents == 10
    assert corpus.counts.empty_documents == 8
    assert corpus.counts.first_malformed == f"{tmp_path}/a.jsonl:2"


def test_empty_files_and_documents_are_counted(tmp_path):
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "d.txt").write_bytes(b"\n  \n\n")
    write_parquet(tmp_path / "e.parquet", [])
    write_parquet(tmp_path / "f.parquet", ["", None, "  ", "x"])
    texts, counts = read(tmp_path)
    assert texts == ["x"] and counts.files == 6 and counts.empty_files == 4
    assert counts.documents == 4 and counts.empty_documents == 3
    assert read(tmp_path / "a.txt", tmp_path / "d.txt", document_per_file=True)[1].empty_documents == 2


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "not compressed"])
def test_damaged_compression_names_the_file(ending, damage, tmp_path):
    data = bytearray(COMPRESS[ending](bytes(range(256)) * 50 + TEXT * 2000))
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 0xFF
        data[-1] ^= 0xFF  # zstd frames carry no checksum by default; damage its structure, too
        if ending == ".zst":
            data[6:10] = b"\xff\xff\xff\xff"
    else:
        data = bytearray(TEXT)
    path = tmp_path / f"bad.txt{ending}"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"bad.txt{ending} is damaged or cut short"):
        read(path)


def test_other_impossible_inputs(tmp_path):
    (tmp_path / "utf16.txt").write_text("words", encoding="utf-16")
    (tmp_path / "bad.parquet").write_text("words")
    (tmp_path / "empty").mkdir()
    for inputs, message in [
        ((tmp_path / "utf16.txt",), "utf16.txt is UTF-16"),
        ((tmp_path / "bad.parquet",), "bad.parquet is not a whole parquet file"),
        ((tmp_path / "empty",), "holds no file"),
        ((tmp_path / "absent.txt",), "absent.txt does not exist"),
        ((), "no input named"),
        (("-", "-"), "named twice"),
    ]:
        with pytest.raises(UserError, match=message):
            read(*inputs)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_damage_anywhere_in_a_parquet_file_is_one_sentence(tmp_path, compression):
    """A wrong byte inside made pyarrow raise its OSError without a number, or ended in a UnicodeDecodeError: neither was
    caught, and the second was called a bug. Found by the fuzzer."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["é", "the canal " * 9]}), path, compression=compression)
    whole = path.read_bytes()
    refused = 0
    for place in range(4, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x90]) + whole[place + 1 :])
        try:
            read(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 20

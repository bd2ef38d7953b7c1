"""Text that was lost or misread in silence: names, first bytes, fields and columns that are not as expected."""

import bz2
import gzip
import io
import json
import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import parquet

from pretrain.data import json_records
from pretrain.data.corpus import Corpus
from pretrain.data.readers import BLOCK_BYTES
from spanbert.errors import UserError

DOCUMENTS = ["The old mill was built by the river.", "The canal was opened.", "A red bridge."]
TEXT = "\n\n".join(DOCUMENTS).encode()
LINES = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS).encode()
ARRAY = json.dumps([{"text": text} for text in DOCUMENTS]).encode()
WIKI = "".join(
    f'<doc id="{i}" url="u" title="T{i}">\nT{i}\n\n{text}\n\n</doc>\n' for i, text in enumerate(DOCUMENTS)
).encode()
OF_WIKI = [f"T{i}\n\n{text}" for i, text in enumerate(DOCUMENTS)]


def read(*inputs, **options) -> list[str]:
    return [document.text for document in Corpus(tuple(map(str, inputs)), **options)]


def test_a_mixed_folder_is_read_whole_and_what_is_left_out_is_counted(tmp_path, monkeypatch, capsys):
    """Of such a folder one file in eight was read: the others end in capitals, .json, .ndjson, .bz2 or in nothing."""
    monkeypatch.setattr("spanbert.errors._noted", set())
    folder, outside = tmp_path / "mixed", tmp_path / "outside"
    (folder / "AA").mkdir(parents=True), outside.mkdir()
    for name, data in {
        "a.txt": TEXT, "B.TXT": TEXT, "c.ndjson": LINES, "d.json": ARRAY, "e.JSONL": LINES, "f.txt.bz2": bz2.compress(TEXT),
        "G.Txt.GZ": gzip.compress(TEXT), "AA/wiki_00": WIKI, "AA/packed": gzip.compress(TEXT), "h.html": b"<p>", "i.HTML": b"<p>",
        "core": b"\x7fELF\x00\x01", ".hidden.txt": TEXT,
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
    (outside / "z.txt").write_bytes(TEXT)
    (folder / "linked").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (outside / "back").symlink_to(folder)
    (folder / "again.txt").symlink_to(folder / "a.txt")
    (folder / "lost.txt").symlink_to(folder / "nothing")
    corpus = Corpus((str(folder),))
    texts = [document.text for document in corpus]
    assert len(texts) == 30 and sorted(set(texts)) == sorted([*DOCUMENTS, *OF_WIKI])
    assert corpus.counts.files == 10 and corpus.counts.left_out == corpus.left_out
    assert corpus.left_out == {
        ".html": 2, "hidden": 1, "without suffix, no text": 1, "linked again": 1, "linked again (folders)": 2,
        "broken links or no files": 1,
    }  # fmt: skip
    assert "left out of the folders named" in capsys.readouterr().err


def test_a_folder_of_other_files_says_what_it_holds(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"holds no file that ends in .*; it holds 1 \.csv"):
        Corpus((str(tmp_path),))


CONTENTS = {"lines": LINES, "array": ARRAY, "pretty": json.dumps(json.loads(ARRAY), indent=2).encode(), "wiki": WIKI,
            "gzip": gzip.compress(TEXT), "gzip of lines": gzip.compress(LINES), "bz2 of wiki": bz2.compress(WIKI)}  # fmt: skip


@pytest.mark.parametrize("name", ["x.txt", "x", "x.dump", "-"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_the_first_bytes_decide(kind, name, tmp_path, monkeypatch, capsys):
    """Braces, field names, <doc …> lines or compressed bytes were trained on as text; standard input, too."""
    monkeypatch.setattr("spanbert.errors._noted", set())
    data = CONTENTS[kind]
    expected = OF_WIKI if "wiki" in kind else DOCUMENTS
    if name == "-":
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert read("-") == expected
    else:
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == expected
    assert "read as that" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["[Chapter 1] It was.", '{"a quote"} begins it', "{ x }", "<doc> is a word", '["a", "b"]', "PAR for"]
)
def test_text_that_looks_a_little_like_something_else_stays_text(text, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize("block", [1, 7, 64])
def test_tags_and_values_wherever_a_block_ends(block, tmp_path, monkeypatch):
    assert BLOCK_BYTES > 64
    monkeypatch.setattr("pretrain.data.readers.BLOCK_BYTES", block)
    for name, data in (("a.txt", WIKI), ("b.json", ARRAY), ("c.json", CONTENTS["pretty"])):
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == (OF_WIKI if name == "a.txt" else DOCUMENTS)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.json", ARRAY[:-1], "cut short: its JSON array does not end \\(3 records"),
        ("a.json", ARRAY[:-20], "cut short, after 2 records"),
        ("a.txt", b"PK\x03\x04rest", "a zip archive, not text"),
        ("a.jsonl", "\ufeff{}".encode("utf-16"), "UTF-16"),
        ("a.txt.gz", TEXT, "damaged or cut short"),
        ("a.parquet", TEXT, "not a whole parquet file"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said):
        read(tmp_path / name)


def test_strings_in_an_array_are_documents(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(DOCUMENTS))
    assert read(tmp_path / "a.json") == DOCUMENTS


# --- fields and columns ------------------------------------------------------------------------------------------


def test_the_first_record_says_which_fields_there_are(tmp_path, monkeypatch):
    """All of a corpus was read before "no text found": its text is under "content"."""
    line = json.dumps({"content": "x", "meta": {"title": "t", "raw": "r"}}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 3)
    (tmp_path / "a.json").write_text("[" + ",".join([line] * 3) + "]")
    seen = []
    monkeypatch.setattr(json_records, "get_field", lambda record, path: (seen.append(1), json_records.MISSING)[1])
    for name in ("a.jsonl", "a.json"):
        with pytest.raises(
            UserError, match=r"no field 'text' \(it has content, meta.title, meta.raw\): use --text-field"
        ):
            read(tmp_path / name)
    assert len(seen) == 2, "only the first record was looked at"


def test_names_of_fields_stay_on_one_line(tmp_path):
    """A text cut in the middle is a record whose field's name has lines: the error had them, too."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"one\ntwo": "x"}) + "\n")
    with pytest.raises(UserError, match=r"it has one\\u000atwo"):
        read(tmp_path / "a.jsonl")


def test_a_dotted_path_leads_into_objects(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"meta": {"raw": "r"}, "a.b": "dot"}) + "\n")
    assert read(tmp_path / "a.jsonl", text_field="meta.raw") == ["r"]
    assert read(tmp_path / "a.jsonl", text_field="a.b") == ["dot"]
    with pytest.raises(UserError, match=r"'meta' is an object: .* \(one of meta.raw\)"):
        read(tmp_path / "a.jsonl", text_field="meta")


def table(tmp_path, values, kind=None):
    parquet.write_table(pa.table({"text": pa.array(values, kind), "id": [0] * len(values)}), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_bytes_and_other_strings_are_text(kind, tmp_path):
    """A column of bytes ended in a traceback."""
    values = [text.encode() if "binary" in str(kind) else text for text in DOCUMENTS]
    assert read(table(tmp_path, [*values, None], kind)) == DOCUMENTS


def test_bytes_that_are_no_utf8_are_repaired_and_counted(tmp_path):
    corpus = Corpus((str(table(tmp_path, [b"caf\xe9", b"ok"], pa.binary())),))
    assert [document.text for document in corpus] == ["caf\ufffd", "ok"] and corpus.counts.invalid_utf8 == 1


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ([1, 2], pa.int64(), "column 'text' is int64, expected text"),
        ([["a"], ["b"]], pa.list_(pa.string()), "is list<.*>, expected text"),
        (
            [{"raw": "a"}],
            pa.struct([("raw", pa.string())]),
            r"is struct<.*> with --text-field \(one of text.raw\)|one of text.raw",
        ),
    ],
)
def test_a_column_that_is_no_text_is_named_with_its_type(values, kind, said, tmp_path):
    with pytest.raises(UserError, match=said):
        read(table(tmp_path, values, kind))


def test_a_dotted_path_leads_into_a_struct_column(tmp_path):
    path = table(tmp_path, [{"raw": text} for text in DOCUMENTS] + [None], pa.struct([("raw", pa.string())]))
    assert read(path, text_field="text.raw") == DOCUMENTS
    with pytest.raises(UserError, match=r"no column 'text\.other'"):
        read(path, text_field="text.other")


def test_a_data_set_of_other_values_is_one_sentence(tmp_path):
    for values, said in (([1, 2], "holds a number, expected text"), ([["a"]], "holds a list, expected text")):
        table(tmp_path, values)
        with pytest.raises(UserError, match=said):
            read(f"hf:{tmp_path}")
    table(tmp_path, [text.encode() for text in DOCUMENTS], pa.binary())
    assert read(f"hf:{tmp_path}") == DOCUMENTS

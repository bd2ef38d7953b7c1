"""Finding passages: BM25 against a library's, and an index on disk that is brought up to date."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import pytest

from finetune.retrieval import build, merge_postings, postings
from finetune.retrieval.build import IndexConfig, run_index, update_index
from finetune.retrieval.documents import Document, Section
from finetune.retrieval.index import Index
from finetune.retrieval.passages import document_passages
from finetune.retrieval.postings import K1, B, best_places
from finetune.retrieval.terms import terms
from spanbert.cli import main
from spanbert.errors import UserError

WORDS = [
    "river",
    "gate",
    "hinge",
    "brass",
    "oil",
    "key",
    "shed",
    "hook",
    "marta",
    "oven",
    "bread",
    "flour",
    "north",
    "wind",
    "tower",
    "bell",
    "stone",
    "bridge",
]
QUESTIONS = ("Where is the brass key?", "north north wind?", "bell tower by the bridge", "marta")


def invented(seed: int, sentences: int) -> str:
    rng = np.random.default_rng(seed)
    weights = np.arange(1, len(WORDS) + 1) / np.arange(1, len(WORDS) + 1).sum()
    lines = [" ".join(rng.choice(WORDS, rng.integers(3, 14), p=weights)).capitalize() + "." for _ in range(sentences)]
    return " ".join(lines)


@pytest.fixture
def documents() -> list[Document]:
    return [Document(f"d{n}", f"Title {n}", invented(n, 40 + 7 * n)) for n in range(6)]


def found(index: Index, questions: Sequence[str] = QUESTIONS, k: int = 8) -> list:
    """What is found, by document ids, so that indexes of another order of documents compare."""
    hits = [index.search(question, k) for question in questions]
    return [[(index.documents[h.document].id, h.start, h.end, round(h.score, 5)) for h in hit] for hit in hits]


def test_scores_are_those_of_bm25s(documents: list[Document]) -> None:
    """The library's "lucene" variant with the same k1 and b, over the same terms."""
    index = Index.of(documents)
    passages = [p.terms for document in documents for p in document_passages(document.title, document.text)]
    assert index.passages == len(passages) > 10
    reference = bm25s.BM25(method="lucene", k1=K1, b=B)
    reference.index(passages, show_progress=False)
    for question in QUESTIONS:
        expected = reference.get_scores(terms(question))
        hits = index.search(question, 8)
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][: len(hits)], rtol=1e-5)


def test_leaving_out_what_cannot_win_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same search that looks at every passage: few words, so that most terms stand in most passages."""
    monkeypatch.setattr(postings, "BLOCK", 4)
    index = Index.of([Document(f"d{n}", "", invented(n, 30)) for n in range(60)])
    rng = np.random.default_rng(0)
    left_out = 0
    for _ in range(60):
        question = " ".join(rng.choice(WORDS, rng.integers(1, 7)))
        k = int(rng.integers(1, 6))
        monkeypatch.setattr(postings, "MANY", 0.02)
        quick = index.search(question, k)
        quick_scores = quick and quick[-1].score
        monkeypatch.setattr(postings, "MANY", 2.0)
        every = index.search(question, index.passages)
        np.testing.assert_allclose([h.score for h in quick], [h.score for h in every[:k]], rtol=1e-5)
        left_out += sum(h.score < (quick_scores or 0) for h in every)
    assert left_out > 1000


def test_only_passages_with_a_word_of_the_question_are_hits() -> None:
    index = Index.of([Document("a", "", "The key."), Document("b", "", "A bell."), Document("c", "", "Bell, bell!")])
    assert [hit.document for hit in index.search("bell", 5)] == [2, 1]
    assert index.search("tower", 5) == []
    assert index.search("bell", 0) == []
    assert Index.of([]).search("bell", 5) == []


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 5000, 20_000])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_the_best_are_those_of_a_full_sort(size: int, k: int) -> None:
    """With many equal scores and zeros; the places of equal ones ascend."""
    rng = np.random.default_rng(size + k)
    scores = np.maximum(rng.integers(-20, 12, size), 0).astype(np.float32)
    expected = [place for place in np.argsort(-scores, kind="stable")[:k] if scores[place] > 0]
    assert best_places(scores, k).tolist() == expected
    sparse = np.where(np.arange(size) == size // 2, scores + 1, 0).astype(np.float32)
    assert best_places(sparse, k).tolist() == [size // 2][: min(size, 1)]


def test_a_title_finds_all_passages_of_its_document() -> None:
    text = " ".join(f"He wrote letter number {n} to a friend in the north." for n in range(60))
    index = Index.of([Document("a", "Luigi Menabrea", text), Document("b", "Ada", text)])
    hits = index.search("When did Menabrea write?", 50)
    assert len(hits) == index.passages / 2 > 1 and {hit.document for hit in hits} == {0}


@pytest.fixture
def folder(tmp_path: Path, documents: list[Document]) -> Path:
    """The documents as files."""
    (tmp_path / "files").mkdir()
    for document in documents:
        (tmp_path / "files" / f"{document.id}.txt").write_text(document.text)
    return tmp_path / "files"


def same_as_new(files: Path, index: Path, scratch: Path) -> None:
    """The index is the one that would be made of the files from nothing."""
    update_index([files], scratch)
    assert found(Index.open(index)) == found(Index.open(scratch))
    assert [one.id for one in Index.open(index).documents] == [one.id for one in Index.open(scratch).documents]


def test_an_opened_index_finds_what_one_in_memory_finds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is written in many segments, and joined in blocks of few postings."""
    monkeypatch.setattr(build, "SEGMENT_POSTINGS", 50)
    monkeypatch.setattr(merge_postings, "BLOCK_POSTINGS", 30)
    changes = update_index([folder], tmp_path / "index")
    assert str(changes) == f"6 documents in {changes.passages} passages (6 new)"
    opened = Index.open(tmp_path / "index")
    documents = [Document(p.name, p.stem, p.read_text()) for p in sorted(folder.iterdir())]
    assert list(opened.documents) == documents
    assert found(opened) == found(Index.of(documents))
    assert isinstance(opened.postings.passages_P, np.memmap)
    (generation,) = (tmp_path / "index").glob("data-*")
    assert not list(generation.glob("segment-*"))


def test_running_again_reads_what_changed_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    update_index([folder], index)
    (folder / "d1.txt").write_text(invented(77, 30) + " A lighthouse.")
    (folder / "d3.txt").unlink()
    (folder / "a0.txt").write_text("A new windmill. " + invented(78, 20))  # now the first: all others are renumbered
    read = []
    monkeypatch.setattr(
        build, "document_passages", lambda title, text: read.append(title) or document_passages(title, text)
    )
    changes = update_index([folder], index)
    assert read == ["a0", "d1"]
    assert (changes.new, changes.changed, changes.deleted, changes.unchanged) == (1, 1, 1, 4)
    assert "(1 new, 1 changed, 1 deleted, 4 unchanged)" in str(changes)
    opened = Index.open(index)
    assert [opened.documents[h.document].id for h in opened.search("lighthouse", 9)] == ["d1.txt"]
    assert [opened.documents[h.document].id for h in opened.search("windmill", 9)] == ["a0.txt"]
    same_as_new(folder, index, tmp_path / "again")
    assert len(list(index.glob("data-*"))) == 1


def test_lines_of_a_file_are_compared_one_by_one(tmp_path: Path) -> None:
    file, index = tmp_path / "many.jsonl", tmp_path / "index"
    lines = [{"id": n, "text": invented(n, 9), "title": f"T{n}"} for n in range(5)]
    file.write_text("\n".join(map(json.dumps, lines)))
    update_index([file], index)
    lines[2]["text"] = "Only the lantern."
    del lines[0]
    file.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    changes = update_index([file], index)
    assert (changes.new, changes.changed, changes.deleted, changes.unchanged) == (0, 1, 1, 3)
    again = update_index([file], index)  # a line that is left out is named every time
    assert [one.path for one in changes.skipped] == [one.path for one in again.skipped] == [f"{file}, line 5"]
    opened = Index.open(index)
    assert opened.documents[1] == Document("many.jsonl#2", "T2", "Only the lantern.")
    assert [one.id for one in opened.documents[1:3]] == ["many.jsonl#2", "many.jsonl#3"]
    same_as_new(file, index, tmp_path / "again")


def test_sections_and_scripts_without_spaces_are_stored(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# 钥匙\n钥匙挂在门旁边的钩子上。\n# Été\nRien.\n", encoding="utf-8")
    update_index([tmp_path / "a.md"], tmp_path / "index")
    opened = Index.open(tmp_path / "index")
    assert opened.documents[0].sections == (Section(0, "钥匙"), Section(18, "Été"))
    assert len(opened.search("哪里有钩子？", 3)) == len(opened.search("ETE", 3)) == 1


def test_a_failure_leaves_the_old_index_whole(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    update_index([folder], index)
    before = found(Index.open(index))
    (folder / "d1.txt").write_text("Other.")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "merge_postings", fail)
    with pytest.raises(UserError, match="the disk is full"):
        update_index([folder], index)
    assert found(Index.open(index)) == before
    assert len(list(index.glob("data-*"))) == 1


@pytest.mark.parametrize("name", ["documents.jsonl", "texts.bin", "lines.npy", "bounds.npy", "passages.npy"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_index_is_refused_and_made_anew(name: str, damage: str, folder: Path, tmp_path: Path) -> None:
    """Asking ended in a traceback or in another text's answer; and the next `spanbert index` took the damage over."""
    update_index([folder], tmp_path / "index")
    expected = found(Index.open(tmp_path / "index"))
    (file,) = (tmp_path / "index").glob(f"data-*/{name}")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content if damage == "changed" else content[:-1])
    with pytest.raises(UserError, match=f"the index is damaged .*{name}"):
        Index.open(tmp_path / "index")
    changes = update_index([folder], tmp_path / "index")
    assert changes.new and not changes.unchanged
    assert found(Index.open(tmp_path / "index")) == expected


def test_an_index_in_memory_is_no_multiple_of_its_text() -> None:
    """All terms of all passages were held at once: 14 bytes for each character of the text."""
    text = " ".join(invented(seed, 40) for seed in range(200))
    Index.of([Document("a", "a", text[:1000])])
    tracemalloc.start()
    index = Index.of([Document("a", "a", text)])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.passages > 400
    assert most < 4 * len(text)


def test_a_text_without_words_has_no_passages() -> None:
    index = Index.of([Document("a", "a", "… !")])
    assert index.passages == 0 and index.search("word", 3) == []


def test_what_a_killed_run_left_is_cleared_away(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "index" / "data-0").mkdir(parents=True)
    (tmp_path / "index" / "data-0" / "texts.bin").write_text("half")
    update_index([folder], tmp_path / "index")
    assert len(list((tmp_path / "index").glob("data-*"))) == 1


def test_folders_of_somebody_else_are_not_taken_for_an_index(folder: Path, tmp_path: Path) -> None:
    """A folder with nothing but `data-raw` or `data-2024` in it was taken for an index, and those were deleted at the end."""
    for name, file in (("data-raw", "keys.npy"), ("data-2024", "survey.npy"), ("data-5", "deeper/texts.bin")):
        precious = tmp_path / name / name / file
        precious.parent.mkdir(parents=True)
        precious.write_text("years of work")
        with pytest.raises(UserError, match="holds other files than an index"):
            update_index([folder], tmp_path / name)
        assert precious.read_text() == "years of work"


def test_the_list_of_what_was_skipped_is_that_of_the_last_time(folder: Path, tmp_path: Path) -> None:
    """It stayed when nothing was skipped any more, and named files that had been read."""
    index = tmp_path / "index"
    for number in range(25):
        (folder / f"p{number}.png").write_bytes(b"no text")
    run_index(IndexConfig((folder,), str(index)))
    assert len((index / "skipped.txt").read_text().splitlines()) == 25
    for picture in folder.glob("*.png"):
        picture.unlink()
    run_index(IndexConfig((folder,), str(index)))
    assert not (index / "skipped.txt").exists()


def test_an_open_index_goes_on_while_it_is_replaced(folder: Path, tmp_path: Path) -> None:
    update_index([folder], tmp_path / "index")
    opened = Index.open(tmp_path / "index")
    before, text = found(opened), (folder / "d5.txt").read_text()
    for file in folder.iterdir():
        file.write_text("All is new.")
    update_index([folder], tmp_path / "index")
    assert found(opened) == before
    assert opened.documents[5].text == text


def test_an_index_among_its_documents_is_not_indexed(folder: Path) -> None:
    update_index([folder], folder / "index")
    changes = update_index([folder], folder / "index")
    assert (changes.unchanged, changes.documents, changes.skipped) == (6, 6, [])


def test_nothing_is_written_where_nothing_changed(folder: Path, tmp_path: Path) -> None:
    """Half a gigabyte used to be copied to say that all of it was as before."""
    index = tmp_path / "index"
    first = update_index([folder], index)
    (generation,) = index.glob("data-*")
    (index / "data-1").mkdir()  # of a process that was killed
    manifest = (index / "index.json").read_bytes()
    changes = update_index([folder], index)
    assert (changes.unchanged, changes.new, changes.passages) == (6, 0, first.passages)
    assert list(index.glob("data-*")) == [generation] and (index / "index.json").read_bytes() == manifest
    (folder / "d1.txt").rename(folder / "other.txt")
    changes = update_index([folder], index)
    assert (changes.new, changes.deleted, changes.unchanged) == (1, 1, 5)
    assert list(index.glob("data-*")) != [generation]
    (folder / "new.jsonl").write_text('{"id": "a", "text": "All is new."}\nno JSON\n')
    for new in (1, 0):  # what was read with a loss is read again, and the loss is said again
        changes = update_index([folder], index)
        assert (changes.new, len(changes.skipped)) == (new, 1)


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no index .*spanbert index PATHS --output"):
        Index.open(tmp_path / "none")
    with pytest.raises(UserError, match="no such file or folder"):
        update_index([tmp_path / "none"], tmp_path / "index")
    with pytest.raises(UserError, match="holds other files than an index"):
        update_index([folder], folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.pdf").write_bytes(b"no")
    with pytest.raises(UserError, match=r"no document could be read\.\n  .*a\.pdf: not readable as PDF"):
        update_index([tmp_path / "empty"], tmp_path / "index")
    assert not list((tmp_path / "index").glob("data-*"))
    update_index([folder], tmp_path / "index")
    (generation,) = (tmp_path / "index").glob("data-*")
    (generation / "keys.npy").unlink()
    with pytest.raises(UserError, match="the index is damaged"):
        Index.open(tmp_path / "index")
    update_index([folder], tmp_path / "index")  # made anew
    assert found(Index.open(tmp_path / "index"))[0]


def test_the_command_says_what_it_did(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(25):
        (folder / f"p{n:02}.png").write_bytes(b"x")
    run_index(IndexConfig((folder,), str(tmp_path / "index")))
    out, err = capsys.readouterr()
    assert f"{tmp_path}/index: 6 documents in " in out and "(6 new); skipped 25, in" in out
    assert err.count("\nskipped ") + err.startswith("skipped") == 20
    assert f"… and 5 more: {tmp_path}/index/skipped.txt" in err
    assert len((tmp_path / "index" / "skipped.txt").read_text().splitlines()) == 25
    assert main(["index", str(folder), "--output", str(tmp_path / "index")]) == 0
    assert "(6 unchanged)" in capsys.readouterr().out

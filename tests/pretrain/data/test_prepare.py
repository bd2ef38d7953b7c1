"""Preparation from end to end: no token lost, the same output whatever the processes and interruptions."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest

from pretrain.data import shards
from pretrain.data.blocks import Blocks
from pretrain.data.prepare import run_prepare
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import Tokenizer


def documents_of(folder: Path) -> dict[int, list[int]]:
    """document -> the ids of its blocks, joined in order of start."""
    joined: dict[int, list[int]] = {}
    for split in ("train", "validation"):
        rows = datasets.load_from_disk(str(folder / split))
        for document, start, ids in zip(rows["document"], rows["start"], rows["input_ids"], strict=True):
            assert start == len(joined.setdefault(document, [])), "blocks of a document follow each other in order"
            joined[document].extend(ids)
    return joined


def content_of(folder: Path) -> dict[str, object]:
    """All that a preparation decides, for comparing two."""
    content: dict[str, object] = {"unigram": np.load(folder / "unigram.npy").tolist()}
    for split in ("train", "validation"):
        content[split] = datasets.load_from_disk(str(folder / split)).to_dict()
    return content


# --- no token lost -----------------------------------------------------------------------------------------------


def test_no_token_is_lost(configure, tokenizer_folder, documents):
    config = configure()
    run_prepare(config)
    tokenizer = Tokenizer.load(tokenizer_folder)
    expected = {i: tokenizer.encode(text).ids.tolist() for i, text in enumerate(documents)}
    assert documents_of(config.output) == expected
    report = json.loads((config.output / "prepare.json").read_text())["report"]
    room = config.block_length - 2
    assert report["blocks"] == sum(-(-len(ids) // room) for ids in expected.values())
    assert report["tokens"] == sum(map(len, expected.values()))
    assert report["words"] == sum(int(tokenizer.starts_word[ids].sum()) for ids in expected.values())
    assert report["documents"] == 60 and report["tokens_per_word"] > 1.5 and report["unknown_rate"] < 0.01
    assert sum(report["block_length_histogram"].values()) == report["blocks"]


def test_report_numbers(configure, tokenizer_folder):
    config = configure()
    run_prepare(config)
    content = json.loads((config.output / "prepare.json").read_text())
    report, held = content["report"], content["report"]["held_out"]
    train, validation = (datasets.load_from_disk(str(config.output / s)) for s in ("train", "validation"))
    assert (held["train_blocks"], held["validation_blocks"]) == (len(train), len(validation))
    assert held["validation_documents"] == len(set(validation["document"]))
    assert 1 <= held["validation_documents"] <= 20
    ids = [i for row in train["input_ids"] for i in row]
    tokenizer = Tokenizer.load(tokenizer_folder)
    assert np.load(config.output / "unigram.npy").tolist() == np.bincount(ids, minlength=tokenizer.vocab_size).tolist()
    lengths = [len(row) + 2 for split in (train, validation) for row in split["input_ids"]]
    histogram = {f"{low + 1}-{low + 4}": sum(low < n <= low + 4 for n in lengths) for low in range(0, 32, 4)}
    assert report["block_length_histogram"] == histogram
    unknown = sum(i == tokenizer.unk_id for split in (train, validation) for row in split["input_ids"] for i in row)
    assert report["unknown_rate"] == unknown / report["tokens"]
    assert content["tokenizer_fingerprint"] == tokenizer.fingerprint and content["block_length"] == 32
    assert train.features["input_ids"].feature.dtype == "uint16"


def test_the_largest_vocabularies_take_int32(configure, tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(70_000))]
    Tokenizer({piece: i for i, piece in enumerate(pieces)}).save(tmp_path / "large")
    (tmp_path / "large.txt").write_text("w3 w69999\n\nw1")
    config = configure(inputs=(str(tmp_path / "large.txt"),), tokenizer=tmp_path / "large")
    run_prepare(config)
    assert documents_of(config.output) == {0: [8, 70_004], 1: [6]}


def test_long_documents_in_parts_lose_nothing(configure, monkeypatch, tokenizer_folder, tmp_path, documents):
    """Cut by the reader (parts) and by the encoder (pieces): neither may change a token or divide a document."""
    monkeypatch.setattr("pretrain.data.corpus.PART_BYTES", 700)
    monkeypatch.setattr("pretrain.data.readers.BLOCK_BYTES", 100)
    monkeypatch.setattr(shards, "PART_CHARACTERS", 50)
    config = configure()
    run_prepare(config)
    tokenizer = Tokenizer.load(tokenizer_folder)
    sides: dict[int, set[str]] = {}
    joined: dict[int, list[int]] = {}
    for split in ("train", "validation"):
        for row in datasets.load_from_disk(str(config.output / split)):
            sides.setdefault(row["document"], set()).add(split)
            joined.setdefault(row["document"], []).extend(row["input_ids"])
    assert joined == {i: tokenizer.encode(text).ids.tolist() for i, text in enumerate(documents)}
    assert all(len(side) == 1 for side in sides.values())


def test_real_articles(configure, tokenizer_folder):
    """English and Chinese with five other scripts: nothing lost, and a title begins each document."""
    articles = (Path(__file__).parents[2] / "data" / "wikipedia_articles.txt").read_text().strip().split("\n\n")
    config = configure(inputs=(str(Path(__file__).parents[2] / "data" / "wikipedia_articles.txt"),))
    run_prepare(config)
    tokenizer = Tokenizer.load(tokenizer_folder)
    assert documents_of(config.output) == {i: tokenizer.encode(text).ids.tolist() for i, text in enumerate(articles)}


# --- the same output ---------------------------------------------------------------------------------------------


def test_processes_do_not_change_the_output(configure, tmp_path):
    run_prepare(configure(output=tmp_path / "one"))
    run_prepare(configure(output=tmp_path / "three", processes=3))
    assert content_of(tmp_path / "one") == content_of(tmp_path / "three")
    assert not list(tmp_path.glob(".*")), "nothing is left beside the output"


def test_an_interrupted_preparation_goes_on(configure, tmp_path, monkeypatch, capsys):
    run_prepare(configure(output=tmp_path / "whole"))
    write, written = shards.ShardWriter.write, []

    def interrupted(self, shard):
        if len(written) == 2:
            # as after a kill: half a file, no mark of done
            shards.shard_file(self.settings.folder, shard.number, "train").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(shard.number)
        write(self, shard)

    monkeypatch.setattr(shards.ShardWriter, "write", interrupted)
    config = configure()
    with pytest.raises(KeyboardInterrupt):
        run_prepare(config)
    assert not config.output.exists()
    assert "2 shards are done" in capsys.readouterr().out

    def resumed(self, shard):
        written.append(shard.number)
        write(self, shard)

    monkeypatch.setattr(shards.ShardWriter, "write", resumed)
    run_prepare(config)
    assert "2 finished shards" in capsys.readouterr().out
    assert written == list(range(len(written))), "no shard was written twice"
    assert content_of(config.output) == content_of(tmp_path / "whole")
    report = [json.loads((f / "prepare.json").read_text())["report"] for f in (config.output, tmp_path / "whole")]
    assert report[0] == report[1]


@pytest.mark.slow
def test_a_killed_preparation_goes_on(tmp_path, tokenizer_folder, documents):
    """SIGKILL to the parent in the middle of work: the workers end by themselves, the next call goes on."""
    (tmp_path / "big.txt").write_text("\n\n".join(documents * 400), encoding="utf-8")
    command = [sys.executable, "-m", "spanbert", "prepare", str(tmp_path / "big.txt"), "--tokenizer"]
    command += [str(tokenizer_folder), "--output", str(tmp_path / "out"), "--block-length", "32"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = tmp_path / ".out.preparing"
    deadline = time.monotonic() + 300
    while not list(work.glob("shard-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(work.glob("shard-*.json")) and not (tmp_path / "out").exists()
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers outlive their parent")
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resuming" in again.stdout
    assert len(Blocks.open(tmp_path / "out", "train")) > 40_000


def test_done_and_changed_settings(configure, corpus_file, capsys, monkeypatch):
    config = configure()
    run_prepare(config)
    run_prepare(config)
    assert "nothing to do" in capsys.readouterr().out
    for changes, named in [
        ({"block_length": 64}, "block length"),
        ({"validation_share": 0.2}, "validation share"),
        ({"lowercase": True}, "tokenizer fingerprint"),
        ({"document_per_file": True}, "document per file"),
    ]:
        with pytest.raises(UserError, match=rf"other settings \({named}\)"):
            run_prepare(configure(**changes))
    corpus_file.write_text("changed text")
    with pytest.raises(UserError, match=r"other settings \(inputs\)"):
        run_prepare(config)
    run_prepare(configure(overwrite=True, block_length=64))
    assert json.loads((config.output / "prepare.json").read_text())["report"]["documents"] == 1


def test_what_an_ended_preparation_left_is_cleared(configure):
    """Killed between its last rename and its tidying, it left a second corpus for good: the next start had nothing to do."""
    config = configure()
    run_prepare(config)
    work = config.output.with_name(f".{config.output.name}.preparing")
    work.mkdir()
    (work / "shard-00000.json").write_text("{}")
    work.with_name(f"{work.name}.lock").touch()
    run_prepare(config)
    assert [path.name for path in config.output.parent.glob(".*")] == []


def test_interrupted_with_other_settings_is_refused(configure, monkeypatch):
    def interrupt(self, shard):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_prepare(configure())
    with pytest.raises(UserError, match=r"interrupted preparation .* other settings \(block length\).*--overwrite"):
        run_prepare(configure(block_length=64))
    run_prepare(configure(block_length=64, overwrite=True))
    assert Blocks.open(configure().output, "train").block_length == 64


def test_two_at_a_time_are_refused(configure, monkeypatch):
    def second(self, shard):
        run_prepare(configure())

    monkeypatch.setattr(shards.ShardWriter, "write", second)
    with pytest.raises(UserError, match="another preparation is writing"):
        run_prepare(configure())


def test_a_full_disk_is_one_clear_error(configure, monkeypatch):
    def full(self, shard):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.ShardWriter, "write", full)
    with pytest.raises(UserError, match="the disk is full"):
        run_prepare(configure())


def test_an_output_that_is_something_else_is_left_alone(configure):
    config = configure()
    config.output.mkdir()
    (config.output / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not a prepared corpus"):
            run_prepare(configure(overwrite=overwrite))
    assert (config.output / "thesis.tex").exists()


# --- held out ----------------------------------------------------------------------------------------------------


def splits_of(folder: Path) -> tuple[list[int], list[int]]:
    train, validation = (datasets.load_from_disk(str(folder / s))["document"] for s in ("train", "validation"))
    return sorted(set(train)), sorted(set(validation))


def test_copies_of_a_document_are_on_one_side(configure, tmp_path, documents):
    path = tmp_path / "twice.txt"
    path.write_text("\n\n".join([*documents, *reversed(documents)]), encoding="utf-8")
    run_prepare(configure(inputs=(str(path),), validation_share=0.3))
    train, validation = splits_of(configure().output)
    assert not set(train) & set(validation) and len(train) + len(validation) == 120
    assert {119 - document for document in validation} == set(validation)


@pytest.mark.parametrize("share", [1e-12, 1 - 1e-12])
def test_few_documents_are_never_all_on_one_side(share, configure, tmp_path, documents):
    path = tmp_path / "few.txt"
    path.write_text("\n\n".join([" ".join(documents[:5]), documents[5][:20], " ".join(documents[:3])]))
    run_prepare(configure(inputs=(str(path),), validation_share=share))
    assert splits_of(configure().output) == ([0, 2], [1])


def test_of_a_single_document_the_last_blocks_are_held_out(configure, tmp_path, documents):
    path = tmp_path / "one.txt"
    path.write_text(" ".join(documents))
    config = configure(inputs=(str(path),), validation_share=0.05)
    run_prepare(config)
    train, validation = (Blocks.open(config.output, split) for split in ("train", "validation"))
    assert 0.03 < len(validation) / (len(train) + len(validation)) < 0.07
    assert validation.start.min() > train.start.max()


def test_nothing_held_out_when_asked(configure):
    run_prepare(configure(validation_share=0.0))
    assert splits_of(configure().output) == (list(range(60)), [])
    assert len(Blocks.open(configure().output, "validation")) == 0


# --- odd input ---------------------------------------------------------------------------------------------------


def test_documents_without_a_token(configure, tmp_path, capsys):
    path = tmp_path / "odd.txt"
    path.write_bytes(b"words here\n\n\x01\x02\x7f\n\n\xef\xbf\xbd\n\nmore words\n\nlast \xff words \x00")
    config = configure(inputs=(str(path),))
    run_prepare(config)
    assert sorted(documents_of(config.output)) == [0, 3, 4]
    report = json.loads((config.output / "prepare.json").read_text())["report"]
    assert report["documents"] == 5 and report["no_token_documents"] == 2
    assert report["invalid_utf8"] == 1 and report["nul_characters"] == 1
    printed = capsys.readouterr().out
    assert "documents without a token" in printed and "invalid UTF-8 sequences" in printed


@pytest.mark.parametrize(
    "content, changes, message",
    [
        (b"", {}, "no text found"),
        (b"\x01\n\n\x02", {}, "no text found"),
        (b"words", {"block_length": 4}, "block_length is 4: expected 8 to 1000000"),
        (b"words", {"validation_share": 1.0}, "not in"),
        (b"words", {"processes": 0}, "processes is 0: expected 1 to 1000"),
        (b"words", {"tokenizer": Path("/absent")}, "/absent does not exist"),
    ],
)
def test_impossible_requests(content, changes, message, configure, tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        run_prepare(configure(inputs=(str(path),), **changes))
    assert not configure().output.exists() and not list(tmp_path.glob(".*"))


# --- by input ----------------------------------------------------------------------------------------------------


def three_languages(folder: Path) -> tuple[str, ...]:
    """English in two files of a folder, Chinese, and Russian, whose letters the test's tokenizer lacks; some empty documents."""
    (folder / "en").mkdir()
    (folder / "en/a.txt").write_text("human dignity\n\nborn free")
    (folder / "en/b.jsonl").write_text(json.dumps({"text": "equal rights"}) + "\n" + json.dumps({"text": " "}) + "\n")
    (folder / "zh.txt").write_text("人权 人权\n\n人", encoding="utf-8")
    (folder / "ru.txt").write_text("жжж щ дж", encoding="utf-8")
    return tuple(str(folder / name) for name in ("en", "zh.txt", "ru.txt"))


def test_the_report_tells_the_inputs_apart(configure, tmp_path, tokenizer_folder, capsys, monkeypatch):
    """Three scripts, a shard each document: a vocabulary that lacks one of them was an average over all."""
    monkeypatch.setattr("pretrain.data.prepare.SHARD_CHARACTERS", 1)
    config = configure(inputs=three_languages(tmp_path), validation_share=0.0)
    run_prepare(config)
    report = json.loads((config.output / "prepare.json").read_text())["report"]
    rows = {Path(row["input"]).name: row for row in report["by_input"]}
    assert list(rows) == ["en", "zh.txt", "ru.txt"]
    assert [row["documents"] for row in rows.values()] == [4, 2, 1] and report["documents"] == 7
    tokenizer = Tokenizer.load(tokenizer_folder)
    for name, texts in {
        "en": ["human dignity", "born free", "equal rights"],
        "zh.txt": ["人权 人权", "人"],
        "ru.txt": ["жжж щ дж"],
    }.items():
        ids = [tokenizer.encode(text).ids for text in texts]
        tokens, words = sum(map(len, ids)), sum(tokenizer.starts_word[i].sum() for i in ids)
        characters = sum(len("".join(text.split())) for text in texts)
        assert (rows[name]["tokens"], rows[name]["words"], rows[name]["characters"]) == (tokens, words, characters)
        assert rows[name]["tokens_per_word"] == round(tokens / words, 4)
        assert rows[name]["tokens_per_character"] == round(tokens / characters, 4)
    assert rows["en"]["unknown_rate"] == rows["zh.txt"]["unknown_rate"] == 0 and rows["ru.txt"]["unknown_rate"] == 1
    assert rows["ru.txt"]["unknown_characters"] == {"ж": 4, "д": 1, "щ": 1}
    assert sum(row["tokens"] for row in rows.values()) == report["tokens"]
    printed = capsys.readouterr().out
    assert "commonest unknown characters of " + config.inputs[2] + ": ж д щ" in printed
    assert f"warning: 100.0% of tokens of {config.inputs[2]} are [UNK]" in printed


def test_a_thousand_inputs_are_not_a_thousand_lines(configure, tmp_path, capsys):
    for number in range(25):
        (tmp_path / f"{number:02d}.txt").write_text("human dignity " * (number + 1))
    run_prepare(configure(inputs=tuple(str(path) for path in sorted(tmp_path.glob("??.txt"))), validation_share=0.0))
    printed = capsys.readouterr().out
    shown = [
        number for number in range(25) if f"{number:02d}.txt " in printed.split("by input")[1].split("block length")[0]
    ]
    assert shown == list(range(5, 25)) and "… 5 smaller inputs: prepare.json has them all" in printed


def test_counts_by_input_survive_an_interruption(configure, tmp_path, monkeypatch):
    """Counted in the shards: those of an interrupted preparation count for the inputs they are from."""
    monkeypatch.setattr("pretrain.data.prepare.SHARD_CHARACTERS", 1)
    inputs = three_languages(tmp_path)
    whole = configure(inputs=inputs, output=tmp_path / "whole")
    run_prepare(whole)
    write, written = shards.ShardWriter.write, []

    def interrupt(self, shard):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(shard.number)
        write(self, shard)

    monkeypatch.setattr(shards.ShardWriter, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_prepare(configure(inputs=inputs))
    files = (*(str(path) for path in sorted((tmp_path / "en").iterdir())), *inputs[1:])
    with pytest.raises(UserError, match=r"other settings \(counted by\)"):
        run_prepare(configure(inputs=files))  # the same text, but its shards were counted by other inputs
    monkeypatch.setattr(shards.ShardWriter, "write", write)
    run_prepare(configure(inputs=inputs))
    assert content_of(tmp_path / "out") == content_of(whole.output)
    reports = [json.loads((tmp_path / name / "prepare.json").read_text())["report"] for name in ("out", "whole")]
    assert reports[0] == reports[1]


def test_an_interrupted_preparation_of_the_version_before_is_made_again(configure, tmp_path, capsys, monkeypatch):
    """Its shards lack the counts by input. A finished corpus of that version, which is the same blocks, is taken as it is."""
    config = configure(inputs=three_languages(tmp_path), overwrite=False)
    run_prepare(config)
    record = json.loads((config.output / "prepare.json").read_text())
    work = tmp_path / ".out.preparing"
    work.mkdir()
    of_before = {key: value for key, value in record.items() if key not in ("report", "files")}
    (work / "settings.json").write_text(json.dumps(of_before))
    (work / "shard-000000.json").write_text(
        json.dumps({"counts": {"words": 1, "tokens": 1, "unknown": 0}, "files": {}})
    )
    for key in ("by_input", "characters", "tokens_per_character"):
        del record["report"][key]
    (config.output / "prepare.json").write_text(json.dumps(record))
    run_prepare(config)
    assert "nothing to do" in capsys.readouterr().out
    assert len(Blocks.open(config.output, "train")) > 0
    work.mkdir(exist_ok=True)
    (work / "settings.json").write_text(json.dumps(of_before))
    (config.output).rename(tmp_path / "aside")
    run_prepare(config)
    assert "of an earlier version, whose shards lack counts" in capsys.readouterr().err
    assert content_of(config.output) == content_of(tmp_path / "aside")

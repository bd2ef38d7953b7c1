"""Damage to a prepared corpus is found before it is trained on; a corpus of unknown words is said or refused."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from pretrain.config import PretrainConfig
from pretrain.data import prepare
from pretrain.data.blocks import Blocks, read_settings
from pretrain.data.integrity import check_hashes
from pretrain.data.prepare import PrepareConfig, run_prepare
from pretrain.data.shards import done_file, shard_file
from pretrain.init_from_counts import InitConfig, run_init
from pretrain.inspect.show_masks import MasksConfig, run_masks
from pretrain.train import run_pretrain
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

WORDS = [f"{a}{b}" for a in "abcdefgh" for b in "ijklmnop"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("integrity")
    Tokenizer({token: i for i, token in enumerate([*SPECIAL_TOKENS, *WORDS])}).save(folder / "tokenizer")
    chance = np.random.default_rng(3)
    texts = [" ".join(chance.choice(WORDS, 200)) for _ in range(400)]
    (folder / "text.txt").write_text("\n\n".join(texts))
    run_prepare(config_of(folder))
    return folder


def config_of(folder, **changes) -> PrepareConfig:
    given = {"inputs": (str(folder / "text.txt"),), "tokenizer": folder / "tokenizer", "output": folder / "corpus"}
    return PrepareConfig(**{**given, "block_length": 32, "processes": 1, "validation_share": 0.1, **changes})


@pytest.fixture
def corpus(prepared, tmp_path):
    return shutil.copytree(prepared / "corpus", tmp_path / "corpus")


def arrow(corpus):
    (path,) = (corpus / "train").glob("*.arrow")
    return path


def change_bytes(path, change) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.unlink()  # a file that is mapped somewhere must not be written into
    path.write_bytes(data)


def zero_pages(data: bytearray) -> None:
    data[8192:12288] = bytes(4096)


def flip_one(data: bytearray) -> None:
    data[9001] ^= 1


def test_a_file_cut_at_the_end_of_a_batch_is_found(corpus):
    """Such a file is a whole Arrow stream of fewer rows: it was trained on without a word."""
    batches = list(pa.ipc.open_stream(arrow(corpus).read_bytes()))
    assert len(batches) > 1
    path = arrow(corpus)
    path.unlink()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as writer:
        writer.write_batch(batches[0])
    with pytest.raises(UserError, match=r"bytes, expected .*: the corpus is damaged"):
        Blocks.open(corpus, "train")
    forget(corpus, "files")  # as a corpus of an earlier version, which has counts and no sizes
    with pytest.raises(UserError, match=r"blocks, but prepare.json says"):
        Blocks.open(corpus, "train")


def forget(corpus, *names) -> None:
    settings = json.loads((corpus / "prepare.json").read_text())
    for name in names:
        settings.pop(name)
    (corpus / "prepare.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("change", [zero_pages, flip_one])
def test_other_bytes_are_found_before_training(change, corpus, tmp_path):
    change_bytes(arrow(corpus), change)
    Blocks.open(corpus, "train")  # sizes and counts are right: only reading everything tells
    with pytest.raises(UserError, match=r"train/.*arrow holds other bytes than were written"):
        check_hashes(corpus, read_settings(corpus))
    check_hashes(corpus, read_settings(corpus), at_most=1000)  # too large to be read for nothing
    with pytest.raises(UserError, match="holds other bytes than were written"):
        run_pretrain(PretrainConfig(data=corpus, output=tmp_path / "run", size="mini", steps=1, device="cpu"))


@pytest.mark.parametrize(
    "content", [b"junk", b"", np.zeros(3, np.int64), np.array(["a"]), np.full(500, 1 << 62), -np.ones(500, np.int64)]
)
def test_damaged_frequencies_are_refused(content, corpus, tmp_path):
    """`spanbert masks` and `init` look at no hashes: what is no array was a traceback, and a wrong one was used."""
    if isinstance(content, bytes):
        (corpus / "unigram.npy").write_bytes(content)
    else:
        size = Tokenizer.load(corpus / "tokenizer").vocab_size
        np.save(corpus / "unigram.npy", np.resize(content, size) if len(content) == 500 else content)
    with pytest.raises(UserError, match=r"unigram.npy is damaged"):
        run_init(InitConfig(corpus, tmp_path / "model", size="mini"))
    with pytest.raises(UserError, match=r"unigram.npy is damaged"):
        run_masks(MasksConfig(("ai bj",), corpus))


@pytest.mark.parametrize(
    "changes",
    [
        {"files": 3},
        {"files": {"a": None}},
        {"block_length": "32"},
        {"tokenizer_fingerprint": None},
        {"report": {"held_out": 1}},
    ],
)
def test_damaged_settings_are_refused(changes, corpus):
    """prepare.json is a file like others: its values were believed to be of the right kind."""
    settings = json.loads((corpus / "prepare.json").read_text())
    (corpus / "prepare.json").write_text(json.dumps(settings | changes))
    with pytest.raises(UserError, match=r"prepare.json is damaged"):
        Blocks.open(corpus, "train")


def test_a_file_of_another_corpus_is_found(corpus, prepared, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(["ai bj"] * 50))
    run_prepare(config_of(prepared, inputs=(str(tmp_path / "text.txt"),), output=tmp_path / "other"))
    shutil.copy(arrow(tmp_path / "other"), arrow(corpus))
    with pytest.raises(UserError, match="the corpus is damaged"):
        Blocks.open(corpus, "train")


def test_a_missing_file_is_named(corpus):
    arrow(corpus).unlink()
    with pytest.raises(UserError, match="is missing: the corpus is damaged"):
        Blocks.open(corpus, "train")


def test_an_id_beyond_the_vocabulary_is_one_sentence(corpus):
    """A flipped bit was an IndexError somewhere in the masker."""
    place = (
        arrow(corpus)
        .read_bytes()
        .index(Blocks.open(corpus, "train").packed([700])[0].input_ids_T[1:-1].astype("<u2").tobytes())
    )

    def flip(data: bytearray) -> None:
        data[place + 5] ^= 0x40

    change_bytes(arrow(corpus), flip)
    blocks = Blocks.open(corpus, "train")
    with pytest.raises(
        UserError, match=r"train is damaged: block 700 holds the id 16\d\d\d, the vocabulary ends at 68"
    ):
        blocks.packed(np.array([3, 700]))


def test_a_corpus_of_an_earlier_version_opens(corpus):
    before = len(Blocks.open(corpus, "train"))
    forget(corpus, "files")
    assert len(Blocks.open(corpus, "train")) == before
    check_hashes(corpus, read_settings(corpus))


def test_the_same_command_looks_for_damage(prepared, corpus, capsys):
    run_prepare(config_of(prepared, output=corpus))
    assert "undamaged: nothing to do" in capsys.readouterr().out
    change_bytes(corpus / "unigram.npy", lambda data: data.__setitem__(200, data[200] ^ 1))
    with pytest.raises(UserError, match=r"unigram\.npy holds other bytes"):
        run_prepare(config_of(prepared, output=corpus))


@pytest.mark.parametrize("damage", ["cut", "flip", "mark"])
def test_a_damaged_shard_of_an_interrupted_preparation_is_made_again(damage, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "SHARD_CHARACTERS", 60_000)
    config = config_of(prepared, output=tmp_path / "out")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "join_shards", stop)
        with pytest.raises(KeyboardInterrupt):
            run_prepare(config)
    work = tmp_path / ".out.preparing"
    shard = shard_file(work, 1, "train")
    if damage == "mark":
        done_file(work, 1).write_text('{"counts": {}')
    else:
        change_bytes(shard, flip_one if damage == "flip" else lambda data: data.__delitem__(slice(-100, None)))
    run_prepare(config)
    assert "the shard is made again" in capsys.readouterr().err
    assert np.array_equal(np.load(tmp_path / "out/unigram.npy"), np.load(prepared / "corpus/unigram.npy"))


# --- unknown words -----------------------------------------------------------------------------------------------


def test_a_corpus_of_unknown_words_is_refused(prepared, tmp_path):
    """Greek with an English vocabulary was prepared, and training on it recommended."""
    (tmp_path / "text.txt").write_text("\n\n".join(["όλοι οι άνθρωποι γεννιούνται"] * 40))
    with pytest.raises(UserError, match=r"100% of all tokens are \[UNK\].*commonest unknown characters: ι ν ο "):
        run_prepare(config_of(prepared, inputs=(str(tmp_path / "text.txt"),), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.preparing").exists()


def test_many_unknown_words_are_remarked_on(prepared, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(["ai bj ck dl em fn go hp ai Ωz"] * 40))
    run_prepare(config_of(prepared, inputs=(str(tmp_path / "text.txt"),), output=tmp_path / "out"))
    assert "warning: 10.0% of tokens are [UNK]" in capsys.readouterr().out
    run_prepare(config_of(prepared, output=tmp_path / "fine"))
    assert "warning" not in capsys.readouterr().out

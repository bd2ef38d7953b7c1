"""Broken corpora that were prepared, indexes, calibrations and adapters: used as they are, made anew, or refused."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from finetune.retrieval.answer_documents import READ_WHOLE
from finetune.retrieval.build import update_index
from finetune.retrieval.combine import Combination, Features
from finetune.retrieval.confidence import Calibration, Evidence, HeldOut, load_calibration, save_calibrations
from finetune.retrieval.index import Index
from finetune.retrieval.logistic import Logistic
from finetune.retrieval.reliability import Bin
from pretrain.data.blocks import Blocks
from pretrain.data.integrity import QUICK_BYTES, check_hashes
from pretrain.data.prepare import PrepareConfig, run_prepare
from pretrain.init_from_counts import InitConfig, run_init
from pretrain.inspect.show_masks import MasksConfig, run_masks
from spanbert.checkpoint.model_folder import build_model, load_model_and_tokenizer, save_model
from spanbert.config import read_json_object
from spanbert.model.config import EncoderConfig
from spanbert.model.lora import LoRAConfig
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.vocabulary_files import SPECIAL_TOKENS
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.init_model import adapt
from tests.fuzz.cases import SEED, fuzz
from tests.fuzz.mutations import ODD_VALUES, dump, mutate_bytes, mutate_text, mutate_value

FAST_CASES = 12
TEXT = "\n\n".join(f"The mill {n} stands by the river. It is old." for n in range(40))
TOKENS = (
    *SPECIAL_TOKENS,
    "The",
    "mill",
    "by",
    "the",
    "river",
    *"abcdehilmnorstvIy.0123456789",
    *(f"##{c}" for c in "adehilmnorstvy"),
)


class Damaged(NamedTuple):
    """One file of a folder, broken."""

    file: str
    content: bytes


Read = Callable[[Path], str]


def json_maker(content: Any) -> Callable[[random.Random], bytes]:
    """A JSON file with values changed, at times those that the folder is opened by."""

    def make(draw: random.Random) -> bytes:
        value = content
        for _ in range(draw.choice((0, 1, 1, 1, 2))):
            value = mutate_value(draw, value)
            if isinstance(value, dict) and value and draw.random() < 0.4:
                value[draw.choice(list(value))] = draw.choice(ODD_VALUES)
        text = dump(draw, value)
        for _ in range(draw.choice((0, 0, 0, 1))):
            text = mutate_text(draw, text)
        data = text.encode("utf-8", "surrogatepass")
        return mutate_bytes(draw, data) if draw.random() < 0.1 else data

    return make


def bytes_maker(content: bytes) -> Callable[[random.Random], bytes]:
    """A binary file with bytes changed; its header, where there is one, is met as often as the rest."""

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.1:
            return content
        if draw.random() < 0.4:
            return mutate_bytes(draw, content[:128]) + content[128:]
        return mutate_bytes(draw, content)

    return make


def array_maker(content: np.ndarray) -> Callable[[random.Random], bytes]:
    """A .npy file of other values, of another shape or type, or with bytes changed."""

    def make(draw: random.Random) -> bytes:
        odd = [
            content, content[:-1], content[:0], content.astype(np.float64), content[None], content[::-1].copy(), -content,
            np.concatenate([content, content]), content.astype(np.int8), np.array(["a", "b"]), np.array(3), content + 1,
            np.full_like(content, np.iinfo(content.dtype).max), content.astype(np.complex64),
        ]  # fmt: skip
        stream = io.BytesIO()
        np.save(stream, draw.choice(odd), allow_pickle=False)
        return mutate_bytes(draw, stream.getvalue()) if draw.random() < 0.2 else stream.getvalue()

    return make


def maker_of(file: Path) -> Callable[[random.Random], bytes]:
    if file.suffix == ".json":
        return json_maker(json.loads(file.read_text(encoding="utf-8")))
    if file.suffix == ".npy":
        return array_maker(np.load(file))
    return bytes_maker(file.read_bytes())


def read_corpus(folder: Path) -> str:
    """What training, counting and showing do with a prepared corpus."""
    check_hashes(folder, read_json_object(folder / "prepare.json", "a corpus's settings"), at_most=QUICK_BYTES)
    for split in ("train", "validation"):
        blocks = Blocks.open(folder, split)
        assert len(blocks) > 0
        packed, _ = blocks.packed(np.arange(len(blocks)))
        assert packed.input_ids_T.max() < len(TOKENS)
    return "whole"


def read_counts(folder: Path) -> str:
    """The commands that take a corpus without looking at its hashes."""
    run_masks(MasksConfig(("The mill by the river.",), folder))
    out = folder.with_name("made")
    shutil.rmtree(out, ignore_errors=True)
    run_init(InitConfig(folder, out, size="mini"))
    return "counted"


def read_index(folder: Path) -> str:
    """Ask, then bring it up to date: a damaged index is refused by the one, and made anew by the other."""
    texts = folder.with_name("texts")
    try:
        index = Index.open(folder)
        for question in ("Where does the mill stand?", "river 17", ""):
            for hit in index.search(question, READ_WHOLE):
                document = index.documents[hit.document]
                assert 0 <= hit.start < hit.end
                document.text[hit.start : hit.end].encode()
                document.section_at(hit.start)
    finally:
        update_index([texts], folder)
        assert Index.open(folder).search("river 17", 1)
    return "found"


def read_calibration(folder: Path) -> str:
    for search in ("text", "documents"):
        one = load_calibration(folder, search)  # type: ignore[arg-type]
        if one is not None:
            sure = one.confidence(Evidence(1.0, 2.0, 1.0, 3.0, -1.0, 4.0, 0.0))
            assert 0 <= sure <= 1
            one.in_words(sure).encode()
            one.combination.score(Features(1.0, 2.0, 3.0))
    return "used"


def read_lora(folder: Path) -> str:
    model, tokenizer, report = load_model_and_tokenizer(folder, SpanBertForQuestionAnswering)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    str(report).encode()
    tokenizer.encode("The mill")
    return "merged"


#: folder / file → who reads it
FORMATS: dict[str, Read] = {
    "corpus/prepare.json": read_corpus, "corpus/train/data-00000-of-00001.arrow": read_corpus,
    "corpus/train/state.json": read_corpus, "corpus/train/dataset_info.json": read_corpus,
    "corpus/unigram.npy": read_counts, "index/index.json": read_index, "index/*/documents.jsonl": read_index,
    "index/*/texts.bin": read_index, "index/*/lines.npy": read_index, "index/*/sources.jsonl": read_index,
    "index/*/keys.npy": read_index, "index/*/bounds.npy": read_index, "index/*/passages.npy": read_index,
    "index/*/counts.npy": read_index, "index/*/start_N.npy": read_index, "index/*/document_N.npy": read_index,
    "reader/calibration.json": read_calibration, "adapter/adapter_config.json": read_lora, "adapter/config.json": read_lora,
    "adapter/adapter_model.safetensors": read_lora,
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole folder of each kind."""
    top = tmp_path_factory.mktemp("good")
    tokenizer = Tokenizer({token: number for number, token in enumerate(TOKENS)})
    tokenizer.save(top / "tokenizer")
    (top / "texts").mkdir()
    for number in range(3):
        (top / "texts" / f"{number}.txt").write_text(TEXT)
    texts = (str(top / "texts" / "0.txt"),)
    run_prepare(
        PrepareConfig(texts, top / "tokenizer", top / "corpus", block_length=24, processes=1, validation_share=0.2)
    )
    update_index([top / "texts"], top / "index")
    logistic = Logistic(0.5, (0.1,) * 9, (0.0,) * 9, (1.0,) * 9)
    bins = (Bin(0.0, 0.4, 0.2, 0.25, 30), Bin(0.5, 0.9, 0.7, 0.74, 20))
    held_out = HeldOut("dev.json", "00", 50, "its own article", "2026-01-02")
    one = Calibration(Combination(1.0, 0.5, 0.1), logistic, logistic, bins, 5, held_out, {"exact_ece": 0.1})
    (top / "reader").mkdir()
    save_calibrations(top / "reader", {"text": one, "documents": one})
    shape = EncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=24, sbo_positions=6, sbo_position_size=4,
    )  # fmt: skip
    model = build_model(SpanBertForQuestionAnswering, shape, seed=1)
    save_model(top / "base", model, tokenizer)
    adapt(model, top / "base", LoRAConfig.parse("rank=2,alpha=4,on=both"), seed=0)
    save_model(top / "adapter", model, tokenizer)
    return top


def reader(name: str, good: Path, top: Path, read_folder: Read) -> Callable[[Damaged], str]:
    folder = name.partition("/")[0]

    def read(damaged: Damaged) -> str:
        for other in {folder, "texts"}:
            shutil.rmtree(top / other, ignore_errors=True)
            shutil.copytree(good / other, top / other)
        (top / damaged.file).write_bytes(damaged.content)
        return read_folder(top / folder)

    return read


def maker(name: str, good: Path) -> Callable[[random.Random], Damaged]:
    (file,) = good.glob(name)
    make = maker_of(file)
    return lambda draw: Damaged(str(file.relative_to(good)), make(draw))


@pytest.mark.parametrize("name", FORMATS)
def test_broken_folders_are_used_as_they_are_or_refused(name: str, good: Path, tmp_path: Path) -> None:
    fuzz(name, FAST_CASES, maker(name, good), reader(name, good, tmp_path, FORMATS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_broken_folders(name: str, seconds: float, good: Path, tmp_path: Path) -> None:
    outcomes = fuzz(
        name, None, maker(name, good), reader(name, good, tmp_path, FORMATS[name]), SEED + 1, seconds=seconds
    )
    assert outcomes["refused"], "the mutations break nothing"

"""Corpus to blocks of tokens: the command `spanbert prepare`.

Documents stream past in shards of fixed content; worker processes encode and write them; a last pass joins the shards
to the data sets `train` and `validation`. Finished shards outlive an interruption: the same command resumes from them.
No token is lost (§4.2): a document of n tokens becomes ceil(n / (block_length - 2)) blocks.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from pretrain.data.corpus import Corpus, Document
from pretrain.data.corpus_report import commonest_unknown, make_report, print_report
from pretrain.data.integrity import check_hashes
from pretrain.data.join_shards import join_shards
from pretrain.data.shards import (
    REFUSED_UNKNOWN,
    SPLITS,
    Shard,
    ShardCounts,
    ShardSettings,
    ShardWriter,
    read_done,
    start_worker,
    write_shard,
)
from pretrain.data.span_annotations import SpanSidecar
from spanbert.config import check_range, read_json_object
from spanbert.errors import UserError, note
from spanbert.files import atomic_folder, check_writable, clear_leftovers, report_full_disk, write_atomic
from spanbert.integrity import describe_files
from spanbert.locks import try_lock
from spanbert.tokenizer.wordpiece import Tokenizer

SHARD_CHARACTERS = 8_000_000
NOTED_UNKNOWN = 0.05  # share of unknown tokens at which a corpus is remarked on


@dataclass(frozen=True)
class PrepareConfig:
    """Turn text into blocks of tokens for pretraining."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files (.txt, .jsonl, .ndjson, .json, .parquet, each also .gz/.bz2/.xz/.zst), folders, hf:NAME[:CONFIG[:SPLIT]], or -
    (standard input)."""
    tokenizer: Path
    """Folder, vocab.txt or tokenizer.json."""
    output: Path
    """Folder to write."""
    block_length: int = 512
    """Tokens in a block, [CLS] and [SEP] included."""
    processes: int = 2
    """Processes that encode and write; 1 does everything in one."""
    validation_share: float = 0.005
    """Share of documents held out, chosen by a hash of their text."""
    spans: Path | None = None
    """JSON lines, one a document in the same order: [[start, end], ...] in characters, for the linguistic masks
    and for --mask.words annotated."""
    lowercase: bool | None = None
    """Override the tokenizer's lower-casing."""
    text_field: str = "text"
    """Field or column that holds the text in JSON, parquet and Hugging Face data sets; a.b is field b of the object in a."""
    document_per_file: bool = False
    """Each text file is one document; otherwise blank lines separate documents."""
    overwrite: bool = False
    """Replace the output folder, and forget an interrupted preparation, even when made with other settings."""


def run_prepare(config: PrepareConfig) -> None:
    _check(config)
    began = time.perf_counter()
    tokenizer = Tokenizer.load(config.tokenizer, lowercase=config.lowercase)
    corpus = Corpus(config.inputs, text_field=config.text_field, document_per_file=config.document_per_file)
    identity = _identity(config, tokenizer, corpus)
    work = config.output.with_name(f".{config.output.name}.preparing")
    if config.output.exists() and _is_finished(config.output, identity, overwrite=config.overwrite):
        check_hashes(config.output, read_json_object(config.output / "prepare.json", "a corpus's settings"))
        _tidy(config.output, work)
        print(
            f"{config.output} is already prepared with these settings and undamaged: nothing to do (--overwrite prepares it again)"
        )
        return
    check_writable(config.output, "folder")
    with _only_one(work), _clear_errors(config.output, work):
        if config.output.exists() and not config.overwrite:
            raise UserError(f"{config.output}: another preparation has written it meanwhile; run the command again")
        report = _prepare(config, tokenizer, corpus, identity, work)
    shutil.rmtree(work, ignore_errors=True)
    print_report(report)
    worst = max([report, *report["by_input"]], key=lambda part: part["unknown_rate"])
    if worst["unknown_rate"] >= NOTED_UNKNOWN:
        place = f" of {worst['input']}" if worst is not report else ""
        print(
            f"warning: {worst['unknown_rate']:.1%} of tokens{place} are {tokenizer.unk_token}: the tokenizer may be of "
            f"another language (commonest unknown characters: {commonest_unknown(worst['unknown_characters'])})"
        )
    print(f"wrote {config.output} in {time.perf_counter() - began:.0f} s")
    print(f"next: spanbert pretrain {config.output} --output RUN_FOLDER")


def _prepare(config: PrepareConfig, tokenizer: Tokenizer, corpus: Corpus, identity: dict, work: Path) -> dict:
    counted_by = {"counted_by": config.inputs}  # the shards count by input; the blocks do not depend on it
    resumable = "-" not in corpus.sources
    done = _open_work_folder(work, identity | counted_by, resumable=resumable, overwrite=config.overwrite)
    if done:
        print(f"resuming: {done} finished shards of an interrupted preparation are used again")
    tokenizer.save(work / "tokenizer")
    settings = ShardSettings(work, work / "tokenizer", config.block_length, config.validation_share)
    shards = _write_shards(corpus, settings, config)
    counts = ShardCounts()
    for number in range(shards):
        shard_counts = read_done(work, number)
        if shard_counts is None:
            raise UserError(f"shard {number} in {work} is damaged: run the same command, which makes it again")
        counts.add(shard_counts)
    total = counts.total
    if total.tokens == 0:
        shutil.rmtree(work)  # nothing to resume from
        raise UserError(f"no text found in {', '.join(config.inputs)}: nothing to prepare")
    if total.unknown >= REFUSED_UNKNOWN * total.tokens:
        shutil.rmtree(work)
        raise UserError(
            f"{total.unknown / total.tokens:.0%} of all tokens are {tokenizer.unk_token}, which teaches a model nothing: "
            f"{config.tokenizer} is of another script or language (commonest unknown characters: "
            f"{commonest_unknown(total.unknown_characters)}); train one with spanbert tokenizer train"
        )
    with atomic_folder(config.output) as folder:
        held_out, unigram = join_shards(work, shards, folder, config.block_length, config.validation_share)
        tokenizer.save(folder / "tokenizer")
        np.save(folder / "unigram.npy", np.pad(unigram, (0, tokenizer.vocab_size - len(unigram))))
        report = make_report(counts, corpus.counts, config.inputs, held_out, config.block_length)
        # (the tokenizer has its fingerprint)
        splits = (path for split in SPLITS for path in (folder / split).iterdir())
        files = describe_files(folder, [*splits, folder / "unigram.npy"])
        record = {**identity, "report": report, "files": files}
        write_atomic(folder / "prepare.json", json.dumps(record, indent=2) + "\n")
    return report


def _check(config: PrepareConfig) -> None:
    check_range(config, 8, 1_000_000, "block_length")  # 512 in the paper
    if not 0 <= config.validation_share < 1:
        raise UserError(f"--validation-share {config.validation_share} is not in [0, 1)")
    check_range(config, 1, 1_000, "processes")


def _identity(config: PrepareConfig, tokenizer: Tokenizer, corpus: Corpus) -> dict:
    """Everything that decides the output; equal identities give equal folders."""
    spans = None
    if config.spans is not None:
        if not config.spans.is_file():
            raise UserError(f"--spans {config.spans} is no file: give JSON lines, one [[start, end], ...] a document")
        spans = [str(config.spans), config.spans.stat().st_size, config.spans.stat().st_mtime_ns]
    return {
        "format": 1,
        "block_length": config.block_length,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "validation_share": config.validation_share,
        "text_field": config.text_field,
        "document_per_file": config.document_per_file,
        "spans": spans,
        "inputs": corpus.identity(),
    }


def _differences(old: dict, new: dict) -> list[str]:
    return [key.replace("_", " ") for key in new if old.get(key) != json.loads(json.dumps(new[key]))]


def _is_finished(output: Path, identity: dict, *, overwrite: bool) -> bool:
    """Whether `output` is what would be made; only a prepared corpus is ever overwritten, never another folder."""
    try:
        old = read_json_object(output / "prepare.json", "a corpus's settings")
    except UserError as error:
        raise UserError(f"{output} exists and is not a prepared corpus: choose another --output") from error
    if overwrite:
        return False
    if differing := _differences(old, identity):
        raise UserError(
            f"{output} was prepared with other settings ({', '.join(differing)}): "
            "choose another --output, or replace it with --overwrite"
        )
    return True


def _open_work_folder(work: Path, identity: dict, *, resumable: bool, overwrite: bool) -> int:
    """Make or take over the folder of finished shards; returns how many it holds."""
    marker = work / "settings.json"
    if work.exists() and marker.exists() and resumable and not overwrite:
        old = read_json_object(marker, "a corpus's settings")
        if "counted_by" in old:
            if differing := _differences(old, identity):
                raise UserError(
                    f"an interrupted preparation in {work} had other settings ({', '.join(differing)}): "
                    "run it again with those, or start again with --overwrite"
                )
            return len(list(work.glob("shard-*.json")))
        note(
            f"the interrupted preparation in {work} is of an earlier version, whose shards lack counts: they are made again"
        )
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_atomic(marker, json.dumps(identity))
    return 0


def cut_shards(corpus: Corpus, sidecar: SpanSidecar | None) -> Iterator[Shard]:
    """Documents in shards of SHARD_CHARACTERS: where a shard ends depends on the text alone."""
    number, characters = 0, 0
    documents: list[Document] = []
    for document in corpus:
        documents.append(document)
        characters += len(document.text)
        if characters >= SHARD_CHARACTERS:
            yield Shard(number, documents, sidecar.take(documents) if sidecar else None)
            number, characters, documents = number + 1, 0, []
    if documents:
        yield Shard(number, documents, sidecar.take(documents) if sidecar else None)
    if sidecar:
        sidecar.finish(corpus.counts.documents)


def _write_shards(corpus: Corpus, settings: ShardSettings, config: PrepareConfig) -> int:
    """Hand out the shards that are not done yet; at most processes + 1 are in memory. Returns how many there are."""
    shards = 0
    sidecar = SpanSidecar(config.spans) if config.spans else None
    bar = tqdm(total=corpus.stored_bytes, unit="B", unit_scale=True, desc="preparing", mininterval=0.5)
    with bar, _writers(settings, config.processes) as write:
        for shard in cut_shards(corpus, sidecar):
            shards += 1
            if read_done(settings.folder, shard.number) is None:
                write(shard)
            bar.update(corpus.progress.bytes - bar.n)
    return shards


@contextmanager
def _writers(settings: ShardSettings, processes: int) -> Iterator[Callable[[Shard], None]]:
    """A function that has a shard written, by this process when it is the only one; all are written when it ends.

    On an error or Ctrl-C the shards under way are still finished, and so need no second time.
    """
    if processes == 1:
        yield ShardWriter(settings).write
        return
    running: set[Future] = set()

    def write(shard: Shard) -> None:
        nonlocal running
        running.add(pool.submit(write_shard, shard))
        if len(running) > processes:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()

    # Started afresh ("spawn"), not forked: a forked copy of a process with library threads may hang.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), start_worker, (settings,))
    try:
        yield write
        for future in running:
            future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for memory: use fewer --processes; "
            "the same command resumes from the finished shards"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _only_one(work: Path) -> Iterator[None]:
    """Keep a second preparation of the same output out: each would clear away the other's shards."""
    work.parent.mkdir(parents=True, exist_ok=True)
    lock = work.with_name(f"{work.name}.lock")
    handle = try_lock(lock)
    if handle is None:
        raise UserError(f"another preparation is writing {work}: wait for it or choose another --output")
    try:
        yield
    finally:
        with suppress(OSError):  # tidying is no reason to fail
            lock.unlink()
        handle.close()


def _tidy(output: Path, work: Path) -> None:
    """Remove what a preparation left that ended after its last rename, before or while it tidied."""
    clear_leftovers(output)
    if work.exists() or work.with_name(f"{work.name}.lock").exists():
        with suppress(OSError, UserError), _only_one(work):
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _clear_errors(output: Path, work: Path) -> Iterator[None]:
    try:
        with report_full_disk(output):
            yield
    except KeyboardInterrupt:
        print(f"\n{len(list(work.glob('shard-*.json')))} shards are done; the same command resumes from there")
        raise

"""Masks per second: every scheme beside transformers' DataCollatorForLanguageModeling, on one core.

    python -m benchmarks.pretraining.masking [--json FILE]

Both sides start from one batch of sequences as a data loader has them and end with what a training step takes:
ours from int32 arrays to a MaskedBatch (corrupted tokens, targets, spans, boundaries, SBO targets), theirs from
dictionaries of lists, with the special-tokens mask precomputed as their documentation advises, to padded tensors. The
text is synthetic with 1.3 tokens a word, as in English; masking does not depend on what the words are. Every number is
the median of several rounds in which the contestants take turns, in sequences per second of this process's CPU time
with one thread, so that other work on the machine matters little. A contestant whose masks are wrong is not timed.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro

from pretrain.masking.masker import MaskConfig, Masker
from spanbert.files import write_atomic
from spanbert.model.batch import MaskedBatch, PackedBatch

CLS, SEP, MASK, SPECIALS, VOCABULARY, FIRST_CONTINUATION = 2, 3, 4, 5, 28_996, 22_000
PIECES_A_WORD = [0.80, 0.13, 0.05, 0.02]


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    lengths: tuple[int, ...] = (512, 128, 32)
    """Tokens in a sequence, with [CLS] and [SEP]."""
    batch: int = 256
    """Sequences in a batch."""
    rounds: int = 7
    """Times that each contestant is measured."""
    seed: int = 0
    json: Path | None = None
    """Also write the results here."""


@dataclasses.dataclass(frozen=True)
class Result:
    contestant: str
    length: int
    per_second: float
    """Median over the rounds."""
    lower: float
    upper: float
    """Quartiles."""


def make_sequences(batch: int, length: int, seed: int) -> list[np.ndarray]:
    """int32 ids of [CLS] words [SEP], all `length` tokens long."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(batch):
        pieces = rng.choice(len(PIECES_A_WORD), size=length, p=PIECES_A_WORD)
        starts = np.zeros(length * len(PIECES_A_WORD) + 1, bool)
        starts[np.cumsum(np.append(0, 1 + pieces))] = True
        ids = np.where(
            starts[: length - 2],
            rng.integers(SPECIALS, FIRST_CONTINUATION, length - 2),
            rng.integers(FIRST_CONTINUATION, VOCABULARY, length - 2),
        )
        sequences.append(np.concatenate([[CLS], ids, [SEP]]).astype(np.int32))
    return sequences


def ours(scheme: str, sequences: list[np.ndarray], seed: int) -> Callable[[], None]:
    """One call masks the batch, every time with the masks of another epoch."""
    masker = Masker(
        MaskConfig(scheme=scheme),
        starts_word=np.arange(VOCABULARY) < FIRST_CONTINUATION,
        special_ids=np.arange(SPECIALS),
        mask_id=MASK,
        unigram_counts=1 + 10**7 // (1 + np.arange(VOCABULARY)),
        seed=seed,
    )
    indices, edges = np.arange(len(sequences)), np.cumsum([0, *map(len, sequences)])
    # a tagger's spans: three tokens in every fifteen
    spans = [np.stack([np.arange(0, len(s) - 5, 15), np.arange(3, len(s) - 2, 15)], axis=1) for s in sequences]
    epoch = 0

    def call():
        nonlocal epoch
        epoch += 1
        packed = PackedBatch.of(np.concatenate(sequences), edges)
        return masker.mask(packed, epoch=epoch, indices=indices, spans=spans)

    check(call(), sequences)
    return call


def check(masked: MaskedBatch[np.ndarray], sequences: list[np.ndarray]) -> None:
    """What a wrong mask would break: specials, visible boundaries, the share, at least one target each."""
    ids, is_target = np.concatenate(sequences), np.zeros(len(masked.packed.input_ids_T), bool)
    is_target[masked.targets.positions_M] = True
    content = np.array([len(s) - 2 for s in sequences])
    spent = np.add.reduceat(is_target, masked.packed.cu_seqlens[:-1])
    starts_word = ids < FIRST_CONTINUATION
    words = np.add.reduceat(is_target & starts_word, masked.packed.cu_seqlens[:-1])
    assert (ids[is_target] >= SPECIALS).all() and (masked.targets.ids_M == ids[is_target]).all()
    assert (masked.packed.input_ids_T[~is_target] == ids[~is_target]).all()
    assert not is_target[masked.targets.left_S].any() and not is_target[masked.targets.right_S].any()
    assert (spent >= 1).all() and ((spent <= np.ceil(0.15 * content)) | (words == 1)).all()


def theirs(whole_words: bool, sequences: list[np.ndarray], folder: Path) -> Callable[[], None]:
    """transformers' collator in its plain or its whole-word mode."""
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [f"word{i}" if i < FIRST_CONTINUATION else f"##piece{i}" for i in range(SPECIALS, VOCABULARY)]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whole-word mode says that it cannot replace by random tokens
        collator = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=whole_words)
    examples = []
    for ids in sequences:
        example = {"input_ids": ids.tolist(), "special_tokens_mask": (ids < SPECIALS).astype(int).tolist()}
        if whole_words:  # characters: every piece is 5 long, words are 1 apart
            begin = np.cumsum(np.where(ids < FIRST_CONTINUATION, 6, 5))
            example["offset_mapping"] = np.where((ids < SPECIALS)[:, None], 0, np.stack([begin, begin + 5], 1)).tolist()
        examples.append(example)

    def call():
        return collator([dict(example) for example in examples])

    batch = call()
    is_target = (batch["labels"] != -100).numpy()
    assert not is_target[np.stack(sequences) < SPECIALS].any() and 0.05 < is_target.mean() < 0.3
    return call


def measure(config: BenchmarkConfig, length: int) -> list[Result]:
    """All contestants in turn, `rounds` times, on sequences of one length."""
    sequences = make_sequences(config.batch, length, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            f"spanbert {s}": ours(s, sequences, config.seed) for s in ("geometric", "whole_word", "subword", "mixed")
        }
        contestants["spanbert entities"] = ours("entities", sequences, config.seed)
        contestants["transformers tokens"] = theirs(False, sequences, Path(folder))
        contestants["transformers whole words"] = theirs(True, sequences, Path(folder))
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(config.rounds):
        for name, call in contestants.items():
            # each measurement at least about 50 ms, and one call as warm-up after the others have had the cache
            call()
            calls, start = 0, time.process_time()
            while calls < 1 or time.process_time() - start < 0.05:
                call()
                calls += 1
            rates[name].append(calls * config.batch / (time.process_time() - start))
    return [
        Result(name, length, *(float(np.percentile(found, q)) for q in (50, 25, 75))) for name, found in rates.items()
    ]


def report(results: list[Result]) -> str:
    """A table for each length, with ratios to transformers' token collator."""
    lines = []
    for length in dict.fromkeys(result.length for result in results):
        rows = [result for result in results if result.length == length]
        base = next(row.per_second for row in rows if row.contestant == "transformers tokens")
        lines.append(
            f"\n{length} tokens{'':<20}sequences/s    quartiles               µs/sequence   × transformers tokens"
        )
        for row in rows:
            quartiles = f"{row.lower:,.0f} – {row.upper:,.0f}"
            lines.append(
                f"  {row.contestant:<26}{row.per_second:>13,.0f}    {quartiles:<22}{1e6 / row.per_second:>13.1f}"
                f"{row.per_second / base:>12.1f}"
            )
    return "\n".join(lines)


def main(config: BenchmarkConfig) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    about = {
        "machine": cpu_name(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "batch": config.batch,
        "rounds": config.rounds,
        "seed": config.seed,
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results = [result for length in config.lengths for result in measure(config, length)]
    print(report(results))
    if config.json is not None:
        content = {**about, "results": [dataclasses.asdict(result) for result in results]}
        write_atomic(config.json, json.dumps(content, indent=2) + "\n")
        print(f"\nwrote {config.json}")


def cpu_name() -> str:
    """The processor as Linux names it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))

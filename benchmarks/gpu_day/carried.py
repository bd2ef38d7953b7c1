"""What a call brings along: wheels, half of a prepared corpus, a model to start from. At most 64 MiB a call.

    python -m benchmarks.gpu_day.carried --data PREPARED --model MODEL --wheels WHEELS --output carried

writes carried/A, carried/B and carried/C, one folder a call. Blocks are stored flat: all lengths, then all ids, as uint16,
compressed by xz to little more than a byte a token (Arrow files take four, uncompressed). A machine keeps what calls A and
B have unpacked; C trains on what it finds.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import sys
from pathlib import Path

import numpy as np

from pretrain.data.blocks import Blocks
from spanbert.config import read_json_object, save_json
from spanbert.errors import UserError

LIMIT = 64 << 20
#: Blocks in a row of an Arrow file's batch while unpacking.
ROWS = 10_000


def pack_blocks(blocks: Blocks, indices: np.ndarray, path: Path) -> int:
    """Write some blocks → tokens written. Raises UserError when an id does not fit 16 bits."""
    packed, _ = blocks.packed(indices)
    ids, cu_seqlens = packed.input_ids_T, packed.cu_seqlens
    if len(ids) and ids.max() >= 1 << 16:
        raise UserError(f"{path.name}: token {ids.max()} does not fit the 16 bits of a packed corpus")
    lengths = np.diff(cu_seqlens) - 2
    inner = np.ones(len(ids), dtype=bool)  # without [CLS] and [SEP]
    inner[cu_seqlens[:-1]] = inner[cu_seqlens[1:] - 1] = False
    header = json.dumps({"blocks": len(lengths), "tokens": int(lengths.sum())}).encode() + b"\n"
    with lzma.open(path, "wb", preset=6) as file:
        file.write(header + lengths.astype("<u2").tobytes() + ids[inner].astype("<u2").tobytes())
    return int(lengths.sum())


def unpack_blocks(paths: list[Path], folder: Path) -> int:
    """The blocks of several packed files as one data set that `Blocks.open` maps → tokens."""
    import datasets

    def rows():
        number = 0
        for path in paths:
            lengths, ids = _read(path)
            ends = np.cumsum(lengths, dtype=np.int64)
            for begin, end in zip(ends - lengths, ends):
                yield {"input_ids": ids[begin:end].astype(np.int32), "document": number, "start": 0}
                number += 1

    kinds = {"input_ids": datasets.List(datasets.Value("int32")), "document": "int64", "start": "int32"}
    features = datasets.Features(
        {name: datasets.Value(kind) if isinstance(kind, str) else kind for name, kind in kinds.items()}
    )
    datasets.disable_progress_bars()
    cache = folder.with_name(f".{folder.name}.cache")
    data = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(cache), writer_batch_size=ROWS)
    data.save_to_disk(folder)
    shutil.rmtree(cache)
    return sum(len(_read(path)[1]) for path in paths)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with lzma.open(path) as file:
        header = json.loads(file.readline())
        numbers = np.frombuffer(file.read(), "<u2")
    if len(numbers) != header["blocks"] + header["tokens"]:
        raise UserError(f"{path}: {len(numbers)} numbers, expected {header}: pack the corpus again")
    return numbers[: header["blocks"]].astype(np.int64), numbers[header["blocks"] :]


def pack(data: Path, model: Path, wheels: Path, output: Path, limit: int = LIMIT) -> dict[str, int]:
    """Fill output/A, B and C → bytes of each. Raises UserError when one passes `limit`."""
    if output.exists():
        raise UserError(f"{output} exists: remove it, or choose another --output")
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise UserError(f"{wheels} holds no wheels")
    train = Blocks.open(data, "train")
    half = len(train) // 2
    for call, indices in (("A", np.arange(half)), ("B", np.arange(half, len(train))), ("C", None)):
        folder = output / call
        (folder / "wheels").mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder / "wheels")
        if indices is not None:
            pack_blocks(train, indices, folder / f"train-{call}.xz")
    validation = Blocks.open(data, "validation")
    pack_blocks(validation, np.arange(len(validation)), output / "A" / "validation.xz")
    for call in ("A", "B"):
        for name in ("prepare.json", "unigram.npy"):
            shutil.copy(data / name, output / call)
        shutil.copytree(data / "tokenizer", output / call / "tokenizer")
    shutil.copytree(model, output / "C" / "model")
    sizes = {call: sum(f.stat().st_size for f in (output / call).rglob("*") if f.is_file()) for call in "ABC"}
    for call, size in sizes.items():
        if size > limit:
            raise UserError(f"call {call} would carry {size:,} bytes, above {limit:,}: prepare a smaller corpus")
    return sizes


def unpack(folder: Path, store: Path) -> str:
    """Bring what a call carries into the store, and make the data sets of all parts there are → a line about it."""
    parts, corpus = store / "parts", store / "corpus"
    for made in (parts, corpus):
        made.mkdir(parents=True, exist_ok=True)
    if (folder / "model").exists():
        shutil.copytree(folder / "model", store / "model", dirs_exist_ok=True)
    if (folder / "prepare.json").exists():
        # what is unpacked are other files, and at first a half: sizes, hashes and counts of the original do not hold
        settings = read_json_object(folder / "prepare.json", "a corpus's settings")
        settings.pop("files", None)
        settings.get("report", {}).pop("held_out", None)
        save_json(settings, corpus / "prepare.json")
        shutil.copy(folder / "unigram.npy", corpus)
        shutil.copytree(folder / "tokenizer", corpus / "tokenizer", dirs_exist_ok=True)
    said = []
    for split in ("train", "validation"):
        brought = list(folder.glob(f"{split}*.xz"))
        for file in brought:
            shutil.copy(file, parts)
        if brought:
            shutil.rmtree(corpus / split, ignore_errors=True)
            files = sorted(parts.glob(f"{split}*.xz"))
            said.append(f"{split}: {unpack_blocks(files, corpus / split):,} tokens in {len(files)} parts")
    return "; ".join(said) or "no corpus carried"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day.carried", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that `spanbert prepare` wrote")
    parser.add_argument("--model", type=Path, help="model folder to start from")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the machine lacks")
    parser.add_argument("--output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--unpack", type=Path, help="on the machine: a call's folder, into --store")
    parser.add_argument("--store", type=Path, default=Path("/tmp/gpu_day"))
    arguments = parser.parse_args(argv)
    if arguments.unpack is None and None in (arguments.data, arguments.model, arguments.wheels, arguments.output):
        parser.error("packing needs --data, --model, --wheels and --output")
    try:
        if arguments.unpack is not None:
            print(unpack(arguments.unpack, arguments.store))
            return 0
        sizes = pack(arguments.data, arguments.model, arguments.wheels, arguments.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for call, size in sizes.items():
        print(f"{arguments.output / call}: {size / 2**20:.1f} MiB of {LIMIT / 2**20:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

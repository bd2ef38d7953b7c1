"""The GPU day without a GPU: what is packed comes back, what is too large is refused, and (slow) all three calls."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_day.carried import pack, unpack
from benchmarks.gpu_day.results import read_archives, write_archive
from pretrain.data.blocks import Blocks
from spanbert.errors import UserError
from spanbert.weights import encoder_path

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Sixty documents of the bundled encoder's tokens, in blocks of 32."""
    folder = tmp_path_factory.mktemp("prepared")
    generator, words = random.Random(0), (ROOT / "sample" / "text.txt").read_text().split()
    documents = [" ".join(generator.choices(words, k=50)) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    command = [sys.executable, "-m", "spanbert", "prepare", str(folder / "text.txt"), "--output", str(folder / "data")]
    command += ["--tokenizer", str(encoder_path()), "--block-length", "32", "--validation-share", "0.1"]
    done = subprocess.run([*command, "--processes", "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "data"


@pytest.fixture
def wheels(tmp_path) -> Path:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "nothing-1.0-py3-none-any.whl").write_bytes(b"")
    return tmp_path / "wheels"


def test_corpus_comes_back_block_by_block(prepared, wheels, tmp_path):
    sizes = pack(prepared, encoder_path(), wheels, tmp_path / "carried")
    assert all(size < 64 << 20 for size in sizes.values())
    store = tmp_path / "store"
    first = unpack(tmp_path / "carried" / "A", store)
    half = Blocks.open(store / "corpus", "train")
    assert (
        len(half) > 40
        and "train" in first
        and "validation" in first
        and len(half) == len(Blocks.open(prepared, "train")) // 2
    )
    assert "in 2 parts" in unpack(tmp_path / "carried" / "B", store)
    assert unpack(tmp_path / "carried" / "C", store) == "no corpus carried" and (store / "model").exists()
    for split in ("train", "validation"):
        mine, own = Blocks.open(store / "corpus", split), Blocks.open(prepared, split)
        a, b = (part.packed(np.arange(len(part)))[0] for part in (mine, own))
        assert np.array_equal(a.input_ids_T, b.input_ids_T) and np.array_equal(a.cu_seqlens, b.cu_seqlens)


def test_too_much_to_carry_is_refused(prepared, wheels, tmp_path):
    with pytest.raises(UserError, match="call C would carry"):
        pack(prepared, encoder_path(), wheels, tmp_path / "carried", limit=1_000_000)


def test_archive_is_split_and_joined(tmp_path):
    """What would not fit is left out, largest first, and named."""
    folder = tmp_path / "results"
    (folder / "kernels").mkdir(parents=True)
    generator = random.Random(0)
    for name, size in (("kernels/results.json", 3000), ("model.bin", 9000), ("run.bin", 50_000)):
        (folder / name).write_bytes(generator.randbytes(size))
    assert write_archive(folder, tmp_path / "out", "gpu_day_A", files=4, size=5000) == ["run.bin"]
    parts = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert parts == [f"gpu_day_A.tar.gz.{n}" for n in range(len(parts))] and 2 <= len(parts) <= 4
    assert read_archives(tmp_path / "out", tmp_path / "home") == ["gpu_day_A.tar.gz"]
    for name in ("kernels/results.json", "model.bin"):
        assert (tmp_path / "home" / "A" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.slow
def test_rehearsal(prepared, wheels, tmp_path):
    """All three calls on a CPU, in order, as on the machine: every step passes, and what comes back is what reports read."""
    pack(prepared, encoder_path(), wheels, tmp_path / "carried")
    for call in "ABC":
        shutil.rmtree(tmp_path / "carried" / call / "wheels")
        command = [sys.executable, "-m", "benchmarks.gpu_day", "--call", call, "--rehearse", "--no-wheels"]
        command += ["--carried", str(tmp_path / "carried" / call), "--store", str(tmp_path / "store")]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
    read_archives(tmp_path / "out", tmp_path / "home")
    page = tmp_path / "kernels.md"
    command = [sys.executable, "-m", "benchmarks.kernels.report", str(tmp_path / "home" / "A" / "kernels")]
    assert subprocess.run([*command, "--page", str(page)], cwd=ROOT).returncode == 0
    assert "### attention" in page.read_text()
    assert json.loads((tmp_path / "home" / "B" / "pretraining.json").read_text())["seconds"]
    assert (tmp_path / "home" / "C" / "model" / "model.safetensors").exists()
    assert (tmp_path / "home" / "C" / "metrics.jsonl").exists()

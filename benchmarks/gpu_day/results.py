"""What a call takes home: one archive in at most 8 files of at most 16 MiB, and back again.

python -m benchmarks.gpu_day.results FOLDER --output benchmarks/results/gpu_day     # FOLDER holds gpu_day_A.tar.gz.0 …
python -m benchmarks.kernels.report benchmarks/results/gpu_day/kernels
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path

FILES, FILE_BYTES = 8, 16 << 20


def write_archive(folder: Path, out: Path, name: str, files: int = FILES, size: int = FILE_BYTES) -> list[str]:
    """Pack `folder` into out/NAME.tar.gz.0 …; → what was left out, largest first, because it would not have fitted."""
    members = sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    left_out: list[str] = []
    while True:
        memory = io.BytesIO()
        with tarfile.open(fileobj=memory, mode="w:gz", compresslevel=6) as archive:
            for file in members:
                archive.add(file, str(file.relative_to(folder)))
        if memory.tell() <= files * size or not members:
            break
        left_out.append(str(members.pop().relative_to(folder)))
    data = memory.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{name}.tar.gz.*"):
        old.unlink()
    for number, begin in enumerate(range(0, len(data), size)):
        (out / f"{name}.tar.gz.{number}").write_bytes(data[begin : begin + size])
    return left_out


def read_archives(folder: Path, output: Path) -> list[str]:
    """Unpack all archives in `folder` into output/A, B, C → their names."""
    names = sorted({file.name.rsplit(".", 1)[0] for file in folder.glob("gpu_day_*.tar.gz.*")})
    for name in names:
        parts = sorted(folder.glob(f"{name}.*"), key=lambda file: int(file.suffix[1:]))
        data = io.BytesIO(b"".join(part.read_bytes() for part in parts))
        with tarfile.open(fileobj=data, mode="r:gz") as archive:
            archive.extractall(output / name.removeprefix("gpu_day_")[0], filter="data")
    return names


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day.results", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files of the archives are")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu_day"))
    arguments = parser.parse_args(argv)
    names = read_archives(arguments.folder, arguments.output)
    print(f"{', '.join(names)} → {arguments.output}" if names else f"error: no gpu_day archives in {arguments.folder}")
    return 0 if names else 2


if __name__ == "__main__":
    sys.exit(main())

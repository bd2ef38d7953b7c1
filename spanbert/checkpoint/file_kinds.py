"""What a file or folder that should hold weights really is, from its content, so that a message can say it."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from spanbert.errors import UserError
from spanbert.files import read_bounded

#: Pickles that PyTorch's format before 1.6 puts one after another: magic number, version, machine, then the content.
LEGACY_PICKLES = 4
#: refs/main of a download cache names a version by its hash.
REF_BYTES = 1024
#: What state dicts, and fairseq's files, ask for.
HARMLESS = ("collections.OrderedDict", "argparse.Namespace", "__builtin__.set")


@dataclass(frozen=True)
class Kind:
    """A kind of file in words. ``advice`` is for one that cannot hold weights as it is."""

    name: str
    advice: str = ""
    torch_saved: bool = False
    safetensors: bool = False


SAFETENSORS = Kind("a safetensors file", safetensors=True)
TORCH_ZIP, TORCH_LEGACY = Kind("a torch-saved file", torch_saved=True), Kind("a torch-saved file", torch_saved=True)
UNKNOWN = Kind("a file of unknown format")
#: First bytes → what begins so.
STARTS = {
    b"version https://git-lfs": Kind("a Git LFS pointer", "fetch the real file (git lfs pull)"),
    b"\x1f\x8b": Kind("a gzip-compressed archive (.tar.gz or .gz)", "unpack it and name what was in it"),
    b"BZh": Kind("a bzip2-compressed archive", "unpack it and name what was in it"),
    b"\xfd7zXZ\x00": Kind("an xz-compressed archive", "unpack it and name what was in it"),
    b"\x89HDF": Kind("an HDF5 file (TensorFlow's or Keras')", "get the model's PyTorch or safetensors file"),
    b"<": Kind("a web page", "the download went wrong, get the file again"),
    b"\x80": TORCH_LEGACY,
}


def kind_of(path: Path) -> Kind:
    """From the first bytes of a file (and the table of contents of a zip file)."""
    with path.open("rb") as handle:
        start = handle.read(512)
    if (
        start[4:9] == b"\x00\x00\x00\x00{"
    ):  # a header's length, below 4 GiB, and the header, whose length may look like any
        return SAFETENSORS
    for begins, kind in STARTS.items():
        if start.startswith(begins):
            return kind
    if start[257:262] == b"ustar":
        return Kind("a tar archive", "unpack it and name what was in it")
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    return UNKNOWN


def _kind_of_zip(path: Path) -> Kind:
    """PyTorch's format is a zip file; one that cannot be opened is taken for a torch-saved file that was cut off."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("data.pkl") for name in archive.namelist()):
                return TORCH_ZIP
    except (zipfile.BadZipFile, OSError):
        return TORCH_ZIP
    return Kind("a zip archive", "unpack it and name what was in it")


def foreign_globals(path: Path) -> list[str] | None:
    """Functions and classes, other than a state dict's own, that a torch-saved file asks for.

    None when it is cut off, or asks for none. The pickle's instructions are read, not one of them is carried out.
    """
    names: set[str] = set()
    with contextlib.suppress(ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (pickled,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
                _collect_globals(io.BytesIO(archive.read(pickled)), names)
        else:
            with path.open("rb") as stream:
                for _ in range(LEGACY_PICKLES):
                    _collect_globals(stream, names)
    return sorted(name for name in names if not _is_harmless(name)) or None


def _is_harmless(name: str) -> bool:
    return name in HARMLESS or (name.startswith("torch.") and not name.startswith("torch.nn."))


def _collect_globals(stream: BinaryIO, names: set[str]) -> None:
    """Add "module.name" for every global that one pickle loads. Raises ValueError when the pickle is not whole."""
    import pickletools  # a big table, for the rare file that is refused

    strings: list[str] = []
    for code, argument, _ in pickletools.genops(stream):
        if code.name == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif code.name == "STACK_GLOBAL" and len(strings) >= 2:
            names.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)


def snapshot_of(path: Path) -> Path | None:
    """The folder with the files, of a Hugging Face download cache (models--owner--name); None for any other folder.

    That of refs/main, else the only one. Raises UserError when several could be meant.
    """
    snapshots = path / "snapshots"
    if not snapshots.is_dir():
        return None
    main = path / "refs" / "main"
    if main.is_file():
        named = snapshots / read_bounded(main, REF_BYTES, "a version's name").decode("utf-8", "replace").strip()
        if named.parent == snapshots and named.is_dir():
            return named
    found = sorted(folder for folder in snapshots.iterdir() if folder.is_dir())
    if len(found) > 1:
        raise UserError(
            f"{path} is a download cache with {len(found)} versions of the model: name one, e.g. {found[0]}"
        )
    return found[0] if found else None

"""The models that come with the installation: a reader, and an encoder trained from scratch with the reader made from it.

They are ordinary model folders inside the package, bf16 on disk, each with a README.md that says where it comes from and
how good it is. Each has its tokenizer: a folder stays whole for ``transformers`` and for whoever copies it, and any of them
may be deleted to save space.
"""

from __future__ import annotations

from pathlib import Path

from spanbert.errors import UserError, note

WEIGHTS = Path(__file__).parent

#: Words that commands take in the place of a model folder; each is a folder here.
BUNDLED = {
    "reader": "answers questions and may decline; its encoder was trained elsewhere",
    "scratch": "answers questions; encoder and all trained by this program",
    "encoder": "the encoder of scratch with its MLM and SBO heads, to fill spans and to fine-tune",
}


def qa_model_path() -> Path:
    """Folder of the best bundled model that answers questions. Raises UserError where there is none."""
    if has_weights("scratch") and not has_weights("reader"):
        note("the bundled reader is not installed: scratch, the small model trained from nothing, answers in its place")
        return bundled_path("scratch")
    return bundled_path("reader")


def encoder_path() -> Path:
    """Folder of the encoder with its MLM and SBO heads. Raises UserError where the weights are absent."""
    return bundled_path("encoder")


def tokenizer_path() -> Path:
    """Folder of the encoder's tokenizer. Raises UserError where the weights are absent."""
    return bundled_path("encoder")


def bundled_path(name: str) -> Path:
    """Folder of a bundled model by its word in ``BUNDLED``. Raises UserError where its weights are absent."""
    if not has_weights(name):
        folder = WEIGHTS / name
        raise UserError(f"no model comes with this installation ({folder} holds no weights): name one of your own")
    return WEIGHTS / name


def model_path(given: Path) -> Path:
    """A model as a person names it: a path, or a word of ``BUNDLED`` where no such path is there."""
    return bundled_path(str(given)) if str(given) in BUNDLED and not given.exists() else given


def has_weights(name: str) -> bool:
    return (WEIGHTS / name / "model.safetensors").is_file()

"""The models that come with the installation: an encoder with its two heads, and one that answers questions.

They are ordinary model folders inside the package, bf16 on disk, each with a README.md that says where it comes from and
how good it is. The tokenizer is in both: each folder stays whole for ``transformers`` and for whoever copies it.
"""

from __future__ import annotations

from pathlib import Path

from spanbert.errors import UserError

WEIGHTS = Path(__file__).parent


def qa_model_path() -> Path:
    """Folder of the question-answering model. Raises UserError where the weights are absent."""
    return _folder("qa")


def encoder_path() -> Path:
    """Folder of the encoder with its MLM and SBO heads. Raises UserError where the weights are absent."""
    return _folder("encoder")


def tokenizer_path() -> Path:
    """Folder of the tokenizer of both. Raises UserError where the weights are absent."""
    return _folder("encoder")


def _folder(name: str) -> Path:
    folder = WEIGHTS / name
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"no model comes with this installation ({folder} holds no weights): name one of your own")
    return folder

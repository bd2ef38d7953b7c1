"""What weights must be before any command uses them: numbers, finite, of the shape that their configuration says, and
numbered by their own vocabulary.

``load_model`` makes these checks for every command, so that a folder that was never imported is no less safe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from spanbert.checkpoint.architectures import ENCODER_PREFIXES, WORDS, head_starts
from spanbert.checkpoint.weight_names import Group, groups_of
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.tokenizer.wordpiece import Tokenizer

#: Embedding matrices are padded up to a multiple of one of these; any other surplus is another model's matrix.
PADDING_MULTIPLES = (8, 16, 32, 64, 128)

#: What weights may be stored as. (The 8-bit kinds of floating point are quantised: PyTorch cannot even add them up.)
NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_numbers(tensors: Mapping[str, Tensor], file: str) -> None:
    """Every tensor of the encoder and of known heads holds finite numbers of one of ``NUMBERS``.

    A sum is not finite if any of its numbers is not; only then each is looked at (in fp16 a sum may overflow).
    Raises UserError that names the first tensor for which it is not so.
    """
    known = (*ENCODER_PREFIXES, *head_starts())
    for name, tensor in tensors.items():
        if not name.startswith(known):
            continue
        if tensor.dtype not in NUMBERS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{file}: {name} holds {kind} numbers: expected fp32, fp16 or bf16, so undo the quantisation"
            )
        if not is_finite(tensor):
            raise UserError(
                f"{file}: {name} holds NaN or infinite numbers; the file is damaged or its training diverged"
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; one pass over the memory when they are."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def check_encoder(config: EncoderConfig, tensors: Mapping[str, Tensor], file: str) -> None:
    """The sizes of the encoder, before anything of that size is made: a typing error could ask for a terabyte.

    Raises UserError where the configuration and the weights differ; the heads are for ``check_shapes``.
    """
    expected = {
        WORDS: [config.vocab_size, config.hidden_size],
        "bert.embeddings.position_embeddings.weight": [config.max_position_embeddings, config.hidden_size],
        "bert.embeddings.token_type_embeddings.weight": [config.type_vocab_size, config.hidden_size],
        "bert.encoder.layer.0.intermediate.dense.weight": [config.intermediate_size, config.hidden_size],
    }
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(f"{file} lacks {name!r}: is it a BERT?")
        if list(tensors[name].shape) != shape:
            raise _wrong_shape(file, name, tensors[name], shape)
    layers = count_layers(tensors)
    if layers > config.num_hidden_layers:
        raise UserError(
            f"{file} holds {layers} layers, but its configuration says num_hidden_layers {config.num_hidden_layers}: "
            "the others would be left out"
        )
    if layers < config.num_hidden_layers:
        missing = f"bert.encoder.layer.{layers}.attention.self.query.weight"
        raise UserError(
            f"{file} lacks {missing!r} and all after it, but its configuration says num_hidden_layers "
            f"{config.num_hidden_layers}: get the whole file"
        )


def count_layers(tensors: Mapping[str, Tensor]) -> int:
    """Layers that the names (usual ones) tell of."""
    numbers = (re.match(r"bert\.encoder\.layer\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def check_shapes(model: nn.Module, tensors: Mapping[str, Tensor], file: str) -> None:
    """Every tensor that ``model`` (which may be on the meta device) would take has its shape. Raises UserError."""
    targets = dict(model.named_parameters())
    for group in groups_of(targets):
        if all(name in tensors for name in group.theirs):
            check_group(group, tensors, targets, file)


def check_group(group: Group, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], file: str) -> None:
    """The same for one group of tensors."""
    ours = [list(targets[name].shape) for name in group.ours]
    expected = list(ours[0])
    expected[group.dim] = sum(shape[group.dim] for shape in ours) // len(group.theirs)
    for name in group.theirs:
        if list(tensors[name].shape) != expected:
            raise _wrong_shape(file, name, tensors[name], expected)


def _wrong_shape(file: str, name: str, tensor: Tensor, expected: list[int]) -> UserError:
    return UserError(f"{file}: {name} has shape {list(tensor.shape)}, but its configuration says {expected}")


def check_vocabulary(tokenizer: Tokenizer, rows: int, source: Path | str, *, padding: bool = False) -> str:
    """→ a note for the log. Raises UserError when the vocabulary cannot be, or may not be, that of these embeddings.

    Rows beyond the vocabulary are padding when the vocabulary numbers its tokens itself (tokenizer.json). A vocab.txt
    numbers them by its lines: there a surplus may also be a line that was lost, and every later token one row off.
    padding: the user vouches for it.
    """
    tokens = tokenizer.vocab_size
    if rows == tokens:
        return ""
    surplus = rows - tokens
    if not any(rows % multiple == 0 and 0 < surplus < multiple for multiple in PADDING_MULTIPLES):
        raise UserError(
            f"{source}: the vocabulary has {tokens:,} tokens but the model's embeddings have {rows:,} rows: it is another "
            "model's vocabulary; give the right one (spanbert import … --vocab FILE)"
        )
    if not (tokenizer.numbered or padding):
        raise UserError(
            f"{source}: the vocabulary has {tokens:,} lines but the model's embeddings have {rows:,} rows, and a vocab.txt "
            f"cannot say whether the last {surplus} are padding or lines were lost, which would shift all tokens after "
            "them: import it with its tokenizer.json (--vocab FILE), or with --padding if you know that no line is missing"
        )
    return f"; the word embeddings have {surplus} more rows, padding that no text uses"

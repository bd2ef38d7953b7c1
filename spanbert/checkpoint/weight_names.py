"""Our parameter names and those of Hugging Face BERT (and, for the SBO head, the authors' files).

A ``Group`` is a few of our tensors and a few of theirs that hold the same numbers: joined along ``dim`` they are equal.
Most groups are one to one; our fused ``qkv`` is their query, key and value, and their ``linear1`` of the SBO head is our
left, right and position matrices side by side. Converting is joining and splitting, so both ways are bitwise exact. The
names of heads come from ``architectures``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from spanbert.checkpoint.architectures import WORDS, Head, all_heads
from spanbert.errors import UserError


class Group(NamedTuple):
    """The same numbers under our names and theirs, joined along ``dim``."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    dim: int = 0


#: Names of the encoder's modules, ours → theirs; ``.weight`` and ``.bias`` follow. ``#`` stands for a layer's number.
ENCODER_MODULES = {
    "encoder.embeddings.word": "bert.embeddings.word_embeddings",
    "encoder.embeddings.position": "bert.embeddings.position_embeddings",
    "encoder.embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
    "encoder.layers.#.attention_out.linear": "bert.encoder.layer.#.attention.output.dense",
    "encoder.layers.#.attention_out.norm": "bert.encoder.layer.#.attention.output.LayerNorm",
    "encoder.layers.#.feed_forward_in": "bert.encoder.layer.#.intermediate.dense",
    "encoder.layers.#.feed_forward_out.linear": "bert.encoder.layer.#.output.dense",
    "encoder.layers.#.feed_forward_out.norm": "bert.encoder.layer.#.output.LayerNorm",
}

#: Modules that wrap a part of a model, at any depth, and put their own name into all names below.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: What a model is called inside a larger one: the authors' "decoder", Lightning's "net", sentence-transformers' "0".
OWNERS = ("model.", "decoder.", "net.", "0.", "auto_model.")


def group_of(our_name: str) -> Group:
    """The group that one of our parameters belongs to. A name outside the tables is the same on both sides."""
    module, _, leaf = our_name.rpartition(".")
    head = all_heads().get(our_name.partition(".")[0])
    if head is not None:
        return _group_of_head(head, module.removeprefix(head.name).removeprefix("."), leaf)
    number = re.search(r"\.layers\.(\d+)\.", our_name)
    if number and module.endswith(".qkv"):
        attention = f"bert.encoder.layer.{number[1]}.attention.self"
        return Group((our_name,), tuple(f"{attention}.{part}.{leaf}" for part in ("query", "key", "value")))
    pattern = module.replace(f".{number[1]}.", ".#.") if number else module
    if pattern not in ENCODER_MODULES:
        return Group((our_name,), (our_name,))
    theirs = ENCODER_MODULES[pattern].replace("#", number[1]) if number else ENCODER_MODULES[pattern]
    return Group((our_name,), (f"{theirs}.{leaf}",))


def _group_of_head(head: Head, module: str, leaf: str) -> Group:
    for theirs, ours in head.joined.items():
        if module in ours and leaf == "weight":
            return Group(tuple(f"{head.name}.{one}.weight" for one in ours), (f"{head.prefix}.{theirs}.weight",), dim=1)
        if module in ours:
            return Group((f"{head.name}.{module}.{leaf}",), (f"{head.prefix}.{theirs}.{leaf}",))
    our_name = ".".join(part for part in (head.name, module, leaf) if part)
    their_name = ".".join(part for part in (head.prefix, head.modules.get(module, module), leaf) if part)
    return Group((our_name,), (their_name,))


def groups_of(our_names: Iterable[str]) -> list[Group]:
    """The groups of a model's parameters, each once, in the order of the model."""
    return list(dict.fromkeys(group_of(name) for name in our_names))


def to_theirs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict → theirs: contiguous tensors of the same dtype, no storage shared between two of them."""
    tensors = {}
    for group in groups_of(state):
        joined = torch.cat([state[name].detach() for name in group.ours], dim=group.dim)
        for name, part in zip(group.theirs, joined.chunk(len(group.theirs), dim=group.dim), strict=True):
            tensors[name] = part.contiguous().clone() if len(group.theirs) > 1 else part
    return tensors


def to_ours(group: Group, tensors: Mapping[str, Tensor], widths: list[int]) -> dict[str, Tensor]:
    """One group of theirs → ours; ``widths`` are the sizes of our tensors along the group's dimension."""
    joined = torch.cat([tensors[name] for name in group.theirs], dim=group.dim)
    return dict(zip(group.ours, joined.split(widths, dim=group.dim), strict=True))


def their_usual_name(name: str) -> str:
    """Any spelling that is met in the wild → the one of the tables.

    Names of wrappers (``module``, ``_orig_mod``) anywhere, of an owner in front (``model.``, the authors' ``decoder.``),
    old LayerNorm names (gamma, beta), and encoder names without ``bert.``.
    """
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    while name.startswith(OWNERS):
        name = name.partition(".")[2]
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    if name.startswith(("embeddings.", "encoder.layer.", "pooler.")):
        name = f"bert.{name}"
    return name


def usual_names(tensors: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Tensors under the names of the tables, without copies of the word embeddings and buffers.

    Raises UserError when two entries claim one name.
    """
    tied = {head.output_matrix for head in all_heads().values()}
    usual: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        known = their_usual_name(name)
        if known in tied or known.endswith((".position_ids", ".token_type_ids")):
            continue
        if known in usual:
            raise UserError(f"{file} holds {known!r} twice, the second time as {name!r}: two models in one file?")
        usual[known] = tensor
    for head in all_heads().values():
        bias = usual.pop(f"{head.prefix}.decoder.bias", None) if head.tied else None
        if bias is not None:
            usual.setdefault(f"{head.prefix}.bias", bias)
    return usual


def untied_heads(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Heads whose output matrix in a file (names as stored) is not the word embeddings → that matrix's stored name."""
    stored = {their_usual_name(name): name for name in tensors}
    words = tensors.get(stored.get(WORDS, ""))
    untied = {}
    for head in all_heads().values():
        name = stored.get(head.output_matrix or "")
        if name is None or words is None:
            continue
        same_shape = tensors[name].shape == words.shape
        if not same_shape or not torch.equal(tensors[name].to(words.dtype), words):
            untied[head.name] = name
    return untied

"""Our parameter names and those of Hugging Face BERT (and, for the SBO head, the authors' files): one table.

A ``Group`` is a few of our tensors and a few of theirs that hold the same numbers: joined along ``dim`` they are equal.
Most groups are one to one; our fused ``qkv`` is their query, key and value, and their ``linear1`` of the SBO head is our
left, right and position matrices side by side. Converting is joining and splitting, so both ways are bitwise exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """The same numbers under our names and theirs, joined along ``dim``."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    dim: int = 0


#: Names of modules, ours → theirs; ``.weight`` and ``.bias`` follow. ``#`` stands for a layer's number.
MODULES = {
    "encoder.embeddings.word": "bert.embeddings.word_embeddings",
    "encoder.embeddings.position": "bert.embeddings.position_embeddings",
    "encoder.embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
    "encoder.layers.#.attention_out.linear": "bert.encoder.layer.#.attention.output.dense",
    "encoder.layers.#.attention_out.norm": "bert.encoder.layer.#.attention.output.LayerNorm",
    "encoder.layers.#.feed_forward_in": "bert.encoder.layer.#.intermediate.dense",
    "encoder.layers.#.feed_forward_out.linear": "bert.encoder.layer.#.output.dense",
    "encoder.layers.#.feed_forward_out.norm": "bert.encoder.layer.#.output.LayerNorm",
    "pooler.dense": "bert.pooler.dense",
    "mlm.dense": "cls.predictions.transform.dense",
    "mlm.norm": "cls.predictions.transform.LayerNorm",
    "mlm": "cls.predictions",
    "sbo.position": "cls.pair_target_predictions.position_embeddings",
    "sbo.norm1": "cls.pair_target_predictions.mlp_layer_norm.layer_norm1",
    "sbo.dense2": "cls.pair_target_predictions.mlp_layer_norm.linear2",
    "sbo.norm2": "cls.pair_target_predictions.mlp_layer_norm.layer_norm2",
    "sbo": "cls.pair_target_predictions",
}

LINEAR1 = "cls.pair_target_predictions.mlp_layer_norm.linear1"

#: Matrices that are the word embeddings under another name; never stored by us, ignored when read.
TIED = ("cls.predictions.decoder.weight", "cls.pair_target_predictions.decoder.weight")


def group_of(our_name: str) -> Group:
    """The group that one of our parameters belongs to. A name outside the table is the same on both sides."""
    module, _, leaf = our_name.rpartition(".")
    number = re.search(r"\.layers\.(\d+)\.", our_name)
    if number and module.endswith(".qkv"):
        attention = f"bert.encoder.layer.{number[1]}.attention.self"
        return Group((our_name,), tuple(f"{attention}.{part}.{leaf}" for part in ("query", "key", "value")))
    if our_name in ("sbo.left.weight", "sbo.right.weight", "sbo.from_position.weight"):
        ours = ("sbo.left.weight", "sbo.right.weight", "sbo.from_position.weight")
        return Group(ours, (f"{LINEAR1}.weight",), dim=1)
    if our_name == "sbo.from_position.bias":
        return Group((our_name,), (f"{LINEAR1}.bias",))
    pattern = module.replace(f".{number[1]}.", ".#.") if number else module
    if pattern not in MODULES:
        return Group((our_name,), (our_name,))
    theirs = MODULES[pattern].replace("#", number[1]) if number else MODULES[pattern]
    return Group((our_name,), (f"{theirs}.{leaf}",))


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
    """Any spelling that is met in the wild → the one of the table above.

    Prefixes of wrappers (``module.``, ``model.``, the authors' ``decoder.``), old LayerNorm names (gamma, beta), and
    encoder names without ``bert.``.
    """
    while name.startswith(("module.", "model.", "decoder.", "_orig_mod.")):
        name = name.partition(".")[2]
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    if name.startswith(("embeddings.", "encoder.layer.", "pooler.")):
        name = f"bert.{name}"
    return name

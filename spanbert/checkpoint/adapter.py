"""A LoRA adapter on disk, in PEFT's layout: a few hundred kilobytes beside the name and the hash of its base model.

    adapter_config.json          PEFT's: rank, alpha, which products, and the base's name
    adapter_model.safetensors    lora_A and lora_B of each product under Hugging Face's names, and the whole task head
    config.json, tokenizer       as in any model folder; ``adapter`` in config.json has the base's path and hash

A folder that ``peft`` wrote for a BERT lacks the last line and is read all the same; what it lacks is then the base's.
Reading means merging, W + (α / r) B A, so that every command takes an adapter like any other model. Only a run that
resumes wants A and B themselves (``fill_adapter``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spanbert.checkpoint.architectures import ENCODER_PREFIXES, architecture_of
from spanbert.checkpoint.weight_files import read_weights
from spanbert.checkpoint.weight_names import group_of, groups_of, their_usual_name, to_ours, to_theirs
from spanbert.config import read_json_object, save_json
from spanbert.errors import UserError
from spanbert.model.lora import LoRAConfig, lora_layers
from spanbert.model.models import SpanBertModel
from spanbert.weights import encoder_path

CONFIG, TENSORS, TENSORS_BIN = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
#: Key of our config.json.
ADAPTER = "adapter"
#: What PEFT puts in front of the names of the model that it wraps.
WRAPPED = "base_model.model."
#: ``LoRAConfig.on`` → the products, as a regular expression for the whole of their names in transformers.
TARGETS = {
    "attention": r"attention\.self\.(query|key|value)|attention\.output\.dense",
    "feed-forward": r"intermediate\.dense|output\.dense",
}
TARGETS["both"] = "|".join(TARGETS.values())
TOKENIZERS = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True)
class Adapter:
    """An adapter as it lies in a folder. Names are usual ones, of the base's tensors."""

    folder: Path
    file: str
    pairs: dict[str, tuple[Tensor, Tensor]]
    """Module, without ``.weight`` → its A and B."""
    whole: dict[str, Tensor]
    """Tensors that take the place of the base's, such as a task's head."""
    scale: float
    base: str
    """The base model as the adapter names it."""
    sha256: str | None
    """Of the base's encoder; PEFT's own folders do not say."""

    @property
    def complete(self) -> bool:
        """Whether it has every head of its model: those that are written here do, unless it is an encoder's."""
        return self.sha256 is not None and bool(self.whole)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (folder / CONFIG).is_file()


def encoder_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash of the encoder's weights, by their usual names, as fp32: the file's format and its heads do not matter."""
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if name.startswith(ENCODER_PREFIXES)):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


# --- writing -----------------------------------------------------------------------------------------------------


def write_adapter(folder: Path, model: SpanBertModel, config: Mapping[str, Any]) -> None:
    """The adapter of a model that ``adapts`` a base, into an existing folder; config: that of the model as a whole."""
    base = model.adapts
    assert base is not None, "the model has no adapter"
    tensors: dict[str, Tensor] = {}
    for name, module in lora_layers(model):
        theirs = [one.removesuffix(".weight") for one in group_of(f"{name}.weight").theirs]
        for their_name, b_OR in zip(theirs, module.lora_B.detach().chunk(len(theirs)), strict=True):
            tensors[f"{WRAPPED}{their_name}.lora_A.weight"] = module.lora_A.detach().cpu().clone()
            tensors[f"{WRAPPED}{their_name}.lora_B.weight"] = b_OR.cpu().contiguous()
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    tensors |= {f"{WRAPPED}{name}": tensor.contiguous() for name, tensor in to_theirs(state).items()}
    heads = [head.prefix.rpartition(".")[2] for head in architecture_of(type(model)).all_heads]
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    save_json(peft_config(base.lora, base.path, heads), folder / CONFIG)
    save_json({**config, ADAPTER: {"base": base.path, "sha256": base.sha256}}, folder / "config.json")
    (folder / TENSORS).chmod((folder / CONFIG).stat().st_mode)  # safetensors makes it private to the user


def peft_config(lora: LoRAConfig, base: str, heads: list[str]) -> dict[str, Any]:
    """adapter_config.json as ``peft`` reads it.

    It names no task: the wrapper that peft 0.21 has for question answering drops ``token_type_ids``, and the one without a
    task hands on all that it is given.
    """
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": rf".*\.layer\.\d+\.({TARGETS[lora.on]})",
        "modules_to_save": heads or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


# --- reading -----------------------------------------------------------------------------------------------------


def read_adapter(folder: Path) -> Adapter:
    """Raises UserError for a folder that is no LoRA adapter, or one of a kind that is not read here."""
    stated = read_json_object(folder / CONFIG, "an adapter's options")
    where = f"{folder / CONFIG}"
    if stated.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type is {stated.get('peft_type')!r}: only LORA adapters can be read")
    for option in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication"):
        if stated.get(option):
            raise UserError(
                f"{where}: {option} is {stated[option]!r}: merge the adapter with peft, and import the model"
            )
    rank, alpha = stated.get("r", 0), stated.get("lora_alpha", "")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{where}: r is {rank!r} and lora_alpha is {alpha!r}: expected a rank and a number")
    scale = alpha / (math.sqrt(rank) if stated.get("use_rslora") else rank)
    path = folder / TENSORS if (folder / TENSORS).is_file() else folder / TENSORS_BIN
    tensors, name = read_weights(path)
    pairs, whole = _sorted_out(tensors, f"{folder}/{name}")
    own = read_json_object(folder / "config.json", "BERT's keys") if (folder / "config.json").is_file() else {}
    recorded = own.get(ADAPTER, {})
    if not isinstance(recorded, dict):
        raise UserError(f"{folder}/config.json: {ADAPTER} is {recorded!r}: expected the base and its sha256")
    base = recorded.get("base") or stated.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{where}: base_model_name_or_path does not say which model it adapts")
    return Adapter(folder, f"{folder}/{name}", pairs, whole, scale, base, recorded.get("sha256"))


def _sorted_out(tensors: Mapping[str, Tensor], file: str) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """A file's tensors → pairs of A and B by module, and those that stand for themselves."""
    halves: dict[str, dict[str, Tensor]] = {"lora_A": {}, "lora_B": {}}
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(WRAPPED).replace(".modules_to_save.", ".").replace(".default.", ".")
        module, dot, half = plain.removesuffix(".weight").rpartition(".")
        if half in halves and dot:
            halves[half][their_usual_name(f"{module}.weight").removesuffix(".weight")] = tensor
        elif "lora_" in plain:
            raise UserError(f"{file}: {name} is of a kind of adapter that is not read here: merge it with peft")
        else:
            whole[their_usual_name(plain.replace(".original_module.", "."))] = tensor
    lone = sorted(set(halves["lora_A"]) ^ set(halves["lora_B"]))
    if lone or not halves["lora_A"]:
        raise UserError(f"{file}: {f'{lone[0]} has only one of lora_A and lora_B' if lone else 'holds no lora_A'}")
    return {module: (a, halves["lora_B"][module]) for module, a in halves["lora_A"].items()}, whole


def base_folder(folder: Path) -> Path:
    """Where the base of an adapter lies: FOLDER/base if there is such a folder, else where the adapter says, else the
    bundled encoder if the hash is its. ``merged`` proves the hash.

    Raises UserError, with what to do, when it is nowhere.
    """
    adapter = read_adapter(folder)
    named = encoder_path() if adapter.base == "bundled" else Path(adapter.base)
    for place in (folder / "base", named):
        if (place / "config.json").is_file() and place != folder:
            return place
    proof = f" (sha256 {adapter.sha256[:16]}… of its encoder)" if adapter.sha256 else ""
    raise UserError(
        f"{folder} is an adapter of the model {adapter.base}{proof}, which is not there: put that model's folder, or a "
        f"link to it, at {folder / 'base'}"
    )


def merged(adapter: Adapter, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's tensors with the adapter's products added, fp32, and its head in place of theirs.

    An adapter that was trained here has all heads that it uses, and the base's others are left out; one that peft wrote
    may have its classifier and use the base's pooler. Raises UserError when the base is another model.
    """
    if adapter.sha256 is not None and encoder_sha256(base) != adapter.sha256:
        raise UserError(
            f"{adapter.folder} was trained on other weights than those of its base {adapter.base} now (their hashes "
            f"differ): put the model it was trained on at {adapter.folder / 'base'}"
        )
    kept = {name: tensor for name, tensor in base.items() if not adapter.complete or name.startswith(ENCODER_PREFIXES)}
    tensors = {**kept, **adapter.whole}
    for module, (a_RI, b_OR) in adapter.pairs.items():
        name = f"{module}.weight"
        if name not in base:
            raise UserError(f"{adapter.file}: adapts {module}, which its base {adapter.base} does not have")
        weight = base[name]
        if weight.dim() != 2 or [*b_OR.shape[:1], *a_RI.shape[1:]] != list(weight.shape) or len(a_RI) != b_OR.shape[-1]:
            raise UserError(
                f"{adapter.file}: {module} has lora_A {list(a_RI.shape)} and lora_B {list(b_OR.shape)}, which do not fit "
                f"the base's {list(weight.shape)}"
            )
        tensors[name] = weight.float() + adapter.scale * (b_OR.float() @ a_RI.float())
    return tensors


def fill_adapter(model: SpanBertModel, folder: Path) -> None:
    """Put an adapter's A, B and head into a model that has LoRA in the same places, bit for bit as they were written.

    Raises UserError when they do not fit: then it is another model's.
    """
    adapter = read_adapter(folder)
    with torch.no_grad():
        for name, module in lora_layers(model):
            theirs = [one.removesuffix(".weight") for one in group_of(f"{name}.weight").theirs]
            pairs = [adapter.pairs.get(one) for one in theirs]
            if any(pair is None or not torch.equal(pair[0], pairs[0][0]) for pair in pairs):  # type: ignore[index]
                raise UserError(f"{adapter.file} has no single A for {', '.join(theirs)}: it is not of this run")
            _copy(module.lora_A, pairs[0][0], adapter.file)  # type: ignore[index]
            _copy(module.lora_B, torch.cat([pair[1] for pair in pairs if pair is not None]), adapter.file)
        parameters = {n: p for n, p in model.named_parameters() if not n.startswith("encoder.")}
        for group in groups_of(parameters):
            if any(name not in adapter.whole for name in group.theirs):
                raise UserError(f"{adapter.file} lacks {group.theirs[0]}: it is not of this run")
            widths = [parameters[name].shape[group.dim] for name in group.ours]
            for name, tensor in to_ours(group, adapter.whole, widths).items():
                _copy(parameters[name], tensor, adapter.file)


def _copy(parameter: nn.Parameter, tensor: Tensor, file: str) -> None:
    if parameter.shape != tensor.shape:
        raise UserError(f"{file}: a tensor has shape {list(tensor.shape)}, expected {list(parameter.shape)}")
    parameter.copy_(tensor)


def tokenizer_folder(folder: Path) -> Path:
    """The folder whose tokenizer a model folder uses: its own; of an adapter without one, its base's."""
    if is_adapter(folder) and not any((folder / name).is_file() for name in TOKENIZERS):
        return base_folder(folder)
    return folder

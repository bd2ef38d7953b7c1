"""A model on disk: a folder in the Hugging Face layout, read and written without loss.

    config.json          BERT's keys, the class for transformers, our own keys beside them
    model.safetensors    fp32 under Hugging Face's names (``weight_names``), the tied output matrix left out
    tokenizer.json, vocab.txt, tokenizer_config.json

``load_model`` reads such folders from anywhere, not only our own (``tensor_files`` says which files); what a folder lacks
is initialised from a seed and named in the report.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spanbert.checkpoint.weight_files import read_weights
from spanbert.checkpoint.weight_names import TIED, Group, groups_of, their_usual_name, to_ours, to_theirs
from spanbert.config import read_json, save_json
from spanbert.errors import UserError
from spanbert.files import atomic_folder
from spanbert.model import models
from spanbert.model.config import EncoderConfig
from spanbert.tokenizer.wordpiece import Tokenizer

M = TypeVar("M", bound=nn.Module)

#: Our classes → the class that transformers' ``from_pretrained`` should take for the same folder.
ARCHITECTURES = {
    models.SpanBertForPretraining: "BertForMaskedLM",
    models.SpanBertForQuestionAnswering: "BertForQuestionAnswering",
    models.SpanBertForTokenClassification: "BertForTokenClassification",
    models.SpanBertForSequenceClassification: "BertForSequenceClassification",
}

#: Key of config.json: heads ("mlm", "sbo") whose stored numbers are only an initialisation.
UNTRAINED = "untrained_heads"

#: Our name of a head → the beginning of its tensors' names in a file, where the two differ.
HEADS = {"mlm": "cls.predictions.", "sbo": "cls.pair_target_predictions."}


@dataclass(frozen=True)
class LoadReport:
    """What ``load_model`` found. Names are those of the file (Hugging Face's spelling)."""

    file: str
    loaded: tuple[str, ...]
    initialised: tuple[str, ...]
    """The model has them, the file does not (or its config calls their head untrained)."""
    unused: tuple[str, ...]
    """The file has them, the model does not."""
    config: dict[str, Any]
    """config.json as it stands, with extra keys such as a null threshold."""

    def __str__(self) -> str:
        lines = [f"{self.file}: {len(self.loaded)} tensors loaded"]
        untrained = [head for head in self.config.get(UNTRAINED, ()) if self.loaded_any(head)]
        if untrained:
            lines.append(f"  initialised when it was imported, not trained yet: {', '.join(untrained)}")
        if self.initialised:
            lines.append(f"  initialised, not in the file: {brief(self.initialised)}")
        if self.unused:
            lines.append(f"  ignored, not in this model: {brief(self.unused)}")
        return "\n".join(lines)

    def loaded_any(self, head: str) -> bool:
        return any(name.startswith(HEADS.get(head, f"{head}.")) for name in self.loaded)

    def has(self, head: str) -> bool:
        """Whether the weights of ``head`` ("mlm", "sbo", "qa_outputs", …) came from training, not from initialisation."""
        prefix = HEADS.get(head, f"{head}.")
        if head in self.config.get(UNTRAINED, ()):
            return False
        return self.loaded_any(head) and not any(name.startswith(prefix) for name in self.initialised)


def brief(names: Sequence[str]) -> str:
    """Tensor names for a log: ``a.dense.weight, a.dense.bias, a.bias`` → ``a.* (3 tensors)``, heads told apart."""
    count: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        stem = ".".join(parts[:2]) if parts[0] in ("bert", "cls") else parts[0]
        count[stem] = count.get(stem, 0) + 1
    return ", ".join(f"{stem}.* ({n} tensor{'s' * (n > 1)})" for stem, n in count.items())


def refuse_existing(output: Path) -> None:
    """UserError when ``output`` is there already (an empty folder is not): a command must not replace what it finds."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} already exists: name a new folder, or remove that one first")


# --- writing -----------------------------------------------------------------------------------------------------


def save_model(
    folder: Path | str, model: nn.Module, tokenizer: Tokenizer | None, extra_config: Mapping[str, Any] | None = None
) -> None:
    """Write ``folder`` whole or not at all, replacing an older one."""
    with atomic_folder(folder) as aside:
        write_model(aside, model, tokenizer, extra_config)


def write_model(
    folder: Path, model: nn.Module, tokenizer: Tokenizer | None, extra_config: Mapping[str, Any] | None = None
) -> None:
    """Write the files of a model into an existing folder that the caller makes atomic (a checkpoint adds its own)."""
    tensors = to_theirs({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    config = hub_config(model.config, ARCHITECTURES.get(type(model), "BertModel"))
    config.update(extra_config or {})
    classifier = getattr(model, "classifier", None)
    if classifier is not None and "id2label" not in config:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(classifier.out_features)}
        config["label2id"] = {label: int(i) for i, label in config["id2label"].items()}
    write_tensors(folder, tensors, config)
    if tokenizer is not None:
        tokenizer.save(folder)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """model.safetensors and config.json; ``dtype`` in the config is set from the tensors."""
    (dtype,) = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point()}
    save_json({**config, "dtype": dtype}, folder / "config.json")
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors makes it private to the user


def hub_config(config: EncoderConfig, architecture: str) -> dict[str, Any]:
    """``config.json`` as transformers expects it for a BERT of this shape; our SBO keys stay under their own names."""
    return {
        "architectures": [architecture],
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        **dataclasses.asdict(config),
    }


# --- reading -----------------------------------------------------------------------------------------------------


def load_model(
    folder: Path | str,
    cls: type[M],
    *,
    seed: int = 0,
    config_overrides: Mapping[str, Any] | None = None,
    **init: Any,
) -> tuple[M, LoadReport]:
    """Build ``cls`` with the shape and weights of a Hugging Face-layout folder, on the CPU, in fp32.

    Args:
        folder: config.json beside safetensors (whole or shards) or pytorch_model.bin.
        seed: of the initialisation of what the folder lacks; PyTorch's global generator is left alone.
        config_overrides: fields of EncoderConfig to change, e.g. dropout.
        init: passed to ``cls`` (``backend``, ``num_labels``; the latter by default from the folder's ``id2label``).

    Raises UserError when a file is missing or broken, a shape differs, or there is no encoder in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict):
        raise UserError(f"{folder / 'config.json'}: expected a JSON object with BERT's keys")
    tensors, file = read_weights(folder)
    tensors = usual_names(tensors, f"{folder}/{file}")
    config = encoder_config(raw, f"{folder}/config.json", tensors)
    config = dataclasses.replace(config, **(config_overrides or {}))
    if cls in (models.SpanBertForTokenClassification, models.SpanBertForSequenceClassification):
        init.setdefault("num_labels", len(raw.get("id2label") or range(2)))
    model = build_model(cls, config, seed, **init)
    return model, fill_model(model, tensors, f"{folder}/{file}", raw)


def build_model(cls: type[M], config: EncoderConfig, seed: int, **init: Any) -> M:
    """A freshly initialised model that is a function of (cls, config, seed) and disturbs no other randomness."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config, **init)


def fill_model(model: nn.Module, tensors: Mapping[str, Tensor], file: str, raw_config: dict[str, Any]) -> LoadReport:
    """Copy a file's tensors (usual names, any dtype) into ``model``; what is absent stays as it is.

    Raises UserError on a shape that differs and when some of the encoder is missing.
    """
    targets = dict(model.named_parameters())
    loaded: list[str] = []
    initialised: list[str] = []
    with torch.no_grad():
        for group in groups_of(targets):
            if not all(name in tensors for name in group.theirs):
                initialised += group.theirs
                continue
            _check_shapes(group, tensors, targets, file)
            widths = [targets[name].shape[group.dim] for name in group.ours]
            for name, part in to_ours(group, tensors, widths).items():
                targets[name].copy_(part)
            loaded += group.theirs
    encoder = ("bert.embeddings.", "bert.encoder.")
    missing = [name for name in initialised if name not in tensors and name.startswith(encoder)]
    if missing:
        raise UserError(f"{file} lacks {len(missing)} of the encoder's tensors, {missing[0]!r} first: is it a BERT?")
    unused = set(tensors) - set(loaded)
    return LoadReport(file, tuple(loaded), tuple(initialised), tuple(sorted(unused)), raw_config)


def usual_names(tensors: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Tensors under the names of ``weight_names``, without tied copies and buffers.

    Raises UserError when two entries claim one name.
    """
    usual: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        known = their_usual_name(name)
        if known in TIED or known.endswith((".position_ids", ".token_type_ids")):
            continue
        if known in usual:
            raise UserError(f"{file} holds {known!r} twice, the second time as {name!r}: two models in one file?")
        usual[known] = tensor
    for head in ("cls.predictions", "cls.pair_target_predictions"):
        bias = usual.pop(f"{head}.decoder.bias", None)
        if bias is not None:
            usual.setdefault(f"{head}.bias", bias)
    return usual


def _check_shapes(group: Group, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], file: str) -> None:
    ours = [list(targets[name].shape) for name in group.ours]
    expected = list(ours[0])
    expected[group.dim] = sum(shape[group.dim] for shape in ours) // len(group.theirs)
    for name in group.theirs:
        if list(tensors[name].shape) != expected:
            raise UserError(
                f"{file}: {name} has shape {list(tensors[name].shape)}, but its configuration says {expected}"
            )


def encoder_config(raw: Mapping[str, Any], source: str, tensors: Mapping[str, Tensor]) -> EncoderConfig:
    """Our part of a Hugging Face ``config.json``; the SBO table's size, which BERT's keys lack, from the tensors.

    Raises UserError for architectures that are not BERT's.
    """
    kind = raw.get("model_type", "bert")
    if kind != "bert":
        raise UserError(f"{source} describes a {kind!r} model: only 'bert' has this encoder's architecture")
    if raw.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{source}: hidden_act {raw['hidden_act']!r} is not BERT's 'gelu'; the weights would misbehave")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"{source}: position_embedding_type {raw['position_embedding_type']!r}; only 'absolute' exists here"
        )
    fields = {field.name for field in dataclasses.fields(EncoderConfig)}
    values = {key: value for key, value in raw.items() if key in fields and value is not None}
    table = tensors.get("cls.pair_target_predictions.position_embeddings.weight")
    if table is not None:
        values["sbo_positions"], values["sbo_position_size"] = table.shape
    return EncoderConfig(**values)

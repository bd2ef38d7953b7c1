"""``spanbert export`` of an adapter: the folder that ``peft`` puts over a model of transformers."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from spanbert.checkpoint.adapter import (
    CONFIG,
    TENSORS,
    WRAPPED,
    Adapter,
    base_folder,
    read_adapter,
    tokenizer_folder,
)
from spanbert.checkpoint.architectures import BARE_ENCODER
from spanbert.config import read_json_object, save_json
from spanbert.errors import UserError
from spanbert.files import atomic_folder
from spanbert.tokenizer.wordpiece import Tokenizer


def export_adapter(folder: Path, output: Path, part: str) -> None:
    """Write the adapter of ``folder`` with the place of its base as it is found here.

    part: "all", for the class with the task's head, or "encoder", for a bare ``BertModel``, whose names have no ``bert.``
    in front. Raises UserError for another part.
    """
    if part not in ("all", "encoder"):
        raise UserError(f"{folder} is an adapter: --task all or --task encoder, or write the whole model with --merge")
    adapter, base = read_adapter(folder), base_folder(folder)
    stated = read_json_object(folder / CONFIG, "an adapter's options")
    own = read_json_object(folder / "config.json", "BERT's keys") if (folder / "config.json").is_file() else {}
    stated["base_model_name_or_path"] = str(base.resolve())
    named = own.get("architectures") or [BARE_ENCODER]
    if part == "encoder":
        named = [BARE_ENCODER]
        stated["modules_to_save"] = None
    tokenizer = Tokenizer.load(tokenizer_folder(folder))
    with atomic_folder(output) as aside:
        tensors = _named(adapter, part)
        save_file(tensors, aside / TENSORS, metadata={"format": "pt"})
        save_json(stated, aside / CONFIG)
        if own:
            save_json({**own, "architectures": named}, aside / "config.json")
        tokenizer.save(aside)
        (aside / TENSORS).chmod((aside / CONFIG).stat().st_mode)  # safetensors makes it private to the user
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(f"from  {folder}")
    print(f"wrote {output}: an adapter of {numbers:,} numbers for {named[0]}, over {base}")
    print(
        f"next: peft.PeftModel.from_pretrained(transformers.{named[0]}.from_pretrained({str(base)!r}), {str(output)!r})"
    )


def _named(adapter: Adapter, part: str) -> dict[str, Tensor]:
    """Tensors under PEFT's names."""
    front = "bert." if part == "encoder" else ""
    tensors = {}
    for module, (a_RI, b_OR) in adapter.pairs.items():
        tensors[f"{WRAPPED}{module.removeprefix(front)}.lora_A.weight"] = a_RI.contiguous()
        tensors[f"{WRAPPED}{module.removeprefix(front)}.lora_B.weight"] = b_OR.contiguous()
    if part == "all":
        tensors |= {f"{WRAPPED}{name}": tensor.contiguous() for name, tensor in adapter.whole.items()}
    return tensors

"""Which of a model's parameters are trained: all, all but frozen parts, or the biases alone. A task's head always is."""

from __future__ import annotations

import re

from spanbert.errors import UserError
from spanbert.model.models import SpanBertModel


def freeze(model: SpanBertModel, parts: str) -> None:
    """``embeddings,0-3``: the embeddings and layers 0 to 3 stay as they are (dropout still falls on what they give).

    Raises UserError for what the model does not have.
    """
    encoder = model.encoder
    for part in parts.split(","):
        part = part.strip()
        layers = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if part == "embeddings":
            encoder.embeddings.requires_grad_(False)
        elif layers:
            first, last = int(layers[1]), int(layers[2] or layers[1])
            if not first <= last < len(encoder.layers):
                raise UserError(f"--freeze {part}: the model has layers 0 to {len(encoder.layers) - 1}")
            for layer in encoder.layers[first : last + 1]:
                layer.requires_grad_(False)
        else:
            raise UserError(f"--freeze {part}: expected embeddings, a layer or a range of layers such as 0-3")


def train_biases_only(model: SpanBertModel) -> None:
    """BitFit (Ben Zaken et al. 2022): of the encoder only the biases are trained, those of LayerNorm among them."""
    for name, parameter in model.encoder.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


def depth_of(parameter: str, layers: int) -> int:
    """How many blocks stand between a parameter (by its name) and the loss: 0 for a head, 1 for the last layer, …, and
    one more than the first layer has for the embeddings."""
    number = re.match(r"encoder\.layers\.(\d+)\.", parameter)
    if number:
        return layers - int(number[1])
    return layers + 1 if parameter.startswith("encoder.embeddings.") else 0

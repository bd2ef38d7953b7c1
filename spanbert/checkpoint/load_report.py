"""What loading a model found, for people to read and for commands that need a trained head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spanbert.checkpoint.architectures import UNTRAINED, all_heads, holds
from spanbert.checkpoint.store import stopped_early


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
    untied: Mapping[str, str] = field(default_factory=dict)
    """Heads ("mlm", "sbo") whose output matrix is not the word embeddings → that matrix's name in the file."""

    def __str__(self) -> str:
        lines = [f"{self.file}: {len(self.loaded)} tensors loaded"]
        stopped = stopped_early(self.config)
        if stopped:
            lines.append(f"  {stopped}")
        untrained = [head for head in self.marked_untrained if self.loaded_any(head)]
        if untrained:
            lines.append(f"  initialised when it was imported, not trained yet: {', '.join(untrained)}")
        lines += [f"  {untied_note(head, matrix)}" for head, matrix in self.untied.items() if self.loaded_any(head)]
        if self.initialised:
            lines.append(f"  initialised, not in the file: {brief(self.initialised)}")
        if self.unused:
            lines.append(f"  ignored, not in this model: {brief(self.unused)}")
        return "\n".join(lines)

    @property
    def marked_untrained(self) -> tuple[str, ...]:
        """Heads that config.json calls untrained."""
        return untrained_heads(self.config)

    def loaded_any(self, head: str) -> bool:
        """Whether the file had anything of ``head`` that the model takes."""
        return holds(self.loaded, all_heads()[head])

    def has(self, head: str) -> bool:
        """Whether the weights of ``head`` ("mlm", "sbo", "qa_outputs", …) came from training, not from initialisation.

        Those of a head whose output matrix is not the word embeddings did not: here the two are one.
        """
        if head in self.marked_untrained or head in self.untied:
            return False
        return self.loaded_any(head) and not holds(self.initialised, all_heads()[head])


def untrained_heads(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads of the table that a config.json calls untrained."""
    marked = config.get(UNTRAINED)
    return tuple(head for head in marked if head in all_heads()) if isinstance(marked, list) else ()


def untied_note(head: str, matrix: str) -> str:
    """One sentence on a head that predicts with a matrix of its own."""
    return (
        f"its {head.upper()} output matrix ({matrix}) is not its word embeddings; here they are one, so its "
        f"{head.upper()} head counts as untrained"
    )


def brief(names: Sequence[str]) -> str:
    """Tensor names for a log: ``a.dense.weight, a.dense.bias, a.bias`` → ``a.* (3 tensors)``, heads told apart."""
    count: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        stem = ".".join(parts[:2]) if parts[0] in ("bert", "cls") else parts[0]
        count[stem] = count.get(stem, 0) + 1
    return ", ".join(f"{stem}.* ({n} tensor{'s' * (n > 1)})" for stem, n in count.items())

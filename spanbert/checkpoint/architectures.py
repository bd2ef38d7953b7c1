"""The one table of heads and of the models that carry them. Loading, saving, import and export all read it.

A new task adds a row to ``ARCHITECTURES`` (and a ``Head``, when no row has one like it). Nothing else has to know: tensor
names, the class for transformers, what import keeps, what ``export --task`` offers and what may be missing from a file
all follow from the row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from spanbert.model import models

#: Key of config.json: heads ("mlm", "sbo") whose stored numbers are only an initialisation.
UNTRAINED = "untrained_heads"

#: Beginnings of the names, in a file, of what every model has.
ENCODER_PREFIXES = ("bert.embeddings.", "bert.encoder.")
WORDS = "bert.embeddings.word_embeddings.weight"
BARE_ENCODER = "BertModel"


@dataclass(frozen=True, eq=False)
class Head:
    """A part on top of the encoder: where it is in our models, and under which names it lies in a file."""

    name: str
    """Attribute of our models, and what reports call it."""
    prefix: str
    """Beginning of its tensors' names in a file, without the last dot."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Modules in it whose names differ, ours → the file's."""
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """A linear layer of the file → our layers whose matrices lie in it side by side; the last of them has the bias."""
    tied: bool = False
    """Its output matrix is the word embeddings; a file may hold that matrix once more, as ``decoder.weight``."""

    @property
    def start(self) -> str:
        """What all its tensors' names in a file begin with."""
        return f"{self.prefix}."

    @property
    def output_matrix(self) -> str | None:
        """Name in a file of the copy of the word embeddings, if there may be one."""
        return f"{self.prefix}.decoder.weight" if self.tied else None


@dataclass(frozen=True, eq=False)
class Architecture:
    """A row: one kind of model, with everything that the commands have to know about it."""

    task: str
    """What ``spanbert export --task`` calls it."""
    hub_class: str
    """The class of transformers that loads it."""
    model: type[models.SpanBertModel] | None
    """Our class; None for the bare encoder."""
    heads: tuple[Head, ...] = ()
    """Without these in a file, the file has no such model."""
    optional: tuple[Head, ...] = ()
    """Heads that belong to it where the file has them."""
    labels: str | None = None
    """The head that is as wide as the task has labels: its class takes ``num_labels``."""
    use: str = ""
    """Command that uses a finished model, with ``{folder}`` in it."""

    @property
    def all_heads(self) -> tuple[Head, ...]:
        return self.heads + self.optional


MLM = Head("mlm", "cls.predictions", {"dense": "transform.dense", "norm": "transform.LayerNorm"}, tied=True)
SBO = Head(
    "sbo",
    "cls.pair_target_predictions",
    {
        "position": "position_embeddings",
        "norm1": "mlp_layer_norm.layer_norm1",
        "dense2": "mlp_layer_norm.linear2",
        "norm2": "mlp_layer_norm.layer_norm2",
    },
    {"mlp_layer_norm.linear1": ("left", "right", "from_position")},
    tied=True,
)
POOLER = Head("pooler", "bert.pooler")
CLASSIFIER = Head("classifier", "classifier")

ARCHITECTURES: list[Architecture] = [
    Architecture("encoder", BARE_ENCODER, None, optional=(POOLER,)),
    Architecture(
        "pretraining",
        "BertForMaskedLM",
        models.SpanBertForPretraining,
        (MLM,),
        optional=(SBO,),
        use="spanbert fill {folder} 'a text with a [SPAN:2] in it'",
    ),
    Architecture(
        "qa",
        "BertForQuestionAnswering",
        models.SpanBertForQuestionAnswering,
        (Head("qa_outputs", "qa_outputs"),),
        use="spanbert ask {folder} --context FILE 'your question'",
    ),
    Architecture(
        "token-classification",
        "BertForTokenClassification",
        models.SpanBertForTokenClassification,
        (CLASSIFIER,),
        labels="classifier",
    ),
    Architecture(
        "sequence-classification",
        "BertForSequenceClassification",
        models.SpanBertForSequenceClassification,
        (POOLER, CLASSIFIER),
        labels="classifier",
    ),
    Architecture(
        "relation",
        BARE_ENCODER,  # transformers has no such class: it loads the encoder alone
        models.SpanBertForRelation,
        (Head("relation", "relation", joined={"dense": ("first", "second")}),),
        labels="relation",
        use="spanbert predict relation {folder} FILE",
    ),
]


def architecture_of(model: type[models.SpanBertModel]) -> Architecture:
    """The row of one of our classes, or of one made from it; for any other class, which is saved like one, the bare
    encoder's."""
    return next(
        (row for row in ARCHITECTURES if row.model is not None and issubclass(model, row.model)), ARCHITECTURES[0]
    )


def architecture_for(task: str) -> Architecture | None:
    """The row that ``export --task`` calls so, if there is one."""
    return next((row for row in ARCHITECTURES if row.task == task), None)


def all_heads() -> dict[str, Head]:
    """Every head of the table by its name."""
    return {head.name: head for row in ARCHITECTURES for head in row.all_heads}


def head_starts() -> tuple[str, ...]:
    """What the names of all heads' tensors begin with."""
    return tuple(head.start for head in all_heads().values())


def holds(names: Collection[str], head: Head) -> bool:
    """Whether any of these tensors of a file is the head's."""
    return any(name.startswith(head.start) for name in names)


def architectures_in(names: Collection[str]) -> list[Architecture]:
    """Rows all of whose heads are among these tensors of a file; the one with most heads first."""
    rows = [row for row in ARCHITECTURES if all(holds(names, head) for head in row.heads)]
    return sorted(rows, key=lambda row: -len(row.heads))

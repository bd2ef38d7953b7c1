"""The tasks that an encoder can be fine-tuned for, and their commands. Nothing is imported before a command is called."""

from __future__ import annotations

from typing import NamedTuple


class TaskRow(NamedTuple):
    """One task: the module with its three commands, and what it makes."""

    module: str
    """Has run_finetune, run_evaluate and run_predict, each of one config."""
    makes: str


#: word of the command line (``Task.name``) → row
TASKS = {
    "qa": TaskRow("finetune.tasks.qa.commands", "an extractive question-answering model"),
    "classify": TaskRow("finetune.tasks.classification.commands", "a text classifier"),
    "relation": TaskRow("finetune.tasks.relation.commands", "a classifier of relations"),
    "ner": TaskRow("finetune.tasks.ner.commands", "a model of named entities"),
}

VERBS = {
    "finetune": "train {makes}",
    "evaluate": "score {makes} on a labelled file",
    "predict": "write what {makes} predicts, as JSON lines",
}


def command_rows() -> dict[str, tuple[str, str, str]]:
    """Command words → (module, function, one line), as ``spanbert.cli`` has them."""
    return {
        f"{verb} {task}": (row.module, f"run_{verb}", line.format(makes=row.makes))
        for verb, line in VERBS.items()
        for task, row in TASKS.items()
    }

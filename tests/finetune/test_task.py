"""Every task of the table states what the shared loops ask for, and nothing is imported before it is needed."""

import importlib
import subprocess
import sys
import typing
from typing import Any

import pytest

from finetune.config import EvaluateConfig, FinetuneConfig, PredictConfig
from finetune.task import Task
from finetune.tasks import TASKS, VERBS, command_rows
from spanbert.checkpoint.architectures import ARCHITECTURES
from spanbert.cli import COMMANDS

BASES = {"finetune": FinetuneConfig, "evaluate": EvaluateConfig, "predict": PredictConfig}


def task_of(name: str) -> Any:
    module = importlib.import_module(TASKS[name].module)
    config = typing.get_type_hints(module.run_finetune)["config"]
    return config(train="train", output="output", init="random").task()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_states_all_that_the_protocol_names(name: str) -> None:
    task = task_of(name)
    wanted = {key for key in vars(Task) if not key.startswith("_")} | set(Task.__annotations__)
    assert {"name", "read", "encode", "loss", "decode", "score"} <= wanted
    assert [key for key in sorted(wanted) if not hasattr(task, key)] == []
    assert task.name == name
    assert type(task).of_model(task.model_config(), 512, "here") == task
    assert task.model in [row.model for row in ARCHITECTURES]


@pytest.mark.parametrize("words", command_rows())
def test_a_command_takes_the_shared_options_and_its_own(words: str) -> None:
    module, function, line = COMMANDS[words]
    config = typing.get_type_hints(getattr(importlib.import_module(module), function))["config"]
    assert issubclass(config, BASES[words.split()[0]])
    assert line


def test_the_table_makes_three_commands_of_each_task() -> None:
    assert len(command_rows()) == len(TASKS) * len(VERBS)


def test_the_table_and_the_reader_stay_light() -> None:
    """`spanbert --help` imports no stage, and `ask` neither the training nor its trackers and plots."""
    looked = (
        "import sys, {module}; heavy = [m for m in {names!r} if m in sys.modules]; "
        "sys.exit(f'imports {{heavy}}' if heavy else 0)"
    )
    for module, names in (
        ("spanbert.cli", ["torch", "tyro", "finetune.task", "numpy"]),
        ("finetune.tasks.qa.ask", ["finetune.train", "finetune.evaluate", "spanbert.training.metrics", "matplotlib"]),
    ):
        done = subprocess.run([sys.executable, "-c", looked.format(module=module, names=names)], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

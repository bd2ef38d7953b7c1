"""The front door: ``spanbert COMMAND …`` and ``python -m spanbert COMMAND …``.

A command is a frozen dataclass (its flags, with defaults and help) and a function that takes one. A stage's modules are
imported when its command is called, so ``spanbert --help`` is quick and a broken optional package hurts only its stage.
"""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
import typing
from collections.abc import Callable
from types import ModuleType

import spanbert


def _task_commands() -> dict[str, tuple[str, str, str]]:
    """The rows of the fine-tuning tasks: strings again, whose package imports nothing else."""
    return importlib.import_module("finetune.tasks").command_rows()


#: command words → (module, function, one line)
COMMANDS = {
    "tokenizer train": ("pretrain.data.train_tokenizer", "run_train_tokenizer", "train a cased WordPiece vocabulary"),
    "segment": ("pretrain.data.segment", "run_segment", "find the words of Chinese text, for masks of whole words"),
    "prepare": ("pretrain.data.prepare", "run_prepare", "turn text into blocks of tokens"),
    "init": (
        "pretrain.init_from_counts",
        "run_init",
        "make a new model from the corpus's counts, for short runs",
    ),
    "pretrain": ("pretrain.train", "run_pretrain", "pretrain with span masking, MLM and SBO"),
    **_task_commands(),
    "index": ("finetune.retrieval.build", "run_index", "make an index of documents, which ask answers from"),
    "calibrate": ("finetune.retrieval.calibrate", "run_calibrate", "learn how sure a model's answers are"),
    "ask": ("finetune.tasks.qa.ask", "run_ask", "answer questions over a text"),
    "serve": ("web.serve", "run_serve", "answer questions over HTTP, and on a page in the browser"),
    "explore": ("web.explorer.command", "run_explore", "see in the browser how a model masks, attends and answers"),
    "fill": ("pretrain.inspect.fill", "run_fill", "fill a masked span, e.g. 'The [SPAN:3] of France is Paris'"),
    "classify": (
        "finetune.tasks.classification.classify",
        "run_classify",
        "classify texts without training, by the word that fits a prompt",
    ),
    "masks": ("pretrain.inspect.show_masks", "run_masks", "show what span masking does to a text"),
    "runs": ("spanbert.training.list_runs", "run_runs", "list run folders: state, step, loss, speed"),
    "plot": ("spanbert.training.list_runs", "run_plot", "draw the curves of runs over one another"),
    "import": ("spanbert.checkpoint.import_bert", "run_import", "bring in a BERT or SpanBERT checkpoint"),
    "export": ("spanbert.checkpoint.export_hub", "run_export", "write a Hugging Face folder from a run or checkpoint"),
}

#: Words of the version before, which no help mentions → the words of this one.
OLD_WORDS = {"start": "init"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status (0 well, 2 the user's mistake, 1 any other failure, 128 + a signal:
    stopped by it).

    Without ``arguments`` those of the process are taken, which then is this command's alone.
    """
    from spanbert.terminal import OutputLost, open_missing_streams, safe_output

    import_module = _import_for_good if arguments is None else importlib.import_module
    if arguments is None:
        open_missing_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with safe_output():
            try:
                return _dispatch(arguments, import_module)
            finally:
                sys.stdout.flush()  # here, where what goes wrong can still be said
    except OutputLost as lost:
        if lost.reader_left:  # as in `spanbert … | head`
            return 0
        print(f"error: standard output cannot be written ({lost})", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str], import_module: Callable[[str], ModuleType]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"spanbert {spanbert.__version__}")
        return 0
    arguments[0] = OLD_WORDS.get(arguments[0], arguments[0])
    words = next((" ".join(arguments[:n]) for n in (2, 1) if " ".join(arguments[:n]) in COMMANDS), None)
    if words is None:
        return _unknown(arguments)
    return _run(words, arguments[len(words.split()) :], import_module)


def overview() -> str:
    """The text of ``spanbert --help``."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {words:<{width}}  {line}" for words, (_, _, line) in COMMANDS.items())
    return (
        "usage: spanbert COMMAND [OPTIONS]\n\n"
        "SpanBERT from scratch: from a folder of text to answered questions.\n\n"
        f"commands:\n{rows}\n\n"
        "spanbert COMMAND --help shows every option with its type, default and meaning."
    )


def _run(words: str, rest: list[str], import_module: Callable[[str], ModuleType]) -> int:
    import tyro

    from spanbert.errors import UserError, outside_cause
    from spanbert.terminal import OutputLost, untouched_output
    from spanbert.training.signals import Stopped

    module_name, function_name, line = COMMANDS[words]
    try:
        function = getattr(import_module(module_name), function_name)
        (config_class,) = (t for name, t in typing.get_type_hints(function).items() if name != "return")
        with untouched_output():  # help has colours of its own
            config = tyro.cli(config_class, args=rest, prog=f"spanbert {words}", description=line)
        function(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OutputLost:
        raise
    except Exception as error:
        reason = outside_cause(error)
        if reason is None:
            traceback.print_exc()
            reason = f"this is a bug in spanbert {spanbert.__version__}: please report it with the lines above"
        print(f"error: {reason}", file=sys.stderr)
        return 1
    return 0


def _import_for_good(name: str) -> ModuleType:
    """Import a stage's module into a process that does nothing else, out of the garbage collector's sight.

    PyTorch makes 170,000 objects that all stay. Looking through them again and again, and once more at the end, takes
    0.5 s of the 1.4 s of processor time of a short command.
    """
    gc.disable()
    module = importlib.import_module(name)
    gc.freeze()
    gc.enable()
    return module


def _unknown(arguments: list[str]) -> int:
    import difflib

    first = arguments[0]
    group = [words for words in COMMANDS if words.startswith(first + " ")]
    if group:
        listing = "\n".join(f"  spanbert {words}: {COMMANDS[words][2]}" for words in group)
        print(f"'{first}' needs a second word:\n{listing}", file=sys.stderr)
        return 0 if arguments[1:2] in (["-h"], ["--help"]) else 2
    near = difflib.get_close_matches(" ".join(arguments[:2]), COMMANDS, n=1) or difflib.get_close_matches(
        first, COMMANDS, n=1
    )
    hint = f"; did you mean '{near[0]}'?" if near else ""
    print(f"error: unknown command '{first}'{hint} `spanbert --help` lists them", file=sys.stderr)
    return 2

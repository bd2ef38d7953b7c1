"""A fine-tuning run's folder: what is logged, saved to resume from, evaluated, and left behind at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.config import MAY_DIFFER_ON_RESUME, FinetuneConfig
from finetune.evaluate import Evaluation, evaluate, listed, write_evaluation
from finetune.prepare import Prepared
from spanbert.checkpoint.model_folder import save_model, write_model
from spanbert.checkpoint.store import PROGRESS
from spanbert.checkpoint.training_state import load_training_state, save_training_state
from spanbert.distributed import Group
from spanbert.files import remove_folder, write_atomic
from spanbert.training.metrics import only_warned, plot_curves
from spanbert.training.resume import RunStart
from spanbert.training.step_log import BadStep, StepLog, bad_steps_in_a_row


@dataclass
class State:
    """Where a run stands, beside weights and moments."""

    log: StepLog
    """Of the steps since the last record: (labels, tokens) are counted, the loss is summed."""
    step: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0
    """Of training since the last record."""


class FinetuneRun:
    """One process's session of a run. Made first: it refuses what cannot be, before anything is read or written."""

    def __init__(self, config: FinetuneConfig, group: Group):
        self.config, self.group = config, group
        self.final = config.output / "model"
        self.start = RunStart(
            config.output, config, MAY_DIFFER_ON_RESUME, resume=config.resume, group=group,
            complete=lambda: (self.final / "config.json").is_file(),
        )  # fmt: skip
        if self.start.complete:
            group.print_main(f"{config.output} is complete; its model is {self.final}")

    def open(self, prepared: Prepared, optimizer: torch.optim.Optimizer) -> State:
        """Start the run's folder, or with --resume put the optimizer back → where to continue. All ranks call it."""
        self.prepared = prepared
        state = State(StepLog(self.group, counts=2))
        checkpoint = self.start.checkpoint
        if checkpoint is not None:
            stored = load_training_state(checkpoint, prepared.model, optimizer)
            log = StepLog(self.group, counts=2, stored=stored["log"])
            state = State(log, stored["step"], stored["bad_in_a_row"], stored["seconds"])
            self.group.print_main(f"resuming from {checkpoint}: step {state.step:,}")
        self.folder = self.start.open(state.step, prepared.identity, self.config.train)
        if self.folder is not None and prepared.report.lines:
            write_atomic(self.config.output / "skipped.txt", "\n".join(prepared.report.lines) + "\n")
        return state

    def report(self, state: State, *, epoch: float, lr: float) -> str:
        """Log the steps since the last record → a few words for the progress bar.

        Steps that were skipped are named. Raises UserError with advice when too many in a row were.
        """
        totals, bad, steps = state.log.close()
        seconds, state.seconds = state.seconds, 0.0
        words = ""
        if totals is not None:
            labels, tokens = totals.counts
            loss = totals.sums[0] / labels
            values = {"epoch": epoch, "loss": loss, "lr": lr, "gradient_norm": totals.norm}
            self._log(state.step, "train", **values, tokens=int(tokens), seconds=seconds)
            words = f"loss {loss:.3f}, {tokens / seconds:,.0f} tokens/s"
        limit = self.config.stop_after_bad_steps
        state.bad_in_a_row = bad_steps_in_a_row(state.bad_in_a_row, steps, bad, limit, self._report_bad)
        return words

    def _report_bad(self, bad: BadStep) -> None:
        self._log(bad.step, "skipped", reason=f"{bad.what} not finite")
        self.group.print_main(f"step {bad.step}: {bad.what} not finite, skipped")

    def _log(self, step: int, split: str, **values: float | str) -> None:
        if self.folder is not None:
            self.folder.log(step, split, **values)

    def save(self, state: State, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Write a checkpoint to resume from. All ranks call it.

        Until the last step it says that it is not the run's model, for whoever asks or evaluates it all the same.
        """
        counters = {
            "step": state.step,
            "bad_in_a_row": state.bad_in_a_row,
            "seconds": state.seconds,
            "log": state.log.stored(),
        }
        prepared = self.prepared
        config = prepared.task.model_config()
        if state.step < total_steps:
            config[PROGRESS] = {"step": state.step, "of": total_steps}

        def write(folder: Path) -> None:
            if self.group.is_main:
                write_model(folder, prepared.model, prepared.tokenizer, config)
            save_training_state(folder, prepared.model, optimizer, counters, self.group)

        self.start.store.save(state.step, write)

    def evaluate(self, step: int) -> Evaluation | None:
        """Score the model as it is on dev, with the settings that are best there, and log it. The main rank does it."""
        prepared, evaluation = self.prepared, None
        if self.group.is_main and prepared.dev is not None:
            evaluation = evaluate(prepared.task, prepared.model, prepared.dev, prepared.machine, tune=True)
            if not self._validated(step):  # by a session that was killed afterwards
                self._log(step, "validation", **evaluation.metrics)
            print(evaluation.task.describe(evaluation.metrics))
        self.group.barrier()
        return evaluation

    def _validated(self, step: int) -> bool:
        records = self.folder.metrics() if self.folder is not None else []
        return any(record["split"] == "validation" and record["step"] == step for record in records)

    def finish(self, step: int) -> None:
        """Evaluate, write the model with its settings, then predictions and curves; the checkpoints have served.

        What fails beside the model is a warning. Until the checkpoints are gone, a resumed run comes here again.
        """
        evaluation = self.evaluate(step)
        self.group.on_main(lambda: self._write(step, evaluation))

    def _write(self, step: int, evaluation: Evaluation | None) -> None:
        assert self.folder is not None
        output, prepared = self.config.output, self.prepared
        task = evaluation.task if evaluation is not None else prepared.task
        final, names = self.final, []
        save_model(final, prepared.model, prepared.tokenizer, task.model_config())
        if evaluation is not None:
            with only_warned(f"the predictions in {output}"):
                names = write_evaluation(output, evaluation)
        with only_warned(f"the curves in {output}"):
            plot_curves(self.folder.metrics(), ["loss"], output / "curves.png", output.name)
        with only_warned(f"{self.start.store.folder} is not removed"):
            remove_folder(self.start.store.folder)
        written = f"{listed(names)} beside it" if names else "no predictions" + " (no --dev)" * (evaluation is None)
        print(f"wrote {final} ({step:,} steps); {written}")
        for note in task.training_notes(evaluated=evaluation is not None):
            print(note)
        dev = self.config.dev or "FILE"
        print(f"next: spanbert evaluate {task.name} {final} {dev}   or   {task.next_command(final)}")

    def close(self) -> None:
        """Let go of the run's folder, whatever happened."""
        self.start.close()

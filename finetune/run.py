"""A fine-tuning run's folder: what is logged, saved to resume from, evaluated, and left behind at the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from finetune.config import MAY_DIFFER_ON_RESUME, FinetuneConfig
from finetune.evaluate import Evaluation, evaluate, listed, write_evaluation
from finetune.evaluation_schedule import Best
from finetune.model_card import model_card
from finetune.prepare import Prepared
from finetune.rehearsal import before_and_after, told
from finetune.task import Features
from spanbert.checkpoint.model_folder import restore_model, write_model
from spanbert.checkpoint.store import PROGRESS, prove_weights
from spanbert.checkpoint.training_state import load_training_state, save_training_state
from spanbert.config import save_json
from spanbert.distributed import Group
from spanbert.errors import UserError
from spanbert.files import atomic_folder, remove_folder, write_atomic
from spanbert.model.encoder import count_parameters
from spanbert.model.models import SpanBertModel
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
    best: Best = field(default_factory=Best)


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
            best = self._best_that_is_there(Best(**stored.get("best", {})))
            state = State(log, stored["step"], stored["bad_in_a_row"], stored["seconds"], best)
            self.group.print_main(f"resuming from {checkpoint}: step {state.step:,}")
        self.folder = self.start.open(state.step, prepared.identity, self.config.train)
        if self.folder is not None and prepared.skipped:
            write_atomic(self.config.output / "skipped.txt", "\n".join(prepared.skipped) + "\n")
        return state

    def _best_that_is_there(self, best: Best) -> Best:
        """``best``, unless its checkpoint is gone (a newer best one took its place, and was damaged): then none yet."""
        path = self.start.store.path_of(best.step)
        if best.score is None or self.group.on_main(path.is_dir):
            return best
        self.group.print_main(f"the best state before, {path}, is gone: the next evaluation makes another")
        return Best()

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
        """Write a checkpoint to resume from, scored when it is the best so far: that one is kept. All ranks call it.

        Until the last step is done, and judged where the best state is kept, it says that it is not the run's model, for
        whoever asks or evaluates it all the same.
        """
        counters = {
            "step": state.step,
            "bad_in_a_row": state.bad_in_a_row,
            "seconds": state.seconds,
            "log": state.log.stored(),
            "best": asdict(state.best),
        }
        prepared = self.prepared
        config = prepared.task.model_config()
        if state.step < total_steps or (self.config.keeps_best and state.best.heard < state.step):
            config[PROGRESS] = {"step": state.step, "of": total_steps}

        def write(folder: Path) -> None:
            if self.group.is_main:
                write_model(folder, prepared.model, prepared.tokenizer, config)
            save_training_state(folder, prepared.model, optimizer, counters, self.group)

        best = state.best
        lower_is_better = -best.score if best.score is not None and best.step == state.step else None
        self.start.store.save(state.step, write, lower_is_better)

    def evaluate(self, state: State) -> None:
        """Score the model as it is on dev, log it, and remember whether it is the best so far. All ranks call it."""
        evaluation = self._evaluate(self.prepared.dev)
        score = None
        if evaluation is not None:
            self._log(state.step, "validation", **evaluation.metrics)
            score = float(evaluation.metrics[evaluation.task.main_metric])
        score = self.group.broadcast(score)
        if self.config.keeps_best and score is not None:
            state.best.hear(state.step, score)

    def score_before(self) -> None:
        """With --rehearse-dev, log what the model scores on new and old data before it is trained. All ranks call it."""
        if self.prepared.old_dev is not None:
            self.group.on_main(self._score_before)

    def _score_before(self) -> None:
        for split, features in (("validation", self.prepared.dev), ("old", self.prepared.old_dev)):
            evaluation = self._evaluate(features)
            if evaluation is not None:
                self._log_once(0, split, evaluation)

    def _log_once(self, step: int, split: str, evaluation: Evaluation) -> None:
        """Unless a session that was killed afterwards did it."""
        records = self.folder.metrics() if self.folder is not None else []
        if not any(record["split"] == split and record["step"] == step for record in records):
            self._log(step, split, **evaluation.metrics)

    def _evaluate(self, features: Features | None) -> Evaluation | None:
        """The score on these examples, with the settings that are best there, on the main rank; None on the others."""
        prepared = self.prepared
        if not self.group.is_main or features is None:
            return None
        evaluation = evaluate(prepared.task, prepared.model, features, prepared.machine, tune=True)
        print(evaluation.task.describe(evaluation.metrics))
        return evaluation

    def finish(self, state: State, total_steps: int) -> None:
        """Evaluate, write the model with its settings, then predictions and curves; the checkpoints have served.

        The model is that of the last step, or the best one where that is kept. What fails beside it is a warning, but for
        the evaluation, whose error is raised once the model is written. Until the checkpoints are gone, a resumed run comes
        here again.
        """
        self.group.on_main(lambda: self._write(state, total_steps))

    def _write(self, state: State, total_steps: int) -> None:
        assert self.folder is not None
        output, prepared, best = self.config.output, self.prepared, state.best
        step = state.step
        if self.config.keeps_best:
            self._take_best(best)
            step = best.step
            print(f"the best state is that of step {best.step:,}, {prepared.task.main_metric} {best.score:.2f}")
        evaluation: Evaluation | None = None
        failed: Exception | None = None
        try:
            evaluation = self._evaluate(self.prepared.dev)
        except Exception as error:  # the model first
            failed = error
        if evaluation is not None and not self.config.keeps_best:
            self._log_once(step, "validation", evaluation)
        task = evaluation.task if evaluation is not None else prepared.task
        notes = [f"stopped at step {state.step:,} of {total_steps:,}"] if state.step < total_steps else []
        with only_warned("the scores before and after"):
            notes += self._before_and_after(step, evaluation)
        card = None
        with only_warned(f"the card of {self.final}"):  # it names files by their hashes, which may be gone by now
            card = model_card(
                task,
                self.config,
                examples=prepared.features.examples,
                steps=step,
                parameters=trained_parameters(prepared.model),
                metrics=evaluation.metrics if evaluation is not None else None,
                notes=notes,
            )
        final, names = self.final, []
        with atomic_folder(final) as aside:
            write_model(aside, prepared.model, prepared.tokenizer, task.model_config())
            prove_weights(aside)
            if card is not None:
                write_atomic(aside / "README.md", card)
        if evaluation is not None:
            with only_warned(f"the predictions in {output}"):
                names = write_evaluation(output, evaluation)
        curves = ["loss", task.main_metric] if evaluation is not None else ["loss"]
        with only_warned(f"the curves in {output}"):
            plot_curves(self.folder.metrics(), curves, output / "curves.png", output.name)
        if failed is not None:
            print(f"wrote {final} ({step:,} steps) with untuned settings: its evaluation failed; --resume repeats it")
            raise failed
        with only_warned(f"{self.start.store.folder} is not removed"):
            remove_folder(self.start.store.folder)
        written = f"{listed(names)} beside it" if names else "no predictions" + " (no --dev)" * (evaluation is None)
        print(f"wrote {final} ({step:,} steps); {written}")
        for note in task.training_notes(evaluated=evaluation is not None):
            print(note)
        dev = self.config.dev or "FILE"
        print(f"next: spanbert evaluate {task.name} {final} {dev}   or   {task.next_command(final)}")

    def _before_and_after(self, step: int, new: Evaluation | None) -> list[str]:
        """With --rehearse-dev: score the old data again, write before_after.json → the lines that it says."""
        old = self._evaluate(self.prepared.old_dev)
        if old is None or new is None or self.folder is None:
            return []
        self._log_once(step, "old", old)
        after = {"new": new.metrics, "old": old.metrics}
        scores = before_and_after(self.folder.metrics(), after, new.task.main_metric)
        save_json(scores, self.config.output / "before_after.json")
        lines = told(scores)
        print("\n".join(lines))
        return lines

    def _take_best(self, best: Best) -> None:
        """Put the weights of the best state into the model. Raises UserError when its checkpoint is damaged or gone."""
        path = self.start.store.best_whole()
        if path != self.start.store.path_of(best.step):
            raise UserError(
                f"{self.start.store.folder} has no whole checkpoint of step {best.step:,}, the best one: train again in "
                "another --output"
            )
        restore_model(self.prepared.model, path)

    def close(self) -> None:
        """Let go of the run's folder, whatever happened."""
        self.start.close()


def trained_parameters(model: SpanBertModel) -> str:
    """``23,456 of 11,234,567 parameters are trained (0.21%)``, or how many there are when all of them are trained."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    every = count_parameters(model)
    return (
        f"{every:,} parameters"
        if trained == every
        else f"{trained:,} of {every:,} parameters are trained ({trained / every:.2%})"
    )

"""What a run leaves behind: checkpoints on the way, and at the end the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pretrain.run import PretrainRun
from spanbert.checkpoint.architectures import UNTRAINED
from spanbert.checkpoint.model_folder import write_model
from spanbert.checkpoint.store import PROGRESS, prove_weights
from spanbert.checkpoint.training_state import is_sharded, save_training_state
from spanbert.files import atomic_folder
from spanbert.model.models import SpanBertForPretraining
from spanbert.training.metrics import only_warned, plot_curves
from spanbert.training.run_folder import report_lost_folder
from spanbert.training.step_log import StepLog


class Saver:
    """Writes the checkpoints of a run and its final model. All ranks have one and call it alike."""

    def __init__(self, run: PretrainRun, log: StepLog):
        self.run, self.log = run, log
        self.saved_step = run.counters.step if run.start.checkpoint else -1

    def save(self, score: float | None) -> None:
        """Write a checkpoint of this step, unless there is one. score: its validation loss, if it has one.

        Raises UserError when the disk is full or the run's folder is gone; what was saved before stands.
        """
        run, counters = self.run, self.run.counters
        counters.window = self.log.stored()
        if self.saved_step == counters.step:
            return
        whole = self._whole_model()

        def write(folder: Path) -> None:
            if run.group.is_main:
                write_model(folder, whole, run.data.tokenizer, {**self._untrained, **self._progress})
            save_training_state(folder, run.model, run.step.optimizer, dataclasses.asdict(counters), run.group)

        with report_lost_folder(run.config.output):
            if run.folder is not None:
                run.folder.check_there()
            run.start.store.save(counters.step, write, score)
        self.saved_step = counters.step

    def finish(self, baseline: dict[str, float], stopped: bool) -> None:
        """Write the model unless the run was stopped, then draw the curves; says what to do next."""
        run, counters = self.run, self.run.counters
        final = run.config.output / "model"
        whole = self._whole_model()
        if run.folder is None:
            return
        if not stopped:
            with report_lost_folder(run.config.output), atomic_folder(final) as aside:
                write_model(aside, whole, run.data.tokenizer, self._untrained)
                prove_weights(aside)
        names = ["mlm_loss", "sbo_loss"] if run.config.sbo else ["mlm_loss"]
        curves = run.config.output / "curves.png"
        drawn = False
        with only_warned(f"the curves in {curves}"):
            drawn = plot_curves(run.folder.metrics(), names, curves, run.config.output.name, baseline)
        run.folder.close()
        and_curves = f", curves in {curves}" if drawn else ""
        if stopped:
            print(
                f"stopped at step {counters.step:,} of {self._steps_in_all}, saved in {run.start.store.folder}{and_curves}\n"
                "to continue: the same command and --resume"
            )
            return
        print(
            f"wrote {final} ({counters.step:,} steps, {counters.tokens:,} tokens, {counters.seconds / 60:.1f} minutes)"
            f"{and_curves}\nnext: spanbert fill {final} 'a text with a [SPAN:2] in it'   or   "
            f"spanbert finetune qa --init {final} --train train-v1.1.json --output RUN"
        )

    @property
    def _untrained(self) -> dict[str, list[str]]:
        """For config.json: a head that this run never trained is not to be taken for a trained one."""
        return {} if self.run.config.sbo else {UNTRAINED: ["sbo"]}

    @property
    def _progress(self) -> dict[str, Any]:
        """For config.json: a checkpoint from before the end is not to be taken for the run's model."""
        run = self.run
        if run.schedule.done(run.counters):
            return {}
        return {PROGRESS: {"step": run.counters.step, "of": run.schedule.steps_in_all(run.counters)}}

    @property
    def _steps_in_all(self) -> str:
        about = "" if self.run.schedule.unit == "steps" else "about "
        return f"{about}{self.run.schedule.steps_in_all(self.run.counters):,}"

    def _whole_model(self) -> SpanBertForPretraining:
        """The model in one piece; of a sharded one a copy on the main rank's host."""
        model = self.run.model
        if not is_sharded(model):
            return model
        from spanbert.checkpoint.sharded_state import whole_weights

        weights = whole_weights(model)
        if not self.run.group.is_main:
            return model
        whole = SpanBertForPretraining(model.config)
        whole.load_state_dict(weights)
        return whole

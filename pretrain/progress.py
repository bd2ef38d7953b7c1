"""What a run says while it trains: what to expect, a bar, records in metrics.jsonl, validations."""

from __future__ import annotations

import time
from typing import Self

from tqdm import tqdm

from pretrain.metrics import summarise, total_loss
from pretrain.run import PretrainRun
from pretrain.step import Agreed
from spanbert.device import PeakFlops, describe
from spanbert.model.encoder import count_parameters, train_flops_per_token
from spanbert.training.step_log import BadStep, StepLog, bad_steps_in_a_row

#: The bar of a run that is told in minutes: how many steps a minute takes is in the figures behind it.
MINUTES_BAR = "{l_bar}{bar}| {n:.1f} of {total:g} min{postfix}"


class Progress:
    """Reports of one session, for all ranks; the main one writes and prints them.

    Attributes: baseline, the unigram losses by name; score, the total loss of the last validation.
    """

    def __init__(self, run: PretrainRun, log: StepLog):
        self.run, self.log = run, log
        model = run.model
        self.baseline = run.data.validation.unigram_baseline(run.data.unigram_V)
        self._peak = PeakFlops(run.group.device, run.precision, model.config.hidden_size, run.group.world)
        self._scored_step, self._score = run.group.broadcast(self._last_validation())
        self._tokens, self._states, self._seconds = 0, 0, 0.0
        self._say_what_to_expect()
        schedule = run.schedule
        self.bar = tqdm(
            total=schedule.total, initial=schedule.position(run.counters), unit=schedule.unit, dynamic_ncols=True,
            unit_scale=schedule.unit == "tokens", mininterval=0.5, disable=not run.group.is_main,
            bar_format=MINUTES_BAR if schedule.unit == "min" else None,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._began = time.perf_counter() - self.run.counters.seconds
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    @property
    def score(self) -> float | None:
        """The total loss of this very step's validation; None when there was none."""
        return self._score if self._scored_step == self.run.counters.step else None

    def seconds(self) -> float:
        """Wall-clock time of the run up to now, earlier sessions included."""
        return time.perf_counter() - self._began

    def validate(self) -> None:
        """Score the model on the held-out blocks, unless this step has been. All ranks must call it."""
        run, counters = self.run, self.run.counters
        if run.data.validation.empty or self._scored_step == counters.step:
            return
        scores = run.data.validation.run(run.parallel, run.precision, run.config.sbo)
        if run.folder is not None:
            run.folder.log(counters.step, "validation", **scores, tokens=counters.tokens)
        self._scored_step, self._score = counters.step, total_loss(scores)
        parts = [
            f"{name.upper()} {scores[f'{name}_loss']:.3f} nats (unigram {self.baseline[f'{name}_loss']:.3f}), "
            f"accuracy {scores[f'{name}_accuracy']:.1%}, perplexity {scores[f'{name}_perplexity']:,.1f}"
            for name in ("mlm", "sbo")
            if f"{name}_loss" in scores
        ]
        if run.group.is_main:
            self.bar.write(f"step {counters.step:,} validation: " + " · ".join(parts))

    def step_taken(self, agreed: Agreed, lr: float, started: float) -> None:
        """Count a step, and report the steps since the last report when it is time. All ranks must call it.

        started: when the step began, by ``time.perf_counter``. Raises UserError when too many steps in a row were not
        finite.
        """
        run, counters = self.run, self.run.counters
        reports = counters.step % run.config.log_every == 0
        if reports:
            self.log.settle()  # waits for the device, so it belongs to the time that the steps took
        self._tokens += agreed.tokens
        self._states += agreed.states
        self._seconds += time.perf_counter() - started
        self.bar.update(run.schedule.position(counters) - self.bar.n)
        if reports:
            rate = self._tokens / self._seconds
            self._report(lr, rate, self._peak.utilisation(rate * self._flops_per_token()))
            self._tokens, self._states, self._seconds = 0, 0, 0.0

    def _flops_per_token(self) -> float:
        config, shape = self.run.config, self.run.model.config
        states = self._states / max(self._tokens, 1)
        return train_flops_per_token(shape, self.run.data.attended, config.mask.mask_share, config.sbo, states)

    def _report(self, lr: float, tokens_per_second: float, utilisation: float) -> None:
        run, counters = self.run, self.run.counters
        totals, bad, steps = self.log.close()
        if totals is not None:
            values = summarise(totals.sums, totals.counts, run.config.sbo) | {"gradient_norm": totals.norm}
            if run.folder is not None:
                run.folder.log(
                    counters.step, "train", **values, lr=lr, tokens=counters.tokens,
                    tokens_per_second=tokens_per_second, model_flops_utilisation=utilisation,
                )  # fmt: skip
            shown = {name: f"{values[f'{name}_loss']:.3f}" for name in ("mlm", "sbo") if f"{name}_loss" in values}
            shown |= {"tokens/s": f"{tokens_per_second:,.0f}", "mfu": f"{utilisation:.0%}"}
            self.bar.set_postfix(shown, refresh=False)
        counters.bad_in_a_row = bad_steps_in_a_row(
            counters.bad_in_a_row, steps, bad, run.config.stop_after_bad_steps, self._report_skipped,
            advice="--replay {step} shows where it arises",
        )  # fmt: skip

    def _report_skipped(self, step: BadStep) -> None:
        """A step that was skipped is logged with the blocks that it saw, where these follow from its number."""
        run = self.run
        where = {} if run.config.stream else run.data.order.locate(step.step - 1)
        if run.folder is not None:
            run.folder.log(step.step, "skipped", reason=f"{step.what} not finite", **where)
        run.group.print_main(
            f"step {step.step}: {step.what} not finite, skipped; look at it with the same command and --replay {step.step}"
        )

    def _last_validation(self) -> tuple[int, float | None]:
        """Step and score of this very step's validation, when an earlier session did it; else −1."""
        step = self.run.counters.step
        for record in self.run.folder.metrics() if self.run.folder is not None else []:
            if record["split"] == "validation" and record["step"] == step:
                return step, total_loss(record)
        return -1, None

    def _say_what_to_expect(self) -> None:
        run = self.run
        named = ", ".join(f"{name[:3].upper()} {nats:.3f} nats" for name, nats in self.baseline.items())
        run.group.print_main(
            f"{count_parameters(run.model):,} parameters · {len(run.data.blocks):,} blocks of up to "
            f"{run.data.blocks.block_length} tokens · {run.schedule} · steps of {run.config.batch_size} blocks, passes of "
            f"{run.budget:,} tokens, {run.group.world} × {describe(run.group.device)} · {run.precision} · "
            f"attention: {run.model.encoder.backend} · measured peak {self._peak.value / 1e9:,.0f} GFLOP/s\n"
            f"unigram baseline: {named or 'none, for there are no held-out blocks to validate on'}"
        )

"""``spanbert pretrain … --replay STEP``: go to a step that went wrong, exactly as training did, and look at it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pretrain.data.batches import StepBatch
from pretrain.metrics import summarise
from pretrain.run import PretrainRun
from pretrain.step import TargetCounts, agree, step_loss


def replay(run: PretrainRun) -> None:
    """Train from the last checkpoint before ``config.replay`` up to it, then examine it. Writes nothing.

    Order, masks and dropout are those of the run, so on a CPU the weights are too, bit by bit; with --minutes the
    learning rate followed the clock, and they are close.
    """
    group, counters, last = run.group, run.counters, run.config.replay
    group.print_main(f"repeating the steps from {counters.step + 1} to {last}")
    run.parallel.train()
    for batch in run.batches():
        agreed = agree(group, batch, run.config.sbo, counters.seconds)
        if counters.step + 1 == last:
            examine(run, batch, agreed.counts)
            return
        run.take(run.gradients(batch, agreed.counts))
        counters.step += 1
        counters.tokens += agreed.tokens


def examine(run: PretrainRun, batch: StepBatch, counts: TargetCounts) -> None:
    """Print for each micro-batch its sequences, losses and gradient, and where the first number is not finite."""
    rank = f"rank {run.group.rank}, " if run.group.world > 1 else ""
    loss = step_loss(counts, run.config.sbo, run.group.device)
    parts = zip(run.micro_batches(batch), batch.addresses, strict=True)
    for number, (micro_batch, (epochs, indices)) in enumerate(parts):
        run.step.optimizer.zero_grad(set_to_none=True)
        with _watched(run.model) as seen:
            sums = run.step.backward(batch.step, number, micro_batch, loss).tolist()
        targets = TargetCounts(micro_batch.targets.ids_M.numel(), micro_batch.targets.sbo_K.numel())
        means = summarise(sums, targets, run.config.sbo)
        gradients = {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None}
        broken = [name for name, gradient in gradients.items() if not _finite(gradient)]
        norm = math.sqrt(sum(float(_local(g).double().square().sum()) for g in gradients.values()))
        losses = ", ".join(f"{name[:3].upper()} {means[name]:.4f}" for name in means if name.endswith("loss"))
        print(f"{rank}micro-batch {number}: {micro_batch.packed.tokens} tokens, {losses}, gradient norm {norm:.4g}")
        print(f"  epoch {sorted(set(epochs.tolist()))}, blocks {indices.tolist()}")
        if not seen and not broken:
            print("  everything is finite")
        if seen:
            print(f"  the first output that is not finite: {seen[0]}")
        if broken:
            print(f"  gradients that are not finite: {len(broken)}, among them {broken[-1]}")
    run.step.optimizer.zero_grad(set_to_none=True)


class _watched:
    """While active, collects the names of modules whose output is not finite, in the order of the forward pass."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._seen: list[str] = []

    def __enter__(self) -> list[str]:
        def hook(name: str) -> Callable[[nn.Module, object, object], None]:
            def look(_module: nn.Module, _inputs: object, output: object) -> None:
                if isinstance(output, Tensor) and not _finite(output):
                    self._seen.append(name)

            return look

        self._hooks = [m.register_forward_hook(hook(name)) for name, m in self._model.named_modules() if name]
        return self._seen

    def __exit__(self, *_: object) -> None:
        for handle in self._hooks:
            handle.remove()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(_local(tensor.detach())).all())

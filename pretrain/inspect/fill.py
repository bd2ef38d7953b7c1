"""``spanbert fill``: predict a masked span of several tokens with the MLM head, the SBO head, or both.

``[SPAN:n]`` in a text stands for n masked tokens, ``[SPAN:a-b]`` for any number from a to b, ``[MASK]`` for one. What the
heads expect there is ``spanbert/spans/log_probs.py``'s to say; here the best fills are found and shown.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.checkpoint.store import find_model
from spanbert.config import check_range
from spanbert.device import choose_device
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForPretraining
from spanbert.spans.log_probs import Head, check_width, choose_head, span_log_probs
from spanbert.spans.template import Template, parse_template
from spanbert.terminal import colour as colour_code
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import encoder_path

#: More combinations of lengths than this (several ``[SPAN:a-b]`` in one text) are refused.
MOST_COMBINATIONS = 256
BATCH = 16
#: Of a token: exp gives 0 below it, and only weights that are no weights come there.
LEAST_LOG_PROBABILITY = -700.0


@dataclass(frozen=True)
class FillConfig:
    """Fill the [SPAN:n] of a text."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model folder or run; left out, the bundled model predicts."""
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = ""
    """Text with [SPAN:3] (three tokens), [SPAN:1-4] (one to four) or [MASK] (one) in it."""
    head: Literal["auto", "mlm", "sbo", "both"] = "auto"
    """Which head predicts; auto: every head that has been trained."""
    top_k: int = 5
    """Candidates, and tokens for each position."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Who computes attention."""


@dataclass(frozen=True)
class Token:
    """What one masked position might be."""

    token: str
    probability: float


@dataclass(frozen=True)
class Candidate:
    """One way to fill all spans of a text."""

    fills: tuple[str, ...]
    """The text of each span."""
    tokens: tuple[tuple[str, ...], ...]
    log_probability: float
    """Sum over the tokens, in nats."""
    mean_log_probability: float
    """Per token: what candidates of different lengths are ranked by."""


@dataclass(frozen=True)
class Filled:
    """All there is to say about a text: candidates, best first, and the tokens of each position of the best lengths."""

    candidates: list[Candidate]
    positions: list[list[Token]]
    template: Template


def run_fill(config: FillConfig) -> None:
    """Load, predict, print."""
    text, path = (config.text, Path(config.model)) if config.text else (config.model, encoder_path())
    check_range(config, 1, 1_000, "top_k")  # the search over a span's tokens takes their square
    device = choose_device(config.device)
    folder = find_model(path)
    model, tokenizer, report = load_model_and_tokenizer(folder, SpanBertForPretraining)
    template = parse_template(text, tokenizer, model.config.max_position_embeddings)
    head = choose_head(config.head, report, str(path))
    model.place(device, config.backend).eval()
    result = fill(model, tokenizer, template, head, config.top_k)
    print(render(result, head, folder, colour=sys.stdout.isatty()))


@torch.inference_mode()
def fill(model: SpanBertForPretraining, tokenizer: Tokenizer, template: Template, head: Head, top_k: int) -> Filled:
    """The ``top_k`` best fills over all lengths that the template allows, ranked by mean log-probability per token.

    Positions are independent given the text, so the best fills of given lengths are exact, not searched for.
    Raises UserError when the text is too long for the model, or a span for the SBO head's table.
    """
    count = math.prod(blank.longest - blank.shortest + 1 for blank in template.blanks)
    if count > MOST_COMBINATIONS:
        raise UserError(f"the spans allow {count} combinations of lengths, at most {MOST_COMBINATIONS} are tried")
    longest = template.visible_tokens + sum(blank.longest for blank in template.blanks) + 2
    if longest > model.config.max_position_embeddings:
        raise UserError(
            f"the text has {longest} tokens, the model takes {model.config.max_position_embeddings}: shorten it around the span"
        )
    combinations = list(itertools.product(*(range(blank.shortest, blank.longest + 1) for blank in template.blanks)))
    widest = max(max(lengths) for lengths in combinations)
    check_width(model, head, widest)
    scored: list[tuple[Candidate, Tensor]] = []
    for start in range(0, len(combinations), BATCH):
        some = combinations[start : start + BATCH]
        sequences = [template.with_masks(lengths, tokenizer) for lengths in some]
        for lengths, found_MV in zip(some, span_log_probs(model, tokenizer, sequences, head), strict=True):
            log_probs_MV = found_MV.cpu()
            found = best_fills(log_probs_MV, lengths, tokenizer, top_k)
            scored += [(one, log_probs_MV) for one in found if one.mean_log_probability > LEAST_LOG_PROBABILITY]
    if not scored:
        raise UserError(
            "the model gives no token a probability above 0: its numbers are too large to compute with, so the file is "
            "damaged or its training diverged"
        )
    scored.sort(key=lambda item: -item[0].mean_log_probability)
    probs, ids = scored[0][1].exp().topk(min(top_k, scored[0][1].shape[1]))
    positions = [
        [Token(tokenizer.token(i), p) for p, i in zip(ps, row, strict=True) if p > 0]
        for ps, row in zip(probs.tolist(), ids.tolist(), strict=True)
    ]
    return Filled([candidate for candidate, _ in scored[:top_k]], positions, template)


def best_fills(log_probs_MV: Tensor, lengths: tuple[int, ...], tokenizer: Tokenizer, top_k: int) -> list[Candidate]:
    """The ``top_k`` most probable ways to choose one token for every row, best first.

    Row by row, keeping top_k prefixes: exact, since a row's choice does not depend on the others'.
    """
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    values, ids = log_probs_MV.topk(min(top_k, log_probs_MV.shape[1]))
    for row_values, row_ids in zip(values.tolist(), ids.tolist(), strict=True):
        possible = [(v, i) for v, i in zip(row_values, row_ids, strict=True) if v > float("-inf")]
        grown = [(score + v, (*chosen, i)) for score, chosen in beams for v, i in possible]
        beams = sorted(grown, key=lambda beam: -beam[0])[:top_k]
    candidates = []
    for score, chosen in beams:
        ends = list(itertools.accumulate(lengths))
        parts = [chosen[end - n : end] for n, end in zip(lengths, ends, strict=True)]
        tokens = tuple(tuple(tokenizer.token(i) for i in part) for part in parts)
        candidates.append(Candidate(tuple(tokenizer.decode(p) for p in parts), tokens, score, score / len(chosen)))
    return candidates


def render(result: Filled, head: Head, folder: Path, colour: bool) -> str:
    """The result for a terminal: the filled texts, then the alternatives of each position."""
    mark = (colour_code("1;32"), colour_code("0")) if colour else ("[", "]")
    name = {"mlm": "MLM head", "sbo": "SBO head", "both": "MLM and SBO heads together"}[head]
    several = any(blank.shortest != blank.longest for blank in result.template.blanks)
    lines = [f"{folder}, {name}" + (", ranked by probability per token" if several else "")]
    for rank, candidate in enumerate(result.candidates, 1):
        probability = (
            torch.tensor(candidate.mean_log_probability if several else candidate.log_probability).exp().item()
        )
        filled = result.template.render([f"{mark[0]}{text}{mark[1]}" for text in candidate.fills])
        lines.append(f"{rank:>3}. {percent(probability):>8}  {filled}")
    lines.append("tokens of each position" + (" for the best lengths:" if several else ":"))
    for number, tokens in enumerate(result.positions, 1):
        lines.append(f"{number:>3}. " + "   ".join(f"{p.token} {percent(p.probability)}" for p in tokens))
    return "\n".join(lines)


def percent(probability: float) -> str:
    """Two significant digits at least: 38.2 %, 0.41 %, 3e-05 %."""
    value = 100 * probability
    return f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"

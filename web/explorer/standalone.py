"""The explorer as one HTML file: the page, the weights and a forward pass in JavaScript. It needs no server and no network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spanbert.checkpoint.weight_names import to_theirs
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.model.models import SpanBertModel
from spanbert.tokenizer.wordpiece import Tokenizer
from web.explorer.bundle import bundle
from web.explorer.models import Explorer, load_explorer
from web.explorer.pack import Packed, Precision, pack, pack_tokenizer

LIMIT = 20_000_000  # bytes of the file: what a mail or a slow line still carries
HERE = Path(__file__).parent
STYLE = re.compile(r'<link rel="stylesheet" href="(style\.css)">')
#: The browser itself holds the page to it: nothing is asked of anybody.
POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">"
)
SCRIPT = re.compile(r'<script type="module" src="(main\.js)"></script>')
#: keys of config.json that the forward pass reads
CONFIG = ("hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps", "sbo_positions")
EXAMPLE = re.compile(r'^ +text: (".*"),$', re.MULTILINE)  # of the examples in state.js
SEEDS = range(100)  # those of the page's slider


@dataclass(frozen=True)
class _Model:
    """A model on its way into the page."""

    config: dict[str, Any]
    weights: Packed
    tokenizer: Tokenizer


def write_html(
    model: Path, reader: Path | None, path: Path, precision: Precision = "int8", *, limit: int = LIMIT
) -> int:
    """Write the page for ``model``, whose tokens, attention and predictions it shows, and for ``reader``, which answers
    questions (None: ``model`` does, if it can); return the file's size in bytes.

    int8 has both bundled models in the file, bf16 the encoder alone. Raises UserError when a folder holds no model, the
    tokenizer is not a plain one, or the file would exceed ``limit`` bytes.
    """
    explorer = load_explorer(model, reader)
    models = _models(explorer, precision)
    weights = {name: base64.b64encode(one.weights.compressed).decode() for name, one in models.items()}
    advice = f"take {_smaller(precision, 'reader' in models)}"
    _check_size(sum(map(len, weights.values())), weights, limit, advice)  # before what takes seconds
    page = render(explorer, models, weights).encode()
    _check_size(len(page), weights, limit, advice)
    write_atomic(path, page)
    return len(page)


def _check_size(size: int, weights: Mapping[str, str], limit: int, advice: str) -> None:
    if size > limit:
        parts = ", ".join(f"{name} {_megabytes(len(text))}" for name, text in weights.items())
        raise UserError(
            f"the page would have {_megabytes(size)} ({parts}), more than the {_megabytes(limit)} that it may have: {advice}"
        )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def _smaller(precision: Precision, has_reader: bool) -> str:
    ways = ["int8"] * (precision != "int8") + ["a smaller reader"] * has_reader + ["a smaller model"]
    return " or ".join(ways)


def _models(explorer: Explorer, precision: Precision) -> dict[str, _Model]:
    """The encoder with its trained heads, and the reader, of which only what differs from the encoder is packed."""
    shown = _tensors(explorer.model, explorer.shown.missing)
    models = {"encoder": _Model(_config(explorer.model), pack(shown, precision), explorer.tokenizer)}
    answerer = explorer.answerer
    if answerer is not None:
        own = {
            name: tensor
            for name, tensor in _tensors(answerer.model, ()).items()
            if name not in shown or not torch.equal(tensor, shown[name])
        }
        models["reader"] = _Model(_config(answerer.model), pack(own, precision), answerer.tokenizer)
    return models


def _config(model: SpanBertModel) -> dict[str, Any]:
    return {key: getattr(model.config, key) for key in CONFIG}


def _tensors(model: SpanBertModel, missing: Iterable[str]) -> dict[str, Tensor]:
    """Weights under Hugging Face's names, without those of the heads ``missing``."""
    ours = {name: tensor for name, tensor in model.named_parameters() if name.partition(".")[0] not in missing}
    return to_theirs(ours)


def render(explorer: Explorer, models: Mapping[str, _Model], weights: Mapping[str, str]) -> str:
    """The page's text: style and scripts inlined, data (weights: base64) in elements that are not run."""
    modules = javascript_modules()
    elements = [_data("application/json", "packed", _json(_described(explorer, models)))]
    elements += [_data("text/plain", f"weights-{name}", text) for name, text in weights.items()]
    elements += [f"<script>\n{bundle(modules, entry)}</script>" for entry in ("standalone.js", "main.js")]
    page = (HERE / "page.html").read_text(encoding="utf-8")
    page = _replaced(page, STYLE, f"{POLICY}\n<style>\n{(HERE / 'style.css').read_text(encoding='utf-8')}</style>")
    return _replaced(page, SCRIPT, "\n".join(elements))


def javascript_modules() -> dict[str, str]:
    """Our modules: name relative to this folder → text."""
    return {file.relative_to(HERE).as_posix(): file.read_text(encoding="utf-8") for file in sorted(HERE.rglob("*.js"))}


def _described(explorer: Explorer, models: Mapping[str, _Model]) -> dict[str, Any]:
    """What the page knows besides the weights; a vocabulary that both models share is there once."""
    tokenizers = {one.tokenizer.fingerprint: one.tokenizer for one in models.values()}
    numbers = {fingerprint: number for number, fingerprint in enumerate(tokenizers)}
    return {
        "about": explorer.describe(),
        "tokenizers": [pack_tokenizer(tokenizer) for tokenizer in tokenizers.values()],
        "models": {
            name: {
                "config": one.config,
                "tensors": one.weights.tensors,
                "tokenizer": numbers[one.tokenizer.fingerprint],
            }
            for name, one in models.items()
        },
        "masks": [_packed_masks(explorer, text) for text in example_texts()],
    }


def example_texts() -> list[str]:
    """The texts that the page offers."""
    found = EXAMPLE.findall((HERE / "state.js").read_text(encoding="utf-8"))
    if not found:
        raise AssertionError("state.js holds no line with the text of an example")
    return [json.loads(text) for text in found]


def _packed_masks(explorer: Explorer, text: str) -> dict[str, Any]:
    """The masks of a text for every seed, drawn here because the page cannot: of each draw what differs from the text."""
    tokens = explorer.encode(text)["tokens"]
    if len(tokens) > explorer.block:
        tokens = [*tokens[: explorer.block - 1], tokens[-1]]
    draws = [explorer.masks(text, seed) for seed in SEEDS]
    shared = {key: value for key, value in draws[0]["histogram"].items() if key != "counts"}
    return {"text": text, "tokens": tokens, "histogram": shared, "draws": [_packed_draw(draw) for draw in draws]}


def _packed_draw(masks: Mapping[str, Any]) -> dict[str, Any]:
    schemes = {}
    for name, draw in masks["schemes"].items():
        kinds = {at: kind for at, kind in enumerate(draw["replaced"]) if kind}
        changed = [[at] if kind == "mask" else [at, kind, draw["seen"][at]] for at, kind in kinds.items()]
        schemes[name] = {"spans": draw["spans"], "changed": changed}
    return {"schemes": schemes, "counts": masks["histogram"]["counts"]}


def _json(value: Any) -> str:
    """JSON that may stand in a script element: no "<" begins anything in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _data(kind: str, name: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>'


def _replaced(page: str, pattern: re.Pattern[str], text: str) -> str:
    """The page with the one place of ``pattern`` in it replaced."""
    parts = pattern.split(page)
    if len(parts) != 3:
        raise AssertionError(f"page.html holds {pattern.pattern} {len(parts) // 2} times, expected once")
    return parts[0] + text + parts[2]

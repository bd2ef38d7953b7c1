"""The explorer as one HTML file: the page, the weights and a forward pass in JavaScript. It needs no server and no network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from finetune.tasks.qa.answerer import QuestionAnswerer
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.checkpoint.store import find_model
from spanbert.checkpoint.weight_names import to_theirs
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer
from web.explorer.bundle import bundle
from web.explorer.pack import Packed, Precision, pack, pack_tokenizer

LIMIT = 20_000_000  # bytes of the file: what a mail or a slow line still carries
HERE = Path(__file__).parent
STYLE = re.compile(r'<link rel="stylesheet" href="(style\.css)">')
SCRIPT = re.compile(r'<script type="module" src="(main\.js)"></script>')
#: keys of config.json that the forward pass reads
CONFIG = ("hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps", "sbo_positions")


@dataclass(frozen=True)
class _Model:
    """A model on its way into the page."""

    config: dict[str, Any]
    packed: Packed
    tokenizer: Tokenizer
    qa: dict[str, Any] | None = None  # how a reader cuts texts and chooses answers


def write_html(
    model: Path, reader: Path | None, path: Path, precision: Precision = "int8", *, limit: int = LIMIT
) -> int:
    """Write the page for ``model`` (which fills masks) and ``reader`` (which answers questions); return its bytes.

    Raises UserError when a head is not trained, the tokenizer is not a plain one, or the file would exceed ``limit``.
    """
    models = {"encoder": _load_encoder(model, precision)}
    if reader is not None:
        models["reader"] = _load_reader(reader, precision)
    weights = {name: one.packed.compressed for name, one in models.items()}
    page = render(models, weights).encode()
    if len(page) > limit:
        parts = ", ".join(f"{name} {_megabytes(len(data) * 4 / 3)}" for name, data in weights.items())
        raise UserError(
            f"the page would have {_megabytes(len(page))} ({parts} in {precision}), more than the "
            f"{_megabytes(limit)} that it may have: {_advice(precision, reader)}"
        )
    write_atomic(path, page)
    return len(page)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def _advice(precision: Precision, reader: Path | None) -> str:
    ways = ["--precision int8"] * (precision != "int8") + ["no reader"] * (reader is not None) + ["a smaller model"]
    return f"take {' or '.join(ways)}"


def _load_encoder(folder: Path, precision: Precision) -> _Model:
    folder = find_model(folder)
    model, tokenizer, report = load_model_and_tokenizer(folder, SpanBertForPretraining)
    for head in ("mlm", "sbo"):
        if not report.has(head):
            raise UserError(f"{folder} has no trained {head.upper()} head, which the page shows: name a pretrained model")
    return _Model(_config(model.config), _pack(model, precision), tokenizer)


def _load_reader(folder: Path, precision: Precision) -> _Model:
    answerer = QuestionAnswerer.load(folder, device="cpu", precision="fp32")
    settings = answerer.settings
    qa = {
        "window": settings.window,
        "stride": settings.stride,
        "maxQuestion": settings.max_question,
        "maxAnswer": settings.max_answer,
        "nBest": settings.n_best,
        "nullAllowed": settings.null_allowed,
        "nullThreshold": settings.null_threshold,
    }
    return _Model(_config(answerer.model.config), _pack(answerer.model, precision), answerer.tokenizer, qa)


def _config(config: EncoderConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in CONFIG}


def _pack(model: nn.Module, precision: Precision) -> Packed:
    return pack(to_theirs(dict(model.named_parameters())), precision)


def render(models: Mapping[str, _Model], weights: Mapping[str, bytes]) -> str:
    """The page's text: style and scripts inlined, data in elements that are not run."""
    modules = javascript_modules()
    elements = [_data("application/json", "packed", _json(_described(models)))]
    elements += [_data("text/plain", f"weights-{name}", base64.b64encode(data).decode()) for name, data in weights.items()]
    elements += [f"<script>\n{bundle(modules, entry)}</script>" for entry in ("standalone.js", "main.js")]
    page = (HERE / "page.html").read_text(encoding="utf-8")
    page = _replaced(page, STYLE, f"<style>\n{(HERE / 'style.css').read_text(encoding='utf-8')}</style>")
    return _replaced(page, SCRIPT, "\n".join(elements))


def javascript_modules() -> dict[str, str]:
    """Our modules: name relative to this folder → text."""
    return {file.relative_to(HERE).as_posix(): file.read_text(encoding="utf-8") for file in sorted(HERE.rglob("*.js"))}


def _described(models: Mapping[str, _Model]) -> dict[str, Any]:
    """What the page knows besides the weights; a vocabulary that both models share is there once."""
    tokenizers = {one.tokenizer.fingerprint: one.tokenizer for one in models.values()}
    encoder = models["encoder"]
    return {
        "tokenizers": [pack_tokenizer(tokenizer) for tokenizer in tokenizers.values()],
        "models": {
            name: {
                "config": one.config,
                "tensors": one.packed.tensors,
                "qa": one.qa,
                "tokenizer": list(tokenizers).index(one.tokenizer.fingerprint),
            }
            for name, one in models.items()
        },
        "about": {"layers": encoder.config["num_hidden_layers"], "hasQa": "reader" in models},
        "masks": [],
    }


def _json(value: Any) -> str:
    """JSON that may stand in a script element: no "<" begins anything in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _data(kind: str, name: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>'


def _replaced(page: str, pattern: re.Pattern[str], text: str) -> str:
    """The one place of ``pattern`` in the page, replaced."""
    parts = pattern.split(page)
    if len(parts) != 3:
        raise AssertionError(f"page.html holds {pattern.pattern} {len(parts) // 2} times, expected once")
    return parts[0] + text + parts[2]

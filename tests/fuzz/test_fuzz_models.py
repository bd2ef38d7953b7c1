"""Broken model folders end in a model that fills a text or in one sentence, and take bounded memory."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pretrain.inspect.fill import fill, render
from spanbert.checkpoint.model_folder import build_model, load_model_and_tokenizer, save_model
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.spans.log_probs import choose_head
from spanbert.spans.template import parse_template
from spanbert.tokenizer.vocabulary_files import SPECIAL_TOKENS
from spanbert.tokenizer.wordpiece import Tokenizer
from tests.fuzz.cases import SEED, fuzz
from tests.fuzz.mutations import ODD_VALUES, dump, mutate_bytes, mutate_text, mutate_value

FAST_CASES = 60
TEXT = "the mill [SPAN:1-3] the river [MASK]."
WEIGHTS = "model.safetensors"
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool,
          torch.float8_e4m3fn, torch.complex64)  # fmt: skip


class Folder(NamedTuple):
    file: str
    content: bytes


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights take 20 kB."""
    tokens = (*SPECIAL_TOKENS, *"abcdehilmrtv.", *(f"##{c}" for c in "abcdehilmrtv"), "the", "mill")
    tokenizer = Tokenizer({token: number for number, token in enumerate(tokens)})
    shape = EncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=24, sbo_positions=6, sbo_position_size=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("good") / "model"
    save_model(folder, build_model(SpanBertForPretraining, shape, seed=1), tokenizer)
    return folder


def with_header(content: bytes, header: bytes, length: int | None = None) -> bytes:
    """A safetensors file under another header; length: what the file says of the header's."""
    old = int.from_bytes(content[:8], "little")
    said = len(header) if length is None else length
    return (said % (1 << 64)).to_bytes(8, "little") + header + content[8 + old :]


def config_maker(good: Path) -> Callable[[random.Random], Folder]:
    """config.json with values changed, preferably of the keys that say how large something is."""
    config = json.loads((good / "config.json").read_text())

    def make(draw: random.Random) -> Folder:
        value: Any = config
        for _ in range(draw.choice((0, 1, 1, 2))):
            value = mutate_value(draw, value)
            if isinstance(value, dict) and draw.random() < 0.6:
                key = draw.choice(sorted(config))
                value[key] = draw.choice((*ODD_VALUES, 2, 4, 8, 10**5, 10**12, 0.5, "gelu", -8))
        text = dump(draw, value)
        for _ in range(draw.choice((0, 0, 0, 1))):
            text = mutate_text(draw, text)
        content = text.encode("utf-8", "surrogatepass")
        return Folder("config.json", mutate_bytes(draw, content) if draw.random() < 0.1 else content)

    return make


def header_maker(good: Path) -> Callable[[random.Random], Folder]:
    """The header that says where each tensor lies, its length, or any byte of the file."""
    whole = (good / WEIGHTS).read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])

    def make(draw: random.Random) -> Folder:
        value: Any = header
        for _ in range(draw.choice((0, 1, 1, 2))):
            value = mutate_value(draw, value)
            if isinstance(value, dict) and draw.random() < 0.5:
                entry = value.get(draw.choice(sorted(header)))
                if isinstance(entry, dict):
                    entry[draw.choice(("dtype", "shape", "data_offsets"))] = draw.choice(
                        (
                            "F32",
                            "F16",
                            "I8",
                            "BOOL",
                            "F4",
                            [],
                            [0],
                            [8, 8],
                            [1 << 62, 4],
                            [-1],
                            [0, 1 << 62],
                            [64, 32],
                            7,
                        )
                    )
        text = json.dumps(value, separators=(",", ":"))
        text = mutate_text(draw, text) if draw.random() < 0.1 else text
        data = text.encode()
        length = draw.choice((None, None, None, None, 0, 1, len(data) - 1, len(data) + 8, 1 << 40, (1 << 64) - 1))
        content = with_header(whole, data, length)
        return Folder(WEIGHTS, mutate_bytes(draw, content) if draw.random() < 0.2 else content)

    return make


def tensors_maker(good: Path) -> Callable[[random.Random], Folder]:
    """A whole file of other tensors: renamed, lacking, of another shape, kind or layer, or not numbers."""
    tensors = load_file(good / WEIGHTS)

    def make(draw: random.Random) -> Folder:
        changed = dict(tensors)
        for _ in range(draw.choice((0, 1, 1, 2, 4))):
            change(draw, changed)
        content = save({name: tensor.contiguous() for name, tensor in changed.items()}, {"format": "pt"})
        return Folder(WEIGHTS, content)

    return make


def change(draw: random.Random, tensors: dict[str, Tensor]) -> None:
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    match draw.randrange(9):
        case 0:
            del tensors[name]
        case 1:
            prefix = draw.choice(("bert.", "module.", "model.", "_orig_mod.", "x.", "", "bert.encoder.layer.7."))
            tensors[prefix + name.removeprefix(draw.choice(("bert.", "cls.", "")))] = tensors.pop(name).clone()
        case 2:
            tensors[name] = tensor.transpose(0, -1) if tensor.dim() else tensor
        case 3:
            tensors[name] = tensor.reshape(-1) if draw.random() < 0.5 else tensor.unsqueeze(0)
        case 4:
            tensors[name] = torch.cat([tensor, tensor[:1]]) if tensor.dim() and draw.random() < 0.5 else tensor[:-1]
        case 5:
            tensors[name] = tensor.to(draw.choice(DTYPES))
        case 6:
            odd = draw.choice((float("nan"), float("inf"), 3e38, -3e38, 1e30, 0.0))
            tensors[name] = tensor.float().index_fill(0, torch.tensor([0]), odd) if tensor.numel() else tensor
        case 7:
            tensors[name] = draw.choice((torch.zeros(0), torch.tensor(1.0), torch.zeros(0, 4), torch.zeros(4, 0)))
        case _:
            tensors[draw.choice(("cls.predictions.decoder.weight", "bert.pooler.dense.weight", "qa_outputs.bias",
                                 "cls.predictions.decoder.bias", "bert.embeddings.position_ids"))] = tensor.clone()  # fmt: skip


MAKERS = {"config.json": config_maker, "safetensors header": header_maker, "safetensors tensors": tensors_maker}


def reader(good: Path, folder: Path) -> Callable[[Folder], str]:
    for file in good.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())

    def read(changed: Folder) -> str:
        """Load as commands do, and fill: probabilities that are some."""
        for name in ("config.json", WEIGHTS):
            (folder / name).write_bytes(changed.content if name == changed.file else (good / name).read_bytes())
        model, tokenizer, report = load_model_and_tokenizer(folder, SpanBertForPretraining)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
        template = parse_template(TEXT, tokenizer, model.config.max_position_embeddings)
        head = choose_head("auto", report, str(folder))
        result = fill(model.eval(), tokenizer, template, head, 3)
        assert result.candidates
        for candidate in result.candidates:
            assert -1e9 < candidate.log_probability <= 1e-5, candidate
        assert all(0 <= token.probability <= 1 + 1e-5 for tokens in result.positions for token in tokens)
        render(result, head, folder, colour=False).encode()
        str(report).encode()
        return f"filled by {head}"

    return read


@pytest.mark.parametrize("name", MAKERS)
def test_broken_models_fill_or_are_refused(name: str, good: Path, tmp_path: Path) -> None:
    outcomes = fuzz(f"model: {name}", FAST_CASES, MAKERS[name](good), reader(good, tmp_path))
    assert outcomes["refused"], "the mutations break nothing"
    assert outcomes["filled by both"], "the mutations leave nothing to read"


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_many_broken_models(name: str, seconds: float, good: Path, tmp_path: Path) -> None:
    fuzz(f"model: {name}", None, MAKERS[name](good), reader(good, tmp_path), SEED + 1, seconds=seconds)

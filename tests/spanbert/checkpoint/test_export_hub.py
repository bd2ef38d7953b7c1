"""``spanbert export``: what transformers loads, from model folders, checkpoints and runs, in the dtype asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from spanbert.checkpoint.architectures import UNTRAINED
from spanbert.checkpoint.export_hub import ExportConfig, run_export
from spanbert.checkpoint.model_folder import load_model, save_model, write_model
from spanbert.checkpoint.store import CheckpointStore
from spanbert.checkpoint.training_state import STATE_TENSORS
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining, SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

SHAPE = EncoderConfig(
    vocab_size=16,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
    sbo_positions=6,
    sbo_position_size=10,
)
TOKENIZER = Tokenizer({token: number for number, token in enumerate([*SPECIAL_TOKENS, *"abcdefghijk"])})


@pytest.fixture
def pretrained(randomise):
    def make(seed: int = 0) -> SpanBertForPretraining:
        model = SpanBertForPretraining(SHAPE)
        randomise(model, seed)
        return model

    return make


@pytest.fixture
def run_folder(tmp_path, pretrained) -> Path:
    """Three checkpoints, the second the best, as training leaves them; no finished model."""
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep_last=3)
    for step, score in ((10, 3.0), (20, 2.0), (30, 2.5)):

        def write(folder: Path, seed: int = step) -> None:
            write_model(folder, pretrained(seed), TOKENIZER)
            (folder / STATE_TENSORS).write_bytes(b"moments")

        store.save(step, write, score)
    return tmp_path / "run"


def word_embeddings(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]


@pytest.mark.parametrize(("which", "seed"), [("last", 30), ("best", 20)])
def test_of_a_run_the_newest_or_the_best_checkpoint(tmp_path, run_folder, pretrained, which, seed):
    run_export(ExportConfig(run_folder, tmp_path / "out", which=which))
    assert torch.equal(word_embeddings(tmp_path / "out"), pretrained(seed).encoder.embeddings.word.weight)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, run_folder, pretrained, capsys):
    newest = run_folder / "checkpoints" / "step-00000030" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    run_export(ExportConfig(run_folder, tmp_path / "out"))
    assert "step-00000030 is damaged" in capsys.readouterr().out
    assert torch.equal(word_embeddings(tmp_path / "out"), pretrained(20).encoder.embeddings.word.weight)


def test_exporting_from_a_running_training_disturbs_nothing(tmp_path, run_folder):
    """A reader once cleaned up "leftovers" that were the next checkpoint of the training that was writing it."""
    being_written = run_folder / "checkpoints" / ".step-00000040.123.partial"
    being_written.mkdir()
    run_export(ExportConfig(run_folder, tmp_path / "out"))
    assert being_written.is_dir()


def test_a_finished_model_and_a_checkpoint_by_name(tmp_path, run_folder, pretrained):
    save_model(run_folder / "model", pretrained(99), TOKENIZER)
    run_export(ExportConfig(run_folder, tmp_path / "a"))
    run_export(ExportConfig(run_folder / "checkpoints" / "step-00000010", tmp_path / "b"))
    assert torch.equal(word_embeddings(tmp_path / "a"), pretrained(99).encoder.embeddings.word.weight)
    assert torch.equal(word_embeddings(tmp_path / "b"), pretrained(10).encoder.embeddings.word.weight)


@pytest.mark.parametrize(
    ("task", "name"), [("encoder", "BertModel"), ("pretraining", "BertForMaskedLM"), ("all", "BertForMaskedLM")]
)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_transformers_loads_every_task_in_every_dtype(tmp_path, pretrained, capsys, task, name, dtype):
    """Nothing of the encoder is missing or unexpected, the hidden states are those of our model."""
    model = pretrained(1)
    save_model(tmp_path / "m", model, TOKENIZER)
    run_export(ExportConfig(tmp_path / "m", tmp_path / "out", dtype=dtype, task=task))
    torch_dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch_dtype}
    theirs, info = getattr(transformers, name).from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert {key.split(".")[0] for key in info["missing_keys"]} <= {"pooler"}
    assert all(key.startswith("cls.pair_target_predictions.") for key in info["unexpected_keys"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(torch_dtype)[6:]
    assert f"transformers.{name}.from_pretrained" in capsys.readouterr().out
    ids_T = torch.tensor([2, 7, 8, 9, 3])
    ours = model.eval().encoder(ids_T, torch.tensor([0, 5], dtype=torch.int32), 5)
    hidden = getattr(theirs, "bert", theirs).eval()(ids_T[None]).last_hidden_state[0]
    assert (ours - hidden).abs().max() < {"fp32": 1e-5, "fp16": 0.02, "bf16": 0.15}[dtype]


def test_fp32_export_and_import_again_is_lossless(tmp_path, pretrained):
    from spanbert.checkpoint.import_bert import ImportConfig, run_import

    save_model(tmp_path / "m", pretrained(5), TOKENIZER, {"note": "kept"})
    run_export(ExportConfig(tmp_path / "m", tmp_path / "out"))
    run_import(ImportConfig(tmp_path / "out", tmp_path / "back"))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("m", "back"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert load_model(tmp_path / "back", SpanBertForPretraining)[1].config["note"] == "kept"


def test_a_question_answering_head_where_there_is_one(tmp_path, pretrained, randomise):
    save_model(tmp_path / "p", pretrained(), TOKENIZER)
    with pytest.raises(UserError, match="has no qa head"):
        run_export(ExportConfig(tmp_path / "p", tmp_path / "out", task="qa"))
    model = SpanBertForQuestionAnswering(SHAPE)
    randomise(model, 3)
    save_model(tmp_path / "q", model, TOKENIZER, {"null_threshold": 0.5})
    run_export(ExportConfig(tmp_path / "q", tmp_path / "out", task="qa"))
    theirs, info = transformers.BertForQuestionAnswering.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(theirs.qa_outputs.weight, model.qa_outputs.weight)
    assert load_model(tmp_path / "out", SpanBertForQuestionAnswering)[1].config["null_threshold"] == 0.5
    with pytest.raises(UserError, match="has no pretraining head"):
        run_export(ExportConfig(tmp_path / "q", tmp_path / "out2", task="pretraining"))


def test_untrained_heads_stay_marked_as_long_as_they_are_there(tmp_path, pretrained, capsys):
    save_model(tmp_path / "m", pretrained(), TOKENIZER, {UNTRAINED: ["mlm", "sbo"]})
    run_export(ExportConfig(tmp_path / "m", tmp_path / "a"))
    assert "never trained: mlm, sbo" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "config.json").read_text())[UNTRAINED] == ["mlm", "sbo"]
    run_export(ExportConfig(tmp_path / "m", tmp_path / "b", task="encoder"))
    assert UNTRAINED not in json.loads((tmp_path / "b" / "config.json").read_text())


def test_what_cannot_be_exported_is_one_clear_sentence(tmp_path, pretrained, run_folder):
    model = pretrained()
    with torch.no_grad():
        model.mlm.bias[3] = 1e6
    save_model(tmp_path / "m", model, TOKENIZER)
    with pytest.raises(UserError, match=r"cls\.predictions\.bias has numbers that fp16 cannot hold"):
        run_export(ExportConfig(tmp_path / "m", tmp_path / "out", dtype="fp16"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="already exists"):
        run_export(ExportConfig(tmp_path / "m", run_folder))
    with pytest.raises(UserError, match="no such folder"):
        run_export(ExportConfig(tmp_path / "nowhere", tmp_path / "out"))
    shutil.rmtree(run_folder / "checkpoints")
    with pytest.raises(UserError, match="neither a model folder"):
        run_export(ExportConfig(run_folder, tmp_path / "out"))

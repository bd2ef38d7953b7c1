"""Runs with --lora: a small adapter that every command takes, that ``peft`` reads, and that resumes bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import finetune.train as training
from finetune.tasks.classification.commands import FinetuneClassifyConfig
from finetune.tasks.classification.commands import run_finetune as run_classify
from finetune.tasks.qa.commands import FinetuneQAConfig, run_finetune
from finetune.tasks.qa.features import TextQuestionSet
from spanbert.checkpoint.export_hub import ExportConfig, run_export
from spanbert.checkpoint.model_folder import load_model, load_model_and_tokenizer, restore_model, save_model
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch
from spanbert.model.lora import LoRAConfig, lora_layers
from spanbert.model.models import SpanBertForQuestionAnswering, SpanBertForSequenceClassification
from spanbert.model.packing import unpack
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.init_model import adapt, init_model
from spanbert.training.run_folder import read_metrics
from spanbert.training.signals import Stopped


@pytest.fixture
def config(
    tmp_path: Path, data: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> FinetuneQAConfig:
    save_model(tmp_path / "start", make_model(), tokenizer)
    return FinetuneQAConfig(
        data / "qa_v1.json", tmp_path / "run", str(tmp_path / "start"), dev=data / "qa_v1.json", epochs=2,
        batch_size=8, lr=2e-2, window=64, stride=20, max_question=40, log_every=2, lora="rank=4,alpha=8,on=both",
        device="cpu", precision="fp32", backend="eager",
    )  # fmt: skip


def padded(batch: object) -> dict[str, torch.Tensor]:
    """A packed batch as transformers takes it."""
    ids = unpack(batch.input_ids_T, batch.cu_seqlens, batch.max_seqlen)  # type: ignore[attr-defined]
    types = unpack(batch.token_type_ids_T, batch.cu_seqlens, batch.max_seqlen)  # type: ignore[attr-defined]
    mask = unpack(torch.ones_like(batch.input_ids_T), batch.cu_seqlens, batch.max_seqlen)  # type: ignore[attr-defined]
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}


def packed_logits(theirs: object, batch: object) -> torch.Tensor:
    real = padded(batch)["attention_mask"].bool()
    return torch.stack([theirs.start_logits[real], theirs.end_logits[real]])  # type: ignore[attr-defined]


@pytest.fixture
def batch(question_set: Callable[..., TextQuestionSet]) -> object:
    return question_set("qa_v1.json").packed(np.arange(5)).tensors()


def unmerged(run: Path, config: FinetuneQAConfig) -> SpanBertForQuestionAnswering:
    """The run's model with A and B as they were trained."""
    model = init_model(
        SpanBertForQuestionAnswering, init=config.init, size="mini", tokenizer=None, seed=0, dropout=0.0,
        attention_dropout=0.0, backend="eager", device=torch.device("cpu"),
    ).model  # fmt: skip
    adapt(model, config.init, LoRAConfig.parse(config.lora), seed=0)
    restore_model(model, run / "model")
    return model.eval()


def test_an_adapter_gives_the_same_in_peft_merged_and_unmerged(
    config: FinetuneQAConfig, batch: object, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_finetune(config)
    assert "parameters are trained" in capsys.readouterr().out
    model = config.output / "model"
    assert not (model / "model.safetensors").exists()
    ours = unmerged(config.output, config)
    assert all(layer.lora_B.abs().max() > 1e-3 for _, layer in lora_layers(ours))  # it has learned something
    with torch.no_grad():
        expected = torch.stack(ours(batch))
        start, _ = load_model(config.init, SpanBertForQuestionAnswering)
        assert (torch.stack(start.eval()(batch)) - expected).abs().max() > 1e-2

        merged, _ = load_model(model, SpanBertForQuestionAnswering)
        assert torch.allclose(torch.stack(merged.eval()(batch)), expected, atol=1e-5)

        run_export(ExportConfig(config.output, tmp_path / "merged", merge=True))
        whole = transformers.BertForQuestionAnswering.from_pretrained(tmp_path / "merged").eval()
        assert torch.allclose(packed_logits(whole(**padded(batch)), batch), expected, atol=1e-5)

        run_export(ExportConfig(config.output, tmp_path / "peft"))
        base = transformers.BertForQuestionAnswering.from_pretrained(config.init)
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
        assert torch.allclose(packed_logits(theirs(**padded(batch)), batch), expected, atol=1e-5)


@pytest.mark.parametrize("on", ["attention", "feed-forward"])
def test_an_encoders_adapter_gives_the_same_hidden_states_over_bert_model(
    config: FinetuneQAConfig, batch: object, on: str, tmp_path: Path
) -> None:
    config = replace(config, lora=f"rank=4,alpha=8,on={on}", epochs=1)
    run_finetune(config)
    run_export(ExportConfig(config.output, tmp_path / "peft", task="encoder"))
    names = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    expected_name = "attention.self.query" if on == "attention" else "intermediate.dense"
    assert f"base_model.model.encoder.layer.1.{expected_name}.lora_A.weight" in names
    base = transformers.BertModel.from_pretrained(config.init, add_pooling_layer=False)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    adapted = {name for name, _ in theirs.named_parameters() if "lora_A" in name}
    assert len(adapted) == len(names) // 2  # peft adapts the same products and no other
    with torch.no_grad():
        inputs = padded(batch)
        hidden = theirs(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
        expected = unmerged(config.output, config).encoder(*batch)  # type: ignore[misc]
    assert torch.allclose(hidden, expected, atol=1e-5)
    again, report = load_model(tmp_path / "peft", SpanBertForQuestionAnswering)
    assert torch.allclose(again.eval().encoder(*batch), expected, atol=1e-5)  # type: ignore[misc]
    assert report.has("qa_outputs")  # the base's


@pytest.mark.parametrize("whole_head", [False, True])
def test_an_adapter_that_peft_wrote_loads_here(
    config: FinetuneQAConfig, batch: object, whole_head: bool, tmp_path: Path
) -> None:
    """Three different A's for query, key and value, and rank-stabilised scaling; with the head and without it."""
    base = transformers.BertForQuestionAnswering.from_pretrained(config.init)
    options = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["query", "key", "value", "intermediate.dense"], use_rslora=whole_head,
        modules_to_save=["qa_outputs"] if whole_head else None, init_lora_weights=False,
    )  # fmt: skip
    theirs = peft.get_peft_model(base, options)
    if whole_head:
        torch.nn.init.normal_(theirs.base_model.model.qa_outputs.modules_to_save["default"].weight)
    theirs.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "config.json").exists()
    ours, tokenizer, _ = load_model_and_tokenizer(tmp_path / "theirs", SpanBertForQuestionAnswering)
    assert tokenizer.vocab_size == ours.config.vocab_size
    with torch.no_grad():
        expected = packed_logits(theirs.eval()(**padded(batch)), batch)
        assert torch.allclose(torch.stack(ours.eval()(batch)), expected, atol=1e-5)
    run_export(ExportConfig(tmp_path / "theirs", tmp_path / "merged", merge=True))
    merged, _ = load_model(tmp_path / "merged", SpanBertForQuestionAnswering)
    assert torch.allclose(torch.stack(merged.eval()(batch)), expected, atol=1e-5)


def test_the_pooler_and_the_classifier_go_with_a_classifiers_adapter(
    config: FinetuneQAConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "a good day\tyes\na bad day\tno\nthe rain\tmaybe\n" * 8)
    classify = FinetuneClassifyConfig(
        tmp_path / "train.tsv", tmp_path / "classifier", config.init, epochs=2, lr=1e-2, window=32, lora="rank=2",
        device="cpu", precision="fp32", backend="eager",
    )  # fmt: skip
    run_classify(classify)
    ours, _ = load_model(classify.output / "model", SpanBertForSequenceClassification)
    run_export(ExportConfig(classify.output, tmp_path / "peft"))
    base = transformers.BertForSequenceClassification.from_pretrained(config.init, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    ids = torch.tensor([tokenizer.cls_id, *tokenizer.encode("a bad day").ids, tokenizer.sep_id])
    with torch.no_grad():
        expected = theirs(input_ids=ids[None]).logits
        lengths = torch.tensor([0, len(ids)], dtype=torch.int32)
        assert torch.allclose(ours.eval()(PackedBatch(ids, lengths, len(ids))), expected, atol=1e-5)


def test_a_classifier_that_peft_wrote_uses_the_pooler_of_its_base(
    config: FinetuneQAConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """peft saves the classifier alone, which it trains by itself; a random pooler below it would be another model."""
    whole = load_model(config.init, SpanBertForSequenceClassification, num_labels=3)[0]
    save_model(tmp_path / "classifier", whole, tokenizer)
    base = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "classifier")
    theirs = peft.get_peft_model(
        base, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    )
    theirs.save_pretrained(tmp_path / "theirs")
    assert not any("pooler" in name for name in load_file(tmp_path / "theirs" / "adapter_model.safetensors"))
    ours, report = load_model(tmp_path / "theirs", SpanBertForSequenceClassification)
    assert not report.initialised
    ids = torch.tensor([tokenizer.cls_id, *tokenizer.encode("a bad day").ids, tokenizer.sep_id])
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids[None]).logits
        packed = PackedBatch(ids, torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))
        assert torch.allclose(ours.eval()(packed), expected, atol=1e-5)


def test_the_adapter_is_small_and_names_its_base(config: FinetuneQAConfig) -> None:
    run_finetune(replace(config, epochs=1))
    model = config.output / "model"
    written = json.loads((model / "config.json").read_text())["adapter"]
    assert written["base"] == str(Path(config.init).resolve())
    assert len(written["sha256"]) == 64
    tensors = load_file(model / "adapter_model.safetensors")
    assert not any("embeddings" in name for name in tensors)
    query, key = (
        tensors[f"base_model.model.bert.encoder.layer.0.attention.self.{part}.lora_A.weight"]
        for part in ("query", "key")
    )
    assert torch.equal(query, key)
    assert tensors["base_model.model.bert.encoder.layer.0.attention.self.value.lora_B.weight"].shape == (32, 4)


@pytest.mark.parametrize("step", [1, 5])
def test_stopped_and_resumed_ends_bit_identical(
    config: FinetuneQAConfig, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best state is kept at that, so a checkpoint's A and B are also what the run ends with."""
    whole = replace(config, output=tmp_path / "whole", evaluate_every=3, keep_best=True)
    parted = replace(whole, output=tmp_path / "parted")
    run_finetune(whole)
    real = training.step_windows

    def sending(current: int, *rest: object) -> object:
        if current == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(current, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(training, "step_windows", sending)
        run_finetune(parted)
    checkpoint = parted.output / "checkpoints" / f"step-{step + 1:08d}"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    load_model(checkpoint, SpanBertForQuestionAnswering)
    run_finetune(replace(parted, resume=True))
    one, other = (load_file(run.output / "model" / "adapter_model.safetensors") for run in (whole, parted))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [
        [r["loss"] for r in read_metrics(run.output / "metrics.jsonl") if r["split"] == "train"]
        for run in (whole, parted)
    ]
    assert losses[0] == losses[1]


def test_a_base_that_moved_is_found_beside_the_adapter_and_another_one_is_refused(
    config: FinetuneQAConfig, tokenizer: Tokenizer, make_model: Callable, tmp_path: Path
) -> None:
    run_finetune(replace(config, epochs=1))
    model, start = config.output / "model", Path(config.init)
    expected, _ = load_model(model, SpanBertForQuestionAnswering)
    shutil.move(start, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is an adapter of the model .*start \(sha256 .* not there.*model/base"):
        load_model(model, SpanBertForQuestionAnswering)
    save_model(start, make_model(seed=1), tokenizer)
    with pytest.raises(UserError, match="trained on other weights"):
        load_model(model, SpanBertForQuestionAnswering)
    (model / "base").symlink_to(tmp_path / "elsewhere")
    found, _ = load_model(model, SpanBertForQuestionAnswering)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


def test_an_adapter_is_a_start_for_more_training_but_not_for_another_adapter(
    config: FinetuneQAConfig, tmp_path: Path
) -> None:
    run_finetune(replace(config, epochs=1))
    on_top = replace(config, init=str(config.output), output=tmp_path / "more", epochs=1)
    with pytest.raises(UserError, match="is an adapter itself: merge it first"):
        run_finetune(on_top)
    run_finetune(replace(on_top, lora=""))
    assert (tmp_path / "more" / "model" / "model.safetensors").is_file()
    assert "adapter" not in json.loads((tmp_path / "more" / "model" / "config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"query": 2}}, "rank_pattern"),
        ({"r": 0}, "r is 0"),
        ({"base_model_name_or_path": None}, "does not say which model"),
    ],
)
def test_adapters_of_other_kinds_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    stated = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "somewhere"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated | change))
    module = "base_model.model.encoder.layer.0.attention.self.query"
    save_file(
        {f"{module}.lora_A.weight": torch.zeros(2, 4), f"{module}.lora_B.weight": torch.zeros(4, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match=message):
        load_model(tmp_path, SpanBertForQuestionAnswering)

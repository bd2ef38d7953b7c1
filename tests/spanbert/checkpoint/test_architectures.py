"""The table of heads: consistent, and all that a new task has to touch."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
import transformers
from torch import Tensor, nn

from spanbert.checkpoint.architectures import (
    ARCHITECTURES,
    BARE_ENCODER,
    UNTRAINED,
    Architecture,
    Head,
    all_heads,
    architecture_for,
)
from spanbert.checkpoint.export_hub import ExportConfig, run_export
from spanbert.checkpoint.import_bert import ImportConfig, run_import
from spanbert.checkpoint.model_folder import load_model, save_model
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import initialise
from spanbert.model.models import SpanBertForPretraining, SpanBertForSequenceClassification, SpanBertModel
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

SHAPE = EncoderConfig(
    vocab_size=16,
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=1,
    intermediate_size=40,
    max_position_embeddings=16,
    sbo_positions=6,
    sbo_position_size=10,
)
TOKENIZER = Tokenizer({token: number for number, token in enumerate([*SPECIAL_TOKENS, *"abcdefghijk"])})


class RegionModel(SpanBertModel):
    """A made-up task: two layers on the encoder, the second as wide as there are labels."""

    def __init__(self, config: EncoderConfig, num_labels: int, backend: str = "eager"):
        super().__init__(config, backend)
        self.regions = nn.ModuleDict({"inner": nn.Linear(config.hidden_size, 8), "mix": nn.Linear(8, 8)})
        self.kinds = nn.Linear(8, num_labels)
        initialise(self, config.initializer_range)

    def forward(self, hidden_TH: Tensor) -> Tensor:
        return self.kinds(self.regions["mix"](self.regions["inner"](hidden_TH)))


ROW = Architecture(
    "regions",
    "BertForRegions",
    RegionModel,
    (Head("regions", "region_head", {"inner": "transform.dense"}), Head("kinds", "region_kinds")),
    labels="kinds",
    use="spanbert regions {folder}",
)


@pytest.fixture
def row() -> Iterator[Architecture]:
    """One more row, and nothing else."""
    ARCHITECTURES.append(ROW)
    yield ROW
    ARCHITECTURES.remove(ROW)


def test_the_rows_do_not_contradict_one_another():
    tasks, classes = [row.task for row in ARCHITECTURES], [row.hub_class for row in ARCHITECTURES]
    assert len(set(tasks)) == len(tasks)
    assert len(set(classes)) == len(classes) - classes[1:].count(BARE_ENCODER)  # what transformers has no class for
    assert all(hasattr(transformers, name) for name in classes)
    heads = {head for row in ARCHITECTURES for head in row.all_heads}
    assert {head.name: head for head in heads} == all_heads() and len({head.prefix for head in heads}) == len(heads)
    for row in ARCHITECTURES:
        if row.model is None:
            continue
        model = row.model(SHAPE, **({"num_labels": 3} if row.labels else {}))
        parts = {name for name, _ in model.named_children()} - {"encoder", "dropout"}
        assert parts == {head.name for head in row.all_heads}, row.task


def test_one_row_is_all_that_a_new_task_adds(tmp_path, row, randomise, capsys):
    """Saved, loaded, exported, brought in again: names, class, labels and reports all come from the row."""
    model = RegionModel(SHAPE, 5)
    randomise(model, 3)
    save_model(tmp_path / "m", model, TOKENIZER)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architectures"] == ["BertForRegions"] and len(config["id2label"]) == 5

    loaded, report = load_model(tmp_path / "m", RegionModel)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert report.has("regions") and report.has("kinds") and report.initialised == report.unused == ()
    assert {"region_head.transform.dense.weight", "region_head.mix.bias", "region_kinds.weight"} <= set(report.loaded)

    run_import(ImportConfig(tmp_path / "m", tmp_path / "back"))
    log = capsys.readouterr().out
    assert "kept         region_head.* (4 tensors), region_kinds.* (2 tensors)" in log and "spanbert regions" in log
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["architectures"] == ["BertForRegions"] and config[UNTRAINED] == ["mlm", "sbo"]

    run_export(ExportConfig(tmp_path / "back", tmp_path / "out", task="regions"))
    assert "BertForRegions" in capsys.readouterr().out
    final, report = load_model(tmp_path / "out", RegionModel)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), final.parameters(), strict=True))
    assert report.unused == () and UNTRAINED not in report.config, "the other heads stayed behind"

    save_model(tmp_path / "p", SpanBertForPretraining(SHAPE), TOKENIZER)
    with pytest.raises(UserError, match=r"has no regions head \(region_head\.\*\): it holds bert\.embeddings"):
        run_export(ExportConfig(tmp_path / "p", tmp_path / "out2", task="regions"))


def test_a_task_that_is_in_no_row_is_refused(tmp_path):
    assert architecture_for("regions") is None
    with pytest.raises(UserError, match="no such task; choose one of all, encoder, pretraining, qa"):
        run_export(ExportConfig(tmp_path, tmp_path / "out", task="regions"))


def test_a_classifier_is_told_by_the_heads_beside_it(tmp_path, reference_of):
    """Both kinds of classification store "classifier."; with a pooler and no word in the config it is of sequences."""
    for name in ("SequenceClassification", "TokenClassification"):
        folder = tmp_path / name
        reference_of(f"BertFor{name}", SHAPE, 1, num_labels=3).save_pretrained(folder)
        TOKENIZER.save(folder)
        for named in (True, False):
            if not named:
                config = json.loads((folder / "config.json").read_text())
                config.pop("architectures")
                (folder / "config.json").write_text(json.dumps(config))
            run_import(ImportConfig(folder, tmp_path / f"{name}-{named}"))
            written = json.loads((tmp_path / f"{name}-{named}" / "config.json").read_text())
            assert written["architectures"] == [f"BertFor{name}"]
    classifier, report = load_model(tmp_path / "SequenceClassification-True", SpanBertForSequenceClassification)
    assert report.has("classifier") and report.has("pooler") and classifier.classifier.out_features == 3

"""Weight files: what is in them under whatever wrapping, and what a file that holds none really is."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spanbert.checkpoint.file_kinds import SAFETENSORS, foreign_globals, kind_of, snapshot_of
from spanbert.checkpoint.weight_files import read_weights
from spanbert.checkpoint.weight_names import their_usual_name, untied_heads, usual_names
from spanbert.errors import UserError

TENSORS = {"bert.embeddings.word_embeddings.weight": torch.arange(6.0).view(3, 2)}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_weights(path)
    message = str(error.value)
    for advice in ("weights_only", "torch.load", "trust", "add_safe_globals", "\n"):
        assert advice not in message, message
    return message


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        ("bert.encoder._orig_mod.layer.3.attention.self.key.bias", "bert.encoder.layer.3.attention.self.key.bias"),
        ("_orig_mod.bert.encoder.layer.3._orig_mod.output.dense.bias", "bert.encoder.layer.3.output.dense.bias"),
        ("module.bert.module.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("module._orig_mod.module.qa_outputs.weight", "qa_outputs.weight"),
        ("_fsdp_wrapped_module.bert.pooler._fsdp_wrapped_module.dense.bias", "bert.pooler.dense.bias"),
        ("bert.encoder.layer.0._checkpoint_wrapped_module.output.dense.bias", "bert.encoder.layer.0.output.dense.bias"),
        ("net.bert.embeddings.LayerNorm.beta", "bert.embeddings.LayerNorm.bias"),
        ("net.encoder.layer.0.output.dense.bias", "bert.encoder.layer.0.output.dense.bias"),
        ("0.auto_model.embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
        ("model.0.auto_model.pooler.dense.weight", "bert.pooler.dense.weight"),
        ("decoder.cls.predictions.decoder.weight", "cls.predictions.decoder.weight"),
        ("cls.predictions.decoder.weight", "cls.predictions.decoder.weight"),
        ("classifier.0.weight", "classifier.0.weight"),
    ],
)
def test_names_lose_their_wrappers_wherever_they_are(name, usual):
    """torch.compile and FSDP wrap single layers too; only names that began with a wrapper's were understood."""
    assert their_usual_name(name) == usual


def test_a_wrapped_head_is_still_compared_with_its_words():
    words = TENSORS["bert.embeddings.word_embeddings.weight"]
    own = {"module.cls._orig_mod.predictions.decoder.weight": words + 1, **TENSORS}
    assert untied_heads(own) == {"mlm": "module.cls._orig_mod.predictions.decoder.weight"}
    assert untied_heads({**own, "module.cls._orig_mod.predictions.decoder.weight": words.clone()}) == {}
    assert set(usual_names(own, "f")) == set(TENSORS)


@pytest.mark.parametrize(
    "nest",
    [
        lambda tensors: {"module": tensors, "optimizer": {"state": 3}, "global_steps": 7},
        lambda tensors: {"state_dict": {"model": tensors}, "epoch": 2},
        lambda tensors: {"model_state_dict": tensors},
        lambda tensors: tensors,
    ],
    ids=["deepspeed", "twice", "model_state_dict", "flat"],
)
def test_nests_are_opened(tmp_path, nest):
    torch.save(nest(TENSORS), tmp_path / "mp_rank_00_model_states.pt")
    tensors, name = read_weights(tmp_path)
    assert name == "mp_rank_00_model_states.pt" and tensors.keys() == TENSORS.keys()


def tar_gz() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("bert_model.ckpt"))
    return buffer.getvalue()


def plain_tar() -> bytes:
    return gzip.decompress(tar_gz())


def plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("bert/vocab.txt", "a")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tar_gz(), "is a gzip-compressed archive (.tar.gz or .gz), not the weights: unpack it"),
        (plain_tar(), "is a tar archive"),
        (plain_zip(), "is a zip archive"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"just some text", "is not a torch-saved file"),
        (b"", "is not a torch-saved file"),
    ],
)
def test_what_is_not_weights_is_said_to_be_what_it_is(tmp_path, content, words):
    """An archive was called "not a whole torch-saved file", and fetched again and again."""
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    assert words in refusal(tmp_path)


def test_the_other_format_under_the_wrong_name(tmp_path):
    save_file(TENSORS, tmp_path / "pytorch_model.bin")
    assert "is a safetensors file, whatever its name says: give it a name that ends in .safetensors" in refusal(
        tmp_path
    )
    (tmp_path / "pytorch_model.bin").unlink()
    torch.save(TENSORS, tmp_path / "model.safetensors")
    assert "is a torch-saved file, not safetensors: give it a name that ends in .bin" in refusal(tmp_path)


def test_a_safetensors_file_may_begin_like_anything(tmp_path):
    """Its first bytes are a length: one of 0x80 looked like a pickle, others look like gzip or a web page."""
    seen = set()
    for size in range(1, 300):
        save_file({"a" * size: torch.zeros(1)}, tmp_path / "x.safetensors")
        seen.add((tmp_path / "x.safetensors").read_bytes()[0])
        assert kind_of(tmp_path / "x.safetensors") is SAFETENSORS
        assert len(load_file(tmp_path / "x.safetensors")) == 1
    assert 0x80 in seen


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    assert "model.safetensors is a folder: expected the file with the weights" in refusal(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_a_whole_pickled_model_is_named_and_pytorchs_advice_is_not_repeated(tmp_path):
    """PyTorch says how to load it unsafely, and who follows that runs whatever is in the file."""
    for zipped in (True, False):
        torch.save(nn.Linear(2, 2), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        message = refusal(tmp_path)
        assert "it asks for torch.nn.modules.linear.Linear" in message and "save only its state_dict" in message
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Path("x")}, protocol=4))
    assert "it asks for pathlib.PosixPath" in refusal(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_off_is_not_called_unsafe(tmp_path, zipped):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.randn(500)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    assert foreign_globals(path) is None
    for length in (20, 90, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        assert "is not a whole torch-saved file: get it again" in refusal(path)


def test_a_download_cache_is_pointed_to_its_files(tmp_path):
    """`import` takes the cache itself; a bare reading names the folder that it means."""
    snapshot = tmp_path / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    save_file(TENSORS, snapshot / "model.safetensors")
    assert f"it is a download cache: name {snapshot}" in refusal(tmp_path)
    assert snapshot_of(tmp_path) == snapshot and snapshot_of(snapshot) is None

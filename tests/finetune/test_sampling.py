"""A few examples of each class."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from finetune.sampling import about_few, few_of_each_class
from finetune.tasks.classification.commands import FinetuneClassifyConfig, run_finetune
from finetune.tasks.qa.commands import FinetuneQAConfig
from finetune.tasks.qa.commands import run_finetune as run_qa
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import Tokenizer


def features(labels: list[int]) -> SimpleNamespace:
    return SimpleNamespace(examples=len(labels), label_E=np.array(labels))


def test_k_of_each_class_by_seed_and_a_smaller_k_is_a_part_of_a_larger_one() -> None:
    data = features([0, 1, 2] * 20 + [3] * 2)
    four = few_of_each_class(data, 4, 7, "classify")
    assert np.bincount(data.label_E[four]).tolist() == [4, 4, 4, 2]
    assert len(set(four)) == 14
    assert four.tolist() == few_of_each_class(data, 4, 7, "classify").tolist()
    assert set(four) != set(few_of_each_class(data, 4, 8, "classify"))
    assert set(few_of_each_class(data, 2, 7, "classify")) < set(four)
    chosen = SimpleNamespace(label_E=data.label_E[four])
    assert about_few(chosen, 4) == "training on 14 examples, 4 of each of 4 classes; 1 classes have fewer in the file"


def test_every_example_of_a_class_is_drawn_equally_often() -> None:
    """5 of 20 in 400 draws: each 100 times, within 5 standard deviations of √(400 · ¼ · ¾) = 8.7."""
    data = features([0] * 20 + [1] * 30)
    counts = np.zeros(50)
    for seed in range(400):
        counts[few_of_each_class(data, 5, seed, "classify")] += 1
    assert abs(counts[:20] - 100).max() < 5 * 8.7


def test_the_option(
    tmp_path: Path, data: Path, tokenizer: Tokenizer, make_model: Callable, capsys: pytest.CaptureFixture
) -> None:
    save_model(tmp_path / "start", make_model(), tokenizer)
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "a good day\tyes\na bad day\tno\n" * 9)
    options = {"device": "cpu", "precision": "fp32", "backend": "eager", "epochs": 1, "examples_per_class": 3}
    config = FinetuneClassifyConfig(
        tmp_path / "train.tsv", tmp_path / "run", str(tmp_path / "start"), window=32, seed=5, **options
    )
    run_finetune(config)
    output = capsys.readouterr().out
    assert "training on 6 examples, 3 of each of 2 classes, drawn by seed 5" in output
    assert re.search(r"· 6 texts in 6 windows", output)
    qa = FinetuneQAConfig(data / "qa_v1.json", tmp_path / "qa", str(tmp_path / "start"), window=64, stride=20,
                          max_question=40, **options)  # fmt: skip
    with pytest.raises(UserError, match="the examples of `qa` have no classes"):
        run_qa(qa)

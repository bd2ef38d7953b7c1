"""A process that answers questions for `benchmarks.finetuning.serving`, and says what they cost it.

It is started by the Python in whose environment the libraries are, and imports one when it is asked for. It reads requests
from standard input, a JSON line each, {"library": …, "model": folder, "precision": …, "pairs": [[question, context], …],
"batch": B}, and writes as many to standard output: the answers, and the seconds of processor time they took, user's and
system's, reading the texts and finding the answers included (for onnxruntime the model alone). B questions are handed
over at a time.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST_ANSWER, WINDOW, SHARED = 30, 384, 128  # tokens: what the bundled readers were trained for

Pairs = list[list[str]]
Seconds = tuple[float, float]  # of processor time: user's, system's


def processor_time() -> Seconds:
    """Of all threads so far. A machine that is short of memory adds to the system's part."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime, usage.ru_stime


def since(began: Seconds) -> Seconds:
    now = processor_time()
    return now[0] - began[0], now[1] - began[1]


class Library:
    """packages: whose versions are reported."""

    packages: tuple[str, ...] = ()
    precision = "fp32"

    def __init__(self, model: str, precision: str) -> None:
        raise NotImplementedError

    def answer(self, pairs: Pairs) -> list[str]:
        """The best answers to questions that are handed over together."""
        raise NotImplementedError

    def timed(self, pairs: Pairs, batch: int) -> tuple[list[str], Seconds]:
        """The answers, and what they took."""
        answers: list[str] = []
        began = processor_time()
        for place in range(0, len(pairs), batch):
            answers += self.answer(pairs[place : place + batch])
        return answers, since(began)


class OurPipeline(Library):
    """`spanbert.pipeline`."""

    packages = ("torch", "tokenizers")

    def __init__(self, model: str, precision: str) -> None:
        import spanbert

        self.pipeline = spanbert.pipeline("question-answering", model=model, precision=precision, device="cpu")
        self.precision = self.pipeline.answerer.machine.precision

    def answer(self, pairs: Pairs) -> list[str]:
        questions, contexts = zip(*pairs, strict=True)
        found = self.pipeline(question=list(questions), context=list(contexts), max_answer_len=LONGEST_ANSWER)
        return [one["answer"] for one in ([found] if isinstance(found, dict) else found)]


class OurAnswerer(Library):
    """`QuestionAnswerer`, with the model's own settings; the best span, also where the model would rather say nothing."""

    packages = ("torch", "tokenizers")

    def __init__(self, model: str, precision: str) -> None:
        from finetune.tasks.qa.answerer import QuestionAnswerer

        self.answerer = QuestionAnswerer.load(model, precision=precision, device="cpu")
        self.precision = self.answerer.machine.precision

    def answer(self, pairs: Pairs) -> list[str]:
        questions, contexts = zip(*pairs, strict=True)
        found = self.answerer.read(contexts, [[question] for question in questions], n_best=1)
        return [decoded.answer(None) for (decoded,) in found]


class Transformers(Library):
    """The pipeline of transformers 4."""

    packages = ("transformers", "torch", "tokenizers")

    def __init__(self, model: str, precision: str) -> None:
        import transformers

        self.pipeline = transformers.pipeline("question-answering", model=model, device=-1)

    def answer(self, pairs: Pairs) -> list[str]:
        questions, contexts = zip(*pairs, strict=True)
        found = self.pipeline(
            question=list(questions), context=list(contexts), max_answer_len=LONGEST_ANSWER, batch_size=len(pairs)
        )
        return [one["answer"] for one in ([found] if isinstance(found, dict) else found)]


class Haystack(Library):
    """`ExtractiveReader`, which answers one question at a time, and hands its model no token types."""

    packages = ("haystack-ai", "transformers", "torch", "tokenizers")

    def __init__(self, model: str, precision: str) -> None:
        from haystack import Document
        from haystack.components.readers import ExtractiveReader
        from haystack.utils import ComponentDevice

        self.document = Document
        self.reader = ExtractiveReader(
            model=model,
            device=ComponentDevice.from_str("cpu"),
            token=None,
            top_k=1,
            max_seq_length=WINDOW,
            stride=SHARED,
            no_answer=False,
        )
        self.reader.warm_up()

    def answer(self, pairs: Pairs) -> list[str]:
        found = [self.reader.run(query=question, documents=[self.document(content=text)]) for question, text in pairs]
        return [one["answers"][0].data or "" if one["answers"] else "" for one in found]


class OnnxRuntime(Library):
    """onnxruntime on the model exported by PyTorch, window by window, without padding. precision: fp32, or dynamic int8.

    Only the model's time counts: no library's that also reads texts and finds answers can be shorter with this runtime.
    """

    packages = ("onnxruntime", "onnx", "transformers", "torch")

    def __init__(self, model: str, precision: str) -> None:
        import onnxruntime
        import transformers

        self.precision = precision
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        with tempfile.TemporaryDirectory() as folder:
            file = export_onnx(model, Path(folder), precision)
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def timed(self, pairs: Pairs, batch: int) -> tuple[list[str], Seconds]:
        cut = [self._windows(*pair) for pair in pairs]
        inputs = [[_numbers(windows, place) for place in range(len(windows["input_ids"]))] for windows in cut]
        began = processor_time()
        logits = [[self.session.run(None, one) for one in windows] for windows in inputs]
        seconds = since(began)
        return [_best_span(pair[1], *one) for pair, *one in zip(pairs, cut, logits, strict=True)], seconds

    def _windows(self, question: str, text: str) -> Any:
        return self.tokenizer(
            question,
            text,
            truncation="only_second",
            max_length=WINDOW,
            stride=SHARED,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )


NAMES = ("input_ids", "attention_mask", "token_type_ids")


def _numbers(windows: Any, place: int) -> dict[str, Any]:
    import numpy as np

    return {name: np.array([windows[name][place]], dtype=np.int64) for name in NAMES}


def _best_span(text: str, windows: Any, logits: list[Any]) -> str:
    """The text of the best start and end of any window, at most LONGEST_ANSWER tokens."""
    import numpy as np

    best, span = -np.inf, (0, 0)
    for place, (starts, ends) in enumerate(logits):
        context = [at for at, part in enumerate(windows.sequence_ids(place)) if part == 1]
        first, size = context[0], len(context)
        scores = starts[0, first : first + size, None] + ends[0, None, first : first + size]
        scores = np.where(np.tril(np.triu(np.ones_like(scores)), LONGEST_ANSWER - 1) > 0, scores, -np.inf)
        if scores.max() > best:
            begin, last = np.unravel_index(scores.argmax(), scores.shape)
            best, offsets = scores.max(), windows["offset_mapping"][place]
            span = offsets[first + begin][0], offsets[first + last][1]
    return text[span[0] : span[1]]


def export_onnx(model: str, folder: Path, precision: str) -> Path:
    """The model as an ONNX file with batch and length free; for int8 with quantize_dynamic's defaults, signed weights."""
    import torch
    import transformers

    reader = transformers.AutoModelForQuestionAnswering.from_pretrained(model, attn_implementation="eager").eval()

    class Logits(torch.nn.Module):
        """Start and end logits of three tensors by position."""

        def __init__(self) -> None:
            super().__init__()
            self.reader = reader

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output = self.reader(**dict(zip(NAMES, inputs, strict=True)))
            return output.start_logits, output.end_logits

    outputs = ("start_logits", "end_logits")
    torch.onnx.export(
        Logits(),
        (torch.ones(1, 12, dtype=torch.long),) * len(NAMES),
        str(folder / "model.onnx"),
        input_names=list(NAMES),
        output_names=list(outputs),
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in NAMES + outputs},
        opset_version=17,
        dynamo=False,
    )
    if precision != "int8":
        return folder / "model.onnx"
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(folder / "model.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)
    return folder / "int8.onnx"


LIBRARIES: dict[str, Callable[[str, str], Library]] = {
    "spanbert.pipeline": OurPipeline,
    "QuestionAnswerer": OurAnswerer,
    "transformers": Transformers,
    "haystack": Haystack,
    "onnxruntime": OnnxRuntime,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    import torch

    torch.set_num_threads(1)
    loaded: dict[tuple[str, str, str], Library] = {}
    for line in sys.stdin:
        request = json.loads(line)
        wanted = request["library"], request["model"], request["precision"]
        if wanted not in loaded:
            loaded[wanted] = LIBRARIES[wanted[0]](*wanted[1:])
        library = loaded[wanted]
        found, seconds = library.timed(request["pairs"], request["batch"])
        versions = {package: importlib.metadata.version(package) for package in library.packages}
        reply = {"answers": found, "seconds": seconds, "precision": library.precision, "versions": versions}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()

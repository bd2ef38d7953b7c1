"""Long texts are encoded part by part: the same tokens, in little memory."""

import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from finetune.tasks.qa import encode
from finetune.tasks.qa.encode import encode_long, encode_with_texts
from finetune.tasks.qa.features import WindowConfig
from finetune.tasks.qa.records import paragraphs_of
from spanbert.tokenizer.wordpiece import Tokenizer

CHARACTERS = "abcXYZ éüñǅİßΣς.,'-##  \n\t\u3000北京是대한\u0301\u0300\u0327👩\u200d👧🏽\ufe0f\u200b\x00\ufffdﬁ½\u212b\u0344\u2260\u037eक़ि\u0e33"


@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"clean_text": False, "split_chinese": False}])
@pytest.mark.parametrize("part", [1, 3, 7, 64])
def test_parts_have_the_tokens_of_the_whole(
    tokenizer: Tokenizer, options: dict, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Tokenizer({token: number for number, token in enumerate(tokenizer.tokens)}, **options)
    draw = random.Random(part)
    monkeypatch.setattr(encode, "PART", part)
    for form in ("NFC", "NFD") * 20:
        text = "".join(draw.choice(CHARACTERS) for _ in range(draw.randrange(300)))
        text = unicodedata.normalize(form, "a" * draw.choice([0, 0, 90, 200]) + text)
        whole, parts = own.encode(text), encode_long(own, text)
        assert parts.ids.tolist() == whole.ids.tolist()
        assert parts.offsets.tolist() == whole.offsets.tolist()


@pytest.mark.parametrize("question", ["why " * 30_000, "a" * 100_000, " " * 100_000 + "why", "?" * 100_000])
def test_of_a_very_long_question_only_the_beginning_is_read(
    tokenizer: Tokenizer, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 10 MB was tokenized whole, in 2 GB of memory, to be refused as longer than 64 tokens."""
    lengths = []
    whole = Tokenizer.encode_batch

    def noting(self: Tokenizer, texts: list[str]) -> list:
        lengths.extend(map(len, texts))
        return whole(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", noting)
    refused: list[str] = []
    found = encode_with_texts(
        paragraphs_of("Because it is.", [question]),
        tokenizer,
        WindowConfig(),
        lambda where, error: refused.append(where),
    )
    assert max(lengths) <= encode.PART
    assert refused or found.questions.cut_Q.tolist() == [True]


def test_the_memory_of_a_long_context_is_bounded(tokenizer_folder: Path) -> None:
    """Encoding took 160 bytes of memory for each character of the context; its text and windows take some 20."""
    program = (
        "import resource, sys\n"
        "from finetune.tasks.qa.encode import encode_with_texts\n"
        "from finetune.tasks.qa.features import WindowConfig\n"
        "from finetune.tasks.qa.records import paragraphs_of\n"
        "from spanbert.tokenizer.wordpiece import Tokenizer\n"
        "tokenizer = Tokenizer.load(sys.argv[1])\n"
        "def encode(words):\n"
        "    encode_with_texts(paragraphs_of('from that day the end, ' * words, ['why']), tokenizer, WindowConfig(), print)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "small = encode(5_000)\n"
        "print(encode(45_000) - small)\n"
    )
    root = Path(encode.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tokenizer_folder)], cwd=root, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) / (40_000 * 23) < 60

"""The explorer in one file, in a real browser: its forward pass against PyTorch, its tokens against the tokenizer.

Nothing is asked of the network or of another file. The references are computed here, by the project's own model, with the
weights rounded as they are in the file.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import lzma
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
import torch

from finetune.tasks.qa.task import QASettings
from pretrain.masking.masker import MaskConfig, Masker
from spanbert.checkpoint.model_folder import load_model_and_tokenizer, save_model
from spanbert.checkpoint.weight_names import group_of, to_ours, to_theirs
from spanbert.model.batch import pack_sequences
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining, SpanBertForQuestionAnswering, SpanBertModel
from spanbert.model.vocabulary_loss import vocabulary_logits
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import bundled_path
from web.explorer.bundle import bundle
from web.explorer.models import Explorer, load_explorer
from web.explorer.pack import FIRST, Precision, int8_rows, kind_of
from web.explorer.standalone import LIMIT, example_texts, javascript_modules, write_html

playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")

from tests.web.test_page import browser  # noqa: E402, F401 — the fixture

SAMPLE = Path(__file__).parents[2] / "sample"
M = TypeVar("M", bound=SpanBertModel)
TOLERANCE = 1e-4  # of a log-probability: float32 sums of 1024 terms in another order


# --- texts with masked spans, and what PyTorch makes of them ------------------------------------------------------


@dataclass(frozen=True)
class Masked:
    """A text's ids with [CLS] and [SEP], and its masked spans (first and last token)."""

    ids: list[int]
    spans: list[tuple[int, int]]

    @property
    def positions(self) -> list[int]:
        return [place for first, last in self.spans for place in range(first, last + 1)]


@cache
def masked_texts(count: int, tokens: int = 128) -> list[Masked]:
    """Articles of the sample corpus with the spans of one draw of the real masker, each cut to `tokens` tokens."""
    with lzma.open(SAMPLE / "wikipedia.txt.xz", "rt", encoding="utf-8") as file:
        text = file.read()
    paragraphs = [line for line in text.split("\n") if len(line) > 300][:count]
    assert len(paragraphs) == count
    tokenizer = Tokenizer.load(bundled_path("encoder"))
    masker = Masker.from_tokenizer(MaskConfig(), tokenizer, seed=0, unigram_counts=None, sbo_positions=20)
    made = []
    for number, paragraph in enumerate(paragraphs):
        ids = tokenizer.encode(paragraph).ids[: tokens - 2]
        packed = pack_sequences([(ids,)], tokenizer.cls_id, tokenizer.sep_id)
        targets = masker.mask(packed, epoch=0, indices=np.array([number])).targets
        spans = [(left + 1, right - 1) for left, right in zip(targets.left_S.tolist(), targets.right_S.tolist())]
        made.append(Masked(packed.input_ids_T.tolist(), spans))
    return made


def rounded(model: M, precision: Precision) -> M:
    """The model with the weights that a page of this precision holds, as fp32."""
    theirs = {}
    for name, tensor in to_theirs(dict(model.named_parameters())).items():
        kind = kind_of(name, tensor, precision)
        exact = tensor.to(torch.bfloat16).float()
        if kind in ("int8", "first"):
            numbers, scale_R = int8_rows(tensor)
            tensor = numbers.float() * scale_R[:, None]
        if kind == "first":
            tensor = torch.cat([exact[:FIRST], tensor[FIRST:]])
        theirs[name] = exact if kind == "bf16" else tensor
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            group = group_of(name)
            widths = [dict(model.named_parameters())[ours].shape[group.dim] for ours in group.ours]
            parameter.copy_(to_ours(group, theirs, widths)[name])
    return model.eval()


def encoder(precision: Precision | Literal["fp32"]) -> SpanBertForPretraining:
    model, _, _ = load_model_and_tokenizer(bundled_path("encoder"), SpanBertForPretraining)
    return rounded(model, precision) if precision != "fp32" else model.eval()


@torch.inference_mode()
def log_probs(model: SpanBertForPretraining, one: Masked, mask_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(M, V) each: what the MLM and the SBO head say at the masked positions."""
    ids = torch.tensor(one.ids)
    ids[one.positions] = mask_id
    hidden_TH = model.encoder(ids, torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))
    first_S, last_S = torch.tensor(one.spans).T
    span_M = torch.arange(len(one.spans)).repeat_interleave(last_S - first_S + 1)
    offset_M = torch.tensor(one.positions) - first_S[span_M]
    embedding_VH = model.encoder.embeddings.word.weight
    mlm = vocabulary_logits(model.mlm(hidden_TH[one.positions]), embedding_VH, model.mlm.bias)
    sbo_features = model.sbo(hidden_TH[first_S - 1], hidden_TH[last_S + 1], span_M, offset_M)
    sbo = vocabulary_logits(sbo_features, embedding_VH, model.sbo.bias)
    return mlm.log_softmax(-1).numpy(), sbo.log_softmax(-1).numpy()


# --- pages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def visit(browser) -> Iterator[Callable[[Path], Any]]:  # noqa: F811
    """visit(file) → the open page; at the end, no error and no request but for the file itself."""
    contexts, errors, requests, files = [], [], [], []

    def make(file: Path) -> Any:
        context = browser.new_context()
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        files.append(file.as_uri())
        page.goto(file.as_uri())
        return page

    yield make
    for context in contexts:
        context.close()
    assert errors == []
    assert requests == files


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("standalone")


@pytest.fixture(scope="module")
def bf16(visit, folder) -> Any:
    """Both bundled models in the precision that they have on disk: nothing is lost, but it is too large to hand out."""
    write_html(bundled_path("encoder"), bundled_path("scratch"), folder / "bf16.html", "bf16", limit=2 * LIMIT)
    return visit(folder / "bf16.html")


@pytest.fixture(scope="module")
def int8(visit, folder) -> Any:
    """The page as the command writes it."""
    size = write_html(bundled_path("encoder"), bundled_path("scratch"), folder / "int8.html")
    assert size == (folder / "int8.html").stat().st_size <= LIMIT
    print(f"\nboth bundled models in int8: {size:,} bytes")
    return visit(folder / "int8.html")


def run(page: Any, one: Masked) -> dict[str, Any]:
    """What the page's source makes of a masked text, without the attention maps."""
    return page.evaluate(
        """async ([ids, spans]) => { const { mlm, sbo } = await spanbertSource.run(ids, spans); return { mlm, sbo }; }""",
        [one.ids, one.spans],
    )


def with_forward_pass(page: Any) -> Any:
    """The page with forward.js within the test's reach."""
    entry = 'import * as forward from "./forward.js";\nglobalThis.forward = forward;'
    page.evaluate(f"() => {{ {bundle({**javascript_modules(), 'test.js': entry}, 'test.js')} }}")
    return page


# --- the forward pass ---------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_predictions_are_those_of_pytorch(bf16):
    """50 texts: at every masked token the same best token, and the log-probabilities of the page's best five."""
    model, tokenizer = encoder("bf16"), Tokenizer.load(bundled_path("encoder"))
    worst, compared = 0.0, 0
    for one in masked_texts(50):
        found = run(bf16, one)
        for head, expected_MV in zip(("mlm", "sbo"), log_probs(model, one, tokenizer.mask_id)):
            assert [row["position"] for row in found[head]] == one.positions
            for row, expected_V in zip(found[head], expected_MV, strict=True):
                assert row["best"][0]["id"] == expected_V.argmax()
                for token in row["best"]:
                    assert token["token"] == tokenizer.token(token["id"])
                    worst = max(worst, abs(np.log(token["p"]) - expected_V[token["id"]]))
                compared += 1
    print(f"\n{compared:,} predictions, largest difference of a log-probability {worst:.1e}")
    assert compared > 1500 and worst < TOLERANCE


@pytest.mark.browser
def test_log_probabilities_of_the_whole_vocabulary(bf16):
    """Also of what is improbable; and attention, which a row of probabilities is for each token."""
    model, tokenizer = encoder("bf16"), Tokenizer.load(bundled_path("encoder"))
    page = with_forward_pass(bf16)
    for one in masked_texts(3):
        made = page.evaluate(
            """async ([ids, positions, targets]) => {
                const model = await spanbertSource.model("encoder");
                const { hidden, attention } = forward.encode(model, ids);
                const sums = attention.flat().flatMap((map) => ids.map((_, t) =>
                    map.subarray(t * ids.length, (t + 1) * ids.length).reduce((sum, p) => sum + p, 0)));
                const bytes = (x) => new Uint8Array(x.buffer);
                const text = (x) => bytes(x).reduce((all, byte) => all + String.fromCharCode(byte), "");
                return [btoa(text(forward.mlmLogProbs(model, hidden, positions))),
                        btoa(text(forward.sboLogProbs(model, hidden, targets))), sums];
            }""",
            [
                [tokenizer.mask_id if place in one.positions else id for place, id in enumerate(one.ids)],
                one.positions,
                [
                    {"left": first - 1, "right": last + 1, "offset": place - first}
                    for first, last in one.spans
                    for place in range(first, last + 1)
                ],
            ],
        )
        for text, expected_MV in zip(made, log_probs(model, one, tokenizer.mask_id), strict=False):
            found_MV = np.frombuffer(base64.b64decode(text), "<f4").reshape(expected_MV.shape)
            assert np.abs(found_MV - expected_MV).max() < TOLERANCE
        assert len(made[2]) == 16 * len(one.ids) and np.allclose(made[2], 1, atol=1e-5)


@pytest.mark.browser
def test_int8_hardly_changes_the_best_token(int8):
    """Against fp32: the same best token at 97 % of the masked tokens. Against the same int8 weights in PyTorch: at all."""
    exact, rounded_model = encoder("fp32"), encoder("int8")
    tokenizer = Tokenizer.load(bundled_path("encoder"))
    same, count, worst = {"mlm": 0, "sbo": 0}, 0, 0.0
    for one in masked_texts(100):
        found = run(int8, one)
        references = zip(
            ("mlm", "sbo"), log_probs(exact, one, tokenizer.mask_id), log_probs(rounded_model, one, tokenizer.mask_id)
        )
        count += len(one.positions)
        for head, exact_MV, rounded_MV in references:
            best_M = [row["best"][0]["id"] for row in found[head]]
            same[head] += int((exact_MV.argmax(-1) == best_M).sum())
            for row, rounded_V in zip(found[head], rounded_MV, strict=True):
                worst = max(worst, abs(np.log(row["best"][0]["p"]) - rounded_V[row["best"][0]["id"]]))
    shares = {head: number / count for head, number in same.items()}
    print(f"\nint8: best token as in fp32 at {shares} of {count:,} masked tokens; against int8 in PyTorch {worst:.1e}")
    assert min(shares.values()) >= 0.97
    assert worst < TOLERANCE


@pytest.mark.browser
def test_erf_is_that_of_the_library(bf16):
    page = with_forward_pass(bf16)
    points = np.linspace(-6, 6, 4801)
    found = page.evaluate("(points) => points.map(forward.erf)", points.tolist())
    assert (
        np.abs(np.array(found) - torch.erf(torch.tensor(points)).numpy()).max() < 2**-25
    )  # half of float32's last place


@pytest.mark.browser
def test_a_forward_pass_takes_less_than_half_a_second(bf16):
    """Processor time of the page's thread, so that other work on the machine does not count; the best of five."""
    session = bf16.context.new_cdp_session(bf16)
    session.send("Performance.enable")

    def used() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")

    best = {}
    for tokens in (64, 128):
        whole = [one for one in masked_texts(50, tokens) if len(one.ids) == tokens][-5:]
        times = []
        for number, one in enumerate(whole):
            other = [one.ids[0], 1000 + number, *one.ids[2:]]  # what has been asked before is remembered
            before = used()
            run(bf16, Masked(other, one.spans))
            times.append(used() - before)
        best[tokens] = min(times)
        print(f"\n{tokens} tokens: {', '.join(f'{1000 * time:.0f}' for time in times)} ms")
        print(f"masked: {', '.join(str(len(one.positions)) for one in whole)}")
    assert 0.01 < best[128] < 0.5


# --- the same as the server -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    """What the server answers with."""
    return load_explorer(bundled_path("encoder"), bundled_path("scratch"))


def ask(page: Any, method: str, *arguments: Any) -> Any:
    return page.evaluate("([method, arguments]) => spanbertSource[method](...arguments)", [method, list(arguments)])


def assert_close(found: Any, expected: Any, path: str = "") -> None:
    """Equal, but for floats, which are near; and the same fields."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_close(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected)):
            assert_close(one, other, f"{path}[{number}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4), path
    else:
        assert found == expected, path


@pytest.mark.browser
def test_what_the_page_knows_is_what_the_server_says(bf16, explorer):
    assert ask(bf16, "describe") == explorer.describe()


@pytest.mark.browser
def test_masks_of_the_examples_are_those_of_the_server(bf16, explorer):
    texts = example_texts()
    assert len(texts) == 3
    for text, seed in itertools.product(texts, (0, 1, 50, 99)):
        assert_close(ask(bf16, "masks", text, seed), explorer.masks(text, seed))
    assert ask(bf16, "masks", texts[0], 100) is None
    assert ask(bf16, "masks", texts[0] + "!", 0) is None


@pytest.mark.browser
def test_attention_is_that_of_the_server(bf16, explorer):
    """In 255ths: a rounding may fall to the other side, no more."""
    for one in masked_texts(3):
        expected, _ = explorer.run(one.ids, one.spans)
        found = bf16.evaluate(
            """async ([ids, spans]) => (await spanbertSource.run(ids, spans)).attention.map((heads) => heads.map((map) => [...map]))""",
            [one.ids, one.spans],
        )
        assert np.abs(np.array(found).reshape(expected.shape) - expected.astype(int)).max() <= 1


@pytest.mark.browser
def test_answers_are_those_of_the_server(bf16, explorer):
    """Texts of one and of several windows: logits, places, scores and shares."""
    data = json.loads(gzip.decompress((SAMPLE / "squad-dev.json.gz").read_bytes()))["data"]
    paragraphs = [paragraph for article in data for paragraph in article["paragraphs"]]
    asked = [(p["qas"][0]["question"], p["context"]) for p in paragraphs[:8]]
    asked.append((asked[0][0], " ".join(context for _, context in asked[:4])))
    windows = []
    for question, context in asked:
        found = ask(bf16, "answer", question, context)
        assert_close(found, explorer.answer(question, context))
        windows.append(len(found["windows"]))
    assert windows[0] == 1 and windows[-1] > 2


@pytest.mark.browser
def test_answers_of_a_model_that_may_decline(visit, folder):
    """An untrained model, which declines or not by its threshold; of a text of three tokens all seven answers are seen."""
    tokenizer = Tokenizer.load(bundled_path("scratch"))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = SpanBertForQuestionAnswering(EncoderConfig(vocab_size=tokenizer.vocab_size, **shape))
    torch.nn.init.normal_(model.qa_outputs.weight, generator=torch.Generator().manual_seed(0))
    long_text = "Un cafe\u0301 à Paris 👩\u200d👩\u200d👧, 1869 — so it was. " * 4
    for threshold in (-1e6, 1e6):
        settings = QASettings(window=64, stride=16, max_question=16, null_allowed=True, null_threshold=threshold)
        save_model(folder / "declines", model, tokenizer, {"qa": asdict(settings)})
        write_html(folder / "declines", None, folder / "declines.html", "bf16")
        page = visit(folder / "declines.html")
        reference = load_explorer(folder / "declines", None)
        assert reference.answerer is not None
        rounded(reference.answerer.model, "bf16")
        for text in (long_text, "It was so"):
            expected = reference.answer("When was it?", text)
            assert_close(ask(page, "answer", "When was it?", text), expected)
            assert (expected["answers"][0]["text"] == "") == (threshold < 0)
    assert [answer["text"] for answer in expected["answers"]].count("") == 1 and len(expected["answers"]) == 7


@pytest.mark.browser
def test_what_cannot_be_answered_is_said(bf16, uncased):
    for page, method, arguments, message in (
        (bf16, "encode", ["\u200b"], "text holds no token that the tokenizer knows"),
        (bf16, "encode", ["é" * 20_001], "text has 20,001 characters, the explorer shows at most 20,000"),
        (bf16, "answer", ["", "A text."], "question holds no token that the tokenizer knows"),
        (bf16, "answer", ["why " * 70, "A text."], "question has 70 tokens, this model reads questions of at most 64"),
        (uncased[0], "answer", ["why", "A text."], "small has no trained head for questions"),
    ):
        with pytest.raises(playwright.Error, match=message):
            ask(page, method, *arguments)


@pytest.mark.browser
def test_the_page_draws_all_its_views(int8):
    """The page itself, opened from the file: each view is there, and says nothing about a problem."""
    for view in ("tokens", "masks", "attention", "predictions", "qa", "answers"):
        int8.wait_for_selector(f"#{view}-view[data-drawn]")
    assert int8.query_selector(".problem") is None
    assert "17 November 1869" in int8.inner_text("#answers-view")


# --- WordPiece ----------------------------------------------------------------------------------------------------

ODD = [
    *"\t\n\r\x00\x07\x1f\x7f\x85\xa0\u00ad\u200b\u200d\u2028\u2029\u3000\ufeff\ufffd\ufe0f", "e\u0301", "é", "ﬁ", "ß", "İ",
    "ı", "ǅ", "Σίσυφος", "ΟΔΥΣΣΕΥΣ", "a\u0323\u0307b", "q\u0307\u0323", "각", "ᄀ\u1161\u11a8", "日本語", "汉", "𠀀", "か\u3099",
    "😀", "👩\u200d👩\u200d👧", "👍🏽", "🇫🇷", "שָׁלוֹם", "مرحبا", "\u202eabc\u202c", "हिन्दी", "ไทย", "Ⅷ", "½", "²", "𝔄", "…", "—", "«x»", "“x”",
    "[MASK]", "[CLS]", "[SEP]", "[UNK]", "[PAD]", "##s", "don't", "U.S.A.", "3.14", "$5", "C++", "a_b", "^`~|<>=+", "x" * 100,
    "x" * 101, "é" * 100, "́" * 3, "Straße", "naïve", "Zürich", "\u0085x", "\U000e0001", "\ue000", "\u0378", "𑃍", "⹃", "Canal",
]  # fmt: skip


def odd_texts(count: int, seed: int = 0) -> list[str]:
    """Odd parts and random characters of all planes, with and without spaces."""
    draw = random.Random(seed)
    valid = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
    texts = ["", " ", *ODD]
    while len(texts) < count:
        parts = [
            draw.choice(ODD)
            if draw.random() < 0.7
            else chr(draw.choice(valid[:0x3000] if draw.random() < 0.8 else valid))
            for _ in range(draw.randint(1, 12))
        ]
        texts.append(draw.choice(["", " "]).join(parts))
    return texts


@pytest.fixture(scope="module")
def uncased(visit, folder) -> tuple[Any, Tokenizer]:
    """A page whose model is as small as can be, with the vocabulary of the reader, which lower-cases and strips accents."""
    tokenizer = Tokenizer.load(bundled_path("reader"))
    assert tokenizer.lowercase
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = EncoderConfig(vocab_size=tokenizer.vocab_size, sbo_position_size=8, **shape)
    save_model(folder / "small", SpanBertForPretraining(config), tokenizer)
    write_html(folder / "small", None, folder / "uncased.html")
    return visit(folder / "uncased.html"), tokenizer


def assert_same_tokens(page: Any, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Ids, offsets and words; a text without tokens is refused."""
    encoded = page.evaluate(
        "(texts) => Promise.all(texts.map((text) => spanbertSource.encode(text).catch((error) => error.message)))",
        texts,
    )
    for text, found in zip(texts, encoded, strict=True):
        expected = tokenizer.encode(text)
        ids = expected.ids.tolist()
        if not ids:
            assert found == "text holds no token that the tokenizer knows", text
            continue
        assert found["ids"] == [tokenizer.cls_id, *ids, tokenizer.sep_id], text
        places = list(zip(found["starts"][1:-1], found["ends"][1:-1], strict=True))
        assert places == [tuple(pair) for pair in expected.offsets.tolist()], text
        assert found["tokens"] == [tokenizer.token(id) for id in found["ids"]]
        words = np.cumsum(tokenizer.starts_word[expected.ids]) - 1
        assert found["words"] == [None, *map(int, words), None], text


@pytest.mark.browser
@pytest.mark.parametrize("case", ["cased", "uncased"])
def test_tokens_of_odd_texts(request, case, bf16):
    page, tokenizer = (
        (bf16, Tokenizer.load(bundled_path("encoder"))) if case == "cased" else request.getfixturevalue("uncased")
    )
    texts = odd_texts(700)
    assert sum(len(tokenizer.encode(text).ids) > 0 for text in set(texts)) > 600
    assert_same_tokens(page, tokenizer, texts)


@pytest.mark.browser
@pytest.mark.parametrize("case", ["cased", "uncased"])
def test_tokens_of_every_character(request, case, bf16):
    """Each character of the first three planes, and of the last, within a word: is it dropped, cut at, changed?"""
    page, tokenizer = (
        (bf16, Tokenizer.load(bundled_path("encoder"))) if case == "cased" else request.getfixturevalue("uncased")
    )
    planes = [*range(0x30000), *range(0xE0000, 0xE0400)]
    words = [f"a{chr(code)}b" for code in planes if not 0xD800 <= code <= 0xDFFF]
    assert_same_tokens(page, tokenizer, [" ".join(words[begin : begin + 1000]) for begin in range(0, len(words), 1000)])


@pytest.mark.browser
def test_half_a_character_is_none(bf16):
    """A lone surrogate, which a text field can hold, is taken as U+FFFD, as in Python."""
    found = bf16.evaluate("""() => spanbertSource.encode("a" + String.fromCharCode(0xd800) + "b")""")
    expected = Tokenizer.load(bundled_path("encoder")).encode("a\ud800b")
    assert found["ids"][1:-1] == expected.ids.tolist()
    assert list(zip(found["starts"], found["ends"]))[1:-1] == [tuple(pair) for pair in expected.offsets.tolist()]

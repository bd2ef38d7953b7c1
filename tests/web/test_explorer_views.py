"""What the explorer's server says of a text, held against the project's own tokenizer, masks, model and answers."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="the server needs the packages of the extra `serve`")

from starlette.testclient import TestClient

from finetune.tasks.qa.answerer import QuestionAnswerer
from pretrain.masking.masker import MaskConfig, Masker
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.checkpoint.store import find_model
from spanbert.errors import UserError
from spanbert.model.batch import Targets, pack_sequences
from spanbert.model.models import SpanBertForPretraining
from spanbert.weights import bundled_path
from tests.web.conftest import BASE, CANAL
from web.config import Limits
from web.explorer.app import create_app
from web.explorer.command import ExploreConfig
from web.explorer.models import CODE, ROOT, SCHEMES, load_explorer, place_in_source

LONG = " ".join([CANAL] * 30)


@pytest.fixture(scope="module")
def client():
    app = create_app(load_explorer(bundled_path("encoder"), bundled_path("scratch")), Limits(text=20_000))
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def pretrained():
    model, tokenizer, _ = load_model_and_tokenizer(bundled_path("encoder"), SpanBertForPretraining)
    return model.eval(), tokenizer


def ask(client, view, **body):
    response = client.post(f"/v1/explorer/{view}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client, view, **body):
    response = client.post(f"/v1/explorer/{view}", json=body)
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()


def attention_of(run):
    shape = run["attention"]["shape"]
    data = np.frombuffer(zlib.decompress(base64.b64decode(run["attention"]["zlib"])), np.uint8)
    return data.reshape(*shape, shape[-1])


def test_tokens_have_their_offsets_in_code_points(client, pretrained):
    text = "\U0001f6a2 Der Kanal\u0301 naïveté <script>"
    found, (_, tokenizer) = ask(client, "encode", text=text), pretrained
    ids, offsets = tokenizer.encode(text)
    assert found["ids"] == [tokenizer.cls_id, *ids.tolist(), tokenizer.sep_id]
    assert found["tokens"][1:-1] == [tokenizer.token(number) for number in ids]
    assert list(zip(found["starts"][1:-1], found["ends"][1:-1], strict=True)) == [
        tuple(pair) for pair in offsets.tolist()
    ]
    assert found["words"][0] is None and found["words"][-1] is None
    starts = [token for token in found["tokens"][1:-1] if not token.startswith("##")]
    assert found["words"][-2] == len(starts) - 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("text", [CANAL, LONG])
def test_masks_are_those_of_pretraining(client, pretrained, scheme, text):
    _, tokenizer = pretrained
    masker = Masker.from_tokenizer(MaskConfig(scheme=scheme), tokenizer, seed=11)
    packed = pack_sequences([(tokenizer.encode(text).ids[:126],)], tokenizer.cls_id, tokenizer.sep_id)
    expected = masker.mask(packed, epoch=0, indices=np.array([0]))
    drawn = ask(client, "masks", text=text, seed=11)["schemes"][scheme]
    assert drawn["seen"] == [tokenizer.token(number) for number in expected.packed.input_ids_T]
    targets = [place for place, kind in enumerate(drawn["replaced"]) if kind]
    assert targets == expected.targets.positions_M.tolist()
    inside = [place for first, last in drawn["spans"] for place in range(first, last + 1)]
    assert inside == targets
    for place in targets:
        seen, before = drawn["seen"][place], tokenizer.token(int(packed.input_ids_T[place]))
        kind = "mask" if seen == "[MASK]" else "same" if seen == before else "random"
        assert drawn["replaced"][place] == kind


def test_the_histogram_counts_words_and_sums_to_the_theory(client):
    histogram = ask(client, "masks", text=LONG, seed=0)["histogram"]
    assert sum(histogram["theory"]) == pytest.approx(1)
    assert histogram["theory"][1] / histogram["theory"][0] == pytest.approx(0.8)
    shares = np.array(histogram["counts"]) / sum(histogram["counts"])
    assert np.abs(shares - histogram["theory"]).max() < 0.03
    assert sum(histogram["counts"]) > 1000


def test_attention_is_what_the_encoder_computes(client, pretrained):
    """Rows sum to one within quantisation, and the context that the shares give is the model's own."""
    model, tokenizer = pretrained
    ids = ask(client, "encode", text=CANAL)["ids"]
    shares = attention_of(ask(client, "run", ids=ids, spans=[[4, 5]])).astype(np.float64) / 255
    assert shares.shape == (4, 4, len(ids), len(ids))
    assert np.abs(shares.sum(-1) - 1).max() <= len(ids) * 0.5 / 255
    seen = torch.tensor(ids)
    seen[4:6] = tokenizer.mask_id
    inputs, contexts = {}, {}
    layer = model.encoder.layers[0]
    handles = [
        layer.qkv.register_forward_hook(lambda _m, _i, out: inputs.update(qkv=out)),
        layer.attention_out.register_forward_pre_hook(lambda _m, given: contexts.update(context=given[0])),
    ]
    with torch.inference_mode():
        model.encoder(seen, torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))
    for handle in handles:
        handle.remove()
    value = inputs["qkv"].view(len(ids), 3, 4, -1)[:, 2].double()
    rebuilt = torch.einsum("hij,jhd->ihd", torch.from_numpy(shares[0]), value).flatten(1)
    error = (rebuilt - contexts["context"].double()).abs().max()
    assert error <= len(ids) * 0.5 / 255 * value.abs().max() and error < 0.1 * contexts["context"].abs().max()


def test_predictions_are_the_models_own(client, pretrained):
    """The losses that the model's own forward pass sums are those of the probabilities shown."""
    model, tokenizer = pretrained
    ids, spans = ask(client, "encode", text=CANAL)["ids"], [[2, 4], [8, 8]]
    run = ask(client, "run", ids=ids, spans=spans)
    positions = [2, 3, 4, 8]
    assert [row["position"] for row in run["mlm"]] == [row["position"] for row in run["sbo"]] == positions
    seen = torch.tensor(ids)
    seen[positions] = tokenizer.mask_id
    cu = torch.tensor([0, len(ids)], dtype=torch.int32)
    left, right = torch.tensor([1, 7]), torch.tensor([5, 9])
    span, offset = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 0])
    for rank in range(5):
        for place, position in enumerate(positions):
            for head, number in (("mlm", 0), ("sbo", 1)):
                shown = run[head][place]["best"][rank]
                assert tokenizer.token(shown["id"]) == shown["token"]
                targets = Targets(
                    torch.tensor([position]), torch.tensor([shown["id"]]), left[span[place]][None],
                    right[span[place]][None], torch.tensor([0]), offset[place][None], torch.tensor([0]),
                )  # fmt: skip
                with torch.inference_mode():
                    loss = model(_batch(seen, cu), targets)[number]
                assert shown["p"] == pytest.approx(float(torch.exp(-loss.loss_sum)), rel=1e-3)


def _batch(ids, cu):
    from spanbert.model.batch import PackedBatch

    return PackedBatch(ids, cu, len(ids))


@pytest.mark.parametrize("text", [CANAL, LONG + " The bridge was opened in 1894."])
def test_answers_are_the_answerers_own(client, text):
    answerer = QuestionAnswerer.load(bundled_path("scratch"), device="cpu", precision="fp32")
    found = ask(client, "answer", question="When was the canal opened?", text=text)
    expected = answerer.answer("When was the canal opened?", text, n_best=8)
    assert [one["text"] for one in found["answers"]] == [one.text for one in expected]
    for shown, own in zip(found["answers"], expected, strict=True):
        assert shown["score"] == pytest.approx(own.score, abs=1e-3) and text[shown["start"] : shown["end"]] == own.text
    assert len(found["windows"]) == (1 if text == CANAL else 3)
    owned = [token for one in found["windows"] for token in range(one["ownedFirst"], one["ownedLast"] + 1)]
    assert owned == list(range(len(found["tokens"])))
    for window in found["windows"]:
        assert len(window["start"]) == len(window["end"]) == window["count"]
    best = found["answers"][0]
    first, last = found["starts"].index(best["start"]), found["ends"].index(best["end"])
    window = next(one for one in found["windows"] if one["ownedFirst"] <= first <= one["ownedLast"])
    assert window["start"][first - window["first"]] + window["end"][last - window["first"]] == pytest.approx(best["score"], abs=1e-4)  # fmt: skip


def test_places_in_the_source_are_where_the_code_is(client):
    code = client.get("/v1/explorer").json()["code"]
    assert set(code) == set(CODE)
    for view, things in CODE.items():
        for place, thing in zip(code[view].split(", "), things, strict=True):
            path, _, lines = place.partition(":")
            first, last = map(int, lines.split("-"))
            text = (ROOT / path).read_text(encoding="utf-8").splitlines()[first - 1 : last]
            assert any(
                f"{word} {getattr(thing, 'func', thing).__name__}" in line
                for line in text[:3]
                for word in ("def", "class")
            ), place
            assert place == place_in_source(thing) and not Path(path).is_absolute()


def test_bad_requests_are_problems(client):
    ids = ask(client, "encode", text=CANAL)["ids"]
    for view, body, status, kind, field in (
        ("encode", {"text": " \n"}, 422, "empty", "text"),
        ("encode", {"text": "\u200b"}, 422, "empty", "text"),
        ("encode", {"text": "a" * 20_001}, 413, "too-large", "text"),
        ("encode", {"texts": "a"}, 422, "invalid", "text"),
        ("masks", {"text": CANAL, "seed": -1}, 422, "invalid", "seed"),
        ("masks", {"text": CANAL, "seed": "1"}, 422, "invalid", "seed"),
        ("run", {"ids": [2, 3]}, 422, "invalid", "ids"),
        ("run", {"ids": [2] * 129}, 422, "invalid", "ids"),
        ("run", {"ids": [2, 16_000, 3]}, 422, "invalid", "ids[1]"),
        ("run", {"ids": ids, "spans": [[0, 2]]}, 422, "invalid", "spans[0]"),
        ("run", {"ids": ids, "spans": [[2, 3], [4, 4]]}, 422, "invalid", "spans[1]"),
        ("run", {"ids": ids, "spans": [[3, 2]]}, 422, "invalid", "spans[0]"),
        ("run", {"ids": ids, "spans": [[2, len(ids) - 1]]}, 422, "invalid", "spans[0]"),
        ("run", {"ids": ids, "spans": [[2]]}, 422, "invalid", "spans[0]"),
        ("answer", {"question": " ", "text": CANAL}, 422, "invalid", "question"),
        ("answer", {"question": "\u200b", "text": CANAL}, 422, "empty", "question"),
        ("answer", {"question": "why " * 65, "text": CANAL}, 422, "question-too-long", "question"),
        ("answer", {"question": "Why?", "text": ""}, 422, "empty", "text"),
    ):
        found = refused(client, view, **body)
        assert (found[0], found[1]["type"], found[1]["field"]) == (status, f"/docs#{kind}", field), (view, body, found)


def test_only_this_machines_own_pages_may_ask(client):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert client.post("/v1/explorer/encode", json={"text": "a"}, headers={"Origin": "http://evil"}).status_code == 403
    assert client.post("/v1/explorer/encode", content=b"{}").status_code == 415
    assert client.get("/models.py").status_code == 404 and client.get("/..%2fapp.py").status_code == 404
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert (
        page.headers["x-content-type-options"] == "nosniff" and "unsafe" not in page.headers["content-security-policy"]
    )
    assert client.get("/docs").status_code == 200


def test_a_model_without_heads_says_so():
    """`scratch` answers questions and has neither an MLM nor an SBO head; `encoder` is the other way round."""
    explorer = load_explorer(bundled_path("scratch"), None)
    about = explorer.describe()
    assert (about["hasMlm"], about["hasSbo"], about["hasQa"]) == (False, False, True)
    assert "no trained SBO head" in about["missing"]["sbo"]
    attention, found = explorer.run(explorer.encode(CANAL)["ids"], [[2, 2]])
    assert attention.any() and found == {"mlm": None, "sbo": None}
    about = load_explorer(bundled_path("encoder"), None).describe()
    assert not about["hasQa"] and "no trained head for questions" in about["missing"]["qa"]


def test_the_command_checks_its_values(tmp_path):
    with pytest.raises(UserError, match="can be reached from other machines"):
        ExploreConfig(host="0.0.0.0").check()
    with pytest.raises(UserError, match="ports are"):
        ExploreConfig(port=70_000).check()
    with pytest.raises(UserError, match="no such folder"):
        ExploreConfig(model=tmp_path / "none").folders()
    assert ExploreConfig().folders() == (bundled_path("encoder"), bundled_path("scratch"))
    model = find_model(bundled_path("reader"))
    assert ExploreConfig(model=model).folders() == (model, None)

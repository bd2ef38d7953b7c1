"""The explorer in a real browser: one text through all views, nothing asked of the outside, keyboard, phone, both themes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
pytest.importorskip("fastapi", reason="the server needs the packages of the extra `serve`")

import uvicorn
from playwright import sync_api as playwright

from spanbert.weights import bundled_path
from tests.web.conftest import CANAL
from tests.web.test_page import CHROMIUM, FLAGS, holds
from web.config import Limits
from web.explorer.app import create_app
from web.explorer.models import load_explorer
from web.serve import listen, uvicorn_settings

pytestmark = pytest.mark.browser
VIEWS = ("tokens", "masks", "attention", "predictions", "qa", "answers")
#: A folder for pictures of the page; they are only taken where it is named.
PICTURES = os.environ.get("SPANBERT_PICTURES")
TOKEN_VIEWS = (
    "#tokens-view .chip",
    "[data-scheme=geometric] .tok",
    "[data-scheme=subword] .tok",
    "[data-scheme=own] .tok",
    "[data-view=attention] .tok",
    "[data-view=qa] .tok",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def served(explorer) -> Iterator[str]:
    limits = Limits(text=20_000)
    server = uvicorn.Server(uvicorn_settings(create_app(explorer, limits), limits))
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    yield from served(load_explorer(bundled_path("encoder"), bundled_path("scratch")))


@pytest.fixture(scope="module")
def headless_address() -> Iterator[str]:
    """Of a model that answers questions and has neither an MLM nor an SBO head."""
    yield from served(load_explorer(bundled_path("scratch"), None))


@pytest.fixture(scope="module")
def reader_address() -> Iterator[str]:
    yield from served(load_explorer(bundled_path("encoder"), bundled_path("reader")))


@pytest.fixture
def visit(chromium, address) -> Iterator:
    """visit(fragment, …) → the open page; at the end it must have made no error and no request to the outside."""
    contexts, errors, requests = [], [], []

    def make(fragment="", *, at=None, width=1280, scheme="light", refused=False):
        context = chromium.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: message.type == "error" and not refused and errors.append(message.text))
        page.goto((at or address) + fragment)
        settled(page)
        return page

    yield make
    for context in contexts:
        context.close()
    assert errors == []
    assert requests and [url for url in requests if not url.startswith(("http://127.0.0.1:", "data:"))] == []


def settled(page):
    holds(page, "document.getElementById('facts').textContent !== 'connecting…'")
    holds(page, "document.querySelectorAll('[aria-busy]').length === 0")


def write(page, text, question=None):
    page.fill("#text", text)
    holds(page, f"location.hash.includes('text=') || {len(text)} === 0")
    page.wait_for_timeout(450)
    settled(page)
    if question:
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_timeout(50)
        settled(page)


def picture(page, name):
    if PICTURES:
        page.wait_for_timeout(300)
        page.screenshot(path=Path(PICTURES) / f"explorer-{name}.png")


def lit(page):
    """Which tokens are lit, view by view."""
    return [page.evaluate(f"Array.from(document.querySelectorAll({view!r} + '.lit'), e => e.firstChild.textContent)") for view in TOKEN_VIEWS]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_all_views_are_drawn_and_fit(visit, scheme, width):
    page = visit(width=width, scheme=scheme)
    for view in VIEWS:
        assert page.locator(f"#{view}-view > *").count() > 0 and page.inner_text(f"#{view} .about").endswith(".")
        assert ".py:" in page.inner_text(f"#{view}-code")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("text=Show all")
    holds(page, "document.querySelectorAll('.head-card').length === 2")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) < 200) == (scheme == "dark")
    painted = "Array.from(document.querySelector('.large').getContext('2d').getImageData(240, 240, 1, 1).data)"
    before = page.evaluate(painted)
    page.click("#theme")
    holds(page, f"JSON.stringify({painted}) !== '{str(before).replace(' ', '')}'")
    assert "theme=" in page.evaluate("location.hash")
    picture(page, f"{scheme}-{width}")


def test_a_token_pointed_at_lights_up_in_every_view(visit):
    page = visit()
    for view in TOKEN_VIEWS:
        page.locator(view, has_text="November").first.hover()
        assert lit(page) == [["November"]] * len(TOKEN_VIEWS), view
    page.locator("h1").hover()
    assert lit(page) == [[]] * len(TOKEN_VIEWS)
    page.locator(".answers .answer-text").first.hover()
    assert lit(page)[0] == ["17", "November", "1869"]
    page.locator(".large").scroll_into_view_if_needed()
    box = page.locator(".large").bounding_box()
    tokens = page.locator("#tokens-view .chip").count()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] * 8.5 / tokens)
    assert lit(page)[0] == ["17"] and page.inner_text(".looks").startswith("17 looks at")


def test_the_keyboard_does_all(visit):
    page = visit("#scheme=own")
    page.focus("#tokens-view .chip[tabindex='0']")
    page.keyboard.press("ArrowRight")
    assert lit(page)[1:] == [["Su"]] * 5 and lit(page)[0] == ["Su"]
    page.focus("[data-scheme=own] .tok[tabindex='0']")
    for key in ("ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    holds(page, "location.hash.includes('own=2-4')")
    settled(page)
    assert page.locator("[data-scheme=own] .mask").all_inner_texts() == ["Su", "ez", "Canal"]
    assert page.evaluate("document.activeElement.matches('[data-scheme=own] .tok')")
    page.keyboard.press("Enter")
    holds(page, "!location.hash.includes('own=2-4')")
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowLeft", "Enter"):
        page.keyboard.press(key)
    holds(page, "location.hash.includes('own=')")
    settled(page)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "guess":
            break
    page.keyboard.type("canal")
    page.keyboard.press("Enter")
    holds(page, "document.querySelectorAll('.head-card').length === 2")
    assert "canal" in page.inner_text("#predictions-view .facts")
    assert page.evaluate("document.activeElement.matches('.tab')")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    holds(page, "document.getElementById('guess') !== null")
    page.focus(".thumbnail[tabindex='0']")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    assert "Layer 2, head 3" in page.inner_text(".caption")
    page.focus("#question")
    page.keyboard.press("Control+a")
    page.keyboard.type("Who founded it?")
    page.keyboard.press("Enter")
    holds(page, "location.hash.includes('question=Who')")


def test_keys_select_up_to_an_end_and_abandon(visit):
    page = visit()
    last = page.locator("[data-scheme=own] .tok").count() - 2
    page.focus("[data-scheme=own] [data-token='1']")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+End")
    assert page.locator(".choosing").count() == last - 3
    page.keyboard.press("Escape")
    assert page.locator(".choosing").count() == 0 and "own=" not in page.evaluate("location.hash")
    page.focus("[data-scheme=own] [data-token='4']")
    page.keyboard.press("Shift+Home")
    page.keyboard.press("Enter")
    holds(page, "location.hash.includes('own=1-4')")


def test_spans_are_dragged_over_the_tokens(visit):
    page = visit()
    page.locator("[data-scheme=own] .tok").first.scroll_into_view_if_needed()
    start = page.locator("[data-scheme=own] [data-token='8']").bounding_box()
    end = page.locator("[data-scheme=own] [data-token='10']").bounding_box()
    page.mouse.move(start["x"] + 4, start["y"] + 8)
    page.mouse.down()
    page.mouse.move(end["x"] + 4, end["y"] + 8, steps=5)
    page.mouse.up()
    holds(page, "location.hash.includes('own=8-10') && location.hash.includes('scheme=own')")
    holds(page, "document.querySelectorAll('.tab').length === 3")
    assert page.locator("[data-scheme=own] .mask").all_inner_texts() == ["17", "November", "1869"]
    assert page.locator("[data-view=attention] .masked").all_inner_texts() == ["17", "November", "1869"]


def test_the_address_holds_the_whole_state(visit):
    text = "Ines Tallow \U0001f6a2 built the harbour clock in 1871."
    page = visit(
        f"#text={quote(text)}&question=Who+built+it%3F&seed=7&scheme=own&own=4-5&layer=2&head=1&token=3&target=5"
        "&looked=5&guess=5%3Atea&theme=dark"
    )
    assert page.input_value("#text") == text and page.input_value("#question") == "Who built it?"
    assert page.input_value("#seed") == "7" and page.is_checked("input[value=own]")
    assert "Layer 3, head 2" in page.inner_text(".caption")
    assert page.get_attribute(".tab[aria-pressed=true]", "data-position") == "5"
    assert "You guessed “tea”" in page.inner_text("#predictions-view .facts")
    assert page.get_attribute("html", "data-theme") == "dark"
    page.locator("#seed").press("ArrowRight")
    holds(page, "location.hash.includes('seed=8')")
    settled(page)
    again = visit(page.evaluate("location.hash"))
    views = "Array.from(document.querySelectorAll('.view'), view => view.innerText).join('\\n')"
    assert again.evaluate(views) == page.evaluate(views) and again.input_value("#seed") == "8"


def test_a_broken_address_shows_the_defaults(visit):
    page = visit("#seed=-4&layer=99&head=x&own=0-900,7&target=4000&scheme=none&token=99999&looked=,,&guess=:&theme=")
    assert page.locator("#answers-view .why").count() == 1 and page.locator(".tab").count() > 0
    assert "Layer 4" in page.inner_text(".caption")


def test_what_an_address_cannot_mean_is_its_default(visit):
    page = visit("#seed=4242&scheme=nothing&theme=purple")
    assert page.input_value("#seed") == "35" == page.inner_text("output") and page.is_checked("input[value=geometric]")
    assert page.get_attribute("html", "data-theme") is None


def test_the_back_button_undoes_examples_and_questions(visit):
    page = visit()
    page.click("text=Harbour clock")
    settled(page)
    page.fill("#question", "When did the tower fall?")
    page.press("#question", "Enter")
    holds(page, "location.hash.includes('tower')")
    page.focus("#text")
    page.go_back()
    holds(page, "document.getElementById('question').value === 'Who built the clock?'")
    page.go_back()
    holds(page, "document.getElementById('text').value.startsWith('The Suez Canal')")
    settled(page)
    assert page.input_value("#question") == "When was the canal opened?"
    assert page.locator("#tokens-view .chip").count() == 69
    page.go_forward()
    holds(page, "document.getElementById('text').value.includes('Marrow Bay')")
    settled(page)
    assert "Ines Tallow" in page.inner_text(".winner .answer-text")


def test_a_question_being_written_survives_other_changes(visit):
    page = visit()
    page.fill("#question", "Who founded the company?")
    page.click("#theme")
    write(page, CANAL + " It has no locks.")
    assert page.input_value("#question") == "Who founded the company?"
    page.press("#question", "Enter")
    holds(page, "location.hash.includes('question=Who')")
    page.focus("#text")
    page.keyboard.type("Also ")
    page.click("#theme")
    assert "Also " in page.input_value("#text")


def test_what_is_asked_for_while_a_text_is_read_is_of_that_text(visit):
    """The question comes while the tokens of the new text are on their way."""
    page = visit()
    page.route("**/v1/explorer/encode", lambda route: (page.wait_for_timeout(400), route.continue_()))
    page.fill("#question", "What sank?")
    page.fill("#text", "A ship sank.")
    page.wait_for_timeout(450)
    page.press("#question", "Enter")
    settled(page)
    assert page.locator("#tokens-view .chip").count() == page.locator("[data-scheme=geometric] .tok").count() < 9
    assert "sank" in page.inner_text("[data-view=qa]")


def test_nothing_written_is_asked_for_in_words(visit):
    page = visit()
    page.fill("#question", " ")
    page.press("#question", "Enter")
    page.wait_for_selector("#qa-view .note")
    assert "no question" in page.inner_text("#qa-view") and page.locator("#answers-view .note").count() == 1
    write(page, "  ")
    page.wait_for_selector("#text-problem .problem")
    assert "There is no text" in page.inner_text("#text-problem")
    page.fill("#question", "Who?")
    page.press("#question", "Enter")
    settled(page)
    assert "There is no text" in page.inner_text("#text-problem") and page.locator("main .tok").count() == 0
    write(page, "Hello")
    assert page.inner_text("#tokens-view .facts").startswith("1 word, ")


def test_a_text_without_drawn_masks_says_why_and_takes_spans(visit):
    """As in the one-file form, which holds the masks of its examples alone."""
    page = visit()
    page.route("**/v1/explorer/masks", lambda route: route.fulfill(content_type="application/json", body="null"))
    write(page, CANAL)
    assert "holds the masks of its example texts alone" in page.inner_text("#masks-view .facts")
    page.focus("[data-scheme=own] [data-token='2']")
    page.keyboard.press("Enter")
    holds(page, "document.querySelectorAll('.tab').length === 1")


def test_the_bar_of_views_takes_the_keyboard_along(visit):
    page = visit()
    page.focus("nav button >> nth=4")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "question"


def test_both_heads_and_what_sbo_reads_are_named_before_the_guess(visit):
    page = visit("#scheme=own&own=8-10")
    assert "masked language modelling" in page.inner_text("#predictions .about")
    assert "span boundary objective" in page.inner_text("#predictions .about")
    assert page.locator("[data-view=predictions] .boundary").all_inner_texts() == ["on", ","]
    assert "SBO reads" in page.inner_text("#predictions-view .legend")
    assert "With or without a guess" in page.inner_text("#predictions-view .guess")
    page.click(".guess button")
    assert page.locator("[data-view=predictions] .boundary").all_inner_texts() == ["on", ","]
    assert page.locator(".head-card").count() == 2


def test_on_a_phone_the_question_stands_beside_its_button(visit):
    page = visit(width=375)
    field, button = (page.locator(f".question {what}").bounding_box() for what in ("input", "button"))
    assert abs(field["y"] + field["height"] / 2 - button["y"] - button["height"] / 2) < 2 and field["width"] > 160


def test_what_is_predicted_is_hidden_until_looked_at(visit):
    page = visit("#scheme=own&own=8-9")
    assert page.locator(".tab").all_inner_texts() == ["?", "?"]
    assert "November" not in page.inner_text("#predictions-view") and page.locator(".best").count() == 0
    page.fill("#guess", "17")
    page.press("#guess", "Enter")
    holds(page, "document.querySelectorAll('.best').length === 2")
    assert "You guessed it" in page.inner_text("#predictions-view .facts")
    assert page.locator(".best li").count() == 10 and page.locator(".tab").all_inner_texts() == ["17", "?"]
    assert "on" in page.get_attribute(".sbo .diagram", "aria-label")
    picture(page, "predictions")


def test_texts_are_never_markup(visit):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)> \U0001f6a2\U0001f469\u200d\U0001f467 "
    page = visit()
    write(page, evil + CANAL + evil, f"{evil} when was the canal opened?")
    assert page.locator("main script, main img").count() == 0
    assert "17 November 1869" in page.inner_text(".winner .answer-text")
    page.locator("[data-view=qa] .tok", has_text="November").first.hover()
    assert lit(page) == [["November"]] * len(TOKEN_VIEWS)
    page.click("text=Show all")
    holds(page, "document.querySelectorAll('.head-card').length === 2")


def test_a_long_text_shows_its_seams(visit):
    page = visit()
    page.click("text=A long text")
    holds(page, "document.querySelectorAll('.tok.seam').length > 0")
    settled(page)
    assert page.locator(".windows .owned").count() == page.locator(".tok.seam").count() + 1
    assert "first 126 tokens" in page.inner_text("#masks-extent")
    assert page.locator("[data-view=qa] .tok").count() > 384
    assert "240 kilograms" in page.inner_text(".winner .answer-text")


def test_why_an_answer_won_is_its_sum(visit):
    page = visit()
    why = page.inner_text(".why").replace("−", "-")
    start, end, total = (float(why.split(before)[1].split()[0].rstrip(",")) for before in ("start logit ", "end logit ", "add up to "))  # fmt: skip
    assert start + end == pytest.approx(total, abs=0.011)
    assert page.inner_text(".winner b").replace("−", "-") == f"{total:.2f}"


def test_problems_are_said_and_mended(visit):
    page = visit(refused=True)
    write(page, " ")
    page.wait_for_selector("#text-problem .problem")
    assert "text" in page.inner_text("#text-problem")
    write(page, "a" * 20_001)
    holds(page, "document.getElementById('text-problem').textContent.includes('20,001')")
    write(page, CANAL)
    assert page.locator("#text-problem .problem").count() == 0 and page.locator("#tokens-view .chip").count() > 10
    page.fill("#question", "why " * 70)
    page.press("#question", "Enter")
    page.wait_for_selector("#qa-view .problem")
    assert "questions of at most 64" in page.inner_text("#qa-view")


def test_a_model_without_heads_says_so(visit, headless_address):
    page = visit(at=headless_address)
    page.click("text=Show all")
    holds(page, "document.querySelectorAll('.head-card .note').length === 2")
    assert "no trained SBO head" in page.inner_text(".head-card.sbo")
    assert page.locator(".thumbnail").count() == 16 and page.locator(".winner").count() == 1


def test_a_reader_with_another_vocabulary_declines(visit, reader_address):
    """Its tokens are others, so views are linked by characters; it was trained to say that there is no answer."""
    page = visit(f"#text={quote(CANAL)}&question=Who+painted+the+Mona+Lisa%3F", at=reader_address)
    assert (
        page.inner_text(".why").startswith("No answer won") and page.inner_text(".winner .answer-text") == "no answer"
    )
    assert "so it declines" in page.inner_text(".qa-side")
    page.locator("[data-view=qa] .tok", has_text="november").first.hover()
    assert lit(page)[:2] == [["November"]] * 2 and lit(page)[-1] == ["november"]
    page.fill("#question", "When was the canal opened?")
    page.press("#question", "Enter")
    holds(page, "document.querySelector('.winner .answer-text').textContent === '17 November 1869'")
    assert "so it answers" in page.inner_text(".qa-side")

"""The page in a real browser: answers marked by their offsets, nothing run that was read, nothing asked of the outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")

from playwright import sync_api as playwright

from finetune.retrieval.documents import Document
from tests.web.conftest import CANAL, INDEXED, instant
from tests.web.test_problems import Held, in_background, until

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: A folder for pictures of the page; they are only taken where it is named.
PICTURES = os.environ.get("SPANBERT_PICTURES")


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, live) -> Iterator:
    """visit(server options) → the open page; at the end it must have made no error and no request to the outside."""
    contexts, errors, requests = [], [], []

    def make(runner=None, *, view=None, expect_errors=False, **options):
        address = live(runner, **options)
        context = browser.new_context(**(view or {"viewport": {"width": 1280, "height": 860}}))
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))

        def console(message):
            failed_request = "the server responded with a status of" in message.text
            if message.type == "error" and not (expect_errors and failed_request):
                errors.append(message.text)

        page.on("console", console)
        page.goto(address)
        holds(page, "document.getElementById('model').textContent !== 'connecting…'")
        page.address = address
        return page

    yield make
    for context in contexts:
        context.close()
    assert errors == []
    outside = [url for url in requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:"))]
    assert requests and outside == []


def holds(page, expression):
    """Wait until it does. (Playwright's own way evaluates a string in the page, which its policy forbids.)"""
    for _ in range(150):
        if page.evaluate(f"() => {expression}"):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never: {expression}")


def ask(page, text, *questions):
    page.fill("#text", text)
    page.fill("#questions", "\n".join(questions))
    page.click("#ask")
    page.wait_for_selector(f".result:nth-child({len(questions)}) .answer, .result:nth-child({len(questions)}) .problem")


def marked(page):
    """What is marked as the chosen answer, and how many code points of the document stand before it."""
    page.wait_for_selector("mark.chosen")
    return page.evaluate(
        """() => { const mark = document.querySelector("#words mark.chosen"), range = document.createRange();
        range.setStart(document.getElementById("words"), 0); range.setEndBefore(mark);
        return [mark.textContent, Array.from(range.toString()).length]; }"""
    )


def visible(page):
    """Whether the chosen mark is within the part of the document that is seen."""
    return page.evaluate(
        """() => { const mark = document.querySelector("mark.chosen").getBoundingClientRect(),
        box = document.getElementById("document").getBoundingClientRect();
        return mark.top >= box.top && mark.bottom <= Math.min(box.bottom, innerHeight); }"""
    )


def picture(page, name):
    if PICTURES:
        page.wait_for_timeout(300)
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def test_questions_are_answered_one_by_one(visit):
    page = visit()
    page.click("#example")
    picture(page, "light-ready")
    page.keyboard.press("Enter")
    holds(page, "document.querySelectorAll('.result .foot').length === 4")
    assert page.inner_text("#progress") == "4 answers"
    assert "cannot say that there is no answer" in page.inner_text("#notes")
    words, before = marked(page)
    text = page.input_value("#text")
    assert text[before : before + len(words)] == words
    picture(page, "light")
    page.click("#theme")
    picture(page, "dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_words_that_stand_twice_are_marked_where_the_answer_is(visit):
    """A search for the words finds the first place, which is another bridge's."""
    first = "The old mill, which was not built in 1894 as its sign says, is red. " * 3
    text = first + "\n\n" + "The bridge was opened in 1894 by the Queen."
    page = visit()
    ask(page, text, "When was the bridge opened?")
    words, before = marked(page)
    assert words == "1894" and before == text.rindex("1894") != text.index("1894")
    assert page.locator("mark.chosen").count() == 1


@pytest.mark.parametrize(
    "before",
    [
        "\U0001f6a2\U0001f6f3\ufe0f ",
        "cafe\u0301 ",
        "\U0001d54f\U0001d550 e\u0301\u0302 \U0001f468\u200d\U0001f469\u200d\U0001f467 ",
    ],
)
def test_emoji_and_accents_before_the_answer_do_not_shift_it(visit, before):
    text = before * 20 + "\n" + CANAL
    page = visit()
    ask(page, text, "When was the canal opened?")
    words, place = marked(page)
    assert words == "17 November 1869" and text[place : place + len(words)] == words


def test_a_long_document_is_scrolled_to_the_answer(visit):
    text = "Nothing of note happened on that day either.\n" * 300 + CANAL
    page = visit()
    ask(page, text, "When was the canal opened?")
    assert marked(page)[0] == "17 November 1869" and visible(page)


def test_nothing_that_was_read_is_run(visit):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    page = visit(index=[Document("evil", evil, f"{evil} The canal of Bob was opened in 1920. {evil}")])
    ask(page, f"{evil} {CANAL} {evil}", f"{evil} when was the canal opened?")
    assert evil in page.inner_text("#words") and evil in page.inner_text(".result h3")
    page.set_input_files(
        "#files",
        {"name": f"{evil.replace('/', '')}.txt", "mimeType": "text/plain", "buffer": evil.encode() + CANAL.encode()},
    )
    page.wait_for_selector("#uploaded li")
    assert "<script>" in page.inner_text("#uploaded")
    page.check("input[value=index]", force=True)
    page.fill("#questions", "When was the canal of Bob opened?")
    page.click("#ask")
    holds(page, "document.getElementById('title').textContent.includes('<script>')")
    assert marked(page)[0] and page.locator("#words script, #words img, .result script").count() == 0


def test_documents_are_uploaded_asked_and_removed(visit):
    page = visit(expect_errors=True)
    page.set_input_files(
        "#files",
        [
            {"name": "canal.txt", "mimeType": "text/plain", "buffer": CANAL.encode()},
            {"name": "bridge.md", "mimeType": "text/markdown", "buffer": b"# Tower Bridge\n\nIt was built in 1894.\n"},
            {"name": "broken.txt", "mimeType": "text/plain", "buffer": b"caf\xe9"},
        ],
    )
    holds(page, "document.querySelectorAll('#uploaded li').length === 2")
    page.wait_for_selector("#source-problem .problem")
    assert "broken.txt" in page.inner_text("#source-problem") and "UTF-8" in page.inner_text("#source-problem")
    page.fill("#questions", "When was the canal opened?")
    page.click("#ask")
    page.wait_for_selector(".result .foot")
    assert "canal" in page.inner_text(".foot") and "found by" in page.inner_text(".foot")
    assert marked(page)[0] == "17 November 1869" and page.inner_text("#title") == "canal"
    picture(page, "documents")
    page.click("#uploaded li:first-child .quiet")
    holds(page, "document.querySelectorAll('#uploaded li').length === 1")


def test_the_index_is_asked(visit):
    page = visit(index=INDEXED)
    page.check("input[value=index]", force=True)
    page.fill("#questions", "When was the canal opened?\nWhen was Tower Bridge built?")
    page.keyboard.press("Control+Enter")
    holds(page, "document.querySelectorAll('.result .foot').length === 2")
    page.click(".result:first-child .answer")
    holds(page, "document.getElementById('title').textContent === 'Canals'")
    assert page.inner_text("#section") == "page 2"
    assert marked(page)[0] == "17 November 1869" and page.locator("#words .part").count() == 2
    picture(page, "index")


def test_further_answers_are_marked_and_chosen_by_keyboard_alone(visit):
    page = visit()
    page.focus("#text")
    page.keyboard.insert_text(CANAL)
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "questions":
            break
    page.keyboard.insert_text("When was the canal opened?")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".result .foot")
    assert marked(page)[0] == "17 November 1869"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.answer.further')"):
            break
    further = page.evaluate("document.activeElement.querySelector('.words').textContent")
    page.keyboard.press("Enter")
    holds(page, f"document.querySelector('mark.chosen').textContent === {json.dumps(further)}")
    assert page.locator("mark:not(.chosen)").count() >= 1 or page.locator(".answer").count() > 1


def test_answers_are_copied_and_exported(visit, tmp_path):
    page = visit()
    ask(page, CANAL + " It's “new”.", "When was the canal opened?")
    page.get_by_role("button", name="JSON", exact=True).click()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied["answers"][0]["text"] == "17 November 1869" and copied["model"]["fingerprint"]
    for name, command in (("curl", ["sh", "-c"]), ("Python", [shutil.which("python3") or "python3", "-c"])):
        page.get_by_role("button", name=name, exact=True).click()
        done = subprocess.run(
            [*command, page.evaluate("navigator.clipboard.readText()")], capture_output=True, text=True
        )
        assert "17 November 1869" in done.stdout, done.stderr
    with page.expect_download() as download:
        page.click("#export")
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["question"] for line in lines] == ["When was the canal opened?"]


def test_problems_are_shown_so_that_people_can_read_them(visit):
    """413 and 422, each with what to do."""
    page = visit(text=1000, expect_errors=True)
    ask(page, "Nothing of note happened on that day.\n\n" * 40 + CANAL, "When was the canal opened?")
    assert "Too large" in page.inner_text(".problem") and "at most 1,000" in page.inner_text(".problem")
    page.get_by_role("button", name="Ask it as a document").click()
    page.wait_for_selector(".result .foot")
    assert marked(page)[0] == "17 November 1869"
    page.check("input[value=text]", force=True)
    ask(page, CANAL, "why " * 70)
    assert "A question is too long" in page.inner_text(".problem")
    picture(page, "problem")


def test_a_busy_server_is_asked_again(visit):
    held = Held()
    page = visit(held, waiting=1, expect_errors=True)
    import httpx2

    body = {"questions": ["x?"], "text": "some text"}
    first = in_background(httpx2.post, f"{page.address}/v1/answers", json=body, timeout=30)
    assert held.began.wait(5)
    second = in_background(httpx2.post, f"{page.address}/v1/answers", json=body, timeout=30)
    until(lambda: "spanbert_waiting_requests 1\n" in httpx2.get(f"{page.address}/metrics").text)
    ask(page, CANAL, "When was the canal opened?")
    assert "The server is busy" in page.inner_text(".problem") and "Try again in" in page.inner_text(".problem")
    picture(page, "busy")
    held.go.set()
    for thread, _ in (first, second):
        thread.join()
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".result .foot")
    assert "No answer in this text" in page.inner_text(".result")


def test_a_server_with_a_token_asks_for_it(visit):
    page = visit(instant, token="correct-horse-battery", expect_errors=True)
    assert page.is_visible("#token")
    page.fill("#token", "correct-horse-battery")
    page.click("#use-token")
    holds(page, "document.getElementById('model').textContent.includes('million')")
    ask(page, CANAL, "When?")
    assert "No answer in this text" in page.inner_text(".result")


def test_a_telephone_shows_it_all(visit):
    page = visit(
        view={
            "viewport": {"width": 390, "height": 844},
            "device_scale_factor": 2,
            "color_scheme": "dark",
            "is_mobile": True,
            "has_touch": True,
        }
    )
    page.click("#example")
    page.click("#ask")
    holds(page, "document.querySelectorAll('.result .foot').length === 4")
    picture(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click(".result:nth-child(3) .answer")
    page.wait_for_timeout(600)
    assert visible(page)
    picture(page, "phone-document")

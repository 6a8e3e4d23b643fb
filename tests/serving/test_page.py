"""The page in a real browser."""

import os
import shutil
from pathlib import Path

import httpx
import pytest
from PIL import Image

from rectiflow.data.pictures import to_uint8
from rectiflow.request import Request
from rectiflow.serving.limits import Limits
from rectiflow.serving.page import Page
from rectiflow.serving.served import Served
from tests.serving.conftest import counted, engine_of, running, until

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ALONE = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LIMITS = Limits(steps=10**6, evaluations=10**7, slots=20, pictures=10)

SEED = "#seed input, #seed textarea"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ALONE)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1200, "height": 1300}, accept_downloads=True)
    page.set_default_timeout(20_000)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()


def wait_for_line(page, words):
    page.wait_for_function("words => document.querySelector('#line')?.innerText.includes(words)", arg=words)


def settings_in(page):
    """What stands in the inputs."""
    return {
        "prompt": page.input_value("#prompt input, #prompt textarea"),
        "seed": page.input_value(SEED),
        "steps": page.input_value("#steps input[type=number]"),
        "solver": page.input_value("#solver input"),
        "count": page.input_value("#count input[type=number]"),
    }


def fill(page, **values):
    if "seed" in values:
        page.fill(SEED, str(values.pop("seed")))
    for name, value in values.items():
        page.fill(f"#{name} input[type=number]", str(value))
        page.press(f"#{name} input[type=number]", "Tab")


def test_pictures_previews_gallery_and_download(page, classes, tmp_path):
    with running(classes, tmp_path, limits=LIMITS) as (address, _):
        page.goto(address)
        page.wait_for_selector("#generate")
        page.evaluate(
            """() => { window.seen = new Set(); setInterval(() => {
                const now = document.querySelector("#live img"); if (now) window.seen.add(now.src) }, 5) }"""
        )
        page.click("#prompt input")
        page.get_by_role("option", name="dog").click()
        fill(page, seed=7, steps=900, count=3)
        before = settings_in(page)
        page.click("#generate")
        wait_for_line(page, "3 in")
        assert page.evaluate("window.seen.size") >= 4, "previews did not change"
        assert page.locator("#gallery img").count() == 3

        fill(page, seed=8, steps=20, count=1)
        page.click("#generate")
        wait_for_line(page, "seed 8")
        page.wait_for_function("document.querySelectorAll('#gallery img').length == 4")
        assert settings_in(page) != before
        page.locator("#gallery button.thumbnail-item, #gallery .thumbnail-lg").nth(2).click()
        page.wait_for_function("document.querySelector('#settings').innerText.includes('900')")
        page.click("#back")
        page.wait_for_function("document.querySelector('#seed input, #seed textarea').value == '7'")
        assert settings_in(page) == before

        with page.expect_download() as download:
            page.click("#download")
        image = Image.open(download.value.path())
        facts = {name: image.text[name] for name in ("prompt", "seed", "steps", "index")}
        assert facts == {"prompt": "dog", "seed": "7", "steps": "900", "index": "1"}
        strangers = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
        assert strangers == [], "the page fetches from elsewhere"


def test_bad_settings_are_told(page, classes, tmp_path):
    with running(classes, tmp_path, limits=LIMITS) as (address, _):
        page.goto(address)
        page.wait_for_selector("#generate")
        page.fill(SEED, "seven")
        page.click("#generate")
        page.get_by_text("expected a whole number, received 'seven'").wait_for()
        page.fill(SEED, "")
        page.fill("#solver input", "huen")
        page.press("#solver input", "Enter")
        page.click("#generate")
        page.get_by_text("Did you mean 'heun'").wait_for()


@pytest.mark.parametrize("leave", ["stop", "close"])
def test_who_stops_or_leaves_frees_a_place(browser, classes, tmp_path, leave):
    with running(classes, tmp_path, limits=LIMITS) as (address, engine):
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#generate")
        fill(page, steps=10**6, count=2)
        page.click("#generate")
        until(lambda: counted(engine, "rectiflow_pictures_in_flight") == 2)
        if leave == "stop":
            page.click("#stop")
        page.close()
        until(lambda: counted(engine, "rectiflow_requests_total", outcome="cancelled") == 1)
        assert counted(engine, "rectiflow_pictures_in_flight") == 0


def test_prompts(page, texts, tmp_path):
    with running(texts, tmp_path, limits=LIMITS) as (address, _):
        page.goto(address)
        page.fill("#prompt textarea", "a red 7 — ü")
        page.fill("#negative textarea, #negative input", "a blue 3")
        fill(page, steps=6)
        page.click("#generate")
        wait_for_line(page, "4 in")
        page.locator("#gallery button.thumbnail-item, #gallery .thumbnail-lg").first.click()
        page.wait_for_function("document.querySelector('#settings').innerText.includes('a blue 3')")


def test_the_token_is_the_password(page, classes, tmp_path):
    with running(classes, tmp_path, token="s3cret") as (address, _):
        assert httpx.get(f"{address}/config").status_code == 401
        wrong = httpx.post(f"{address}/login", data={"username": "me", "password": "wrong"})
        assert wrong.status_code == 400
        page.goto(address)
        page.get_by_label("username").fill("me")
        page.get_by_label("password").fill("s3cret")
        page.get_by_role("button", name="Login").click()
        page.wait_for_selector("#generate")


def test_files_are_bounded(classes, tmp_path, monkeypatch):
    monkeypatch.setattr("rectiflow.serving.page._KEPT_FILES", 5)
    request = Request(("cat",), 3, steps=2)
    pixels = to_uint8(classes.sample(request).pixels)
    with engine_of(classes) as engine:
        page = Page(engine, Served(classes, "tiny"), tmp_path)
        entries = [entry for _ in range(4) for entry in page._keep(pixels, request)]
    assert len(list(tmp_path.iterdir())) == 5
    assert [Path(entry["file"]).is_file() for entry in entries] == [False] * 7 + [True] * 5

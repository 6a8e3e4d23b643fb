"""The page in a real browser."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from rectiflow.data.pictures import to_uint8
from rectiflow.request import Request
from rectiflow.serving.limits import Limits
from rectiflow.serving.page import Page
from rectiflow.serving.served import Served
from tests.serving.conftest import PATIENCE, counted, engine_of, get, post, running, until

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
    page.set_default_timeout(1000 * PATIENCE)
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
def test_who_stops_or_leaves_frees_a_place(page, classes, tmp_path, leave):
    with running(classes, tmp_path, limits=LIMITS) as (address, engine):
        page.goto(address)
        page.wait_for_selector("#generate")
        fill(page, steps=10**6, count=2)
        page.click("#generate")
        until(lambda: counted(engine, "rectiflow_pictures_in_flight") == 2)
        page.click("#stop") if leave == "stop" else page.close()
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
        assert get(f"{address}/config").status_code == 401
        wrong = post(f"{address}/login", data={"username": "me", "password": "wrong"})
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


def film_on(page):
    """What the film that is shown is: its size, and its seconds, once they are known."""
    page.wait_for_function("document.querySelector('#film video')?.readyState >= 2")
    return page.evaluate("(() => { const v = document.querySelector('#film video'); "
                         "return [v.videoWidth, v.videoHeight, v.duration, v.currentSrc] })()")  # fmt: skip


def test_clips_play_from_a_picture_that_is_given(page, clips, tmp_path):
    av = pytest.importorskip("av")
    folder = tmp_path / "films"
    folder.mkdir()
    with running(clips, folder, limits=replace(LIMITS, slots=100)) as (address, _):
        page.goto(address)
        page.wait_for_selector("#generate")
        page.evaluate(
            """() => { window.seen = new Set(); setInterval(() => {
                const now = document.querySelector("#live img"); if (now) window.seen.add(now.src) }, 5) }"""
        )
        Image.new("RGB", (200, 150), (250, 20, 20)).save(tmp_path / "red.png", compress_level=0)  # 90 KB
        page.set_input_files("#first input[type=file]", tmp_path / "red.png")
        page.wait_for_selector("#first img")
        fill(page, seed=7, steps=600, count=2, frames=9)
        page.click("#generate")
        wait_for_line(page, "2 in")
        assert page.evaluate("window.seen.size") >= 4, "previews did not change"
        width, height, seconds, source = film_on(page)
        assert width > 1.5 * height, "two clips side by side"
        assert seconds == pytest.approx(9 / 8, abs=0.01)
        page.wait_for_function("document.querySelectorAll('#gallery video').length == 2")

        page.locator("#gallery button.thumbnail-item, #gallery .thumbnail-lg").nth(1).click()
        page.wait_for_function("document.querySelector('#settings').innerText.includes('600')")
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename.endswith(".mp4")
        with av.open(str(download.value.path())) as film:
            frames = [frame.to_ndarray(format="rgb24").mean((0, 1)) for frame in film.decode(video=0)]
        assert len(frames) == 9
        assert frames[0] == pytest.approx([250, 20, 20], abs=12)

        fill(page, seed=8, count=1, steps=5, frames=5)
        page.click("#generate")
        page.wait_for_function("before => document.querySelector('#film video')?.currentSrc != before", arg=source)
        width, height, seconds, _ = film_on(page)
        assert (width, seconds) == (height, pytest.approx(5 / 8, abs=0.01))
        page.click("#back")
        page.wait_for_function("document.querySelector('#frames input[type=number]').value == '9'")
        fill(page, seed=9, count=3, steps=5, frames=1)
        page.click("#generate")
        wait_for_line(page, "3 in")
        page.wait_for_function("document.querySelectorAll('#gallery img').length >= 3")
        strangers = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
        assert strangers == [], "the page fetches from elsewhere"


def test_a_broken_picture_is_told(page, clips, tmp_path):
    with running(clips, tmp_path, limits=LIMITS) as (address, engine):
        page.goto(address)
        page.wait_for_selector("#generate")
        (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
        page.set_input_files("#last input[type=file]", tmp_path / "broken.png")
        page.wait_for_selector("#last img", state="attached")
        page.click("#generate")
        page.locator(".toast-body.error").wait_for()
        assert counted(engine, "rectiflow_requests_total", outcome="completed") == 0

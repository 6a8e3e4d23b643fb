"""Who leaves the page, at whatever moment, is worked for no longer. Without a browser: the moments can be chosen."""

import asyncio
import time

import gradio as gr

from rectiflow.serving.limits import Limits
from rectiflow.serving.page import Page
from rectiflow.serving.served import Served
from tests.serving.conftest import PATIENCE, counted, engine_of, get, post, running, until

LIMITS = Limits(steps=10**6, evaluations=10**7, slots=20, pictures=10)
LONG = ["cat", "", "", 10**6, "euler", 0, 2, 1, None, None, []]  # two pictures


def in_flight(engine):
    return counted(engine, "rectiflow_pictures_in_flight")


def cancelled(engine):
    return counted(engine, "rectiflow_requests_total", outcome="cancelled")


def test_a_page_that_left_before_it_listened_is_found_out(classes, tmp_path, monkeypatch):
    monkeypatch.setattr("rectiflow.serving.page._PULSE", 0.01)
    with running(classes, tmp_path, limits=LIMITS) as (address, engine):
        functions = get(f"{address}/config").json()["dependencies"]
        (generate,) = (each["id"] for each in functions if len(each["outputs"]) == 5)
        body = {"data": LONG, "fn_index": generate, "session_hash": "gone"}
        assert post(f"{address}/gradio_api/queue/join", json=body).status_code == 200
        until(lambda: in_flight(engine) == 2)
        until(lambda: cancelled(engine) == 1)
        assert in_flight(engine) == 0


def test_what_is_left_between_two_messages_ends_at_once(classes, tmp_path, monkeypatch):
    """While nothing new has come, which the page looks for all the time."""
    monkeypatch.setattr("rectiflow.serving.page._PULSE", 0.01)

    async def leave(page):
        events = page.generate(gr.Request(session_hash="here"), *LONG)
        while in_flight(page.engine) != 2:
            await anext(events)
        await events.aclose()
        start = time.monotonic()
        while in_flight(page.engine):
            assert time.monotonic() < start + PATIENCE
            await asyncio.sleep(0.01)

    with engine_of(classes, LIMITS) as engine:
        asyncio.run(leave(Page(engine, Served(classes, "tiny", LIMITS), tmp_path)))
        assert cancelled(engine) == 1

import queue
import threading
import time
from dataclasses import replace

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.data.pictures import to_uint8
from rectiflow.request import Request
from rectiflow.serving.job import Closing, Failed, Finished, Full, Preview
from rectiflow.serving.lane import moments
from rectiflow.serving.limits import Limits
from tests.serving.conftest import PATIENCE, counted, engine_of, until

LONG = {"steps": 10**6, "classes": ("cat",)}
PATIENT = Limits(evaluations=10**9)


def made(engine, requests, previews=0):
    """The last event of each request, all submitted at once, and the previews of each."""
    boxes = [queue.Queue() for _ in requests]
    for request, box in zip(requests, boxes, strict=True):
        engine.submit(request, box.put, previews)
    events = []
    for box in boxes:
        events.append([box.get(timeout=PATIENCE)])
        while isinstance(events[-1][-1], Preview):
            events[-1].append(box.get(timeout=PATIENCE))
    return [each[-1] for each in events], [each[:-1] for each in events]


def levels(pipeline, request):
    return to_uint8(pipeline.sample(request).pixels)


def assert_alike(left, right):
    assert left.shape == right.shape
    assert (left.int() - right.int()).abs().max() <= 1


@pytest.mark.parametrize("lanes", [1, 3])
def test_pictures_are_those_made_alone(classes, lanes):
    solvers = ("euler", "heun", "ab3", "dpm++2m", "rk45", "ddpm", "edm:churn=0.2", "fast")
    requests = [
        Request(("cat", "eel")[: 1 + seed % 2], 1 + seed % 3, 4 + seed, solver, guidance=seed % 3 / 2, seed=seed)
        for seed, solver in enumerate(solvers)
    ]
    requests += [
        Request(("dog",), 2, 6, seed=-5, guidance=1.0, guidance_kind="apg"),
        Request(("dog",), 1, 6, size=(6, 4), interval=(0.2, 0.8), guidance=2.0),
        Request((), 1, 3, schedule="trig", grid="log-snr"),
    ]
    with engine_of(classes, lanes=lanes) as engine:
        events, _ = made(engine, requests)
        rows = counted(engine, "rectiflow_call_rows_sum") / counted(engine, "rectiflow_call_rows_count")
    for request, event in zip(requests, events, strict=True):
        assert_alike(event.pixels, levels(classes, request))
    assert rows > 2, "calls were not shared"


def test_prompts_of_any_length_share_calls(texts):
    prompts = ["7", "a blue 3 above a green 5 " * 3, "a red 7"]
    requests = [Request(prompts=(p,), count=2, steps=5, guidance=1.0, seed=i) for i, p in enumerate(prompts)]
    requests.append(Request(prompts=("a red 7",), steps=5, guidance=1.0, negative="two yellow digits", seed=9))
    with engine_of(texts, lanes=1) as engine:
        events, _ = made(engine, requests)
    for request, event in zip(requests, events, strict=True):
        assert_alike(event.pixels, levels(texts, request))


def test_models_without_conditions_and_of_one_step(unconditional, classes):
    with engine_of(unconditional) as engine:
        (done,), _ = made(engine, [Request(count=2, steps=3)])
    assert_alike(done.pixels, levels(unconditional, Request(count=2, steps=3)))
    one = replace(classes, flow=type(classes.flow)(classes.flow.network, one_step=True).eval())
    with engine_of(one) as engine:
        (done,), (previews,) = made(engine, [Request(("eel",))], previews=3)
    assert_alike(done.pixels, levels(one, Request(("eel",))))
    assert previews == []


def test_previews_come_nearer(classes):
    request = Request(("cat",), 2, 12, seed=3)
    with engine_of(classes) as engine:
        (done,), (previews,) = made(engine, [request], previews=3)
    assert [(p.number, p.step, p.steps) for p in previews] == [(0, 3, 12), (1, 6, 12), (2, 9, 12)]
    far = [(p.pixels.float() - done.pixels.float()).square().mean().item() for p in previews]
    assert far[0] > far[1] > far[2] > 0
    states = list(classes.states(request))
    assert_alike(previews[1].pixels, to_uint8(states[6].estimate.data))


def test_moments():
    assert moments(50, 0) == ()
    assert moments(4, 3) == (1, 2, 3)
    assert moments(2, 9) == (1,)
    assert moments(1, 2) == ()


def test_who_leaves_frees_a_place_and_harms_nobody(classes):
    limits = replace(PATIENT, slots=2, pictures=2, queue=1)
    with engine_of(classes, limits, lanes=1) as engine:
        first = engine.submit(Request(**LONG, count=2), lambda event: None)
        until(lambda: engine.waiting() == 0)
        box = queue.Queue()
        second = engine.submit(Request(("cat",), steps=3), box.put)
        with pytest.raises(Full) as full:
            engine.submit(Request(("cat",), steps=3), box.put)
        assert 1 <= full.value.retry_after <= 60
        engine.cancel(second)
        assert engine.waiting() == 0
        third = queue.Queue()
        engine.submit(Request(("dog",), steps=3), third.put)
        engine.cancel(first)
        assert isinstance(third.get(timeout=PATIENCE), Finished)
        until(lambda: counted(engine, "rectiflow_requests_total", outcome="cancelled") == 2)
        assert box.empty()
        assert counted(engine, "rectiflow_requests_total", outcome="refused") == 1
        until(lambda: counted(engine, "rectiflow_pictures_in_flight") == 0)


def test_one_bad_request_is_told_alone(classes):
    """A size that the network refuses, beside good ones; and a solver that would go on for ever."""
    bad = [Request(("cat",), steps=4, size=(5, 4)), Request(("cat",), solver="rk45:tolerance=1e-13")]
    good = Request(("cat",), steps=4, size=(4, 6), seed=2)
    with engine_of(classes, Limits(evaluations=40), lanes=1) as engine:
        (fits, patch, solver), _ = made(engine, [good, *bad])
    assert_alike(fits.pixels, levels(classes, good))
    assert "does not divide 5×4" in str(patch.error)
    assert "more than 40 evaluations" in str(solver.error)


def test_a_fault_of_one_in_a_shared_call_is_not_the_fault_of_all(classes, monkeypatch):
    """Whoever asks for eels breaks the network."""
    network = classes.flow.network
    whole = type(network).forward

    def brittle(self, x_t, t, condition=None):
        if bool((condition.labels == 2).any()):
            raise RuntimeError("out of memory")
        return whole(self, x_t, t, condition)

    monkeypatch.setattr(type(network), "forward", brittle)
    with engine_of(classes, lanes=1) as engine:
        (cat, eel, dog), _ = made(engine, [Request((name,), steps=5) for name in ("cat", "eel", "dog")])
    assert isinstance(eel, Failed)
    assert isinstance(cat, Finished)
    assert isinstance(dog, Finished)


def test_a_listener_that_fails_harms_nobody(classes):
    def fail(event):
        raise RuntimeError

    with engine_of(classes, lanes=1) as engine:
        engine.submit(Request(("cat",), steps=3), fail, previews=2)
        (done,), _ = made(engine, [Request(("cat",), steps=3)])
    assert isinstance(done, Finished)


def test_calls_and_requests_are_bounded(classes):
    limits = Limits(batch=4, slots=40, pictures=10)
    with engine_of(classes, limits, lanes=1) as engine:
        made(engine, [Request(("cat",), steps=5)])
        events, _ = made(engine, [Request(("cat",), 2, 5, seed=seed) for seed in range(10)])
        assert all(isinstance(event, Finished) for event in events)
        buckets = engine.metrics.registry.get_sample_value("rectiflow_call_rows_bucket", {"le": "4.0"})
        assert buckets == counted(engine, "rectiflow_call_rows_count")
        with pytest.raises(InputError, match=r"weigh 160 .* more than the 40"):
            engine.submit(Request(("cat",), 10, size=(16, 16)), print)
    with pytest.raises(InputError, match="at least 40 slots"), engine_of(classes, Limits(slots=30), lanes=4):
        pass


def test_closing_finishes_what_was_begun(classes):
    with engine_of(classes, lanes=1) as engine:
        box = queue.Queue()
        for seed in range(5):
            engine.submit(Request(("cat",), steps=50, seed=seed), box.put)
        engine.close(PATIENCE)
        assert all(isinstance(box.get_nowait(), Finished) for _ in range(5))
        with pytest.raises(Closing):
            engine.submit(Request(("cat",)), box.put)


def test_closing_does_not_wait_for_ever(classes):
    with engine_of(classes, PATIENT, lanes=1) as engine:
        box = queue.Queue()
        engine.submit(Request(**LONG), box.put)
        start = time.monotonic()
        engine.close(0.2)
        assert time.monotonic() - start < PATIENCE, "the request would take many times as long"
        assert isinstance(box.get(timeout=PATIENCE).error, Closing)
    assert not any(thread.name.startswith("lane") for thread in threading.enumerate())


def test_closing_leaves_behind_a_lane_that_does_not_come_back(classes, monkeypatch, caplog):
    """As in a call of a network that hangs."""
    called, answered = threading.Event(), threading.Event()

    def stuck(self, x_t, t, condition=None):
        called.set()
        assert answered.wait(PATIENCE)
        return x_t

    monkeypatch.setattr(type(classes.flow.network), "forward", stuck)
    monkeypatch.setattr("rectiflow.serving.engine._LAST_CALL", 0.1)
    with engine_of(classes, lanes=1) as engine:
        box = queue.Queue()
        engine.submit(Request(("cat",), steps=3), box.put)
        assert called.wait(PATIENCE)
        engine.close(0)
        assert isinstance(box.get(timeout=PATIENCE).error, Closing)
        assert "lane 0 is in the network" in caplog.text
        answered.set()
    until(lambda: not any(thread.name.startswith("lane") for thread in threading.enumerate()))


def test_gradients_of_the_caller_are_left_alone(classes):
    with engine_of(classes) as engine:
        made(engine, [Request(("cat",), steps=3)])
        assert torch.is_grad_enabled()


def test_who_leaves_with_the_pictures_has_not_cancelled(classes):
    with engine_of(classes, lanes=1) as engine:
        jobs = []
        jobs.append(engine.submit(Request(("cat",), steps=30), lambda event: engine.cancel(jobs[0])))
        until(lambda: counted(engine, "rectiflow_requests_total", outcome="completed") == 1)

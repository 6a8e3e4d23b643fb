import queue
from dataclasses import replace

import pytest
import torch

from rectiflow.data.pictures import to_uint8
from rectiflow.request import Request
from rectiflow.serving.gang import Gang, gangs, joined
from rectiflow.serving.job import Failed, Finished, Job, Preview
from tests.serving.conftest import PATIENCE, counted, engine_of, until


def job(request, pictures=1):
    return Job(request, pictures, 1, 0, lambda event: None)


def test_only_those_of_one_way_go_together():
    way = Request(("cat",), steps=8, guidance=1.0)
    same = [way, replace(way, seed=4, count=3), replace(way, classes=("eel", "dog"))]
    others = [replace(way, steps=9), replace(way, guidance=2.0), replace(way, size=(8, 8)), replace(way, negative="x")]
    alone = [replace(way, solver=name) for name in ("ddpm", "rk45", "edm", "ddpm")]
    jobs = [job(request) for request in [*same, *others, *alone]]
    assert sorted(len(gang.jobs) for gang in gangs(jobs, 128, 1)) == [1] * 8 + [3]
    plenty = [job(way, 2) for _ in range(7)]
    assert [len(gang.jobs) for gang in gangs(plenty, 12, 1)] == [3, 3, 1]  # with guidance, two rows a picture
    assert [len(gang.jobs) for gang in gangs(plenty, 1, 1)] == [1] * 7


@pytest.mark.parametrize("solver", ["euler", "heun", "fast", "unipc3"])
def test_pictures_of_a_gang_are_those_made_alone(classes, texts, unconditional, solver):
    names = [((), 1), (("eel", "cat"), 2), (("dog",), 3)]
    for pipeline, requests in (
        (classes, [Request(c, n, 7, solver, guidance=0.5, seed=n) for c, n in names]),
        (texts, [Request(prompts=(p,), count=2, steps=7, solver=solver, seed=len(p)) for p in ("7", "a blue 3", "")]),
        (unconditional, [Request(count=2, steps=7, solver=solver, seed=seed) for seed in (3, -3)]),
    ):
        gang = Gang(tuple(job(request, len(pipeline.labels(request))) for request in requests))
        together = to_uint8(pipeline_of(pipeline, gang)).int()
        alone = torch.cat([to_uint8(pipeline.sample(request).pixels) for request in requests]).int()
        assert together.shape == alone.shape
        assert (together - alone).abs().max() <= 1


def pipeline_of(pipeline, gang):
    bound, request = joined(pipeline, gang)
    return bound.sample(request).pixels


@pytest.fixture
def lane(classes):
    """An engine of one lane that has been at work."""
    with engine_of(classes, lanes=1) as engine:
        engine.submit(Request(("cat",), steps=2), lambda event: None)
        until(lambda: counted(engine, "rectiflow_requests_total", outcome="completed") == 1)
        yield engine


def test_each_of_a_gang_has_its_own_previews_and_may_leave(lane, classes):
    boxes = [queue.Queue() for _ in range(5)]
    engine = lane
    with engine._change:  # all of them at once
        jobs = [
            engine.submit(Request(("dog",), count=1 + i % 2, steps=60, seed=i), boxes[i].put, previews=i)
            for i in range(5)
        ]
        engine.cancel(jobs[4])
        jobs[3].cancelled = True
    for i in range(3):
        events = []
        while not events or isinstance(events[-1], Preview):
            events.append(boxes[i].get(timeout=PATIENCE))
        assert len(events) == i + 1
        assert [event.number for event in events[:-1]] == list(range(i))
        alone = to_uint8(classes.sample(jobs[i].request).pixels).int()
        assert (events[-1].pixels.int() - alone).abs().max() <= 1
    until(lambda: counted(engine, "rectiflow_requests_total", outcome="cancelled") == 2)
    assert counted(engine, "rectiflow_requests_total", outcome="completed") == 4
    assert boxes[3].empty()
    assert boxes[4].empty()
    assert counted(engine, "rectiflow_call_rows_count") <= 2 * 60, "they did not march as one"
    assert counted(engine, "rectiflow_pictures_in_flight") == 0


def test_a_gang_with_a_fault_is_made_again_one_by_one(lane, classes, monkeypatch):
    network = classes.flow.network
    whole = type(network).forward

    def brittle(self, x_t, t, condition=None):
        if bool((condition.labels == 2).any()):
            raise RuntimeError("out of memory")
        return whole(self, x_t, t, condition)

    monkeypatch.setattr(type(network), "forward", brittle)
    boxes = [queue.Queue() for _ in range(3)]
    with lane._change:
        for name, box in zip(("cat", "eel", "dog"), boxes, strict=True):
            lane.submit(Request((name,), steps=5), box.put)
    kinds = [type(box.get(timeout=PATIENCE)) for box in boxes]
    assert kinds == [Finished, Failed, Finished]


def test_who_leaves_a_gang_is_not_computed_any_more(lane, classes, monkeypatch):
    network = classes.flow.network
    whole, sizes = type(network).forward, []

    def watched(self, x_t, t, condition=None):
        sizes.append(len(x_t))
        if len(sizes) == 20:
            lane.cancel(jobs[1])
        return whole(self, x_t, t, condition)

    monkeypatch.setattr(type(network), "forward", watched)
    boxes = [queue.Queue() for _ in range(3)]
    with lane._change:
        jobs = [
            lane.submit(Request(("dog",), count=1 + i, steps=60, guidance=0.5, seed=i), boxes[i].put, previews=1)
            for i in range(3)
        ]
    events = [boxes[i].get(timeout=PATIENCE) for i in (0, 0, 2, 2)]
    assert sizes == [2 * 6] * 20 + [2 * 4] * 40, "with guidance, two rows a picture"
    assert [type(event) for event in events] == [Preview, Finished] * 2
    assert boxes[1].empty()
    for event, i in zip(events[1::2], (0, 2), strict=True):
        alone = to_uint8(classes.sample(jobs[i].request).pixels).int()
        assert (event.pixels.int() - alone).abs().max() <= 1

"""Clips and single pictures of one model in the engine, each as made alone."""

import queue
from dataclasses import replace

import pytest
import torch

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.continuation import continued
from rectiflow.data.pictures import to_uint8
from rectiflow.request import Request
from rectiflow.serving.asked_video import frames_of
from rectiflow.serving.frames import levels, longest_clip, most_frames, nearest_frames
from rectiflow.serving.gang import gangs
from rectiflow.serving.job import Finished, Job, Preview
from rectiflow.serving.lane import Call
from rectiflow.serving.limits import Limits
from rectiflow.serving.refusal import Refusal
from rectiflow.serving.served import Served
from tests.serving.conftest import PATIENCE, counted, engine_of, until


def made(engine, requests, previews=0):
    boxes = [queue.Queue() for _ in requests]
    with engine._change:  # all of them at once
        for request, box in zip(requests, boxes, strict=True):
            engine.submit(request, box.put, previews)
    events = []
    for box in boxes:
        events.append([box.get(timeout=PATIENCE)])
        while isinstance(events[-1][-1], Preview):
            events[-1].append(box.get(timeout=PATIENCE))
    return events


def test_levels():
    clips = torch.rand(2, 3, 5, 4, 6) * 2 - 1
    whole = levels(clips)
    assert whole.shape == (2, 5, 4, 6, 3)
    assert all(torch.equal(whole[:, t], to_uint8(clips[:, :, t])) for t in range(5))
    assert torch.equal(levels(clips[:, :, :1]), to_uint8(clips[:, :, 0]))


def test_the_nearest_frames():
    assert [nearest_frames(x) for x in (0, 5, 6.9, 7.1, 9, 16, 17)] == [5, 5, 5, 9, 9, 17, 17]


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("model", ["clips", "latent_clips"])
def test_clips_and_pictures_are_those_made_alone(request, model, lanes):
    clips = request.getfixturevalue(model)
    given = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    plain = Request(("left",), steps=4, guidance=1.0)
    requests = [
        plain,
        replace(plain, seed=3, count=2),
        replace(plain, seed=4, first=given),
        replace(plain, seed=4, first=-given, last=given),
        replace(plain, seed=5, frames=5),
        replace(plain, seed=6, frames=1, count=3),
        replace(plain, seed=7, size=(8, 16)),
    ]
    with engine_of(clips, lanes=lanes) as engine:
        events = made(engine, requests)
    for request, (event,) in zip(requests, events, strict=True):
        alone = levels(clips.sample(request).pixels)
        assert event.pixels.shape == alone.shape
        assert (event.pixels.int() - alone.int()).abs().max() <= 1
    assert events[0][0].pixels.shape == (1, 9, 16, 16, 3)
    assert events[5][0].pixels.shape == (3, 16, 16, 3)
    first = events[2][0].pixels[0, 0].int()
    assert model == "latent_clips" or (first - to_uint8(given[:, :, 0])[0].int()).abs().max() == 0


def test_previews_are_the_middle_frames_of_what_is_expected(clips):
    request = Request(("right",), 2, 8, seed=3)
    with engine_of(clips, lanes=1) as engine:
        ((*previews, done),) = made(engine, [request], previews=2)
    assert [p.pixels.shape for p in previews] == [(2, 16, 16, 3)] * 2
    expected = list(clips.states(request))[previews[0].step].estimate.data
    assert (previews[0].pixels.int() - to_uint8(expected[:, :, 4]).int()).abs().max() <= 1
    assert isinstance(done, Finished)


def test_previews_of_latents_are_decoded_up_to_the_middle(latent_clips):
    """Of 3 latent frames 2 are decoded, which are 5 of the 9 frames; nothing that follows changes them."""
    request = Request(("right",), 2, 8, seed=3)
    with engine_of(latent_clips, lanes=1) as engine:
        ((preview, _),) = made(engine, [request], previews=1)
    state = list(latent_clips.states(request))[preview.step]
    whole = levels(latent_clips.decode(replace(state, x_t=state.estimate.data), request))
    assert whole.shape == (2, 9, 16, 16, 3)
    assert (preview.pixels.int() - whole[:, 4].int()).abs().max() <= 1


def test_a_clip_weighs_its_frames(clips):
    limits = Limits(slots=20, batch=18, pictures=3)
    with engine_of(clips, limits, lanes=1) as engine:
        assert engine.room(9) == 2
        with pytest.raises(InputError, match=r"3 clips of 9 frames of 16x16 weigh 27 .* more than the 20"):
            engine.submit(Request(("left",), 3), print)
        assert engine.submit(Request(("left",), 3, steps=2, frames=1), lambda event: None).weight == 3
        events = made(engine, [Request(("left",), 1, 3, seed=seed) for seed in range(5)])
        assert all(isinstance(event, Finished) for (event,) in events)
        most = engine.metrics.registry.get_sample_value("rectiflow_call_rows_bucket", {"le": "2.0"})
        assert most >= 3 * 2, "calls of more than two clips, though only two have room"
    with pytest.raises(InputError, match="no request of a clip of 9 frames; ask for at least 27 slots"):
        next(engine_of(clips, Limits(slots=20, pictures=3), lanes=3).gen)


def test_progress_is_told_without_previews(clips):
    with engine_of(clips, Limits(evaluations=10**7), lanes=1) as engine:
        job = engine.submit(Request(("left",), steps=10**5), lambda event: None)
        assert isinstance(job, Job)
        until(lambda: job.begun and 0 < job.progress < 1)
        engine.cancel(job)
        until(lambda: counted(engine, "rectiflow_requests_total", outcome="cancelled") == 1)


@pytest.mark.parametrize("model", ["clips", "latent_clips"])
def test_longer_clips_go_on_window_by_window(request, model):
    """Beside others that are no longer than a window, each is that of the library; evaluations are of a window."""
    clips = request.getfixturevalue(model)
    given = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    long = Request(("left",), 2, 4, guidance=1.0, frames=17)
    requests = [
        long,
        replace(long, seed=5, frames=13, first=given),
        replace(long, count=1, last=-given),
        replace(long, seed=1),  # which goes the same way
        replace(long, frames=9),
        replace(long, frames=21, solver="sde"),
    ]
    with engine_of(clips, Limits(evaluations=8), lanes=1) as engine:
        events = made(engine, requests, previews=5)
    for asked, (*previews, done) in zip(requests, events, strict=True):
        alone = levels(continued(clips, asked).pixels)
        assert done.pixels.shape == alone.shape
        assert (done.pixels.int() - alone.int()).abs().max() <= 1
        windows = 1 + (asked.frames - 9) // 4
        expected = sorted({round(4 * windows * mark / 6) for mark in range(1, 6)} - {0, 4 * windows})
        assert [(p.step, p.steps) for p in previews] == [(step, 4 * windows) for step in expected]
        assert [p.number for p in previews] == list(range(len(expected)))


def test_long_clips_that_are_too_much_are_refused(clips):
    long = Request(("left",), frames=17)
    with engine_of(clips, Limits(film_bytes=17 * 3 * 16 * 16), lanes=1) as engine:
        engine.cancel(engine.submit(long, print))
        with pytest.raises(InputError, match="2 of 17 frames of 16x16 take 0 MiB, expected at most 0; ask for fewer"):
            engine.submit(replace(long, count=2), print)
        for classes, names in ((("left", "right"), 2), ((), 2)):
            with pytest.raises(InputError, match=f"one prompt or class at a time, received {names}"):
                engine.submit(replace(long, classes=classes), print)
        engine.cancel(engine.submit(replace(long, classes=(), frames=9), print))


def test_a_long_clip_that_nobody_waits_for_frees_its_place(clips):
    with engine_of(clips, lanes=1) as engine:
        steps, window = 500, 1 / 33
        job = engine.submit(Request(("left",), steps=steps, frames=9 + 32 * 4), lambda event: None)
        until(lambda: job.progress > window)  # so that it is in a later one
        engine.cancel(job)
        until(lambda: counted(engine, "rectiflow_requests_total", outcome="cancelled") == 1)
        assert window < job.progress < 1


def test_frames_are_limited(clips, classes):
    limited = {limit: Served(clips, "tiny", Limits(frames=limit)) for limit in (0, 5, 8, 20)}
    assert [most_frames(clips, served.limits) for served in limited.values()] == [9, 5, 5, 17]
    assert [frames_of(served, None, None, 8) for served in limited.values()] == [9, 5, 5, 9]
    assert frames_of(limited[20], None, 2.2, 8) == 17
    assert most_frames(classes, Limits(frames=20)) == longest_clip(classes, Limits(frames=20)) == 1
    windows = [Limits(windows=1), Limits(windows=3), Limits(frames=5, windows=3), Limits(frames=20, windows=2)]
    assert [longest_clip(clips, limits) for limits in windows] == [9, 17, 13, 29]
    plain = replace(clips, conditioner=replace(clips.conditioner, frames=None))
    assert [longest_clip(plain, limits) for limits in windows] == [9, 9, 5, 17]
    for pipeline, most in ((clips, 13), (plain, 5)):
        with pytest.raises(Refusal, match=f"expected 2 to {most}, received 17"):
            frames_of(Served(pipeline, "tiny", windows[2]), 17, None, 8)
    with engine_of(clips, Limits(frames=13), lanes=1) as engine:
        ((done,),) = made(engine, [Request(("left",), steps=2, frames=13)])
    assert done.pixels.shape == (1, 13, 16, 16, 3)


def test_what_is_taken_where_nothing_is_said(clips, classes):
    Served(clips, "tiny").check()
    with pytest.raises(InputError, match=r"rate: expected 0\.1 to 120"):
        Served(clips, "tiny", rate=0).check()
    assert (Served(clips, "tiny").takes_frames, Served(classes, "tiny").takes_frames) == (True, False)
    with pytest.raises(InputError, match="frames must be"):
        Limits(frames=-1)


def test_frames_that_are_given_to_some_are_no_condition_of_others():
    x_t, t = torch.zeros(1, 3, 9, 4, 4), torch.ones(1)
    plain, told = Condition(torch.zeros(1).long()), Condition(torch.zeros(1).long(), image=torch.zeros(1, 4, 9, 4, 4))
    calls = [Call(x_t, t, None), Call(x_t, t, plain), Call(x_t, t, told), Call(x_t[:, :, :5], t, plain)]
    assert [[one.goes_with(other) for other in calls] for one in calls] == torch.eye(4).bool().tolist()
    way = Request(("left",), steps=4)
    given = [replace(way, first=x_t[:, :, :1]), replace(way, last=x_t[:, :, :1]), replace(way, frames=5)]
    jobs = [Job(request, 1, 9, 0, print) for request in [way, *given, way]]
    assert sorted(len(gang.jobs) for gang in gangs(jobs, 128, 9)) == [1, 1, 1, 2]
    assert [len(gang.jobs) for gang in gangs([Job(replace(way, frames=9), 1, 9, 0, print)] * 2, 128, 9)] == [2]
    assert [len(gang.jobs) for gang in gangs([Job(replace(way, frames=9), 1, 5, 0, print)] * 2, 128, 5)] == [1, 1]

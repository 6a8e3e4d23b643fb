"""Clips longer than those trained on, and what a model of clips is given and asked."""

from dataclasses import replace

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.conditioner import Conditioner
from rectiflow.conditioning.frames_config import FramesConfig
from rectiflow.continuation import continued, window_seed
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.networks.build import build
from rectiflow.networks.config import VideoDiTConfig
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request

NAMES = ("left", "right")


@pytest.fixture(scope="module")
def pipeline():
    """Clips 1×9×4×4 in pixel space, with random weights."""
    torch.manual_seed(0)
    config = VideoDiTConfig(channels=1, classes=2, patch=2, width=24, depth=2, heads=2, texts=(), picture=1)
    network = build(config)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # gates and outputs start at zero
    flow = Flow.build(network, FlowConfig()).requires_grad_(False).eval()
    conditioner = Conditioner(NAMES, frames=FramesConfig(), null_trained=True)
    return Pipeline(flow, FlowConfig(), config, (1, 9, 4, 4), conditioner)


def test_a_still_is_a_clip_of_one_frame(pipeline):
    made = pipeline.sample(Request(count=2, steps=2, frames=1)).pixels
    assert made.shape == (4, 1, 1, 4, 4)
    assert pipeline.sample(Request(count=2, steps=2)).pixels.shape == (4, 1, 9, 4, 4)


def test_what_is_given_is_what_a_clip_begins_with(pipeline):
    first = torch.rand(2, 1, 5, 4, 4) * 2 - 1
    asked = Request(count=2, steps=3, first=first)
    made = pipeline.sample(asked).pixels
    assert torch.equal(made[:, :, :5], first.repeat(2, 1, 1, 1, 1))
    other = pipeline.sample(replace(asked, first=first.flip(0))).pixels
    assert not torch.allclose(made[:, :, 5:], other[:, :, 5:], atol=1e-3)


def test_the_last_frame_is_told(pipeline):
    last = torch.rand(1, 1, 1, 4, 4)
    made = [pipeline.sample(Request(count=1, steps=2, last=given)).pixels for given in (None, last, -last)]
    assert not torch.allclose(made[0], made[1], atol=1e-3)
    assert not torch.allclose(made[1], made[2], atol=1e-3)


def test_guidance_leads_away_from_the_same_frames_or_from_nothing(pipeline):
    asked = Request(count=1, steps=2, guidance=1.0, first=torch.rand(1, 1, 1, 4, 4))
    image = torch.rand(2, 2, 9, 4, 4)
    kept = pipeline.conditioner.asked(asked, torch.arange(2), image)
    assert torch.equal(kept.null().image, image)
    assert bool((kept.null().labels == -1).all())
    gone = pipeline.conditioner.asked(replace(asked, null="nothing"), torch.arange(2), image)
    assert not gone.null().image.any()


@pytest.mark.parametrize("frames", [13, 17, 21, 33])
def test_windows_go_on_from_one_another(pipeline, frames):
    asked = Request(count=2, steps=2, frames=frames, seed=3)
    made = continued(pipeline, asked, overlap=5)
    assert made.pixels.shape == (4, 1, frames, 4, 4)
    assert made.labels.tolist() == [0, 0, 1, 1]
    window = pipeline.sample(replace(asked, frames=9)).pixels
    assert torch.equal(made.pixels[:, :, :9], window)
    if frames >= 17:  # the second window as anyone would make it, class by class
        second = replace(asked, frames=9, seed=window_seed(3, 1))
        more = [
            pipeline.sample(replace(second, classes=(name,), first=window[2 * k : 2 * k + 2, :, -5:])).pixels
            for k, name in enumerate(NAMES)
        ]
        assert torch.equal(made.pixels[:, :, 9:13], torch.cat(more)[:, :, 5:])


def test_a_short_rest_takes_more_over(pipeline):
    """Of 13 frames the second window adds four, and goes on from five."""
    made = continued(pipeline, Request(count=1, steps=2, frames=13, classes=("left",)), overlap=1).pixels
    first = pipeline.sample(Request(count=1, steps=2, classes=("left",))).pixels
    given = Request(count=1, steps=2, classes=("left",), seed=window_seed(0, 1), first=first[:, :, 4:])
    assert torch.equal(made[:, :, 9:], pipeline.sample(given).pixels[:, :, 5:])


def test_a_window_goes_on_from_what_is_shown(pipeline, monkeypatch):
    """And not from what the last window made of frames that it was given, where an autoencoder has changed them."""
    original, given = Pipeline.sample, []

    def changing(self, request):
        given.append(request.first)
        samples = original(self, request)
        return replace(samples, pixels=0.5 * samples.pixels)

    monkeypatch.setattr(Pipeline, "sample", changing)
    made = continued(pipeline, Request(count=1, steps=1, frames=17, classes=("left",)), overlap=5).pixels
    assert torch.equal(given[1], made[:, :, 4:9])
    assert torch.equal(given[2], made[:, :, 8:13])


def test_the_last_frame_is_told_to_the_last_window_alone(pipeline, monkeypatch):
    original, given = Pipeline.sample, []

    def noting(self, request):
        given.append(request.last)
        return original(self, request)

    monkeypatch.setattr(Pipeline, "sample", noting)
    last = torch.zeros(1, 1, 1, 4, 4)
    continued(pipeline, Request(count=1, steps=1, frames=17, classes=("left",), last=last), overlap=5)
    assert [each is last for each in given] == [False, False, True]
    assert given[:2] == [None, None]


def test_a_class_that_is_named_0_goes_on(pipeline):
    numbered = replace(pipeline, conditioner=replace(pipeline.conditioner, class_names=("0", "1")))
    asked = Request(count=1, steps=2, frames=13, classes=NAMES)
    made = continued(numbered, replace(asked, classes=(0, 1))).pixels
    assert torch.equal(made, continued(pipeline, asked).pixels)


@pytest.mark.parametrize("window", [5, 9])
def test_the_overlap_that_is_named_suits(pipeline, window):
    shorter, asked = replace(pipeline, shape=(1, window, 4, 4)), Request(count=1, steps=1, frames=13)
    with pytest.raises(InputError) as refused:
        continued(shorter, asked, overlap=window)
    named = int(str(refused.value).rstrip(".").split()[-1])
    assert continued(shorter, asked, named).pixels.shape[2] == 13


@pytest.mark.parametrize(
    ("changes", "overlap", "message"),
    [
        ({"frames": 14}, 5, "nearest is 13"),
        ({"frames": 13}, 4, "overlap of 1\\+4m"),
        ({"frames": 13}, 9, "below 9"),
        ({"frames": 0}, 5, "at least 1 frame"),
        ({"first": torch.zeros(1, 1, 9, 4, 4)}, 5, "expected 1 to 8"),
        ({"frames": 1, "first": torch.zeros(1, 1, 1, 4, 4)}, 5, "leave it out"),
        ({"frames": 1, "last": torch.zeros(1, 1, 1, 4, 4)}, 5, "leave it out"),
        ({"last": torch.zeros(1, 1, 2, 4, 4)}, 5, "expected 1 to 1"),
        ({"first": torch.zeros(1, 3, 1, 4, 4)}, 5, "N×1×t×4×4"),
        ({"picture": torch.zeros(1, 1, 4, 4)}, 5, "no picture"),
        ({"frames": 1 + 4 * 10**10}, 5, r"2 of 1×40000000001×4×4 take 10,240.0 GB of memory, and .* are free"),
        ({"count": 10**10}, 5, r"20,000,000,000 of 1×9×4×4 take .* GB of memory"),
    ],
)
def test_what_cannot_be_is_refused(pipeline, changes, overlap, message):
    with pytest.raises(InputError, match=message):
        continued(pipeline, Request(steps=2, **changes), overlap)


def test_a_model_that_is_given_no_frames_says_so(pipeline):
    plain = replace(pipeline, conditioner=Conditioner(NAMES, null_trained=True))
    with pytest.raises(InputError, match="given no frames"):
        plain.sample(Request(steps=2, first=torch.zeros(1, 1, 1, 4, 4)))
    with pytest.raises(InputError, match="given no frames to go on from"):
        continued(plain, Request(steps=2, frames=13))


def test_it_saves_and_loads(pipeline, tmp_path):
    pipeline.save(tmp_path)
    loaded, asked = Pipeline.load(tmp_path), Request(count=1, steps=2, first=torch.rand(1, 1, 1, 4, 4))
    assert loaded.conditioner == pipeline.conditioner
    assert torch.equal(loaded.sample(asked).pixels, pipeline.sample(asked).pixels)

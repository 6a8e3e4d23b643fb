"""Reports on models of clips: scores by one frame of each, adherence by the judge of clips."""

import json
from types import SimpleNamespace

import pytest
import torch

from rectiflow.data.builtin import digit_clips, digits
from rectiflow.data.images import ImageSet, InMemory, to_float
from rectiflow.data.moving import MovingDigits
from rectiflow.evaluation import compare as compare_module
from rectiflow.evaluation.compare import compare
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.one_frame import OneFrame, as_pictures, one_frame
from rectiflow.evaluation.page import adherence_lines, page
from rectiflow.evaluation.prompted import prompted
from rectiflow.evaluation.report import evaluate
from rectiflow.evaluation.scores import scores
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.networks.config import DiTConfig
from rectiflow.pipeline import Pipeline
from rectiflow.request import Samples

INDEX = torch.arange(200)


@pytest.fixture(scope="module")
def data():
    return digit_clips(5)


def test_one_frame_of_each_clip_evenly_by_its_number(data):
    stills = OneFrame(data.train)
    assert stills.shape == (3, 32, 32)
    assert len(stills) == len(data.train)
    clips, frames = data.train.fetch(INDEX), stills.fetch(INDEX)
    same = (clips == frames[:, :, None]).flatten(3).all(-1).all(1)  # of slow clips neighbours are equal
    assert same.any(1).all()
    assert (same.sum(0) > 25).all(), "each of the five for some"
    assert torch.equal(stills.fetch(INDEX[[70, 3]]), frames[[70, 3]])
    assert stills.captions(INDEX) == data.train.captions(INDEX)
    assert torch.equal(one_frame(frames), frames)


def test_pictures_are_left_as_they_are(data):
    assert as_pictures(digits()).shape == (1, 8, 8)
    assert as_pictures(data).shape == (3, 32, 32)


class Point(torch.nn.Module):
    """v of data that are grey throughout."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t, condition=None):
        return x / t.reshape(-1, 1, 1, 1, 1).clamp_min(1e-6)


@pytest.fixture
def grey(data):
    """A model of clips 3×5×4×4 that makes them grey, and real ones to hold them against."""
    parts = [(to_float(part.fetch(INDEX))[..., ::8, ::8], part.labels[INDEX]) for part in (data.train, data.held_out)]
    network = DiTConfig(channels=3, classes=0, patch=4, width=16, depth=1, heads=2)
    return Pipeline(Flow(Point()), FlowConfig(), network, (3, 5, 4, 4)), ImageSet(
        *(InMemory(*part) for part in parts), ()
    )


def test_a_model_of_clips_is_scored(grey, tmp_path):
    pipeline, few = grey
    found = evaluate(pipeline, few, EvaluateConfig(count=30, features="pixels", steps=2), tmp_path, {})
    assert found["frames"] == 5
    assert found["scores"]["dimension"] == 3 * 4 * 4
    assert found["scores"]["count"] == 30
    assert found["scores"]["frechet"]["value"] > 2 * found["real"]["frechet"]["value"]
    words = (tmp_path / "report.md").read_text()
    assert "one frame of each" in words
    assert "the frames of a clip in each row" in words
    for name in ("samples.png", "copies.png"):
        assert (tmp_path / name).stat().st_size > 200


def test_models_of_clips_are_compared_by_the_same_frames(grey, tmp_path):
    pipeline, few = grey
    ways = [EvaluateConfig(count=30, features="pixels", steps=steps) for steps in (1, 2)]
    rows = compare({"grey": pipeline}, few, ways, tmp_path / "compared", lambda line: None)
    found = evaluate(pipeline, few, ways[1], tmp_path / "evaluated", {})
    assert [row["steps"] for row in rows] == [1, 2]
    assert rows[1]["frechet"] == found["scores"]["frechet"]
    told = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert (told["frames"], told["real"]) == (5, found["real"])
    assert "one frame of each" in (tmp_path / "compared" / "compare.md").read_text()


def test_each_clip_that_is_compared_gives_a_frame_of_its_own(grey, tmp_path, monkeypatch):
    _, few = grey
    made = to_float(few.held_out.fetch(torch.arange(100)))
    made[:, :, 0] = 0
    cost = {"evaluations": 1, "seconds_per_100": 1.0}
    monkeypatch.setattr(compare_module, "drawn", lambda *_: (SimpleNamespace(pixels=made), cost))
    scored = []
    monkeypatch.setattr(
        compare_module, "scores", lambda by, pixels, *rest: scored.append(pixels) or scores(by, pixels, *rest)
    )
    compare({"": None}, few, [EvaluateConfig(count=100, features="pixels")], tmp_path, lambda line: None)
    assert torch.equal(scored[0], one_frame(made))
    assert 10 <= (scored[0] == 0).flatten(1).all(1).sum() <= 30, "the first of five for some"


def test_adherence_of_a_model_of_clips(tmp_path, monkeypatch):
    """A model that makes real clips of what is asked for: with guidance, and without it another clip's."""
    data = ImageSet(*(MovingDigits(digits().train, "held out", 60) for _ in "ab"), ())
    real = to_float(data.held_out.fetch(torch.arange(60)))

    def sample(request):
        assert list(request.prompts) == data.held_out.captions(torch.arange(24))
        return Samples(
            real[:24] if request.guidance else real[:24].flip(2), torch.full((24,), -1), tuple(request.prompts)
        )

    from rectiflow.evaluation import clip_adherence

    for name in ("clip_ceiling", "clip_imitation"):
        whole = getattr(clip_adherence, name)
        monkeypatch.setattr(clip_adherence, name, lambda judge, frames, whole=whole: whole(judge, 12, frames))
    config = EvaluateConfig(count=24, weights=(0, 2))
    model = SimpleNamespace(takes_prompts=True, sample=sample)
    found = prompted(model, data, lambda pixels: pixels.mean((2, 3)).double(), config)
    assert found["prompts"] == 24
    assert found["best_w"] == 2
    assert [row["seen"]["direction"]["value"] for row in found["rows"]] == [0, 1]
    assert [row["held_out"]["identity"]["value"] for row in found["rows"]] == [1, 1]
    assert json.loads(json.dumps(found)) == found
    lines = adherence_lines(found)
    assert lines[0].startswith("seen combinations at w = 2: colour 1.000 (real 1.000), digit")
    assert "direction 1.000" in lines[1]
    words = page(_report(found))
    assert (
        "| colour | digit | direction | speed | identity | in all frames | whole prompt | Fréchet distance |" in words
    )
    assert "one in ten" in words


def _report(found):
    score = {"value": 1.0, "low": 1.0, "high": 1.0}
    scores = dict.fromkeys(("frechet", "kernel", "told_apart"), score)
    scores |= dict.fromkeys(("precision", "recall", "density", "coverage"), 1.0)
    scores |= {"count": 24, "features": "pixels", "dimension": 3, "notes": []}
    return {
        "model": {},
        "settings": EvaluateConfig().model_dump(),
        "cost": {"evaluations": 1, "seconds_per_100": 1},
        "frames": 17,
        "scores": scores,
        "real": scores,
        "copies": {"share": 0.0, "held_out_share": 0.0, "threshold": 1.0},
        "adherence": found,
    }

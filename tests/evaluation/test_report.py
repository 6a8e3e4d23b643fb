"""The encoder, the search for copies, the overfitting flag, and the two commands from end to end."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rectiflow.__main__ import main
from rectiflow.data.builtin import digits
from rectiflow.data.images import InMemory, to_float
from rectiflow.evaluation.features import SmallEncoder, features
from rectiflow.evaluation.memory import copies, loss_by_noise, some
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.networks.config import DiTConfig
from rectiflow.pipeline import Pipeline
from rectiflow.sampling.solvers import solver


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = ["network={patch: 4, width: 16, depth: 1, heads: 2}", "steps=4", "batch=8", "precision=float32"]
    assert main(["train", "digits", "--run", str(folder), "--set", *settings, "every.preview=0"]) == 0
    return folder


def test_an_encoder_of_the_data_is_repeatable_and_knows_its_classes(tmp_path):
    data = digits()
    first, again = (SmallEncoder(data.train, steps=60) for _ in range(2))
    pixels, labels = some(data.held_out, 0, 200)
    assert torch.equal(first(pixels), again(pixels))
    assert first(pixels).shape == (200, 64)
    # Nearest training picture by its features: most have the same class.
    train, theirs = some(data.train, 0, 1000)
    nearest = torch.cdist(first(pixels), first(train)).argmin(1)
    assert float((theirs[nearest] == labels).double().mean()) > 0.8
    found = first(train)
    assert float(found.mean().abs()) < 0.1
    first.save(tmp_path)
    assert "mean" in load_file(tmp_path / "encoder.safetensors")


def test_without_classes_it_learns_how_pictures_were_turned():
    data = digits().train
    unlabelled = InMemory(to_float(data.fetch(torch.arange(200))), torch.full((200,), -1))
    assert SmallEncoder(unlabelled, steps=3)(unlabelled.pixels).shape == (200, 64)


def test_planted_copies_are_found_and_shown_first():
    draws = torch.Generator().manual_seed(0)
    train, held_out, made = (torch.randn(n, 16, generator=draws, dtype=torch.float64) for n in (600, 200, 100))
    assert copies(made, train, held_out).share < 0.05
    made[[3, 50, 77]] = train[[5, 6, 7]] + 1e-3
    found = copies(made, train, held_out)
    assert found.share == pytest.approx(0.03, abs=0.03)
    assert {tuple(pair) for pair in found.pairs[:3].tolist()} == {(3, 5), (50, 6), (77, 7)}
    assert found.held_out_share < 0.05


def test_a_model_that_knows_its_training_pictures_is_flagged():
    """The exact field of 30 points against that of their law: only the first is better on what it was made from."""
    draws = torch.Generator().manual_seed(0)
    train, held_out = (InMemory(torch.randn(30, 1, 2, 2, generator=draws) * 0.5, torch.zeros(30).long()) for _ in "ab")

    class OfPoints(torch.nn.Module):
        """v of data that are the training points themselves."""

        def forward(self, x, t, condition=None):
            t = t.reshape(-1, 1, 1, 1).clamp(1e-3, 1 - 1e-6)
            points = train.pixels.flatten(1)
            distance = (x.flatten(1)[:, None] - (1 - t.reshape(-1, 1, 1)) * points).square().sum(-1)
            share = torch.softmax(-distance / (2 * t.reshape(-1, 1) ** 2), dim=1)
            return (x - (share @ points).reshape(x.shape)) / t

    class OfLaw(torch.nn.Module):
        def forward(self, x, t, condition=None):
            t = t.reshape(-1, 1, 1, 1)
            return (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2) * x

    network = DiTConfig(channels=1, classes=0, patch=2, width=16, depth=1, heads=2)
    found = {
        kind: loss_by_noise(Pipeline(Flow(kind()), FlowConfig(), network, (1, 2, 2)), train, held_out)
        for kind in (OfPoints, OfLaw)
    }
    assert found[OfPoints]["overfitted"]
    assert not found[OfLaw]["overfitted"]
    assert found[OfLaw]["count"] == 30


def test_evaluate_writes_a_report(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--out", str(tmp_path / "report"), "--count", "40", "--features", "pixels"]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["scores"]["features"] == "pixels"
    assert report["scores"]["count"] == 40
    assert report["settings"]["seed"] == 0
    assert "lack full rank" in report["scores"]["notes"][0]  # 40 samples of 64 pixels: said, not hidden
    assert report["cost"]["evaluations"] == 50
    page = (tmp_path / "report" / "report.md").read_text()
    for name in ("samples.png", "copies.png", "nearest.png", "loss.png"):
        assert name in page
        assert (tmp_path / "report" / name).stat().st_size > 500
    assert "wrote" in capsys.readouterr().out


def test_compare_writes_one_table_and_one_plot(run, tmp_path):
    arguments = ["--out", str(tmp_path), "--count", "20", "--features", "pixels", "--steps", "2", "4"]
    assert main(["compare", str(run), *arguments, "--solvers", "euler", "heun", "ddpm"]) == 0
    found = json.loads((tmp_path / "compare.json").read_text())["rows"]
    costs = {(row["solver"], row["evaluations"]) for row in found}
    assert costs == {(name, cost) for name in ("euler", "heun", "ddpm") for cost in (2, 4)}  # equal cost, fewer steps
    assert (tmp_path / "compare.png").stat().st_size > 2000
    assert (tmp_path / "compare.md").read_text().count("| heun") == 2
    assert solver("heun").evaluations == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "RUN/model"], "is not a run folder"),
        (["evaluate", "RUN", "--count", "5"], "count"),
        (["evaluate", "RUN", "--features", "dino"], "expected pixels, encoder, or the local folder"),
        (["evaluate", "RUN", "--solver", "eulr"], "Did you mean 'euler'"),
        (["compare"], "RUN"),
        (["compare", "RUN", "--solvers", "hein"], "Did you mean 'heun'"),
    ],
)
def test_bad_input_is_one_line(run, capsys, arguments, words):
    assert main([argument.replace("RUN", str(run)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_names_of_features():
    assert features("pixels", digits().train).name == "pixels"

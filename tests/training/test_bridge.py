"""From one folder of pictures to another, by the commands of a user."""

import numpy as np
import pytest
import torch
from PIL import Image

from rectiflow.__main__ import main
from rectiflow.pipeline import Pipeline, Request
from rectiflow.training.run_folder import read_run
from tests.data.test_folder import picture

SMALL = [
    *("network.width=16", "network.depth=1", "network.heads=1", "network.patch=4", "data.size=8", "batch=16"),
    *("precision=float32", "preview.steps=4", "every.preview=40", "optimiser.warmup=5", "data.workers=0"),
]


def shade(path, red, level):
    """A plain picture, so that where it came from can be told from its level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0 if red else 1] = level
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    """The folders `red`, `green` and `given`, and a `run` that leads from red to green."""
    folder = tmp_path_factory.mktemp("bridge")
    for i in range(48):
        shade(folder / "red" / f"{i:02}.png", True, 90 + 3 * i)
        shade(folder / "green" / f"{i:02}.png", False, 91 + 3 * i)
    shade(folder / "given" / "0.png", True, 110)
    shade(folder / "given" / "1.png", True, 215)
    arguments = ["train", "folder", "--data", str(folder / "green"), "--source", str(folder / "red")]
    settings = [
        *SMALL,
        "steps=300",
        "data.held_out=0.5",
        "every.held_out=0",
        "flow.coupling=optimal-transport",
        "flow.prediction=velocity",
    ]
    assert main([*arguments, "--run", str(folder / "run"), "--set", *settings]) == 0
    return folder


def test_pictures_of_one_folder_become_those_of_the_other(bridge):
    """Optimal transport pairs dark with dark and bright with bright, and so does the trained bridge."""
    out = bridge / "out.npz"
    command = ["sample", str(bridge / "run"), "--source", str(bridge / "given"), "--count", "2", "--out", str(out)]
    assert main(command) == 0
    pixels = np.load(out)["arr_0"].astype(float)
    red, green = pixels[..., 0].mean((1, 2)), pixels[..., 1].mean((1, 2))
    assert red.max() < 45
    assert green.min() > 90
    assert green[1] - green[0] > 40


def test_it_starts_from_its_own_held_out_pictures_if_none_are_given(bridge):
    assert main(["sample", str(bridge / "run"), "--count", "3", "--out", str(bridge / "own.png")]) == 0
    assert Image.open(bridge / "own.png").text["count"] == "3"
    assert (bridge / "run" / "source-inventory").is_dir()


def test_the_filmstrip_begins_with_the_given_picture(bridge):
    pipeline = Pipeline.load(bridge / "run")
    given = torch.rand(2, 3, 8, 8)
    states = list(pipeline.states(Request(count=3, source=given, steps=2)))
    assert torch.equal(states[0].x_t, given[[0, 1, 0]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "MODEL"], "give them: --source DIR"),
        (["sample", "RUN", "--source", "none"], "none"),
        (["sample", "RUN", "--solver", "sde"], "set of pictures, not Gaussian"),
        (["evaluate", "RUN", "--likelihood"], "density of the pictures"),
        (["train", "digits", "--run", "x", "--set", "flow.source=pictures"], "--source DIR sets them"),
        (["train", "vae", "--run", "x", "--set", "flow.source=uniform"], "one-step"),
    ],
)
def test_what_a_bridge_cannot_do_is_refused_with_the_reason(bridge, capsys, arguments, words):
    names = {"RUN": str(bridge / "run"), "MODEL": str(bridge / "run" / "model"), "none": str(bridge / "none")}
    assert main([names.get(word, word) for word in arguments]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1


def test_only_a_bridge_takes_pictures(bridge, tmp_path, capsys):
    run = tmp_path / "run"
    picture(tmp_path / "data" / "a.png")
    picture(tmp_path / "data" / "b.png", "green")
    assert (
        main(["train", "folder", "--data", str(tmp_path / "data"), "--run", str(run), "--set", *SMALL, "steps=1"]) == 0
    )
    assert main(["sample", str(run), "--source", str(bridge / "given")]) == 2
    assert "starts from gaussian noise" in capsys.readouterr().err


def test_sources_are_not_paired_in_the_order_of_the_data(bridge):
    """Equal numbers of pictures on both sides must not meet their namesakes."""
    from rectiflow.data.sets import open_set, open_source
    from rectiflow.training.stages import FlowStage

    config = read_run(bridge / "run")
    data = open_set(config.data)
    stage = FlowStage(config, data, torch.device("cpu"))
    stage.bridge_from(open_source(config.data, data.shape))
    targets, sources = (loader(0).pixels.flatten(1).amax(1) for loader in (stage.loader, stage.sources))
    assert float(((targets - sources).abs() < 2 / 255).float().mean()) < 0.5

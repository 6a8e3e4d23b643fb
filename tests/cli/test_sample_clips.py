"""`rectiflow sample` of a model of clips."""

import json
import math
from dataclasses import replace

import pytest
from PIL import Image

from rectiflow.__main__ import main
from rectiflow.conditioner import Conditioner
from rectiflow.conditioning.frames_config import FramesConfig
from rectiflow.data.clips import rate_of, read_about
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.networks.build import build
from rectiflow.networks.config import VideoDiTConfig
from rectiflow.pipeline import Pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Clips 1×5×8×8 in pixel space."""
    config = VideoDiTConfig(channels=1, classes=0, patch=4, width=24, depth=1, heads=2, texts=(), picture=1)
    flow = Flow.build(build(config), FlowConfig()).requires_grad_(False).eval()
    folder = tmp_path_factory.mktemp("clips")
    Pipeline(flow, FlowConfig(), config, (1, 5, 8, 8), Conditioner(frames=FramesConfig())).save(folder)
    return folder


@pytest.mark.parametrize("overlap", ["0", "-1", "4"])
def test_an_overlap_that_no_clip_has_is_refused(model, tmp_path, capsys, overlap):
    film = tmp_path / "x.gif"
    assert main(["sample", str(model), "--steps", "1", "--out", str(film)]) == 0
    asked = ["sample", str(model), "--go-on", str(film), "--overlap", overlap, "--out", str(tmp_path / "y.gif")]
    assert main(asked) == 2
    assert "--overlap is of 1+4m frames" in capsys.readouterr().err


def test_a_filmstrip_is_of_single_pictures(model, tmp_path, capsys):
    out = tmp_path / "film.png"
    asked = ["sample", str(model), "--steps", "2", "--filmstrip", "3", "--out", str(out)]
    assert main(asked) == 2
    assert "add --frames 1" in capsys.readouterr().err
    assert main([*asked, "--frames", "1"]) == 0
    width, height = Image.open(out).size
    assert width > 2 * height


@pytest.mark.parametrize(
    ("told", "asked", "milliseconds"), [({}, [], 120), ({"rate": 4.0}, [], 250), ({"rate": 4.0}, ["--rate", "10"], 100)]
)
def test_films_run_as_the_model_was_trained(model, tmp_path, told, asked, milliseconds):
    replace(Pipeline.load(model), training=told).save(tmp_path / "model")
    out = tmp_path / "x.gif"
    assert main(["sample", str(tmp_path / "model"), "--steps", "1", "--out", str(out), *asked]) == 0
    film = Image.open(out)
    film.seek(1)
    assert film.info["duration"] == pytest.approx(milliseconds, abs=10)


@pytest.mark.parametrize("rate", ["0", "0.0001", "241"])
def test_a_rate_that_no_film_has_is_refused(model, tmp_path, capsys, rate):
    out = tmp_path / "x.gif"
    assert main(["sample", str(model), "--steps", "1", "--out", str(out), "--rate", rate]) == 2
    assert f"--rate is 0.1 to 240 frames a second, received {rate}." in capsys.readouterr().err


@pytest.mark.parametrize("asked", [["--steps", "1000"], ["--steps", "1000", "--solver", "rk45"]])
def test_of_a_filmstrip_only_what_is_shown_is_held(model, tmp_path, monkeypatch, capsys, asked):
    """Three pictures of 8×8, however many steps there are."""
    out = tmp_path / "film.png"
    asked = ["sample", str(model), *asked, "--frames", "1", "--filmstrip", "3", "--out", str(out)]
    monkeypatch.setattr("rectiflow.base.machine.available", lambda device: 2 * 4 * 3 * 64)
    assert main(asked) == 0
    assert Image.open(out).size[0] == 4 * (3 * 9 + 1)
    monkeypatch.setattr("rectiflow.base.machine.available", lambda device: 2 * 4 * 3 * 64 - 1)
    assert main(asked) == 2
    assert "3 of 1×1×8×8 take 0.0 GB of memory" in capsys.readouterr().err


@pytest.mark.parametrize("told", [0, -1, 1e-4, "8", math.nan, 1e9, None])
def test_a_rate_that_is_none_is_not_believed(told):
    assert rate_of({"rate": told}) == 8.0


def test_one_clip_is_only_itself(model, tmp_path):
    """Not a sheet with a frame of grey around it, which a clip that goes on from it would have, too."""
    one, two = tmp_path / "one.gif", tmp_path / "two.gif"
    assert main(["sample", str(model), "--steps", "1", "--out", str(one)]) == 0
    assert main(["sample", str(model), "--steps", "1", "--count", "2", "--out", str(two)]) == 0
    assert Image.open(one).size == (256, 256)
    assert Image.open(two).size == (19 * 13, 10 * 13)


def test_a_clip_that_goes_on_runs_as_its_film_does(model, tmp_path):
    film, out, trained = tmp_path / "x.gif", tmp_path / "y.gif", tmp_path / "model"
    replace(Pipeline.load(model), training={"rate": 8.0}).save(trained)
    usual = ["sample", str(trained), "--steps", "1"]
    assert main([*usual, "--rate", "20", "--out", str(film)]) == 0
    for asked, milliseconds in (([], 50), (["--rate", "4"], 250)):
        assert main([*usual, "--go-on", str(film), "--overlap", "1", "--out", str(out), *asked]) == 0
        made = Image.open(out)
        made.seek(1)
        assert made.info["duration"] == milliseconds
        assert read_about(out)["rate"] == pytest.approx(1000 / milliseconds)


def test_a_folder_may_have_the_frames_of_each(model, tmp_path, capsys):
    asked = ["sample", str(model), "--steps", "1", "--count", "2"]
    assert main([*asked, "--each", "frames", "--out", str(tmp_path / "frames")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "frames" / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["00000", "00001"]
    for line in lines:
        frames = sorted((tmp_path / "frames" / line["file_name"]).glob("*.png"))
        assert [Image.open(frame).size for frame in frames] == 5 * [(8, 8)]
    (tmp_path / "frames" / "00001" / "mine.txt").touch()
    assert main([*asked, "--each", "frames", "--out", str(tmp_path / "frames")]) == 2
    assert "00001 holds mine.txt" in capsys.readouterr().err
    assert (tmp_path / "frames" / "00001" / "mine.txt").is_file()
    assert main([*asked, "--each", "gif", "--out", str(tmp_path / "gifs")]) == 0
    assert [path.name for path in sorted((tmp_path / "gifs").glob("*.gif"))] == ["00000.gif", "00001.gif"]
    assert main([*asked, "--each", "frames", "--out", str(tmp_path / "x.mp4")]) == 2
    assert "--each frames is of a folder" in capsys.readouterr().err


def test_a_film_says_how_it_can_be_made_again(model, tmp_path):
    film, out = tmp_path / "x.gif", tmp_path / "y.gif"
    assert main(["sample", str(model), "--steps", "1", "--out", str(film)]) == 0
    told = read_about(film)
    assert told.keys().isdisjoint({"frames", "size", "go_on", "overlap", "rate", "precision", "null"})
    more = ["--frames", "9", "--size", "16", "8", "--go-on", str(film), "--overlap", "1", "--rate", "5"]
    assert main(["sample", str(model), "--steps", "1", "--out", str(out), *more, "--null", "nothing"]) == 0
    asked = {"frames": 9, "size": [16, 8], "go_on": str(film), "overlap": 1, "rate": 5.0, "null": "nothing"}
    assert asked.items() <= read_about(out).items()

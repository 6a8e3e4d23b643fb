"""A user's evening in small: a folder made of crops, trained, stopped, gone on with, sampled, by the command line."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from rectiflow.__main__ import main

CROPS = Path(__file__).parent.parent / "benchmarks" / "crops.py"
SMALL = [
    "network={patch: 4, width: 16, depth: 1, heads: 2}",
    "steps=8",
    "batch=8",
    "data.size=16",
    "every={log: 2, held_out: 4, preview: 4, save: 4}",
    "precision=float32",
]


@pytest.fixture(scope="module")
def evening(tmp_path_factory):
    """The folder of a home: pictures in it, and the run that they train."""
    home = tmp_path_factory.mktemp("home")
    spec = importlib.util.spec_from_file_location("crops", CROPS)
    crops = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(crops)
    crops.write(home / "crops", count=80, size=24)
    (home / "crops" / "3" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    status = main(["train", "folder", "--data", str(home / "crops"), "--run", str(home / "run"), "--set", *SMALL])
    assert status == 0
    return home


def test_what_was_found_is_told(evening, capsys):
    arguments = ["train", "folder", "--data", str(evening / "crops"), "--run", str(evening / "other"), "--set", *SMALL]
    assert main(arguments) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "found 81 pictures in" in told
    assert "used 80 in 10 classes" in told
    assert "skipped: not a picture 1 3/broken.png" in told


def test_previews_metrics_and_curves(evening):
    run = evening / "run"
    assert {"00000004.png", "00000008.png"} <= {path.name for path in (run / "samples").iterdir()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "held_out_loss"} <= {name for line in lines for name in line}
    assert list(run.glob("events.out.tfevents*"))


def test_samples_by_class(evening, capsys):
    out = evening / "samples.png"
    assert (
        main(["sample", str(evening / "run"), "--classes", "3", "7", "--count", "2", "--steps", "2", "--out", str(out)])
        == 0
    )
    assert Image.open(out).size == ((2 * 17 + 1) * 2, (2 * 17 + 1) * 2)


def test_a_finished_run_and_another_folder(evening, capsys, tmp_path):
    arguments = ["train", "folder", "--run", str(evening / "run"), "--set", *SMALL]
    assert main([*arguments, "--data", str(evening / "crops")]) == 0
    assert "already trained" in capsys.readouterr().out
    assert main([*arguments, "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "was begun with other settings (data.dir;" in error


def test_no_folder_given(capsys):
    assert main(["train", "folder", "--run", "nowhere"]) == 2
    assert "--data DIR" in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_pictures_inside_of_the_run_folder_are_left_alone(evening, tmp_path, capsys):
    """A home with nothing in it but the user's pictures is no remnant of a run, whatever they are called."""
    for name in ("data", "inventory"):
        pictures = tmp_path / name / name
        shutil.copytree(evening / "crops", pictures)
        arguments = ["train", "folder", "--data", str(pictures), "--run", str(tmp_path / name), "--set", *SMALL]
        assert main(arguments) == 2
        assert "is not empty and not a run" in capsys.readouterr().err
        assert len(list(pictures.rglob("*.png"))) == 81


def test_a_run_that_saves_nothing_says_so(evening, tmp_path, capsys):
    arguments = ["train", "folder", "--data", str(evening / "crops"), "--run", str(tmp_path / "run"), "--set", *SMALL]
    assert main([*arguments, "every.save=0"]) == 0
    assert "nothing of it was saved: every.save is 0" in " ".join(capsys.readouterr().out.split())

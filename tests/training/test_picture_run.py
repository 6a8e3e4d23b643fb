"""Runs given a picture: what the network is told in training, resumed bit for bit, and asked for by files."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from rectiflow.__main__ import main
from rectiflow.base.condition import NULL_LABEL
from rectiflow.cli.runs import data_of
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.data.builtin import digits
from rectiflow.models.folder import ModelConfig, read_model_config
from rectiflow.pipeline import Pipeline
from rectiflow.recipes.registry import resolve
from rectiflow.request import Request
from rectiflow.training.run import train
from rectiflow.training.stages import FlowStage
from tests.conftest import SMALL, same

NETWORK = "network={kind: dit, patch: 2, width: 16, depth: 1, heads: 2}"
QUICK = [*SMALL[1:], NETWORK, "data.workers=0"]
CPU = torch.device("cpu")
QUIET = Console(quiet=True)


def config(*settings):
    return resolve("digits", settings=[*SMALL, "network.patch=2", *settings])


def image(values, path, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8), mode).save(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind, six steps each: low digits, and of coloured files grey, masked and paired ones."""
    folder, draws = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(24):
        pixels = draws.integers(0, 256, (8, 8, 3))
        image(pixels, folder / "data" / f"{i:02}.png")
        image(255 - pixels, folder / "other" / f"{i:02}.png")
    low = ["train", "super-resolution", "--run", str(folder / "low"), "--set", "data.set=digits", *QUICK]
    assert main(low) == 0
    for kind in ("grey", "masked", "paired"):
        more = [f"picture.kind={kind}", "data.size=8", "data.crop=center"]
        more += [f"picture.dir={folder / 'other'}"] if kind == "paired" else []
        more += ["picture.dropout=0"] if kind == "masked" else []
        command = [
            "train",
            "colour",
            "--data",
            str(folder / "data"),
            "--run",
            str(folder / kind),
            "--set",
            *QUICK,
            *more,
        ]
        assert main(command) == 0
    return folder


def test_each_dropout_is_drawn_apart_from_the_others():
    shares = ("picture={kind: low, dropout: 0.3, alone: 0.2}", "condition_dropout=0.1", "batch=4096")
    stage = FlowStage(config(*shares), digits(), CPU)
    _, condition, index = stage._batch(0, slice(None))
    assert bool((condition.image[:, -1] == 1).all())
    dropped = stage._dropped(condition, 0, index)
    without_picture = (dropped.image == 0).flatten(1).all(1)
    without_label = dropped.labels == NULL_LABEL

    def share(picture, label):
        return float(((without_picture == picture) & (without_label == label)).double().mean())

    kept = 0.9
    assert share(0, 0) == pytest.approx(kept * 0.7 * 0.8, abs=0.03)
    assert share(1, 0) == pytest.approx(kept * 0.3 * 0.8, abs=0.03)
    assert share(0, 1) == pytest.approx(kept * 0.7 * 0.2, abs=0.03)
    assert share(1, 1) == pytest.approx(kept * 0.3 * 0.2 + 0.1, abs=0.03)
    kept_pictures = dropped.image[~without_picture]
    assert torch.equal(kept_pictures, condition.image[~without_picture])


def test_what_is_told_is_of_the_picture_in_its_place_whatever_the_part():
    stage = FlowStage(config("picture={kind: masked}", "batch=32"), digits(), CPU)
    x, condition, _ = stage._batch(3, slice(None))
    seen = condition.image[:, -1:]
    assert torch.equal(condition.image[:, :-1], x * seen)
    _, part, _ = stage._batch(3, slice(8, 20))
    assert torch.equal(part.image, condition.image[8:20])
    _, later, _ = stage._batch(4, slice(None))
    assert not torch.equal(later.image[:, -1:], seen)


def test_interrupted_and_resumed_is_never_stopped_bit_for_bit(tmp_path):
    asked = config("picture={kind: masked}", "steps=4", "every.save=2", "network.classes=0")
    train(asked, tmp_path / "whole", QUIET)
    train(asked, tmp_path / "cut", QUIET)
    for path in (tmp_path / "cut" / "checkpoints").iterdir():
        if path.name.endswith("4"):
            shutil.rmtree(path)
    shutil.rmtree(tmp_path / "cut" / "model")
    assert train(asked, tmp_path / "cut", QUIET).trained
    models = [Pipeline.load(tmp_path / name).flow.state_dict() for name in ("whole", "cut")]
    assert same(*models)


def test_a_model_says_what_it_is_given_and_older_ones_are_given_nothing(runs):
    assert read_model_config(runs / "low" / "model").picture == PictureConfig(kind="low")
    assert read_model_config(runs / "paired" / "model").picture.dir == ""
    values = json.loads((runs / "low" / "model" / "config.json").read_text())
    del values["picture"]
    assert ModelConfig.parse(values, "config.json").picture is None


def test_the_picture_says_something_and_the_jth_takes_the_jth(runs):
    pipeline = Pipeline.load(runs / "low")
    for weight in pipeline.flow.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    y = torch.rand(3, 1, 4, 4) * 2 - 1
    made = pipeline.sample(Request(count=3, picture=y, steps=4)).pixels
    alone = pipeline.sample(Request(count=3, steps=4)).pixels
    assert float((made - alone).abs().mean()) > 1e-3
    again = pipeline.sample(Request(count=3, picture=y[[0, 0, 2]], steps=4)).pixels
    assert torch.allclose(again[[0, 2]], made[[0, 2]], atol=1e-5)
    assert not torch.allclose(again[1], made[1], atol=1e-3)
    first = pipeline.sample(Request(count=4, picture=y, steps=4))
    assert torch.allclose(first.pixels[:3], made, atol=1e-5)


def test_guidance_leads_away_from_the_same_picture_if_there_are_labels(tmp_path):
    train(config("picture={kind: low}"), tmp_path / "run", QUIET)
    pipeline = Pipeline.load(tmp_path / "run")
    y, index = torch.rand(2, 1, 4, 4), torch.arange(2)
    image = pipeline.conditioner.degradation.told(y)
    asked = {null: Request(classes=("1",), count=2, picture=y, guidance=1.0, null=null) for null in ("auto", "nothing")}
    kept, nothing = (pipeline.conditioner.asked(request, index, image).null() for request in asked.values())
    assert torch.equal(kept.image[:, :-1], image[:, :-1])
    assert bool((kept.labels == NULL_LABEL).all())
    assert bool((nothing.image == 0).all())
    assert bool((nothing.labels == NULL_LABEL).all())
    made = [pipeline.sample(request).pixels for request in asked.values()]
    assert made[0].shape == made[1].shape == (2, 1, 8, 8)


def test_files_are_made_larger_and_named_after_what_was_given(runs, tmp_path):
    for name in ("one", "two"):
        image(np.full((4, 4), 90), tmp_path / "given" / f"{name}.png")
    out = tmp_path / "out"
    command = ["sample", str(runs / "low"), "--picture", str(tmp_path / "given"), "--out", str(out), "--steps", "2"]
    assert main(command) == 0
    assert sorted(path.name for path in out.glob("*.png")) == ["one.png", "two.png"]
    assert Image.open(out / "one.png").size == (8, 8)
    assert main([*command, "--count", "2", "--size", "16", "12"]) == 0
    assert {"one-0.png", "one-1.png", "two-0.png", "two-1.png"} <= {path.name for path in out.glob("*.png")}
    assert Image.open(out / "one-1.png").size == (12, 16)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["one-0.png", "one-1.png", "two-0.png", "two-1.png"]


def test_grey_files_are_coloured(runs, tmp_path):
    image(np.full((8, 8), 90), tmp_path / "grey.png")
    out = tmp_path / "out.npz"
    assert main(["sample", str(runs / "grey"), "--picture", str(tmp_path / "grey.png"), "--out", str(out)]) == 0
    assert np.load(out)["arr_0"].shape == (1, 8, 8, 3)


def test_transparent_pixels_are_filled_and_the_others_put_back_exactly(runs, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 4))
    pixels[..., 3] = 255
    pixels[2:5, 1:6, 3] = 0
    image(pixels, tmp_path / "hole.png")
    out = tmp_path / "out.npz"
    command = ["sample", str(runs / "masked"), "--picture", str(tmp_path / "hole.png"), "--count", "2"]
    assert main([*command, "--out", str(out)]) == 0
    made, seen = np.load(out)["arr_0"], pixels[..., 3] == 255
    assert (made[:, seen] == pixels[seen, :3]).all()
    assert not (made[0][~seen] == made[1][~seen]).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "masked"], "needs a picture (kind masked)"),
        (["sample", "low", "--picture", "nowhere"], "no such file or folder"),
        (["sample", "low", "--picture", "low"], "holds no pictures"),
        (["sample", "low", "--picture", "low/run.yaml"], "not a picture"),
        (["sample", "masked", "--picture", "data/00.png"], "no transparent pixels"),
        (["sample", "low", "--null", "picture"], "needs labels or texts"),
        (["sample", "plain", "--picture", "data/00.png"], "given no picture"),
        (["sample", "low", "--size", "9", "8", "--picture", "data/00.png"], "does not divide 9×8"),
        (["train", "latent", "--set", "picture={kind: low}"], "of pixels, and latent is set"),
        (["train", "gan", "--set", "picture={kind: low}"], "objective=gan does not take one"),
        (["train", "digits", "--set", "picture={kind: paired}"], "paired"),
        (["train", "digits", "--set", "picture={kind: paired, dir: data}"], "these data have none"),
        (["train", "digits", "--set", "picture={kind: grey}"], "needs coloured pictures"),
        (["train", "digits", "--set", "picture={kind: low, factor: 3}"], "factor=3 does not divide 8×8"),
        (["train", "colour", "--data", "data", "--set", "data.size=8", "data.crop=center", "PAIR"], "have no pair in"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(runs, capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(runs)
    if "plain" in arguments and not (runs / "plain").exists():
        assert main(["train", "digits", "--run", "plain", "--set", *QUICK]) == 0
    image(np.zeros((8, 8, 3)), runs / "few" / "03.png")
    if arguments[0] == "train":
        arguments = [*arguments[:2], "--run", str(tmp_path / "run"), *arguments[2:]]
    arguments = [f"picture={{kind: paired, dir: {runs / 'few'}}}" if word == "PAIR" else word for word in arguments]
    capsys.readouterr()
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1


def test_a_model_trained_without_pictures_too_samples_without_one(runs, tmp_path):
    assert main(["sample", str(runs / "low"), "--out", str(tmp_path / "x.png"), "--steps", "2"]) == 0


def test_pairs_are_of_one_name(runs):
    data = data_of(runs / "paired")
    for part in (data.train, data.held_out):
        rows = torch.arange(len(part))
        assert torch.equal(part.paired.fetch(rows), 255 - part.fetch(rows))

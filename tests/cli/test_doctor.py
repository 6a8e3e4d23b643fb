"""`rectiflow doctor` on models as they lie in folders."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from rectiflow.__main__ import main

SMALL = [
    *("network.width=32", "network.depth=2", "network.heads=1", "steps=250", "precision=float32", "every.held_out=0"),
    *("every.preview=0", "every.save=250"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor") / "run"
    assert main(["train", "digits", "--run", str(folder), "--set", *SMALL]) == 0
    return folder


def edited(run, to, **flow):
    """The same weights under another config.json."""
    shutil.copytree(run / "model", to)
    config = json.loads((to / "config.json").read_text())
    config["flow"] |= flow
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_a_trained_run_is_healthy_on_its_own_data(run, capsys):
    assert main(["doctor", str(run)]) == 0
    assert "The model is what it states." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        ({"prediction": "noise"}, "prediction: stated noise, found velocity. Remedy: config.json, flow.prediction."),
        ({"schedule": "trig"}, "schedule: stated trig, found rectified."),
    ],
)
def test_an_edited_configuration_is_found_out(run, tmp_path, capsys, flow, words):
    assert main(["data", "digits", "--out", str(tmp_path / "digits"), "--count", "200"]) == 0
    assert main(["doctor", str(edited(run, tmp_path / "model", **flow)), "--data", str(tmp_path / "digits")]) == 1
    told = capsys.readouterr().out
    assert words in " ".join(told.split())
    assert "not what it states" in told


def test_a_pipeline_of_diffusers_is_read(run, tmp_path, capsys):
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks, **kinds)
    DDIMPipeline(network, DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    assert main(["data", "digits", "--out", str(tmp_path / "digits"), "--count", "100"]) == 0
    assert main(["doctor", str(tmp_path / "ddim"), "--data", str(tmp_path / "digits"), "--count", "32"]) == 1
    assert "No convention explains" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["doctor", "nowhere"], "no such folder"),
        (["doctor", "RUN", "--count", "3"], "count must be at least 16"),
        (["doctor", "MODEL"], "needs the data"),
        (["doctor", "RUN", "--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(run, capsys, arguments, words):
    names = {"RUN": str(run), "MODEL": str(run / "model")}
    assert main([names.get(word, word) for word in arguments]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1

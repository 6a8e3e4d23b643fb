"""The report on an autoencoder."""

import json

import pytest
import torch

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.autoencoders.vae import VAE
from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.data.images import ImageSet, InMemory
from rectiflow.evaluation.autoencoder import evaluate_autoencoder
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.linear_code import linear_code


def space(channels=1, numbers=8):
    torch.manual_seed(0)
    config = AutoencoderConfig(
        channels=channels, width=8, multipliers=(1, 2, 2), groups=4, latent_channels=numbers, linear=True
    )
    network = VAE(config).eval().requires_grad_(False)
    if channels == 1:
        code = linear_code(digits().train.pixels, 4, numbers)
        network.code.begin_from(code.mean.float(), code.components.float(), code.eigenvalues[:numbers].sqrt().float())
    return LatentSpace(network)


def test_report(tmp_path):
    """More numbers, nearer pictures; and the prior is farther from real digits than reconstructions are."""
    config, results = EvaluateConfig(count=60, features="pixels"), {}
    for numbers in (2, 12):
        results[numbers] = evaluate_autoencoder(space(numbers=numbers), digits(), config, tmp_path, {"model": "x"})
    few, many = (results[numbers]["reconstruction"] for numbers in (2, 12))
    assert few["psnr"] + 3 < many["psnr"]
    assert few["gradient_correlation"] < many["gradient_correlation"]
    distances = results[12]["frechet"]
    assert distances["reconstructions"] < distances["prior"]
    assert json.loads((tmp_path / "report.json").read_text())["reconstruction"] == many
    page = (tmp_path / "report.md").read_text()
    assert f"| PSNR, dB | {many['psnr']:.4g} |" in page
    assert {"reconstructions.png", "prior.png"} <= {path.name for path in tmp_path.iterdir()}


def test_other_channels(tmp_path):
    with pytest.raises(InputError, match="the autoencoder takes 3 channels; the data have 1"):
        evaluate_autoencoder(space(3), digits(), EvaluateConfig(count=20), tmp_path, {})


def test_an_exact_reconstruction_is_null_in_json_and_a_word_on_the_page(tmp_path):
    blank = torch.zeros(30, 1, 8, 8)
    data = ImageSet(InMemory(blank, torch.full((30,), -1)), InMemory(blank, torch.full((30,), -1)), ())
    model = space()
    for weights in model.network.parameters():
        weights.zero_()
    result = evaluate_autoencoder(model, data, EvaluateConfig(count=20, features="pixels"), tmp_path, {})
    assert result["reconstruction"]["psnr"] is None
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["reconstruction"]["psnr"] is None
    assert "| PSNR, dB | exact |" in (tmp_path / "report.md").read_text()

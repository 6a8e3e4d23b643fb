"""Averages put together afterwards against averages tracked on the way."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from rectiflow.__main__ import main
from rectiflow.base.errors import InputError
from rectiflow.pipeline import Pipeline
from rectiflow.recipes.registry import resolve
from rectiflow.training.ema import PowerEma, exponent
from rectiflow.training.post_hoc import coefficients, post_hoc, save_snapshot
from rectiflow.training.run import train
from rectiflow.training.run_folder import alone_in
from tests.conftest import SMALL

QUIET = Console(quiet=True)
STEPS, EVERY, TRACKED, DIRECT = 1000, 50, (0.05, 0.10), (0.03, 0.07, 0.08, 0.12)


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Snapshots of a random walk of 200 weights, and the averages of other lengths tracked directly."""
    run, generator = tmp_path_factory.mktemp("walk"), torch.Generator().manual_seed(0)
    module = nn.Linear(200, 1, bias=False)
    average = PowerEma(module, (*TRACKED, *DIRECT))
    for step in range(STEPS):
        with torch.no_grad():
            module.weight += 0.1 * torch.randn(module.weight.shape, generator=generator)
        average.update(module, step)
        if (step + 1) % EVERY == 0:
            for length in TRACKED:
                save_snapshot(run, step + 1, length, average.by_length[length])
    return run, {length: average.by_length[length].weight.detach().clone() for length in (*TRACKED, *DIRECT)}


@pytest.mark.parametrize("length", DIRECT)
def test_another_length_matches_the_one_tracked_directly(walk, length):
    run, averages = walk
    got = post_hoc(run, length)
    error = float((got.weights["weight"] - averages[length]).norm())
    apart = float((averages[0.05] - averages[0.10]).norm())
    assert got.step == STEPS
    assert error < 0.03 * apart
    assert got.residual < 0.03


@pytest.mark.parametrize("length", TRACKED)
def test_a_tracked_length_comes_back(walk, length):
    run, averages = walk
    got = post_hoc(run, length)
    assert torch.allclose(got.weights["weight"], averages[length], atol=1e-5)
    assert got.residual < 1e-5


def test_an_earlier_step_needs_no_later_snapshot(walk):
    run, _ = walk
    early = post_hoc(run, 0.05, step=500)
    direct = load_file(run / "averages" / "step-00000500-length-0.05.safetensors")
    assert early.step == 500
    assert torch.allclose(early.weights["weight"], direct["weight"], atol=1e-5)


def test_coefficients_keep_what_stands_still_and_solve_the_least_squares():
    """Against a fit of the profiles themselves on a fine grid of τ."""
    tracked = [(t, exponent(length)) for t in (250.0, 500.0, 750.0, 1000.0) for length in TRACKED]
    shares, residual = coefficients(tracked, (1000.0, exponent(0.07)))
    assert sum(shares) == pytest.approx(1, abs=1e-9)
    tau = (np.arange(100_000) + 0.5) / 100

    def profile(t, gamma):
        return np.where(tau < t, (gamma + 1) * (tau / t) ** gamma / t, 0)

    basis, wanted = np.stack([profile(*pair) for pair in tracked]), profile(1000.0, exponent(0.07))
    best = np.linalg.norm(wanted - np.linalg.lstsq(basis.T, wanted, rcond=None)[0] @ basis) / np.linalg.norm(wanted)
    got = np.linalg.norm(wanted - np.array(shares) @ basis) / np.linalg.norm(wanted)
    assert got == pytest.approx(residual, rel=0.02)
    assert got < 1.1 * best  # the sum of 1 costs next to nothing


def test_a_run_gives_the_model_of_another_length(tmp_path, capsys):
    settings = [*SMALL, "ema.kind=power", "every.average=2", "every.save=6"]
    run, out = tmp_path / "run", tmp_path / "out"
    train(resolve("digits", settings=settings), run, QUIET)
    names = [path.name for path in sorted((run / "averages").iterdir())]
    assert names == [f"step-0000000{step}-length-{length}.safetensors" for step in (2, 4, 6) for length in TRACKED]
    assert main(["average", str(run), "--length", "0.05", "--out", str(out)]) == 0
    assert "step 6, its profile met within 0.00%" in capsys.readouterr().out
    made, model = (Pipeline.load(folder).flow.state_dict() for folder in (out, run))
    assert all(torch.allclose(made[name], model[name], atol=1e-5) for name in model)  # the first length is the model
    assert main(["average", str(run), "--length", "0.08", "--step", "5", "--out", str(out)]) == 0
    facts = json.loads((out / "config.json").read_text())
    assert facts["training"]["average_length"] == 0.08
    assert main(["average", str(run), "--length", "0.08", "--out", str(tmp_path)]) == 2
    assert "is there and is no model" in capsys.readouterr().err


def test_what_cannot_be_put_together(walk, tmp_path):
    run, _ = walk
    with pytest.raises(InputError, match=r"between 0 and 1/√12 = 0.2887, received 0.3"):
        post_hoc(run, 0.3)
    with pytest.raises(InputError, match=r"no snapshots of power averages up to step 10"):
        post_hoc(run, 0.1, step=10)
    with pytest.raises(InputError, match=r"no snapshots of power averages; train with --set ema.kind=power"):
        post_hoc(tmp_path, 0.1)
    (tmp_path / "averages").mkdir()
    (tmp_path / "averages" / "step-1.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="no snapshot that can be read"):
        post_hoc(tmp_path, 0.1)


def test_whoever_is_killed_as_a_snapshot_is_written_leaves_no_half(tmp_path):
    module = nn.Linear(1000, 2000)
    for milliseconds in range(12):
        child = os.fork()
        if not child:
            for step in range(1_000_000):
                save_snapshot(tmp_path, step, 0.05, module)
        while not (tmp_path / "averages").exists():
            time.sleep(0.01)
        time.sleep(0.05 + milliseconds / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with alone_in(tmp_path):
            assert all(path.suffix == ".safetensors" for path in (tmp_path / "averages").iterdir())
        for path in (tmp_path / "averages").iterdir():
            assert load_file(path).keys() == module.state_dict().keys()
            path.unlink()

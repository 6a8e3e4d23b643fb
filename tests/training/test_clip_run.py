"""Runs of films: stopped in any stage and gone on with, bit for bit; what a model of frames alone may be asked."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from rectiflow import workflow
from rectiflow.base.errors import InputError
from rectiflow.data.encode import encode_set
from rectiflow.data.images import to_float
from rectiflow.data.latents import fingerprint, open_latents, read_manifest
from rectiflow.data.loader import Loader
from rectiflow.data.sets import open_set
from rectiflow.models.autoencoder import read_autoencoder_config
from rectiflow.pipeline import Pipeline
from rectiflow.recipes.registry import resolve
from rectiflow.request import Request
from rectiflow.training.run import train
from rectiflow.training.run_folder import read_run
from rectiflow.training.trainer import Trainer

QUIET = Console(quiet=True)
CODE = "{width: 8, multipliers: [1, 2, 2], latent_channels: 3, groups: 4, temporal: %d}"
STAGE = "{log: 2, held_out: 0, preview: 0, first_preview: 0, save: 3}"
SMALL = (
    *("data.size=16", "data.frames=5", "data.workers=0", "data.rate=null", "data.held_out=0", "data.stills=0.5"),
    "network={kind: video, patch: 2, width: 16, depth: 1, heads: 2}",
    *("steps=4", "batch=4", "compile=false", "precision=float32", f"every={STAGE}", "device=cpu", "text=null"),
)
STAGES = tuple(
    f"latent.{stage}.{setting}"
    for stage, temporal in (("train", 4), ("pictures", 1))
    for setting in (
        *(f"network={CODE % temporal}", "steps=4", "batch=4", "compile=false", "precision=float32", f"every={STAGE}"),
    )
)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Twelve films of five frames, and three pictures."""
    folder, draws = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    for number in range(12):
        frames = [Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(5)]
        frames[0].save(folder / f"{number}.gif", save_all=True, append_images=frames[1:], duration=100)
    for number in range(3):
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"still {number}.png")
    return folder


def config(films, *settings):
    return resolve("video", None, (f"data.dir={str(films)!r}", *SMALL, *settings))


def _cut(monkeypatch, recipes):
    """Each of these is stopped once, in step 3 of 4."""
    original, cut = Trainer._train, set(recipes)

    def failing(self, step):
        if step == 3 and self.config.recipe in cut:
            cut.remove(self.config.recipe)
            raise KeyboardInterrupt
        return original(self, step)

    monkeypatch.setattr(Trainer, "_train", failing)
    return cut


def test_each_stage_of_films_goes_on_where_it_was_stopped(films, tmp_path, monkeypatch):
    whole, run = tmp_path / "whole", tmp_path / "run"
    asked = config(films, *STAGES)
    assert workflow.run(asked, whole, QUIET).finished
    left = _cut(monkeypatch, {"frame-autoencoder", "video-autoencoder", "video"})
    while left:
        with pytest.raises(KeyboardInterrupt):
            workflow.run(read_run(run) if (run / "run.yaml").exists() else asked, run, QUIET)
    assert workflow.run(read_run(run), run, QUIET).finished
    for name in ("flow.safetensors", "autoencoder.safetensors"):
        assert (run / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_models_keep_the_rate_that_films_were_sampled_at(films, tmp_path):
    run = tmp_path / "run"
    assert workflow.run(config(films, *STAGES, "data.rate=10"), run, QUIET).finished
    assert Pipeline.load(run).training["rate"] == 10
    assert read_autoencoder_config(run / "autoencoder" / "model").training["rate"] == 10


def _encoded(asked, folder):
    """Latents that are every fourth pixel, and the set that they are of."""
    data = open_set(asked.data)
    made_by = fingerprint("0" * 64, data, asked.data, asked.latent.cache)

    def moments(x):
        return torch.cat([x[..., ::4, ::4], torch.full_like(x[..., ::4, ::4], -30.0)], dim=1)

    encode_set(data, moments, folder, asked.latent.cache, asked.data, made_by, lambda done, total: None)
    return open_latents(folder, made_by, data), data


def test_pictures_beside_films_are_trained_on_in_latents_too(films, tmp_path):
    asked = config(films)
    latents, data = _encoded(asked, tmp_path / "latents")
    rows = torch.arange(3)
    told = latents.train.stills.fetch(rows)
    assert told.shape == (3, 6, 1, 4, 4)
    pixels = to_float(data.train.stills.fetch(rows))
    assert torch.allclose(told[:, :3], pixels[..., ::4, ::4], atol=1e-3)
    loader = Loader(latents.train, asked.data, 4, 40, seed=0)
    batches = [loader(step) for step in range(40)]
    seen = {row for batch in batches if batch.pixels.shape[2] == 1 for row in batch.index.tolist()}
    assert seen == {0, 1, 2}
    (tmp_path / "latents" / "stills-00000.arrow").unlink()
    with pytest.raises(InputError, match=r"stills-00000\.arrow is missing"):
        open_latents(tmp_path / "latents", read_manifest(tmp_path / "latents").fingerprint, data)


def test_latents_of_other_films_are_refused(films, tmp_path):
    """As many, as long and as large, but other files."""
    _encoded(config(films), tmp_path / "latents")
    other = tmp_path / "films"
    shutil.copytree(films, other)
    (other / "3.gif").rename(other / "another.gif")
    with pytest.raises(InputError, match="made of other pictures"):
        _encoded(config(other), tmp_path / "latents")


def test_frames_alone_may_be_guided_for_training_has_seen_none(films, tmp_path, monkeypatch):
    """In pixels, without captions; and stopped and gone on with it is the same to the bit."""
    asked = config(films, "latent=null")
    train(asked, tmp_path / "whole", QUIET)
    _cut(monkeypatch, {"video"})
    with pytest.raises(KeyboardInterrupt):
        train(asked, tmp_path / "cut", QUIET)
    train(asked, tmp_path / "cut", QUIET)
    models = [(tmp_path / name / "model" / "flow.safetensors").read_bytes() for name in ("whole", "cut")]
    assert models[0] == models[1]
    pipeline = Pipeline.load(tmp_path / "whole")
    assert pipeline.conditioner.null_trained
    request = Request(steps=2, guidance=1.0, first=torch.zeros(1, 3, 1, 16, 16))
    assert pipeline.sample(request).pixels.isfinite().all()
    never = config(films, "latent=null", "frames.nothing=0", "condition_dropout=0", "steps=1")
    train(never, tmp_path / "never", QUIET)
    assert not Pipeline.load(tmp_path / "never").conditioner.null_trained

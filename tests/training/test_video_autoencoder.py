"""The training of an autoencoder of clips, its files, its latent space, and the latents of clips on disk."""

import json

import pytest
import torch

from rectiflow.autoencoders import latent_space
from rectiflow.autoencoders.frames import fold, grouped, ungrouped
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.autoencoders.video_vae import VideoVAE
from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.data.config import DataConfig, LatentsConfig
from rectiflow.data.encode import encode_set
from rectiflow.data.images import ImageSet, InMemory
from rectiflow.data.latents import fingerprint, open_latents
from rectiflow.evaluation.autoencoder import evaluate_autoencoder
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.linear_code import linear_code
from rectiflow.evaluation.reconstruction import sheet
from rectiflow.models.autoencoder import (
    describe_autoencoder,
    digest,
    load_autoencoder,
    prior_pictures,
    save_autoencoder,
)
from rectiflow.recipes.autoencoder import autoencoder, video_autoencoder
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.autoencoder_stage import AutoencoderStage
from rectiflow.training.stepper import alone
from rectiflow.training.trainer import Trainer
from tests.autoencoders.test_video_vae import trained
from tests.conftest import same

CPU = torch.device("cpu")
LAYOUT = {"width": 8, "multipliers": (1, 2, 2), "latent_channels": 3, "groups": 4, "temporal": 4, "linear": True}


def moving(count, seed=0):
    """Smooth clips of 9 frames of 16×16 that drift to the right."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 8, generator=draw)
    wide = torch.nn.functional.interpolate(coarse, (16, 32), mode="bilinear").clamp(-2, 2) / 2
    return torch.stack([wide[..., t : t + 16] for t in range(9)], dim=2)


def clip_set(count=24):
    parts = [InMemory(moving(n, seed), torch.full((n,), -1)) for n, seed in ((count, 0), (6, 1))]
    return ImageSet(*parts, ())


def config(**changes):
    base = video_autoencoder().model_dump()
    small = {
        "network": {**base["network"], **LAYOUT},
        "loss": {"absolute": 1.0, "structure": 0.5},
        "discriminator": {"width": 4, "layers": 1, "start": 0.25, "lead": 0.25},
        "steps": 8,
        "batch": 4,
        "precision": "float32",
        "every": {"log": 2, "held_out": 4, "preview": 0, "first_preview": 0, "save": 4},
    }
    return AutoencoderRunConfig.parse({**base, **small, **changes}, "test")


def stage_of(**changes):
    return AutoencoderStage(config(**changes), clip_set(), CPU)


def space_of(temporal=4):
    mean, deviation = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3]), torch.tensor([0.5, 3.0, 1.0, 0.1, 2.0])
    return LatentSpace(trained(temporal=temporal).eval(), mean, deviation)


def test_it_begins_as_a_linear_code_of_clips():
    """Reconstructions are those of the best code of 4×4 pixels, and of 4×4×4 for the later frames."""
    stage, x = stage_of(), clip_set().train.pixels
    with torch.no_grad():
        made = stage.vae.decode(stage.vae.encode(x).mean)
    first = linear_code(fold(x), 4, 3).reconstruct(fold(x[:, :, :1]))
    groups = grouped(x[:, :, 1:], 4)
    later = ungrouped(linear_code(groups, 4, 3).reconstruct(groups), 4, len(x))
    # But for what one bias for each channel leaves of the mean patch.
    torch.testing.assert_close(fold(made[:, :, :1]), first, atol=0.1, rtol=0)
    torch.testing.assert_close(made[:, :, 1:], later, atol=0.1, rtol=0)
    assert float((made - x).square().mean() / x.var()) < 0.4


@pytest.mark.parametrize("turn", ["autoencoder", "discriminator"])
@pytest.mark.parametrize("stills", [0.0, 1.0])
def test_both_players_learn_from_clips_and_stills(stills, turn):
    stage = stage_of(
        data={**video_autoencoder().data.model_dump(), "stills": stills},
        loss={"structure": 0.5, "equivariance": 0.5},
        discriminator={"width": 4, "layers": 1, "start": 0.0, "lead": 0.0, "penalty": 0.1, "lecam": 0.1},
    )
    for step in range(3):
        assert stage.loader(step).pixels.shape == (4, 3, 1 if stills else 9, 16, 16)
        stage.loss(step)
        with alone(stage.module.get_submodule(turn), stage.module):
            loss = stage.loss(step, turn=turn)
            loss.backward()
        assert loss.isfinite()
        assert all(weight.grad is not None for weight in stage.module.get_submodule(turn).parameters())
        other = {"autoencoder": "discriminator", "discriminator": "autoencoder"}[turn]
        assert all(weight.grad is None for weight in stage.module.get_submodule(other).parameters())
        assert stage.observed


def test_loss_is_a_function_of_the_step_and_parts_add_up():
    stage = stage_of()
    whole = stage.loss(1)
    assert torch.equal(stage.loss(1), whole)
    parts = [float(stage.loss(1, part).detach()) for part in (slice(0, 1), slice(1, 4))]
    assert sum(parts) == pytest.approx(float(whole.detach()), rel=1e-5)


def test_it_resumes_bit_for_bit(tmp_path):
    found = []
    for name, stops in (("whole", [8]), ("stopped", [3, 8])):
        for stop in stops:
            stage = stage_of()
            trainer = Trainer(stage, stage.config, tmp_path / name, CPU)
            trainer.restore(print)
            while trainer.step < stop:
                trainer._train(trainer.step)
                trainer.step += 1
            trainer.save()
        found.append(trainer._state())
    assert same(*found)


def test_what_is_saved_is_loaded(tmp_path):
    stage = stage_of()
    stage.save(stage.module, tmp_path / "model", 8)
    space, x = load_autoencoder(str(tmp_path / "model")), moving(20)
    assert isinstance(space.network, VideoVAE)
    with torch.no_grad():
        mean = stage.vae.encode(x).mean
    shape = (-1, 1, 1, 1)
    torch.testing.assert_close(space.encode(x) * space.deviation.reshape(shape) + space.mean.reshape(shape), mean)
    assert space.encode(x).std((0, 2, 3, 4)).sub(1).abs().max() < 0.3
    about = describe_autoencoder(tmp_path / "model")
    assert (about["temporal_factor"], about["factor"], about["picture"]) == (4, 4, "3×9×16×16")
    held_out = stage.held_out(stage.module)
    assert held_out["held_out_psnr"] > 10
    assert stage.preview(stage.module).width > 3 * 16
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    values["shape"] = [3, 8, 16, 16]
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"1\+4k frames, received 8; the nearest is 9"):
        load_autoencoder(str(tmp_path / "model"))


def test_files_from_before_clips_load_as_they_did(tmp_path):
    """Without `temporal` in them, and of the digest that their caches have."""
    picture = LatentSpace(trained(temporal=1))
    save_autoencoder(picture, (3, 8, 8), {}, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    del values["autoencoder"]["network"]["temporal"]
    path.write_text(json.dumps(values))
    loaded = load_autoencoder(str(tmp_path / "model"))
    assert loaded.temporal == 1
    assert digest(loaded) == digest(picture)
    assert digest(space_of()) != digest(space_of(2))


def test_start_from_pictures(tmp_path):
    images = ImageSet(
        InMemory(moving(8)[:, :, 0], torch.full((8,), -1)), InMemory(moving(2)[:, :, 0], torch.zeros(2)), ()
    )
    values = {**autoencoder().model_dump(), "data": {"set": "digits"}, "steps": 4, "batch": 4}
    picture = AutoencoderStage(
        AutoencoderRunConfig.parse({**values, "network": {**LAYOUT, "temporal": 1}}, "test"), images, CPU
    )
    picture.save(picture.module, tmp_path / "model", 4)
    stage = stage_of(start_from=str(tmp_path / "model"))
    x = moving(3)
    with torch.no_grad():
        wanted = picture.vae.decode(picture.vae.encode(x[:, :, 0]).mean)
        found = stage.vae.decode(stage.vae.encode(x[:, :, :1]).mean)[:, :, 0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"network\.width is 16, but the autoencoder of pictures to start from has 8"):
        stage_of(start_from=str(tmp_path / "model"), network={**LAYOUT, "width": 16})
    with pytest.raises(InputError, match=r"start_from is for an autoencoder of clips; set network\.temporal=4"):
        config(start_from="there", network={**LAYOUT, "temporal": 1})
    stage.save(stage.module, tmp_path / "clips", 4)
    with pytest.raises(InputError, match="is an autoencoder of clips; name one of pictures"):
        stage_of(start_from=str(tmp_path / "clips"))


def test_an_autoencoder_of_pictures_takes_clips_frame_by_frame():
    stage = stage_of(network={**LAYOUT, "temporal": 1})
    clips = stage.data.train.clips
    assert stage.data.shape == (3, 16, 16)
    assert len(stage.data.train) == 9 * len(clips)
    index = torch.tensor([0, 8, 9, 13])
    assert torch.equal(stage.data.train.fetch(index), clips.fetch(index // 9)[range(4), :, index % 9])


def test_pictures_and_clips_are_not_mistaken():
    with pytest.raises(InputError, match=r"of clips C×T×H×W, received 1×8×8"):
        AutoencoderStage(config(network={**LAYOUT, "multipliers": (1, 1, 1)}), digits(), CPU)
    refused = {
        (1, 3, 9, 9): "of clips C×T×H×W",
        (1, 3, 8, 9, 9): "received 8; the nearest is 9",
        (1, 3, 2, 9, 9): "received 2; the nearest is 1",
        (1, 3, 5, 9, 3): "smaller than the autoencoder's factor",
    }
    for shape, words in refused.items():
        with pytest.raises(InputError, match=words):
            space_of().encode(torch.zeros(shape))
    with pytest.raises(InputError, match=r"decodes latents B×C×T×h×w, received 1×5×4×4"):
        space_of().decode(torch.zeros(1, 5, 4, 4))
    with pytest.raises(InputError, match="of pictures C×H×W, received 3×5×8×8"):
        LatentSpace(trained(temporal=1)).encode(torch.zeros(1, 3, 5, 8, 8))


def test_the_latent_space_of_clips(monkeypatch):
    """Sides of any length, in slices, in chunks; the last frame alone behind what is stored."""
    space, x = space_of(), moving(3)[..., :13, :15]
    moments, latents = space.stored_moments(x), space.encode(x)
    assert latents.shape[1:] == space.latent_shape(x.shape[1:]) == (5, 3, 4, 4)
    assert moments.shape == (3, 10, 4, 4, 4)
    torch.testing.assert_close(moments[:, :, :3], space.moments(x))
    torch.testing.assert_close(moments[:, :, 3:], space.moments(x[:, :, -1:]), atol=1e-5, rtol=1e-5)
    assert space.stored_moments(x[:, :, :1]).shape == (3, 10, 1, 4, 4)
    frames = space.decode(latents, (13, 15))
    assert frames.shape == x.shape
    seen, inner = [], VideoVAE.decode
    monkeypatch.setattr(VideoVAE, "decode", lambda self, *args: seen.append(args[0].shape) or inner(self, *args))
    for most in (2**20, 5000, 2500, 1):
        monkeypatch.setattr(latent_space, "PIXELS_A_CALL", most)
        torch.testing.assert_close(space.stored_moments(x), moments, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(space.decode(latents, (13, 15)), frames, atol=1e-4, rtol=1e-4)
    assert seen[0] == latents.shape
    assert seen[-1] == (1, 5, 1, 4, 4)
    space.tile = 16
    assert space.decode(space.encode(moving(1).repeat(1, 1, 1, 2, 2))).shape == (1, 3, 9, 32, 32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_latents_of_clips_come_back(tmp_path, dtype):
    data, space = clip_set(), space_of()
    data_config = DataConfig(flip=True)
    asked = LatentsConfig(shard=10, batch=4, dtype=dtype, variants=2)
    prints = fingerprint(digest(space), data, data_config, asked)
    assert "frames=9" in prints["transform"]
    manifest = encode_set(data, space.stored_moments, tmp_path, asked, data_config, prints, lambda done, total: None)
    assert manifest.shape == (10, 4, 4, 4)
    opened, index = open_latents(tmp_path, prints, data), torch.arange(6)
    rounding = {"float16": 2**-10, "bfloat16": 2**-7}[dtype]
    for place, x in ((0.0, data.train.pixels), (0.9, data.train.pixels.flip(-1))):
        found = opened.train.fetch(index, torch.full((6, 3), place))
        torch.testing.assert_close(found, space.stored_moments(x[:6]), atol=1e-4, rtol=rounding)
    everything = torch.cat([opened.train.fetch(torch.arange(24), torch.full((24, 3), p)) for p in (0.0, 0.9)])
    mean = everything[:, :5].double().mean((0, 2, 3, 4))
    torch.testing.assert_close(torch.tensor(manifest.mean, dtype=torch.float64), mean, atol=1e-6, rtol=1e-6)


def test_prior_clips_and_reports(tmp_path):
    space = space_of()
    made = prior_pictures(space, (3, 9, 16, 16), 3, seed=1)
    assert made.shape == (3, 3, 9, 16, 16)
    torch.testing.assert_close(prior_pictures(space, (3, 9, 16, 16), 2, seed=1), made[:2], atol=1e-5, rtol=1e-5)
    result = evaluate_autoencoder(space, clip_set(), EvaluateConfig(count=20, features="pixels"), tmp_path, {})
    assert result["count"] == 6
    assert (tmp_path / "reconstructions.png").is_file()
    x = moving(2)
    rows = sheet(x, x + 0.1)
    assert rows.shape == (18, 3, 16, 16)
    torch.testing.assert_close(rows[9:12], x[1].transpose(0, 1)[[0, 4, 8]])
    torch.testing.assert_close(rows[15:18], torch.full((3, 3, 16, 16), 0.4))

"""The training of an autoencoder against a discriminator; each defect of a peer has a test that fails on it."""

import copy

import pytest
import torch

from rectiflow.autoencoders.posterior import Posterior
from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.data.images import ImageSet, InMemory
from rectiflow.models.autoencoder import load_autoencoder, prior_pictures
from rectiflow.recipes.registry import resolve
from rectiflow.training.autoencoder_stage import AutoencoderStage
from rectiflow.training.diagnostics import latents_dead, verdict
from rectiflow.training.stepper import alone
from rectiflow.training.trainer import Trainer
from tests.conftest import same

CPU = torch.device("cpu")
SMALL = (
    "data={set: digits, size: null, crop: center, flip: false}",
    "network={width: 8, multipliers: [1, 2], latent_channels: 3, groups: 4, blocks: 1}",
    "discriminator={width: 8, layers: 1, start: 0.25, lead: 0.25}",
    "steps=8",
    "batch=4",
    "optimiser.lr=0.003",
    "every={log: 2, held_out: 4, preview: 0, first_preview: 0, save: 4}",
    "precision=float32",
)


def config(*settings):
    return resolve("autoencoder", settings=(*SMALL, *settings))


def stage_of(*settings):
    return AutoencoderStage(config(*settings), digits(), CPU)


def gradients(stage, turn):
    return [p.grad for p in stage.module.get_submodule(turn).parameters()]


def test_loss_is_a_function_of_the_step():
    stage = stage_of("loss.equivariance=0.5")
    first = stage.loss(5)
    stage.loss(6)
    assert torch.equal(stage.loss(5), first)
    assert not torch.equal(stage.loss(6), first)


def test_parts_of_a_batch_add_up():
    """Without the adversary, whose weight is taken from each part, in value and in gradient."""
    stage = stage_of()
    whole = stage.loss(1)
    whole.backward()
    expected = [g.clone() for g in gradients(stage, "autoencoder")]
    stage.module.zero_grad()
    parts = [stage.loss(1, part) for part in (slice(0, 1), slice(1, 4))]
    sum(parts).backward()
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)
    for found, wanted in zip(gradients(stage, "autoencoder"), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("turn", ["autoencoder", "discriminator"])
def test_neither_player_leaves_a_gradient_in_the_other(turn):
    """As a peer's trainer does, whose reconstructions keep their graph in the discriminator's step, and the reverse."""
    stage = stage_of()
    stage.loss(6, turn="autoencoder")
    other = {"autoencoder": "discriminator", "discriminator": "autoencoder"}[turn]
    with alone(stage.module.get_submodule(turn), stage.module):
        stage.loss(6, turn=turn).backward()
    assert all(grad is None for grad in gradients(stage, other))
    assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients(stage, turn))


def test_the_discriminators_loss_reaches_no_autoencoder_even_unguarded():
    stage = stage_of()
    stage.loss(6, turn="autoencoder")
    stage.loss(6, turn="discriminator").backward()
    assert all(grad is None for grad in gradients(stage, "autoencoder"))


def test_the_autoencoder_does_feel_its_adversary():
    """The defect the other way: an adversarial term without a gradient."""
    found = {}
    for weight in (0.5, 1.0):
        stage = stage_of(f"discriminator.weight={weight}")
        with alone(stage.vae, stage.module):
            stage.loss(6).backward()
        found[weight] = torch.cat([g.flatten() for g in gradients(stage, "autoencoder")])
    assert not torch.allclose(found[0.5], found[1.0], rtol=1e-3)


def test_the_adversary_waits_for_its_steps():
    stage = stage_of()  # of 8 steps it learns from the third on, and is felt from the fifth on
    assert stage.turns_at(1) == ("autoencoder",)
    assert stage.turns_at(2) == ("autoencoder", "discriminator")
    stage.loss(3)
    assert "adaptive_weight" not in stage.observed
    stage.loss(4)
    assert float(stage.observed["adaptive_weight"]) > 0


def test_the_discriminator_judges_what_the_autoencoder_made():
    stage = stage_of()
    stage.loss(6)
    made = stage._made[6, None]
    seen = []
    stage.discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    stage.loss(6, turn="discriminator")
    assert torch.equal(seen[0][4:], made)
    assert torch.equal(seen[0][:4], stage.loader(6).pixels)
    assert not stage._made


def test_kl_is_that_of_sums_over_pixels():
    """kl·KL summed over latents beside a loss summed over pixels is, with means, kl·(latents/pixels)·mean KL."""
    stage = stage_of("loss={absolute: 0.0, structure: 0.0, square: 1e-9, kl: 0.3}")
    loss = stage.loss(0)
    x = stage.loader(0).pixels
    posterior = stage.vae.encode(x)
    divergence = Posterior.of(posterior.moments).divergence()
    by_sums = 0.3 * divergence.flatten(1).sum(1).mean() / x[0].numel()
    by_means = 0.3 * (posterior.mean[0].numel() / x[0].numel()) * divergence.mean()
    assert float(loss) == pytest.approx(float(by_sums), rel=1e-5)
    assert float(loss) == pytest.approx(float(by_means), rel=1e-5)
    # Rombach et al.'s 1e-6 for f8 with 16 channels: 1e-6/12 of means.
    assert pytest.approx(1 / 12) == 16 / (8 * 8 * 3)


def test_penalties_enter_the_discriminators_loss_alone():
    plain = stage_of()
    plain.loss(6)
    value = float(plain.loss(6, turn="discriminator"))
    for setting in ("discriminator.penalty=10", "discriminator.lecam=0.1"):
        stage = stage_of(setting)
        assert float(stage.loss(6)) == pytest.approx(float(plain.loss(6)), rel=1e-5)
        assert float(stage.loss(6, turn="discriminator")) > value


def test_running_means_of_logits():
    stage = stage_of()
    stage.settle({"logits_real": torch.tensor(2.0), "logits_made": torch.tensor(-1.0)})
    assert stage.module.get_buffer("logits").tolist() == [2.0, -1.0, 1.0]
    stage.settle({"logits_real": torch.tensor(3.0), "logits_made": torch.tensor(-1.0)})
    assert stage.module.get_buffer("logits").tolist() == pytest.approx([2.01, -1.0, 2.0])


def test_saved_statistics_normalise_the_latents(tmp_path):
    stage = stage_of("steps=1", "batch=8")
    stage.save(stage.module, tmp_path, 1)
    space = load_autoencoder(str(tmp_path))
    posterior = Posterior.of(space.moments(digits().train.pixels[:1000]))
    draws = posterior.sample(torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0)))
    assert draws.mean((0, 2, 3)).abs().max() < 0.1
    torch.testing.assert_close(draws.std((0, 2, 3)), torch.ones(3), rtol=0.1, atol=0)
    pictures = prior_pictures(space, (1, 8, 8), 3, seed=1)
    assert pictures.shape == (3, 1, 8, 8)
    assert torch.allclose(prior_pictures(space, (1, 8, 8), 2, seed=1), pictures[:2], atol=1e-5)


def test_an_isometric_code_keeps_distances():
    """Up to one scale, with as many channels as a patch has numbers."""
    whole = ("discriminator.weight=0", "network.linear=true", "network.latent_channels=4")
    found = {}
    for isometric in (False, True):
        stage = stage_of(*whole, f"isometric={str(isometric).lower()}")
        found[isometric] = stage.vae.code.to_latents.weight.detach().flatten(1)
    assert float(torch.linalg.cond(found[True])) == pytest.approx(1, abs=1e-4)
    assert float(torch.linalg.cond(found[False])) > 1.5


def test_an_isometric_code_spans_the_principal_components():
    codes = [
        stage_of("discriminator.weight=0", "network.linear=true", f"isometric={name}").vae.code
        for name in ("false", "true")
    ]
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (code.to_pixels(code.to_latents(x)) for code in codes)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_equivariant_steps_decode_moved_latents():
    stage, sizes = stage_of("loss.equivariance=1.0"), set()
    stage.vae.decoder.register_forward_pre_hook(lambda _, args: sizes.add(tuple(args[0].shape[-2:])))
    for step in range(6):
        stage.loss(step)
        stage.loss(step, turn="discriminator") if step > 2 else None
    assert len(sizes) > 1
    assert max(max(size) for size in sizes) <= 4


def test_sides_that_the_factor_does_not_divide():
    images = InMemory(torch.zeros(4, 1, 10, 12), torch.full((4,), -1))
    with pytest.raises(InputError, match=r"factor 8 trains on sides that 8 divides; the data have 10×12.*8×16"):
        AutoencoderStage(config("network.multipliers=[1, 1, 1, 1]"), ImageSet(images, images, ()), CPU)


def test_alarms():
    settings = config()
    assert latents_dead({"dead_channels": 3.0}, settings)["dead"].startswith("alarm: all 3 latent channels are dead")
    assert latents_dead({"dead_channels": 2.0}, settings) == {}
    game = {"adaptive_weight": 1.0, "logits_real": 0.001, "logits_made": -0.001, "discriminator_accuracy": 0.5}
    assert "has collapsed" in verdict(game, settings)["collapsed"]
    won = {**game, "discriminator_accuracy": 0.995, "logits_real": 3.0}
    assert "has won" in verdict(won, settings)["won"]
    assert verdict({**game, "discriminator_accuracy": 0.7, "logits_real": 1.0}, settings) == {}
    assert verdict({"discriminator_accuracy": 0.5, "logits_real": 0.0, "logits_made": 0.0}, settings) == {}  # too early


def trained(settings, folder, steps):
    """The state after so many steps, in attempts of the lengths given; a new trainer each time."""
    for stop in steps:
        stage = AutoencoderStage(settings, digits(), CPU)
        trainer = Trainer(stage, settings, folder, CPU)
        trainer.restore(print)
        while trainer.step < stop:
            trainer._train(trainer.step)
            trainer.step += 1
        trainer.save()
    return trainer._state()


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_both_players_resume_bit_for_bit(tmp_path, stop):
    """Weights, both optimisers' moments, both averages and the running logits; before and after the adversary joins."""
    settings = config("discriminator.lecam=0.01", "loss.equivariance=0.3")
    whole = trained(settings, tmp_path / "whole", [8])
    stopped = trained(settings, tmp_path / "stopped", [stop, 8])
    names = whole["module"].keys()
    assert any("discriminator" in name for name in names)
    assert any("discriminator" in name for name in whole["optimiser"]["state"])
    assert float(whole["module"]["logits"][2]) == 6  # of 8 steps two were without an adversary
    assert same(whole, stopped)
    damaged = copy.deepcopy(stopped)
    damaged["ema"]["discriminator.conv_in.weight"][0] += 1e-6
    assert not same(whole, damaged)


def _turn(stage, turn, part=slice(None), share=1):
    stage.module.zero_grad()
    with alone(stage.module.get_submodule(turn), stage.module):
        (share * stage.loss(3, part, turn)).backward()  # before the adversary is felt, whose weight is each part's own
    return gradients(stage, turn)

"""The causal autoencoder of clips: nothing looks ahead, a frame is a picture, and chunks are the whole."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from rectiflow.autoencoders.build import build_autoencoder
from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.discriminator import VideoDiscriminator
from rectiflow.autoencoders.equivariance import Move
from rectiflow.autoencoders.frames import fold, grouped, unfold, ungrouped
from rectiflow.autoencoders.time_layers import Memory, TimeConv, TimeGrow
from rectiflow.autoencoders.vae import VAE
from rectiflow.autoencoders.video_vae import VideoVAE
from rectiflow.base.errors import InputError

SMALL = {"channels": 3, "width": 8, "multipliers": (1, 2, 2), "groups": 4, "latent_channels": 5, "temporal": 4}


def trained(**settings):
    """One whose every weight matters, as after training, values staying near 1."""
    torch.manual_seed(0)
    network = build_autoencoder(AutoencoderConfig(**{**SMALL, **settings}))
    for name, weight in network.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))
        elif "norm" not in name:
            torch.nn.init.normal_(weight, std=0.1)
    return network.requires_grad_(False)


def clips(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


LAYOUTS = [{}, {"linear": True}, {"temporal": 2}, {"blocks": 2, "quantised": True, "attention": False}]


@pytest.mark.parametrize("settings", LAYOUTS)
def test_shapes(settings):
    network = trained(**settings).double()
    temporal = network.config.temporal
    for k in (0, 1, 3):
        x = clips(2, 3, 1 + temporal * k, 8, 12)
        posterior = network.encode(x)
        assert posterior.mean.shape == posterior.log_variance.shape == (2, 5, 1 + k, 2, 3)
        assert network.config.latent_shape(x.shape[1:]) == (5, 1 + k, 2, 3)
        assert network.decode(posterior.mean).shape == x.shape
        made, moments = network(x, torch.zeros_like(posterior.mean))
        torch.testing.assert_close(made, network.decode(posterior.mean))
        torch.testing.assert_close(moments, posterior.moments)


@pytest.mark.parametrize("settings", LAYOUTS)
def test_nothing_looks_ahead(settings):
    """A changed frame changes the latents of its group and later ones, none before; of decoded frames likewise."""
    network = trained(**settings).double()
    temporal, x = network.config.temporal, clips(1, 3, 13, 8, 8)
    latents = network.encode(x).mean
    frames = network.decode(latents)
    for frame in range(13):
        changed = x.clone()
        changed[:, :, frame] += 0.5
        change = (network.encode(changed).mean - latents).abs().amax((0, 1, 3, 4))
        first = -(-frame // temporal)
        assert float(change[:first].sum()) == 0
        assert float(change[first]) > 1e-4
    for index in range(latents.shape[2]):
        changed = latents.clone()
        changed[:, :, index] += 0.5
        change = (network.decode(changed) - frames).abs().amax((0, 1, 3, 4))
        first = 0 if index == 0 else 1 + temporal * (index - 1)
        assert float(change[:first].sum()) == 0
        assert float(change[first]) > 1e-4


@pytest.mark.parametrize("settings", LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_chunks_are_the_whole(settings, dtype, tolerance):
    network, x = trained(**settings).to(dtype), clips(2, 3, 17, 8, 12).to(dtype)
    network = network.eval()
    whole = network.encode(x)
    frames = network.decode(whole.mean)
    for count in (1, 2, 3, 5, 99):
        parts = list(network.encode_chunks(x, count))
        assert {part.mean.shape[2] for part in parts[:-1]} <= {count}
        for name in ("mean", "log_variance"):
            joined = torch.cat([getattr(part, name) for part in parts], dim=2)
            torch.testing.assert_close(joined, getattr(whole, name), atol=tolerance, rtol=tolerance)
        joined = torch.cat(list(network.decode_chunks(whole.mean, count)), dim=2)
        torch.testing.assert_close(joined, frames, atol=tolerance, rtol=tolerance)


def test_a_memory_forgotten_is_seen():
    """The fault that the test above is for: every chunk begun as if it were the first."""
    network = trained().double()
    latents = network.encode(clips(1, 3, 17, 8, 8)).mean
    forgetful = torch.cat([network.decode(part, Memory())[:, :, -1:] for part in latents.split(1, dim=2)], dim=2)
    difference = (forgetful - network.decode(latents)[:, :, ::4]).abs().amax((0, 1, 3, 4))
    assert float(difference[0]) < 1e-12
    assert float(difference[1:].min()) > 1e-2


def test_a_memory_does_not_grow():
    network = trained().double()
    latents, sizes = network.encode(clips(1, 3, 33, 8, 8)).mean, []
    memory = Memory()
    for part in latents.split(1, dim=2):
        network.decode(part, memory)
        sizes.append(sum(kept.untyped_storage().nbytes() for kept in memory.kept.values()))
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("linear", [False, True])
def test_a_clip_of_one_frame_is_a_picture(linear, dtype, tolerance):
    """Begun from an autoencoder of pictures, it gives what that gives, and of a still clip the picture repeated."""
    picture, network = trained(linear=linear, temporal=1), build_autoencoder(AutoencoderConfig(**SMALL, linear=linear))
    assert isinstance(picture, VAE)
    assert isinstance(network, VideoVAE)
    network.start_from_image(picture)
    picture, network, x = picture.to(dtype), network.to(dtype), clips(3, 3, 1, 16, 8).to(dtype)
    near = {"atol": tolerance, "rtol": tolerance}
    with torch.no_grad():
        alone, ours = picture.encode(x[:, :, 0]), network.encode(x)
        torch.testing.assert_close(ours.moments[:, :, 0], alone.moments, **near)
        torch.testing.assert_close(network.decode(ours.mean)[:, :, 0], picture.decode(alone.mean), **near)
        still = x.expand(-1, -1, 9, -1, -1)
        latents = network.encode(still).mean
        torch.testing.assert_close(latents, ours.mean.expand(-1, -1, 3, -1, -1), **near)
        made = network.decode(ours.mean).expand(-1, -1, 9, -1, -1)
        torch.testing.assert_close(network.decode(latents), made, **near)
    names = set(picture.state_dict())
    assert all(torch.equal(network.state_dict()[name], picture.state_dict()[name]) for name in names)


def test_another_layout_is_named():
    network = build_autoencoder(AutoencoderConfig(**SMALL))
    for name, value in (("width", 16), ("linear", True), ("latent_channels", 4)):
        with pytest.raises(InputError, match=f"network.{name} is .*, but the autoencoder of pictures .* has {value}"):
            network.start_from_image(trained(**{"temporal": 1, name: value}))


def test_gradients_reach_every_weight():
    """Those along time too, which begin at zero."""
    torch.manual_seed(0)
    network = build_autoencoder(AutoencoderConfig(**SMALL, linear=True))
    for weight in (network.decoder.conv_out.weight, network.encoder.conv_out.weight):
        torch.nn.init.normal_(weight, std=0.1)
    for name, weight in network.named_parameters():
        if name.endswith("conv_out.weight") or "out.weight" in name:
            torch.nn.init.normal_(weight, std=0.1)
    made, _ = network(x := clips(2, 3, 9, 8, 8).float(), torch.randn(2, 5, 3, 2, 2))
    (made - x).square().mean().backward()
    without = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert all("key.bias" in name for name in without)  # softmax does not see it
    network.zero_grad()
    made, _ = network(x[:, :, :1], torch.randn(2, 5, 1, 2, 2))
    made.square().mean().backward()
    assert all(weight.grad is not None for weight in network.parameters())  # as data-parallel wrappers want


def test_time_convolutions_are_torchs():
    """conv3d of kernel k×1×1 on frames with zeros before the first; growth is that of the two kernels by turns."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, 7, 4, 3)
    for kernel, stride in ((3, 1), (3, 2), (2, 1)):
        layer = TimeConv(6, 5, kernel, stride)
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
        padded = F.pad(x, (0, 0, 0, 0, kernel - 1, 0))
        expected = F.conv3d(padded, layer.weight[..., None], layer.bias, stride=(stride, 1, 1))
        torch.testing.assert_close(unfold(layer(fold(x), 2), 2), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(unfold(layer(fold(x[:, :, :1]), 2), 2), expected[:, :, :1], atol=1e-5, rtol=1e-5)
    grow = TimeGrow(6)
    repeated = x[:, :, [0, *(j for j in range(1, 7) for _ in range(2))]]
    torch.testing.assert_close(unfold(grow(fold(x), 2), 2), repeated)


def test_frames_fold_and_group():
    x = torch.randn(2, 3, 8, 4, 5)
    assert torch.equal(unfold(fold(x), 2), x)
    assert torch.equal(fold(x)[8 + 3], x[1, :, 3])
    assert torch.equal(ungrouped(grouped(x, 4), 4, 2), x)
    assert torch.equal(grouped(x, 4)[2, 3:6], x[1, :, 1])
    assert fold(x[:, :, 0]) is not None
    assert ungrouped(grouped(x[:, :, :0], 4), 4, 2).shape == (2, 3, 0, 4, 5)
    move = Move(2, 3, 1)
    torch.testing.assert_close(move(x)[:, :, 5], move(x[:, :, 5]))


def test_bfloat16_autocast_is_near():
    network, x = trained(linear=True), clips(2, 3, 9, 16, 16).float()
    exact = network.decode(network.encode(x).mean)
    with torch.autocast("cpu", torch.bfloat16):
        near = network.decode(network.encode(x).mean)
    assert float((near - exact).square().mean().sqrt() / exact.std()) < 0.05


@pytest.mark.parametrize("frames", [1, 2, 5, 17])
@pytest.mark.parametrize(("layers", "side"), [(1, 8), (2, 16), (3, 24)])
def test_the_discriminator_takes_any_number_of_frames(frames, layers, side):
    torch.manual_seed(0)
    judge = VideoDiscriminator(3, 4, layers)
    x = clips(2, 3, frames, side, side).float().requires_grad_()
    logits = judge(x)
    assert logits.shape == (2, 1, -(-frames // 2**layers), side // 2**layers - 2, side // 2**layers - 2)
    (slope,) = torch.autograd.grad(logits[0].sum(), x)
    assert (slope[0].abs().amax((0, 2, 3)) > 0).all()  # it sees every frame
    assert slope[1].abs().max() == 0
    with pytest.raises(InputError, match=f"at least {3 * 2**layers} pixels a side, received {3 * 2**layers - 1}"):
        judge(torch.zeros(1, 3, frames, 3 * 2**layers - 1, 64))


@pytest.mark.parametrize(("layers", "field"), [(1, 11), (2, 23)])
def test_a_logit_sees_as_many_frames_as_the_docstring_says(layers, field):
    torch.manual_seed(0)
    judge = copy.deepcopy(VideoDiscriminator(1, 2, layers))
    for block in judge.blocks:
        block.norm = torch.nn.Identity()
    x = clips(1, 1, 3 * field, 24, 24).float().requires_grad_()
    logits = judge(x)
    (slope,) = torch.autograd.grad(logits[0, 0, logits.shape[2] // 2].sum(), x)
    assert int((slope[0, 0].abs().amax((1, 2)) > 0).sum()) == field


def test_settings():
    with pytest.raises(InputError, match=r"temporal 4 is halved beside the shrinks .* of which there are 1"):
        AutoencoderConfig.parse({"multipliers": [1, 2], "temporal": 4}, "--set")
    with pytest.raises(InputError, match="temporal"):
        AutoencoderConfig.parse({"temporal": 3}, "--set")
    assert isinstance(build_autoencoder(AutoencoderConfig(**{**SMALL, "temporal": 1})), VAE)
    with pytest.raises(InputError, match=r"network\.channels is left to the data"):
        build_autoencoder(AutoencoderConfig(**{**SMALL, "channels": None}))

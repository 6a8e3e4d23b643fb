"""Latents of pictures of any size: normalised, padded, in slices and in tiles."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from rectiflow.autoencoders import latent_space, tiling
from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.autoencoders.posterior import Posterior
from rectiflow.autoencoders.tiling import Places, blend_weights, sliced, tiled
from rectiflow.autoencoders.vae import VAE
from rectiflow.base.errors import InputError


def network(multipliers=(1, 1, 2)):
    """A VAE with random weights that keep values near 1 through the layers."""
    settings = {"channels": 3, "latent_channels": 4, "width": 8, "groups": 4, "multipliers": multipliers}
    vae, draw = VAE(AutoencoderConfig(**settings)).requires_grad_(False), torch.Generator().manual_seed(0)
    for name, weight in vae.named_parameters():
        weight.normal_(generator=draw)
        if weight.dim() > 1:
            weight.div_(math.sqrt(weight[0].numel()))
        else:
            weight.mul_(0.2).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return vae.eval()


def space(**changes):
    mean, deviation = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([0.5, 3.0, 1.0, 0.1])
    return LatentSpace(network(), mean, deviation, **changes)


def pictures(*sides, count=1):
    """Smooth pictures with some grain; left and right differ, so that the statistics of tiles do."""
    draw = torch.Generator().manual_seed(1)
    coarse = F.interpolate(torch.rand(count, 3, 5, 5, generator=draw), sides, mode="bicubic")
    return (coarse * 2 - 1 + 0.05 * torch.randn(count, 3, *sides, generator=draw)).clamp(-1, 1)


def near(left, right, tolerance=1e-5):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sides", [(4, 4), (16, 20), (13, 7), (4, 31), (33, 6)])
@pytest.mark.parametrize("tile", [0, 16])
def test_any_size_comes_back(sides, tile):
    latents = space(tile=tile).encode(x := pictures(*sides, count=2))
    assert latents.shape[1:] == space().latent_shape(x.shape[1:]) == (4, -(-sides[0] // 4), -(-sides[1] // 4))
    assert space(tile=tile).moments(x).shape == (2, 8, *latents.shape[-2:])
    back = space(tile=tile).decode(latents, sides)
    assert back.shape == x.shape
    assert back.isfinite().all()
    assert torch.equal(space(tile=tile).decode(latents)[..., : sides[0], : sides[1]], back)


def test_padding_repeats_the_edge_and_changes_nothing_where_the_factor_divides():
    x = pictures(16, 20)
    near(
        space().moments(x)[:, :4] * space().deviation[:, None, None] + space().mean[:, None, None],
        space().network.encode(x).mean,
    )
    cut = x[..., :13, :18]
    rows = [*range(13), 12, 12, 12]
    columns = [*range(18), 17, 17]
    near(space().moments(cut), space().moments(x[..., rows, :][..., columns]), 0)
    assert (space().moments(cut) - space().moments(x)).abs().max() > 1e-3


def test_normalisation_is_per_channel_and_comes_back():
    plain, x = LatentSpace(network()), pictures(16, 16, count=2)
    mean, deviation = (values[:, None, None] for values in (space().mean, space().deviation))
    near(space().encode(x) * deviation + mean, plain.encode(x))
    ours, theirs = Posterior.of(space().moments(x)), Posterior.of(plain.moments(x))
    draw = torch.randn(ours.mean.shape, generator=torch.Generator().manual_seed(2))
    near(ours.sample(draw) * deviation + mean, theirs.sample(draw))
    near(space().decode(space().encode(x)), plain.decode(plain.encode(x)), 1e-4)


@pytest.mark.parametrize("tile", [0, 16])
def test_outputs_are_float32(tile):
    """Whatever the pictures or the weights are kept in."""
    low = LatentSpace(network().to(torch.bfloat16), tile=tile)
    for given in (torch.float32, torch.bfloat16, torch.float64):
        for one in (low, LatentSpace(network(), tile=tile)):
            moments = one.moments(pictures(20, 20).to(given))
            assert moments.dtype == one.encode(pictures(20, 20).to(given)).dtype == torch.float32
            assert one.decode(moments[:, :4].to(given)).dtype == torch.float32


@pytest.mark.parametrize("tile", [0, 16])
def test_slices_change_nothing_and_bound_the_pixels_of_a_call(tile, monkeypatch):
    x = pictures(24, 20, count=7)
    latents = space(tile=tile).encode(x)
    whole = space(tile=tile).moments(x), space(tile=tile).decode(latents)
    seen = []

    def counted(name, enlarged):
        inner = getattr(VAE, name)

        def call(self, part):
            seen.append(part.shape[0] * part.shape[-2] * part.shape[-1] * enlarged)
            return inner(self, part)

        return call

    monkeypatch.setattr(latent_space, "PIXELS_A_CALL", 1000)
    monkeypatch.setattr(VAE, "encode", counted("encode", 1))
    monkeypatch.setattr(VAE, "decode", counted("decode", 16))
    for before, after in zip(whole, (space(tile=tile).moments(x), space(tile=tile).decode(latents)), strict=True):
        near(before, after)
    assert max(seen) <= 1000
    assert len(seen) >= 2 * 4
    seen.clear()
    monkeypatch.setattr(latent_space, "PIXELS_A_CALL", 1)  # a picture is the least there is
    near(space(tile=tile).decode(latents), whole[1])
    assert len(seen) % 7 == 0


def test_sliced():
    rows = []
    x = torch.arange(14.0).reshape(7, 2)
    near(sliced(lambda part: rows.append(len(part)) or part * 2, x, 3), x * 2, 0)
    assert rows == [3, 3, 1]


def test_tiles_cover_the_side_and_their_weights_sum_to_one():
    for most in (4, 5, 6, 7, 8, 11, 16, 32, 64):
        for cells in range(1, 150):
            places = Places.over(cells, most)
            total, count = torch.zeros(cells), torch.zeros(cells)
            for weight, place in zip(blend_weights(places), places.slices(), strict=True):
                total[place] += weight
                count[place] += 1
                assert len(weight) == places.length <= most
                assert (weight > 0).all()
            assert (total - 1).abs().max() < 1e-6, (cells, most)
            assert count.max() <= 2
            overlaps = [a + places.length - b for a, b in pairwise(places.starts)]
            assert all(overlap >= most // 4 for overlap in overlaps)


def test_weights_are_linear_in_the_overlap():
    near(torch.stack(blend_weights(Places((0, 4), 8))[:1]), torch.tensor([[1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125]]))


@pytest.mark.parametrize("sides", [(20, 20), (64, 100), (8, 300), (81, 37)])
def test_tiles_are_exact_for_a_function_of_its_own_cell(sides):
    f, tile = 4, 8
    picture = torch.randn(2, 3, *(f * side for side in sides), generator=torch.Generator().manual_seed(3))
    shapes = set()

    def shrink(x):
        shapes.add(x.shape[-2:])
        return F.pixel_unshuffle(x, f).sin()

    near(tiled(shrink, picture, tile, (f, 1)), F.pixel_unshuffle(picture, f).sin(), 1e-6)
    assert len(shapes) == 1
    assert max(map(max, shapes)) <= f * tile
    latents = F.pixel_unshuffle(picture, f)
    near(tiled(lambda x: F.pixel_shuffle(x, f).cos(), latents, tile, (1, f)), picture.cos(), 1e-6)


def test_gradients_pass_through_tiles():
    x = torch.randn(1, 1, 20, 20, generator=torch.Generator().manual_seed(4)).requires_grad_()
    (gradient,) = torch.autograd.grad(tiled(torch.sin, x, 8, (1, 1)).sum(), x)
    near(gradient, x.detach().cos())


def test_a_tile_is_used_only_where_a_side_exceeds_it(monkeypatch):
    calls = []
    inner = VAE.encode
    monkeypatch.setattr(VAE, "encode", lambda self, x: calls.append(x.shape[-2:]) or inner(self, x))
    space(tile=32).moments(pictures(32, 32))
    space(tile=0).moments(pictures(32, 80))
    assert calls == [(32, 32), (32, 80)]
    calls.clear()
    space(tile=32).moments(pictures(32, 36))
    assert len(calls) == 2
    calls.clear()
    space(tile=1).moments(pictures(64, 16))  # tiles have at least four latents
    assert {tuple(shape) for shape in calls} == {(16, 16)}
    assert space().tile == 512


def seams(parts, whole, places):
    """What tiles change: its RMS over the whole's, and its greatest mean jump where seams might be over that elsewhere.

    Seams might be where a tile begins or ends, and in the middle of an overlap.
    """
    change = parts - whole
    jumps = change.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    begins, ends = places.starts[1:], [start + places.length for start in places.starts[:-1]]
    middles = [(begin + end) // 2 for begin, end in zip(begins, ends, strict=True)]
    suspect = torch.zeros(len(jumps), dtype=torch.bool)
    suspect[[column - 1 for column in (*begins, *ends, *middles)]] = True
    rms = float((change.square().mean() / whole.square().mean()).sqrt())
    return rms, float(jumps[suspect].max() / jumps[~suspect].mean())


def hard(places):
    """No blending: of an overlap the first tile has the first half, the second the other."""
    weights = [torch.ones(places.length) for _ in places.starts]
    for i, (before, after) in enumerate(pairwise(places.starts)):
        overlap = before + places.length - after
        weights[i][places.length - overlap + overlap // 2 :] = 0
        weights[i + 1][: overlap // 2] = 0
    return weights


def test_tiles_leave_no_seam(monkeypatch):
    """Without blending both jumps are about three times those elsewhere; with it no column stands out."""
    x, places = pictures(96, 256), Places.over(256 // 4, 96 // 4)
    whole, parts = space(tile=0), space(tile=96)
    latents = whole.encode(x)
    decoded = whole.decode(latents)

    def measured():
        return seams(parts.encode(x), latents, places), seams(parts.decode(latents), decoded, places.scaled(4))

    blended = measured()
    monkeypatch.setattr(tiling, "blend_weights", hard)
    cut = measured()
    for (rms, jump), (cut_rms, cut_jump), most in zip(blended, cut, (0.12, 0.6), strict=True):
        assert jump < 1.5
        assert cut_jump > 2.5
        assert rms < cut_rms
        assert rms < most


def test_larger_tiles_come_closer_to_the_whole():
    x = pictures(64, 256)
    whole = space(tile=0).encode(x)
    changes = [seams(space(tile=tile).encode(x), whole, Places.over(64, tile // 4))[0] for tile in (64, 128, 192)]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] < 0.8 * changes[0]


def test_refusals():
    with pytest.raises(InputError, match="pictures of 3×20 are smaller than the autoencoder's factor 4; enlarge them"):
        space().encode(torch.zeros(1, 3, 3, 20))
    with pytest.raises(InputError, match="of a picture of at most 8×8, but 8×9 was asked for"):
        space().decode(torch.zeros(1, 4, 2, 2), (8, 9))
    with pytest.raises(InputError, match=r"expected a tile of 0 \(never\) or more pixels, received -1"):
        space(tile=-1)
    for mean, deviation in (
        (torch.zeros(3), torch.ones(4)),
        (torch.zeros(4), torch.ones(1)),
        (torch.zeros(4), torch.tensor([1.0, 1.0, 1.0, 0.0])),
        (torch.tensor([0.0, 0.0, 0.0, math.nan]), torch.ones(4)),
        (torch.zeros(4), torch.tensor([1.0, 1.0, 1.0, math.inf])),
    ):
        with pytest.raises(InputError, match="a mean and a positive deviation for each of the 4 latent channels"):
            LatentSpace(network(), mean, deviation)

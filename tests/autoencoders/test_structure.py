"""SSIM against torchmetrics and its formula written out; finite differences of ramps; what precision must not touch."""

import pytest
import torch
import torch.nn.functional as F

from rectiflow.autoencoders.structure import gradient_loss, multiscale_ssim, ssim, structure_loss
from rectiflow.base.errors import InputError


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures in [−1, 1] with some noise."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=draws) * 2 - 1
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=draws)).clamp(-1, 1)


def ssim_written_out(a: torch.Tensor, b: torch.Tensor, size: int) -> torch.Tensor:
    """Every window by itself, with variances about its own means, in float64."""
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-(offset**2) / 4.5)
    weights = torch.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.02**2, 0.06**2
    found = []
    for one, other in zip((a.double() + 1).flatten(0, 1), (b.double() + 1).flatten(0, 1), strict=True):
        for top in range(one.shape[0] - size + 1):
            for left in range(one.shape[1] - size + 1):
                p, q = (x[top : top + size, left : left + size] for x in (one, other))
                m, n = (weights * p).sum(), (weights * q).sum()
                v, w, c = ((weights * s).sum() for s in ((p - m) ** 2, (q - n) ** 2, (p - m) * (q - n)))
                found.append((2 * m * n + c1) * (2 * c + c2) / ((m**2 + n**2 + c1) * (v + w + c2)))
    return torch.stack(found).reshape(len(a), -1).mean(1)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 32, 32), (3, 24, 40)])
def test_ssim_is_that_of_torchmetrics_where_no_padding_reaches(channels, height, width):
    """torchmetrics reflects the border and averages it too; 5 pixels in from it, both filter the same pixels."""
    image = pytest.importorskip("torchmetrics.functional.image")
    a, b = pictures(3, channels, height, width), pictures(3, channels, height, width, 1)
    for other in (b, (a + 0.2 * b).clamp(-1, 1)):
        _, full = image.structural_similarity_index_measure(
            (a + 1) / 2, (other + 1) / 2, data_range=1.0, reduction="none", return_full_image=True
        )
        inside = full[..., 5:-5, 5:-5].flatten(1).mean(1)
        assert ssim(a, other) == pytest.approx(inside, abs=1e-4)
        assert (full.flatten(1).mean(1) - inside).abs().max() > 1e-4, "the border would have been told"


@pytest.mark.parametrize(("height", "width", "size"), [(13, 16, 11), (8, 12, 7), (5, 5, 5), (2, 2, 1)])
def test_ssim_is_its_formula_in_windows_that_fit(height, width, size):
    a, b = pictures(2, 3, height, width), pictures(2, 3, height, width, 1)
    assert ssim(a, b) == pytest.approx(ssim_written_out(a, b, size), abs=2e-5)


def test_ssim_of_flat_pictures_is_the_luminance_term():
    """(2μν + C₁)/(μ² + ν² + C₁) of levels above black, as nothing varies: near 1 about grey, whatever the signs."""
    levels = torch.tensor([[0.5, 0.2], [-0.01, 0.01], [-1.0, 1.0]], dtype=torch.float64)
    a, b = (level.reshape(3, 1, 1, 1).expand(3, 1, 16, 16) for level in levels.T)
    above = levels + 1
    expected = (2 * above.prod(1) + 4e-4) / ((above**2).sum(1) + 4e-4)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-12)


def test_ssim_is_symmetric_one_at_equality_and_below_zero_for_negatives():
    a, b = pictures(2, 3, 32, 32), pictures(2, 3, 32, 32, 1)
    assert ssim(a, a) == pytest.approx(torch.ones(2), abs=1e-6)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-6)
    assert (ssim(a, b) < 0.9).all()
    noise = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) / 3
    assert (ssim(noise, -noise) < -0.3).all()


def test_the_pyramid_averages_ssim_over_halved_pictures():
    a, b = pictures(2, 3, 33, 40), pictures(2, 3, 33, 40, 1)
    levels = [(F.avg_pool2d(a, side), F.avg_pool2d(b, side)) for side in (1, 2, 4)]
    assert multiscale_ssim(a, b) == pytest.approx(sum(ssim(*level) for level in levels) / 3, abs=1e-5)
    assert multiscale_ssim(a, b, 1) == pytest.approx(ssim(a, b))
    small = a[..., :8, :8], b[..., :8, :8]
    two = (ssim(*small) + ssim(*(F.avg_pool2d(x, 2) for x in small))) / 2
    assert multiscale_ssim(*small) == pytest.approx(two, abs=1e-5)  # 8 and 4, and no level of 2


def test_a_ramp_costs_its_slope_doubled_at_each_scale():
    """|∂ₓ| + |∂ᵧ| = s + u; averages of 2×2 are a ramp of twice the slope."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    ramp = (0.02 * x - 0.03 * y).expand(1, 3, 16, 16)
    for scales, factor in ((1, 1), (2, 3 / 2), (3, 7 / 3)):
        assert float(gradient_loss(ramp, torch.zeros_like(ramp), scales)) == pytest.approx(0.05 * factor, rel=1e-5)


def test_differences_do_not_see_brightness_and_see_each_picture_alone():
    a, b = pictures(3, 1, 16, 16), pictures(3, 1, 16, 16, 1)
    assert gradient_loss(a, a + 0.3) == pytest.approx(torch.zeros(3), abs=1e-6)
    assert structure_loss(a, a) == pytest.approx(torch.zeros(3), abs=1e-6)
    for term in (ssim, gradient_loss, structure_loss):
        assert term(a, b) == pytest.approx(torch.cat([term(a[i : i + 1], b[i : i + 1]) for i in range(3)]), abs=1e-6)


def test_blur_is_punished_more_than_a_shift_of_brightness_of_equal_error():
    a = pictures(4, 3, 32, 32)
    blurred = F.avg_pool2d(F.pad(a, (1, 1, 1, 1), mode="replicate"), 3, 1)
    shift = (blurred - a).square().mean((1, 2, 3), keepdim=True).sqrt()
    assert (structure_loss(blurred, a) > 3 * structure_loss(a + shift, a)).all()


@pytest.mark.parametrize("term", [ssim, multiscale_ssim, gradient_loss, structure_loss])
def test_gradients_are_those_of_finite_differences(term):
    a = pictures(1, 2, 8, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(term, (a, pictures(1, 2, 8, 9, 1).double()))


@pytest.mark.parametrize("term", [ssim, structure_loss])
def test_autocast_changes_nothing(term):
    """A bfloat16 ssim of pictures so near each other would be off by more than their difference."""
    a = pictures(2, 3, 32, 32).requires_grad_()
    b = (a + 0.01 * pictures(2, 3, 32, 32, 1)).detach()
    plain = term(a, b)
    (slope,) = torch.autograd.grad(plain.sum(), a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = term(a, b)
    (cast_slope,) = torch.autograd.grad(cast.sum(), a)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    assert torch.equal(slope, cast_slope)
    assert term(a.bfloat16(), b).dtype == torch.float32


def test_what_cannot_be_compared_is_refused():
    a = torch.zeros(2, 3, 8, 8)
    for b in (a[:1], a[:, :1], a[0]):
        with pytest.raises(InputError, match="of one shape"):
            structure_loss(a, b)
    with pytest.raises(InputError, match="sides of at least 2"):
        ssim(a[..., :1], a[..., :1])
    with pytest.raises(InputError, match="at least one scale, received 0"):
        gradient_loss(a, a, 0)

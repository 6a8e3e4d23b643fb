"""Figures of reconstructions: closed forms, and faults that one figure misses and another must see."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from rectiflow.autoencoders.structure import ssim
from rectiflow.base.errors import InputError
from rectiflow.data.pictures import grid, to_uint8
from rectiflow.evaluation.linear_code import linear_code
from rectiflow.evaluation.reconstruction import (
    gradient_correlation,
    power_spectrum,
    psnr,
    reconstruction_scores,
    sharpness,
    sheet,
    spectrum_error,
)


def photograph(name: str) -> torch.Tensor:
    """1×3×424×640, the top 424 lines."""
    levels = torch.from_numpy(np.array(load_sample_image(name))[:424]).permute(2, 0, 1)
    return levels[None].float() / 127.5 - 1


def tiles(x: torch.Tensor, side: int = 64) -> torch.Tensor:
    cut = x[..., : x.shape[-2] // side * side, : x.shape[-1] // side * side]
    return cut.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, side, side)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blur(x: torch.Tensor, size: int = 3) -> torch.Tensor:
    half = size // 2
    return F.avg_pool2d(F.pad(x, (half, half, half, half), mode="replicate"), size, 1)


def energy(x: torch.Tensor) -> float:
    return float(x.diff(dim=-1).square().mean() + x.diff(dim=-2).square().mean())


@pytest.fixture(scope="module")
def china() -> torch.Tensor:
    return tiles(photograph("china.jpg"))


# Errors by level.


def test_psnr_of_a_shift_by_levels_is_its_closed_form():
    """A shift by n of 255 levels: 20 log₁₀(255/n), of each picture by itself."""
    b = torch.full((3, 3, 8, 8), 100 / 127.5 - 1)
    a = b + torch.tensor([1.0, 4.0, 100.0]).reshape(3, 1, 1, 1) / 127.5
    assert psnr(a, b).tolist() == pytest.approx([20 * math.log10(255 / n) for n in (1, 4, 100)], abs=1e-9)


def test_psnr_is_of_what_a_file_would_hold():
    """What is clipped or rounded away is no error; half a level more is."""
    b = torch.full((1, 1, 8, 8), 1.0)
    assert psnr(b + 5, b).item() == math.inf
    assert psnr(b - 0.4 / 127.5, b).item() == math.inf
    assert psnr(b - 0.6 / 127.5, b).item() == pytest.approx(20 * math.log10(255))


def test_psnr_of_noise_is_that_of_its_variance():
    b = 0.2 * normal(4, 3, 64, 64)
    found = psnr(b + 0.05 * normal(4, 3, 64, 64, seed=1), b)
    # Rounding both sides adds two errors of step²/12 each.
    variance = 0.05**2 + 2 * (2 / 255) ** 2 / 12
    assert found.mean().item() == pytest.approx(10 * math.log10(4 / variance), abs=0.05)


# Spectra.


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (33, 33)])
def test_white_noise_has_a_flat_spectrum_of_its_variance(height, width):
    power = power_spectrum(0.3 * normal(800, 1, height, width))
    assert power.shape == (min(height, width) // 2,)
    assert power[1:] == pytest.approx(torch.full_like(power[1:], 0.09), rel=0.06)
    assert power[1:].mean().item() == pytest.approx(0.09, rel=0.01)
    assert power[0] < 0.09


def test_white_noise_in_three_channels_is_weighed_as_luma():
    power = power_spectrum(normal(800, 3, 32, 32))
    assert power[1:].mean().item() == pytest.approx(0.299**2 + 0.587**2 + 0.114**2, rel=0.02)


def test_a_wave_stands_at_its_frequency():
    """cos(2πkx/N) under a Hann window lies in bins k−1 … k+1, and its power is known: E|X|² over Σw²."""
    x = torch.cos(2 * math.pi * 9 * torch.arange(32) / 32).expand(1, 1, 32, 32).double()
    power = power_spectrum(x)
    ring = torch.hypot(*torch.meshgrid(*[torch.fft.fftfreq(32) * 32] * 2, indexing="ij")).round().flatten()
    total = torch.stack([power[r - 1] * (ring == r).sum() for r in range(1, 17)])
    assert int(power.argmax()) == 9 - 1
    assert total[7:10].sum() > 0.999 * total.sum()
    # Parseval: the sum over the plane is N² Σ w²x² / Σ w², here half of N².
    assert total.sum().item() == pytest.approx(32**2 / 2, rel=1e-3)


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_the_spectrum_of_a_scaled_picture_shifts_by_twice_the_logarithm(china, scale):
    shift = (power_spectrum(scale * china) / power_spectrum(china)).log()
    assert shift == pytest.approx(torch.full_like(shift, 2 * math.log(scale)), abs=1e-5)
    assert spectrum_error(scale * china, china) == pytest.approx(abs(2 * math.log(scale)), abs=1e-5)
    assert sharpness(scale * china, china) == pytest.approx(2 * math.log(scale), abs=1e-5)


def test_brightness_is_not_sharpness(china):
    assert spectrum_error(china + 0.3, china) < 1e-4
    assert spectrum_error(china, china) == sharpness(china, china) == 0


def test_blur_lowers_the_spectrum_and_is_signed_negative(china):
    soft, softer = blur(china), blur(china, 5)
    assert (power_spectrum(soft)[1:] < power_spectrum(china)[1:]).all()
    assert spectrum_error(softer, china) > spectrum_error(soft, china) > 0.5
    assert sharpness(softer, china) < sharpness(soft, china) < -0.5
    assert sharpness(china, soft) == pytest.approx(-sharpness(soft, china), abs=1e-12)


def test_sharpness_is_of_the_upper_half_of_the_frequencies():
    """Waves of bin 4 of 16 move the error and not the sharpness; waves of bin 12 move both."""
    noise = 0.2 * normal(20, 1, 32, 32)
    along = torch.arange(32) / 32
    low, high = (0.3 * torch.cos(2 * math.pi * k * along).expand(1, 1, 32, 32) for k in (4, 12))
    assert sharpness(noise + low, noise) == pytest.approx(0, abs=1e-6)
    assert spectrum_error(noise + low, noise) > 0.05
    assert sharpness(noise + high, noise) > 0.05


def test_the_spectrum_is_of_the_set_not_of_each_picture(china):
    """The pictures in another order are as sharp as a set, whatever the error of each."""
    assert spectrum_error(china.flip(0), china) < 1e-9
    assert psnr(china.flip(0), china).mean() < 20


def test_detail_below_rounding_does_not_count():
    """Smooth pictures with and without noise that 8 bits cannot hold are equally sharp; above it they are not."""
    smooth = torch.linspace(-0.5, 0.5, 32).expand(8, 1, 32, 32).double()
    noise = normal(8, 1, 32, 32)
    assert spectrum_error(smooth + 1e-4 * noise, smooth + 1e-6 * noise) < 0.05
    assert sharpness(smooth + 1e-1 * noise, smooth) > 3


# Sharpness that is not the original's.


def test_noise_restores_gradient_energy_and_is_punished_by_correlation(china):
    soft = blur(china)
    missing = math.sqrt((energy(china) - energy(soft)) / energy(normal(*china.shape)))
    noisy = soft + missing * normal(*china.shape)
    assert energy(noisy) == pytest.approx(energy(china), rel=0.02)
    assert abs(sharpness(noisy, china)) < abs(sharpness(soft, china))
    assert gradient_correlation(noisy, china) < gradient_correlation(soft, china) - 0.1


def test_blocks_are_punished_by_correlation():
    """The averages of 4×4 pixels as flat blocks, and interpolated: blocks have edges, not where the original has."""
    x = tiles(photograph("flower.jpg"))
    averages = F.avg_pool2d(x, 4)
    blocky = F.interpolate(averages, scale_factor=4.0)
    smooth = F.interpolate(averages, scale_factor=4.0, mode="bicubic")
    assert energy(blocky) > 3 * energy(smooth)
    assert spectrum_error(blocky, x) < spectrum_error(smooth, x)
    assert gradient_correlation(blocky, x) < gradient_correlation(smooth, x) - 0.2


def test_steps_between_blocks_restore_gradient_energy_and_are_punished_by_correlation(china):
    soft = blur(china)
    steps = F.interpolate(normal(len(china), 3, 8, 8), scale_factor=8.0)
    blocky = soft + steps * math.sqrt((energy(china) - energy(soft)) / energy(steps))
    assert energy(blocky) == pytest.approx(energy(china), rel=0.02)
    assert gradient_correlation(blocky, china) < gradient_correlation(soft, china) - 0.2


def test_gradient_correlation_with_noise_is_its_closed_form():
    """Of g and g + n, independent: √(var g / (var g + var n)), whatever the brightness and contrast."""
    b = normal(16, 1, 64, 64)
    for ratio in (0.5, 2.0):
        found = gradient_correlation(0.3 * (b + ratio * normal(16, 1, 64, 64, seed=1)) + 0.1, b)
        assert found == pytest.approx(1 / math.sqrt(1 + ratio**2), abs=0.02)
    assert gradient_correlation(b, b) == pytest.approx(1)
    ramp = torch.arange(64) / 32 + torch.arange(64)[:, None] / 32
    assert gradient_correlation(b + ramp, b) == pytest.approx(1), "one slope everywhere is no structure"
    assert gradient_correlation(-b, b) == pytest.approx(-1)


def test_a_flat_reconstruction_correlates_with_nothing_but_a_flat_original():
    flat, b = torch.zeros(2, 1, 8, 8), normal(2, 1, 8, 8).float()
    assert gradient_correlation(flat, b) == 0
    assert gradient_correlation(flat, flat + 0.5) == 1
    assert gradient_correlation(torch.cat([flat, b]), torch.cat([b, b])) == pytest.approx(0.5)


# All together.


def test_the_scores_are_the_figures_of_all_pictures(china):
    soft = blur(china)
    assert len(china) > 16  # more than one part
    assert asdict(reconstruction_scores(soft, china)) == {
        "psnr": pytest.approx(sum(float(psnr(soft[i, None], china[i, None])) for i in range(len(china))) / len(china)),
        "ssim": pytest.approx(float(ssim(soft, china).mean()), rel=1e-5),
        "spectrum_error": spectrum_error(soft, china),
        "sharpness": sharpness(soft, china),
        "gradient_correlation": gradient_correlation(soft, china),
        "count": len(china),
    }


def test_the_sheet_is_rows_of_three():
    originals, made = torch.zeros(2, 1, 4, 6), torch.tensor([0.05, -0.5]).reshape(2, 1, 1, 1).expand(2, 1, 4, 6)
    found = sheet(originals, made)
    assert found.shape == (6, 1, 4, 6)
    assert found[:, 0, 0, 0].tolist() == pytest.approx([0, 0.05, 0.2, 0, -0.5, -1])
    assert grid(to_uint8(found), columns=3).size == (3 * 7 + 1, 2 * 5 + 1)
    assert sheet(originals, made, gain=1.0)[5, 0, 0, 0].item() == -0.5


def test_what_cannot_be_compared_is_refused():
    b = torch.zeros(2, 3, 8, 8)
    for a in (b[:1], b[:, :1], b[0]):
        with pytest.raises(InputError, match="of one shape"):
            reconstruction_scores(a, b)
    with pytest.raises(InputError, match="of one shape"):
        psnr(b[:0], b[:0])
    with pytest.raises(InputError, match="sides of at least 4"):
        power_spectrum(b[..., :3])
    with pytest.raises(InputError, match="the reconstructions hold a number that is not finite"):
        reconstruction_scores(b * float("nan"), b)


# The linear code.


def test_all_components_are_exact_and_orthonormal():
    x = normal(3, 2, 8, 12)
    code = linear_code(x, 2, 8)
    assert code.encode(x).shape == (3, 8, 4, 6)
    assert code.reconstruct(x) == pytest.approx(x, abs=1e-12)
    assert code.components @ code.components.T == pytest.approx(torch.eye(8).double(), abs=1e-12)


@pytest.mark.parametrize("count", [1, 5, 11])
def test_the_error_is_the_sum_of_the_eigenvalues_left_out(count):
    x = blur(normal(40, 3, 8, 8)) + 0.5  # more than one part
    code = linear_code(x, 2, count)
    blocks = 40 * 16
    error = float((code.reconstruct(x) - x).square().sum()) / blocks
    assert error == pytest.approx(float(code.eigenvalues[count:].sum()), rel=1e-9)
    latents = code.encode(x).transpose(0, 1).flatten(1)
    assert latents.mean(1) == pytest.approx(torch.zeros(count), abs=1e-9)
    assert latents @ latents.T / blocks == pytest.approx(torch.diag(code.eigenvalues[:count]), abs=1e-9)


def test_no_other_code_of_as_many_numbers_is_better():
    x = blur(normal(8, 1, 16, 16))
    code = linear_code(x, 4, 4)
    least = float((code.reconstruct(x) - x).square().mean())
    average = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0)  # 4 numbers for each block, too
    assert least < float((average - x).square().mean())


@pytest.mark.parametrize(
    ("fitted", "scored", "plain", "of_files"),
    [("china.jpg", "flower.jpg", 29.63, 29.80), ("flower.jpg", "china.jpg", 22.50, 22.51)],
)
def test_sixteen_components_of_one_photograph_on_another(fitted, scored, plain, of_files):
    """Over the whole picture: `plain` of what the code gives, 10 log₁₀(4/error); `of_files` clipped and in 8 bits."""
    x = photograph(scored)
    found = linear_code(photograph(fitted), 8, 16).reconstruct(x)
    assert 10 * math.log10(4 / float((found - x).square().mean())) == pytest.approx(plain, abs=0.05)
    assert psnr(found, x).item() == pytest.approx(of_files, abs=0.05)
    assert sharpness(found, x) < -0.5


def test_what_a_linear_code_cannot_be_fitted_to_is_refused():
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(InputError, match="codes of 1 to 16, received 17"):
        linear_code(x, 4, 17)
    with pytest.raises(InputError, match="whose sides 3 divides"):
        linear_code(x, 3, 1)
    with pytest.raises(InputError, match="of 1 channels, received 3"):
        linear_code(x, 4, 2).encode(torch.zeros(1, 3, 8, 8))

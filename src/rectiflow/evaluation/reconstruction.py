"""How well pictures survive an autoencoder: error, structure, and whether they are as sharp, told honestly.

Pictures are float N×C×H×W in [−1, 1]; `a` are the reconstructions, `b` the originals. PSNR rewards blur and plain
gradient energy is restored by noise, so sharpness is told by two figures: the spectrum, which says how much there is at
each frequency, and the correlation of gradients, which says whether it is the original's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rectiflow.autoencoders.frames import fold
from rectiflow.autoencoders.structure import ssim
from rectiflow.base.errors import InputError
from rectiflow.data.pictures import to_uint8

_CHUNK = 16
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_ROUNDING = (2 / 255) ** 2 / 12  # power of the error of rounding to 8 bits, per pixel


@dataclass(frozen=True)
class Reconstruction:
    """Reconstructions beside their originals; means over pictures.

    Args:
        psnr: dB, of 8-bit levels; above is better, infinite where any picture is exact.
        ssim: structural similarity, at most 1, which is equality.
        spectrum_error: mean |ln P_a − ln P_b| over frequencies; 0 is equal sharpness at each.
        sharpness: mean ln(P_a/P_b) over the upper half of the frequencies; below 0 is blur, above 0 is noise or
            artefacts.
        gradient_correlation: Pearson correlation of gradients, at most 1; what is sharp but invented lowers it.
        count: N, of pictures.
    """

    psnr: float
    ssim: float
    spectrum_error: float
    sharpness: float
    gradient_correlation: float
    count: int


def reconstruction_scores(reconstructions: Tensor, originals: Tensor) -> Reconstruction:
    """Every figure of reconstructions of originals, N×C×H×W.

    Raises:
        InputError: shapes that differ, no pictures, sides under 4 pixels, or a number that is not finite.
    """
    _check(reconstructions, originals)
    log_ratio = _log_ratio(power_spectrum(reconstructions), power_spectrum(originals))
    return Reconstruction(
        psnr=float(psnr(reconstructions, originals).mean()),
        ssim=float(_in_parts(ssim, reconstructions, originals).mean()),
        spectrum_error=float(log_ratio.abs().mean()),
        sharpness=float(_upper(log_ratio).mean()),
        gradient_correlation=gradient_correlation(reconstructions, originals),
        count=len(originals),
    )


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, N float64: 10 log₁₀(255² / mean squared difference of levels).

    Pictures are clipped to [−1, 1] and rounded to 8 bits first, as a file has them. Equal ones give infinity.

    Raises:
        InputError: shapes that differ, or no pictures.
    """

    def of(a: Tensor, b: Tensor) -> Tensor:
        error = (to_uint8(a).double() - to_uint8(b).double()).square().flatten(1).mean(1)
        return 10 * torch.log10(255**2 / error)

    return _in_parts(of, a, b)


def power_spectrum(x: Tensor) -> Tensor:
    """Power of pictures N×C×H×W by frequency, averaged over the set and over directions: R float64.

    Luma (BT.601; the mean of channels if there are not three), less its weighted mean, under a Hann window; |DFT|² over
    the sum of the squared window, so that white noise of variance σ² has σ² in each bin but the first, which the mean
    takes some from. Bin r, of 1 … R = ⌊min(H, W)/2⌋, holds frequencies within ½ of r cycles over the shorter side; the
    corners, past the Nyquist frequency of the axes, are left out.

    Raises:
        InputError: not N×C×H×W, no pictures, or sides under 4 pixels.
    """
    if x.dim() != 4 or not len(x) or min(x.shape[-2:]) < 4:
        raise InputError(f"expected pictures N×C×H×W with sides of at least 4, received {tuple(x.shape)}.")
    height, width = x.shape[-2:]
    side = min(height, width)
    window = torch.outer(*(torch.hann_window(n, dtype=torch.float64) for n in (height, width)))
    power = torch.zeros(height, width, dtype=torch.float64)
    for part in torch.split(x, _CHUNK):
        luma = _luma(part.detach().double().cpu())
        centred = luma - ((luma * window).sum((-2, -1)) / window.sum())[:, None, None]
        power += torch.fft.fft2(centred * window).abs().square().sum(0)
    power /= len(x) * window.square().sum()
    frequency = torch.hypot(*torch.meshgrid(_cycles(height), _cycles(width), indexing="ij"))
    bins = (frequency * side).round().long().clamp_max(side // 2 + 1).flatten()
    sums, counts = (
        torch.zeros(side // 2 + 2, dtype=torch.float64).index_add(0, bins, values)
        for values in (power.flatten(), torch.ones(height * width, dtype=torch.float64))
    )
    return (sums / counts.clamp_min(1))[1 : side // 2 + 1]


def spectrum_error(a: Tensor, b: Tensor) -> float:
    """Mean over frequencies of |ln P_a − ln P_b|, the spectra of two sets by `power_spectrum`; 0 is equal sharpness.

    Powers under that of rounding to 8 bits count as that, since such detail is in no file.

    Raises:
        InputError: as of `power_spectrum`, or shapes of pictures that differ.
    """
    _check(a, b)
    return float(_log_ratio(power_spectrum(a), power_spectrum(b)).abs().mean())


def sharpness(a: Tensor, b: Tensor) -> float:
    """Mean of ln(P_a/P_b) over the upper half of the frequencies: below 0 is blur, above 0 is noise or artefacts.

    Raises:
        InputError: as of `spectrum_error`.
    """
    _check(a, b)
    return float(_upper(_log_ratio(power_spectrum(a), power_spectrum(b))).mean())


def gradient_correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of the differences of neighbours, along both axes in one, of a picture; the mean over pairs.

    In [−1, 1]; 0 where one of the two is flat and the other is not, 1 where both are.

    Raises:
        InputError: shapes that differ, or no pictures.
    """

    def of(a: Tensor, b: Tensor) -> Tensor:
        first, second = _gradients(a), _gradients(b)
        norms = first.norm(dim=1), second.norm(dim=1)
        both_flat = (norms[0] == 0) & (norms[1] == 0)
        ratio = (first * second).sum(1) / (norms[0] * norms[1]).clamp_min(1e-300)
        return torch.where(both_flat, 1.0, ratio)

    return float(_in_parts(of, a, b).mean())


def sheet(originals: Tensor, reconstructions: Tensor, gain: float = 4.0) -> Tensor:
    """Rows of original, reconstruction, and their difference times `gain` about grey: 3N×C×H×W in [−1, 1].

    Of clips N×C×T×H×W: for each a row of the first, the middle and the last frame, one of what was made of these, and
    one of the differences, 9N×C×H×W. For `grid(to_uint8(sheet(…)), columns=3)` of `rectiflow.data.pictures`.

    Raises:
        InputError: shapes that differ, or no pictures.
    """
    _check(fold(reconstructions), fold(originals))
    difference = (reconstructions - originals) * gain
    rows = torch.stack([originals, reconstructions, difference], dim=1).clamp(-1, 1)
    if originals.dim() == 5:
        last = originals.shape[2] - 1
        rows = rows[:, :, :, [0, last // 2, last]].transpose(2, 3)  # N×3×3×C×H×W
    return rows.flatten(0, -4)


def _luma(x: Tensor) -> Tensor:
    """N×C×H×W to N×H×W."""
    return torch.einsum("c,nchw->nhw", x.new_tensor(_LUMA), x) if x.shape[1] == 3 else x.mean(1)


def _cycles(side: int) -> Tensor:
    """Frequencies of a DFT in cycles per pixel."""
    return torch.fft.fftfreq(side, dtype=torch.float64)


def _log_ratio(a: Tensor, b: Tensor) -> Tensor:
    return a.clamp_min(_ROUNDING).log() - b.clamp_min(_ROUNDING).log()


def _upper(by_frequency: Tensor) -> Tensor:
    return by_frequency[len(by_frequency) // 2 :]


def _gradients(x: Tensor) -> Tensor:
    """Differences of neighbours along both axes, N×…, less their mean."""
    x = x.double()
    found = torch.cat([x.diff(dim=-1).flatten(1), x.diff(dim=-2).flatten(1)], dim=1)
    return found - found.mean(1, keepdim=True)


def _in_parts(figure: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """A figure of each pair, a few pictures at a time."""
    _check(a, b)
    with torch.no_grad():
        return torch.cat([figure(*pair) for pair in _pairs(a, b)])


def _pairs(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(a, _CHUNK), torch.split(b, _CHUNK), strict=True)


def _check(a: Tensor, b: Tensor) -> None:
    if a.dim() != 4 or a.shape != b.shape or not len(a):
        raise InputError(
            f"expected reconstructions and originals N×C×H×W of one shape; received {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    # Rounded to 8 bits, a NaN would pass for a colour.
    for name, x in (("reconstructions", a), ("originals", b)):
        if not x.isfinite().all():
            raise InputError(f"the {name} hold a number that is not finite; there is nothing to compare.")

"""LPIPS against its definition written out, by small random weights; what is read, and what is refused."""

import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rectiflow.autoencoders.perceptual import LPIPS, read_lpips
from rectiflow.base.errors import InputError

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
SMALL = (4, 6, 8, 8, 8)


def weights(widths: tuple[int, ...] = SMALL, seed: int = 0) -> dict[str, torch.Tensor]:
    """By the names of the files that there are."""
    draws, found, before = torch.Generator().manual_seed(seed), {}, 3
    for stage, (numbers, width) in enumerate(zip(STAGES, widths, strict=True)):
        for number in numbers:
            found[f"features.{number}.weight"] = torch.randn(width, before, 3, 3, generator=draws) / before**0.5 / 2
            found[f"features.{number}.bias"] = torch.randn(width, generator=draws) / 10
            before = width
        found[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=draws)
    return found


def pictures(channels: int = 3, side: int = 32, seed: int = 0, count: int = 2) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def written_out(tensors: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Convolutions as products of patches, pools as maxima of 2×2, vectors divided by their length; in float64."""

    def stages(x: torch.Tensor) -> list[torch.Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        h, found = ((x - shift[:, None, None]) / scale[:, None, None]).double(), []
        for stage, numbers in enumerate(STAGES):
            if stage:
                height, width = (side // 2 for side in h.shape[-2:])
                h = h[..., : 2 * height, : 2 * width].unflatten(-2, (height, 2)).unflatten(-1, (width, 2)).amax((3, 5))
            for number in numbers:
                kernel, bias = (tensors[f"features.{number}.{kind}"].double() for kind in ("weight", "bias"))
                product = kernel.flatten(1) @ nn.functional.unfold(h, 3, padding=1) + bias[:, None]
                h = product.reshape(len(h), -1, *h.shape[-2:]).relu()
            found.append(h)
        return found

    total = torch.zeros(len(a), dtype=torch.float64)
    for stage, (f, g) in enumerate(zip(stages(a), stages(b), strict=True)):
        f, g = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-300) for x in (f, g))
        weight = tensors[f"lin{stage}.model.1.weight"].double()
        total += (weight * (f - g) ** 2).sum(1).mean((1, 2))
    return total


@pytest.fixture
def folder(tmp_path) -> Path:
    save_file(weights(), tmp_path / "weights.safetensors")
    return tmp_path


@pytest.mark.parametrize("side", [16, 32, 37])
def test_it_is_its_definition(folder, side):
    a, b = pictures(side=side), pictures(side=side, seed=1)
    found = read_lpips(folder)(a, b)
    assert found == pytest.approx(written_out(weights(), a, b), rel=1e-4)
    assert (found > 1e-3).all()


def test_grey_is_repeated_and_equal_pictures_are_at_no_distance(folder):
    lpips, a, b = read_lpips(folder), pictures(1), pictures(1, seed=1)
    assert lpips(a, b) == pytest.approx(lpips(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)), rel=1e-6)
    assert lpips(a, a).tolist() == [0.0, 0.0]
    assert lpips(a, b) == pytest.approx(lpips(b, a), rel=1e-6)
    assert lpips(a, b) == pytest.approx(torch.cat([lpips(a[:1], b[:1]), lpips(a[1:], b[1:])]), rel=1e-5)


def test_it_is_frozen_and_gradients_flow_to_the_pictures(folder):
    """A term under no_grad would be a constant, and train nothing: the decoder's weights must feel it."""
    lpips, b = read_lpips(folder), pictures()
    decoder = nn.Conv2d(3, 3, 1)
    made = decoder(pictures(seed=1))
    made.retain_grad()
    loss = lpips(made, b).mean()
    loss.backward()
    assert made.grad.abs().sum() > 0
    assert decoder.weight.grad.abs().sum() > 0
    assert all(not weight.requires_grad and weight.grad is None for weight in lpips.parameters())
    with torch.no_grad():
        nearer = made - 0.05 * made.grad / made.grad.norm()
        assert float(lpips(nearer, b).mean()) < float(loss.detach()) - 1e-6


@pytest.mark.parametrize("place", [0, 1])
def test_gradients_are_those_of_finite_differences(folder, place):
    lpips = read_lpips(folder).double()
    pair = [pictures(1, 16, seed, count=1).double() for seed in (0, 1)]
    pair[place].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: lpips(*pair[:place], x, *pair[place + 1 :]), (pair[place],), fast_mode=True
    )


def test_where_all_features_are_zero_gradients_are_finite():
    """Features die wherever every relu is off; the root of 0 has no slope there."""
    dead = {name: -tensor.abs() if name.endswith("bias") else tensor * 0 for name, tensor in weights().items()}
    lpips = LPIPS(SMALL)
    lpips.features.load_state_dict({k.removeprefix("features."): v for k, v in dead.items() if k.startswith("feat")})
    x = pictures().requires_grad_()
    found = lpips(x, pictures(seed=1))
    found.sum().backward()
    assert found.tolist() == [0.0, 0.0]
    assert x.grad.isfinite().all()


def test_autocast_moves_the_convolutions_only(folder):
    lpips, a, b = read_lpips(folder), pictures(), pictures(seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = lpips(a, b)
        assert lpips(a, a).tolist() == [0.0, 0.0]
    assert found.dtype == torch.float32
    assert found == pytest.approx(lpips(a, b), rel=0.05)
    assert not torch.equal(found, lpips(a, b))


# Reading.


def test_one_file_or_several_and_other_names_are_the_same(folder, tmp_path):
    a, b, tensors = pictures(), pictures(seed=1), weights()
    expected = read_lpips(folder)(a, b)
    several = tmp_path / "several"
    several.mkdir()
    features = {name: tensor for name, tensor in tensors.items() if name.startswith("features")}
    save_file(features | {"classifier.0.weight": torch.zeros(2, 2)}, several / "vgg16.safetensors")
    save_file({name: tensors[name] for name in tensors.keys() - features.keys()}, several / "lin.safetensors")
    assert torch.equal(read_lpips(several)(a, b), expected)

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    stage = {number: index + 1 for index, numbers in enumerate(STAGES) for number in numbers}
    renamed = {
        re.sub(r"features\.(\d+)", lambda m: f"net.slice{stage[int(m[1])]}.{m[1]}", name): tensor.half()
        for name, tensor in tensors.items()
    }
    save_file(renamed, theirs / "lpips.safetensors")
    assert read_lpips(str(theirs))(a, b) == pytest.approx(expected, rel=1e-2)


def test_the_published_linear_layers_fit_vgg16_of_full_width(tmp_path):
    """torchmetrics ships them, 64 … 512 weights each and none negative; the features here are random."""
    metrics = pytest.importorskip("torchmetrics")
    shipped = Path(metrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
    if not shipped.exists():
        pytest.skip("this torchmetrics ships no linear layers")
    lin = torch.load(shipped, "cpu", weights_only=True)
    widths = (64, 128, 256, 512, 512)
    tensors = weights(widths) | {name: tensor.contiguous() for name, tensor in lin.items()}
    save_file(tensors, tmp_path / "vgg16.safetensors")
    lpips = read_lpips(tmp_path)
    assert [weight.numel() for weight in lpips.linear] == list(widths)
    assert torch.equal(lpips.linear[2], lin["lin2.model.1.weight"].flatten())
    assert sum(weight.numel() for weight in lpips.features.parameters()) == 14_714_688  # VGG16, no classifier
    a, b = pictures(side=16), pictures(side=16, seed=1)
    assert lpips(a, b) == pytest.approx(written_out(tensors, a, b), rel=1e-3)


def test_missing_tensors_are_named(folder):
    tensors = weights()
    del tensors["lin3.model.1.weight"], tensors["features.12.bias"]
    save_file(tensors, folder / "weights.safetensors")
    with pytest.raises(InputError, match=r"lack features\.12\.bias, lin3\.model\.1\.weight; LPIPS needs"):
        read_lpips(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"lack features\.0\.weight, features\.0\.bias, .* and 27 more"):
        read_lpips(folder)


def test_other_networks_are_refused(folder, tmp_path):
    tensors = weights() | {"features.5.weight": torch.zeros(6, 5, 3, 3)}
    save_file(tensors, folder / "weights.safetensors")
    with pytest.raises(InputError, match=r"features\.5\.weight is \(6, 5, 3, 3\), expected \(6, 4, 3, 3\)"):
        read_lpips(folder)


def test_two_sets_of_weights_are_refused(folder):
    save_file(weights(), folder / "copy.safetensors")
    read_lpips(folder)
    save_file({"features.0.bias": torch.zeros(4)}, folder / "other.safetensors")
    with pytest.raises(InputError, match=r"two different tensors for features\.0\.bias"):
        read_lpips(folder)


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path):
    torch.save(weights(), tmp_path / "vgg16.pth")
    way = r'save_file\(torch\.load\("vgg16\.pth", "cpu", weights_only=True\), "vgg16\.safetensors"\)'
    for source in (tmp_path, tmp_path / "vgg16.pth"):
        with pytest.raises(InputError, match=way):
            read_lpips(source)
    save_file(torch.load(tmp_path / "vgg16.pth", weights_only=True), tmp_path / "vgg16.safetensors")
    read_lpips(tmp_path)


def test_a_broken_file_and_no_folder_are_refused(folder, tmp_path):
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_lpips(folder)
    with pytest.raises(InputError, match=r"expected a folder with \*\.safetensors or ORG/NAME"):
        read_lpips(tmp_path / "nowhere")


def test_a_hub_name_fetches_safetensors_only(folder, monkeypatch):
    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        assert allow_patterns == ["*.safetensors"]
        if repo_id != "someone/lpips":
            raise FileNotFoundError(f"404 {repo_id}\nmore")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    a, b = pictures(), pictures(seed=1)
    assert torch.equal(read_lpips("someone/lpips")(a, b), read_lpips(folder)(a, b))
    with pytest.raises(InputError, match=r"neither here nor on the hub \(FileNotFoundError: 404 no/where\)"):
        read_lpips("no/where")


def test_pictures_it_cannot_compare_are_refused(folder):
    lpips = read_lpips(folder)
    for a, b in ((pictures(2), pictures(2)), (pictures(), pictures(1)), (pictures(side=15), pictures(side=15))):
        with pytest.raises(InputError, match="of 1 or 3 channels and sides of at least 16"):
            lpips(a, b)
    with pytest.raises(InputError, match="five stages, received 2 widths"):
        LPIPS((4, 4))

import pytest
import torch
import torch.nn.functional as F

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig
from rectiflow.networks.layers import Grid, attend, axial_rotation, normalise, rotate
from rectiflow.networks.patches import to_image, to_patches
from rectiflow.networks.presets import PRESETS

SMALL = {"channels": 2, "classes": 5, "patch": 2, "width": 16, "depth": 2, "heads": 2}


def random_dit(**changes):
    """A small transformer with every weight random, so that nothing is hidden by zero-initialised gates."""
    torch.manual_seed(0)
    network = build(DiTConfig(**{**SMALL, **changes}))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def inputs(count=3, height=4, width=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 2, height, width, generator=generator)
    return x, torch.rand(count, generator=generator), Condition(torch.arange(count))


@pytest.mark.parametrize("modulation", ["block", "shared"])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (4, 10), (12, 2)])
def test_any_size_that_the_patch_divides(modulation, height, width):
    x, t, condition = inputs(3, height, width)
    out = random_dit(modulation=modulation)(x, t, condition)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert out.std() > 0.01


@pytest.mark.parametrize(("size", "near"), [((5, 6), "4×6"), ((4, 7), "4×8"), ((1, 2), "2×2")])
def test_a_size_that_the_patch_does_not_divide(size, near):
    x, t, condition = inputs(3, *size)
    with pytest.raises(InputError, match=f"patch of 2 does not divide.*{near}"):
        random_dit()(x, t, condition)


def test_wrong_channels():
    _, t, condition = inputs()
    with pytest.raises(InputError, match="2 channels, received 3"):
        random_dit()(torch.zeros(3, 3, 4, 4), t, condition)


def test_a_fresh_network_gives_zero_and_learns():
    torch.manual_seed(0)
    network = build(DiTConfig(**SMALL))
    x, t, condition = inputs()
    out = network(x, t, condition)
    assert torch.equal(out, torch.zeros_like(x))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(4):  # the zero-initialised maps open one after another
        optimiser.zero_grad()
        ((network(x, t, condition) - x) ** 2).mean().backward()
        optimiser.step()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("modulation", ["block", "shared"])
def test_gradient_against_finite_differences(modulation):
    network = random_dit(modulation=modulation, depth=1).double()
    x, t, condition = inputs(1, 2, 4)
    x = x.double().requires_grad_()
    # Times enter as float32 sinusoids, so only the picture is differentiated.
    with torch.autocast("cpu", enabled=False):
        network.embedding.time.double()
        sinusoid = network.embedding.time.map[0].register_forward_pre_hook(lambda _, args: (args[0].double(),))
        assert torch.autograd.gradcheck(lambda x: network(x, t, condition), (x,), atol=1e-6)
    sinusoid.remove()


def test_samples_do_not_mix():
    network, (x, t, condition) = random_dit(), inputs()
    together = network(x, t, condition)
    alone = network(x[1:2], t[1:2], condition.select(slice(1, 2)))
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_time_label_and_null_matter():
    network, (x, t, condition) = random_dit(), inputs()
    base = network(x, t, condition)
    assert not torch.allclose(base, network(x, t + 0.1, condition), atol=1e-3)
    assert not torch.allclose(base, network(x, t, Condition(condition.labels + 1)), atol=1e-3)
    assert not torch.allclose(base, network(x, t, condition.null()), atol=1e-3)
    assert torch.equal(network(x, t, condition.null()), network(x, t, None))


def test_attention_reaches_every_patch():
    network, (x, t, condition) = random_dit(), inputs(1)
    x = x.requires_grad_()
    network(x, t[:1], condition.select(slice(0, 1)))[0, 0, 0, 0].backward()
    assert (x.grad.abs() > 0).all()


def test_patches_come_back_where_they_were():
    network, (x, _, _) = random_dit(), inputs()
    assert torch.equal(to_image(to_patches(x, network.config.patch), x.shape, network.config.patch), x)


def test_rotary_logits_depend_on_the_offset_alone():
    cos, sin = axial_rotation(Grid(1, 5, 6), 16, torch.device("cpu"))
    query, key = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    logits = rotate(query.expand(30, 16), cos, sin) @ rotate(key.expand(30, 16), cos, sin).T
    logits = logits.reshape(5, 6, 5, 6)
    assert torch.allclose(logits[:-1, :, :-1], logits[1:, :, 1:], atol=1e-4)  # one row down
    assert torch.allclose(logits[:, :-1, :, :-1], logits[:, 1:, :, 1:], atol=1e-4)  # one column right
    assert logits.std() > 0.1


def test_normalise_has_unit_root_mean_square():
    x = 7 * torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(normalise(x).square().mean(-1), torch.ones(4), atol=1e-5)
    assert torch.allclose(normalise(x), torch.nn.functional.rms_norm(x, (32,)), atol=1e-5)
    assert torch.equal(normalise(torch.zeros(2, 8)), torch.zeros(2, 8))
    low = normalise(x.bfloat16())  # its statistics keep float32
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), normalise(x), atol=0.02)


@pytest.mark.parametrize(("name", "millions"), [("S/2", 33), ("B/2", 130), ("L/2", 458), ("XL/2", 675)])
def test_presets_have_the_published_sizes(name, millions):
    """Peebles & Xie 2023, table 1 (latents of 4 channels, 1000 classes)."""
    with torch.device("meta"):
        network = build(DiTConfig(channels=4, classes=1000, **PRESETS["dit"][name]))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_shared_modulation_saves_a_third():
    with torch.device("meta"):
        sizes = {
            m: sum(
                p.numel()
                for p in build(DiTConfig(channels=4, classes=0, modulation=m, **PRESETS["dit"]["B/2"])).parameters()
            )
            for m in ("block", "shared")
        }
    assert sizes["shared"] / sizes["block"] == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("modulation", ["block", "shared"])
@pytest.mark.parametrize("classes", [0, 5])
def test_one_time_for_the_batch_equals_a_time_for_each(modulation, classes):
    network, (x, _, condition) = random_dit(modulation=modulation, classes=classes), inputs()
    one = torch.tensor(0.3).expand(3)
    assert torch.allclose(network(x, one, condition), network(x, one.clone(), condition), atol=1e-5)
    assert torch.allclose(network(x, one), network(x, one.clone()), atol=1e-5)


def test_attention_keeps_no_pairs_of_many_tokens_for_the_backward_pass():
    def kept(batch, tokens):
        sizes = []
        given = [torch.zeros(batch, 2, tokens, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            attend(*given)
        return max(sizes)

    assert kept(2, 64) == 2 * 2 * 64**2
    assert kept(2, 513) <= 2 * 2 * 513 * 4
    assert kept(130, 512) <= 130 * 2 * 512 * 4


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [16, 200, 600])
def test_attention_in_bfloat16_is_torchs_with_its_gradients(tokens, masked):
    """Few tokens go another way in training, under autocast too; it must be the same map, to bfloat16's rounding."""
    query, key, value = (Key(0, name).normal(torch.arange(2), (3, tokens, 8)) for name in "qkv")
    mask = torch.arange(tokens) < torch.tensor([[tokens], [tokens // 2]]) if masked else None
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        given = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = attend(*given, mask)
        assert out.dtype == dtype
        (out.double() * query.double()).sum().backward()
        results.append([out.detach().double(), *(x.grad.double() for x in given)])
    exactly = F.scaled_dot_product_attention(
        *(x.double() for x in (query, key, value)), None if mask is None else mask[:, None, None]
    )
    assert torch.equal(results[0][0], exactly)
    for exact, found in zip(*results, strict=True):
        assert float((exact - found).abs().max()) < 0.03 * float(exact.abs().max())

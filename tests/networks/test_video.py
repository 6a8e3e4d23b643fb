"""The transformer of clips: places, one frame, full and factorised attention, captions, frames given."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from rectiflow.base.condition import Condition, Text
from rectiflow.base.errors import InputError
from rectiflow.networks import reach as reaches
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig, Inputs, StatesInput, TokensInput, VideoDiTConfig, fitted
from rectiflow.networks.layers import Grid, grid_embedding, rotate, space_time_rotation
from rectiflow.networks.patches import to_image, to_patches
from rectiflow.networks.presets import PRESETS
from rectiflow.networks.reach import Reach, joint_attention
from rectiflow.training.optimiser import hidden_matrices

CPU = torch.device("cpu")
TEXTS = (TokensInput(vocabulary=50, width=32, depth=1), StatesInput(features=6, pooled=5))
LENGTHS = (6, 3, 0)
INPUTS = {"classes": Inputs(3, 5, (), 3), "captions": Inputs(3, 0, TEXTS, 3)}
ATTENTION = ("full", "factorised")


def network_of(told, attention="full", **changes):
    torch.manual_seed(0)
    config = VideoDiTConfig(**{"patch": 2, "width": 32, "depth": 3, "heads": 2, "attention": attention, **changes})
    network = build(fitted(config, INPUTS[told]))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # gates and outputs start at zero
    return network.eval().requires_grad_(False)


def batch_of(told, frames=3, height=4, width=6):
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, frames, height, width, generator=draws)
    image = torch.randn(3, 4, frames, height, width, generator=draws)
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    ids = Text(torch.randint(0, 50, (3, 6), generator=draws), mask)
    states = Text(torch.randn(3, 6, 6, generator=draws), mask, torch.randn(3, 5, generator=draws))
    labels = torch.tensor([0, 3, -1]) if told == "classes" else torch.full((3,), -1)
    condition = Condition(labels, (ids, states) if told == "captions" else (), image)
    return x, torch.tensor([0.1, 0.5, 0.8]), condition


def alone(condition, i):
    """One sample with its captions cut to what they have."""
    long, row = max(1, LENGTHS[i]), slice(i, i + 1)
    texts = tuple(
        Text(text.values[row, :long], text.mask[row, :long], None if text.pooled is None else text.pooled[row])
        for text in condition.texts
    )
    return Condition(condition.labels[row], texts, condition.image[row])


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("features", "parts"), [(32, (12, 10, 10)), (128, (44, 42, 42)), (8, (4, 2, 2))])
def test_a_head_is_split_in_pairs_among_time_row_and_column(features, parts):
    """c − 2⌊c/3⌋, ⌊c/3⌋ and ⌊c/3⌋, each rounded to whole pairs: only that many change along an axis."""
    _, sin = space_time_rotation(Grid(3, 4, 5), features, CPU)
    steps = sin.reshape(3, 4, 5, features)
    moved = (steps[1, 0, 0], steps[0, 1, 0], steps[0, 0, 1])
    assert tuple(int((step != 0).sum()) for step in moved) == parts


def test_logits_depend_on_the_offset_along_each_axis_alone():
    shape = (4, 5, 6)
    turn = space_time_rotation(Grid(*shape), 32, CPU)
    query, key = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    logits = (rotate(query.expand(120, 32), *turn) @ rotate(key.expand(120, 32), *turn).T).reshape(*shape, *shape)
    for axis in range(3):
        first = logits.narrow(axis, 0, shape[axis] - 1).narrow(axis + 3, 0, shape[axis] - 1)
        moved = logits.narrow(axis, 1, shape[axis] - 1).narrow(axis + 3, 1, shape[axis] - 1)
        torch.testing.assert_close(first, moved, atol=1e-4, rtol=0)
        assert bool((logits.std(axis + 3) > 0.1).all())  # and it does matter


def test_frames_are_embedded_apart_and_the_first_as_a_picture():
    clip = grid_embedding(Grid(3, 2, 2), 16, CPU).reshape(3, 4, 16)
    assert torch.equal(clip[0], grid_embedding(Grid(1, 2, 2), 16, CPU))
    assert bool(((clip[1:] - clip[:-1]).abs().amax(-1) > 0.1).all())


def test_patches_of_clips_come_back_where_they_were():
    x, _, _ = batch_of("classes")
    assert torch.equal(to_image(to_patches(x, 2), x.shape, 2), x)
    frames = torch.cat([to_patches(frame, 2) for frame in x.unbind(2)], dim=1)
    assert torch.equal(to_patches(x, 2), frames)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("told", INPUTS)
def test_a_picture_is_a_clip_of_one_frame(told, attention):
    network, (x, t, condition) = network_of(told, attention), batch_of(told, frames=1)
    flat = Condition(condition.labels, condition.texts, condition.image[:, :, 0])
    clip = network(x, t, condition)
    assert clip.shape == x.shape
    assert torch.equal(network(x[:, :, 0], t, flat), clip[:, :, 0])


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 4)])
def test_any_length_and_size(attention, frames, height, width):
    network, (x, t, condition) = network_of("captions", attention), batch_of("captions", frames, height, width)
    out = network(x, t, condition)
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())
    assert out.std() > 0.01
    assert network.config.multiple == 2


@pytest.mark.parametrize("told", INPUTS)
def test_both_kinds_of_attention_have_the_same_weights(told):
    full, factorised = network_of(told), network_of(told, "factorised")
    shapes = [{name: value.shape for name, value in n.state_dict().items()} for n in (full, factorised)]
    assert shapes[0] == shapes[1]
    factorised.load_state_dict(full.state_dict())
    x, t, condition = batch_of(told)
    assert float((full(x, t, condition) - factorised(x, t, condition)).abs().max()) > 1e-3


@pytest.mark.parametrize("told", INPUTS)
@pytest.mark.parametrize(("frames", "height", "width", "number"), [(1, 4, 6, 0), (3, 2, 2, 1)])
def test_one_group_is_everything(told, frames, height, width, number):
    """Blocks within frames do the same for one frame, blocks within places for one place."""
    network, grid = network_of(told), Grid(frames, height // 2, width // 2)
    x, t, condition = batch_of(told, frames, height, width)
    inside = network.patch_in(to_patches(x, 2))
    c = network.shared(torch.nn.functional.silu(network.embedding(t, condition)))
    rest = (c, network.rotation(grid, 16, CPU))
    reach = Reach(grid, ("frame", "place")[number])
    block = network.blocks[number]
    if told == "classes":
        assert torch.equal(block(inside, *rest, None, reach), block(inside, *rest))
    else:
        words = network.words(condition, 3)
        plain = block(inside, words.tokens, *rest, words.mask)
        for found, expected in zip(block(inside, words.tokens, *rest, words.mask, reach), plain, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("few", [0, 128])
@pytest.mark.parametrize("axis", ["frame", "place"])
def test_groups_are_full_attention_under_a_mask(axis, few, monkeypatch):
    """By either way of computing it, a token attends to its group and the caption, and a caption to everything."""
    monkeypatch.setattr(reaches, "_FEW", few)
    grid, heads, features, length = Grid(3, 2, 2), 2, 8, 5
    draws = torch.Generator().manual_seed(3)
    of_x = tuple(torch.randn(2, heads, 12, features, generator=draws).double() for _ in range(3))
    of_y = tuple(torch.randn(2, heads, length, features, generator=draws).double() for _ in range(3))
    mask = torch.arange(length) < torch.tensor([[4], [1]])
    token = torch.arange(12)
    group = token // 4 if axis == "frame" else token % 4
    seen = (group[:, None] == group).expand(2, 12, 12)
    seen = torch.cat([seen, mask[:, None].expand(-1, 12, -1)], -1)
    seen = torch.cat([seen, torch.cat([mask.new_ones(2, length, 12), mask[:, None].expand(-1, length, -1)], -1)], 1)
    query, key, value = (torch.cat(pair, -2) for pair in zip(of_x, of_y, strict=True))
    scores = (query @ key.transpose(-1, -2) / features**0.5).masked_fill(~seen[:, None], -torch.inf)
    expected = scores.softmax(-1) @ value
    drawn, heard = joint_attention(of_x, of_y, mask, Reach(grid, axis))
    torch.testing.assert_close(drawn, expected[:, :, :12])
    torch.testing.assert_close(heard, expected[:, :, 12:])
    drawn, heard = joint_attention(of_x, (of_y[0][:, :, :0], *of_y[1:]), mask, Reach(grid, axis))
    torch.testing.assert_close(drawn, expected[:, :, :12])
    assert heard.shape[2] == 0


@pytest.mark.parametrize(
    ("attention", "depth", "reached"), [("full", 1, 24), ("factorised", 1, 8), ("factorised", 2, 24)]
)
def test_how_far_attention_reaches(attention, depth, reached):
    """One block within frames reaches a frame of 2×4 patches, with one along time all of three frames."""
    network = network_of("classes", attention, depth=depth)
    x, t, _ = batch_of("classes", 3, 4, 8)
    x = x[:1].requires_grad_()
    network(x, t[:1])[0, 0, 1, 0, 0].backward()
    assert int((to_patches(x.grad, 2)[0].abs().amax(-1) > 0).sum()) == reached


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("told", INPUTS)
def test_a_padded_batch_equals_single_calls(told, attention):
    network, (x, t, condition) = network_of(told, attention), batch_of(told)
    together = network(x, t, condition)
    for i in range(3):
        close(network(x[i : i + 1], t[i : i + 1], alone(condition, i)), together[i : i + 1])


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("told", INPUTS)
def test_null_is_no_condition_and_each_part_matters(told, attention):
    network, (x, t, condition) = network_of(told, attention), batch_of(told)
    close(network(x, t, condition.null()), network(x, t, None))
    plain, every = network(x, t, condition), torch.ones(3, dtype=torch.bool)
    without = [condition.drop_image(every), condition.null()]
    for changed in [*without, *(condition.drop_text(i, every) for i in range(len(condition.texts)))]:
        assert float((network(x, t, changed) - plain)[0].abs().max()) > 1e-4


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("told", INPUTS)
def test_every_parameter_is_trained_and_muon_finds_the_blocks(told, attention):
    network, (x, t, condition) = network_of(told, attention).requires_grad_(True), batch_of(told)
    network(x, t, condition).square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert len(hidden_matrices(network)) >= 4 * 3


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("told", INPUTS)
def test_directional_derivatives_against_differences(told, attention):
    network, (x, t, condition) = network_of(told, attention).double(), batch_of(told)
    network.embedding.time.float()
    network.embedding.time.register_forward_hook(lambda module, args, out: out.double())
    texts = tuple(
        text.map(lambda value: value.double() if value.is_floating_point() else value) for text in condition.texts
    )
    for reader in network.words.readers if network.words else ():
        reader.register_forward_hook(lambda module, args, out: out.double())
        reader.float()
    condition = Condition(condition.labels, texts, condition.image.double())
    x, way = x.double(), torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    with sdpa_kernel(SDPBackend.MATH):
        _, found = torch.func.jvp(lambda x: network(x, t, condition), (x,), (way,))
        difference = (network(x + 1e-5 * way, t, condition) - network(x - 1e-5 * way, t, condition)) / 2e-5
    torch.testing.assert_close(found, difference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("gradients", [False, True])
def test_bfloat16_is_near(attention, gradients):
    network, (x, t, condition) = network_of("captions", attention).requires_grad_(gradients), batch_of("captions")
    precise = network(x, t, condition)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x, t, condition)
    assert float((low.float() - precise).detach().abs().max()) < 0.1 * float(precise.detach().abs().max())


def test_a_fresh_network_gives_zero():
    torch.manual_seed(0)
    network = build(fitted(VideoDiTConfig(width=32, depth=2, heads=2), INPUTS["captions"]))
    x, t, condition = batch_of("captions")
    assert torch.equal(network(x, t, condition), torch.zeros_like(x))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 3, 2, 5, 6), "patch of 2 does not divide 5×6; the nearest size is 4×6"),
        ((3, 3, 0, 4, 6), "does not divide"),
        ((3, 1, 2, 4, 6), "takes 3 channels, received 1"),
        ((3, 3, 2, 4, 6), "what is given has 18 patches, expected 12"),
    ],
)
def test_what_does_not_fit(shape, words):
    network, (_, t, condition) = network_of("classes"), batch_of("classes")
    with pytest.raises(InputError, match=words) as error:
        network(torch.zeros(shape), t, condition)
    assert "\n" not in str(error.value)


def test_clips_are_refused_by_networks_of_pictures():
    network = build(DiTConfig(channels=3, classes=0, width=16, depth=1, heads=2))
    assert network(torch.zeros(1, 3, 1, 4, 4), torch.zeros(1)).shape == (1, 3, 1, 4, 4)
    with pytest.raises(InputError, match=r"received clips of 2 frames; use network\.kind=video"):
        network(torch.zeros(1, 3, 2, 4, 4), torch.zeros(1))


def test_heads_too_narrow_to_turn_by_three_axes():
    with pytest.raises(InputError, match="use 4 heads or fewer"):
        VideoDiTConfig.parse({"width": 32, "heads": 8}, "here")


@pytest.mark.parametrize("name", ["tiny", "S", "B", "L", "2B"])
def test_presets_are_those_of_two_streams(name):
    assert PRESETS["video"][f"video-{name}/2"] == PRESETS["mmdit"][f"mm-{name}/2"]


def test_conditions_of_clips_are_dropped_chosen_and_joined():
    _, _, condition = batch_of("captions")
    some = torch.tensor([True, False, False])
    assert condition.drop_image(some).image.flatten(1).any(1).tolist() == [False, True, True]
    joined = Condition.concatenate([condition.select(some), condition.select(~some)])
    assert torch.equal(joined.image, condition.image)

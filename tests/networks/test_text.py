import pytest
import torch

from rectiflow.base.condition import Condition, Text
from rectiflow.base.errors import InputError
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig, Inputs, MMDiTConfig, StatesInput, TokensInput, UNetConfig, fitted
from rectiflow.networks.layers import attend
from rectiflow.training.optimiser import hidden_matrices

TEXTS = (TokensInput(vocabulary=50, width=32, depth=2), StatesInput(features=6, pooled=5))
LENGTHS, STATES = (15, 7, 0), (9, 3, 0)
SMALL = {
    "dit": DiTConfig(patch=4, width=32, depth=2, heads=2),
    "mmdit": MMDiTConfig(patch=4, width=32, depth=3, heads=2),
    "mmdit-block": MMDiTConfig(patch=4, width=32, depth=3, heads=2, modulation="block"),
    "unet": UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(2,), heads=2),
}


def network_of(name, picture=3):
    torch.manual_seed(0)
    network = build(fitted(SMALL[name], Inputs(3, 0, TEXTS, picture)))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # gates and outputs start at zero
    return network.eval().requires_grad_(False)


def mask(lengths, longest):
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(1)
    ids = Text(torch.randint(0, 50, (3, 15), generator=draws), mask(LENGTHS, 15))
    states = Text(torch.randn(3, 9, 6, generator=draws), mask(STATES, 9), torch.randn(3, 5, generator=draws))
    condition = Condition(torch.full((3,), -1), (ids, states), torch.randn(3, 4, 16, 16, generator=draws))
    return torch.randn(3, 3, 16, 16, generator=draws), torch.rand(3, generator=draws), condition


def alone(condition, i):
    """One sample with its captions cut to what they have."""
    ids, states = condition.texts
    texts = (
        Text(ids.values[i : i + 1, : max(1, LENGTHS[i])], ids.mask[i : i + 1, : max(1, LENGTHS[i])]),
        Text(
            states.values[i : i + 1, : max(1, STATES[i])],
            states.mask[i : i + 1, : max(1, STATES[i])],
            states.pooled[i : i + 1],
        ),
    )
    return Condition(condition.labels[i : i + 1], texts, condition.image[i : i + 1])


@pytest.mark.parametrize("name", SMALL)
def test_a_padded_batch_equals_single_calls(name, batch):
    network, (x, t, condition) = network_of(name), batch
    together = network(x, t, condition)
    for i in range(3):
        torch.testing.assert_close(
            network(x[i : i + 1], t[i : i + 1], alone(condition, i)), together[i : i + 1], atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize("name", SMALL)
def test_what_lies_under_the_mask_is_never_read(name, batch):
    network, (x, t, condition) = network_of(name), batch
    ids, states = condition.texts
    other = Text((ids.values + 7) % 50, ids.mask), Text(states.values + 3, states.mask, states.pooled)
    texts = (
        Text(torch.where(ids.mask, ids.values, other[0].values), ids.mask),
        Text(torch.where(states.mask[..., None], states.values, other[1].values), states.mask, states.pooled),
    )
    assert torch.equal(network(x, t, condition), network(x, t, Condition(condition.labels, texts, condition.image)))


@pytest.mark.parametrize("name", SMALL)
def test_the_null_condition_is_no_condition(name, batch):
    network, (x, t, condition) = network_of(name), batch
    torch.testing.assert_close(network(x, t, condition.null()), network(x, t, None), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_captions_pictures_and_the_order_of_words_matter(name, batch):
    network, (x, t, condition) = network_of(name), batch
    plain = network(x, t, condition)
    ids, states = condition.texts
    swapped = Text(ids.values[:, [1, 0, *range(2, 15)]], ids.mask)
    for changed in (
        condition.drop_text(0, torch.ones(3, dtype=torch.bool)),
        condition.drop_text(1, torch.ones(3, dtype=torch.bool)),
        condition.drop_image(torch.ones(3, dtype=torch.bool)),
        Condition(condition.labels, (swapped, states), condition.image),
    ):
        assert (network(x, t, changed) - plain)[0].abs().max() > 1e-4


@pytest.mark.parametrize("name", ["mmdit", "mmdit-block", "dit"])
def test_every_parameter_is_trained(name, batch):
    network, (x, t, condition) = network_of(name).requires_grad_(True), batch
    network(x, t, condition).square().sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


def test_muon_moves_the_matrices_of_the_text_too():
    network = network_of("mmdit").requires_grad_(True)
    moved = {id(weight) for weight in hidden_matrices(network)}
    assert id(network.words.readers[0].blocks[0].attention.qkv.weight) in moved
    assert id(network.blocks[0].text.attention.qkv.weight) in moved
    assert id(network.words.readers[0].rows.weight) not in moved


@pytest.mark.parametrize("gradients", [False, True])
def test_masked_attention_is_attention_to_the_rest(gradients):
    draws = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 3, 7, 8, generator=draws).bfloat16().requires_grad_(gradients) for _ in range(3))
    masked = attend(q, k, v, mask((4, 7), 7))
    short = attend(q[:1], k[:1, :, :4], v[:1, :, :4])
    torch.testing.assert_close(masked[:1], short, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(masked[1:], attend(q[1:], k[1:], v[1:]), atol=2e-2, rtol=2e-2)


def test_other_encoders_than_trained_with_are_refused(batch):
    network, (x, t, condition) = network_of("mmdit"), batch
    with pytest.raises(InputError, match="reads 2 encoders, received 1"):
        network(x, t, Condition(condition.labels, condition.texts[:1], condition.image))


def test_a_joint_transformer_without_captions_is_refused():
    with pytest.raises(InputError, match=r"use network\.kind=dit"):
        fitted(MMDiTConfig(), Inputs(3, 10))

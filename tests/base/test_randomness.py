import torch
from hypothesis import given
from hypothesis import strategies as st

from rectiflow.base.randomness import Key, philox

KNOWN = [  # Random123's published known answers for philox4x32-10
    ([0, 0, 0, 0], (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def test_known_answers():
    for counter, key, expected in KNOWN:
        words = philox([torch.tensor([c]) for c in counter], key)
        assert " ".join(f"{int(word):08x}" for word in words) == expected


@given(st.integers(1, 40), st.integers(0, 39), st.integers(1, 70))
def test_a_draw_does_not_depend_on_its_batch(count, which, width):
    which %= count
    together = Key(3, "noise", 5).normal(torch.arange(count), (width,))
    alone = Key(3, "noise", 5).normal(torch.tensor([which]), (width,))
    assert torch.equal(together[which], alone[0])


def test_seed_purpose_and_step_are_independent():
    index = torch.arange(20_000)
    draws = [key.normal(index) for key in (Key(0, "a"), Key(1, "a"), Key(0, "b"), Key(0, "a", 1))]
    correlation = torch.corrcoef(torch.stack(draws))
    assert (correlation - torch.eye(4)).abs().max() < 0.03


def test_normal_moments():
    z = Key(0, "noise").normal(torch.arange(4000), (50,)).double()
    assert abs(float(z.mean())) < 0.01
    assert abs(float(z.std()) - 1) < 0.01
    assert abs(float((z**4).mean()) - 3) < 0.05


def test_large_indices_differ():
    draws = Key(0, "noise").words(torch.tensor([1, 1 + 2**32]), 4)
    assert not torch.equal(draws[0], draws[1])


def test_uniform_is_open():
    u = Key(0, "u").uniform(torch.arange(50_000))
    assert 0 < float(u.min()) < 1e-3
    assert 1 - 1e-3 < float(u.max()) < 1


@given(st.integers(1, 300))
def test_permutation_has_each_once(count):
    assert sorted(Key(0, "order", 2).permutation(count).tolist()) == list(range(count))


def test_orders_of_two_epochs_differ():
    assert not torch.equal(Key(0, "order", 0).permutation(100), Key(0, "order", 1).permutation(100))

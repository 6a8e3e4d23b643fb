import torch
from hypothesis import given
from hypothesis import strategies as st

from rectiflow.data.order import batch_indices


@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 5))
def test_each_epoch_has_each_sample_once(count, batch, seed):
    epochs = 3
    steps = -(-count * epochs // batch)
    seen = torch.cat([batch_indices(step, batch, count, seed) for step in range(steps)])[: count * epochs]
    for epoch in seen.split(count):
        assert sorted(epoch.tolist()) == list(range(count))


def test_a_step_is_a_function_of_itself():
    later = batch_indices(7, 32, 100, 0)
    for step in range(7):
        batch_indices(step, 32, 100, 0)
    assert torch.equal(later, batch_indices(7, 32, 100, 0))


def test_epochs_and_seeds_differ_in_order():
    first, second, other = (batch_indices(s, 100, 100, seed) for s, seed in ((0, 0), (1, 0), (0, 1)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)

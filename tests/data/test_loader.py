import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectiflow.data.builtin import digit_scenes, digits
from rectiflow.data.config import DataConfig
from rectiflow.data.images import to_float
from rectiflow.data.loader import Loader
from rectiflow.data.order import batch_indices, bucket_indices


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


BUCKETS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(BUCKETS, st.integers(1, 16), st.integers(0, 5))
def test_buckets_have_their_share_and_each_sample_its_turn(counts, batch, seed):
    """Within a bucket all are taken n times before one is taken n + 1 times."""
    steps = -(-3 * sum(counts) // batch) + len(counts)
    taken = [[] for _ in counts]
    for step in range(steps):
        number, rows = bucket_indices(step, batch, counts, seed)
        assert len(rows) == batch
        taken[number].append(rows)
    for count, rows in zip(counts, taken, strict=True):
        seen = torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)
        times = torch.bincount(seen, minlength=count)
        assert len(times) == count
        assert int(times.max() - times.min()) <= 1


@settings(deadline=None, max_examples=50)
@given(BUCKETS, st.integers(1, 16), st.integers(0, 5), st.integers(1, 4))
def test_an_epoch_gives_each_bucket_its_share(counts, batch, seed, epochs):
    """|B·batches − e·n| < B after e epochs, where those end: Σ⌊(e·n + φ)/B⌋ steps, φ in [0, B)."""
    target, given_out, step = [epochs * count for count in counts], [0] * len(counts), 0
    while not all(abs(batch * had - asked) < batch for had, asked in zip(given_out, target, strict=True)):
        given_out[bucket_indices(step, batch, counts, seed)[0]] += 1
        step += 1
        assert step <= sum(target) / batch + len(counts)


def test_a_step_of_buckets_is_a_function_of_itself():
    counts, asked = [50, 7, 90], [40, 3, 17, 0, 200]
    forward = {step: bucket_indices(step, 8, counts, 1) for step in range(201)}
    for step in asked:
        number, rows = bucket_indices(step, 8, counts, 1)
        assert number == forward[step][0]
        assert torch.equal(rows, forward[step][1])


def test_one_bucket_is_the_order_without_any():
    assert torch.equal(bucket_indices(7, 32, [100], 0)[1], batch_indices(7, 32, 100, 0))


def test_captions_are_those_of_the_rows():
    data = digit_scenes().train
    batch = Loader(data, DataConfig(set="digit-scenes"), 16, 10, 0)(3)
    assert list(batch.captions) == data.captions(batch.index)
    assert torch.equal(batch.pixels, to_float(data.fetch(batch.index)))
    plain = Loader(digits().train, DataConfig(), 16, 10, 0)(3)
    assert plain.captions == ("",) * 16

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digit_scenes, digits
from rectiflow.data.config import DataConfig
from rectiflow.data.images import InMemory, to_float
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


def clips(count=12, frames=5, stills=None):
    """Clip i has the value i in frame 0 and 100 in the others."""
    pixels = torch.full((count, 1, frames, 2, 3), 100.0)
    pixels[:, :, 0] = torch.arange(count).reshape(-1, 1, 1, 1)
    held = InMemory(pixels, torch.arange(count))
    held.stills = stills
    return held


def test_steps_of_stills_have_the_share_asked_for_and_are_the_first_frames():
    """In 400 steps a share of 0.2 is 80 ± 8 (one standard deviation)."""
    loader = Loader(clips(), DataConfig(frames=5, stills=0.2), 4, 400, 0)
    batches = [loader(step) for step in range(400)]
    still = [batch for batch in batches if batch.pixels.shape[2] == 1]
    assert 50 < len(still) < 110
    for batch in still:
        assert torch.equal(batch.pixels[:, 0, 0, 0, 0].long(), batch.index)
    whole = Loader(clips(), DataConfig(frames=5, stills=0.0), 4, 400, 0)
    for step, batch in enumerate(batches):
        other = whole(step)
        assert torch.equal(batch.index, other.index)
        assert torch.equal(batch.pixels, other.pixels[:, :, : batch.pixels.shape[2]])
    assert torch.equal(loader(7).pixels, batches[7].pixels)


def test_a_set_of_clips_with_stills_gives_those():
    stills = clips(7, 1)
    loader = Loader(clips(stills=stills), DataConfig(frames=5, stills=1.0), 4, 10, 0)
    for step in range(10):
        batch = loader(step)
        assert batch.pixels.shape == (4, 1, 1, 2, 3)
        assert int(batch.index.max()) < 7
        assert torch.equal(batch.pixels[:, 0, 0, 0, 0].long(), batch.labels)


def test_pictures_have_no_steps_of_stills():
    config = DataConfig(stills=1.0)
    assert Loader(digits().train, config, 4, 10, 0)(3).pixels.shape == (4, 1, 8, 8)


def test_a_mirrored_clip_is_mirrored_in_all_frames():
    held = clips()
    held.pixels = torch.arange(3.0).expand(12, 1, 5, 2, 3)
    loader = Loader(held, DataConfig(frames=5, flip=True, stills=0.0), 32, 10, 0)
    rows = loader(0).pixels[:, 0, :, :, 0]
    assert all(len(clip.unique()) == 1 for clip in rows)
    assert rows[:, 0, 0].unique().tolist() == [0, 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": 16}, "nearest is 17"),
        ({"frames": 6}, "nearest is 5"),
        ({"frames": 0}, "frames"),
        ({"rate": 0}, "greater than 0"),
        ({"stills": 1.5}, "less than or equal to 1"),
        ({"frames": 17, "set": "folder", "size": 32, "buckets": 3}, "do not go with buckets"),
        ({"frames": 17, "set": "folder", "source_dir": "x"}, "do not go with source_dir"),
    ],
)
def test_settings_of_clips_that_do_not_fit(settings, words):
    with pytest.raises(InputError, match=words) as caught:
        DataConfig.parse(settings, "data")
    assert "\n" not in str(caught.value)


HELD_TO_THE_END = """
import gc, subprocess
from multiprocessing import active_children

from rectiflow.data.builtin import digits
from rectiflow.data.config import DataConfig
from rectiflow.data.loader import Loader

data = digits().train
data.costly = True
loader = Loader(data, DataConfig(workers=1), batch=4, steps=50, seed=0)
loader(0)
(worker,) = active_children()
for name in ("-TERM", "-INT"):
    subprocess.run(["kill", name, str(worker.pid)], check=True)
worker.join(1)
assert worker.is_alive()
loader(1)
held = [loader]
held.append(held)  # as whatever keeps a loader until Python ends
gc.disable()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker is not told who asks it to end")
def test_a_worker_ends_with_its_process_and_at_nobody_elses_word():
    done = subprocess.run([sys.executable, "-c", HELD_TO_THE_END], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

"""Buckets keep pictures whole, each batch has one shape, and nothing depends on what was asked for before."""

import itertools
import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectiflow.__main__ import main
from rectiflow.base.errors import InputError
from rectiflow.data.buckets import assign, candidates, choose, kept, table
from rectiflow.data.config import DataConfig, LatentsConfig
from rectiflow.data.encode import encode_set
from rectiflow.data.folder import open_folder, write_index
from rectiflow.data.loader import Loader
from tests.data.test_folder import opened, picture


def config(**settings):
    return DataConfig(**{"set": "folder", "size": 64, "buckets": 7, "smallest_bucket": 1, **settings})


@settings(deadline=None, max_examples=50)
@given(st.sampled_from([(64, 8), (64, 16), (256, 16), (256, 64), (96, 8), ((48, 80), 8)]), st.floats(1, 4))
def test_candidates_have_the_area_and_the_multiples(asked, aspect):
    size, multiple = asked
    sizes = candidates(config(size=size, multiple=multiple, max_aspect=aspect))
    base = (size, size) if isinstance(size, int) else size
    assert base in sizes
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        assert abs(height * width / (base[0] * base[1]) - 1) <= 0.1
        assert (height, width) == base or max(height, width) <= aspect * min(height, width)
        assert isinstance(size, tuple) or (width, height) in sizes
    ratios = [width / height for height, width in sizes]
    assert ratios == sorted(ratios)


def test_the_share_kept_is_that_of_the_crop():
    """min(a/b, b/a), by the areas: resized to cover, then cut."""
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(10, 500, (2, 50))
    sizes = [(64, 64), (48, 80)]
    scale = np.maximum(*(np.array(sizes)[:, side] / sides[:, None] for side, sides in ((0, heights), (1, widths))))
    areas = (heights * widths)[:, None] * scale**2
    assert np.allclose(kept(heights, widths, sizes), np.prod(sizes, 1) / areas)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_the_choice_is_the_best_there_is(seed, count):
    """Against every set of so many shapes; proportions are told apart to a factor of e^(1/500)."""
    rng = np.random.default_rng(seed)
    heights, widths = rng.integers(40, 110, (2, 30))
    asked = config(buckets=count, max_aspect=2.0)
    best = max(
        kept(heights, widths, list(some)).max(1).mean() for some in itertools.combinations(candidates(asked), count)
    )
    assert kept(heights, widths, choose(heights, widths, asked)).max(1).mean() >= best - 1 / 500


def test_more_buckets_crop_less():
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(40, 110, (2, 500))
    lost = [1 - kept(heights, widths, choose(heights, widths, config(buckets=k))).max(1).mean() for k in range(1, 9)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < lost[0] / 4


def test_small_buckets_are_merged_with_the_nearest():
    heights, widths = np.array([64] * 90 + [80] * 8 + [48] * 30), np.array([64] * 90 + [48] * 8 + [80] * 30)
    assert choose(heights, widths, config()) == [(80, 48), (64, 64), (48, 80)]
    sizes = choose(heights, widths, config(smallest_bucket=10))
    assert sizes == [(64, 64), (48, 80)]
    assert np.bincount(assign(heights, widths, sizes)).tolist() == [98, 30]
    assert choose(heights, widths, config(smallest_bucket=1000)) == [(64, 64)]


def test_the_table_says_what_goes_where():
    heights, widths = np.array([64, 64, 48, 60]), np.array([64, 80, 80, 100])
    lines = table(heights, widths, [(64, 64), (48, 80)], (64, 64))
    assert lines[0] == ("bucket 64×64", 2, "10.0% of their area cropped away")  # 1 − 64/80 of one of two
    assert lines[1] == ("bucket 48×80", 2, "0.0% of their area cropped away")
    assert lines[2] == ("in buckets", 4, "5.0% of their area cropped away; 25.0% at 64×64 alone")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    for i, size in enumerate([(64, 64)] * 9 + [(100, 60)] * 14 + [(60, 100)] * 5):
        picture(root / f"{i:02d}.png", ("red", "green", "blue")[i % 3], size)
    (root / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{i:02d}.png", "text": str(i)}) + "\n" for i in range(28))
    )
    return root


SETTINGS = {"size": 64, "buckets": 3, "smallest_bucket": 2, "held_out": 0.15}


def test_a_folder_in_buckets(folder):
    data = opened(folder, **SETTINGS)
    assert data.shape == (3, 64, 64)
    assert data.shapes == ((3, 80, 48), (3, 64, 64), (3, 48, 80))
    rows = torch.cat([bucket.rows for bucket in data.train.buckets()])
    assert sorted(rows.tolist()) == list(range(len(data.train)))
    lines = [line for line in data.report if line[0].startswith("bucket")]
    assert [what for what, _, _ in lines] == ["bucket 80×48", "bucket 64×64", "bucket 48×80"]
    assert sum(count for _, count, _ in lines) == len(data.train)
    assert data.held_out.fetch(torch.arange(len(data.held_out))).shape[1:] == (3, 64, 64)  # at one shape where asked


def test_a_batch_has_one_shape_and_each_picture_its_turn(folder):
    data = opened(folder, **SETTINGS)
    loader = Loader(data.train, DataConfig(workers=0, crop="random", flip=True), 4, 100, 0)
    shape_of = {int(row): bucket.images.shape for bucket in data.train.buckets() for row in bucket.rows}
    times = torch.zeros(len(data.train))
    shapes = set()
    for step in range(60):
        batch = loader(step)
        assert {shape_of[int(row)] for row in batch.index} == {tuple(batch.pixels.shape[1:])}
        assert list(batch.captions) == data.train.captions(batch.index)
        times += torch.bincount(batch.index, minlength=len(times))
        shapes.add(tuple(batch.pixels.shape[1:]))
    assert shapes == set(data.shapes)
    assert (times - 240 / len(times)).abs().max() <= 2


def test_batches_of_buckets_are_the_same_from_anywhere(folder, tmp_path):
    data = opened(folder, **SETTINGS)
    write_index(data, tmp_path / "index")
    asked = {"set": "folder", "dir": str(folder), **SETTINGS}
    again = open_folder(DataConfig(**asked), tmp_path / "index")
    assert again.shapes == data.shapes
    alone, ahead = (
        Loader(images, DataConfig(workers=workers, crop="random"), 4, 20, 0)
        for images, workers in ((data.train, 0), (again.train, 2))
    )
    for step in (0, 1, 2, 11, 12, 5):
        assert torch.equal(alone(step).pixels, ahead(step).pixels)
        assert torch.equal(alone(step).index, ahead(step).index)


def test_buckets_smaller_than_a_batch_are_told(folder, caplog):
    data = opened(folder, **SETTINGS)
    with caplog.at_level(logging.WARNING):
        Loader(data.train, DataConfig(workers=0), 8, 20, 0)
    assert [message for message in caplog.messages if "the bucket 80×48 has" in message]


def test_without_a_square_picture_the_nearest_bucket_is_the_shape(tmp_path):
    for i in range(6):
        picture(tmp_path / f"{i}.png", size=(100, 60))
    assert opened(tmp_path, **SETTINGS).shape == (3, 48, 80)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": None}, "need a size"),
        ({"set": "digits"}, "for a folder"),
        ({"crop": "none"}, "do not go with crop=none"),
        ({"crop": "random", "scale": (0.5, 1)}, "do not go with scale"),
        ({"source_dir": "x"}, "do not go with source_dir"),
        ({"buckets": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    with pytest.raises(InputError, match=words):
        DataConfig.parse({"set": "folder", "size": 64, "buckets": 3, **settings}, "--set")


def test_a_size_that_is_no_multiple(folder):
    with pytest.raises(InputError, match=r"data.size is 60, no multiple of data.multiple=8.*set data.size=64"):
        opened(folder, **{**SETTINGS, "size": 60})


def test_latents_have_one_shape(folder, tmp_path):
    asked = DataConfig(set="folder", dir=str(folder), **SETTINGS)
    with pytest.raises(InputError, match=r"latents have one shape, but data.buckets is 3; set data.buckets=1"):
        encode_set(open_folder(asked), lambda x: x, tmp_path / "l", LatentsConfig(), asked, {}, lambda a, b: None)


def test_buckets_that_the_network_does_not_divide_are_refused(folder, tmp_path, capsys):
    settings = ["data.size=64", "data.buckets=3", "data.smallest_bucket=2", "data.multiple=4", "network.patch=8"]
    small = ["network.width=32", "network.depth=1", "network.heads=1", "steps=2", "batch=4", "precision=float32"]
    run = ["--run", str(tmp_path / "run"), "--set", *settings, *small]
    assert main(["train", "folder", "--data", str(folder), *run]) == 2
    assert "set data.multiple to a multiple of it" in capsys.readouterr().err
    assert (
        main(["train", "latent", "--data", str(folder), "--run", str(tmp_path / "l"), "--set", "data.buckets=3"]) == 2
    )
    assert "latents have one shape, but data.buckets is 3" in capsys.readouterr().err
    assert not (tmp_path / "l").exists()

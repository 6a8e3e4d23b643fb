"""Pictures inside parquet files train as those beside them do."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value

from rectiflow.base.errors import InputError
from rectiflow.data.config import DataConfig
from rectiflow.data.folder import open_folder, write_index
from rectiflow.data.loader import Loader
from tests.data.test_folder import opened, picture, reported

COUNT = 9


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def encoded(number, colour=True):
    from PIL import Image as PILImage

    levels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    out = io.BytesIO()
    PILImage.fromarray(levels if colour else levels[..., 0]).save(out, "PNG")
    return out.getvalue()


def shard(path, numbers=range(COUNT), **columns):
    """As `push_to_hub` of datasets writes it, with its features in the file's own metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features(
        {"image": Image(), "text": Value("string"), "label": ClassLabel(names=["cat", "dog"]), **columns}
    )
    rows = [
        {"image": {"bytes": encoded(i), "path": None}, "text": f"number {i}", "label": i % 2, **dict.fromkeys(columns)}
        for i in numbers
    ]
    Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def test_a_shard_trains_as_its_pictures_beside_it_do(tmp_path):
    shard(tmp_path / "a" / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "b").mkdir()
    for i in range(COUNT):
        (tmp_path / "b" / f"{i}.png").write_bytes(encoded(i))
        (tmp_path / "b" / f"{i}.txt").write_text(f"number {i}")
    inside, beside = (opened(tmp_path / name, held_out=0.3, crop="random") for name in "ab")
    assert len(inside.held_out) == len(beside.held_out) > 0
    assert inside.class_names == beside.class_names == ()
    for mine, theirs in ((inside.train, beside.train), (inside.held_out, beside.held_out)):
        index = torch.arange(len(theirs))
        assert mine.captions(index) == theirs.captions(index)
        place = torch.rand(len(index), 3, generator=torch.Generator().manual_seed(0))
        assert torch.equal(mine.fetch(index, place), theirs.fetch(index, place))
    for workers in (0, 1):
        batches = [Loader(data.train, DataConfig(workers=workers), 4, 3, 0)(1) for data in (inside, beside)]
        assert torch.equal(batches[0].pixels, batches[1].pixels)
        assert batches[0].captions == batches[1].captions


def test_shards_named_like_splits_are_parts(tmp_path):
    shard(tmp_path / "data" / "train-00000-of-00002.parquet", range(5))
    shard(tmp_path / "data" / "train-00001-of-00002.parquet", range(5, 9))
    shard(tmp_path / "data" / "validation-00000-of-00001.parquet", range(9, 12))
    data = opened(tmp_path, labels="label")
    assert data.class_names == ("cat", "dog")
    assert data.train.captions(torch.arange(9)) == [f"number {i}" for i in range(9)]
    assert data.held_out.captions(torch.arange(3)) == [f"number {i}" for i in range(9, 12)]
    assert data.train.labels.tolist() == [i % 2 for i in range(9)]


def test_folders_named_like_splits_are_parts_of_shards(tmp_path):
    shard(tmp_path / "default" / "train" / "0000.parquet", range(5))
    shard(tmp_path / "default" / "test" / "0000.parquet", range(5, 9))
    assert len(opened(tmp_path).held_out) == 4


def test_shards_beside_pictures(tmp_path):
    shard(tmp_path / "more.parquet")
    picture(tmp_path / "0.png")
    data = opened(tmp_path, held_out=0)
    assert data.train.captions(torch.arange(COUNT + 1)) == ["", *(f"number {i}" for i in range(COUNT))]


def test_several_captions_and_missing_ones_in_a_column(tmp_path):
    rows = [{"picture": {"bytes": encoded(i), "path": f"{i}.png"}, "texts": ["a", "b"] if i else None} for i in (0, 1)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    data = opened(tmp_path, held_out=0, caption="texts")
    assert data.train.captions(torch.tensor([0, 0, 1, 1]), torch.tensor([0.0, 0.9, 0.0, 0.9])) == ["", "", "a", "b"]


def test_damaged_pictures_are_named_by_their_row(tmp_path):
    rows = [{"image": {"bytes": content, "path": None}} for content in (encoded(0), b"no picture", None, encoded(1))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    data = opened(tmp_path, held_out=0, max_skipped=0.5)
    assert ("skipped: not a picture", 1, "x.parquet#1") in data.report
    assert ("skipped: no bytes in its parquet file", 1, "x.parquet#2") in data.report
    assert len(data.train) == 2


def test_parquet_files_that_are_none_or_hold_no_pictures(tmp_path):
    picture(tmp_path / "0.png")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "other.parquet")
    data = opened(tmp_path, held_out=0, max_skipped=1)
    assert ("skipped: not a parquet file", 1, "bad.parquet") in data.report
    assert ("skipped: not a picture by its name", 1, "other.parquet") in data.report
    assert reported(data)["used"] == 1


def test_a_run_goes_on_with_shards_and_tells_when_one_is_gone(tmp_path):
    path = shard(tmp_path / "data" / "x.parquet")
    config = DataConfig(set="folder", dir=str(tmp_path / "data"), size=16)
    first = open_folder(config)
    write_index(first, tmp_path / "index")
    again = open_folder(config, tmp_path / "index")
    index = torch.arange(len(first.train))
    assert torch.equal(first.train.fetch(index), again.train.fetch(index))
    assert first.train.captions(index) == again.train.captions(index)
    assert list((tmp_path / "index").glob("cache-*")) == []
    path.rename(tmp_path / "away.parquet")
    from rectiflow.data import shards

    shards._open.cache_clear()
    with pytest.raises(InputError, match=r"x.parquet cannot be read"):
        again.train.fetch(index)


def test_a_shard_without_rows_is_told_and_the_rest_is_used(tmp_path):
    path = shard(tmp_path / "data" / "x.parquet")
    empty = path.with_name("empty.parquet")
    pq.write_table(pq.read_table(path).slice(0, 0), empty)
    data = opened(path.parent, held_out=0, max_skipped=0)
    assert len(data.train) == COUNT
    assert ("skipped: a parquet file without rows", 1, "empty.parquet") in data.report
    path.unlink()
    with pytest.raises(InputError, match=r"no pictures in .*, but 1 a parquet file without rows \(empty.parquet\)"):
        opened(path.parent)


def test_a_missing_number_is_no_class(tmp_path):
    rows = [{"image": {"bytes": encoded(i), "path": None}, "kind": kind} for i, kind in enumerate((1.5, float("nan")))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert opened(tmp_path, held_out=0, labels="kind", max_skipped=0.5).class_names == ("1.5",)

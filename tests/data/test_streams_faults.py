"""What goes wrong with shards, here and far away: tried again, named in one line, and nothing of the user's lost."""

import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from rectiflow.base.errors import InputError
from rectiflow.data import streams_read, streams_remote
from rectiflow.data.config import DataConfig
from rectiflow.data.loader import Loader
from rectiflow.data.sets import keep_index, open_set
from rectiflow.data.streams_remote import Span, expand, read_spans
from tests.data.shard_files import add, numbers_of, opened, settings, write_parquet, write_tar


class Flaky(MemoryFileSystem):
    """Files in memory, some of whose reads fail: as many as `failures` says, by `error`."""

    protocol = "flaky"
    store, pseudo_dirs = {}, [""]
    failures, error, calls = 0, OSError, 0

    def _open(self, path, mode="rb", **kwargs):
        if "r" in mode:
            self._maybe_fail()
        return super()._open(path, mode, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._maybe_fail()
        return super().cat_file(path, start, end, **kwargs)

    def _maybe_fail(self):
        Flaky.calls += 1
        if Flaky.failures:
            Flaky.failures -= 1
            raise Flaky.error("the connection was reset")


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(streams_remote, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(streams_read, "_TABLES", streams_read._Tables())
    monkeypatch.setattr(Flaky, "failures", 0)
    monkeypatch.setattr(Flaky, "error", OSError)
    yield Flaky
    Flaky.store.clear()


def put(path, url):
    with fsspec.open(url, "wb") as file:
        file.write(path.read_bytes())


@pytest.fixture
def far(flaky, tmp_path):
    """A tar and a parquet file of ten pictures each, far away."""
    put(write_tar(tmp_path / "0.tar", range(10)), "flaky://set/0.tar")
    put(write_parquet(tmp_path / "1.parquet", range(10, 20)), "flaky://set/1.parquet")
    return settings(["flaky://set/*.tar", "flaky://set/*.parquet"], held_out=0)


def test_shards_far_away_are_read_as_those_here(far):
    data = open_set(far)
    assert numbers_of(data.train.fetch(torch.arange(20))) == list(range(20))
    assert data.train.captions(torch.tensor([3, 13])) == ["number 3", "number 13"]
    for workers in (0, 1):
        batch = Loader(data.train, DataConfig(workers=workers), 8, 4, 0)(2)
        assert list(batch.captions) == [f"number {i}" for i in batch.index.tolist()]


def test_what_fails_now_and_then_is_tried_again(far, flaky, caplog):
    flaky.failures = 3
    data = open_set(far)
    assert flaky.failures == 0
    expected = numbers_of(data.train.fetch(torch.arange(20)))
    streams_read._TABLES._held.clear()
    flaky.failures = 3
    assert numbers_of(data.train.fetch(torch.arange(20))) == expected == list(range(20))
    assert flaky.failures == 0
    assert "the connection was reset; trying again" in caplog.text


def test_what_goes_on_failing_is_named_and_reading_goes_on_when_it_is_back(far, flaky):
    data = open_set(far)
    loader = Loader(data.train, DataConfig(workers=0), 20, 4, 0)
    flaky.failures = 10**6
    with pytest.raises(InputError, match=r"flaky://.*set/\d\.\w+ cannot be read \(the connection was reset\), after 4"):
        loader(0)
    flaky.failures = 0
    assert sorted(loader(0).index.tolist()) == list(range(20))


def test_a_worker_tells_of_a_url_in_one_line(far, flaky):
    data = open_set(far)
    flaky.failures = 10**6
    with pytest.raises(InputError, match="cannot be read") as raised:
        Loader(data.train, DataConfig(workers=1), 4, 4, 0)(0)
    assert "Traceback" not in str(raised.value)


def test_refused_credentials_are_not_tried_again(far, flaky):
    data = open_set(far)
    flaky.failures, flaky.error, flaky.calls = 10**6, PermissionError, 0
    with pytest.raises(InputError, match=r"refuses us .* give this process credentials"):
        data.train.fetch(torch.tensor([0]))
    assert flaky.calls == 1


def test_a_read_that_comes_short_is_no_picture(flaky, monkeypatch, tmp_path):
    put(write_tar(tmp_path / "0.tar", range(3)), "flaky://set/0.tar")
    data = opened("flaky://set/0.tar", held_out=0)
    short = iter([True, False])
    whole = Flaky.cat_ranges

    def cut(self, *arguments, **options):
        got = whole(self, *arguments, **options)
        return [content[:-1] for content in got] if next(short) else got

    monkeypatch.setattr(Flaky, "cat_ranges", cut)
    assert numbers_of(data.train.fetch(torch.tensor([1]))) == [1]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_that_is_missing_or_has_changed_is_named_before_a_run_goes_on(kind, tmp_path):
    write = write_tar if kind == "tar" else write_parquet
    path = write(tmp_path / "set" / f"x.{kind}", range(20))
    config = settings(path)
    keep_index(open_set(config), tmp_path / "index")
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match=rf"x\.{kind} is missing; restore it"):
        open_set(config, tmp_path / "index")
    write(path, range(19))
    with pytest.raises(InputError, match=rf"x\.{kind} has changed: it has [\d,]+ (bytes|other)"):
        open_set(config, tmp_path / "index")
    write(path, range(1, 21))  # of the same size or nearly so
    with pytest.raises(InputError, match=rf"x\.{kind} has changed"):
        open_set(config, tmp_path / "index")
    path.write_bytes(kept)
    assert len(open_set(config, tmp_path / "index").train) > 0


def test_a_tar_that_changes_while_it_is_read_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", range(20))
    data = opened(path, held_out=0)
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(InputError, match=r"x\.tar has changed: it has other content"):
        data.train.fetch(torch.tensor([5]))


@pytest.mark.parametrize("where", ["in a picture", "in a head", "between samples", "damaged"])
def test_a_tar_that_is_cut_off_gives_its_whole_samples_and_is_told(tmp_path, where):
    path = write_tar(tmp_path / "x.tar", range(10))
    with tarfile.open(path) as tar:
        sixth = next(member for member in tar if member.name.endswith("00006.png"))
    content = path.read_bytes()
    ends = {"in a picture": sixth.offset_data + 20, "in a head": sixth.offset + 100, "between samples": sixth.offset}
    if where == "damaged":
        path.write_bytes(content[: sixth.offset] + b"x" * 512 + content[sixth.offset + 512 :])
    else:
        path.write_bytes(content[: ends[where]])
    data = opened(path, held_out=0)
    assert ("noted: a tar that is cut off or damaged: its samples up to there are used", 1, str(path)) in data.report
    found = numbers_of(data.train.fetch(torch.arange(len(data.train))))
    assert found == list(range(len(found)))
    assert len(found) in (5, 6)


def test_a_parquet_file_that_is_cut_off_is_named(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", range(10))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"x\.parquet is no whole parquet file; mend it, or take it away"):
        opened(path)


def test_what_cannot_be_opened_at_all(tmp_path):
    write_tar(tmp_path / "x.tar", range(4))
    (tmp_path / "none.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "y.tar.gz").write_bytes(b"")
    (tmp_path / "folder.tar").mkdir()
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "text.parquet")
    pq.write_table(pq.read_table(write_parquet(tmp_path / "e.parquet", range(3))).slice(0, 0), tmp_path / "e.parquet")
    with tarfile.open(tmp_path / "text.tar", "w") as tar:
        add(tar, "0.txt", b"words")
    for name, words in (
        ("*.none", "nothing matches .*none; expected files ending in"),
        ("gone.tar", r"gone\.tar is missing"),
        ("none.tar", r"none\.tar is no tar; expected an uncompressed one"),
        ("y.tar.gz", r"y\.tar\.gz ends neither in \.parquet nor in \.tar; tars must be uncompressed"),
        ("folder.tar", r"folder\.tar is a folder, expected a file"),
        ("text.parquet", r"text\.parquet holds no pictures; expected a column of bytes.* Its columns: text"),
        ("text.tar", r"text\.tar holds no pictures; expected members such as 0001\.jpg\. Its kinds: txt"),
        ("e.parquet", r"no pictures in 1 shard, .*but 1 a parquet file without rows"),
    ):
        with pytest.raises(InputError, match=words):
            opened(tmp_path / name)


def test_columns_and_members_that_are_asked_for_must_be_there(tmp_path):
    with pytest.raises(InputError, match=r"unknown column of .* for data.labels 'labels'\. Did you mean 'label'"):
        opened(write_parquet(tmp_path / "x.parquet", range(3)), labels="labels")
    with pytest.raises(InputError, match=r"unknown column of .* for data.caption 'prompt'"):
        opened(tmp_path / "x.parquet", caption="prompt")
    with pytest.raises(InputError, match=r"has no labels at data.labels=kind; expected a member such as 0001\.kind"):
        opened(write_tar(tmp_path / "x.tar", range(3)), labels="kind")


def test_protocols_that_nobody_knows_or_that_lack_a_driver(monkeypatch):
    with pytest.raises(InputError, match=r"nowhere://x\.tar cannot be opened"):
        opened("nowhere://x.tar")
    monkeypatch.setattr(
        streams_remote.fsspec.core, "url_to_fs", lambda url: (_ for _ in ()).throw(ImportError("Install s3fs"))
    )
    with pytest.raises(InputError, match=r"s3://bucket/0\.tar needs a driver for s3://: pip install s3fs"):
        opened("s3://bucket/{0..3}.tar")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"set": "folder"}, "go together; give both or neither"),
        ({"dir": "pictures"}, "do not go with dir"),
        ({"frames": 5}, "do not go with frames=5"),
        ({"buckets": 4}, "are for a folder of pictures"),
        ({"window": 0}, "window"),
    ],
)
def test_settings_that_do_not_go_with_shards(changes, words):
    with pytest.raises(InputError, match=words):
        settings("x.tar", **changes)


def test_a_range_that_counts_down_is_no_range():
    with pytest.raises(InputError, match=r"\{0003\.\.0001\} counts down; write \{0001\.\.0003\}"):
        expand(["a/t-{0003..0001}.tar"])


def test_shards_that_are_not_named():
    with pytest.raises(InputError, match="go together; give both or neither"):
        settings([])


def test_a_size_is_needed(tmp_path):
    with pytest.raises(InputError, match="shards need a size"):
        opened(write_tar(tmp_path / "x.tar", range(3)), size=None)


def test_near_spans_are_read_together_and_each_gets_its_own_bytes(flaky, monkeypatch):
    content = bytes(range(256)) * 1024
    with fsspec.open("flaky://set/x.bin", "wb") as file:
        file.write(content)
    asked = []
    whole = Flaky.cat_ranges
    monkeypatch.setattr(
        Flaky,
        "cat_ranges",
        lambda self, p, s, e, **o: asked.append(list(zip(s, e, strict=True))) or whole(self, p, s, e, **o),
    )
    places = [(200_000, 7), (10, 300), (500, 20), (10, 300), (0, 4)]
    got = read_spans([Span("flaky://set/x.bin", *place) for place in places])
    assert got == [content[start : start + length] for start, length in places]
    assert asked == [[(0, 520), (200_000, 200_007)]]

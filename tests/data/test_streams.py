"""Shards train as the same pictures in a folder do, in an order that nothing but (seed, step) decides."""

import gc
import pickle
import tarfile
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data import order, streams_parquet, streams_read
from rectiflow.data.config import DataConfig
from rectiflow.data.folder import open_folder
from rectiflow.data.loader import Loader
from rectiflow.data.order import PieceOrder, batch_indices
from rectiflow.data.sets import copy_index, is_index, keep_index, open_set
from rectiflow.data.streams import Streamed
from tests.data.shard_files import add, encoded, numbers_of, opened, settings, write_parquet, write_tar

UNEVEN = (1, 1000, 3)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(sum), st.integers(1, 4), st.integers(1, 40))
@hypothesis_settings(deadline=None, max_examples=30)
def test_each_row_of_uneven_pieces_has_its_turn_once_an_epoch(sizes, window, batch):
    count, laid = sum(sizes), PieceOrder(torch.tensor(sizes).numpy(), window)
    steps = -(-2 * count // batch)
    seen = torch.cat([batch_indices(step, batch, count, 3, order=laid) for step in range(steps)])[: 2 * count]
    for epoch in seen.split(count):
        assert sorted(epoch.tolist()) == list(range(count))


def test_rows_that_come_together_come_of_a_window_of_pieces():
    """Twelve pieces of ten rows in windows of three: each thirty positions hold the rows of three pieces, shuffled."""
    laid = PieceOrder(torch.full((12,), 10).numpy(), 3)
    rows = laid(0, "order", 0, torch.arange(120))
    pieces = [set((window // 10).tolist()) for window in rows.split(30)]
    assert [len(some) for some in pieces] == [3] * 4
    assert set.union(*pieces) == set(range(12))
    mixed = (rows.reshape(4, 30) // 10).diff(dim=1) != 0
    assert 0.5 < float(mixed.float().mean()) < 0.8  # neighbours in random order differ with probability 20/29 = 0.69


def test_epochs_and_seeds_differ_in_the_order_of_pieces_and_of_rows():
    laid = PieceOrder(torch.full((8,), 50).numpy(), 2)
    orders = [laid(seed, "order", epoch, torch.arange(400)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for i in range(3):
        for j in range(i):
            assert (orders[i] == orders[j]).float().mean() < 0.05
            assert not torch.equal(orders[i] // 50, orders[j] // 50)
    assert torch.equal(orders[0], PieceOrder(torch.full((8,), 50).numpy(), 2)(0, "order", 0, torch.arange(400)))


def test_no_more_is_ever_permuted_than_a_window_and_the_pieces(monkeypatch):
    """The order of 80,000 rows takes no more memory than that of 10,000."""
    asked = []
    permutation = Key.permutation
    monkeypatch.setattr(Key, "permutation", lambda self, count: asked.append(count) or permutation(self, count))
    order._window.cache_clear()
    most = []
    for pieces in (10, 80):
        laid = PieceOrder(torch.full((pieces,), 1000).numpy(), 4)
        for step in range(0, pieces * 1000 // 64, 97):
            batch_indices(step, 64, pieces * 1000, 5, order=laid)
        most.append(max(asked))
    assert most == [4000, 4000]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """24 pictures as a folder, in two tars and in two parquet files."""
    home = tmp_path_factory.mktemp("both")
    for i in range(24):
        picture = home / "folder" / ("cat", "dog")[i % 2] / f"{i:05d}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(encoded(i, 20))
        picture.with_suffix(".txt").write_text(f"number {i}")
    for kind, write in (("tar", write_tar), ("parquet", write_parquet)):
        for part in range(2):
            numbers = range(12 * part, 12 * part + 12)
            write(home / f"{part}.{kind}", numbers, picture=lambda i: encoded(i, 20))
    return home


@pytest.mark.parametrize(("kind", "labels"), [("tar", "cls"), ("parquet", "label")])
def test_shards_give_the_pictures_captions_and_classes_of_the_folder(both, kind, labels):
    shards = opened(both / f"*.{kind}", labels=labels, held_out=0, size=16)
    folder = open_folder(DataConfig(set="folder", dir=str(both / "folder"), size=16, held_out=0))
    where = {path.split("/")[1]: row for row, path in enumerate(folder.train.table["path"])}
    theirs = torch.tensor([where[f"{i:05d}.png"] for i in range(24)])
    place = torch.rand(24, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shards.train.fetch(torch.arange(24), place), folder.train.fetch(theirs, place))
    assert shards.train.captions(torch.arange(24)) == folder.train.captions(theirs)
    assert list(shards.train.every_caption()) == [f"number {i}" for i in range(24)]
    assert shards.class_names == folder.class_names == ("cat", "dog")
    assert torch.equal(shards.train.labels, folder.train.labels[theirs])
    assert shards.shape == folder.shape


def test_captions_and_classes_in_fields_of_json(tmp_path):
    data = opened(write_tar(tmp_path / "x.tar", range(6), in_json=True), labels="label", held_out=0)
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1] * 3
    assert data.train.captions(torch.tensor([4, 1])) == ["number 4", "number 1"]


def test_both_kinds_together_and_braces(tmp_path):
    for part in range(3):
        write_tar(tmp_path / f"a-{part:02d}.tar", range(part * 5, part * 5 + 5))
    write_parquet(tmp_path / "b.parquet", range(15, 22))
    data = opened([tmp_path / "a-{00..02}.tar", tmp_path / "*.parquet", tmp_path / "b.parquet"], held_out=0)
    assert numbers_of(data.train.fetch(torch.arange(22))) == list(range(22))
    assert data.train.captions(torch.tensor([14, 15])) == ["number 14", "number 15"]


def test_held_out_rows_are_a_share_that_stays_when_the_set_grows_or_moves(tmp_path):
    first = write_tar(tmp_path / "a" / "0.tar", range(400))
    data = opened(first, held_out=0.1)
    held = numbers_of(data.held_out.fetch(torch.arange(len(data.held_out))))
    trained = numbers_of(data.train.fetch(torch.arange(len(data.train))))
    assert 20 < len(held) < 60  # 40 ± 6 (one standard deviation)
    assert sorted(held + trained) == list(range(400))
    write_tar(tmp_path / "b" / "1.tar", range(400, 500))
    first.rename(tmp_path / "b" / "0.tar")
    more = opened(tmp_path / "b" / "*.tar", held_out=0.1)
    grown = numbers_of(more.held_out.fetch(torch.arange(len(more.held_out))))
    assert [number for number in grown if number < 400] == held
    few = opened(write_tar(tmp_path / "few.tar", range(3)), held_out=0.01)
    assert (len(few.train), len(few.held_out)) == (2, 1)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Shards of 1, 1000 and 3 pictures: two tars and a parquet file."""
    home, start = tmp_path_factory.mktemp("uneven"), 0
    for number, (count, write) in enumerate(zip(UNEVEN, (write_tar, write_parquet, write_tar), strict=True)):
        kind = "parquet" if write is write_parquet else "tar"
        arguments = {"group": 100} if write is write_parquet else {}
        write(home / f"{number}.{kind}", range(start, start + count), **arguments)
        start += count
    return opened([home / "*.tar", home / "*.parquet"], held_out=0, window=2, check="header").train


def test_uneven_shards_starve_no_rank(uneven):
    """Every rank has its part of every batch, and together each sample once an epoch, whatever the workers."""
    batch, world, total = 16, 2, sum(UNEVEN)
    steps = -(-total // batch)
    shares = [slice(rank * batch // world, (rank + 1) * batch // world) for rank in range(world)]
    ranks = [Loader(uneven, DataConfig(workers=2), batch, steps, 7, share) for share in shares]
    alone = Loader(uneven, DataConfig(workers=0), batch, steps, 7)
    seen = []
    for step in range(steps):
        parts = [loader(step, share) for loader, share in zip(ranks, shares, strict=True)]
        assert [len(part.pixels) for part in parts] == [batch // world] * world
        seen += [row for part in parts for row in part.index.tolist()]
        if step % 15 == 0:
            whole = alone(step)
            assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
            assert parts[0].captions + parts[1].captions == whole.captions
    assert sorted(seen[:total]) == list(range(total))


def test_a_batch_is_the_same_wherever_training_begins(uneven):
    forward = Loader(uneven, DataConfig(workers=1), 16, 100, 2)
    batches = {step: forward(step) for step in range(70)}
    for step in (69, 3, 41):
        again = Loader(uneven, DataConfig(workers=0), 16, 100, 2)(step)
        assert torch.equal(again.index, batches[step].index)
        assert torch.equal(again.pixels, batches[step].pixels)


def test_a_run_goes_on_with_the_rows_it_began_with(both, tmp_path):
    config = settings([both / "*.tar", both / "*.parquet"], labels="none", held_out=0.2)
    first = open_set(config)
    keep_index(first, tmp_path / "index")
    copy_index(tmp_path / "index", tmp_path / "copy")
    assert is_index(tmp_path / "copy")
    again = open_set(config, tmp_path / "copy")
    index = torch.arange(len(first.train))
    assert torch.equal(first.train.fetch(index), again.train.fetch(index))
    assert len(first.held_out) == len(again.held_out)
    assert first.train.digest == again.train.digest
    (tmp_path / "copy" / "rows.u8").write_bytes(b"")
    with pytest.raises(InputError, match="cut off; restore it"):
        open_set(config, tmp_path / "copy")


def test_small_row_groups_are_read_together_and_the_latest_are_kept(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "x.parquet", range(64), group=4)
    monkeypatch.setattr(streams_parquet, "_PIECE", 4 * len(encoded(0)) * 4)
    data = opened(path, held_out=0, check="header")
    pieces = len(data.train.index.pieces)
    assert 3 <= pieces <= 8
    read = []
    piece = streams_read.read_piece
    monkeypatch.setattr(streams_read, "read_piece", lambda *asked: read.append(asked) or piece(*asked))
    monkeypatch.setattr(streams_read, "_TABLES", streams_read._Tables())
    loader = Loader(data.train, DataConfig(workers=0), 4, 16, 0)
    for step in range(16):
        loader(step)
    assert len(read) == pieces  # each once, since they are small enough to be kept
    monkeypatch.setattr(streams_read, "HELD", 1)
    data.train.fetch(torch.arange(64))
    assert len(read) == pieces  # they are still there
    monkeypatch.setattr(streams_read, "_TABLES", tables := streams_read._Tables())
    assert numbers_of(data.train.fetch(torch.arange(64))) == list(range(64))
    assert len(read) == 2 * pieces
    assert len(tables._held) == 1


def test_a_window_takes_no_more_pieces_than_can_be_kept(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "x.parquet", range(64), group=16)
    monkeypatch.setattr(streams_parquet, "_PIECE", 1)
    size = max(piece[4] for piece in streams_parquet.scan_parquet(str(path), settings(path)).pieces)
    monkeypatch.setattr("rectiflow.data.streams_survey.HELD", 2 * size)
    assert opened(path).train.index.note.window == 2


def test_pictures_that_cannot_be_used_are_counted_before_training(tmp_path):
    def spoilt(i):
        return encoded(i)[:60] if i == 3 else b"none" if i == 4 else encoded(i)

    for path in (
        write_tar(tmp_path / "x.tar", range(40), picture=spoilt),
        write_parquet(tmp_path / "x.parquet", range(40), picture=spoilt),
    ):
        data = opened(path, held_out=0)
        assert len(data.train) == 38
        assert ("skipped: truncated or damaged", 1, f"{path}#3") in data.report
        assert ("skipped: not a picture", 1, f"{path}#4") in data.report
        assert numbers_of(data.train.fetch(torch.arange(38))) == [i for i in range(40) if i not in (3, 4)]
        with pytest.raises(InputError, match=r"only 38 of 40 pictures .* allow more with --set data.max_skipped=0.06"):
            opened(path, max_skipped=0.01)


def test_pictures_that_turn_out_unusable_give_their_place_to_the_next(tmp_path, caplog):
    path = write_tar(tmp_path / "x.tar", range(12), picture=lambda i: b"none" if i in (5, 6) else encoded(i))
    data = opened(path, held_out=0, check="header", labels="cls")
    for _ in range(2):
        index = torch.tensor([5, 4, 6])
        assert numbers_of(data.train.fetch(index)) == [7, 4, 7]
        assert data.train.captions(index) == ["number 7", "number 4", "number 7"]
        assert data.train.labels[index].tolist() == [1, 0, 1]
    assert data.train.captions(torch.tensor([5])) == ["number 7"]
    assert sum("the next row takes its place" in record.message for record in caplog.records) == 2
    bad = opened(write_tar(tmp_path / "y.tar", range(9), picture=lambda i: b"none"), check="header", held_out=0)
    with pytest.raises(InputError, match=r"y.tar#2 and 8 rows after it cannot be used"):
        bad.train.fetch(torch.tensor([2]))


def test_proportions_are_judged_without_a_survey_too(tmp_path):
    def long(i):
        import io

        from PIL import Image

        out = io.BytesIO()
        Image.new("RGB", (40, 10) if i == 1 else (10, 10), (i, 0, 0)).save(out, "PNG")
        return out.getvalue()

    path = write_tar(tmp_path / "x.tar", range(4), picture=long)
    assert ("skipped: longer than 3 times its breadth", 1, f"{path}#1") in opened(path, max_skipped=1).report
    data = opened(path, check="header", held_out=0)
    assert torch.equal(data.train.fetch(torch.tensor([1])), data.train.fetch(torch.tensor([2])))


def test_samples_without_a_picture_hidden_files_and_folders_are_told_or_passed_over(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        add(tar, "d/.hidden", b"x")
        add(tar, "d/0.txt", b"alone")
        add(tar, "d/1.input.PNG", encoded(1))
        add(tar, "d/1.txt", b"one\n\ntwo\n")
        add(tar, "e/1.png", encoded(2))
    data = opened(tmp_path / "x.tar", held_out=0)
    assert ("noted: a sample without a picture", 1, str(tmp_path / "x.tar")) in data.report
    assert numbers_of(data.train.fetch(torch.arange(2))) == [1, 2]
    assert data.train.captions(torch.tensor([0, 0, 1]), torch.tensor([0.1, 0.9, 0.0])) == ["one", "two", ""]


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """What Python and numpy hold of a set that is open and read from, at 1 and 8 times the rows."""
    held = []
    for rows in (25, 200):
        for number in range(8):
            write_tar(tmp_path / str(rows) / f"{number}.tar", range(rows))
        opened(tmp_path / str(rows) / "0.tar")  # what is imported then is no matter of the set
        gc.collect()
        tracemalloc.start()
        data = opened(tmp_path / str(rows) / "*.tar", check="header", window=2)
        loader = Loader(data.train, DataConfig(workers=0), 16, 8, 0)
        for step in range(8):
            loader(step)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held[1] - held[0] < 12 * 8 * (200 - 25)  # a list of integers would take 36 bytes a row, spans alone 40


def test_parts_and_order_are_small_to_send_to_a_worker(uneven):
    """Where workers are not forked they are sent the set; the tables are mapped there again."""
    sent = pickle.dumps(uneven)
    assert len(sent) < 20_000
    again = pickle.loads(sent)
    assert isinstance(again, Streamed)
    index = torch.tensor([0, 700, 1003])
    assert torch.equal(again.fetch(index), uneven.fetch(index))

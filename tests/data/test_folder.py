"""A stranger's folder: everything in it is used, or named with the reason."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from rectiflow.base.errors import InputError
from rectiflow.data.config import DataConfig
from rectiflow.data.folder import open_folder, write_index
from rectiflow.data.images import to_float
from rectiflow.data.loader import Loader

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def picture(path, colour="red", size=(20, 20), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(f"{path.parent.name}/{path.name}".encode())).integers(
        0, 5, (size[1], size[0], 3)
    )
    Image.fromarray((np.array(COLOURS[colour]) + noise).astype(np.uint8)).save(path, **options)


def classes(folder, count=6, names=tuple(COLOURS)):
    for name in names:
        for i in range(count):
            picture(folder / name / f"{i}.png", name if name in COLOURS else "red")
    return folder


def opened(folder, **settings):
    return open_folder(DataConfig(set="folder", dir=str(folder), **{"size": 16, "held_out": 0.2, **settings}))


def reported(data):
    return {what: count for what, count, _ in data.report}


def test_class_folders(tmp_path):
    data = opened(classes(tmp_path))
    assert data.class_names == ("blue", "green", "red")
    assert data.shape == (3, 16, 16)
    assert len(data.train) + len(data.held_out) == 18
    assert 0 < len(data.held_out) < 18
    for part in (data.train, data.held_out):
        pixels = to_float(part.fetch(torch.arange(len(part))))
        brightest = pixels.mean((2, 3)).argmax(1)
        assert brightest.tolist() == [{"red": 0, "green": 1, "blue": 2}[data.class_names[i]] for i in part.labels]


def test_one_class_keeps_its_label(tmp_path):
    assert opened(classes(tmp_path, names=("red",))).class_names == ("red",)


def test_numbers_are_in_their_own_order(tmp_path):
    assert opened(classes(tmp_path, 1, ("10", "9", "1")), held_out=0).class_names == ("1", "9", "10")


def test_a_stray_file_in_the_root_is_named_and_the_labels_stay(tmp_path):
    picture(classes(tmp_path) / "cover.png")
    data = opened(tmp_path)
    assert len(data.class_names) == 3
    assert ("skipped: lies outside the class folders", 1, "cover.png") in data.report


def test_folders_named_like_splits_are_parts(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "test", 2)
    data = opened(tmp_path)
    assert data.class_names == ("blue", "green", "red")
    assert (len(data.train), len(data.held_out)) == (18, 6)


def test_a_class_may_be_named_like_a_split(tmp_path):
    assert opened(classes(tmp_path, names=("train", "bus"))).class_names == ("bus", "train")


def test_a_training_part_alone_is_split_by_content(tmp_path):
    data = opened(classes(tmp_path / "train"))
    assert data.class_names == ("blue", "green", "red")
    assert len(data.held_out) > 0


def test_a_flat_folder_is_unconditional_with_sidecar_captions(tmp_path):
    for i in range(5):
        picture(tmp_path / f"{i}.jpg")
    (tmp_path / "3.txt").write_text(" a red square\n")
    data = opened(tmp_path, held_out=0)
    assert data.class_names == ()
    assert data.train.labels.tolist() == [-1] * 5
    assert data.train.captions(torch.arange(len(data.train))) == ["", "", "", "a red square", ""]
    assert reported(data)["with captions"] == 1


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata(tmp_path, kind):
    """Pictures that it does not name are used all the same; rows without a picture are named."""
    for i in range(4):
        picture(tmp_path / "in" / f"{i} [a].png")
    rows = [{"file_name": f"in/{i} [a].png", "text": f"number {i}", "kind": "ab"[i % 2]} for i in range(3)]
    rows.append({"file_name": "in/none.png", "text": "nothing", "kind": "a"})
    lines = [json.dumps(row) for row in rows]
    if kind == "csv":
        lines = ["file_name,text,kind", *(",".join(row.values()) for row in rows)]
    (tmp_path / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    data = opened(tmp_path, held_out=0, max_skipped=1)
    assert data.train.captions(torch.arange(len(data.train))) == ["number 0", "number 1", "number 2", ""]
    assert data.class_names == ("in",)
    assert ("without a row", 1, "in the metadata: used all the same") in data.report
    assert ("skipped: named in the metadata, not found", 1, "in/none.png") in data.report
    labelled = opened(tmp_path, held_out=0, max_skipped=1, labels="kind")
    assert labelled.class_names == ("a", "b")
    assert ("skipped: no label in the metadata", 1, "in/3 [a].png") in labelled.report
    with pytest.raises(InputError, match="Did you mean 'kind'"):
        opened(tmp_path, labels="kinds")


def test_labels_from_a_column_without_metadata(tmp_path):
    with pytest.raises(InputError, match="no metadata file"):
        opened(classes(tmp_path), labels="kind")


def damaged(folder):
    """Files that no decoder should be trusted with, by the reason that is to be given."""
    whole = folder / "red" / "0.png"
    big = folder / "red" / "big.jpg"
    picture(big, size=(200, 200))
    cut = big.read_bytes()
    big.write_bytes(cut[: len(cut) // 2])
    (folder / "red" / "words.png").write_text("not a picture at all")
    (folder / "red" / "empty.png").write_bytes(b"")
    (folder / "red" / "notes.pdf").write_bytes(b"%PDF")
    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = (
        struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + struct.pack(">I", 8) + b"IDAT" + bytes(12)
    )
    (folder / "red" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    picture(folder / "red" / "banner.png", size=(200, 10))
    (folder / "red" / ".hidden.png").write_bytes(whole.read_bytes())
    return {
        "truncated or damaged": "red/big.jpg",
        "not a picture": "red/words.png",
        "empty file": "red/empty.png",
        "not a picture by its name": "red/notes.pdf",
        "enormous": "red/bomb.png",
        "longer than 3 times its breadth": "red/banner.png",
    }


def test_what_cannot_be_used_is_named_skipped_and_counted(tmp_path):
    expected = damaged(classes(tmp_path))
    data = opened(tmp_path, max_skipped=0.3)
    skipped = {what.removeprefix("skipped: "): note for what, _, note in data.report if what.startswith("skipped")}
    assert skipped == expected
    assert reported(data)["found"] == 18 + 5
    assert reported(data)["used"] == 18


def test_too_many_unusable_files_are_refused(tmp_path):
    damaged(classes(tmp_path))
    with pytest.raises(InputError, match=r"only 18 of 23 .* can be used.*--set data.max_skipped=0.23"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: None, "no pictures in"),
        (lambda d: (d / "a.txt").write_text("x"), "no pictures in"),
        (lambda d: d.rmdir(), "no folder at"),
        (lambda d: (d.rmdir(), d.write_text("x")), "no folder at"),
    ],
)
def test_no_pictures(tmp_path, make, words):
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    with pytest.raises(InputError, match=words):
        opened(folder)


def test_no_folder_given():
    with pytest.raises(InputError, match="--data DIR"):
        open_folder(DataConfig(set="folder"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_permissions(tmp_path):
    (classes(tmp_path) / "red" / "1.png").chmod(0)
    assert ("skipped: permission denied", 1, "red/1.png") in opened(tmp_path).report


def test_a_file_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    classes(tmp_path)
    read = type(tmp_path).read_bytes

    def refuse(path):
        if path.name == "1.png" and path.parent.name == "red":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(type(tmp_path), "read_bytes", refuse)
    assert ("skipped: permission denied", 1, "red/1.png") in opened(tmp_path).report


def test_equal_files_stay_in_one_part(tmp_path):
    classes(tmp_path, 8)
    for path in list((tmp_path / "red").iterdir()):
        (tmp_path / "green" / f"copy of {path.name}").write_bytes(path.read_bytes())
    data = opened(tmp_path, held_out=0.5)
    assert reported(data)["copies"] == 8
    pixels = [part.fetch(torch.arange(len(part))).flatten(1) for part in (data.train, data.held_out)]
    assert not (pixels[0][:, None] == pixels[1][None]).all(-1).any()


def test_the_only_picture_held_out_takes_its_copies_along(tmp_path):
    picture(tmp_path / "a" / "0.png")
    for name in ("1", "2"):
        (tmp_path / "a" / f"{name}.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    assert len(opened(tmp_path, held_out=0.001).held_out) == 0  # nothing would be left to train on
    picture(tmp_path / "b" / "0.png", "blue")
    data = opened(tmp_path, held_out=1e-9)
    assert sorted((len(data.train), len(data.held_out))) == [1, 3]


def test_held_out_by_content_is_stable_when_the_folder_grows(tmp_path):
    before = opened(classes(tmp_path, 8))
    picture(tmp_path / "red" / "new.png")
    after = opened(tmp_path)
    kept = set(before.held_out.table["path"])
    assert kept <= set(after.held_out.table["path"])


def test_sizes_that_differ_need_a_size(tmp_path):
    picture(classes(tmp_path) / "red" / "large.png", size=(30, 20))
    with pytest.raises(InputError, match=r"2 sizes, from 20×20 to 20×30; choose one: --set data.size"):
        opened(tmp_path, size=None)
    assert opened(tmp_path, size=None, crop="none", max_aspect=1.2).shape == (3, 20, 20)
    assert ("skipped: other proportions, and data.crop is none", 1, "red/large.png") in opened(
        tmp_path, crop="none"
    ).report


def test_a_run_goes_on_with_the_pictures_it_began_with(tmp_path):
    config = DataConfig(set="folder", dir=str(classes(tmp_path / "data")), size=16)
    index = tmp_path / "index"
    first = open_folder(config)
    write_index(first, index)
    picture(tmp_path / "data" / "purple" / "0.png")
    (tmp_path / "data" / "red" / "0.png").unlink()
    again = open_folder(config, index)
    assert again.class_names == first.class_names
    assert again.train.table["path"] == first.train.table["path"]
    assert open_folder(config).class_names != first.class_names


def test_a_picture_that_vanishes_is_named_and_replaced(tmp_path, caplog):
    data = opened(classes(tmp_path))
    lost = data.train.table["path"][2]
    (tmp_path / lost).unlink()
    pixels = data.train.fetch(torch.tensor([2, 3]))
    assert torch.equal(pixels[0], pixels[1])
    assert caplog.messages == [f"{lost}: no such file or directory; another picture takes its place."]
    data.train.fetch(torch.tensor([2]))
    assert len(caplog.messages) == 1  # once each


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_vanishes_is_one_line(tmp_path, workers, caplog):
    folder = classes(tmp_path / "data")
    data = opened(folder, workers=workers)
    folder.rename(tmp_path / "away")
    loader = Loader(data.train, DataConfig(workers=workers), 4, 10, 0)
    with pytest.raises(InputError, match="has changed"):
        loader(0)


def test_batches_are_the_same_from_any_number_of_workers_and_from_any_step(tmp_path):
    data = opened(classes(tmp_path))
    options = {"crop": "random", "flip": True}
    alone, ahead = (Loader(data.train, DataConfig(workers=w, **options), 4, 8, 3) for w in (0, 2))
    for step in (0, 1, 2, 6, 7, 3):
        assert torch.equal(alone(step).pixels, ahead(step).pixels)
        assert torch.equal(alone(step).labels, ahead(step).labels)
    assert ahead.waited > 0


def test_mirrors_and_crops_are_used(tmp_path):
    picture(tmp_path / "wide.png", size=(40, 20))
    half = np.zeros((20, 40, 3), np.uint8)
    half[:, :20] = 255
    Image.fromarray(half).save(tmp_path / "wide.png")
    data = opened(tmp_path, held_out=0)
    plain, moved = (
        Loader(data.train, DataConfig(**options), 32, 8, 0)(0).pixels.mean((1, 2, 3))
        for options in ({}, {"crop": "random", "flip": True})
    )
    assert plain.unique().numel() == 1
    assert moved.unique().numel() > 8
    assert (moved > 0).any()
    assert (moved < 0).any()

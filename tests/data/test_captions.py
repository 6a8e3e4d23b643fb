"""Captions of every kind of file; what is wrong with one is told, and the picture is used all the same."""

import gc
import json
import os

import pyarrow as pa
import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.data.captions import CUT, MOST, NO_TEXT, NOT_UTF8, NUL, captions_of
from rectiflow.data.config import DataConfig
from rectiflow.data.folder import open_folder
from rectiflow.data.images import to_float
from rectiflow.data.loader import Loader
from tests.data.test_folder import opened, picture, reported

ALL = torch.arange


def pictures(folder, count=3):
    for i in range(count):
        picture(folder / f"{i}.png", ("red", "green", "blue")[i % 3])
    return folder


def given(data, number, of=4):
    """All captions that a picture has, by every choice there is."""
    draws = torch.arange(of) / of
    return data.train.captions(torch.full((of,), number), draws)


def jsonl(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rows_of_one_picture_are_its_captions(tmp_path):
    rows = [("0.png", "one"), ("0.png", "two"), ("1.png", "three"), ("0.png", "one"), ("1.png", "three")]
    jsonl(pictures(tmp_path), [{"file_name": name, "text": text} for name, text in rows])
    data = opened(tmp_path, held_out=0)
    assert given(data, 0) == ["one", "one", "two", "two"]
    assert given(data, 1) == ["three"] * 4
    assert data.train.captions(ALL(3)) == ["one", "three", ""]  # the first
    assert ("named twice in the metadata: kept once", 2, "0.png") in data.report
    assert ("with captions", 2, "3 captions, up to 2 of a picture") in data.report
    assert reported(data)["without captions"] == 1
    assert reported(data)["used"] == reported(data)["found"] == 3


def test_rows_that_disagree_on_the_label_are_told(tmp_path):
    rows = [{"file_name": "0.png", "text": f"caption {kind}", "kind": kind} for kind in "ab"]
    data = opened(jsonl(pictures(tmp_path, 1), rows), held_out=0, labels="kind")
    assert data.class_names == ("a",)
    assert given(data, 0) == ["caption a", "caption a", "caption b", "caption b"]
    assert ("named twice in the metadata, with another kind: the first counts", 1, "0.png") in data.report


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_of_lists(tmp_path, kind):
    rows = [{"file_name": f"{i}.png", "words": words} for i, words in enumerate([["a", "b"], ["c"], []])]
    pictures(tmp_path)
    if kind == "jsonl":
        jsonl(tmp_path, rows)
    else:
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    data = opened(tmp_path, held_out=0, caption="words")
    assert [given(data, i, 2) for i in range(3)] == [["a", "b"], ["c", "c"], ["", ""]]


def test_each_line_of_a_sidecar_is_a_caption(tmp_path):
    pictures(tmp_path)
    (tmp_path / "0.txt").write_bytes("\ufeffein rotes Bild\r\n\r\n  ein Quadrat in Rot \r\n".encode())
    (tmp_path / "1.txt").write_text(" \n\n")
    data = opened(tmp_path, held_out=0)
    assert given(data, 0, 2) == ["ein rotes Bild", "ein Quadrat in Rot"]
    assert given(data, 1, 2) == ["", ""]
    assert reported(data)["with captions"] == 1


def test_what_is_not_utf8_is_left_out_and_told(tmp_path):
    pictures(tmp_path)
    (tmp_path / "metadata.csv").write_bytes("file_name,text\n0.png,Café\n1.png,tea\n2.png,Käse\n".encode("latin-1"))
    data = opened(tmp_path, held_out=0)
    assert data.train.captions(ALL(3)) == ["", "tea", ""]
    assert (NOT_UTF8, 2, "0.png") in data.report
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "0.txt").write_bytes("Café\ntea\n".encode("latin-1"))
    (tmp_path / "1.txt").write_text("tea and milk", encoding="utf-16")
    data = opened(tmp_path, held_out=0)
    assert data.train.captions(ALL(3)) == ["tea", "", ""]
    assert (NOT_UTF8, 2, "0.png") in data.report


def test_nul_is_told_as_what_it_is(tmp_path):
    jsonl(pictures(tmp_path), [{"file_name": "0.png", "text": ["a\0b", "tea"]}])
    (tmp_path / "1.txt").write_bytes(b"tea\0\n")
    (tmp_path / "2.txt").write_text("tea\nand milk", encoding="utf-16")
    data = opened(tmp_path, held_out=0)
    assert data.train.captions(ALL(3)) == ["tea", "", ""]
    assert (NUL, 2, "0.png") in data.report
    assert (NOT_UTF8, 1, "2.png") in data.report


def test_half_a_character_is_left_out_and_told(tmp_path):
    """JSON can name what no text in UTF-8 holds."""
    rows = '{"file_name": "0.png", "text": ["\\ud83d", "tea"]}\n{"file_name": "1.png", "text": "\\ud83d\\ude00"}\n'
    (pictures(tmp_path) / "metadata.jsonl").write_text(rows)
    data = opened(tmp_path, held_out=0)
    assert data.train.captions(ALL(3)) == ["tea", "\U0001f600", ""]
    assert (NOT_UTF8, 1, "0.png") in data.report


def test_metadata_in_utf16_are_refused(tmp_path):
    (pictures(tmp_path) / "metadata.csv").write_text("file_name,text\n0.png,tea\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"metadata.csv is in UTF-16, expected UTF-8; save it again"):
        opened(tmp_path)


def test_a_mark_of_utf8_is_no_part_of_the_name(tmp_path):
    (pictures(tmp_path) / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "tea"}\n', encoding="utf-8-sig")
    assert opened(tmp_path, held_out=0).train.captions(ALL(1)) == ["tea"]


def test_enormous_captions_are_cut(tmp_path):
    jsonl(pictures(tmp_path), [{"file_name": "0.png", "text": "é" * (MOST + 1)}, {"file_name": "1.png", "text": "x"}])
    (tmp_path / "2.txt").write_text("long " * 10**6)
    data = opened(tmp_path, held_out=0)
    assert [len(caption) for caption in data.train.captions(ALL(3))] == [MOST, 1, MOST - 1]
    assert reported(data)[CUT] == 2
    assert ("longest caption", MOST, "characters; the shortest has 1") in data.report


def test_a_row_without_a_name_is_told(tmp_path):
    rows = [{"file_name": "0.png", "text": "x"}, {"file_name": None, "text": "y"}]
    data = opened(jsonl(pictures(tmp_path), rows), held_out=0)
    assert ("row without file_name: left out", 1, "metadata.jsonl, line 2") in data.report


def test_a_column_that_is_not_there(tmp_path):
    jsonl(pictures(tmp_path), [{"file_name": "0.png", "prompt": "x"}])
    data = opened(tmp_path, held_out=0)
    assert not data.train.captioned
    assert ("captions", 0, "no column text; there are: prompt (data.caption)") in data.report
    with pytest.raises(InputError, match=r"unknown column for data.caption 'promt'. Did you mean 'prompt'"):
        opened(tmp_path, caption="promt")
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(InputError, match=r"data.caption=prompt names a column, but there is no metadata"):
        opened(tmp_path, caption="prompt")


@pytest.mark.parametrize("value", [None, "", "  ", [], [None, ""]])
def test_an_empty_caption_is_none(value):
    assert captions_of(value) == ([], [])


def test_batches_take_one_of_the_captions_by_their_own_draw(tmp_path):
    """Each equally often, whoever decodes, and not always the same one of a picture."""
    jsonl(pictures(tmp_path, 2), [{"file_name": "0.png", "text": f"caption {i}"} for i in range(4)])
    data = opened(tmp_path, held_out=0)
    alone, ahead = (Loader(data.train, DataConfig(workers=workers), 64, 8, 0) for workers in (0, 1))
    counts = {}
    for step in range(8):
        batch = alone(step)
        assert batch.captions == ahead(step).captions
        assert torch.equal(batch.pixels, to_float(data.train.fetch(batch.index)))
        assert all(caption == "" for caption, row in zip(batch.captions, batch.index, strict=True) if row == 1)
        for caption in batch.captions:
            counts[caption] = counts.get(caption, 0) + 1
    assert counts.pop("") == 256
    assert set(counts) == {f"caption {i}" for i in range(4)}
    assert max(abs(count - 64) for count in counts.values()) < 4 * (64 * 3 / 4) ** 0.5


def test_an_inventory_of_one_caption_each_still_opens(tmp_path):
    jsonl(pictures(tmp_path / "data"), [{"file_name": "1.png", "text": "x"}])
    data = opened(tmp_path / "data", held_out=0)
    former = data.train.table.remove_columns(["captions", "label"]).add_column("caption", ["", "x", ""])
    former.save_to_disk(str(tmp_path / "index"))
    again = open_folder(data.train.config, tmp_path / "index")
    assert again.train.captions(ALL(3)) == ["", "x", ""]
    assert torch.equal(again.train.fetch(ALL(3)), data.train.fetch(ALL(3)))


def test_the_table_is_mapped_from_disk(tmp_path):
    """What it holds is not in Arrow's own memory."""
    jsonl(pictures(tmp_path), [{"file_name": f"{i}.png", "text": "long " * 2000} for i in range(3)])
    before = pa.total_allocated_bytes()
    data = opened(tmp_path, held_out=0)
    assert data.train.captions(ALL(3))[2].startswith("long long")
    gc.collect()
    assert data.train.table.cache_files
    assert pa.total_allocated_bytes() - before < 15_000


def test_a_column_of_bytes(tmp_path):
    import pyarrow.parquet as pq

    rows = {"file_name": ["0.png", "1.png", "2.png"], "text": ["Käse".encode(), "Käse".encode("latin-1"), b""]}
    pq.write_table(pa.table(rows), pictures(tmp_path) / "metadata.parquet")
    data = opened(tmp_path, held_out=0)
    assert data.train.captions(ALL(3)) == ["Käse", "", ""]
    assert (NOT_UTF8, 1, "1.png") in data.report


def test_what_is_no_text_is_left_out_and_told():
    assert captions_of([["a", "b"], "c"]) == (["c"], [NO_TEXT])
    assert captions_of({"en": "a"}) == ([], [NO_TEXT])
    assert captions_of(7) == (["7"], [])
    assert captions_of(float("nan")) == ([], [])


def test_pipes_are_not_waited_for(tmp_path):
    pictures(tmp_path)
    os.mkfifo(tmp_path / "0.txt")
    os.mkfifo(tmp_path / "3.png")
    data = opened(tmp_path, held_out=0, max_skipped=0.5)
    assert reported(data)["used"] == 3
    assert ("skipped: a pipe or a device, not a file", 2, "0.txt") in data.report


def test_names_that_are_not_utf8_are_told(tmp_path):
    pictures(tmp_path)
    try:
        os.rename(os.fsencode(tmp_path / "2.png"), os.fsencode(tmp_path) + b"/\xe4.png")
    except OSError:
        pytest.skip("this file system takes no such names")
    data = opened(tmp_path, held_out=0, max_skipped=0.5)
    assert reported(data)["used"] == 2
    assert ("skipped: its name is not UTF-8", 1, "\ufffd.png") in data.report

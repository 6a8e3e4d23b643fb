"""Metadata files are read as they are written; what is wrong with a row is told, and the others count."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.data.metadata import NOT_FOUND, OUTSIDE
from rectiflow.data.metadata_files import NO_CSV, NO_JSON, TOO_MANY, lines
from tests.data.test_captions import given, pictures
from tests.data.test_folder import opened

ALL = torch.arange


def metadata(folder, text, kind="csv"):
    path = folder / f"metadata.{kind}"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_cell_of_csv_is_text(tmp_path):
    """Neither a number nor a word for nothing, whatever stands in the other rows."""
    pictures(tmp_path, 5)
    metadata(
        tmp_path, "file_name,text,kind\n0.png,5,007\n1.png,,7\n2.png,NA,null\n3.png,None,1e3\n4.png,2020-01-01,NaN\n"
    )
    data = opened(tmp_path, held_out=0, labels="kind")
    assert data.train.captions(ALL(5)) == ["5", "", "NA", "None", "2020-01-01"]
    assert data.class_names == ("007", "7", "1e3", "NaN", "null")


def test_csv_as_spreadsheets_write_it(tmp_path):
    """CRLF, quotes, a comma and a line break within them, empty rows and columns, a column twice."""
    pictures(tmp_path)
    text = (
        '\ufefffile_name, text,text,,\r\n0.png,"a ""red"", wet\nhill",b,,\r\n\r\n,,,,\r\n1.png,5" pipe,,,\r\n2.png\r\n'
    )
    (tmp_path / "metadata.csv").write_bytes(text.encode())
    data = opened(tmp_path, held_out=0)
    assert data.train.captions(ALL(3)) == ['a "red", wet\nhill', '5" pipe', ""]
    assert not [line for line in data.report if "left out" in line[0]]


def test_a_long_cell(tmp_path):
    path = metadata(tmp_path, "file_name,text\n0.png," + 200_000 * "x" + "\n")
    assert [len(line.values["text"]) for line in lines(path)] == [200_000]


def test_an_image_column_is_a_column(tmp_path):
    metadata(pictures(tmp_path), "file_name,text,image\n0.png,red,first\n")
    assert opened(tmp_path, held_out=0, caption="image").train.captions(ALL(3)) == ["first", "", ""]


def test_texts_and_lists_of_texts_in_one_file(tmp_path):
    rows = [{"file_name": "0.png", "text": "a"}, {"file_name": "1.png", "text": ["b", "c"]}, {"file_name": "2.png"}]
    metadata(pictures(tmp_path), "\n\n".join(map(json.dumps, rows)), "jsonl")
    data = opened(tmp_path, held_out=0)
    assert [given(data, i, 2) for i in range(3)] == [["a", "a"], ["b", "c"], ["", ""]]


def test_rows_that_cannot_be_read_are_named_by_their_line(tmp_path):
    pictures(tmp_path)
    good = json.dumps({"file_name": "1.png", "text": "tea"})
    path = metadata(tmp_path, '{"file_name": "0.png"\n' + good + '\n["2.png", "x"]\n' + 2000 * "[", "jsonl")
    data = opened(tmp_path, held_out=0)
    assert data.train.captions(ALL(3)) == ["", "tea", ""]
    assert (NO_JSON, 3, "metadata.jsonl, line 1") in data.report
    path.unlink()
    metadata(tmp_path, 'file_name,text\n0.png,red, or not\n1.png,tea\n2.png,"red" car\n,x\n')
    data = opened(tmp_path, held_out=0)
    assert data.train.captions(ALL(3)) == ["", "tea", ""]
    assert (TOO_MANY, 1, "metadata.csv, line 2") in data.report
    assert (NO_CSV, 1, "metadata.csv, line 4") in data.report
    assert ("row without file_name: left out", 1, "metadata.csv, line 5") in data.report


def test_rows_that_name_files_elsewhere_are_left_out_and_told(tmp_path):
    names = ["/etc/0.png", "../0.png", "none.png", "./0.png"]
    rows = "".join(json.dumps({"file_name": name, "text": "x"}) + "\n" for name in names)
    metadata(pictures(tmp_path), rows, "jsonl")
    data = opened(tmp_path, held_out=0, max_skipped=0.5)
    assert data.train.captions(ALL(3)) == ["x", "", ""]
    assert (f"skipped: {OUTSIDE}", 2, "../0.png") in data.report
    assert (f"skipped: {NOT_FOUND}", 1, "none.png") in data.report


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("jsonl", "", "it has no rows"),
        ("jsonl", '{"name": "x.png"}\n', "no column file_name, but name"),
        ("jsonl", '[\n{"file_name": "x.png"},\n', "line 1: row that is no JSON object"),
        ("csv", "", "it has no rows"),
        ("csv", "file_name,text\n", "it has no rows"),
        ("csv", "file_name;text\n0.png;x\n", "no column file_name, but file_name;text"),
        ("csv", 'file_name,text\n0.png,"x\n1.png,"y"\n', "a quote that opens in line 2 is not closed before text"),
        ("csv", 'file_name,text\n0.png,x\n1.png,"y\n2.png,z\n', "a quote that opens in line 3 is not closed"),
        ("parquet", "PAR1 not really", "it is no parquet file, or damaged after row 0"),
    ],
)
def test_metadata_that_cannot_be_read(tmp_path, kind, text, reason):
    metadata(pictures(tmp_path), text, kind)
    with pytest.raises(
        InputError, match=rf"metadata\.{kind} cannot be read as metadata \({reason}.*; expected .* text"
    ):
        opened(tmp_path)


def test_a_metadata_file_of_no_rows_with_pictures_inside(tmp_path):
    empty = pa.table({"image": pa.array([], pa.binary()), "file_name": pa.array([], pa.string())})
    pq.write_table(empty, pictures(tmp_path) / "metadata.parquet")
    with pytest.raises(InputError, match=r"metadata\.parquet cannot be read as metadata \(it has no rows\)"):
        opened(tmp_path)

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rectiflow.base.errors import InputError
from rectiflow.data import pictures
from rectiflow.data.pictures import grid, save_folder, save_npz, save_png, screen_scale, to_image, to_uint8

PIXELS = torch.arange(3 * 2 * 4, dtype=torch.uint8).reshape(3, 2, 4, 1)


def test_grey_levels_come_back():
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(levels / 127.5 - 1)[0, ..., 0], levels[0, 0].to(torch.uint8))
    assert to_uint8(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


@pytest.mark.parametrize("piece", [1, 100, 10**6])
def test_clips_and_many_pictures_are_converted_piece_by_piece(monkeypatch, piece):
    monkeypatch.setattr(pictures, "_PIECE", piece)
    clips = 3 * torch.rand(2, 3, 5, 4, 6) - 1.5
    levels = to_uint8(clips)
    assert levels.is_contiguous()
    expected = ((clips.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(levels, expected.permute(0, 2, 3, 4, 1))
    assert torch.equal(to_uint8(clips.transpose(1, 2).flatten(0, 1)), levels.flatten(0, 1))
    assert to_uint8(clips[:0]).shape == (0, 5, 4, 6, 3)
    assert torch.equal(to_uint8(clips.bfloat16()[:, :, 0]), to_uint8(clips.bfloat16().float()[:, :, 0]))


def test_grid_places_pictures_row_by_row():
    sheet = np.array(grid(PIXELS, columns=2, scale=1, gap=1))
    assert sheet.shape == (2 * 3 + 1, 2 * 5 + 1)
    assert sheet[1:3, 6:10].tolist() == PIXELS[1, ..., 0].tolist()
    assert sheet[4:6, 1:5].tolist() == PIXELS[2, ..., 0].tolist()
    assert grid(PIXELS, columns=3, scale=5).size == ((3 * 5 + 1) * 5, (2 + 2) * 5)


def test_colour():
    pixels = torch.randint(256, (1, 4, 4, 3), dtype=torch.uint8)
    assert np.array_equal(np.array(to_image(pixels[0])), pixels[0].numpy())


def test_scale_to_the_screen():
    assert [screen_scale(size, size) for size in (8, 28, 32, 64, 512)] == [4, 1, 1, 1, 1]


def test_png_carries_its_facts(tmp_path):
    save_png(to_image(PIXELS[0]), tmp_path / "new" / "x.png", {"seed": 3, "model": "runs/é", "classes": ["a"]})
    text = Image.open(tmp_path / "new" / "x.png").text
    assert (json.loads(text["seed"]), text["model"], json.loads(text["classes"])) == (3, "runs/é", ["a"])


def test_npz(tmp_path):
    save_npz(PIXELS, torch.tensor([0, 1, 2]), tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as archive:
        assert np.array_equal(archive["arr_0"], PIXELS.numpy())
        assert archive["arr_0"].dtype == np.uint8
        assert archive["arr_1"].tolist() == [0, 1, 2]


def test_folder(tmp_path):
    save_folder(PIXELS, tmp_path / "out", [{"class": str(i)} for i in range(3)])
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [line["class"] for line in lines] == ["0", "1", "2"]
    for picture, line in zip(PIXELS, lines, strict=True):
        assert np.array_equal(np.array(Image.open(tmp_path / "out" / line["file_name"])), picture[..., 0].numpy())


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="could not write"):
        save_npz(PIXELS, torch.zeros(3), tmp_path / "file" / "x.npz")

"""A folder of films as a set of clips: everything in it is used, or named with the reason."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from rectiflow.base.errors import InputError
from rectiflow.data.config import DataConfig
from rectiflow.data.containers import is_cut
from rectiflow.data.folder import open_folder, write_index
from rectiflow.data.loader import Loader
from tests.data.film_files import even, number_in, numbered, write_animation, write_film


def opened(folder, index=None, **settings):
    given = {"size": (16, 32), "held_out": 0.2, "frames": 9, "max_skipped": 1.0, **settings}
    return open_folder(DataConfig(set="folder", dir=str(folder), **given), index)


def films(folder, count=6, length=20):
    """Film i has `length` frames with the numbers 20i, 20i + 1, …"""
    for i in range(count):
        kind = ("mp4", "webm", "mkv", "mov")[i % 4]
        codec = "libvpx-vp9" if kind == "webm" else "libx264"
        fast = {"deadline": "realtime", "cpu-used": "8"} if kind == "webm" else {}
        write_film(folder / f"{i}.{kind}", even(length), codec, options={"g": "12", **fast}, first=20 * i)
    return folder


def numbers(clips):
    return [[number_in(frame.permute(1, 2, 0).numpy()) for frame in clip.unbind(1)] for clip in clips]


def line(data, what):
    return next((count, note) for name, count, note in data.report if name == what)


def test_films_give_windows_with_their_captions(tmp_path):
    films(tmp_path)
    (tmp_path / "3.txt").write_text("the third\n")
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.mp4,the first\n1.webm,the second\n")
    data = opened(tmp_path)
    assert data.shape == (3, 9, 16, 32)
    assert data.size == (16, 32)
    parts = [set(part.table["path"]) for part in (data.train, data.held_out)]
    assert parts[0] & parts[1] == set()
    assert len(parts[1]) >= 1
    seen = {}
    for part in (data.train, data.held_out):
        index = torch.arange(len(part))
        for got, caption in zip(numbers(part.fetch(index)), part.captions(index), strict=True):
            seen[got[0]] = caption
            assert got == list(range(got[0], got[0] + 9))
    said = ["the first", "the second", "", "the third", "", ""]
    assert seen == {20 * i + start: said[i] for i in range(6) for start in (0, 9)}
    assert line(data, "clips")[0] == 12
    assert line(data, "frames left over")[0] == 12
    assert line(data, "cut into several")[0] == 6
    assert data.train.stills is None


def test_class_folders(tmp_path):
    for name in ("cat", "dog"):
        films(tmp_path / name, 2)
    data = opened(tmp_path, held_out=0)
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4


def test_pictures_beside_clips_are_stills(tmp_path):
    films(tmp_path)
    for i in range(20):
        Image.fromarray(numbered(200 + i)).save(tmp_path / f"still {i:02d}.png")
    write_animation(tmp_path / "zz one frame.gif", [100], first=220)
    data = opened(tmp_path)
    stills = [part.stills for part in (data.train, data.held_out)]
    found = [n for part in stills if part is not None for n in numbers(part.fetch(torch.arange(len(part))))]
    assert sorted(found) == [[200 + i] for i in range(21)]
    assert stills[0].shape == (3, 1, 16, 32)
    assert line(data, "stills")[0] == 21
    loader = Loader(data.train, DataConfig(frames=9, workers=0), 4, 50, 0)
    shapes = {tuple(loader(step).pixels.shape) for step in range(20)}
    assert shapes == {(4, 3, 9, 16, 32), (4, 3, 1, 16, 32)}


def test_workers_give_what_the_process_itself_gives(tmp_path):
    data = opened(films(tmp_path), crop="random", size=16)
    config = DataConfig(set="folder", frames=9, crop="random", flip=True)
    here, there = (Loader(data.train, config.model_copy(update={"workers": n}), 4, 6, 0) for n in (0, 2))
    for step in (3, 4, 5, 0):
        assert torch.equal(here(step).pixels, there(step).pixels)


def test_a_run_goes_on_with_the_clips_it_began_with(tmp_path):
    folder = films(tmp_path / "films")
    Image.fromarray(numbered(255)).save(folder / "still.png")
    data = opened(folder)
    write_index(data, tmp_path / "index")
    write_film(folder / "0 new.mp4", even(20))
    again = opened(folder, tmp_path / "index")
    for one, other in ((data.train, again.train), (data.held_out, again.held_out)):
        assert one.table["path"] == other.table["path"]
        assert one.table["start"] == other.table["start"]
        assert (one.stills is None) == (other.stills is None)
    assert torch.equal(data.train.fetch(torch.tensor([1])), again.train.fetch(torch.tensor([1])))
    with pytest.raises(InputError, match="lists clips"):
        opened(folder, tmp_path / "index", frames=1)


def broken(folder):
    """Files that cannot be used, among six that can."""
    films(folder)
    whole = (folder / "0.mp4").read_bytes()
    (folder / "2 cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    webm = (folder / "1.webm").read_bytes()
    (folder / "2 cut.webm").write_bytes(webm[: len(webm) * 2 // 3])
    (folder / "2 empty.mp4").touch()
    (folder / "2 rubbish.avi").write_bytes(bytes(range(256)) * 20)
    (folder / "2 unknown.mp4").write_bytes(whole.replace(b"avc1", b"zzzz"))
    write_film(folder / "2 short.mp4", even(5))
    write_film(folder / "2 one.mkv", [0.0])
    tone(folder / "2 sound.mp4")
    (folder / "notes.pdf").write_text("x")
    return folder


def tone(path):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("check", ["decode", "header"])
def test_what_cannot_be_used_is_named_with_its_reason(tmp_path, check):
    data = opened(broken(tmp_path), check=check)
    assert line(data, "used")[0] == 6
    assert line(data, "found")[0] == 14
    skipped = {what.removeprefix("skipped: "): (count, note) for what, count, note in data.report if "skipped" in what}
    assert skipped == {
        "truncated or damaged": (3, "2 cut.mp4"),
        "empty file": (1, "2 empty.mp4"),
        "its codec is not known here": (1, "2 unknown.mp4"),
        "shorter than 9 frames": (1, "2 short.mp4"),
        "one frame": (1, "2 one.mkv"),
        "no video stream": (1, "2 sound.mp4"),
        "neither a clip nor a picture by its name": (1, "notes.pdf"),
    }


def test_damage_in_the_middle_is_found_by_decoding(tmp_path):
    path = write_film(tmp_path / "x.mkv", even(60), options={"g": "60"})
    films(tmp_path, 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    data = opened(tmp_path, held_out=0)
    assert line(data, "skipped: truncated or damaged") == (1, "x.mkv")


def test_folders_without_clips(tmp_path):
    with pytest.raises(InputError, match=r"no clips in .*expected files such as .mp4"):
        opened(tmp_path)
    Image.fromarray(numbered(1)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"no clips in .*, but 1 pictures"):
        opened(tmp_path)
    write_film(tmp_path / "b.mp4", even(5))
    with pytest.raises(InputError, match=r"1 shorter than 9 frames \(b.mp4\)") as caught:
        opened(tmp_path, max_skipped=0.1)
    assert "\n" not in str(caught.value)


def test_a_film_gone_bad_is_named_once_and_its_neighbour_taken(tmp_path, caplog):
    data = opened(films(tmp_path, 3), held_out=0)
    before = numbers(data.train.fetch(torch.arange(6)))
    (tmp_path / "1.webm").write_bytes(b"gone")
    with caplog.at_level("WARNING", "rectiflow"):
        after = numbers(data.train.fetch(torch.arange(6)))
    assert after == [*before[:2], before[4], before[4], *before[4:]]
    assert [record.getMessage() for record in caplog.records] == [
        "1.webm: truncated or damaged; another clip takes its place."
    ]
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match="has changed"):
        data.train.fetch(torch.tensor([0]))


def test_a_rate_of_ones_own(tmp_path):
    """Half the frames a second: half as many clips, of every second frame."""
    data = opened(films(tmp_path, 2), held_out=0, rate=5)
    assert numbers(data.train.fetch(torch.arange(2))) == [list(range(s, s + 18, 2)) for s in (0, 20)]
    slow = opened(tmp_path, held_out=0, rate=20)
    assert line(slow, "slower films")[0] == 2
    assert numbers(slow.train.fetch(torch.tensor([0])))[0] == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_odd_sizes(tmp_path):
    """A gif may have them."""
    frames = [Image.fromarray(numbered(i, 17, 33)) for i in range(10)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=100)
    data = opened(tmp_path, held_out=0, size=None)
    assert data.shape == (3, 9, 17, 33)
    assert numbers(data.train.fetch(torch.tensor([0]))) == [list(range(9))]


def test_without_pyav_one_line_says_what_to_install(tmp_path, monkeypatch):
    films(tmp_path, 1)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'rectiflow\[video\]'") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv", "avi", "gif", "webp"])
def test_a_file_is_cut_if_any_of_its_end_is_missing(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind in ("gif", "webp"):
        write_animation(path, [40] * 5)
    else:
        codec = {"webm": "libvpx", "avi": "mpeg4"}.get(kind, "libx264")
        write_film(path, even(20), codec)
    content = path.read_bytes()
    assert not is_cut(path)
    for share in (0.3, 0.6, 0.9, 1 - 1 / len(content)):
        path.write_bytes(content[: int(len(content) * share)])
        assert is_cut(path), share


def test_metadata_as_lines(tmp_path):
    films(tmp_path / "in", 2)
    rows = [{"file_name": f"in/{name}", "text": [f"a {name}", "another"]} for name in ("0.mp4", "1.webm")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = opened(tmp_path, held_out=0)
    assert list(data.train.every_caption()) == ["a 0.mp4", "another"] * 2 + ["a 1.webm", "another"] * 2

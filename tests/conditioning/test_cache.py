"""States of captions on disk: the encoder's own, made once, restartable, refused where they are of something else."""

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.conditioning import cache_writer
from rectiflow.conditioning.cache import Cached
from rectiflow.conditioning.cache_writer import write_states
from rectiflow.conditioning.config import FrozenConfig
from rectiflow.conditioning.encoder_files import encoder_folder
from rectiflow.conditioning.frozen import Frozen
from tests.conditioning.tiny import encoder

MANY = [f"{'a very ' * (i % 4)}{colour} {i % 23}" for i in range(60) for colour in ("red", "blue", "")]
DISTINCT = list(dict.fromkeys(MANY))
LOOSE = {"atol": 4e-3, "rtol": 2e-3}


@pytest.fixture
def asked(monkeypatch):
    """Captions that a model was asked for."""
    seen = []
    original = Frozen.encode

    def counting(self, captions):
        seen.extend(captions)
        return original(self, captions)

    monkeypatch.setattr(Frozen, "encode", counting)
    return seen


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(cache_writer, "_SHARD", 20)
    monkeypatch.setattr(cache_writer, "_BATCH", 7)


def reader(folder, kind="t5", seed=0, **settings):
    if not folder.exists():
        encoder(folder, kind, seed)
    return Frozen(FrozenConfig(name=str(folder), **settings), encoder_folder(str(folder)))


def write(frozen, folder, captions=MANY, told=None):
    return write_states(
        frozen, lambda: captions, folder, (lambda *now: told.append(now)) if told is not None else print
    )


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["t5", "clip"])
def test_cached_states_are_those_of_the_encoder(kind, dtype, tmp_path, asked):
    frozen = reader(tmp_path / "encoder", kind, cache=dtype)
    told = []
    manifest = write(frozen, tmp_path / "cache", told=told)
    assert sorted(asked) == sorted(DISTINCT)  # each once
    assert sum(shard.captions for shard in manifest.shards) == len(DISTINCT)
    assert told[-1] == (len(DISTINCT), len(DISTINCT))
    cached = Cached(frozen, tmp_path / "cache", manifest)
    frozen.release()
    asked.clear()
    batch = [MANY[5], "", *DISTINCT, MANY[5]]
    text = cached(batch)
    assert asked == []
    assert frozen._model is None
    plain = frozen(batch)
    assert torch.equal(text.mask, plain.mask)
    assert text.values.dtype == torch.float32
    assert text.values.shape[1] % 8 == 7
    rounded = LOOSE if dtype == "float16" else {"atol": 3e-2, "rtol": 1e-2}
    torch.testing.assert_close(text.values, plain.values, **rounded)
    assert torch.equal(text.values, text.values.to(getattr(torch, dtype)).float())
    assert torch.equal(cached([DISTINCT[7]]).values[0, :4], cached(DISTINCT).values[7, :4])
    if kind == "clip":
        torch.testing.assert_close(text.pooled, plain.pooled, **rounded)
        assert not text.pooled[1].any()
    else:
        assert text.pooled is None


def test_captions_that_are_not_there_are_asked_of_the_encoder(tmp_path, asked):
    frozen = reader(tmp_path / "encoder")
    cached = Cached(frozen, tmp_path / "cache", write(frozen, tmp_path / "cache"))
    asked.clear()
    text = cached(["a prompt of a user", MANY[0], "a prompt of a user"])
    assert asked == ["a prompt of a user"]
    plain = frozen(["a prompt of a user"])
    torch.testing.assert_close(text.values[2], plain.values[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(text.values[0], text.values[2])


def test_equal_keys_are_told_apart_by_their_captions(tmp_path, asked, monkeypatch):
    for module in ("cache", "cache_writer"):
        monkeypatch.setattr(f"rectiflow.conditioning.{module}.key_of", lambda caption: len(caption))
    frozen = reader(tmp_path / "encoder")
    cached = Cached(frozen, tmp_path / "cache", write(frozen, tmp_path / "cache", ["red", "blue", "tan"]))
    assert asked == ["red", "blue"]  # the first of each key
    text = cached(["tan", "red", "blue"])
    torch.testing.assert_close(text.values, frozen(["tan", "red", "blue"]).values, **LOOSE)


def test_what_is_there_is_not_made_again(tmp_path, asked):
    manifest = write(reader(tmp_path / "encoder"), tmp_path / "cache")
    before = content(tmp_path / "cache")
    asked.clear()
    frozen = reader(tmp_path / "encoder")
    assert write(frozen, tmp_path / "cache") == manifest
    assert (asked, frozen._model) == ([], None)
    assert content(tmp_path / "cache") == before


@pytest.mark.parametrize("fails_at", [0, 2, 3, 5, 9])
def test_cut_off_it_goes_on_bit_for_bit(fails_at, tmp_path, monkeypatch):
    write(reader(tmp_path / "encoder"), tmp_path / "whole")
    calls, original = [], Frozen.encode

    def failing(self, captions):
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        calls.append(len(captions))
        return original(self, captions)

    with monkeypatch.context() as patch:
        patch.setattr(Frozen, "encode", failing)
        with pytest.raises(KeyboardInterrupt):
            write(reader(tmp_path / "encoder"), tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".*.tmp"))
    whole = len(list((tmp_path / "cut").glob("*.arrow")))
    assert whole == fails_at // 3
    (tmp_path / "cut" / ".00001.arrow.123.tmp").write_text("of a process that was killed")
    calls.clear()
    fails_at = -1
    monkeypatch.setattr(
        Frozen, "encode", lambda self, captions: calls.append(len(captions)) or original(self, captions)
    )
    write(reader(tmp_path / "encoder"), tmp_path / "cut")
    assert sum(calls) == len(DISTINCT) - 20 * whole
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.parametrize("harm", ["shorter", "gone", "no note", "torn note"])
def test_a_torn_shard_alone_is_made_again(harm, tmp_path, asked, caplog):
    frozen = reader(tmp_path / "encoder")
    write(frozen, tmp_path / "cache")
    before = content(tmp_path / "cache")
    path, note = tmp_path / "cache" / "00001.arrow", tmp_path / "cache" / "00001.json"
    if harm == "gone":
        path.unlink()
    elif harm == "shorter":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        (tmp_path / "cache" / "captions.json").unlink()
        note.unlink() if harm == "no note" else note.write_text(note.read_text()[:30])
    asked.clear()
    manifest = write(frozen, tmp_path / "cache")
    assert asked == DISTINCT[20:40]
    assert content(tmp_path / "cache") == before
    assert Cached(frozen, tmp_path / "cache", manifest)(DISTINCT).mask.any(1).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, r"was made by another encoder \(.{8}…; this run's is .{8}…\)"),
        ({"length": 9}, r"holds captions of 16 tokens at most \(this run's length is 9\)"),
        ({"precision": "bfloat16"}, "was computed in float32"),
        ({"cache": "bfloat16"}, r"holds float16 \(this run's cache is bfloat16\)"),
        ({"captions": MANY[1:]}, "was made of other captions"),
        (
            {"captions": [*MANY, "one more"]},
            f"was made of other captions .{len(DISTINCT)}, .*are {len(DISTINCT) + 1}, ",
        ),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_states_of_something_else_are_refused_and_kept(change, reason, finished, tmp_path):
    write(reader(tmp_path / "encoder"), tmp_path / "cache")
    if not finished:
        (tmp_path / "cache" / "captions.json").unlink()
    before = content(tmp_path / "cache")
    captions, seed = change.pop("captions", MANY), change.pop("seed", 0)
    other = reader(tmp_path / f"encoder{seed or ''}", seed=seed, **change)
    change |= {"captions": captions, "seed": seed}
    with pytest.raises(InputError, match=reason + r".*; remove the folder, or name another with --set text\.cache=DIR"):
        write(other, tmp_path / "cache", captions)
    assert content(tmp_path / "cache") == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="no folder of captions"):
        write(reader(tmp_path / "encoder"), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["letter.txt"]


def test_no_caption_at_all(tmp_path, asked):
    frozen = reader(tmp_path / "encoder")
    cached = Cached(frozen, tmp_path / "cache", write(frozen, tmp_path / "cache", ["", " "]))
    assert asked == []
    assert not cached(["", ""]).mask.any()
    assert cached(["red"]).mask.any()


def test_states_beyond_float16_are_told(tmp_path, monkeypatch):
    frozen = reader(tmp_path / "encoder")
    original = Frozen.encode
    monkeypatch.setattr(
        Frozen, "encode", lambda self, c: [s._replace(tokens=s.tokens * 1e6) for s in original(self, c)]
    )
    with pytest.raises(InputError, match=r"reach \S+e\+06, too far for float16; set its cache: bfloat16"):
        write(frozen, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.arrow"))


def test_blocks_do_not_show(tmp_path, monkeypatch):
    frozen = reader(tmp_path / "encoder")
    whole = Cached(frozen, tmp_path / "whole", write(frozen, tmp_path / "whole"))
    monkeypatch.setattr(cache_writer, "_BLOCK", 1)
    parts = Cached(frozen, tmp_path / "parts", write(frozen, tmp_path / "parts"))
    assert len(parts._chunks) > len(whole._chunks)
    assert torch.equal(parts(DISTINCT).values, whole(DISTINCT).values)

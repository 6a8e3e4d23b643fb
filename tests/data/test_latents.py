"""Latents on disk: what comes back is what the encoder gave, whatever happened; or a line says what is wrong."""

import json
import math

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from rectiflow.autoencoders.posterior import Posterior
from rectiflow.base.errors import InputError
from rectiflow.data import latents
from rectiflow.data.builtin import digits
from rectiflow.data.config import DataConfig, LatentsConfig
from rectiflow.data.encode import encode_set
from rectiflow.data.images import ImageSet, InMemory, to_float
from rectiflow.data.latents import fingerprint, open_latents, read_manifest
from rectiflow.data.sets import open_set

AUTOENCODER = "3fa9" * 16


def moments(x):
    """C′ = 2 latents at half the side; one element from one pixel, so that no batch can change a bit of it."""
    a, b = x[:, :1, ::2, ::2], x[:, :1, 1::2, 1::2]
    return torch.cat([a + 0.3, 3 * b - 1, a - 2, b - 4], dim=1)


def small():
    """60 and 13 of the digits."""
    data = digits()
    parts = [
        InMemory(part.fetch(torch.arange(n)), part.labels[:n]) for part, n in ((data.train, 60), (data.held_out, 13))
    ]
    return ImageSet(parts[0], parts[1], data.class_names, data.levels)


def folder_config(root, **settings):
    """Twenty wide pictures of noise in two classes, with captions."""
    for i in range(20):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 14, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"number {i}")
    return DataConfig(set="folder", dir=str(root), size=8, held_out=0.3, **settings)


def encode(folder, data=None, data_config=None, encoder=moments, told=None, **settings):
    data, data_config = data or small(), data_config or DataConfig()
    config = LatentsConfig(**{"shard": 16, "batch": 5, **settings})
    prints = fingerprint(AUTOENCODER, data, data_config, config)
    seen = [] if told is None else told
    return encode_set(data, encoder, folder, config, data_config, prints, lambda *counts: seen.append(counts))


def opened(folder, data=None, data_config=None, autoencoder=AUTOENCODER, **settings):
    data = data or small()
    return open_latents(
        folder, fingerprint(autoencoder, data, data_config or DataConfig(), LatentsConfig(**settings)), data
    )


def everything(part, place=None):
    index = torch.arange(len(part))
    return part.fetch(index, None if place is None else torch.full((len(part), 3), place))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("kind", ["digits", "folder"])
@pytest.mark.parametrize(("dtype", "unit"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_what_comes_back_is_rounded_to_16_bits(tmp_path, kind, dtype, unit):
    config = folder_config(tmp_path / "pictures") if kind == "folder" else DataConfig()
    data = open_set(config)
    encode(tmp_path / "out", data, config, dtype=dtype, shard=500)
    back = opened(tmp_path / "out", data, config, dtype=dtype)
    assert back.shape == (4, data.shape[1] // 2, data.shape[2] // 2)
    assert back.class_names == data.class_names
    for mine, pixels in ((back.train, data.train), (back.held_out, data.held_out)):
        assert len(mine) == len(pixels) > 0
        index = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        exact = moments(to_float(pixels.fetch(index)))
        got = mine.fetch(index)
        assert got.dtype == torch.float32
        assert torch.equal(got, exact.to(getattr(torch, dtype)).float())
        assert ((got - exact).abs() <= unit * exact.abs() + 1e-7).all()
        assert mine.labels is pixels.labels
        assert mine.captions(index) == pixels.captions(index)
        assert mine.fetch(index[:0]).shape == (0, *back.shape)


def test_a_plain_datasets_table(tmp_path):
    """Other tools find a typed column of lists of a fixed size."""
    manifest = encode(tmp_path)
    table = latents.Dataset.from_file(str(tmp_path / "train-00003.arrow"))
    assert table.num_rows == manifest.train.shards[3].pictures == 60 - 3 * 16
    assert table.data.column("moments").type.list_size == 4 * 4 * 4
    assert str(table.features["moments"].feature.dtype) == "float16"


def test_versions_of_a_picture(tmp_path):
    """The first is the picture, the second its mirror, a third either; held-out pictures have one."""
    flip, data = DataConfig(flip=True, dequantise=0), small()
    encode(tmp_path, data, flip, variants=2)
    back = opened(tmp_path, data, flip, variants=2)
    x = everything(data.train)
    plain, mirror = moments(x).half().float(), moments(x.flip(-1)).half().float()
    assert not torch.equal(plain, mirror)
    for place, expected in ((None, plain), (0.0, plain), (0.499, plain), (0.5, mirror), (0.999, mirror), (1.0, mirror)):
        assert torch.equal(everything(back.train, place), expected)
    assert torch.equal(everything(back.held_out, 0.9), moments(everything(data.held_out)).half().float())


@pytest.mark.parametrize("flip", [False, True])
def test_further_versions_are_crops_and_mirrors_of_their_own(tmp_path, flip):
    config = folder_config(tmp_path / "pictures", crop="random", flip=flip)
    data = open_set(config)
    encode(tmp_path / "out", data, config, variants=12)
    back = opened(tmp_path / "out", data, config, variants=12)
    places = torch.linspace(0, 1, 7)
    crops = [[data.train.fetch(torch.tensor([i]), torch.tensor([[0.5, p, 0]])) for p in places] for i in range(5)]
    seen = set()
    for i, possible in enumerate(crops):
        for version in range(12):
            got = back.train.fetch(torch.tensor([i]), torch.tensor([[(version + 0.5) / 12, 0, 0]]))
            looks = [
                (place, mirror)
                for place, crop in enumerate(possible)
                for mirror in (False, True)
                if torch.equal(moments(to_float(crop.flip(-1) if mirror else crop)).half().float(), got)
            ]
            assert len(looks) == 1
            seen.add((version, i, *looks[0]))
    assert {look[2:] for look in seen if look[0] == 0} == {(3, False)}
    assert {look[3] for look in seen} == ({False, True} if flip else {False})
    assert {look[2] for look in seen} == set(range(7))
    by_version = {v: tuple(sorted(look[1:] for look in seen if look[0] == v)) for v in range(2, 12)}
    assert len(set(by_version.values())) == 10


def test_noise_that_fills_the_levels(tmp_path):
    config, data = DataConfig(dequantise=1.0), small()
    encode(tmp_path, data, config, variants=3)
    back = opened(tmp_path, data, config, variants=3)
    exact = moments(everything(data.train))[:, 0]
    noise = torch.stack([everything(back.train, v / 3 + 0.1)[:, 0] - exact for v in range(3)]) / (2 / 16)
    assert noise.abs().max() < 0.5 + 0.01
    assert noise.std() == pytest.approx(1 / math.sqrt(12), rel=0.03)
    assert abs(np.corrcoef(noise.flatten(1).numpy()) - np.eye(3)).max() < 0.15


def test_neither_shards_nor_batches_nor_threads_matter(tmp_path):
    config = folder_config(tmp_path / "pictures", crop="random", flip=True)
    data = open_set(config)
    variants = {"variants": 3}
    encode(tmp_path / "one", data, config, shard=1000, **variants)
    encode(tmp_path / "seven", data, config, shard=7, **variants)
    one, seven = (opened(tmp_path / name, data, config, **variants) for name in ("one", "seven"))
    assert len(read_manifest(tmp_path / "one").train.shards) == 1
    assert len(read_manifest(tmp_path / "seven").train.shards) > 1
    for place in (0.0, 0.4, 0.8):
        assert torch.equal(everything(one.train, place), everything(seven.train, place))
        assert torch.equal(everything(one.held_out, place), everything(seven.held_out, place))
    assert read_manifest(tmp_path / "one").deviation == pytest.approx(read_manifest(tmp_path / "seven").deviation)
    for number, (batch, workers) in enumerate(((1, 0), (4, 3), (100, 1))):
        other = config.model_copy(update={"workers": workers})
        encode(tmp_path / str(number), data, other, shard=7, batch=batch, **variants)
        assert content(tmp_path / str(number)) == content(tmp_path / "seven")


def test_blocks_do_not_show(tmp_path, monkeypatch):
    """Small blocks, as of large latents: the values are the same, and still not seen by the batch."""
    encode(tmp_path / "whole")
    monkeypatch.setattr("rectiflow.data.encode._BLOCK", 7 * 2 * 4 * 4 * 4)
    encode(tmp_path / "blocks", batch=3)
    encode(tmp_path / "again", batch=16)
    assert content(tmp_path / "blocks") == content(tmp_path / "again") != content(tmp_path / "whole")
    whole, blocks = (opened(tmp_path / name) for name in ("whole", "blocks"))
    assert torch.equal(everything(whole.train), everything(blocks.train))


@pytest.mark.parametrize(("fails_at", "whole"), [(0, 0), (3, 0), (4, 1), (14, 3), (15, 4), (17, 4)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_encoding_that_was_cut_off_goes_on(tmp_path, fails_at, whole, dtype):
    """Bit for bit as undisturbed, though resumed with another size of shards; whole shards are not encoded again."""
    calls, cut = [], tmp_path / "cut"

    def failing(x):
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        calls.append(len(x))
        return moments(x)

    def counting(x):
        calls.append(len(x))
        return moments(x)

    undisturbed = encode(tmp_path / "undisturbed", dtype=dtype)
    with pytest.raises(KeyboardInterrupt):
        encode(cut, encoder=failing, dtype=dtype)
    assert len(list(cut.glob("*.arrow"))) == whole
    assert not list(cut.glob(".*.tmp"))
    with pytest.raises(InputError, match=f"stopped after {whole} shards; it goes on" if whole else "none there"):
        opened(cut, dtype=dtype)
    (cut / ".train-00002.arrow.123.tmp").write_text("of a process that was killed")
    calls.clear()
    told = []
    assert encode(cut, encoder=counting, dtype=dtype, told=told, shard=5 if whole else 16) == undisturbed
    assert content(cut) == content(tmp_path / "undisturbed")
    kept = sum(shard.pictures for shard in (*undisturbed.train.shards, *undisturbed.held_out.shards)[:whole])
    assert sum(calls) == 73 - kept
    assert told[-1] == (73, 73)
    assert told == sorted(told)


def test_what_is_there_is_not_encoded_again(tmp_path):
    def never(x):
        raise AssertionError

    manifest = encode(tmp_path)
    before = content(tmp_path)
    assert encode(tmp_path, encoder=never) == manifest
    assert content(tmp_path) == before


def test_statistics(tmp_path):
    """Of the training part in all its versions, against draws in closed form over what is read back."""
    flip = DataConfig(flip=True)
    manifest = encode(tmp_path, data_config=flip, variants=2)
    back = opened(tmp_path, data_config=flip, variants=2)
    posterior = Posterior.of(torch.cat([everything(back.train, 0.0), everything(back.train, 0.5)]).double())
    over = (0, 2, 3)
    spread = posterior.mean.var(over, correction=0) + posterior.log_variance.exp().mean(over)
    assert manifest.mean == pytest.approx(posterior.mean.mean(over).tolist(), rel=1e-12)
    assert manifest.deviation == pytest.approx(spread.sqrt().tolist(), rel=1e-12)
    assert manifest.deviation[1] > 2 * manifest.deviation[0]
    drawn = posterior.sample(torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1)).double())
    assert manifest.deviation == pytest.approx(drawn.std(over).tolist(), rel=0.02)


def test_latents_of_something_else_are_refused_and_kept(tmp_path):
    encode(tmp_path)
    before = content(tmp_path)
    end = r"; remove the folder, or name another with --set latent.cache.dir\.$"
    with pytest.raises(InputError, match=r"made by another autoencoder \(3fa93fa9…; this run's is 81c281c2…\)" + end):
        opened(tmp_path, autoencoder="81c2" * 16)
    with pytest.raises(InputError, match=r"made of other pictures \(digits: 60 and 13 held out; .* 1415 and 382 held"):
        opened(tmp_path, digits())
    with pytest.raises(
        InputError, match=r"prepared otherwise \(dequantise=0; this run's: dequantise=1, seed=0\)" + end
    ):
        opened(tmp_path, data_config=DataConfig(dequantise=1.0))
    with pytest.raises(InputError, match=r"holds float16 \(this run's latent.cache.dtype is bfloat16\)" + end):
        opened(tmp_path, dtype="bfloat16")
    with pytest.raises(InputError, match=r"another autoencoder .* and holds float16"):
        opened(tmp_path, autoencoder="81c2" * 16, dtype="bfloat16")
    for folder in ("finished", "begun"):
        if folder == "begun":
            (tmp_path / "latents.json").unlink()
            del before["latents.json"]
        with pytest.raises(InputError, match="prepared otherwise" + ".*" + end):
            encode(tmp_path, data_config=DataConfig(flip=True), variants=2)
        assert content(tmp_path) == before


def test_what_the_fingerprint_of_a_folder_sees(tmp_path):
    config = folder_config(tmp_path)
    data, variants = open_set(config), LatentsConfig(variants=2)

    def prints(data_config=config, config=variants):
        return fingerprint(AUTOENCODER, open_set(data_config), data_config, config)

    first = prints()
    assert prints() == first
    moved = config.model_copy(update={"workers": 7, "max_skipped": 0.5})
    assert prints(moved) == first
    changed = {"filter": "box", "background": "red", "flip": True, "crop": "random", "size": 4, "colour": "grey"}
    for name, value in changed.items():
        other = prints(config.model_copy(update={name: value}))
        assert {part for part in first if other[part] != first[part]} == {"transform"}, name
    # Without further versions there is nothing to mirror or to crop.
    mirrors = config.model_copy(update={"flip": True})
    plain, mirrored = (fingerprint("", data, some, LatentsConfig()) for some in (config, mirrors))
    assert plain == mirrored
    (tmp_path / "a" / "0.png").rename(tmp_path / "b" / "0.png")
    assert {part for part, value in prints().items() if value != first[part]} == {"pictures"}


def damaged(folder, kind):
    path = folder / "train-00001.arrow"
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "torn":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "altered":
        path.write_bytes(whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:])
    elif kind == "not Arrow":
        path.write_bytes(bytes(len(whole)))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "is missing"),
        ("torn", r"has \d+ bytes, expected \d+"),
        ("altered", "was altered: its SHA-256 is another"),
    ],
)
def test_a_damaged_shard_is_named_and_mended_alone(tmp_path, kind, words):
    calls = []

    def counting(x):
        calls.append(len(x))
        return moments(x)

    encode(tmp_path)
    before = content(tmp_path)
    damaged(tmp_path, kind)
    with pytest.raises(InputError, match=rf"train-00001.arrow {words}; remove .*latents.json, and that shard alone"):
        opened(tmp_path)
    (tmp_path / "latents.json").unlink()
    encode(tmp_path, encoder=counting)
    assert content(tmp_path) == before
    assert sum(calls) == 16


def test_large_caches_are_known_by_their_sizes(tmp_path, monkeypatch):
    """As the docstring says: then an altered byte goes unnoticed, what is no Arrow does not."""
    encode(tmp_path)
    damaged(tmp_path, "altered")
    monkeypatch.setattr(latents, "_READ_WHOLE", 0)
    opened(tmp_path)
    damaged(tmp_path, "not Arrow")
    with pytest.raises(InputError, match=r"train-00001.arrow cannot be read as Arrow \(\w+\); remove .*latents.json"):
        opened(tmp_path)
    damaged(tmp_path, "torn")
    with pytest.raises(InputError, match="bytes, expected"):
        opened(tmp_path)


def test_manifests_that_cannot_be_read(tmp_path):
    encode(tmp_path)
    path, before = tmp_path / "latents.json", content(tmp_path)
    values = json.loads(path.read_text())
    for text in ("{", "[]", "", '{"format": 1}', "\0\xff", json.dumps({**values, "mean": "x"})):
        path.write_text(text)
        for use in (opened, encode):
            with pytest.raises(InputError, match=r"latents.json is damaged, expected the JSON .*; remove it, and"):
                use(tmp_path)
    path.unlink()
    encode(tmp_path)
    assert content(tmp_path) == before
    for newer in (path, tmp_path / "train-00000.json"):
        newer.write_text(json.dumps({**values, "format": 2, "new": True}))
        with pytest.raises(InputError, match=r"has format 2, of a later release .* reads up to 1; upgrade rectiflow"):
            encode(tmp_path)
        newer.unlink()
    path.write_text(json.dumps({**values, "train": {"pictures": 60, "shards": values["train"]["shards"][:-1]}}))
    with pytest.raises(InputError, match="speaks of 48 pictures where the data have 60"):
        opened(tmp_path)


def test_a_damaged_note_costs_its_shard(tmp_path):
    encode(tmp_path)
    before = content(tmp_path)
    (tmp_path / "latents.json").unlink()
    for text in ("", "{", '{"format": 1}'):
        (tmp_path / "train-00002.json").write_text(text)
        encode(tmp_path)
        assert content(tmp_path) == before
        (tmp_path / "latents.json").unlink()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(InputError, match="no folder of latents; choose another"):
            encode(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_process_at_a_time(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="another process is encoding in"):
        encode(tmp_path)
    encode(tmp_path)


@pytest.mark.parametrize(
    ("scale", "dtype", "words"),
    [
        (1e5, "float16", r"reach .*e\+05, too far for float16; set latent.cache.dtype=bfloat16"),
        (math.nan, "float16", "not finite"),
        (math.inf, "bfloat16", "not finite"),
    ],
)
def test_latents_that_do_not_fit(tmp_path, scale, dtype, words):
    with pytest.raises(InputError, match=words):
        encode(tmp_path, encoder=lambda x: moments(x) * scale, dtype=dtype)
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    ("settings", "variants", "words"),
    [
        ({}, 2, r"data.flip=false a picture has 1 version; set latent.cache.variants=1\.$"),
        ({"flip": True}, 3, r"data.flip=true a picture has 2 versions; set latent.cache.variants=2\.$"),
        ({"crop": "random"}, 2, r"set latent.cache.variants=1\.$"),
        ({"set": "folder"}, 2, r"set latent.cache.variants=1, or data.crop=random\.$"),
    ],
)
def test_equal_copies_are_refused(tmp_path, settings, variants, words):
    with pytest.raises(InputError, match=words):
        encode(tmp_path / "out", data_config=DataConfig(**settings), variants=variants)
    assert not (tmp_path / "out").exists()

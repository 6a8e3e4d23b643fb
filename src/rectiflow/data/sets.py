"""Every set by its settings, and built-in sets as plain folders."""

import json
import shutil
from pathlib import Path

import torch

from rectiflow.base.errors import InputError, unknown
from rectiflow.base.files import write_folder
from rectiflow.data.builtin import BUILTIN, digit_clips
from rectiflow.data.clips import save_clip
from rectiflow.data.config import CLIP_RATE, DataConfig
from rectiflow.data.images import Images, ImageSet, to_float
from rectiflow.data.pictures import to_image, to_uint8

_CHUNK = 512


def open_set(config: DataConfig, index: Path | None = None) -> ImageSet:
    """The set that `config` describes; for `index` see `open_folder`.

    Raises:
        InputError: a folder that cannot be trained on, or settings that do not go together; one line.
    """
    if config.set == "folder":
        from rectiflow.data.folder import open_folder

        return open_folder(config, index)
    if config.set == "shards":
        from rectiflow.data.streams import open_shards

        return open_shards(config, index)
    if config.dir:
        raise InputError(
            f"the set {config.set} is built in and takes no folder; for your own: rectiflow train "
            f"{'video' if config.frames > 1 else 'folder'}."
        )
    data = _builtin(config)
    if config.size is not None and config.height_width != data.size:
        height, width = data.size
        raise InputError(f"data.size is {config.size}, but {config.set} is {height}×{width}; leave it out.")
    return data


def _builtin(config: DataConfig) -> ImageSet:
    if config.frames == 1:
        return BUILTIN[config.set]()
    if config.set == "digit-clips":
        return digit_clips(config.frames)
    raise InputError(f"data.frames is {config.frames}, but {config.set} are pictures; leave it out.")


def open_source(config: DataConfig, shape: tuple[int, ...], index: Path | None = None) -> ImageSet:
    """The pictures of `config.source_dir`, of the shape C×H×W of the data; for `index` see `open_folder`.

    Raises:
        InputError: a folder that cannot be used; one line.
    """
    return pictures_in(config.source_dir, shape, config, index=index)


def pictures_in(
    folder: str,
    shape: tuple[int, ...],
    like: DataConfig | None = None,
    labels: str = "none",
    index: Path | None = None,
) -> ImageSet:
    """The pictures of a folder at a given shape C×H×W.

    Args:
        folder: where they lie.
        shape: C, H, W.
        like: how to read them (crop, filter, background, share held out, …); by default all of them in `train`.
        labels: as for `DataConfig`.
        index: see `open_folder`.

    Raises:
        InputError: nothing there can be used; one line.
    """
    from rectiflow.data.folder import open_folder

    changes = {"set": "folder", "dir": folder, "shards": (), "source_dir": "", "size": shape[-2:], "buckets": 1}
    read_as = {**changes, "labels": labels, "colour": "grey" if shape[0] == 1 else "rgb"}
    base = like or DataConfig(held_out=0.0)
    return open_folder(DataConfig.parse({**base.model_dump(), **read_as}, "source"), index)


def keep_index(data: ImageSet, index: Path) -> None:
    """Write down which pictures a set has, if it is of files, for a run that goes on with them.

    Raises:
        InputError: the disk is full or read-only.
    """
    if not data.report:
        return
    from rectiflow.data.streams import Streamed

    if isinstance(data.train, Streamed):
        source = data.train.index.folder
        write_folder(index, lambda aside: _copy(source, aside))
    else:
        from rectiflow.data.folder import write_index

        write_index(data, index)


def copy_index(index: Path, to: Path) -> None:
    """Begin another run with the same pictures; nothing for a built-in set, which has no index.

    Raises:
        InputError: the disk is full or read-only.
    """
    if is_index(index):
        write_folder(to, lambda aside: _copy(index, aside))


def _copy(index: Path, aside: Path) -> None:
    shutil.copytree(index, aside, dirs_exist_ok=True)


def is_index(path: Path) -> bool:
    """Whether `keep_index` wrote this."""
    table = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    return table or (path / "shards.json").is_file()


def write_set(name: str, folder: Path, count: int = 0) -> dict[str, int]:
    """Write a built-in set as a folder that `open_folder` reads back: train/ and test/, with a folder for each class or
    a `metadata.jsonl` of captions. Clips are written as gif files, which hold their pixels exactly.

    Args:
        name: of the set.
        folder: where to; new or empty.
        count: pictures of each part at most; 0 is all.

    Returns:
        Pictures written in each part.

    Raises:
        InputError: no such set, or the folder is not empty.
    """
    if name not in BUILTIN:
        raise unknown("set", name, BUILTIN)
    if count < 0:
        raise InputError(f"count must be at least 0 (0 is all), received {count}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not an empty folder; choose another --out.")
    data = BUILTIN[name]()
    parts = {"train": data.train, "test": data.held_out}

    def fill(aside: Path) -> None:
        for part, images in parts.items():
            _write_part(images, data.class_names, aside / part, count or len(images))

    write_folder(folder, fill)
    return {part: min(count or len(images), len(images)) for part, images in parts.items()}


def _write_part(images: Images, class_names: tuple[str, ...], folder: Path, count: int) -> None:
    lines = []
    clips = len(images.shape) == 4
    kind = ".gif" if clips else ".png"
    for chunk in torch.split(torch.arange(min(count, len(images))), _CHUNK):
        pixels = to_float(images.fetch(chunk))
        frames = pixels.movedim(2, 1).flatten(0, 1) if clips else pixels
        samples = to_uint8(frames).unflatten(0, (len(chunk), -1))
        for i, sample, caption in zip(chunk.tolist(), samples, images.captions(chunk), strict=True):
            label = int(images.labels[i])
            name = f"{class_names[label]}/{i:05d}{kind}" if class_names else f"{i:05d}{kind}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if clips:
                save_clip(sample, folder / name, CLIP_RATE, {}, scale=1)
            else:
                to_image(sample[0]).save(folder / name)
            if caption:
                lines.append(json.dumps({"file_name": name, "text": caption}, ensure_ascii=False))
    if lines:
        (folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

"""Shards that are tars as webdataset writes them: members of one name, endings aside, side by side are a sample.

Where each picture and caption lies is noted once; from then on they are read there, by ranges.
"""

import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np

from rectiflow.base.errors import InputError
from rectiflow.data.captions import captions_of, lines_of
from rectiflow.data.config import DataConfig
from rectiflow.data.streams_remote import opened, patiently, shown
from rectiflow.data.streams_scan import Scan, label_of, wants
from rectiflow.data.survey import EXTENSIONS

_PIECE = 2**14  # samples
_TEXT = "txt"
_BLOCK, _ENDS = 512, "unexpected end of data"
CUT = "a tar that is cut off or damaged: its samples up to there are used"
Place = tuple[int, int]


@dataclass
class _Sample:
    """The members of one name: their kinds, and where each lies and how long it is."""

    key: str
    places: dict[str, Place] = field(default_factory=dict)

    @property
    def picture(self) -> Place | None:
        """Where the picture lies."""
        found = [place for kind, place in self.places.items() if "." + kind.rsplit(".", 1)[-1] in EXTENSIONS]
        return found[0] if found else None


def scan_tar(url: str, config: DataConfig) -> Scan:
    """Look through a tar: one pass over the heads of its members, the labels, and with `data.check=decode` every
    picture.

    Raises:
        InputError: it is none, cannot be read, holds no pictures, or nothing that is asked for.
    """

    def scan() -> Scan:
        with opened(url) as file:
            return _scan(url, file, config)

    return patiently(url, scan)


def caption_of(content: bytes, field_name: str, in_json: bool) -> list[str]:
    """The captions in a member: a field of its JSON, or a line each."""
    if not in_json:
        return lines_of(content)[0]
    value = _json(content)
    return captions_of(value.get(field_name))[0]


def _scan(url: str, file: IO[bytes], config: DataConfig) -> Scan:
    scan = Scan("tar", caption=config.caption)
    spans: list[tuple[int, int, int, int, int]] = []
    labelled = config.labels not in ("folders", "none")
    labels: list[str | None] = []
    without, fields = 0, set[str]()
    for sample in _samples(url, file, scan):
        fields |= sample.places.keys()
        picture = sample.picture
        if picture is None:
            without += 1
            continue
        row = len(spans)
        text = next((sample.places[kind] for kind in (config.caption, _TEXT) if kind in sample.places), None)
        in_json = text is None and "json" in sample.places
        spans.append((*picture, *(text or sample.places.get("json", (0, 0))), int(in_json)))
        if labelled:
            labels.append(_label(file, sample, config.labels))
        if wants(row, config):
            scan.look(row, _read(file, picture), config)
    if without:
        scan.notes += ["a sample without a picture"] * without
    if not spans and fields:
        raise InputError(
            f"{shown(url)} holds no pictures; expected members such as 0001.jpg. Its kinds: "
            f"{', '.join(sorted(fields)[:8])}."
        )
    if not spans:
        scan.notes.append("a tar without samples")
    if labelled and spans and not any(labels):
        raise InputError(
            f"{shown(url)} has no labels at data.labels={config.labels}; expected a member such as "
            f"0001.{config.labels}, or a field of that name in 0001.json. Its kinds: {', '.join(sorted(fields)[:8])}."
        )
    scan.rows, scan.spans = len(spans), np.array(spans, dtype=np.int64).reshape(-1, 5)
    scan.labels = labels if labelled else None
    scan.caption = config.caption if any(span[3] for span in spans) else ""
    scan.pieces = [(at, min(_PIECE, len(spans) - at), 0, 0, 0) for at in range(0, len(spans), _PIECE)]
    return scan


def _samples(url: str, file: IO[bytes], scan: Scan) -> Iterator[_Sample]:
    """The samples in their order; of a tar that ends too early those that are whole."""
    size = file.seek(0, 2)
    file.seek(0)
    sample = _Sample("")
    try:
        for name, place in _members(file):
            if place[0] + place[1] > size:
                raise tarfile.ReadError(_ENDS)
            path = PurePosixPath(name)
            stem, _, kind = path.name.partition(".")
            if not stem or not kind:  # hidden files, and those without a kind
                continue
            key = str(path.parent / stem)
            if key != sample.key:
                if sample.places:
                    yield sample
                sample = _Sample(key)
            sample.places.setdefault(kind.lower(), place)
    except tarfile.ReadError as error:
        if not sample.key and str(error) != _ENDS:
            raise InputError(f"{shown(url)} is no tar; expected an uncompressed one of pictures.") from error
        scan.notes.append(CUT)
        return
    if sample.places:
        yield sample


def _members(file: IO[bytes]) -> Iterator[tuple[str, Place]]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or all heads would be held
            if member.isreg():
                yield member.name, (member.offset_data, member.size)
        file.seek(tar.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):  # the reader stops in silence at a damaged head
            raise tarfile.ReadError(_ENDS)


def _label(file: IO[bytes], sample: _Sample, name: str) -> str | None:
    if name in sample.places:
        return label_of(_read(file, sample.places[name]).decode(errors="replace").strip())
    if "json" in sample.places:
        return label_of(_json(_read(file, sample.places["json"])).get(name))
    return None


def _read(file: IO[bytes], place: Place) -> bytes:
    file.seek(place[0])
    return file.read(place[1])


def _json(content: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        value = json.loads(content)
        if isinstance(value, dict):
            return value
    return {}

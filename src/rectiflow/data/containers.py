"""Whether a film's file ends before its container says: no decoder tells reliably."""

import os
from pathlib import Path
from typing import BinaryIO

_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B
# Which an mp4 has at its top; after the last of them cameras may write what they like.
_BOXES = frozenset(
    b"ftyp styp pdin moov moof mfra mdat imda free skip wide pnot meta meco uuid udta sidx ssix emsg prft".split()
)
_SEGMENT = b"\x18\x53\x80\x67"


def is_cut(path: Path) -> bool:
    """Whether bytes are missing at the end: of mp4 and mov, webm and mkv, avi and webp, and gif; False of others, and
    of a file whose container gives no length.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in _BOXES:
            return _boxes_end(file) > size
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _segment_end(file) > size
        if head[:4] == b"RIFF":
            return int.from_bytes(head[4:8], "little") + 8 > size
        if head[:3] == b"GIF":
            return not _gif_ends(file)
    return False


def _boxes_end(file: BinaryIO) -> int:
    """Where the boxes of an mp4 end by their own lengths; what is none of them and does not fit is left alone."""
    size, place = file.seek(0, os.SEEK_END), 0
    while place < size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8 or (head[4:8] not in _BOXES and place + length > size):  # 0 is up to the end of the file
            return size
        place += length
    return place


def _segment_end(file: BinaryIO) -> int:
    """Where the segment of a Matroska file ends; 0 if it does not say."""
    file.seek(4)
    _, length = _number(file)
    file.seek(file.tell() + length)
    if file.read(4) != _SEGMENT:
        return 0
    known, length = _number(file)
    return file.tell() + length if known else 0


def _number(file: BinaryIO) -> tuple[bool, int]:
    """A length of EBML, and whether it is known: the place of its first bit that is set tells how many bytes it has."""
    first = file.read(1)
    if not first or not first[0]:
        return False, 0
    width = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0xFF >> width)]) + file.read(width - 1), "big")
    return value != 2 ** (7 * width) - 1, value


def _gif_ends(file: BinaryIO) -> bool:
    """Whether the blocks of a gif lead to its end mark."""
    file.seek(10)
    _skip_palette(file, file.read(3)[:1])
    while kind := file.read(1):
        if kind[0] == _GIF_END:
            return True
        if kind[0] == _GIF_IMAGE:
            _skip_palette(file, file.read(9)[8:])
            file.read(1)
        elif kind[0] == _GIF_EXTENSION:
            file.read(1)
        else:
            return True  # rubbish between blocks: players show what came before
        while length := file.read(1):
            if not length[0]:
                break
            file.seek(length[0], os.SEEK_CUR)
    return False


def _skip_palette(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 * 2 ** ((flags[0] & 7) + 1), os.SEEK_CUR)

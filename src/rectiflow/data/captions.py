"""Captions as people write them: a cell of a table, or the lines of a text file."""

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST = 10_000
NOT_UTF8 = "caption not UTF-8: left out"
NUL = "caption with a NUL character, no text: left out"
CUT = f"caption of more than {MOST:,} characters: cut there"
NO_TEXT = "caption that is no text: left out"
REPEATED = "caption given twice: kept once"
_MOST_BYTES = 2**22


def captions_of(value: Any) -> tuple[list[str], list[str]]:
    """The captions that a cell gives, and what was wrong with others.

    Args:
        value: a caption, as a text, its bytes or a number, a list of them, or None; what is empty, white space or not a
            number (NaN) is no caption.
    """
    captions: list[str] = []
    problems: list[str] = []
    for item in value if isinstance(value, Iterable) and not isinstance(value, str | bytes | dict) else [value]:
        if isinstance(item, dict | list):
            problems.append(NO_TEXT)
            continue
        caption = _text(item).strip()
        if "\ufffd" in caption or "\0" in caption:
            problems.append(NOT_UTF8 if "\ufffd" in caption else NUL)
            continue
        if len(caption) > MOST:
            problems.append(CUT)
            caption = caption[:MOST].rstrip()
        if caption in captions:
            problems.append(REPEATED)
        elif caption:
            captions.append(caption)
    return captions, problems


def _text(item: Any) -> str:
    if item is None or item != item:  # NaN, as tables have it for an empty cell
        return ""
    return item.decode(errors="replace") if isinstance(item, bytes) else str(item)


def sidecar(picture: Path) -> tuple[list[str], list[str]]:
    """The same of `NAME.txt` beside `NAME.png`, a caption for each line that is not empty; without it, none."""
    beside = picture.with_suffix(".txt")
    if not beside.is_file():  # a pipe would never end
        return [], []
    try:
        with beside.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except OSError:
        return [], []
    return lines_of(content)


def lines_of(content: bytes) -> tuple[list[str], list[str]]:
    """The same of a text file's bytes."""
    content = content[:_MOST_BYTES]
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return [], [NOT_UTF8]
    # Cut in the middle of a character, a file is still UTF-8.
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    return captions_of(decoder.decode(content, final=len(content) < _MOST_BYTES).split("\n"))

"""Captions as people write them: a cell of a table, or the lines of a text file."""

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST = 10_000
NOT_UTF8 = "caption not UTF-8: left out"
CUT = f"caption of more than {MOST:,} characters: cut there"
REPEATED = "caption given twice: kept once"
_MOST_BYTES = 2**22


def captions_of(value: Any) -> tuple[list[str], list[str]]:
    """The captions that a cell gives, and what was wrong with others.

    Args:
        value: a caption, a list of them, or None; what is empty or white space is no caption.
    """
    captions: list[str] = []
    problems: list[str] = []
    for item in value if isinstance(value, Iterable) and not isinstance(value, str | dict) else [value]:
        caption = "" if item is None else str(item).strip()
        if "\ufffd" in caption or "\0" in caption:
            problems.append(NOT_UTF8)
            continue
        if len(caption) > MOST:
            problems.append(CUT)
            caption = caption[:MOST].rstrip()
        if caption in captions:
            problems.append(REPEATED)
        elif caption:
            captions.append(caption)
    return captions, problems


def sidecar(picture: Path) -> tuple[list[str], list[str]]:
    """The same of `NAME.txt` beside `NAME.png`, a caption for each line that is not empty; without it, none."""
    try:
        with picture.with_suffix(".txt").open("rb") as file:
            content = file.read(_MOST_BYTES)
    except OSError:
        return [], []
    # Cut in the middle of a character, a file is still UTF-8.
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    return captions_of(decoder.decode(content, final=len(content) < _MOST_BYTES).split("\n"))

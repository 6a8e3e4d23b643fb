"""Which pictures of a folder are trained on, which are held out, and why others are neither."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rectiflow.base.errors import InputError
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Facts, Unusable, inspect
from rectiflow.data.shards import content
from rectiflow.data.survey import NOT_A_PICTURE, Entry, Survey, survey

Used = Sequence[tuple[Entry, Facts]]
Report = tuple[tuple[str, int, str], ...]


def inventory(config: DataConfig) -> tuple[list[dict[str, Any]], Report]:
    """Survey `config.dir` and look into each file.

    Returns:
        A row for each picture to use (path, class, captions, held_out, height, width, grey), and the report.

    Raises:
        InputError: nothing, or too little of what was found, can be used.
    """
    found = survey(config)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        facts = list(pool.map(lambda entry: _facts(config, entry), found.entries))
    total = len(found.entries) + sum(why != NOT_A_PICTURE for _, why in found.skipped)
    found.skipped += [(e.path, fact) for e, fact in zip(found.entries, facts, strict=True) if isinstance(fact, str)]
    used = [(e, fact) for e, fact in zip(found.entries, facts, strict=True) if isinstance(fact, Facts)]
    if not used or total - len(used) > config.max_skipped * total:
        _refuse(config, found, len(used), total)
    held_out = _held_out(config, used)
    rows = [
        {
            "path": entry.path,
            "class": entry.label or "",
            "captions": list(entry.captions),
            "held_out": out,
            "height": fact.height,
            "width": fact.width,
            "grey": fact.grey,
        }
        for (entry, fact), out in zip(used, held_out, strict=True)
    ]
    return rows, _report(config, found, used, held_out, total)


def _report(config: DataConfig, found: Survey, used: Used, held_out: Sequence[bool], total: int) -> Report:
    names = {entry.label for entry, _ in used if entry.label is not None}
    by_folder = any(entry.held_out for entry, _ in used)
    small = 0
    if config.size is not None:
        height, width = config.height_width
        small = sum(fact.height < height or fact.width < width for _, fact in used)
    always = [
        ("found", total, f"pictures in {config.dir}"),
        ("used", len(used), f"in {len(names)} classes" if names else "without classes"),
        ("to train on", len(used) - sum(held_out), ""),
        ("held out", sum(held_out), "by their folder" if by_folder else "by their content"),
    ]
    sometimes = [
        *_captions(config, found, used),
        ("without a row", found.without_row, "in the metadata: used all the same"),
        ("enlarged", small, f"smaller than {config.size}"),
        ("copies", len(used) - len({fact.digest for _, fact in used}), "equal files, kept in one part"),
        *found.notes(),
        *((f"skipped: {why}", count, first) for why, count, first in found.reasons()),
    ]
    return (*always, *(line for line in sometimes if line[1] or line[0] == "captions"))


def _captions(config: DataConfig, found: Survey, used: Used) -> Report:
    captioned = [entry.captions for entry, _ in used if entry.captions]
    if not captioned:
        columns = ", ".join(sorted(found.columns)[:8])
        missing = found.columns and config.caption not in found.columns
        return (("captions", 0, f"no column {config.caption}; there are: {columns} (data.caption)"),) if missing else ()
    lengths = [len(caption) for captions in captioned for caption in captions]
    most = max(len(captions) for captions in captioned)
    several = f", up to {most} of a picture" if most > 1 else ""
    return (
        ("with captions", len(captioned), f"{len(lengths):,} captions{several}"),
        ("without captions", len(used) - len(captioned), "used; an empty caption is none"),
        ("longest caption", max(lengths), f"characters; the shortest has {min(lengths):,}"),
    )


def _facts(config: DataConfig, entry: Entry) -> Facts | str:
    """What the picture holds, or why it cannot be used."""
    try:
        fact = inspect(content(config.dir, entry.path), config.check == "decode")
    except Unusable as problem:
        return str(problem)
    if max(fact.height, fact.width) > config.max_aspect * min(fact.height, fact.width):
        return f"longer than {config.max_aspect:g} times its breadth"
    if config.size is not None and config.crop == "none":
        height, width = config.height_width
        if abs(fact.width * height / (fact.height * width) - 1) > 0.02:
            return "other proportions, and data.crop is none"
    return fact


def _refuse(config: DataConfig, found: Survey, used: int, total: int) -> None:
    if not total:
        raise InputError(
            f"no pictures in {config.dir}; expected files such as .png or .jpg, in it or in class folders."
        )
    reasons = "; ".join(f"{count} {why} ({first})" for why, count, first in found.reasons()[:3])
    raise InputError(
        f"only {used} of {total} pictures in {config.dir} can be used: {reasons}. Mend the folder, or allow more with "
        f"--set data.max_skipped={min(1.0, round(1 - used / total + 0.01, 2))}."
    )


def _held_out(config: DataConfig, used: Used) -> list[bool]:
    """By the folder if that says; else by the content, so that equal files stay together and a set may grow."""
    if any(entry.held_out for entry, _ in used):
        return [bool(entry.held_out) for entry, _ in used]
    shares = [int(fact.digest[:8], 16) / 2**32 for _, fact in used]
    out = [share < config.held_out for share in shares]
    if config.held_out and not any(out) and len(set(shares)) > 1:
        out = [share == min(shares) for share in shares]
    if all(out):
        raise InputError(f"data.held_out={config.held_out} leaves nothing to train on of {len(used)} pictures.")
    return out

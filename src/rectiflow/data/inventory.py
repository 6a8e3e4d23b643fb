"""Which pictures of a folder are trained on, which are held out, and why others are neither."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rectiflow.base.errors import InputError
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Facts, Unusable, inspect
from rectiflow.data.films import Window, how_many, inspect_film, is_film, windows
from rectiflow.data.shards import content
from rectiflow.data.survey import EMPTY_SHARD, NOT_A_CLIP, NOT_A_PICTURE, Entry, Survey, survey

Used = Sequence[tuple[Entry, Facts]]
Report = tuple[tuple[str, int, str], ...]


def inventory(config: DataConfig) -> tuple[list[dict[str, Any]], Report]:
    """Survey `config.dir` and look into each file.

    Returns:
        A row for each picture to use (path, class, captions, held_out, height, width, grey), and the report. With
        `config.frames` > 1 a row for each window of a film (start, rate and gap besides), and for each picture (without
        a start).

    Raises:
        InputError: nothing, or too little of what was found, can be used.
    """
    found = survey(config)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        facts = list(pool.map(lambda entry: _facts(config, entry), found.entries))
    total = len(found.entries) + sum(why not in (NOT_A_PICTURE, NOT_A_CLIP, EMPTY_SHARD) for _, why in found.skipped)
    found.skipped += [(e.path, fact) for e, fact in zip(found.entries, facts, strict=True) if isinstance(fact, str)]
    used = [(e, fact) for e, fact in zip(found.entries, facts, strict=True) if isinstance(fact, Facts)]
    if (
        not used
        or (config.frames > 1 and not any(fact.film for _, fact in used))
        or total - len(used) > config.max_skipped * total
    ):
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
        | when
        for (entry, fact), out in zip(used, held_out, strict=True)
        for when in _when(config, fact)
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
        ("found", total, f"{'clips and pictures' if config.frames > 1 else 'pictures'} in {config.dir}"),
        ("used", len(used), f"in {len(names)} classes" if names else "without classes"),
        ("to train on", len(used) - sum(held_out), ""),
        ("held out", sum(held_out), "by their folder" if by_folder else "by their content"),
    ]
    sometimes = [
        *(_clips(config, used, held_out) if config.frames > 1 else ()),
        *_captions(config, found, used),
        ("without a row", found.without_row, "in the metadata: used all the same"),
        ("enlarged", small, f"smaller than {config.size}"),
        ("copies", len(used) - len({fact.digest for _, fact in used}), "equal files, kept in one part"),
        *found.notes(),
        *((f"skipped: {why}", count, first) for why, count, first in found.reasons()),
    ]
    return (*always, *(line for line in sometimes if line[1] or line[0] == "captions"))


def _when(config: DataConfig, fact: Facts) -> list[dict[str, float | None]]:
    """What a row has beside the others: nothing of a picture among pictures, else when each clip is."""
    if config.frames == 1:
        return [{}]
    if fact.film is None:
        return [dict.fromkeys(Window._fields)]
    return [window._asdict() for window in windows(fact.film, config.frames, config.rate)]


def _clips(config: DataConfig, used: Used, held_out: Sequence[bool]) -> Report:
    films = [(fact.film, out) for (_, fact), out in zip(used, held_out, strict=True) if fact.film is not None]
    cut = [(*how_many(film, config.frames, config.rate), out) for film, out in films]
    counts = [sum(some for some, _, held in cut if held == out) for out in (False, True)]
    rates = sorted(film.rate for film, _ in films)
    slower = sum(config.rate is not None and film.rate < 0.99 * config.rate for film, _ in films)
    own = f"{rates[0]:.4g}" if rates[-1] < 1.01 * rates[0] else f"{rates[0]:.4g} to {rates[-1]:.4g}"
    sampled = f"at {config.rate:g} a second" if config.rate else "at each file's own rate"
    return (
        (
            "clips",
            sum(counts),
            f"of {config.frames} frames {sampled}: {counts[0]:,} to train on, {counts[1]:,} held out",
        ),
        ("from films", len(films), f"of {own} frames a second"),
        ("cut into several", sum(some > 1 for some, _, _ in cut), "longer ones; all clips of one are in one part"),
        ("frames left over", sum(left for _, left, _ in cut), "at the ends of films, fewer than a clip has"),
        ("of uneven times", sum(film.varies for film, _ in films), "taken by their times"),
        ("turned", sum(film.turned for film, _ in films), "as their files say"),
        ("slower films", slower, "than data.rate: their frames are repeated"),
        ("stills", len(used) - len(films), "pictures, for steps of single frames"),
    )


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
        fact = _looked_into(config, entry.path)
    except Unusable as problem:
        return str(problem)
    return unsuited(config, fact.height, fact.width) or fact


def unsuited(config: DataConfig, height: int, width: int) -> str:
    """Why a picture of this shape is not used; empty if it is."""
    if max(height, width) > config.max_aspect * min(height, width):
        return f"longer than {config.max_aspect:g} times its breadth"
    if config.size is not None and config.crop == "none":
        wanted = config.height_width
        if abs(width * wanted[0] / (height * wanted[1]) - 1) > 0.02:
            return "other proportions, and data.crop is none"
    return ""


def _looked_into(config: DataConfig, path: str) -> Facts:
    whole = config.check == "decode"
    if config.frames > 1 and is_film(path):
        fact = inspect_film(Path(config.dir, path), whole)
        if fact.film is not None:
            if not how_many(fact.film, config.frames, config.rate)[0]:
                at = f" at {config.rate:g} a second" if config.rate else ""
                raise Unusable(f"shorter than {config.frames} frames{at}")
            return fact
    return inspect(content(config.dir, path), whole)


def _refuse(config: DataConfig, found: Survey, used: int, total: int) -> None:
    what, such = ("clips", ".mp4 or .gif") if config.frames > 1 else ("pictures", ".png or .jpg")
    expected = f"expected files such as {such}, in it or in class folders"
    reasons = "; ".join(f"{count} {why} ({first})" for why, count, first in found.reasons()[:3])
    if not total:
        but = f", but {reasons}" if reasons else ""
        raise InputError(f"no {what} in {config.dir}{but}; {expected}.")
    if used and total - used <= config.max_skipped * total:
        also = f", and {reasons}" if reasons else ""
        raise InputError(f"no clips in {config.dir}, but {used} pictures{also}; {expected}, or data.frames=1.")
    raise InputError(
        f"only {used} of {total} {what} in {config.dir} can be used: {reasons}. Mend the folder, or allow more with "
        f"--set data.max_skipped={min(1.0, round(1 - used / total + 0.01, 2))}."
    )


def _held_out(config: DataConfig, used: Used) -> list[bool]:
    """By the folder if that says; else by the content, so that equal files stay together and a set may grow."""
    if any(entry.held_out for entry, _ in used):
        return [bool(entry.held_out) for entry, _ in used]
    films = [fact.film is not None for _, fact in used]
    shares = [int(fact.digest[:8], 16) / 2**32 for _, fact in used]
    out = [share < config.held_out for share in shares]
    # Of a set of clips their films are what is shared out; pictures go by their content alone.
    main = [share for share, film in zip(shares, films, strict=True) if film == any(films)]
    if config.held_out and min(main) >= config.held_out and len(set(main)) > 1:
        out = [share == min(main) or before for share, before in zip(shares, out, strict=True)]
    if all(held for held, film in zip(out, films, strict=True) if film == any(films)):
        raise InputError(f"data.held_out={config.held_out} leaves nothing to train on of {len(main)} files.")
    return out

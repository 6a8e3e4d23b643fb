"""Files by URL: what there is, and bytes of them, with patience for a network that fails now and then.

A file system is asked for anew in each process, since those that work asynchronously do not survive a fork.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, TypeVar

import fsspec  # type: ignore[import-untyped]

from rectiflow.base.errors import InputError

T = TypeVar("T")
_LOG = logging.getLogger("rectiflow")
WAITS = (0.5, 2.0, 8.0)  # seconds before each further try
_EDGE = 4096  # bytes at each end of a file that tell it from another, where its storage says nothing
_GAP, _MOST = 2**16, 2**23  # bytes between spans that are read together, and of such a reading
_DRIVERS = {
    **{"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"},
    **{"az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub", "sftp": "paramiko", "ssh": "paramiko"},
    **{"oci": "ocifs", "oss": "ossfs", "webdav": "webdav4", "smb": "smbprotocol", "dropbox": "dropboxdrivefs"},
}
_TAGS = ("ETag", "etag", "checksum", "md5", "md5Hash", "content_md5", "xet_hash", "blob_id")


class Span(NamedTuple):
    """Bytes of a file.

    Args:
        url: of the file.
        start: the first of them.
        length: how many.
    """

    url: str
    start: int
    length: int


class Content(NamedTuple):
    """By what a file is known again.

    Args:
        size: in bytes.
        tag: what its storage gives for its content; else a digest of its first and last 4 KB.
    """

    size: int
    tag: str


def expand(patterns: Sequence[str]) -> list[str]:
    """The URLs that patterns name, each once: in the order of the patterns, sorted within each.

    Raises:
        InputError: a pattern that names nothing, a protocol that is unknown, or a driver that is missing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        for one in _braces(pattern):
            prefix, chained, inner = one.rpartition("::")
            files, path = _system(inner)
            paths = [path]
            if any(sign in path for sign in "*?["):
                paths = patiently(inner, lambda files=files, path=path: sorted(files.glob(path)))  # type: ignore[misc]
            if not paths:
                raise InputError(f"data.shards: nothing matches {one}; expected files ending in .parquet or .tar.")
            found |= dict.fromkeys(prefix + chained + files.unstrip_protocol(path) for path in paths)
    return list(found)


def content_of(url: str) -> Content:
    """By what a file is known again.

    Raises:
        InputError: it cannot be reached; one line that names it.
    """

    def ask() -> Content:
        files, path = _system(url)
        info = files.info(path)
        if info.get("type") == "directory":
            raise InputError(f"{shown(url)} is a folder, expected a file; name its files: {shown(url)}/*.tar.")
        size = info.get("size")
        if size is None:
            raise InputError(f"{shown(url)}: its server tells no size, without which it cannot be read at random.")
        tag = next((str(info[name]).strip('"') for name in _TAGS if info.get(name)), "")
        if not tag:
            edges = (files.cat_file(path, start=a, end=b) for a, b in _edges(size))
            tag = hashlib.blake2b(b"".join(edges), digest_size=8).hexdigest()
        return Content(int(size), tag)

    return patiently(url, ask)


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """A file to read from beginning to end, mostly.

    Raises:
        InputError: it cannot be opened.
    """

    def open_it() -> IO[bytes]:
        files, path = _system(url)
        return files.open(path, "rb")

    file = patiently(url, open_it)
    try:
        yield file
    finally:
        file.close()


def read_spans(spans: Sequence[Span]) -> list[bytes]:
    """The bytes of each span. They are read in the order in which they lie, near ones together, and at once where the
    storage can do that.

    Raises:
        InputError: a file that cannot be read, after several tries; one line that names it.
    """
    groups = _grouped(spans)
    found: dict[Span, bytes] = {}
    left = [Span(group[0].url, group[0].start, _end(group) - group[0].start) for group in groups]
    for wait in (*WAITS, None):
        failed = _attempt(left, found)
        if not failed:
            break
        for span, error in failed:
            if wait is None or _is_final(error):
                raise _told(span.url, error) from error
        _wait(*failed[0], wait or 0.0)
        left = [span for span, _ in failed]
    held: dict[Span, bytes] = {}
    for group in groups:
        start = group[0].start
        whole = found[Span(group[0].url, start, _end(group) - start)]
        held |= {span: whole[span.start - start : span.start - start + span.length] for span in group}
    return [held[span] for span in spans]


def patiently(url: str, read: Callable[[], T]) -> T:
    """What `read` gives, tried again after growing waits where it fails in a way that may pass.

    Raises:
        InputError: it failed every time, or finally; one line that names the URL.
    """
    for wait in WAITS:
        try:
            return read()
        except InputError:
            raise
        except Exception as error:  # a driver lets through whatever its network raises
            if _is_final(error):
                raise _told(url, error) from error
            _wait(Span(url, 0, 0), error, wait)
    try:
        return read()
    except InputError:
        raise
    except Exception as error:
        raise _told(url, error) from error


def shown(url: str) -> str:
    """A URL as a user writes it: a local file by its path."""
    return url.removeprefix("file://")


def _system(url: str) -> tuple[Any, str]:
    protocol = url.split("://")[0] if "://" in url else "file"
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _DRIVERS.get(protocol, protocol)
        raise InputError(f"{shown(url)} needs a driver for {protocol}://: pip install {package}.") from error
    except ValueError as error:
        raise InputError(f"data.shards: {shown(url)} cannot be opened ({_reason(error)}).") from error
    return files, path


def _attempt(spans: Sequence[Span], found: dict[Span, bytes]) -> list[tuple[Span, Exception]]:
    """Read what can be read into `found`; the rest, and why not."""
    systems: dict[int, tuple[Any, list[tuple[Span, str]]]] = {}
    for span in spans:
        files, path = _system(span.url)
        systems.setdefault(id(files), (files, []))[1].append((span, path))
    failed: list[tuple[Span, Exception]] = []
    for files, asked in systems.values():
        starts = [span.start for span, _ in asked]
        ends = [span.start + span.length for span, _ in asked]
        try:
            got = files.cat_ranges([path for _, path in asked], starts, ends, on_error="return")
        except Exception as error:  # of a driver that does not return them
            got = [error] * len(asked)
        for (span, _), content in zip(asked, got, strict=True):
            if isinstance(content, Exception):
                failed.append((span, content))
            elif len(content) != span.length:
                failed.append((span, OSError(f"{len(content)} bytes came of {span.length}")))
            else:
                found[span] = bytes(content)
    return failed


def _grouped(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans of one file that lie near one another, in their order."""
    groups: list[list[Span]] = []
    for span in sorted(set(spans)):
        last = groups[-1] if groups else None
        if (
            last is not None
            and last[0].url == span.url
            and span.start - _end(last) <= _GAP
            and span.start + span.length - last[0].start <= _MOST
        ):
            last.append(span)
        else:
            groups.append([span])
    return groups


def _end(group: Sequence[Span]) -> int:
    return max(span.start + span.length for span in group)


def _edges(size: int) -> list[tuple[int, int]]:
    return [(0, size)] if size <= 2 * _EDGE else [(0, _EDGE), (size - _EDGE, size)]


def _is_final(error: Exception) -> bool:
    """Whether another try would say the same."""
    return isinstance(error, FileNotFoundError | IsADirectoryError | ImportError) or _is_refusal(error)


def _is_refusal(error: Exception) -> bool:
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__
    return isinstance(error, PermissionError) or status in (401, 403) or "Credential" in name or "Gated" in name


def _wait(span: Span, error: Exception, seconds: float) -> None:
    _LOG.warning("%s: %s; trying again in %g s.", shown(span.url), _reason(error), seconds)
    time.sleep(seconds)


def _told(url: str, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{shown(url)} is missing; restore it, or name others with data.shards.")
    if _is_refusal(error):
        return InputError(
            f"{shown(url)} refuses us ({_reason(error)}); give this process credentials as its driver reads them, from "
            "the environment or from fsspec's own settings."
        )
    return InputError(
        f"{shown(url)} cannot be read ({_reason(error)}), after {len(WAITS) + 1} tries in {sum(WAITS):g} s; what was "
        "saved before is kept: go on when it can be reached."
    )


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return re.sub(r"\s+", " ", lines[0])[:200].rstrip(".") if lines else type(error).__name__


def _braces(pattern: str) -> list[str]:
    """A pattern with {a..b} or {a,b} for each of what they stand for."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    first, last, listed = match.groups()
    some = listed.split(",") if listed is not None else _numbers(first, last)
    return [pattern[: match.start()] + one + rest for one in some for rest in _braces(pattern[match.end() :])]


def _numbers(first: str, last: str) -> list[str]:
    if int(first) > int(last):
        raise InputError(f"data.shards: {{{first}..{last}}} counts down; write {{{last}..{first}}}.")
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]

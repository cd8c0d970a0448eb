"""Where tars lie: on this host's disks, or behind any URL that fsspec knows."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from distbelief.errors import DataError

N_OPEN = 32
"""Files that a reader keeps open at most."""

# What tells one state of a file from another, by the file systems of fsspec.
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "md5Hash", "created")

_NO_RANGES = "cannot be read in parts: put it where ranges of bytes are served, or on a disk"


def is_url(path: str) -> bool:
    """Whether fsspec opens the path; ``file://`` counts as one until :func:`local_path`."""
    return "://" in path


def local_path(path: str) -> str:
    """The path without ``file://``; anything else as it is."""
    return unquote(urlsplit(path).path) if path.startswith("file://") else path


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        DataError: fsspec does not know its protocol, or lacks the package for it.
    """
    # Only for those who read URLs: processes that decode local files start without it.
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(url, f"cannot be opened ({error}): install what it needs") from error
    return system, str(path)


@contextmanager
def _foreign() -> Iterator[None]:
    """File systems raise what the libraries below them do; here all of that is an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def list_files(folder: str) -> list[str]:
    """Names in a folder, or below a URL, sorted by bytes; none if it does not exist.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        if is_url(folder):
            system, path = file_system(folder)
            with _foreign():
                found = [str(name) for name in system.ls(path, detail=False)]
            names = [name.rstrip("/").rpartition("/")[2] for name in found]
        else:
            names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(folder, f"cannot be listed ({_text(error)}): make it readable") from error
    visible = [name for name in names if not name.startswith(".")]
    return sorted(visible, key=lambda name: name.encode("utf-8", "surrogateescape"))


def state_of(path: str) -> str:
    """What changes when the file does: its size, and its time of change or its tag.

    Raises:
        DataError: there is no such file.
    """
    try:
        if not is_url(path):
            status = os.stat(path)
            return f"{status.st_size} {status.st_mtime_ns}"
        system, inside = file_system(path)
        with _foreign():
            info = system.info(inside)
    except OSError as error:
        raise DataError(path, f"cannot be opened ({_text(error)})") from error
    stamp = next((str(info[name]) for name in _STAMPS if info.get(name)), "")
    return f"{info.get('size')} {stamp}"


def opened(path: str) -> IO[bytes]:
    """The file, open for reading from its start; the caller closes it.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        if not is_url(path):
            return open(path, "rb")
        system, inside = file_system(path)
        with _foreign():
            file: IO[bytes] = system.open(inside, "rb")
    except OSError as error:
        raise DataError(path, f"cannot be opened ({_text(error)})") from error
    if not file.seekable():
        file.close()
        raise DataError(path, _NO_RANGES)
    return file


def load_beside(path: str, suffix: str) -> Iterator[bytes]:
    """What :func:`save_beside` may have saved for the file, one candidate after the other."""
    with contextlib.suppress(OSError):
        if _is_signed(path):
            raise PermissionError(path)
        if is_url(path):
            system, inside = file_system(path)
            with _foreign():
                content: bytes = system.cat_file(inside + suffix)
            yield content
        else:
            yield Path(path + suffix).read_bytes()
    with contextlib.suppress(OSError, RuntimeError):
        yield _at_home(path, suffix).read_bytes()


def save_beside(path: str, suffix: str, content: bytes) -> None:
    """Save something about the file beside it, or in ``~/.cache/distbelief`` if that fails.

    A reader sees all of it or nothing. Where neither can be written nothing is saved. A folder that
    nobody has the right to write to is left alone, even by root.
    """
    mark = f".{uuid.uuid4().hex}.tmp"
    try:
        if _is_signed(path):
            raise PermissionError(path)
        if is_url(path):
            system, inside = file_system(path)
            # Some file systems show a file while it is being written.
            with _foreign():
                system.pipe_file(inside + suffix + mark, content)
                system.mv(inside + suffix + mark, inside + suffix)
        elif not os.stat(os.path.dirname(path) or ".").st_mode & 0o222:
            raise PermissionError(path)
        else:
            _write(Path(path + suffix), mark, content)
    except OSError:
        with contextlib.suppress(OSError, RuntimeError):
            _write(_at_home(path, suffix), mark, content)


def _is_signed(path: str) -> bool:
    """Whether a URL is of one file alone: with another name its signature is another's."""
    return is_url(path) and "?" in path


def _write(path: Path, mark: str, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + mark)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _at_home(path: str, suffix: str) -> Path:
    name = path.rstrip("/").rpartition("/")[2]
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Path.home() / ".cache" / "distbelief" / f"{digest}-{name}{suffix}"


class RangeReader:
    """Reads ranges of files, of which it keeps some open; a pickled one arrives with none open.

    For one thread at a time.
    """

    def __init__(self) -> None:
        """Open nothing yet."""
        self._open: dict[str, int] = {}
        self._systems: dict[str, tuple[Any, str]] = {}
        # Descriptors, unlike file objects, are not closed with the last reference to them.
        self._closing = weakref.finalize(self, _close_all, self._open)

    def __reduce__(self) -> tuple[type[RangeReader], tuple[()]]:
        return RangeReader, ()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """The bytes ``[offset, offset + size)``, fewer where the file ends before.

        Raises:
            DataError: it lies on a server that has no ranges.
            OSError: the file cannot be read.
        """
        if is_url(path):
            if path not in self._systems:
                self._systems[path] = file_system(path)
            system, inside = self._systems[path]
            with _foreign():
                content: bytes = system.cat_file(inside, start=offset, end=offset + size)
            if len(content) > size:
                raise DataError(path, _NO_RANGES)
            return content
        descriptor = self._descriptor(path)
        content = os.pread(descriptor, size, offset)
        # One call reads 2 GiB at most, and a network file system may give less than was asked for.
        while len(content) < size and (
            more := os.pread(descriptor, size - len(content), offset + len(content))
        ):
            content += more
        return content

    def _descriptor(self, path: str) -> int:
        if path not in self._open:
            while len(self._open) >= N_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[path]


def _close_all(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _text(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__

"""What a tar of images holds and where: made once, by reading the headers of its members."""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from distbelief.data.folder import SUFFIXES
from distbelief.errors import DataError

MAX_CLASS = 1_000_000
"""Greatest class index: each index up to the greatest one is a class."""

_FORMAT = 1
_BLOCK = 512
# Of what may follow the end mark. Zeros pad a tar to a multiple of 10 KiB, usually.
_TAIL = 64 << 10
_CLASS_NBYTES = 1024
_DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError)
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


@dataclass(frozen=True, slots=True, eq=False)
class TarIndex:
    """The images of one tar, in the order in which they lie there.

    Attributes:
        offsets: ``(n,) int64``, of each image's first byte in the tar.
        sizes: ``(n,) int64``, in bytes.
        labels: ``(n,) int32``, indices into ``classes``.
        classes: Names of the tar's own classes, in no particular order.
        numeric: Whether the classes are indices, given as integers.
        names: Names of the members, one after the other, UTF-8.
        name_ends: ``(n,) int64``, the end of each in ``names``.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    numeric: bool
    names: bytes
    name_ends: NDArray[np.int64]

    def to_bytes(self, key: str) -> bytes:
        """The index as a file; ``key`` is the state of the tar that it was made of."""
        head = {"format": _FORMAT, "key": key, "classes": self.classes, "numeric": self.numeric}
        file = io.BytesIO()
        np.savez_compressed(
            file,
            head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
            offsets=self.offsets,
            sizes=self.sizes,
            labels=self.labels,
            names=np.frombuffer(self.names, dtype=np.uint8),
            name_ends=self.name_ends,
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, key: str) -> TarIndex | None:
        """The inverse of :meth:`to_bytes`; None if the file is damaged or of another ``key``."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                if (head["format"], head["key"]) != (_FORMAT, key):
                    return None
                return cls(
                    arrays["offsets"],
                    arrays["sizes"],
                    arrays["labels"],
                    tuple(head["classes"]),
                    head["numeric"],
                    arrays["names"].tobytes(),
                    arrays["name_ends"],
                )
        except (ValueError, KeyError, TypeError, OSError, EOFError, *_DAMAGE):
            return None


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    offset: int
    size: int


def build_index(file: IO[bytes], path: str) -> TarIndex:
    """List the images of an open tar. Blocks; reads headers and ``.cls`` members alone.

    If the tar has a member ``KEY.cls``, its images are samples of WebDataset and each must have
    one. Otherwise an image's class is the name of the folder that it lies in. Links, devices, and
    names with a part that starts with a dot are ignored; of two members of one name the later
    counts, as it does for who unpacks the tar.

    Raises:
        DataError: the tar is not as it should be; the message says what to mend.
    """
    start = file.read(_BLOCK)
    for magic, program in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                path,
                f"is compressed, so that no image of it can be read by itself: unpack it with"
                f" {program} to a plain .tar",
            )
    file.seek(0)
    images: dict[str, _Member] = {}
    classes: dict[str, str] = {}
    for member in _members(file, path):
        lower = member.name.lower()
        if lower.endswith(SUFFIXES):
            images.pop(member.name, None)
            images[member.name] = member
        elif lower.endswith(".cls"):
            classes[_key(member.name)] = _class_of(file, member, path)
    if not images:
        suffixes = " ".join(SUFFIXES)
        raise DataError(path, f"has no images ({suffixes}): add some or remove the tar")
    if classes:
        images = _samples(images, path)
        found = [_labelled(classes, member, path) for member in images.values()]
        numeric = all(_is_index(name) for name in found)
    else:
        found = [_folder_of(member, path) for member in images.values()]
        numeric = False
    if numeric:
        found = [str(_checked_index(name, path)) for name in found]
    return _index(list(images.values()), found, numeric)


def _members(file: IO[bytes], path: str) -> Iterator[_Member]:
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                # Tarfile would keep a kilobyte for each member.
                cast(Any, tar).members.clear()
                name = posixpath.normpath(info.name)
                if name.startswith(("/", "../")) or name == "..":
                    raise DataError(
                        path, f"has a member outside its folder, {info.name!r}: make it anew"
                    )
                if any(part.startswith(".") for part in name.split("/")) or not info.isreg():
                    continue
                if info.issparse():
                    raise DataError(path, f"stores {info.name!r} sparse: make it without --sparse")
                yield _Member(name, info.offset_data, info.size)
            _check_end(file, tar.offset, path)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(path, f"is not a whole tar ({error}): get or make it anew") from error


def _check_end(file: IO[bytes], offset: int, path: str) -> None:
    """Tarfile takes any damaged header for the end, and needs no end mark."""
    file.seek(offset)
    rest = file.read(_BLOCK + _TAIL)
    if len(rest) < _BLOCK or rest.strip(b"\0"):
        raise DataError(path, f"is damaged or cut short at byte {offset:,}: get or make it anew")


def _key(name: str) -> str:
    """A sample's key: the name up to the first dot of its last part."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.split(".", 1)[0])


def _samples(images: dict[str, _Member], path: str) -> dict[str, _Member]:
    """Those whose whole extension is an image's, by key; ``KEY.mask.png`` is something else."""
    samples: dict[str, _Member] = {}
    for name, member in images.items():
        key = _key(name)
        if name[len(key) :].lower() not in SUFFIXES:
            continue
        if key in samples:
            raise DataError(path, f"has two images of one sample, {samples[key].name} and {name}")
        samples[key] = member
    if not samples:
        raise DataError(path, f"has no images KEY{SUFFIXES[0]} beside its .cls members")
    return samples


def _class_of(file: IO[bytes], member: _Member, path: str) -> str:
    file.seek(member.offset)
    content = file.read(min(member.size, _CLASS_NBYTES + 1))
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(content) > _CLASS_NBYTES:
        raise DataError(path, f"{member.name} holds no class: an integer or a name is wanted")
    return text


def _labelled(classes: dict[str, str], member: _Member, path: str) -> str:
    key = _key(member.name)
    if key not in classes:
        raise DataError(path, f"{member.name} has no class: add {key}.cls or remove the image")
    return classes[key]


def _folder_of(member: _Member, path: str) -> str:
    folder = posixpath.basename(posixpath.dirname(member.name))
    if not folder:
        raise DataError(
            path,
            f"{member.name} has no class: put it into a folder named after its class, or add"
            f" {_key(member.name)}.cls",
        )
    return folder


def _is_index(name: str) -> bool:
    return name.isascii() and name.removeprefix("-").isdigit()


def _checked_index(name: str, path: str) -> int:
    if len(name) > 20 or not 0 <= int(name) <= MAX_CLASS:
        raise DataError(path, f"has the class {name}: an index must be in 0 to {MAX_CLASS:,}")
    return int(name)


def _index(members: list[_Member], classes: list[str], numeric: bool) -> TarIndex:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(classes))}
    names = [member.name.encode("utf-8", "surrogateescape") for member in members]
    return TarIndex(
        np.array([member.offset for member in members], dtype=np.int64),
        np.array([member.size for member in members], dtype=np.int64),
        np.array([numbers[name] for name in classes], dtype=np.int32),
        tuple(numbers),
        numeric,
        b"".join(names),
        np.cumsum(np.array([len(name) for name in names], dtype=np.int64)),
    )

"""Odd and broken images, from folders and from tars: three channels each, or skipped."""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distbelief.data.folder import ImageFolder
from distbelief.data.images import UnreadableImage, decode
from distbelief.data.loader import BatchLoader, BatchRequest
from distbelief.data.source import ImageSource
from distbelief.data.tars import TarShards
from distbelief.data.transforms import EvalTransform, TrainTransform


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def noise(width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def announced(width: int, height: int) -> bytes:
    """A PNG whose header announces so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GREY16 = Image.fromarray(np.full((48, 64), 0x8123, dtype=np.uint16))

CASES: list[tuple[str, bytes, str]] = [
    ("whole.jpg", encoded(noise(), "JPEG"), ""),
    ("cmyk.jpg", encoded(noise().convert("CMYK"), "JPEG"), ""),
    ("grey.jpg", encoded(noise().convert("L"), "JPEG"), ""),
    ("grey-alpha.png", encoded(noise().convert("LA")), ""),
    ("rgba.png", encoded(noise().convert("RGBA")), ""),
    ("palette.png", encoded(noise().quantize(16)), ""),
    ("bilevel.png", encoded(noise().convert("1")), ""),
    ("grey-16-bit.png", encoded(GREY16), ""),
    ("one-pixel.png", encoded(noise(1, 1)), ""),
    ("one-pixel-grey.jpg", encoded(noise(1, 1).convert("L"), "JPEG"), ""),
    ("thin.png", encoded(noise(500, 1)), ""),
    ("png-by-content.jpg", encoded(noise()), ""),
    ("truncated.jpg", encoded(noise(), "JPEG")[:-800], "cannot be decoded"),
    ("truncated.png", encoded(noise())[:-800], "cannot be decoded"),
    ("truncated-header.jpg", encoded(noise(), "JPEG")[:30], "cannot be opened"),
    ("empty.jpg", b"", "cannot be opened"),
    ("text.jpg", b"not found", "not an image of a known format"),
    ("64-megapixels-and-more.png", announced(8001, 8000), "more than the limit of 64,000,000"),
    ("gigapixels.png", announced(40_000, 40_000), "decompression bomb"),
]


def folder_of(root: Path) -> ImageSource:
    for name, content, _ in CASES:
        path = root / "train" / "cat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return ImageFolder(root, "train")


def tar_of(root: Path) -> ImageSource:
    root.mkdir()
    with tarfile.open(root / "x.tar", "w") as archive:
        for name, content, _ in CASES:
            info = tarfile.TarInfo(f"cat/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return TarShards([str(root / "x.tar")])


@pytest.fixture(scope="module", params=[folder_of, tar_of])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    make: Callable[[Path], ImageSource] = request.param
    return make(tmp_path_factory.mktemp("odd") / "data")


def index_of(source: ImageSource, name: str) -> int:
    names = [source.name(index) for index in range(source.n_examples)]
    return next(i for i, path in enumerate(names) if path.endswith(f"/cat/{name}"))


def decoded(source: ImageSource, index: int) -> Image.Image:
    image, _ = source.read(index)
    assert isinstance(image, Image.Image)
    return decode(image)[0]


@pytest.mark.parametrize(("name", "problem"), [(name, problem) for name, _, problem in CASES])
def test_three_channels_or_the_reason(source: ImageSource, name: str, problem: str) -> None:
    index = index_of(source, name)
    if not problem:
        assert source.read(index)[1] == 0
        assert decoded(source, index).mode == "RGB"
        return
    with pytest.raises(UnreadableImage, match=problem) as caught:
        decoded(source, index)
    assert caught.value.path == source.name(index)


@pytest.mark.parametrize(
    "transform",
    [
        TrainTransform(96, photometric=True, interpolation="random"),
        TrainTransform(32, photometric=True, interpolation="random"),
        EvalTransform(96),
    ],
)
def test_a_batch_has_the_readable_and_names_the_others(
    source: ImageSource, transform: TrainTransform | EvalTransform
) -> None:
    with BatchLoader(source, transform, 0, 0) as loader:
        everything = np.arange(source.n_examples, dtype=np.int64)
        batch = loader.submit(BatchRequest(0, everything)).result(60)
    good = [index_of(source, name) for name, _, problem in CASES if not problem]
    bad = [index_of(source, name) for name, _, problem in CASES if problem]
    assert batch.indices.tolist() == sorted(good)
    assert batch.skipped == tuple(sorted(bad))
    assert batch.images.shape == (len(good), transform.size, transform.size, 3)

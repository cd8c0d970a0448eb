import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from distbelief.data.images import UnreadableImage, decode, open_image

RED = (200, 40, 40)


def pixels(path: Path) -> tuple[int, int, int]:
    image, factor = decode(open_image(str(path)))
    assert (image.mode, image.size, factor) == ("RGB", (8, 6), 1)
    red, green, blue = np.asarray(image)[3, 4].tolist()
    return red, green, blue


def palette_with_transparency() -> Image.Image:
    image = Image.new("RGB", (8, 6), RED).quantize(4)
    image.info["transparency"] = bytes([0, 128, 255, 255])
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("RGB", (8, 6), RED), "png", RED),
        (Image.new("L", (8, 6), 90), "png", (90, 90, 90)),
        (Image.new("L", (8, 6), 90), "jpg", (90, 90, 90)),
        (Image.new("1", (8, 6), 1), "png", (255, 255, 255)),
        (Image.new("LA", (8, 6), (90, 10)), "png", (90, 90, 90)),
        (Image.new("RGBA", (8, 6), (*RED, 0)), "png", RED),
        (Image.new("RGBA", (8, 6), (*RED, 255)), "webp", RED),
        (Image.new("RGB", (8, 6), RED).quantize(4), "png", RED),
        (palette_with_transparency(), "png", RED),
        (Image.new("RGB", (8, 6), RED).quantize(4), "bmp", RED),
        (Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "jpg", (255, 0, 0)),
        (Image.new("RGB", (8, 6), RED), "ppm", RED),
        (Image.fromarray(np.full((6, 8), 0x8123, np.uint16)), "png", (0x81, 0x81, 0x81)),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, image: Image.Image, suffix: str, expected: tuple[int, int, int]
) -> None:
    path = tmp_path / f"image.{suffix}"
    image.save(path, lossless=True)
    assert np.abs(np.subtract(pixels(path), expected)).max() <= (2 if suffix == "jpg" else 0)


def test_16_bit_portable_map(tmp_path: Path) -> None:
    path = tmp_path / "grey.ppm"
    path.write_bytes(b"P5 8 6 65535\n" + b"\x81\x23" * 48)
    assert pixels(path) == (0x81, 0x81, 0x81)


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a.jpg"
    Image.new("RGB", (8, 6), RED).save(path, "PNG")
    assert pixels(path) == RED


def test_orientation_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6), RED).save(path, exif=exif)
    pixels(path)


def test_damaged_exif_neither_warns_nor_fails(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.new("RGB", (8, 6), RED).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert np.abs(np.subtract(pixels(path), RED)).max() <= 2


def jpeg(size: tuple[int, int] = (64, 48)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "JPEG")
    return content.getvalue()


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot be opened .not an image of a known format"),
        (b"GIF, it says", "cannot be opened"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n", "not an image of a known format"),
        (jpeg()[:40], "cannot be opened"),
        (jpeg()[:-800], "cannot be decoded .*truncated"),
        (png(64, 48), "cannot be decoded"),
        (png(8001, 8000), "8001 x 8000 pixels, more than the limit of 64,000,000"),
        (png(10_000, 10_000), "10000 x 10000 pixels, more than the limit"),
        (png(20_000, 20_000), "cannot be opened .*decompression bomb"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=problem) as caught:
        decode(open_image(str(path)))
    assert caught.value.path == str(path)


def test_limit_itself_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(8000, 8000))
    assert open_image(str(path)).size == (8000, 8000)


@pytest.mark.parametrize("path", ["nothing.png", "."])
def test_no_such_file(tmp_path: Path, path: str) -> None:
    with pytest.raises(UnreadableImage, match="cannot be opened"):
        open_image(str(tmp_path / path))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_never_raises_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF"]))
    whole = io.BytesIO()
    Image.new("RGB", (8, 6), RED).save(whole, kind)
    content = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "image.jpg"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image, _ = decode(open_image(str(path)))
    except UnreadableImage:
        return
    assert image.mode == "RGB"


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_jpeg_is_decoded_smaller(tmp_path: Path, reduction: int) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg((101, 51)))
    image, factor = decode(open_image(str(path)), reduction)
    assert factor == reduction
    assert image.size == (-(-101 // reduction), -(-51 // reduction))


def test_other_formats_and_loaded_images_are_not_reduced(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (80, 60)).save(path)
    image, factor = decode(open_image(str(path)), 4)
    assert (image.size, factor) == ((80, 60), 1)
    assert decode(image, 4)[1] == 1

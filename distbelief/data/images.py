"""Image files into RGB pixels, whatever they hold; the one place that knows Pillow's decoders."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from distbelief.errors import DistBeliefError

MAX_PIXELS = 64_000_000
"""Images of more pixels are not decoded: a few of them at once would fill a host's memory."""

# By content, whatever the file is called. Not every format of Pillow: some run other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF")

# What Pillow's decoders raise for damaged files; only calls into Pillow stand under it.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# The filters of the warnings module are global: two threads that save and restore them at once
# would leave them changed.
_filters_lock = threading.Lock()


class UnreadableImage(DistBeliefError):  # noqa: N818
    """An image cannot be read; the rest of the data set can."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def open_image(path: str) -> Image.Image:
    """Read the file and its header; :func:`decode` decodes the pixels.

    Raises:
        UnreadableImage: no such file, not an image, or more than ``MAX_PIXELS``.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UnreadableImage(path, f"cannot be opened ({_text(error)})") from error
    return open_content(content, path)


def open_content(content: bytes, path: str) -> Image.Image:
    """Read the header of a file that is in memory; :func:`decode` decodes the pixels.

    Args:
        content: The whole file.
        path: What messages call it.

    Raises:
        UnreadableImage: not an image, or more than ``MAX_PIXELS``.
    """
    try:
        with _filters_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except _DAMAGE as error:
        raise UnreadableImage(path, f"cannot be opened ({_text(error)})") from error
    # Pillow names only images that it opened by path; a message about this one needs it later.
    image.filename = path
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImage(
            path, f"has {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}"
        )
    return image


def decode(image: Image.Image, reduction: int = 1) -> tuple[Image.Image, int]:
    """The pixels in mode RGB, perhaps reduced, and the factor by which they are.

    Args:
        image: From :func:`open_image`, or any image in memory.
        reduction: 1, 2, 4 or 8: how much smaller the caller can take the image. JPEG is then
            decoded at that scale, for a fraction of the time; other formats are not reduced.

    Returns:
        The image, its sides divided by the factor and rounded up, and the factor. Transparency is
        dropped, 16-bit grey is cut to 8, the orientation in EXIF is ignored, as is usual for
        ImageNet.

    Raises:
        UnreadableImage: the file is cut short or damaged.
    """
    try:
        factor = 1
        if reduction > 1:
            width, height = image.size
            drafted = image.draft(None, (max(1, width // reduction), max(1, height // reduction)))
            factor = reduction if drafted else 1
        image.load()
        return _to_rgb(image), factor
    except _DAMAGE as error:
        path = str(getattr(image, "filename", "image"))
        raise UnreadableImage(path, f"cannot be decoded ({_text(error)})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow clips these to 255 where the bits beyond eight are what should go.
        grey = np.clip(np.asarray(image), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    # Pillow warns about some palettes with transparency, which is dropped anyway.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Pillow's own sentence would name the buffer that the file was read into.
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return str(error) or type(error).__name__

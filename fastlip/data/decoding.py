"""Decodes one image file as 8-bit RGB. A file whose values have no single meaning is refused by name."""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlip._extras import needed_for

if TYPE_CHECKING:
    from PIL import Image as PillowImage

# Pillow knows more formats, and some of them (EPS) start other programs. "JPEG" opens MPO too.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# In these formats a second image is another frame; in a camera's MPO it is a preview.
_MULTIPLE = ("GIF", "PNG", "TIFF", "WEBP")
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
# What Pillow raises, besides its own errors, on bytes that are not an image.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, MemoryError)
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


class DataError(ValueError):
    """A data file that is missing, truncated or malformed; the message names it."""


def decode(file: str | os.PathLike[str]) -> PillowImage.Image:
    """Decodes an image file as RGB with 8 bits, turned upright as its EXIF data says.

    16-bit grey values are rounded to 8 bits (65535 becomes 255).

    Args:
        file: path of the image; BMP, GIF, JPEG, PNG, PPM, TIFF and WebP are read.

    Returns:
        A Pillow image of mode ``"RGB"``.

    Raises:
        DataError: the file cannot be decoded, or has no single meaning as RGB: floating-point or 32-bit values of
            unknown range, pixels that are not opaque, several frames. The message names it.
        ModuleNotFoundError: Pillow is not installed.
    """
    with needed_for("image files"):
        from PIL import Image, ImageOps

    with _Decoding(file), Image.open(file, formats=_FORMATS) as image:
        _check_single(image)
        upright = ImageOps.exif_transpose(image)
        _check_opaque(upright)
        if upright.mode.startswith("I"):
            return Image.fromarray(_eight_bits(upright, image)).convert("RGB")
        if upright.mode == "F":
            raise ValueError("floating-point values of unknown range; save it with 8 or 16 bits")
        return upright.convert("RGB")


def size_of(file: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of the image in a file; DataError if it is not an image."""
    with needed_for("image files"):
        from PIL import Image

    with _Decoding(file), Image.open(file, formats=_FORMATS) as image:
        return image.size


class _Decoding:
    """A context that turns every error that bad files cause into a DataError."""

    def __init__(self, file: str | os.PathLike[str]):
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        from PIL.Image import DecompressionBombError

        if isinstance(error, (*_DAMAGE, struct.error, zlib.error, DecompressionBombError)):
            reason = str(error) or type(error).__name__
            raise DataError(f"{os.fspath(self.file)}: cannot be decoded as an image ({reason})") from None


def _check_single(image: PillowImage.Image) -> None:
    """ValueError if the file holds several frames."""
    if image.format in _MULTIPLE and getattr(image, "n_frames", 1) > 1:
        raise ValueError("it holds several frames; save the one that you mean")


def _check_opaque(image: PillowImage.Image) -> None:
    """ValueError if a pixel is transparent: its colour depends on a background."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        opaque = transparent is None or not (np.asarray(image) == transparent).any()
    elif image.mode in _ALPHA or transparent is not None or (image.palette and "A" in image.palette.mode):
        opaque = image.convert("RGBA").getchannel("A").getextrema()[0] == 255
    else:
        opaque = True
    if not opaque:
        raise ValueError("it has transparent pixels; save it on a background")


def _eight_bits(image: PillowImage.Image, stored: PillowImage.Image) -> np.ndarray:
    """16-bit grey values rounded to 8 bits. Pillow's own conversion clips them at 255."""
    tags: Any = getattr(stored, "tag_v2", {})
    bits = tags.get(_BITS, (16,))
    # Mode "I" stands for 16 bits in PNG and PPM, and for 32 bits or signed values in TIFF.
    if image.mode == "I" and stored.format not in ("PNG", "PPM"):
        raise ValueError("integers of unknown range; save it with 8 or 16 bits")
    if tuple(np.atleast_1d(bits)) != (16,) or tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise ValueError(f"grey values of {bits} bits or with white as 0; save it with 8 or 16 bits and black as 0")
    values = np.asarray(image).astype(np.uint32)
    return ((values + 128) // 257).astype(np.uint8)

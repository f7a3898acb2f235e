"""Read picture files as arrays of numbers from 0 to 1; what is converted is said.

Pictures are ``(H, W, C)``, C 1 for grey and 3 for colour.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from manyheads.core.errors import DataError, MissingPackageError
from manyheads.lab.install import missing

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
LARGEST = 100_000_000  # pixels
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


@dataclass(frozen=True)
class Picture:
    """``pixels (H, W, C)``, float32 from 0 to 1; ``notes`` say what was converted."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def read_picture(path: Path, channels: int) -> Picture:
    """Read a picture as grey (1 channel) or colour (3), turned as its EXIF data says, of an animation the first frame.

    16 bits are reduced to 8, transparent pixels are laid on white, grey and colour converted into each other; each is
    noted.

    Raises:
        DataError: an absent file, one that is no picture, more than 100 million pixels, floating point pixels.
        MissingPackageError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise MissingPackageError(missing("pillow", "manyheads-images")) from error
    if not path.is_file():
        raise DataError(f"{path}: found no file, expected a picture")
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                width, height = opened.size
                if width * height > LARGEST:
                    raise DataError(f"{path}: found {width} x {height} pixels, expected {LARGEST:,} at most: shrink it")
                if _bits(path) == 16 and opened.mode not in _DEEP:
                    notes.append("16 bits a channel, reduced to 8")
                image = ImageOps.exif_transpose(opened)
                image.load()
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: found no picture inside (its name does not count), expected one of {', '.join(SUFFIXES)}"
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: found a damaged picture ({error}): put a good copy there") from error
    picture = converted(image, channels, str(path))
    return Picture(picture.pixels, (*notes, *picture.notes))


def converted(image: Image.Image, channels: int, name: str) -> Picture:
    """Convert a Pillow image to grey (1 channel) or colour (3); see :func:`read_picture`. ``name`` is for errors."""
    import numpy as np
    from PIL import Image

    notes: list[str] = []
    if image.mode in _DEEP:
        values = np.asarray(image, dtype=np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{name}: found pixels of 32 bits, expected 8 or 16: convert it")
        notes.append("16 bits a channel, reduced to 8")
        image = Image.fromarray((values // 257).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"{name}: found floating point pixels, expected 8 or 16 bits: convert it")
    if image.has_transparency_data:
        notes.append("transparent pixels laid on white")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        # a grey picture stays one
        if channels == 1:
            image = image.convert("L")
    grey = image.mode in ("1", "L")
    if grey and channels == 3:
        notes.append("grey, repeated in three channels")
    if image.mode == "CMYK":
        notes.append("four printing colours (CMYK), converted to " + ("grey" if channels == 1 else "RGB"))
    elif not grey and channels == 1:
        notes.append("colour, converted to grey")
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.float32) / 255
    return Picture(pixels[..., None] if channels == 1 else pixels, tuple(notes))


def resized(pixels: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize ``(H, W, C)`` to a square, or to (height, width), by bilinear interpolation, averaged when shrinking."""
    import numpy as np
    from PIL import Image

    height, width = (size, size) if isinstance(size, int) else size
    if pixels.shape[:2] == (height, width):
        return pixels
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.BILINEAR))
        for plane in np.moveaxis(pixels.astype(np.float32), 2, 0)
    ]
    return np.stack(planes, 2).clip(0, 1)


def _bits(path: Path) -> int:
    """Bits a channel of a PNG file, 8 for any other; Pillow reduces 16-bit colour without a word."""
    with path.open("rb") as stream:
        start = stream.read(25)
    return start[24] if len(start) == 25 and start.startswith(b"\x89PNG\r\n\x1a\n") else 8

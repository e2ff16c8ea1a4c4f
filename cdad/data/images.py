"""Reading images and masks from files that nobody has checked, and images that lie in memory as the same files would be read.

A file is decoded by what it holds, not by its name; the formats allowed are PNG, JPEG, BMP, TIFF and WEBP,
and of a file with several frames the first counts. Its header is held against the size limit before a
pixel is decoded. Every kind of pixel becomes RGB in [0, 1] by one table:

=====================================  ==================================================================
stored                                 read as
=====================================  ==================================================================
1-bit, 8-bit grey                      three equal channels, divided by 255
palette, alpha, colour-key             RGBA, composited over black, divided by 255
RGB, CMYK, YCbCr, LAB (8 bit)          Pillow's RGB, divided by 255; colour profiles are not applied
16-bit grey, RGB, RGBA                 divided by 65535, never clipped or cut to 8 bits; alpha over black; as TIFF only
                                       interleaved, and with black as 0
32-bit float grey                      as it stands where all values lie in [0, 1], otherwise refused
other (32-bit integers, ...)           refused: they have no defined white
=====================================  ==================================================================

The EXIF orientation is applied to images and masks alike.

A PIL image of any format is read by the same table: one that Pillow has opened and not decoded yet from the file behind it, and it
stays undecoded; of any other the pixels that Pillow holds, which of 16-bit colours are their high bytes alone.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ImageError, LimitError
from .inputs import as_images, check_path
from .records import ImageLike, MemoryImage

MAX_PIXELS = 64_000_000
"""Default limit of width x height of an image."""

MAX_SIDE = 65_535
"""Largest side, in pixels, that images are resized to."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_LOSSY = ("JPEG", "WEBP")
_TIFF = (b"II*\0", b"MM\0*")  # what one begins with, by its byte order
_PILLOW = threading.Lock()  # images that are handed over are decoded, and the files behind them read, by one thread at a time

_BITS_TAG, _PHOTOMETRIC_TAG, _SAMPLES_TAG, _PLANES_TAG, _EXTRA_SAMPLES_TAG = 258, 262, 277, 284, 338  # of TIFF
_STRAIGHT_ALPHA = (2,)  # what more samples than colours are, where a TIFF says it; 1: of colours multiplied by it, 0: anything

# EXIF orientation (tag 0x0112) -> how the stored array is turned upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}

Size = int | tuple[int, int]


def read_image(
    source: str | os.PathLike | MemoryImage, *, size: Size | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read one image, a file or what `as_images` makes of one in memory, as float32 [H,W,3] with values in [0, 1].

    ``size`` (an int for a square, or (height, width)) resizes it as `resize_image` does.
    ``max_pixels`` bounds width x height of a file and a PIL image.

    Raises FileNotFoundError for a missing file, LimitError for one beyond the limits and ImageError, which
    names the path, for one that is not a regular file or cannot be decoded whole; TypeError for bytes and integers.
    """
    if isinstance(source, MemoryImage):
        image = _to_unit_float(_held_pixels(source, max_pixels), source.name)
    else:
        image = _to_unit_float(_decode_file(source, max_pixels)[0], source)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return image if size is None else resize_image(image, size)


def source_key(source: Path | MemoryImage) -> str | list:
    """What an image is known by wherever it lies, as JSON: of a path the file's name; of an image in memory shape, type and checksum
    of its pixels. Errors as in `read_image`."""
    if not isinstance(source, MemoryImage):
        return source.name
    pixels = _held_pixels(source, MAX_PIXELS)
    return [*pixels.shape, str(pixels.dtype), zlib.crc32(np.ascontiguousarray(pixels))]


def read_mask(
    path: str | os.PathLike, *, size: Size | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read a ground-truth mask as uint8 [H,W]: 1 where a pixel is anomalous, else 0.

    Anomalous is every pixel that is not black, so masks of 0/255 and of small defect numbers both work; in
    lossy formats, where black is not kept exactly, every pixel of at least half white. Resized to ``size``
    by the nearest neighbour only, so that a mask never grows. Errors as in `read_image`.
    """
    pixels, lossy = _decode_file(path, max_pixels)
    unit = _to_unit_float(pixels, path)
    value = unit if unit.ndim == 2 else unit.max(axis=2)
    mask = (value >= 0.5 if lossy else value > 0).astype(np.uint8)
    return mask if size is None else resize_mask(mask, size)


def check_mask(image: np.ndarray, mask: np.ndarray, mask_path: str | os.PathLike | None = None) -> None:
    """Raise ImageError unless ``mask`` [H,W] has the height and width of ``image`` [H,W,...].

    To be called before either is resized: afterwards a mask of another picture fits every image.
    """
    if image.shape[:2] != mask.shape[:2]:
        raise ImageError(
            f"mask is {mask.shape[1]}x{mask.shape[0]} pixels, its image {image.shape[1]}x{image.shape[0]}",
            mask_path,
        )


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Resize float32 [H,W,3] in [0, 1] to ``size``: area averages where a side shrinks, linear where it grows."""
    height, width = parse_size(size)
    # In two steps, because cv2's area filter is no filter at all on a side that grows.
    for (h, w), method in (
        ((min(height, image.shape[0]), min(width, image.shape[1])), cv2.INTER_AREA),
        ((height, width), cv2.INTER_LINEAR),
    ):
        if image.shape[:2] != (h, w):
            image = cv2.resize(image, (w, h), interpolation=method)
    return np.minimum(image, 1.0)  # the averages' weights may add up to a little more


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """Resize uint8 [H,W] to ``size`` by the nearest neighbour (pixel centres)."""
    height, width = parse_size(size)
    if mask.shape == (height, width):
        return mask
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def load_images(images: ImageLike | Iterable[ImageLike], size: Size) -> np.ndarray:
    """Read images as float32 [N,H,W,3], all resized to ``size``: paths, arrays of the host and PIL images, as `as_images` takes
    them; one makes N = 1. Errors as in `read_image` and `as_images`."""
    height, width = parse_size(size)
    sources = list(as_images(images))
    found = np.empty((len(sources), height, width, 3), np.float32)
    for i, source in enumerate(sources):
        found[i] = read_image(source, size=(height, width))
    return found


def parse_size(size: Size) -> tuple[int, int]:
    """Turn an int or (height, width) into (height, width), each in 1..65535, or raise ValueError."""
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(isinstance(s, (int, np.integer)) and 1 <= s <= MAX_SIDE for s in pair):
        raise ValueError(f"size is {size!r}, expected an int or (height, width), each in 1..{MAX_SIDE}")
    return int(pair[0]), int(pair[1])


def _to_unit_float(pixels: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Scale decoded [H,W] or [H,W,3] of uint8, uint16 or float32 to float32 in [0, 1]."""
    if pixels.dtype == np.float32:
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails both
            raise ImageError(
                f"float pixels lie in [{pixels.min():.9g}, {pixels.max():.9g}], expected [0, 1]", path
            )
        return np.ascontiguousarray(pixels)
    return unit_float(pixels)


def unit_float(pixels: np.ndarray) -> np.ndarray:
    """Scale uint8 or uint16 pixels of any shape to float32 in [0, 1], a new contiguous array."""
    scaled = np.ascontiguousarray(pixels, dtype=np.float32)
    return np.divide(scaled, np.float32(np.iinfo(pixels.dtype).max), out=scaled)


def _held_pixels(source: MemoryImage, max_pixels: int) -> np.ndarray:
    """The pixels of an image in memory as `_decode_file` gives a file's; of a contiguous array the array itself."""
    image = source.content
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
        if array.dtype.kind == "u":
            return np.asarray(array, array.dtype.newbyteorder("="))
        return np.ascontiguousarray(array, np.float32)
    with _told(source.name):
        with _PILLOW:
            content = _file_behind(image, _most_bytes(max_pixels), source.name)
            if content is None:
                return _upright_pixels(image, None, source.name, max_pixels)
        return _decode(content, source.name, max_pixels)[0]


def _file_behind(image: Image.Image, limit: int, name: str) -> bytes | None:
    """What the file holds that Pillow has opened as this image, at its first frame, and not decoded yet; else None."""
    file = getattr(image, "fp", None)
    if file is None or not image.tile or image.format not in _FORMATS or image.tell() != 0:
        return None
    place = file.tell()
    file.seek(0)
    content = file.read(limit + 1)
    file.seek(place)  # where Pillow goes on from
    if len(content) > limit:
        raise LimitError(f"its file has more bytes than the limit of {limit}", name)
    return content


def _most_bytes(max_pixels: int) -> int:
    """Of a file: eight bytes a pixel is the largest raw format allowed (16-bit RGBA); the rest is room for metadata."""
    return 8 * max_pixels + (16 << 20)


def _decode_file(path: str | os.PathLike, max_pixels: int) -> tuple[np.ndarray, bool]:
    """Decode to upright uint8, uint16 or float32, [H,W] or [H,W,3]; also say whether the format is lossy."""
    content = _read_regular_file(path, _most_bytes(max_pixels))
    if not content:
        raise ImageError("no image that can be read: the file is empty", path)
    return _decode(content, path, max_pixels)


def _decode(content: bytes, path: str | os.PathLike, max_pixels: int) -> tuple[np.ndarray, bool]:
    with _told(path, content), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return _upright_pixels(image, content, path, max_pixels), image.format in _LOSSY


def _upright_pixels(image: Image.Image, content: bytes | None, path: str | os.PathLike, max_pixels: int) -> np.ndarray:
    """``content``: of the image's file, where Pillow has not decoded it yet."""
    width, height = image.size
    if width * height > max_pixels:
        raise LimitError(f"image is {width}x{height} pixels, the limit is {max_pixels}", path)
    layout = str(getattr(image, "tile", ""))  # before load(), which clears it
    _check_deep_tiff(image)
    image.load()
    key = _grey_key(image, layout)
    if content is not None and ";16" in layout and image.mode in ("RGB", "RGBA", "LA") and image.format != "BMP":
        # Pillow keeps only the high byte of 16-bit colours; a BMP's are of 5 and 6 bits.
        fourth = getattr(image, "tag_v2", {}).get(_EXTRA_SAMPLES_TAG, _STRAIGHT_ALPHA)
        pixels = _decode_colour16(content, tuple(fourth) == _STRAIGHT_ALPHA)
    elif key is not None:
        pixels = np.asarray(image)
        pixels = np.where(pixels == key, 0, pixels).astype(np.uint8 if image.mode == "L" else np.uint16)
    else:
        pixels = _pixels_of(image)
    # After load(): of a TIFF both decoders have applied and removed it by now.
    return _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1), np.asarray)(pixels)


@contextmanager
def _told(path: str | os.PathLike, content: bytes = b"") -> Iterator[None]:
    """What a decoder raises of such a file's content as ImageError or LimitError of this path."""
    try:
        yield
    except (ImageError, LimitError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitError(str(error), path) from error
    except UnidentifiedImageError as error:  # its text is of the buffer, an object in memory
        if content.startswith(_TIFF):
            raise ImageError("a TIFF that is damaged, or of pixels that are not read: 8 or 16 bits a channel, or float32 grey are", path) from error
        raise ImageError(f"no image that can be read ({', '.join(_FORMATS)} are)", path) from error
    except Exception as error:  # a decoder given hostile bytes raises whatever it stumbles over, in any number of lines
        raise ImageError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}", path) from error


def _check_deep_tiff(image: Image.Image) -> None:
    """Refuse what decoders read as other colours: more than 8 bits in planes one after the other, or with white as 0."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or max(tags.get(_BITS_TAG, (1,))) <= 8:
        return
    if tags.get(_PLANES_TAG, 1) == 2 and tags.get(_SAMPLES_TAG, 1) > 1:
        raise ValueError("a TIFF of more than 8 bits has its colours in planes one after the other: store it interleaved")
    if tags.get(_PHOTOMETRIC_TAG, 1) == 0:
        raise ValueError("a TIFF of more than 8 bits has white as 0 (MinIsWhite): store it with black as 0")


def _pixels_of(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)  # native byte order
    if image.mode == "F":
        return np.asarray(image)
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        return _over_black(np.asarray(image.convert("RGBA")))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if image.mode in ("RGB", "CMYK", "YCbCr", "LAB"):
        return np.asarray(image.convert("RGB"))
    raise ValueError(f"pixel type {image.mode!r} is not supported")


def _grey_key(image: Image.Image, layout: str) -> int | None:
    """The grey of a PNG that stands for nothing, as its pixels have it: Pillow widens those of 2 and 4 bits, and leaves the key (of an
    image that it has decoded before, whose bits nothing tells, the key is taken as it is)."""
    key = image.info.get("transparency")
    if image.format != "PNG" or not isinstance(key, int) or not (image.mode == "L" or image.mode.startswith("I;16")):
        return None
    bits = re.search(r"'L;([24])'", layout)
    return key * (255 // ((1 << int(bits[1])) - 1)) if bits else key


def _decode_colour16(content: bytes, has_alpha: bool) -> np.ndarray:
    """``has_alpha``: a fourth channel is one, which colours are not multiplied by yet; else they are as they are to be."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("16-bit colours could not be read")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        rgba = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
        return _over_black(rgba) if has_alpha else np.ascontiguousarray(rgba[..., :3])
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _over_black(rgba: np.ndarray) -> np.ndarray:
    """Composite uint8 or uint16 RGBA [H,W,4] over black: colour times alpha, rounded."""
    white = np.iinfo(rgba.dtype).max
    alpha = rgba[..., 3:].astype(np.uint32)  # holds 65535 * 65535 + 32767
    if alpha.min() == white:
        return rgba[..., :3]
    return ((rgba[..., :3] * alpha + white // 2) // white).astype(rgba.dtype)


def _read_regular_file(path: str | os.PathLike, limit: int) -> bytes:
    """Read a whole file of at most ``limit`` bytes; whatever is no regular file is never opened."""
    check_path(path, "an image's path")
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            # O_NONBLOCK: should a FIFO have taken the file's place since, opening it must not wait.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(path, flags), "rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode):
                    content = file.read(limit + 1)
                    if len(content) > limit:
                        raise LimitError(f"file has {status.st_size} bytes, the limit is {limit}", path)
                    return content
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ImageError("symbolic links form a loop", path) from error
        raise
    except LimitError:
        raise
    except ValueError as error:  # a NUL, or what is no text
        raise ImageError(f"no path of a file: {error}", path) from error
    raise ImageError("a folder, not a regular file" if stat.S_ISDIR(status.st_mode) else "not a regular file", path)

"""One picture file to RGB bytes: the only place where semseal opens a picture of a user.

    file ── regular? small? ── bytes ── one of FORMATS? few pixels? ── decoded whole ── upright ── sRGB ── over white

A file that goes through is the picture that a viewer shows, and one that cannot be used is refused with the reason:

    orientation    that of EXIF or XMP, in every format that has it; damaged, it never turns a picture
    grey           of 16 bits: value / 257; of 32 bits: by the whole range; floats: 255 * value, if all are in 0..1
    transparent    over plain white, with alpha, a transparent colour or a palette; nothing left to see is refused
    colours        CMYK, LAB and what has an embedded ICC profile are converted to sRGB; a profile that is damaged, or for
                   another kind of pixels, is left out of account, as viewers do; gAMA, cHRM and cICP are not applied
    animations     the first frame, and of several pages the first
    damaged        refused, where the format lets it be known: PNG has checksums, JPEG has none

Nothing but the formats of the list is ever tried: others run programs (EPS), or are little used and less tested.
"""

import os
import stat
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from semseal.runtime.errors import PictureError
from semseal.runtime.jpegfile import complete_jpeg

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 1 << 26  # 67 million: 200 MB as RGB
MAX_FILE_BYTES = 1 << 29
WHITE = (255, 255, 255)

_MAX_PROFILE_BYTES = 1 << 22
_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# tags of TIFF
_BITS, _COMPRESSION, _PHOTOMETRIC, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 258, 259, 262, 322, 323, 339
_PIECES = ((273, 279), (324, 325))  # offsets and sizes of strips, of tiles
_JPEG_IN_TIFF = 7
_TIFF_COMPRESSIONS = frozenset({1, 5, _JPEG_IN_TIFF, 8, 32773, 32946, 34925, 50000, 50001})  # damaged CCITT data go through
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}

Picture = NDArray[np.uint8]  # [height, width, 3], RGB


def read_picture(path: Path) -> Picture:
    """RGB uint8 [height, width, 3]. Raises PictureError with the reason, without the file's name: the caller has it."""
    data = _read(path)
    try:
        _check_webp(data)
        _check_boxes(data)
        if data[:2] == b"\xff\xd8":
            data = complete_jpeg(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            with Image.open(BytesIO(data), formats=["PNG"]) as image:
                _check_size(*image.size)
                image.verify()  # checksums, which decoding passes over
        with Image.open(BytesIO(data), formats=_formats()) as image:
            _check_size(*image.size)
            _check_tiff(image, data)
            _check_tail(image.format, data)
            image.load()
            return np.asarray(_turned(_over_white(image), _orientation(image)))
    except UnidentifiedImageError:
        raise PictureError(f"not a picture in one of the formats {', '.join(FORMATS)}", "save it as PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise _too_large(f"more than {MAX_PIXELS:,} pixels") from None
    except MemoryError:
        raise PictureError("decoding it takes more memory than there is", "save it smaller") from None
    except PictureError:
        raise
    except Exception as error:  # whatever Pillow raises for damaged files: OSError, SyntaxError, struct.error, KeyError ...
        reason = str(error) or type(error).__name__
        raise PictureError(f"cannot be decoded: {reason}", "copy it again from where it came") from None


def _read(path: Path) -> bytes:
    """The bytes of a regular file. Nothing else is opened, and what takes its name meanwhile is not read."""
    try:
        _check_regular(os.stat(path))
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(handle, "rb") as file:
            _check_regular(os.fstat(handle))
            return file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        raise PictureError("a link to nothing" if path.is_symlink() else "the file is missing", "restore it") from None
    except ValueError:  # a NUL in the name
        raise PictureError("not the name of a file", "rename it") from None
    except OSError as error:
        raise PictureError(error.strerror or str(error), "check that you may read it") from None


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((kind for is_kind, kind in _KINDS.items() if is_kind(found.st_mode)), "no regular file")
        raise PictureError(f"not a picture but {kind}", "leave it out")
    if found.st_size == 0:
        raise PictureError("the file is empty", "copy it again from where it came")
    if found.st_size > MAX_FILE_BYTES:
        raise _too_large(f"{found.st_size:,} bytes, and at most {MAX_FILE_BYTES:,} are read")


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


# what is checked before anything is decoded


def _too_large(what: str) -> PictureError:
    return PictureError(f"too large: {what}", f"scale it down to at most {MAX_PIXELS / 1e6:.0f} megapixels")


def _truncated() -> PictureError:
    return PictureError("truncated: the file ends before the picture does", "copy it again from where it came")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} pixels, and at most {MAX_PIXELS:,} are decoded")


def _check_tiff(image: Image.Image, data: bytes) -> None:
    """A tile is decoded whole, however little of it is the picture; libtiff does not say where JPEG data end early."""
    tags = getattr(image, "tag_v2", {})
    if not tags:
        return
    _check_size(int(tags.get(_TILE_WIDTH, 0)), int(tags.get(_TILE_HEIGHT, 0)))
    compression = tags.get(_COMPRESSION, 1)
    if compression not in _TIFF_COMPRESSIONS:
        raise PictureError(f"TIFF of compression {compression} is not read", "save it with LZW or Deflate, or as PNG")
    if compression == _JPEG_IN_TIFF:
        for offsets, sizes in _PIECES:
            for offset, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=True):
                complete_jpeg(data[offset : offset + size])


def _check_tail(kind: str | None, data: bytes) -> None:
    """A file that was not copied to its end is often as long as it should be, and ends with zeros."""
    zeros = len(data) - len(data.rstrip(b"\0"))
    if kind in ("AVIF", "GIF", "WEBP") and zeros > max(64, len(data) // 16):
        raise PictureError("damaged: the end of the file is all zeros", "copy it again from where it came")


def _check_webp(data: bytes) -> None:
    """WebP's decoder takes the memory for the picture when it is made."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        _check_size(1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little"))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        _check_size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    elif kind == b"VP8 ":
        _check_size(*(int.from_bytes(head[i : i + 2], "little") & 0x3FFF for i in (6, 8)))
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise _truncated()


def _check_boxes(data: bytes) -> None:
    """AVIF: boxes, each with its size in front."""
    place = 0
    while data[4:8] == b"ftyp" and place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4])
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16])
        if size == 0:  # up to the end
            return
        place += max(size, 8)
        if place > len(data):
            raise _truncated()


# from whatever was decoded to upright sRGB


def _orientation(image: Image.Image) -> int:
    """After loading: TIFF pictures are upright then already."""
    try:
        found: int = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data raise all kinds of things
        return 1
    return found


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _over_white(image: Image.Image) -> Image.Image:
    """RGB in sRGB, transparent parts over white. Raises PictureError where nothing is to be seen then."""
    if image.mode.startswith(("I", "F")):
        image = _scaled(image)
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        return _to_srgb(image, profile)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    grey = image.mode in ("1", "L", "LA")
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    least, most = alpha.getextrema()
    if most == 0:
        raise PictureError("wholly transparent", "leave it out, or remove its transparency")
    over = Image.new("RGB", image.size, WHITE)
    over.paste(_to_srgb(image.convert("L" if grey else "RGB"), profile), mask=alpha)
    if isinstance(least, int) and least < 255 and over.getextrema() == ((255, 255),) * 3:
        raise PictureError("transparent, and nothing of it shows over white", "put it over another background")
    return over


def _scaled(image: Image.Image) -> Image.Image:
    """8-bit grey of 16-bit, 32-bit and float grey. Raises PictureError where nobody knows what is white."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (np.isfinite(low) and np.isfinite(high) and low >= -1e-6 and high <= 1 + 1e-6):
            raise PictureError(f"floats of {low:g} to {high:g}: only those in 0..1 are read", "save it with 8 or 16 bits")
        top = 1.0
    elif signed:
        raise PictureError("signed integers: nobody says what is black and white", "save it with 8 or 16 bits")
    elif image.mode == "I" and image.format == "TIFF":
        values = values.view(np.uint32)
        low, high, top = values.min(), values.max(), 2.0**32 - 1
    else:
        top = 2.0 ** (tags.get(_BITS, (16,))[0]) - 1
    inverted = image.format == "TIFF" and tags.get(_PHOTOMETRIC) == 0
    grey = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), 256):  # rows; double precision takes eight times the memory
        part = np.clip(values[first : first + 256] * (255 / top), 0, 255)
        grey[first : first + 256] = np.rint(255 - part if inverted else part)
    darkest, brightest = (255 - grey.max(), 255 - grey.min()) if inverted else (grey.min(), grey.max())
    if high > low and brightest - darkest <= 1:
        raise PictureError(
            f"values of {low:g} to {high:g} where {top:g} is white: all would be one grey", "save it with its full range"
        )
    found = Image.fromarray(grey)
    found.info.update({name: image.info[name] for name in ("icc_profile",) if name in image.info})
    if isinstance(key := image.info.get("transparency"), int):  # the value that is transparent
        found = found.convert("LA")
        found.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        found.info.update({name: image.info[name] for name in ("icc_profile",) if name in image.info})
    return found


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB of a picture without transparency."""
    if image.mode in ("1", "P", "RGBX", "YCbCr", "HSV"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode == "LAB":
        return _applied(image, _lab_to_srgb())
    if profile and len(profile) <= _MAX_PROFILE_BYTES:
        if image.mode == "L" and profile[16:20] == b"RGB ":
            image = image.convert("RGB")
        transform = _transform(profile, image.mode)
        if transform is not None:
            return _applied(image, transform)
    return image.convert("RGB")


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    return transform.apply(image)


@lru_cache(maxsize=8)  # the pictures of a folder are often of one camera
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of an ICC profile to sRGB; None where there is nothing to do, or nothing that can be done.

    Profiles of sRGB itself, of which there are many, change a colour by a rounding: pictures stay as they are then.
    """
    if {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}.get(mode) != profile[16:20]:
        return None
    try:
        found = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(found, ImageCms.createProfile("sRGB"), mode, "RGB")
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        colours = {"L": lambda: Image.fromarray(levels[None]), "RGB": lambda: Image.fromarray(probe)}
        if mode in colours:
            before, after = (
                np.asarray(x, np.int16) for x in (colours[mode]().convert("RGB"), transform.apply(colours[mode]()))
            )
            if np.abs(before - after).max() <= 2:
                return None
    except Exception:  # a damaged profile
        return None
    return transform


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")

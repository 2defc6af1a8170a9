"""What is sent: picture files, folders of them, and the frames of videos, each as large as the model takes it.

FILE ── a picture's name? ── picturefile            FOLDER ── picturefolder            else ── video ── frames, by PyAV
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.errors import PictureError
from semseal.runtime.files import shown
from semseal.runtime.picturefile import MAX_PIXELS, read_picture
from semseal.runtime.picturefolder import OTHER_SUFFIXES, SUFFIXES, pictures_below
from semseal.runtime.pictures import center_crop, to_float

# containers that hold a video and name no other files
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,ivf,h264,hevc,mpegvideo,obu,yuv4mpegpipe"


class Source(NamedTuple):
    """A picture to be sent, or the reason why there is none. float32 [1, 3, height, width] in 0..1."""

    what: str
    image: NDArray[np.float32] | None
    why: str = ""


def listed(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """The files that are sent, folders as what is in them; and what was left out, with the reason.

    Raises PictureError for what is not there, or where nothing is left."""
    files: list[Path] = []
    left_out: dict[Path, str] = {}
    for path in paths:
        try:
            kind = os.stat(path).st_mode
        except OSError as error:
            raise PictureError(f"{shown(path)}: {error.strerror}", "name pictures, folders of them, or a video") from None
        if stat.S_ISDIR(kind):
            found, others = pictures_below(path)
            files += found
            left_out |= others
        elif stat.S_ISREG(kind):
            files.append(path)
        else:
            raise PictureError(f"{shown(path)} is no regular file", "name pictures, folders of them, or a video")
    if not files:
        raise PictureError(
            f"no pictures in {', '.join(shown(path) for path in paths)}",
            f"a picture's name ends in {', '.join(sorted(SUFFIXES))}",
        )
    return files, left_out


def is_picture(path: Path) -> bool:
    """Whether a file counts as one picture, by its name."""
    return path.suffix.lower() in SUFFIXES | OTHER_SUFFIXES


def pictures(files: Sequence[Path], height: int, width: int) -> Iterator[Source]:
    """Every picture, and every frame of every video."""
    for path in files:
        name, suffix = shown(path), path.suffix.lower()
        if suffix in OTHER_SUFFIXES:
            yield Source(name, None, f"{suffix[1:].upper()} is not read: save it as PNG or JPEG")
        elif suffix in SUFFIXES:
            try:
                yield Source(name, to_float([center_crop(read_picture(path), height, width)]))
            except PictureError as error:
                yield Source(name, None, error.message)
        else:
            yield from _frames(path, height, width)


def _frames(path: Path, height: int, width: int) -> Iterator[Source]:
    import av

    name = shown(path)
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    number = 0
    try:
        with av.open(str(path.absolute()), options=options) as video:
            if not video.streams.video:
                yield Source(name, None, "neither a picture nor a video")
                return
            stream = video.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                yield Source(name, None, f"frames of more than {MAX_PIXELS:,} pixels")
                return
            for frame in video.decode(stream):
                yield Source(f"{name}, frame {number}", to_float([center_crop(_upright(frame), height, width)]))
                number += 1
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield Source(f"{name}, frame {number}" if number else name, None, f"cannot be read as a video: {reason}")


def _upright(frame: Any) -> NDArray[np.uint8]:
    """RGB as it is shown: phones store how it must be turned beside the frame."""
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))

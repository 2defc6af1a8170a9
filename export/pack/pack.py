"""Bring your own model: any pair of ONNX files -> a bundle.

two files ── whole ── bounded ── pair ── two graphs ── deploy ── bundle

whole     a file that stands for itself          bounded   the following, in a process of its own
read      a file, checked and converted          layout    features as rows
graph     the two files around the networks      prove     the files and the graphs give the same
pair      the whole of that
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semseal.export.pack.bounded import pack_bounded
from semseal.export.pack.whole import read_file
from semseal.runtime.bundle import Bundle


def pack(
    transmitter: Path,
    receiver: Path,
    out: Path,
    snr_db: float,
    precisions: Sequence[str],
    engines: Sequence[str] = (),
    **deployed: Any,
) -> Bundle:
    """Pack two files and write the bundle, meant for a main channel of ``snr_db``; the rest is as in ``deploy``.

    The manifest's "packed" holds the notes. Raises GraphError as ``pack_graphs``, and what ``deploy`` raises.
    """
    from semseal.export.bundle import deploy  # with torch, which the packer's child does without

    packed = pack_bounded(read_file("transmitter", transmitter), read_file("receiver", receiver))
    layout, reference = packed.layout, packed.reference
    recorded = ("gain", "own_power", "psnr_original", "psnr_packed", "notes")
    manifest = {
        "model": {"height": packed.height, "width": packed.width, "h": layout.h, "w": layout.w, "c": layout.c},
        "snr_db": [snr_db, snr_db],
        "packed": {name: getattr(packed, name) for name in recorded},
    }
    return deploy(
        out, packed.transmitter, packed.receiver, reference.encode, reference.decode, manifest, precisions, engines, **deployed
    )

"""Beside the defence: what others would do with the same bytes, the symbols of the images that are sent.

AES-256-GCM, ChaCha20-Poly1305   seal them, with a nonce each, as a digital link would
take                             NumPy moves their rows by an index
copy                             NumPy copies them
"""

from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from semseal.runtime.bench.measure import Stage
from semseal.runtime.bench.results import Where
from semseal.runtime.bundle import open_bundle
from semseal.runtime.roundtrip import KEY


def peers(where: Where, owner: str | Path | None = None) -> dict[str, Stage]:
    """The peers of the defence on the symbols of one batch, by name."""
    bundle = open_bundle(where.bundle, owner)
    shape = (where.batch * bundle.h, bundle.row_width)
    symbols = np.random.default_rng(0).standard_normal(shape, np.float32)
    images = [part.tobytes() for part in symbols.reshape(where.batch, -1)]
    order = np.random.default_rng(1).permutation(len(symbols))
    target = np.empty_like(symbols)

    def sealed_by(name: str, cipher: Any) -> Stage:
        def seal() -> list[bytes]:
            return [cipher.encrypt(i.to_bytes(12, "little"), image, None) for i, image in enumerate(images)]

        def check(given: list[bytes]) -> None:
            opened = [cipher.decrypt(i.to_bytes(12, "little"), data, None) for i, data in enumerate(given)]
            assert opened == images, f"{name} gave other bytes back"

        return Stage(name, seal, check, bytes=2 * symbols.nbytes)

    def check_take(given: Any) -> None:
        assert np.array_equal(given[np.argsort(order)], symbols), "take gave other rows"

    def check_copy(_: None) -> None:
        assert np.array_equal(target, symbols), "a copy gave other symbols"

    made = [
        sealed_by("AES-256-GCM", AESGCM(KEY)),
        sealed_by("ChaCha20-Poly1305", ChaCha20Poly1305(KEY)),
        Stage("take", lambda: symbols.take(order, axis=0), check_take, bytes=2 * symbols.nbytes),
        Stage("copy", lambda: np.copyto(target, symbols), check_copy, bytes=2 * symbols.nbytes),
    ]
    return {stage.name: stage for stage in made}

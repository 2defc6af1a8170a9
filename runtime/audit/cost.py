"""What each defence costs: channel uses, and the time of Alice and Bob together. Kept in costs.json, beside the results.

    round after round, every defence in turn:  two pictures ── send ──┬── channel, not timed ──┬── receive
                                                                      └──── milliseconds ──────┘

So that what else the machine does meets all defences alike, and each is compared with the link without one in the same round.
Times differ from run to run; they are in a file of their own, as the results of an audit do not.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from semseal.runtime.audit import digitalrival
from semseal.runtime.audit.results import PlaceKey, place_key
from semseal.runtime.audit.scene import Scene
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.errors import AuditError
from semseal.runtime.files import write_atomically

ROUNDS = 9  # and one before them, that opens engines
PICTURES = 2  # of a round, as substitution sends pairs


@dataclass(frozen=True)
class Cost:
    """Of one defence at one place: channel uses of a picture, and milliseconds of it on the way from Alice to Bob.

    ``ms`` is the median with its quartiles, ``more_ms`` the median difference from the link without a defence, round by round.
    """

    bundle: str
    main_snr: float
    engine: str
    precision: str
    main_channel: str
    defense: str
    channel_uses: int
    ms: float
    ms_low: float
    ms_high: float
    more_ms: float

    @property
    def place(self) -> PlaceKey:
        """What tells it from the other places of an audit."""
        return self.bundle, self.main_snr, self.engine, self.precision, self.main_channel


def costs_of(scene: Scene, defenses: Sequence[str], file: Path) -> tuple[Cost, ...]:
    """Those at the place of ``scene``, from ``file`` where they are there, measured and added to it where not.

    Raises AuditError for a damaged file.
    """
    wanted, known = tuple(dict.fromkeys(("none", *defenses))), _read(file)
    here = [cost for cost in known if place_key(scene.place) == cost.place]
    if not {cost.defense for cost in here} >= set(wanted):
        here = _measure(scene, wanted)
        there = [cost for cost in known if place_key(scene.place) != cost.place]
        text = json.dumps([dataclasses.asdict(cost) for cost in (*there, *here)], indent=1)
        write_atomically(file, f"{text}\n".encode())
    return tuple(cost for cost in here if cost.defense in wanted)


def _measure(scene: Scene, defenses: tuple[str, ...]) -> list[Cost]:
    uses, times = [0] * len(defenses), np.empty((1 + ROUNDS, len(defenses)))
    for row in range(len(times)):
        images = np.take(scene.images, range(PICTURES * row, PICTURES * (row + 1)), axis=0, mode="wrap")
        for column, name in enumerate(defenses):
            digitalrival.fitted.cache_clear()
            start = perf_counter()
            frames = scene.send(images, BY_NAME[name])
            sent = perf_counter()
            symbols = np.stack([frame.symbols for frame in frames])
            received = scene.add_noise(symbols, scene.main_snr, 0, eve=False)
            arrived = perf_counter()
            scene.decoded_by_bob(BY_NAME[name], frames, received)
            times[row, column] = 1e3 * (perf_counter() - arrived + sent - start) / PICTURES
            uses[column] = symbols.shape[1]
    times = times[1:]
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75), axis=0)
    more = np.median(times - times[:, :1], axis=0)
    place = place_key(scene.place)
    figures = zip(middle, low, high, more, strict=True)
    return [
        Cost(*place, name, used, *(round(float(value), 3) for value in found))
        for name, used, found in zip(defenses, uses, figures, strict=True)
    ]


def _read(file: Path) -> list[Cost]:
    if not file.exists():
        return []
    try:
        return [Cost(**cost) for cost in json.loads(file.read_text())]
    except (ValueError, TypeError):
        raise AuditError(f"{file} is damaged", "delete it, and the same command measures it again") from None

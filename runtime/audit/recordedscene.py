"""What of a recording is attacked, and the scene that it is attacked in.

    recording ── frames, in their order ── pairs, where two streams are supposed ── symbols, SNR ── RecordedScene ── attacks
    pictures that were sent ── places of the frames ──┘                                 └ Eve's own frames are sent as ever

A recording has no header: Eve does not know the defence, beyond what the number of symbols tells, nor any scale.
"""

import dataclasses
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from semseal.runtime.audit.recording import RecordedFrame, Recording, places
from semseal.runtime.audit.scene import QUIET_DB, Images, Scene, Symbols
from semseal.runtime.audit.settings import Place, Settings
from semseal.runtime.audit.taken import MIN_ATTACKER_PICTURES, take_attacker_images
from semseal.runtime.bundle import Bundle
from semseal.runtime.defense.defenses import Defense
from semseal.runtime.errors import AuditError, PictureError
from semseal.runtime.files import shown
from semseal.runtime.frame import power
from semseal.runtime.net import sources
from semseal.runtime.receiver import MAX_POWER

MIN_POWER = 0.8  # mean of a symbol; 1 was sent, and losses that are not made up for take a tenth


@dataclass(frozen=True, eq=False)
class Chosen:
    """Frames that are attacked together, and their symbols [n, N]; those of a pair are neighbours."""

    frames: list[RecordedFrame]
    symbols: Symbols


@dataclass(frozen=True, eq=False)
class Case:
    """What is attacked, by ``choices`` for each number of streams; ``sent`` has the pictures of the frames that are scored."""

    bundle: Bundle
    place: Place
    settings: Settings
    attacker_images: Images
    snr_db: float | None  # estimated; None where there is no noise that could be
    choices: dict[int, Chosen]
    sent: dict[RecordedFrame, Images]
    stored: bool = False  # Eve knows that there is no noise

    @property
    def largest(self) -> Chosen:
        return max(self.choices.values(), key=lambda chosen: len(chosen.frames))

    def images(self, chosen: Chosen) -> Images:
        """The pictures that were sent; black ones where these are not known."""
        black = np.zeros((3, self.bundle.height, self.bundle.width), np.float32)
        return np.stack([self.sent.get(frame, black) for frame in chosen.frames])


class RecordedScene(Scene):
    """A scene in which what Alice sends was recorded; with ``anew`` it is sent once more, for a control."""

    def __init__(self, case: Case, chosen: Chosen, anew: bool = False) -> None:
        few = min(case.settings.optimised_pictures, len(chosen.frames))
        settings = dataclasses.replace(case.settings, pictures=len(chosen.frames), optimised_pictures=few)
        super().__init__(case.bundle, case.images(chosen), case.attacker_images, settings, case.place)
        self._recorded, self._scored = None if anew else chosen.symbols, bool(case.sent)

    def received_frames(self, images: Images, defense: Defense, snr_db: float, draw: int, key: bytes | None = None) -> Symbols:
        """Of the first of the images that were sent what was recorded, of others what Eve makes of them herself."""
        if self._recorded is not None and np.may_share_memory(images, self.images):
            return self._recorded[: len(images)]
        return super().received_frames(images, defense, snr_db, draw, key)

    def knows_scales(self, defense: Defense) -> bool:
        """Never: headers are not on air."""
        return False

    def best_order(self, answers: Images, streams: int) -> Images:
        return super().best_order(answers, streams) if self._scored else answers


def pictures_sent(
    found: Recording, bundle: Bundle, sent: Sequence[Path], limit: int, left_out: dict[str, str]
) -> dict[RecordedFrame, Images]:
    """The picture of each of the first frames that have a place among those that were sent, in the order of the places."""
    files, _ = sources.listed(sent)

    def readable() -> Iterator[Images]:
        return (source.image[0] for source in sources.pictures(files, bundle.height, bundle.width) if source.image is not None)

    last = max(frame.counter for frame in found.frames)
    count = sum(1 for _ in islice(readable(), min(last + 2, sys.maxsize)))  # no more need to be there
    at, others = places(found.frames, count)
    left_out |= others
    if len(at) > limit:
        left_out[f"{len(at) - limit} further frames"] = f"{limit} are attacked; --pictures takes more"
    wanted = dict(islice(at.items(), limit))
    of_place = {place: frame for frame, place in wanted.items()}
    if not wanted:
        return {}
    return {of_place[i]: image for i, image in enumerate(islice(readable(), max(of_place) + 1)) if i in of_place}


def choose(
    found: Recording, every_streams: Collection[int], aligned: list[RecordedFrame], limit: int, left_out: dict[str, str]
) -> dict[int, Chosen]:
    """The frames that are attacked, for each number of streams; all where none is ``aligned``. Raises AuditError for none."""
    choices = {}
    for streams in sorted(every_streams):
        frames = aligned or list(found.frames)
        if streams == 2:
            there = {(frame.session, frame.counter): frame for frame in frames}
            firsts = [one for one in frames if one.counter % 2 == 0 and (one.session, one.counter + 1) in there]
            frames = [frame for one in firsts for frame in (one, there[one.session, one.counter + 1])]
        chosen: list[RecordedFrame] = []
        symbols: list[Symbols] = []
        refused = further = 0
        for start in range(0, len(frames), streams):
            if len(chosen) == limit:
                further = len(frames) - start
                break
            group = frames[start : start + streams]
            read = [part for part in map(found.symbols, group) if part is not None]
            if len(read) < streams:
                refused += streams
                continue
            chosen += group
            symbols += read
        if refused:
            why = f"symbols that are not finite, or with a power above {MAX_POWER:g}"
            left_out[f"{refused} frames that no receiver takes"] = why
        if further and streams == 1:
            left_out[f"{further} further frames"] = f"{limit} are attacked; --pictures takes more"
        if chosen:
            choices[streams] = Chosen(chosen, np.stack(symbols))
        else:
            left_out["substitution"] = "no two frames are a pair: counters 2k and 2k + 1 of one session"
    if not choices:
        raise AuditError(f"{shown(found.data)} has no frame that can be attacked", "; ".join(map(": ".join, left_out.items())))
    return choices


def attackers(data: str, settings: Settings, bundle: Bundle) -> tuple[Images, dict[str, str]]:
    """Eve's images, as in every audit. Raises PictureError for too few."""
    count = settings.attacker_pictures
    found, skipped = take_attacker_images(data, count, bundle.height, bundle.width)
    if len(found) < min(count, MIN_ATTACKER_PICTURES):
        raise PictureError(
            f"{shown(data)}: Eve needs {min(count, MIN_ATTACKER_PICTURES)} pictures, and there are {len(found)}",
            "give a folder of at least 50 pictures, or of 1,000; or --data photos",
        )
    if len(found) < count:
        skipped[f"{count - len(found)} of {count} attacker's images"] = f"there are no more in {shown(data)}"
    return found[: len(found) // 2 * 2], skipped


def estimated_snr_db(symbols: Symbols, recording: Path) -> float | None:
    """What the power of the frames exceeds 1 by, as an SNR; None where that is no noise. Raises AuditError for too little."""
    mean = float(np.mean([power(frame) for frame in symbols]))
    if mean < MIN_POWER:
        raise AuditError(
            f"{shown(recording)}: a symbol has a power of {mean:.3g}, and 1 was sent before noise",
            "multiply the symbols by one factor, so that what was sent has power 1",
        )
    return None if mean - 1 < 10 ** (-QUIET_DB / 10) else -10 * math.log10(mean - 1)

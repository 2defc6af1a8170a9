"""What an audit found, from measuring to page: frozen dataclasses, written as JSON once and read back into them.

Reconstructions ── PictureRow ─┐
GameResult ─────── GameRow ────┼─ Results ── results.json
OnAir ──────────── AirRow ─────┤
two Reconstructions ─ Ordering ┤
budgets ───────────── Gate ────┘
"""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import radio
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.audit.on_air import OnAir
from semseal.runtime.audit.schema import mismatch, schema
from semseal.runtime.audit.settings import NO_NOISE, Cell, Place, Settings
from semseal.runtime.environment import Environment
from semseal.runtime.errors import AuditError
from semseal.runtime.ofdm import Radio

Images = NDArray[np.float32]

CHANNEL_TITLES = {
    "awgn": "AWGN",
    "rayleigh": "Rayleigh",
    "multipath": "multipath",
    **{kind: kind.upper() for kind in radio.CHANNELS},
}
PlaceKey = tuple[str, float, str, str, str]


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Per-picture PSNR in dB and SSIM, float64 [n], and the first pictures, float32 [SHOWN, 3, height, width].

    ``advantage``, float64 [n] ([n / 2] where substitution sends pairs), is the matching advantage: how many dB an answer is
    closer to the picture sent than to others, beyond easy pictures and easy answers. Its mean is 0 for an Eve who learned
    nothing, however good her guess is. ``named``, as long: whether the answer is closer to the picture sent than to any other
    that was sent, beyond easy pictures; None where that was not asked.
    """

    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    advantage: NDArray[np.float64]
    shown: Images
    named: NDArray[np.bool_] | None = None
    on_air: OnAir | None = None  # of Bob's


@dataclass(frozen=True)
class GameResult:
    """One game: Eve's success with its 95 % interval, and what guessing gives. ``name`` tells the games of one cell apart.

    ``measure`` says what ``value`` is:
      rate      the share of trials won
      area      under the ROC curve
      balanced  the mean over the classes of the share of each that is named right
      dB        a matching advantage, or how much closer to one picture than to another
      t         |t| of Welch's test on times, the largest of many; the interval is that of one t
    """

    name: str
    value: float
    low: float
    high: float
    trials: int
    chance: float
    measure: str
    p_value: float | None = None  # of so much by chance; None: as value, trials and chance give it
    note: str = ""  # what else is to be said of it


@dataclass(frozen=True)
class PictureRow:
    """A cell that ends in pictures. Fields that end in ``_95`` are half widths of 95 % intervals, None for a single picture.

    All fields after ``paper_missing`` are about Eve, and None for Bob and for the mean picture.
    """

    attack: str
    defense: str
    main_snr: float
    eve_snr: float | None
    precision: str
    engine: str
    bundle: str
    main_channel: str
    eve_channel: str | None
    eve_antennas: int | None
    pictures: int
    psnr: float
    psnr_95: float | None
    ssim: float
    ssim_95: float | None
    paper_psnr: float | None
    paper_ssim: float | None
    paper_missing: str | None
    matching_advantage_db: float | None = None
    matching_advantage_95: float | None = None
    above_mean_picture_db: float | None = None
    above_mean_picture_95: float | None = None
    below_bob_db: float | None = None
    below_bob_95: float | None = None
    control: str | None = None  # the defence under which the attack must win
    verdict: str | None = None  # sees, nothing, open or void
    named: float | None = None  # the share of her pictures that are closest to the one sent, of all that were sent
    named_low: float | None = None  # exact 95 % bounds
    named_high: float | None = None
    named_chance: float | None = None


@dataclass(frozen=True)
class GameRow:
    """A rate or an area that a game gave, with its 95 % interval; ``verdict`` is sees, nothing, open or void."""

    attack: str
    defense: str
    main_snr: float
    eve_snr: float | None
    precision: str
    engine: str
    bundle: str
    main_channel: str
    eve_channel: str | None
    eve_antennas: int | None
    name: str
    value: float
    low: float
    high: float
    trials: int
    chance: float
    measure: str
    control: str
    control_won: bool
    verdict: str
    p_value: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Ordering:
    """A claim that one cell beats another, in dB over the same pictures; ``verdict`` is holds, fails or open."""

    claim: str
    better: Cell
    worse: Cell
    difference_db: float
    half_width_db: float | None
    pictures: int
    verdict: str


@dataclass(frozen=True)
class AuditedBundle:
    """A bundle that was attacked at one SNR of Bob's, under its name in this audit, and what ran it over which channels.

    The bandwidth ratio is in channel uses for each value of a picture, with the cyclic prefix where the main channel has one.
    """

    name: str
    main_snr: float
    digest: str
    c: int
    bandwidth_ratio: float
    engines: tuple[str, ...]
    main_channel: str
    eve_channel: str

    @property
    def title(self) -> str:
        """Of a column."""
        kind = "" if self.main_channel == "awgn" else f"{CHANNEL_TITLES[self.main_channel]} "
        return f"{self.name}, main channel {kind}{self.main_snr:g} dB"

    @property
    def channels(self) -> str:
        """Both, in words."""
        return CHANNEL_TITLES[self.main_channel] + (
            "" if self.eve_channel == self.main_channel else f", Eve's {CHANNEL_TITLES[self.eve_channel]}"
        )


@dataclass(frozen=True)
class AirRow:
    """What Alice put on air under one defence at one place, and how noisy Bob got it.

    ``symbols_db`` is the mean over frames of a frame's peak to mean power, of the symbols themselves. ``waveform_db`` is the
    level that one OFDM symbol in a thousand exceeds (four times oversampled, before clipping), ``exceeded`` the share that
    exceeds each of ``levels_db``. ``effective_snr_db`` is the median of the frames' behind Bob's equaliser, ``worst_snr_db``
    that of the worst frame in twenty.
    """

    defense: str
    main_snr: float
    precision: str
    engine: str
    bundle: str
    main_channel: str
    frames: int
    symbols_db: float
    waveform_db: float
    levels_db: tuple[float, ...]
    exceeded: tuple[float, ...]
    effective_snr_db: float
    worst_snr_db: float


@dataclass(frozen=True)
class Gate:
    """One budget, and whether it was kept: the largest ``figure`` of its kind, the upper end of an interval where it has one.

    ``figure`` is None where something that the budget is about was not measured or is void; then it is not kept, and ``reason``
    says what. ``cell`` is the one of the figure.
    """

    name: str
    bound: float
    figure: float | None
    passed: bool
    what: str
    reason: str
    cell: Cell | None


@dataclass(frozen=True)
class Results:
    """The content of results.json, in which Eve's SNR is "none" for frames without noise.

    ``skipped`` maps each picture or attack that was left out to the reason, ``gate`` holds the budgets of the last run.
    """

    what: str
    environment: Environment
    data: str
    settings: Settings
    ssim: str
    bundles: tuple[AuditedBundle, ...]
    pictures: str
    rows: tuple[PictureRow, ...]
    games: tuple[GameRow, ...]
    orderings: tuple[Ordering, ...]
    skipped: dict[str, str]
    surrogate_agreement_db: dict[str, float]  # of what the white-box attacks differentiate with what the engine sends
    on_air: tuple[AirRow, ...] = ()
    gate: tuple[Gate, ...] = ()

    def places(self, bundle: AuditedBundle) -> tuple[Place, ...]:
        """Where the bundle was measured, at this SNR of Bob's: on each engine at each precision, the first one first."""
        return tuple(
            Place(
                bundle.name,
                bundle.main_snr,
                engine,
                precision,
                bundle.main_channel,
                bundle.eve_channel,
                self.settings.eve_antennas,
            )
            for engine in bundle.engines
            for precision in self.settings.precisions
        )

    @property
    def firsts(self) -> tuple[Place, ...]:
        """The first place of every bundle."""
        return tuple(self.places(bundle)[0] for bundle in self.bundles)

    @property
    def every_place(self) -> tuple[Place, ...]:
        return tuple(place for bundle in self.bundles for place in self.places(bundle))

    @property
    def judged(self) -> tuple[PictureRow | GameRow, ...]:
        """Every row with a verdict: those about Eve."""
        return (*(row for row in self.rows if row.verdict is not None), *self.games)

    def to_json(self) -> str:
        """Strict JSON: an infinite SNR of Eve's is NO_NOISE."""
        return json.dumps(_written(dataclasses.asdict(self)), indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "Results":
        """The reverse. Raises AuditError for what is not the results.json of an audit by this version."""
        try:
            found = _read_back(json.loads(text))
            if reason := mismatch(found, Results):
                raise ValueError(reason)
            return Results(
                **{
                    **found,
                    "environment": Environment(**found["environment"]),
                    "settings": _settings(found["settings"]),
                    "bundles": tuple(
                        AuditedBundle(**{**bundle, "engines": tuple(bundle["engines"])}) for bundle in found["bundles"]
                    ),
                    "rows": tuple(PictureRow(**row) for row in found["rows"]),
                    "games": tuple(GameRow(**row) for row in found["games"]),
                    "on_air": tuple(_air_row(row) for row in found["on_air"]),
                    "gate": tuple(Gate(**{**gate, "cell": gate["cell"] and Cell(**gate["cell"])}) for gate in found["gate"]),
                    "orderings": tuple(_ordering(ordering) for ordering in found["orderings"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            message = f"not the results of an audit by this version of semseal: {error!r}"
            raise AuditError(message, "run the audit again with another --out") from None


def _written(found: Any) -> Any:
    """``found`` with every infinite SNR of Eve's as NO_NOISE."""
    return _with_snrs(found, lambda snr: NO_NOISE if snr == math.inf else snr)


def _read_back(found: Any) -> Any:
    """The reverse."""
    return _with_snrs(found, lambda snr: math.inf if snr == NO_NOISE else snr)


def _with_snrs(found: Any, changed: Callable[[Any], Any]) -> Any:
    if isinstance(found, dict):
        return {
            name: changed(value)
            if name == "eve_snr"
            else [changed(snr) for snr in value]
            if name == "eve_snrs"
            else _with_snrs(value, changed)
            for name, value in found.items()
        }
    return [_with_snrs(value, changed) for value in found] if isinstance(found, list | tuple) else found


_TUPLES = ("attacks", "defenses", "eve_snrs", "main_snrs", "precisions", "engines", "channels")


def _settings(found: dict[str, Any]) -> Settings:
    tuples = {name: tuple(found[name]) for name in _TUPLES}
    searches = {name: WhiteBoxSettings(**found[name]) for name in ("whitebox", "matching")}
    return Settings(**{**found, **tuples, **searches, "radio": Radio(**found["radio"])})


def _air_row(found: dict[str, Any]) -> AirRow:
    return AirRow(**{**found, "levels_db": tuple(found["levels_db"]), "exceeded": tuple(found["exceeded"])})


def _ordering(found: dict[str, Any]) -> Ordering:
    return Ordering(**{**found, "better": Cell(**found["better"]), "worse": Cell(**found["worse"])})


def place_of(row: Cell | PictureRow | GameRow | AirRow) -> PlaceKey:
    """What tells the place of a row or cell from the others of one audit: bundle, main SNR, engine, precision, main channel."""
    return row.bundle, row.main_snr, row.engine, row.precision, row.main_channel


def place_key(place: Place) -> PlaceKey:
    """The same of a place."""
    return place.bundle, place.main_snr, place.engine, place.precision, place.main_channel


def cell_of(row: PictureRow | GameRow) -> Cell:
    """The cell of a row."""
    return Cell(**{field.name: getattr(row, field.name) for field in dataclasses.fields(Cell)})


if __name__ == "__main__":
    print(json.dumps(schema(Results), indent=1))

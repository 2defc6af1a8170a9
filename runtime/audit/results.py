"""What an audit found, from measuring to page: frozen dataclasses, written as JSON once and read back into them.

Reconstructions ── PictureRow ─┐
GameResult ─────── GameRow ────┼─ Results ── results.json
two Reconstructions ─ Ordering ┤
budgets ───────────── Gate ────┘
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.audit.schema import mismatch, schema
from semseal.runtime.audit.settings import Cell, Place, Settings
from semseal.runtime.environment import Environment
from semseal.runtime.errors import AuditError

Images = NDArray[np.float32]

CHANNEL_TITLES = {"awgn": "AWGN", "rayleigh": "Rayleigh", "multipath": "multipath"}


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Per-picture PSNR in dB and SSIM, float64 [n], and the first pictures, float32 [SHOWN, 3, height, width].

    ``advantage``, float64 [n] ([n / 2] where substitution sends pairs), is the matching advantage: how many dB an answer is
    closer to the picture sent than to others, beyond easy pictures and easy answers. Its mean is 0 for an Eve who learned
    nothing, however good her guess is.
    """

    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    advantage: NDArray[np.float64]
    shown: Images


@dataclass(frozen=True)
class GameResult:
    """One game: Eve's success with its 95 % interval, and what guessing gives. ``name`` tells the games of one cell apart."""

    name: str
    value: float
    low: float
    high: float
    trials: int
    chance: float
    measure: str  # rate, the share of trials won, or area, under the ROC curve


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
        return f"{self.name}, main channel {self.main_snr:g} dB"

    @property
    def channels(self) -> str:
        """Both, in words."""
        return CHANNEL_TITLES[self.main_channel] + (
            "" if self.eve_channel == self.main_channel else f", Eve's {CHANNEL_TITLES[self.eve_channel]}"
        )


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
    """The content of results.json. ``skipped`` maps each picture or attack that was left out to the reason, ``gate`` holds
    the budgets of the last run."""

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
    gate: tuple[Gate, ...] = ()

    def places(self, bundle: AuditedBundle) -> tuple[Place, ...]:
        """Where the bundle was measured, at this SNR of Bob's: on each engine at each precision, the first one first."""
        return tuple(
            Place(bundle.name, bundle.main_snr, engine, precision, bundle.main_channel, bundle.eve_channel)
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
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> "Results":
        """The reverse. Raises AuditError for what is not the results.json of an audit by this version."""
        try:
            found = json.loads(text)
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
                    "gate": tuple(Gate(**{**gate, "cell": gate["cell"] and Cell(**gate["cell"])}) for gate in found["gate"]),
                    "orderings": tuple(_ordering(ordering) for ordering in found["orderings"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            message = f"not the results of an audit by this version of semseal: {error!r}"
            raise AuditError(message, "run the audit again with another --out") from None


def _settings(found: dict[str, Any]) -> Settings:
    tuples = {name: tuple(found[name]) for name in ("attacks", "defenses", "eve_snrs", "main_snrs", "precisions", "engines")}
    searches = {name: WhiteBoxSettings(**found[name]) for name in ("whitebox", "matching")}
    return Settings(**{**found, **tuples, **searches})


def _ordering(found: dict[str, Any]) -> Ordering:
    return Ordering(**{**found, "better": Cell(**found["better"]), "worse": Cell(**found["worse"])})


def place_of(row: Cell | PictureRow | GameRow) -> tuple[str, float, str, str]:
    """What tells the place of a row or cell from the others of one audit: bundle, main SNR, engine and precision."""
    return row.bundle, row.main_snr, row.engine, row.precision


def place_key(place: Place) -> tuple[str, float, str, str]:
    """The same of a place."""
    return place.bundle, place.main_snr, place.engine, place.precision


def cell_of(row: PictureRow | GameRow) -> Cell:
    """The cell of a row."""
    return Cell(**{field.name: getattr(row, field.name) for field in dataclasses.fields(Cell)})


if __name__ == "__main__":
    print(json.dumps(schema(Results), indent=1))

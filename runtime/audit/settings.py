"""What an audit is asked to measure: its settings, and the place of one measurement, a cell."""

import dataclasses
from dataclasses import dataclass

from semseal.runtime.attacks.whitebox import FAST, WhiteBoxSettings


@dataclass(frozen=True)
class Settings:
    """How much is measured, and how hard Eve tries. Names are those of the tables of attacks and defences."""

    attacks: tuple[str, ...]
    defenses: tuple[str, ...]
    pictures: int = 200  # even, as they are sent in pairs, and at least 6
    optimised_pictures: int = 24  # of them, the first, for the attacks that optimise picture by picture; the same
    attacker_pictures: int = 800  # that Eve trains on
    whitebox: WhiteBoxSettings = FAST
    matching: WhiteBoxSettings = FAST
    blackbox_steps: int = 600
    learned_steps: int = 1500
    trials: int = 1000  # of each chosen pair in "distinguishing"
    eve_snrs: tuple[float, ...] = (0.0, 10.0, 20.0)
    main_snrs: tuple[float, ...] = ()  # of Bob, with a model for a range of them; none: the middle of the range
    precisions: tuple[str, ...] = ("fp32",)
    seed: int = 0

    def effort(self) -> dict[str, object]:
        """What the content of a cell depends on, besides its place; the rest only says which cells are measured."""
        chosen = ("eve_snrs", "main_snrs", "defenses", "attacks", "precisions")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in chosen}


@dataclass(frozen=True)
class Cell:
    """One measurement. ``eve_snr`` is None for Bob and for the mean picture, which no channel of Eve's takes part in."""

    attack: str  # a name of the table of attacks, or bob, or mean-picture
    defense: str
    main_snr: float
    eve_snr: float | None
    precision: str = "fp32"

"""What an audit measures: attack x defence x Eve's SNR x main SNR x precision of the engines, one cell each.

An attack counts only while its positive control wins: the same attack, pictures and SNRs under a defence that it must break. So
the control's cell belongs to every plan that holds the attack.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from semseal.runtime.attacks.whitebox import FAST, WhiteBoxSettings

PAPER_MODES = ("permute", "substitute", "permute+substitute")
DEFENSES = ("none", *PAPER_MODES, "mix")
PAPER_ATTACKS = ("white-box", "black-box")

# attacks that end in pictures -> the defence of their positive control
PICTURES = {
    "white-box": "none",
    "black-box": "none",
    "no key": "none",
    "row ordering": "permute",
    "brute force": "permute",
    "learned": "none",
    "set inverse": "permute",
    "row matching": "permute",
    "reused V": "permute",
    "reused stream": "permute",
    "four packets": "permute",
}
GAMES = {"which": "none", "link": "none", "distinguish": "none"}
ATTACKS = (*PICTURES, *GAMES)
PRECISIONS = ("fp32", "fp16", "int8")
OPTIMISED = ("white-box", "row matching")  # picture by picture, and so on few of them


@dataclass(frozen=True)
class Settings:
    """How much is measured, and how hard Eve tries."""

    pictures: int = 200  # even, as they are sent in pairs, and at least 6
    optimised_pictures: int = 24  # of them, the first, for the attacks in OPTIMISED; the same
    eve_pictures: int = 800  # that Eve trains on
    whitebox: WhiteBoxSettings = FAST
    matching: WhiteBoxSettings = FAST
    blackbox_steps: int = 600
    learned_steps: int = 1500
    trials: int = 1000  # of each chosen pair in "distinguish"
    eve_snrs: tuple[float, ...] = (0.0, 10.0, 20.0)
    defenses: tuple[str, ...] = DEFENSES
    attacks: tuple[str, ...] = ATTACKS
    precisions: tuple[str, ...] = ("fp32",)
    seed: int = 0

    def effort(self) -> dict[str, object]:
        """What the content of a cell depends on, besides its place; the rest only says which cells are measured."""
        chosen = ("eve_snrs", "defenses", "attacks", "precisions")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in chosen}

    def and_also(self, other: Mapping[str, Any]) -> Self:
        """These settings, asked for the cells of ``other`` (the settings in results.json) as well."""

        def both(known: tuple[str, ...], name: str) -> tuple[str, ...]:
            return tuple(value for value in known if value in {*getattr(self, name), *other[name]})

        return dataclasses.replace(
            self,
            eve_snrs=tuple(sorted({*self.eve_snrs, *other["eve_snrs"]})),
            defenses=both(DEFENSES, "defenses"),
            attacks=both(ATTACKS, "attacks"),
            precisions=both(PRECISIONS, "precisions"),
        )


FULL = Settings()
QUICK = Settings(
    pictures=16,
    optimised_pictures=12,
    eve_pictures=200,
    whitebox=dataclasses.replace(FAST, steps=100, lr=0.1),
    matching=dataclasses.replace(FAST, steps=50, lr=0.1),
    blackbox_steps=150,
    learned_steps=20,
    trials=40,
    eve_snrs=(10.0,),
)
DEMO = dataclasses.replace(
    QUICK,
    pictures=24,
    blackbox_steps=400,
    defenses=("none", "permute+substitute", "mix"),
    attacks=(*PAPER_ATTACKS, "row ordering"),
)


@dataclass(frozen=True)
class Cell:
    """One measurement. ``eve_snr`` is None for Bob and for the mean picture, who hear no Eve's channel."""

    attack: str  # of PICTURES or GAMES, or bob, or mean picture
    defense: str
    main_snr: float
    eve_snr: float | None
    precision: str = "fp32"

    @property
    def file(self) -> str:
        eve = "" if self.eve_snr is None else f"-eve{self.eve_snr:g}"
        kind = "json" if self.attack in GAMES else "npz"
        return f"{self.attack.replace(' ', '-')}-{self.defense}-main{self.main_snr:g}{eve}-{self.precision}.{kind}"


def applies(attack: str, defense: str) -> bool:
    """Schemes are the paper's modes' only; what undoes one orthogonal map of a picture's symbols needs there to be one."""
    if attack in ("brute force", "reused V"):
        return defense in PAPER_MODES
    return attack != "reused stream" or defense in ("permute", "mix")


def cells(settings: Settings, main_snr: float) -> Iterator[Cell]:
    """Every cell of one bundle: Bob and the mean picture first, then each attack, its control before what it controls."""
    controls = {**PICTURES, **GAMES}
    used = {controls[name] for name in settings.attacks} | set(settings.defenses)
    for precision in settings.precisions:
        yield Cell("mean picture", "none", main_snr, None, precision)
        for defense in [name for name in DEFENSES if name in used]:
            yield Cell("bob", defense, main_snr, None, precision)
        for snr in settings.eve_snrs:
            for attack in settings.attacks:
                for defense in dict.fromkeys((controls[attack], *settings.defenses)):
                    if applies(attack, defense):
                        yield Cell(attack, defense, main_snr, snr, precision)

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
    flow_width: int = 32  # channels of the generative Eve's models of pictures
    flow_batch: int = 16
    prior_steps: int = 1500  # of the model of pictures alone, trained once
    generative_levels: int = 16  # of noise, when that one is guided; at each so many
    generative_pulls: int = 4  # gradient steps, and when there is no noise left
    generative_refined: int = 120
    flow_steps: int = 1000  # of the model that is given what was received
    flow_levels: int = 8  # of noise, when it answers, with the mean of so many
    flow_draws: int = 4
    trials: int = 1000  # of each chosen pair in "distinguishing"
    eve_snrs: tuple[float, ...] = (0.0, 10.0, 20.0)
    main_snrs: tuple[float, ...] = ()  # of Bob, with a model for a range of them; none: the middle of the range
    precisions: tuple[str, ...] = ("fp32",)
    engines: tuple[str, ...] = ()  # none: that which each bundle is deployed with
    channel: str | None = None  # from Alice to Bob, of ``semseal.runtime.channel``; None: that which each link was trained for
    eve_channel: str | None = None  # from Alice to Eve; None: as Bob's
    seed: int = 0

    def effort(self) -> dict[str, object]:
        """What the content of a cell depends on, besides its place; the rest only says which cells are measured."""
        chosen = ("eve_snrs", "main_snrs", "defenses", "attacks", "precisions", "engines", "channel", "eve_channel")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in chosen}


@dataclass(frozen=True)
class Cell:
    """One measurement. Eve's SNR and channel are None for Bob and for the mean picture, in which she takes no part."""

    attack: str  # a name of the table of attacks, or bob, or mean-picture
    defense: str
    main_snr: float
    eve_snr: float | None
    precision: str = "fp32"
    engine: str = "onnxruntime-cpu"
    bundle: str = ""  # its name in this audit
    main_channel: str = "awgn"
    eve_channel: str | None = "awgn"

    def __post_init__(self) -> None:
        if self.eve_snr is None:
            object.__setattr__(self, "eve_channel", None)


@dataclass(frozen=True)
class Place:
    """Where cells are measured: a bundle at one SNR of Bob's, the engine and the precision that run it, and both channels."""

    bundle: str
    main_snr: float
    engine: str
    precision: str
    main_channel: str
    eve_channel: str

    def cell(self, attack: str, defense: str, eve_snr: float | None) -> Cell:
        return Cell(attack, defense, eve_snr=eve_snr, **dataclasses.asdict(self))

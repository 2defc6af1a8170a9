"""What an audit is asked to measure: its settings, and the place of one measurement, a cell.

Eve's SNR is infinite where she has frames without noise: stored, or recorded at the transmitter. JSON has no such number: in
files and names it is NO_NOISE.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semseal.runtime.attacks.whitebox import FAST, WhiteBoxSettings
from semseal.runtime.ofdm import Radio

Advance = Callable[[float], None]  # told of the seconds, on two cores, that a step was expected to take

NO_NOISE = "none"  # the SNR of a frame as it was sent, in options, in results.json and in names of files


def snr_name(snr: float) -> str:
    """An SNR in dB for a name: 10, or none."""
    return NO_NOISE if math.isinf(snr) else f"{snr:g}"


def eve_at(snr: float) -> str:
    """Eve at one of her SNRs in words: Eve 10 dB, or Eve without noise."""
    return "Eve without noise" if math.isinf(snr) else f"Eve {snr:g} dB"


def listed_snrs(snrs: Sequence[float]) -> str:
    """Several in words: 0, 10 dB and without noise."""
    noisy = ", ".join(f"{snr:g}" for snr in snrs if not math.isinf(snr))
    return " and ".join([f"{noisy} dB"] * bool(noisy) + ["without noise"] * (math.inf in snrs))


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
    probe_pictures: int = 800  # of the attacker's, to learn attributes from
    probe_epochs: int = 30  # of the network that names attributes
    timed_calls: int = 100_000  # of send, and as many of receive
    eve_snrs: tuple[float, ...] = (0.0, 10.0, 20.0)  # infinite: frames without noise
    main_snrs: tuple[float, ...] = ()  # of Bob, with a model for a range of them; none: the middle of the range
    precisions: tuple[str, ...] = ("fp32",)
    engines: tuple[str, ...] = ()  # none: that which each bundle is deployed with
    channels: tuple[str, ...] = ()  # from Alice to Bob, one after the other; none: that which each link was trained for
    eve_channel: str | None = None  # from Alice to Eve; None: as Bob's
    eve_antennas: int = 1  # of Eve's, which she combines
    radio: Radio = Radio()  # noqa: RUF009  frozen; of the channels that go through OFDM, Bob's and Eve's
    seed: int = 0

    def effort(self) -> dict[str, object]:
        """What the content of a cell depends on, besides its place; the rest only says which cells are measured."""
        chosen = ("eve_snrs", "main_snrs", "defenses", "attacks", "precisions", "engines", "channels", "eve_channel")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in chosen}


@dataclass(frozen=True)
class Question:
    """Something about every picture that the data knows: the class of those that are sent, and of the attacker's."""

    name: str
    of_sent: tuple[str, ...]  # "" where it is not known
    of_attackers: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One measurement. What is Eve's is None for Bob and for the mean picture, in which she takes no part."""

    attack: str  # a name of the table of attacks, or bob, or mean-picture
    defense: str
    main_snr: float
    eve_snr: float | None
    precision: str = "fp32"
    engine: str = "onnxruntime-cpu"
    bundle: str = ""  # its name in this audit
    main_channel: str = "awgn"
    eve_channel: str | None = "awgn"
    eve_antennas: int | None = 1

    def __post_init__(self) -> None:
        if self.eve_snr is None:
            object.__setattr__(self, "eve_channel", None)
            object.__setattr__(self, "eve_antennas", None)


def snr_of(cell: Cell) -> float:
    """Eve's; of Bob and the mean picture there is none."""
    assert cell.eve_snr is not None
    return cell.eve_snr


@dataclass(frozen=True)
class Place:
    """Where cells are measured: a bundle at one SNR of Bob's, the engine and the precision that run it, and both channels."""

    bundle: str
    main_snr: float
    engine: str
    precision: str
    main_channel: str
    eve_channel: str
    eve_antennas: int = 1

    def cell(self, attack: str, defense: str, eve_snr: float | None) -> Cell:
        return Cell(attack, defense, eve_snr=eve_snr, **dataclasses.asdict(self))

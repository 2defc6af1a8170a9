"""results of an audit -> where each defence stands, in words: what falls, what holds, and what was not found out.

A defence falls when any attack sees something. It is undecided when any is open, and holds when all saw nothing; with gaps when
some are void or were not measured. Nothing that is void, open or not measured ever counts for it.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

from semseal.runtime.audit.matrix import ATTACKS, DEFENSES, PICTURES, applies

NAMES = {
    "none": "no defence",
    "permute": "permutation",
    "substitute": "substitution",
    "permute+substitute": "permutation + substitution",
    "mix": "mix",
}
MISUSE = ("reused V", "reused stream")  # one key for several packets: no defence can stand that, and semseal never sends it
FEW_PICTURES = 100

Row = dict[str, Any]
Results = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """Where one defence stands after everything that was measured against it, misuse left out."""

    defense: str
    word: str  # falls, holds, holds with gaps, undecided, void, not measured
    seen: int
    nothing: int
    undecided: int
    void: tuple[str, ...]  # attacks
    missing: tuple[str, ...]  # not measured at every SNR and precision of the audit
    worst: Row | None  # the row whose answers are nearest to the right pictures
    named: Row | None  # the game of naming the picture, its highest upper bound
    misuse: Row | None

    @property
    def found(self) -> str:
        """The counts behind the word: of figures that count, then of attacks that do not."""
        parts = [(self.seen, "saw something"), (self.nothing, "saw nothing"), (self.undecided, "open")]
        parts += [(len(self.void), "void"), (len(self.missing), "not measured")]
        return ", ".join(f"{count} {what}" for count, what in parts if count)


def standings(results: Results) -> list[Standing]:
    """One for each defence that the audit was asked about."""
    return [_standing(results, defense) for defense in DEFENSES if defense in results["settings"]["defenses"]]


def _standing(results: Results, defense: str) -> Standing:
    rows = [row for row in results["rows"] if row["defense"] == defense and row["attack"] in PICTURES]
    misused = [row for row in rows if row["attack"] in MISUSE and row["verdict"] == "sees"]
    rows = [row for row in rows if row["attack"] not in MISUSE]
    games = [row for row in results["games"] if row["defense"] == defense]
    measured = rows + games
    verdicts = [row["verdict"] for row in measured]
    void = tuple(dict.fromkeys(row["attack"] for row in measured if row["verdict"] == "void"))
    settings = results["settings"]
    there = {(row["attack"], row["main_snr"], row["eve_snr"], row["precision"]) for row in measured}
    mains = [bundle["main_snr"] for bundle in results["bundles"]]
    places = list(product(mains, settings["eve_snrs"], settings["precisions"]))
    missing = tuple(
        name
        for name in ATTACKS
        if name not in MISUSE and applies(name, defense) and any((name, *place) not in there for place in places)
    )
    counted = [row for row in rows if row["verdict"] != "void"]
    named = [row for row in games if row["attack"] == "which" and row["name"] == "top-1"]
    return Standing(
        defense=defense,
        word=_word(verdicts, bool(missing)),
        seen=verdicts.count("sees"),
        nothing=verdicts.count("nothing"),
        undecided=verdicts.count("open"),
        void=void,
        missing=missing,
        worst=max(counted, key=lambda row: (row["verdict"] == "sees", row["nearer_db"]), default=None),
        named=max(named, key=lambda row: (not row["control_won"], row["high"]), default=None),
        misuse=max(misused, key=lambda row: row["nearer_db"], default=None),
    )


def _word(verdicts: list[str], missing: bool) -> str:
    if not verdicts:
        return "not measured"
    if "sees" in verdicts:
        return "falls"
    if "open" in verdicts:
        return "undecided"
    if "nothing" not in verdicts:
        return "void"
    return "holds with gaps" if missing or "void" in verdicts else "holds"


def headline(results: Results) -> list[str]:
    """The verdict for a reader in a hurry: what falls and to what, what holds and how far, then what was not measured."""
    found = {standing.defense: standing for standing in standings(results)}
    sentences = []
    fallen: dict[str | None, list[Standing]] = {}
    for standing in found.values():
        if standing.word == "falls" and standing.defense != "none":
            shown = standing.worst is not None and standing.worst["verdict"] == "sees"
            fallen.setdefault(standing.worst["attack"] if standing.worst and shown else None, []).append(standing)
    for attack, group in fallen.items():
        text = f"{_listed([NAMES[standing.defense] for standing in group]).capitalize()} fall{'s' if len(group) == 1 else ''}"
        if attack is None:
            sentences.append(f"{text}: Eve gets no picture, but wins games without the key.")
            continue
        worst = max((standing.worst for standing in group if standing.worst), key=lambda row: row["nearer_db"])
        sentences.append(
            f'{text} to an Eve without the key: by "{attack}" she gets {worst["psnr"]:.1f} dB, {beside_bob(worst)}, '
            f"{worst['nearer_db']:.1f} dB nearer to the right picture than to others."
        )
    for standing in found.values():
        name = NAMES[standing.defense].capitalize()
        if standing.word.startswith("holds"):
            text = f"{name} {standing.word.replace(' with gaps', ', with gaps,')} against what was measured here: "
            text += f"all {standing.nothing} measurements saw next to nothing"
            if standing.named and standing.named["control_won"]:
                text += f"; Eve names the picture at most {at_most(standing.named['high'])} % of the time"
            sentences.append(text + ". That is no proof.")
        elif standing.word == "undecided":
            total = standing.nothing + standing.undecided
            sentences.append(
                f"{name} is undecided: {standing.nothing} of {total} measurements saw next to nothing, the others take more "
                "pictures and trials to tell."
            )
        elif standing.word in ("void", "not measured"):
            sentences.append(f"{name} is {standing.word}: nothing here says whether it holds.")
    bare = found.get("none")
    if bare and bare.worst and bare.word == "falls":
        worst = bare.worst
        sentences.append(f"Without a defence Eve gets {worst['psnr']:.1f} dB ({worst['attack']}), {beside_bob(worst)}.")
    return sentences


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def beside_bob(row: Row) -> str:
    """How far a row is from Bob, over the same pictures."""
    below = row["below_bob_db"]
    if abs(below) < 0.05:
        return "as much as Bob"
    return f"{abs(below):.1f} dB {'less' if below > 0 else 'more'} than Bob"


def limits(results: Results) -> list[str]:
    """What the verdict does not cover."""
    settings, found = results["settings"], standings(results)
    said = []
    if settings["pictures"] < FEW_PICTURES:
        few = settings["optimised_pictures"]
        said.append(f"{settings['pictures']} pictures, {few} for white-box and row matching: the intervals are wide.")
    if any(row["attack"] in PICTURES for row in results["rows"]):
        # where none of n pictures leaks, at most 3 / n of all do, with 95 % confidence
        rare = " or ".join(str(count // 3) for count in dict.fromkeys((settings["pictures"], settings["optimised_pictures"])))
        said.append(f"Means over pictures: a leak of fewer than one in {rare} may have been missed.")
    void = sorted({name for standing in found for name in standing.void})
    if void:
        said.append(
            f"Void, in whole or in part: {_listed(void)}. Each failed, or was not tried, where it must win, so its low figures "
            "show nothing."
        )
    missing = sorted({name for standing in found for name in standing.missing})
    if missing:
        everywhere = len(results["bundles"]) * len(settings["eve_snrs"]) * len(settings["precisions"]) == 1
        said.append(f"Not measured{'' if everywhere else ', or not everywhere'}: {_listed(missing)}.")
    gains = {standing.defense: standing.misuse["nearer_db"] for standing in found if standing.misuse}
    if gains:
        told = ", ".join(f"{NAMES[name]} {gain:.1f} dB" for name, gain in gains.items())
        said.append(
            f"Not judged: one key for several packets, which semseal never does. It makes Eve's answers nearer: {told}."
        )
    return said


def at_most(rate: float) -> str:
    """An upper bound in per cent with two digits, rounded up so that it stays one."""
    digits = 1 if rate < 0.099 else 0
    return f"{math.ceil(round(100 * rate * 10**digits, 6)) / 10**digits:.{digits}f}"


def percent(rate: float) -> str:
    return f"{100 * rate:.1f}" if rate < 0.0995 else f"{100 * rate:.0f}"

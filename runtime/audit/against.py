"""Leakage against cost: for each defence what Eve gets at most, and what it takes, at one place.

Results ── the worst attack, how often she names the picture ──┐
Bob's Reconstructions, paired with those without a defence ────┼─ a Balance for each defence ── one table, one figure
Costs ── channel uses, milliseconds ───────────────────────────┘
"""

from collections.abc import Sequence
from dataclasses import dataclass

from semseal.runtime import metrics
from semseal.runtime.audit.attacks import BY_NAME as ATTACKS
from semseal.runtime.audit.cost import Cost
from semseal.runtime.audit.figures import CostPoint, against_cost
from semseal.runtime.audit.results import GameRow, PictureRow, Results, place_key, place_of
from semseal.runtime.audit.settings import Place
from semseal.runtime.audit.verdict import Pictures, names_the_picture, paired, word_at
from semseal.runtime.defense.defenses import DEFENSES, Defense

HEAD = ("defence", "verdict", "worst attack", "matching advantage, dB", "picture named", "Bob, dB", "costs Bob, dB",
        "channel uses", "ms a picture", "more than none")  # fmt: skip


@dataclass(frozen=True)
class Balance:
    """One defence: ``worst`` and ``named`` are Eve's best, of all her SNRs; ``lost`` is what Bob's pictures lose, in dB."""

    defense: Defense
    word: str
    worst: PictureRow | None
    named: GameRow | None
    bob: PictureRow
    lost: metrics.Mean
    cost: Cost | None

    @property
    def cells(self) -> tuple[str, ...]:
        """As HEAD."""
        worst, named, cost = self.worst, self.named, self.cost
        return (
            self.defense.title,
            self.word,
            worst.attack if worst else "-",
            _mean(worst.matching_advantage_db or 0.0, worst.matching_advantage_95) if worst else "-",
            f"{100 * named.value:.1f} % [{100 * named.low:.1f}, {100 * named.high:.1f}]" if named else "-",
            f"{self.bob.psnr:.2f}",
            "0" if self.defense.name == "none" else _mean(self.lost.value, self.lost.half_width),
            f"{cost.channel_uses}" if cost else "-",
            f"{cost.ms:.1f} [{cost.ms_low:.1f}, {cost.ms_high:.1f}]" if cost else "-",
            f"{cost.more_ms:+z.1f}" if cost and self.defense.name != "none" else "-",
        )


@dataclass(frozen=True)
class Compared:
    """The defences at one place, against each other."""

    place: Place
    balances: Sequence[Balance]

    @property
    def drawings(self) -> list[tuple[str, str]]:
        """A title and an SVG for either kind of leakage, where anything of it was measured."""
        pictures, names = [], []
        for balance in self.balances:
            short, lost = balance.defense.short, balance.lost.value
            if balance.worst:
                value, half = balance.worst.matching_advantage_db or 0.0, balance.worst.matching_advantage_95 or 0.0
                pictures.append(CostPoint(short, lost, value, value - half, value + half))
            if balance.named:
                named = balance.named
                names.append(CostPoint(short, lost, 100 * named.value, 100 * named.low, 100 * named.high))
        panels = [("matching advantage of the worst attack, dB", pictures), ("pictures named by Eve, %", names)]
        return [(title, against_cost(points, title)) for title, points in panels if points]


def balances(results: Results, pictures: Pictures, costs: Sequence[Cost], place: Place) -> list[Balance]:
    """Of every defence that the audit was asked about, at a place."""
    key = place_key(place)
    bare = pictures.get(place.cell("bob", "none", None))
    asked = [defense for defense in DEFENSES if defense.name in results.settings.defenses]
    found = []
    for defense in asked:
        bob = pictures.get(place.cell("bob", defense.name, None))
        if bob is None or bare is None:
            continue
        rows = [row for row in results.rows if (row.defense, place_of(row)) == (defense.name, key)]
        counted = [row for row in rows if row.verdict not in (None, "void") and ATTACKS[row.attack].is_judged]
        games = [game for game in results.games if (game.defense, place_of(game)) == (defense.name, key)]
        named = [game for game in games if names_the_picture(game) and game.verdict != "void"]
        found.append(
            Balance(
                defense,
                word_at(results, defense.name, place),
                max(counted, key=lambda row: (row.verdict == "sees", row.matching_advantage_db or 0.0), default=None),
                max(named, key=lambda game: game.high, default=None),
                next(row for row in rows if row.attack == "bob"),
                paired(bare, bob),
                next((cost for cost in costs if (cost.place, cost.defense) == (key, defense.name)), None),
            )
        )
    return found


def _mean(value: float, half: float | None) -> str:
    return f"{value:+z.2f}" + ("" if half is None else f" ± {half:.2f}")

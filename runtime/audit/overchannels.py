"""Results of an audit of several channels -> its figures over SNR and channel, and the table of what was on air.

rows, games ── Bob's PSNR, Eve's best attack, how often she names the picture ── a panel each, a line for each channel
on_air ─────── peaks and effective SNR ── a table, and the share of OFDM symbols above each level
"""

from collections.abc import Iterator
from dataclasses import dataclass

from semseal.runtime.audit.attacks import BY_NAME as ATTACKS
from semseal.runtime.audit.figures import Point, over_channels, peaks
from semseal.runtime.audit.results import CHANNEL_TITLES, AirRow, PictureRow, Results
from semseal.runtime.audit.settings import listed_snrs
from semseal.runtime.audit.tables import defenses
from semseal.runtime.audit.verdict import names_the_picture
from semseal.runtime.defense.defenses import BY_NAME

AIR_HEAD = ("defence", "channel", "symbols, peak / mean", "OFDM, peak / mean", "SNR behind the equaliser", "worst in twenty")


@dataclass(frozen=True)
class ChannelPanel:
    """A figure as SVG."""

    title: str
    drawing: str


def channel_panels(results: Results) -> list[tuple[str, list[list[ChannelPanel]]]]:
    """For each bundle by its name, on its first engine and precision, the panels of each defence.

    Nothing where all was measured over one channel.
    """
    found = []
    for name in dict.fromkeys(bundle.name for bundle in results.bundles):
        bundles = [bundle for bundle in results.bundles if bundle.name == name]
        if len({bundle.main_channel for bundle in bundles}) > 1:
            found.append((name, [list(_panels(results, name, defense)) for defense in defenses(results)]))
    return found


def _panels(results: Results, name: str, defense: str) -> Iterator[ChannelPanel]:
    first = next(place for place in results.every_place if place.bundle == name)
    here = (name, first.engine, first.precision, defense)
    rows = [row for row in results.rows if (row.bundle, row.engine, row.precision, row.defense) == here]
    games = [game for game in results.games if (game.bundle, game.engine, game.precision, game.defense) == here]
    title = BY_NAME[defense].title
    bob = [_point(row, row.main_snr, row.psnr, row.psnr_95) for row in rows if row.attack == "bob"]
    if bob:
        yield ChannelPanel(f"{title}: Bob{one_snr(bob)}", over_channels(bob, "PSNR, dB", "Bob's"))
    at_first = [row for row in rows if row.main_snr == first.main_snr]
    if best := list(best_attacks(at_first)):
        points = [_point(row, row.eve_snr, row.matching_advantage_db or 0.0, row.matching_advantage_95) for row in best]
        yield ChannelPanel(
            f"{title}: Eve's best attack{one_snr(points)}", over_channels(points, "matching advantage, dB", "Eve's")
        )
    named = [game for game in games if names_the_picture(game) and game.main_snr == first.main_snr]
    named = [game for game in named if game.verdict != "void" and game.eve_snr is not None]
    if named:
        points = [Point(CHANNEL_TITLES[game.main_channel], game.eve_snr, game.value, game.low, game.high) for game in named]
        drawing = over_channels(points, "pictures named by Eve", "Eve's", named[0].chance / 4)
        yield ChannelPanel(f"{title}: how often Eve names the picture{one_snr(points)}", drawing)


def one_snr(points: list[Point]) -> str:
    """The SNR of them all, where it is one and so no axis."""
    snrs = {point.snr or 0.0 for point in points}
    return f", {listed_snrs([*snrs])}" if len(snrs) == 1 else ""


def best_attacks(rows: list[PictureRow]) -> Iterator[PictureRow]:
    """Of each channel and SNR of Eve's, the attack with the largest matching advantage; no misuse."""
    counted = [row for row in rows if row.verdict not in (None, "void") and ATTACKS[row.attack].is_judged]
    for channel, snr in dict.fromkeys((row.main_channel, row.eve_snr) for row in counted):
        among = [row for row in counted if (row.main_channel, row.eve_snr) == (channel, snr)]
        yield max(among, key=lambda row: row.matching_advantage_db or 0.0)


def _point(row: PictureRow, snr: float | None, value: float, half: float | None) -> Point:
    return Point(CHANNEL_TITLES[row.main_channel], snr, value, value - (half or 0.0), value + (half or 0.0))


def air_lines(results: Results) -> list[tuple[str, list[tuple[str, ...]]]]:
    """For each bundle by its name and each SNR of Bob's, on its first engine and precision, a line for each ``AIR_HEAD``."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for row in _first(results):
        cells = (
            BY_NAME[row.defense].title,
            CHANNEL_TITLES[row.main_channel],
            f"{row.symbols_db:.1f} dB",
            f"{row.waveform_db:.1f} dB",
            f"{row.effective_snr_db:.1f} dB",
            f"{row.worst_snr_db:.1f} dB",
        )
        found.setdefault(f"{row.bundle}, main {row.main_snr:g} dB", []).append(cells)
    return list(found.items())


def peak_panels(results: Results) -> list[ChannelPanel]:
    """For each bundle by its name, at its first place."""
    panels = []
    for name in dict.fromkeys(row.bundle for row in _first(results)):
        first = next(row for row in _first(results) if row.bundle == name)
        place = (name, first.main_snr, first.main_channel)
        rows = [row for row in _first(results) if (row.bundle, row.main_snr, row.main_channel) == place]
        panels.append(ChannelPanel(name, peaks({BY_NAME[row.defense].short: row for row in rows})))
    return panels


def _first(results: Results) -> list[AirRow]:
    firsts = {(place.bundle, place.engine, place.precision) for place in results.firsts}
    return [row for row in results.on_air if (row.bundle, row.engine, row.precision) in firsts]

"""What was measured -> what it says: of each figure, of two cells, of a defence.

    Reconstructions ── picture_rows ──┐
    GameResult ─────── game_rows ─────┼─ Results ── verdicts ── a Verdict for each defence
    two Reconstructions ─ orderings ──┘

A figure is a cell's mean matching advantage, or what one game gave. It "sees" when it is above chance and chance does not
explain it: of the audits of a defence that leaks nothing, at most one in a hundred has such a figure, however many figures they
have. To beat the mean picture is not required: an Eve whose guesses are poor may still know which picture was sent. A figure
says "nothing" when its whole interval is next to nothing, chance explains what there is, and no single picture stands out from
the others; it is "open" in between: a few pictures or trials cannot show that nothing leaks. Where the positive control of the
attack did not win clearly, and the attack did not see, the figure is "void".

A defence falls when any figure sees. It is undecided when any is open, and holds when all say nothing; with gaps when some are
void or were not measured. What is void, open or not measured never counts in its favour.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import metrics
from semseal.runtime.audit import on_air, paper
from semseal.runtime.audit.attacks import ATTACKS, BY_NAME
from semseal.runtime.audit.results import (
    AirRow,
    GameResult,
    GameRow,
    Ordering,
    PictureRow,
    Reconstructions,
    Results,
    place_key,
    place_of,
)
from semseal.runtime.audit.settings import Cell, Place
from semseal.runtime.defense.defenses import BY_NAME as DEFENSE_BY_NAME
from semseal.runtime.defense.defenses import DEFENSES

MAX_FALSE_ALARMS = 0.01  # of all audits of a defence that leaks nothing; shared by their figures (Bonferroni)
MAX_SUSPICIONS = 0.05  # the same, of figures that are too high for "nothing", if too low to see
MIN_PICTURES_FOR_NOTHING = 12  # or pairs: the interval of fewer is not trusted to say "nothing"
MIN_CONTROL_DB = 1.0  # above the mean picture, paired, by the lower end of the interval
MIN_CONTROL_VALUE = 0.9  # of a game, rate or area
MAX_NOTHING_DB = 0.5  # of matching advantage, or disadvantage
MAX_NOTHING_PICTURE_DB = 1.0  # of one picture, where it is further from the others than chance explains
MAX_NOTHING_AREA = 0.6  # and at least 0.4: an Eve who is always wrong knows as much
MAX_NOTHING_RATE = 0.02
MAX_NOTHING_CLASSES = 0.1  # of a balanced accuracy, above chance
MIN_CONTROL_CLASSES = 0.1  # of what there is between chance and always right, by the lower end of the interval
MAX_T = 4.5  # above it a test on times has found a leak, by dudect's authors; one above SURE_T they call definite
SURE_T = 10.0
MIN_CALLS_FOR_NOTHING = 100_000
MAX_NOTHING_TIMES_CHANCE = 3  # or MAX_NOTHING_RATE, where it is higher
MAX_NOTHING_ABOVE_CHANCE = 0.15  # of a rate, whatever it is: of few pictures, three times chance is much

Pictures = Mapping[Cell, Reconstructions]
Games = Mapping[Cell, tuple[GameResult, ...]]


@dataclass(frozen=True)
class Verdict:
    """Where one defence stands after all that an eavesdropper did against it, misuse and what stands apart left out."""

    defense: str
    word: str  # falls, holds, holds with gaps, undecided, void or not measured
    sees: int  # figures
    nothing: int
    open: int
    void: tuple[str, ...]  # attacks
    missing: tuple[str, ...]  # attacks that were not measured at every SNR and precision of the audit
    worst: PictureRow | None  # the row of the largest matching advantage, of those that see if any does
    named: GameRow | None  # the game of naming the picture with the highest upper bound
    misuse: PictureRow | None  # the row of the largest matching advantage under a key for several packets


def paired(better: Reconstructions, worse: Reconstructions) -> metrics.Mean:
    """PSNR difference in dB over the same pictures, with its 95 % interval."""
    n = min(len(better.psnr), len(worse.psnr))
    return metrics.mean(better.psnr[:n] - worse.psnr[:n])


def count_figures(pictures: Pictures, games: Games) -> int:
    """How many figures of an audit are judged."""
    return sum(cell.attack in BY_NAME for cell in pictures) + sum(map(len, games.values()))


# rows


def picture_rows(cells: Pictures, among: int) -> tuple[PictureRow, ...]:
    """A row of results.json for every cell that ends in pictures, in an audit of ``among`` figures."""
    return tuple(_picture_row(cell, cells, among) for cell in cells)


def _picture_row(cell: Cell, cells: Pictures, among: int) -> PictureRow:
    found = cells[cell]
    psnr, ssim = metrics.mean(found.psnr), metrics.mean(found.ssim)
    published = _published(cell)
    row = PictureRow(
        **dataclasses.asdict(cell),
        pictures=psnr.n,
        psnr=psnr.value,
        psnr_95=psnr.half_width,
        ssim=ssim.value,
        ssim_95=ssim.half_width,
        paper_psnr=published[0] if published else None,
        paper_ssim=published[1] if published else None,
        paper_missing=None if published else "the paper gives no figure for this row",
    )
    if cell.attack not in BY_NAME:  # Bob, and the mean picture
        return row
    advantage = metrics.mean(found.advantage)
    above, below = paired(found, cells[_mean_picture(cell)]), paired(cells[_bob(cell)], found)
    if found.named is not None:
        named = metrics.proportion(int(found.named.sum()), len(found.named))
        row = dataclasses.replace(
            row, named=named.value, named_low=named.low, named_high=named.high, named_chance=1 / len(found.named)
        )
    return dataclasses.replace(
        row,
        matching_advantage_db=advantage.value,
        matching_advantage_95=advantage.half_width,
        above_mean_picture_db=above.value,
        above_mean_picture_95=above.half_width,
        below_bob_db=below.value,
        below_bob_95=below.half_width,
        control=BY_NAME[cell.attack].control,
        verdict=with_control(judge_pictures(found, among), _picture_control_won(cell, cells)),
    )


def air_rows(cells: Pictures) -> tuple[AirRow, ...]:
    """A row for every cell of Bob's."""
    rows = []
    for cell, found in cells.items():
        if found.on_air is not None:
            place = {
                name: getattr(cell, name) for name in ("defense", "main_snr", "precision", "engine", "bundle", "main_channel")
            }
            rows.append(AirRow(**place, **on_air.summary(found.on_air)))
    return tuple(rows)


def _published(cell: Cell) -> tuple[float, float] | None:
    """PSNR and SSIM of the paper, which is about AWGN."""
    if cell.main_channel != "awgn" or cell.eve_channel not in (None, "awgn") or cell.eve_antennas not in (None, 1):
        return None
    if cell.attack == "bob" and cell.defense == "none":
        return paper.BOB.get(cell.main_snr)
    if cell.attack in BY_NAME and BY_NAME[cell.attack].published:
        assert cell.eve_snr is not None
        return paper.eve(cell.attack, cell.defense, cell.eve_snr, cell.main_snr)
    return None


def game_rows(cells: Games, among: int) -> tuple[GameRow, ...]:
    """A row for every rate or area that a game gave, in an audit of ``among`` figures."""
    rows = []
    for cell, games in cells.items():
        control = BY_NAME[cell.attack].control
        for game in games:
            won = _game_control_won(game, cell, cells)
            verdict = with_control(_judge_game(game, among), won)
            found = {**dataclasses.asdict(cell), **dataclasses.asdict(game)}
            rows.append(GameRow(**found, control=control, control_won=won, verdict=verdict))
    return tuple(rows)


def _mean_picture(cell: Cell) -> Cell:
    return dataclasses.replace(cell, attack="mean-picture", defense="none", eve_snr=None)


def _bob(cell: Cell) -> Cell:
    return dataclasses.replace(cell, attack="bob", eve_snr=None)


def _control(cell: Cell) -> Cell:
    return dataclasses.replace(cell, defense=BY_NAME[cell.attack].control)


def _picture_control_won(cell: Cell, cells: Pictures) -> bool:
    """Whether the attack of ``cell`` was measured and won where it must."""
    control = cells.get(_control(cell))
    return control is not None and control_won(control, cells[_mean_picture(cell)])


def control_won(control: Reconstructions, mean_picture: Reconstructions) -> bool:
    """Whether what an attack gave where it must win is clearly above the mean picture."""
    gain = paired(control, mean_picture)
    return gain.half_width is not None and gain.value - gain.half_width > MIN_CONTROL_DB


def _game_control_won(game: GameResult, cell: Cell, cells: Games) -> bool:
    """The same for a game: right nearly every time where it must be; of classes, which are hard to tell, far above chance."""
    control = cells.get(_control(cell), ())
    same = [other for other in control if other.name == game.name]
    if game.measure == "balanced":
        return any(other.low > other.chance + MIN_CONTROL_CLASSES * (1 - other.chance) for other in same)
    if game.measure == "dB":
        return any(other.low > MIN_CONTROL_DB for other in same)
    if game.measure == "t":
        return any(other.value > SURE_T for other in control)
    return bool(control) and all(other.value >= MIN_CONTROL_VALUE for other in control)


def judge_pictures(found: Reconstructions, among: int) -> str:
    """The verdict on the matching advantage of an attack, one of ``among`` figures, before its control counts."""
    scores = found.advantage.round(6)  # an Eve who gives one answer to everything has rounding errors only
    advantage = metrics.mean(scores)
    bounded = (
        advantage.n >= MIN_PICTURES_FOR_NOTHING
        and advantage.half_width is not None
        and abs(advantage.value) + advantage.half_width < MAX_NOTHING_DB
        and not _one_stands_out(scores, among)
    )
    return _judge(metrics.p_value_of_mean(scores), bounded, among)


def _one_stands_out(scores: NDArray[np.float64], among: int) -> bool:
    """Whether Eve may have got one picture of many, which the mean does not show."""
    return scores.max() > MAX_NOTHING_PICTURE_DB and metrics.p_value_of_largest(scores) < MAX_SUSPICIONS / among


def _judge_game(game: GameResult, among: int) -> str:
    if game.measure == "t":  # dudect's own threshold; fewer calls show little
        return "sees" if game.value > MAX_T else "nothing" if game.trials >= MIN_CALLS_FOR_NOTHING else "open"
    if game.measure in ("balanced", "dB"):
        assert game.p_value is not None
        if game.measure == "balanced":
            bounded = game.high < game.chance + MAX_NOTHING_CLASSES
        else:  # of a change that was chosen: one that arrives as its contrary was not chosen
            bounded = game.high < MAX_NOTHING_DB and game.trials >= MIN_PICTURES_FOR_NOTHING
        return _judge(game.p_value, bounded, among)
    if game.measure == "rate":
        p_value = metrics.p_value_of_rate(round(game.value * game.trials), game.trials, game.chance)
        most = max(MAX_NOTHING_TIMES_CHANCE * game.chance, MAX_NOTHING_RATE)
        bounded = game.high < min(most, game.chance + MAX_NOTHING_ABOVE_CHANCE)
    else:
        p_value = metrics.p_value_of_auc(game.value, game.trials // 2, game.trials - game.trials // 2)
        bounded = game.low > 1 - MAX_NOTHING_AREA and game.high < MAX_NOTHING_AREA
    return _judge(p_value, bounded, among)


def _judge(p_value: float, bounded: bool, among: int) -> str:
    """The verdict on one of ``among`` figures; ``bounded`` says that its whole interval is next to nothing."""
    if p_value < MAX_FALSE_ALARMS / among:
        return "sees"
    return "nothing" if bounded and p_value >= MAX_SUSPICIONS / among else "open"


def with_control(verdict: str, control_won: bool) -> str:
    """A failed control voids an attack that saw nothing; what an attack did see, it saw."""
    return verdict if control_won or verdict == "sees" else "void"


def names_the_picture(game: GameRow) -> bool:
    """Whether this is the game of naming the picture among those that may have been sent."""
    return (game.attack, game.name) == ("identification", "top-1")


# orderings


def orderings(cells: Pictures) -> tuple[Ordering, ...]:
    """Where the paper's orderings hold, and whether Eve does better with a better channel and with more knowledge.

    Each is a mean paired PSNR difference in dB over the same pictures with its 95 % interval; ``verdict`` is "holds" when the
    whole interval is above 0, "fails" when it is below, "open" when it contains 0.
    """
    snrs = sorted({cell.eve_snr for cell in cells if cell.eve_snr is not None})
    return tuple(
        _ordering(claim, better, worse, paired(cells[better], cells[worse]))
        for cell in cells
        if cell.eve_snr is not None
        for claim, better, worse in _claims(cell, cell.eve_snr, snrs)
        if better in cells and worse in cells
    )


def _ordering(claim: str, better: Cell, worse: Cell, difference: metrics.Mean) -> Ordering:
    half = difference.half_width
    verdict = "open" if half is None or abs(difference.value) <= half else "holds" if difference.value > 0 else "fails"
    return Ordering(claim, better, worse, difference.value, half, difference.n, verdict)


def _claims(cell: Cell, snr: float, snrs: list[float]) -> Iterator[tuple[str, Cell, Cell]]:
    """Every claim in which ``cell`` stands for itself: its words, the better cell, the worse one."""
    other = dataclasses.replace
    for lower in [lower for lower in snrs if lower < snr][-1:]:
        yield "Eve does better at a higher SNR", cell, other(cell, eve_snr=lower)
    if BY_NAME[cell.attack].published:
        yield from _claims_of_the_paper(cell)
    defense = DEFENSE_BY_NAME[cell.defense]
    if cell.attack == "row-ordering" and (defense.permutes or defense.substitutes):
        for knows_more in ("brute-force", "reused-scheme", "four-packets"):
            yield f"{knows_more} above row-ordering", other(cell, attack=knows_more), cell


def _claims_of_the_paper(cell: Cell) -> Iterator[tuple[str, Cell, Cell]]:
    other = dataclasses.replace
    if cell.attack == "black-box":
        yield "black-box above white-box", cell, other(cell, attack="white-box")
    if cell.defense == "none":
        yield "substitution below no defence", cell, other(cell, defense="substitute")
    if cell.defense == "substitute":
        yield "permutation below substitution", cell, other(cell, defense="permute")
    if cell.defense == "permute":
        yield "permutation + substitution below permutation", cell, other(cell, defense="permute+substitute")
    if cell.defense in ("permute+substitute", "mix"):
        yield "mean picture above Eve under a defence", _mean_picture(cell), cell


# defences


def verdicts(results: Results) -> tuple[Verdict, ...]:
    """One for each defence that the audit was asked about."""
    asked = results.settings.defenses
    return tuple(_verdict(results, defense.name) for defense in DEFENSES if defense.name in asked)


def _verdict(results: Results, defense: str) -> Verdict:
    rows = [row for row in results.rows if row.defense == defense and row.verdict is not None]
    games = [game for game in results.games if game.defense == defense]
    counted = [row for row in results.judged if row.defense == defense and BY_NAME[row.attack].is_judged]
    words = [row.verdict for row in counted]
    missing = _missing(results, defense, results.every_place)
    return Verdict(
        defense=defense,
        word=word_of(words, bool(missing)),
        sees=words.count("sees"),
        nothing=words.count("nothing"),
        open=words.count("open"),
        void=tuple(dict.fromkeys(row.attack for row in counted if row.verdict == "void")),
        missing=missing,
        worst=max(
            (row for row in rows if row.verdict != "void" and BY_NAME[row.attack].is_judged),
            key=lambda row: (row.verdict == "sees", row.matching_advantage_db or 0.0),
            default=None,
        ),
        named=max(
            (game for game in games if names_the_picture(game)),
            key=lambda game: (not game.control_won, game.high),
            default=None,
        ),
        misuse=max(
            (row for row in rows if BY_NAME[row.attack].misuse and row.verdict == "sees"),
            key=lambda row: row.matching_advantage_db or 0.0,
            default=None,
        ),
    )


def word_at(results: Results, defense: str, place: Place) -> str:
    """What is said of a defence by what was measured at one place alone."""
    here = [row for row in results.judged if (row.defense, place_of(row)) == (defense, place_key(place))]
    words = [row.verdict for row in here if BY_NAME[row.attack].is_judged]
    return word_of(words, bool(_missing(results, defense, (place,))))


def _missing(results: Results, defense: str, places: Sequence[Place]) -> tuple[str, ...]:
    """The attacks by which a defence is judged that were not measured against it at all of these places and SNRs."""
    settings = results.settings
    judged = [row for row in results.judged if row.defense == defense]
    there = {(row.attack, row.eve_snr, *place_of(row)) for row in judged}
    return tuple(
        attack.name
        for attack in ATTACKS
        if attack.is_judged
        and attack.name not in results.skipped  # where the data has no question for it
        and attack.applies(DEFENSE_BY_NAME[defense])
        and any(
            there.isdisjoint((attack.name, snr, *place_key(place)) for snr in alike)
            for place in places
            for alike in ([settings.eve_snrs] if attack.noiseless else [(snr,) for snr in settings.eve_snrs])
        )
    )


def word_of(words: Sequence[str | None], missing: bool) -> str:
    """What the verdicts on single figures say together; ``missing``: some attacks were not measured."""
    if not words:
        return "not measured"
    if "sees" in words:
        return "falls"
    if "open" in words:
        return "undecided"
    if "nothing" not in words:
        return "void"
    return "holds with gaps" if missing or "void" in words else "holds"

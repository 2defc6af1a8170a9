"""From cells to what an audit says: rows with intervals, verdicts under positive controls, the orderings, the worst rate.

A row "sees" when its answers are nearer to the pictures that were sent than to others, or a game is won more often than by
chance, and luck does not explain it: of the audits of a defence that leaks nothing, at most one in a hundred has such a row,
however many rows they have. To beat the mean picture is not asked: an Eve with poor guesses may know more than that. It says
"nothing" when the whole interval is next to nothing and luck explains what there is, and "open" between: a few pictures or
trials cannot show that nothing leaks. Where the positive control of the attack did not win clearly, and the attack did not see,
the verdict is "void".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from semseal.runtime import metrics
from semseal.runtime.audit import paper
from semseal.runtime.audit.cell import Answers, Played
from semseal.runtime.audit.matrix import GAMES, PAPER_ATTACKS, PAPER_MODES, PICTURES, Cell

FALSE_ALARM = 0.01  # of an audit, shared by its figures (Bonferroni)
SUSPICION = 0.05  # the same: too little to see, too much for nothing
FEWEST = 12  # pictures, or pairs: the interval of fewer is not trusted to say "nothing"
CLEAR_WIN_DB = 1.0  # above the mean picture, paired, by the lower end of the interval
CLEAR_WIN_RATE = 0.9
NEXT_TO_NOTHING_DB = 0.5  # nearer to the right picture, or to the others
NEXT_TO_NOTHING_AUC = 0.6  # and 0.4: an Eve who is always wrong knows as much
NEXT_TO_NOTHING_RATE = 0.02  # or three times as often as by chance

Pictures = Mapping[Cell, Answers]
Games = Mapping[Cell, list[Played]]


def paired(better: Answers, worse: Answers) -> metrics.Mean:
    """PSNR difference in dB over the same pictures, with its 95 % interval."""
    n = min(len(better.psnr), len(worse.psnr))
    return metrics.mean(better.psnr[:n] - worse.psnr[:n])


def figures(pictures: Pictures, games: Games) -> int:
    """How many figures of an audit get a verdict."""
    return sum(cell.attack in PICTURES for cell in pictures) + sum(map(len, games.values()))


def picture_rows(cells: Pictures, among: int) -> list[dict[str, Any]]:
    """A row of results.json for every cell that ends in pictures, in an audit of ``among`` figures."""
    return [_row(cell, cells, among) for cell in cells]


def _row(cell: Cell, cells: Pictures, among: int) -> dict[str, Any]:
    found = cells[cell]
    psnr, ssim = metrics.mean(found.psnr), metrics.mean(found.ssim)
    published = None
    if cell.attack in PAPER_ATTACKS:
        assert cell.eve_snr is not None
        published = paper.eve(cell.attack, cell.defense, cell.eve_snr, cell.main_snr)
    elif cell.attack == "bob" and cell.defense == "none":
        published = paper.BOB.get(cell.main_snr)
    row = {
        **dataclasses.asdict(cell),
        "pictures": psnr.n,
        "psnr": psnr.value,
        "psnr_95": psnr.half_width,
        "ssim": ssim.value,
        "ssim_95": ssim.half_width,
        "paper_psnr": published[0] if published else None,
        "paper_ssim": published[1] if published else None,
        "paper_missing": None if published else "the paper gives no figure for this row",
    }
    if cell.attack in PICTURES:
        above, below = paired(found, cells[_floor(cell)]), paired(cells[_bob(cell)], found)
        nearer = metrics.mean(found.nearer)
        row |= {
            "nearer_db": nearer.value,
            "nearer_95": nearer.half_width,
            "above_mean_picture_db": above.value,
            "above_mean_picture_95": above.half_width,
            "below_bob_db": below.value,
            "below_bob_95": below.half_width,
            "control": PICTURES[cell.attack],
            "verdict": _believed(_verdict(found, among), picture_control(cell, cells)),
        }
    return row


def game_rows(cells: Games, among: int) -> list[dict[str, Any]]:
    """A row of results.json for every rate that a game gave, in an audit of ``among`` figures."""
    return [
        {
            **dataclasses.asdict(cell),
            **dataclasses.asdict(game),
            "control": GAMES[cell.attack],
            "control_won": game_control(cell, cells),
            "verdict": _believed(_game_verdict(cell, game, among), game_control(cell, cells)),
        }
        for cell, games in cells.items()
        for game in games
    ]


def _believed(verdict: str, control: bool) -> str:
    """A control that failed makes an attack that saw nothing worthless; what an attack saw, it saw."""
    return verdict if control or verdict == "sees" else "void"


def _floor(cell: Cell) -> Cell:
    return Cell("mean picture", "none", cell.main_snr, None, cell.precision)


def _bob(cell: Cell) -> Cell:
    return Cell("bob", cell.defense, cell.main_snr, None, cell.precision)


def picture_control(cell: Cell, cells: Pictures) -> bool:
    """Whether the attack of ``cell`` won where it must."""
    control = cells.get(dataclasses.replace(cell, defense=PICTURES[cell.attack]))
    if control is None:
        return False
    gain = paired(control, cells[_floor(cell)])
    return gain.half_width is not None and gain.value - gain.half_width > CLEAR_WIN_DB


def game_control(cell: Cell, cells: Games) -> bool:
    """The same for a game: nearly always right where it must be."""
    control = cells.get(dataclasses.replace(cell, defense=GAMES[cell.attack]))
    return control is not None and all(game.value >= CLEAR_WIN_RATE for game in control)


def _verdict(found: Answers, among: int) -> str:
    scores = found.nearer.round(6)  # of one answer to everything the rest is rounding
    nearer = metrics.mean(scores)
    bounded = nearer.half_width is not None and abs(nearer.value) + nearer.half_width < NEXT_TO_NOTHING_DB
    return _judged(metrics.p_value_of_mean(scores), bounded and nearer.n >= FEWEST, among)


def _game_verdict(cell: Cell, game: Played, among: int) -> str:
    if cell.attack == "which":
        luck = metrics.p_value_of_rate(round(game.value * game.trials), game.trials, game.chance)
        bounded = game.high < max(3 * game.chance, NEXT_TO_NOTHING_RATE)
    else:
        luck = metrics.p_value_of_auc(game.value, game.trials // 2, game.trials - game.trials // 2)
        bounded = game.low > 1 - NEXT_TO_NOTHING_AUC and game.high < NEXT_TO_NOTHING_AUC
    return _judged(luck, bounded, among)


def _judged(luck: float, bounded: bool, among: int) -> str:
    if luck < FALSE_ALARM / among:
        return "sees"
    return "nothing" if bounded and luck >= SUSPICION / among else "open"


def worst_rate(games: list[dict[str, Any]], defenses: tuple[str, ...]) -> float | None:
    """The headline: the largest upper bound of naming the right one of M pictures under any of ``defenses``.

    None where the game was not played under one of them, and 1 where its control failed: what could not be measured is not
    safe.
    """
    named = [game for game in games if game["attack"] == "which" and game["name"] == "top-1" and game["defense"] in defenses]
    if {game["defense"] for game in named} != set(defenses):
        return None
    return max(game["high"] if game["control_won"] else 1.0 for game in named)


def orderings(cells: Pictures) -> list[dict[str, Any]]:
    """Where the paper's orderings hold, and whether Eve does better with a better channel and with more knowledge.

    Each is a mean paired PSNR difference in dB over the same pictures with its 95 % interval; ``verdict`` is "holds" when the
    whole interval is above 0, "fails" when it is below, "open" when it contains 0.
    """
    found = []

    def compare(claim: str, better: Cell, worse: Cell) -> None:
        if better not in cells or worse not in cells:
            return
        difference = paired(cells[better], cells[worse])
        width = difference.half_width
        verdict = "open" if width is None or abs(difference.value) <= width else "holds" if difference.value > 0 else "fails"
        found.append(
            {
                "claim": claim,
                "better": dataclasses.asdict(better),
                "worse": dataclasses.asdict(worse),
                "difference_db": difference.value,
                "half_width_db": width,
                "pictures": difference.n,
                "verdict": verdict,
            }
        )

    snrs = sorted({cell.eve_snr for cell in cells if cell.eve_snr is not None})
    for cell in [cell for cell in cells if cell.eve_snr is not None]:
        for lower in [snr for snr in snrs if snr < (cell.eve_snr or 0)][-1:]:
            compare("Eve better with her SNR", cell, dataclasses.replace(cell, eve_snr=lower))
        if cell.attack in PAPER_ATTACKS:
            _compare_paper(compare, cell)
        elif cell.attack == "row ordering" and cell.defense in PAPER_MODES:
            for knows in ("brute force", "reused V", "four packets"):
                compare(f"{knows} above row ordering", dataclasses.replace(cell, attack=knows), cell)
    return found


def _compare_paper(compare: Any, cell: Cell) -> None:
    other = dataclasses.replace
    if cell.attack == "black-box":
        compare("black-box above white-box", cell, other(cell, attack="white-box"))
    if cell.defense == "none":
        compare("substitution below none", cell, other(cell, defense="substitute"))
    if cell.defense == "substitute":
        compare("permutation below substitution", cell, other(cell, defense="permute"))
    if cell.defense == "permute":
        compare("permutation + substitution below permutation", cell, other(cell, defense="permute+substitute"))
    if cell.defense in ("permute+substitute", "mix"):
        compare("defended Eve no better than the mean picture", _floor(cell), cell)

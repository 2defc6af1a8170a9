"""Results of an audit that never ran: every attack gets what a test says."""

import dataclasses

import numpy as np
from semseal.runtime.audit.attacks import ATTACKS, BY_NAME
from semseal.runtime.audit.results import AuditedBundle, GameResult, Reconstructions, Results
from semseal.runtime.audit.settings import Place, Settings
from semseal.runtime.audit.verdict import count_figures, game_rows, orderings, picture_rows
from semseal.runtime.defense.defenses import BY_NAME as DEFENSE_BY_NAME
from semseal.runtime.environment import environment

EVERY_ATTACK = tuple(attack.name for attack in ATTACKS)
PICTURES = tuple(attack.name for attack in ATTACKS if not attack.game)


def reconstructions(level: float, advantage: float = 0.0, n: int = 12) -> Reconstructions:
    around = np.linspace(-0.4, 0.4, n)
    return Reconstructions(level + around, np.full(n, 0.5), advantage + around, np.zeros((0, 3, 2, 2), np.float32))


def game_result(attack: str, value: float) -> GameResult:
    if attack in ("identification", "stored-frame"):
        return GameResult("top-1", value, value / 2, min(1, value + 0.02), 400, 0.01, "rate")
    return GameResult("pair", value, value - 0.03, min(1, value + 0.03), 400, 0.5, "area")


def made_up(mix: float, attacks=PICTURES, control=20.0, rate=0.005, defenses=("none", "permute", "mix")) -> Results:
    """Results in which every Eve gets ``control`` dB, but ``mix`` under mix; the mean picture scores 12 dB, Bob 21 dB.

    Her matching advantage is what she has above 11 dB.
    """
    settings = Settings(attacks, defenses, pictures=12, eve_snrs=(10.0,))
    place = Place("made-up", 10.0, "onnxruntime-cpu", "fp32", "awgn", "awgn")
    cells = {place.cell("mean-picture", "none", None): reconstructions(12)}
    cells |= {place.cell("bob", name, None): reconstructions(21) for name in ("none", "permute", "mix")}
    games = {}
    for name in ("none", "permute", "mix"):
        for attack in [attack for attack in attacks if BY_NAME[attack].applies(DEFENSE_BY_NAME[name])]:
            if BY_NAME[attack].game:
                value = 1.0 if name != "mix" else rate if attack in ("identification", "stored-frame") else 0.5
                games[place.cell(attack, name, 10.0)] = (game_result(attack, value),)
            else:
                level = mix + (5 if attack == "reused-stream" else 0) if name == "mix" else control
                found = reconstructions(level, level - 11)
                cells[place.cell(attack, name, 10.0)] = dataclasses.replace(found, psnr=found.psnr + np.linspace(0, 0.2, 12))
    among = count_figures(cells, games)
    return Results(
        what="semseal audit",
        environment=environment(("numpy",)),
        data="photos",
        settings=settings,
        ssim="of the test",
        bundles=(AuditedBundle("made-up", 10.0, "00" * 32, 4, 1 / 6, ("onnxruntime-cpu",), "awgn", "awgn"),),
        pictures="pictures that were never sent",
        rows=picture_rows(cells, among),
        games=game_rows(games, among),
        orderings=orderings(cells),
        skipped={},
        surrogate_agreement_db={},
    )


def changed(results: Results, where, **values) -> Results:
    """The results with other ``values`` in those rows that ``where`` picks; one at least."""
    assert any(where(row) for row in results.rows)
    rows = tuple(dataclasses.replace(row, **values) if where(row) else row for row in results.rows)
    return dataclasses.replace(results, rows=rows)

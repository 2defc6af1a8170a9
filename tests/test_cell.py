"""Every attack on a small real link, cell by cell."""

import dataclasses
import math

import numpy as np
import pytest
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.cell import answer, content, file_name, is_game, measure, read_games, read_reconstructions
from semseal.runtime.audit.matrix import FULL, cells
from semseal.runtime.audit.scene import Scene
from semseal.runtime.audit.settings import Place, Question
from semseal.runtime.audit.verdict import count_figures, game_rows, picture_rows
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense.defenses import BY_NAME, DEFENSES
from semseal.runtime.errors import AuditError
from semseal.runtime.pictures import open_pictures

STEPS = WhiteBoxSettings(5, 0.1, True)
SETTINGS = dataclasses.replace(
    FULL, pictures=12, optimised_pictures=6, attacker_pictures=80, whitebox=STEPS, matching=STEPS,
    flow_width=8, flow_batch=4, prior_steps=4, generative_levels=3, generative_pulls=1, generative_refined=2,
    flow_steps=4, flow_levels=2, flow_draws=1, blackbox_steps=5, learned_steps=3, trials=40,
    timed_calls=120, probe_epochs=2, eve_snrs=(20.0,),
    defenses=tuple(defense.name for defense in DEFENSES if not defense.digital),
)  # fmt: skip
PAPER_MODES = [defense.name for defense in DEFENSES if defense.broken and not defense.rival]


@pytest.fixture(scope="module")
def setting(small_bundle):
    bundle = open_bundle(small_bundle)
    return bundle, open_pictures("photos", "valid").take(12, 32, 24), open_pictures("photos", "test").take(80, 32, 24, seed=1)


@pytest.fixture(scope="module")
def done(setting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    scene = Scene(*setting, SETTINGS, questions=(Question("which", tuple("ab" * 6), tuple("ab" * 40)),))
    planned = list(cells(SETTINGS, scene.place))
    for cell in planned:
        measure(scene, cell, folder / file_name(cell))
    pictures = {cell: read_reconstructions(folder / file_name(cell)) for cell in planned if not is_game(cell)}
    games = {cell: read_games(folder / file_name(cell)) for cell in planned if is_game(cell)}
    among = count_figures(pictures, games)
    return folder, picture_rows(pictures, among), game_rows(games, among)


def test_every_attack_meets_every_defence_that_it_is_for(done):
    _, rows, games = done
    measured = {(row.attack, row.defense) for row in (*rows, *games) if row.eve_snr is not None}
    asked = [defense for defense in DEFENSES if defense.name in SETTINGS.defenses]
    assert len(asked) == len(DEFENSES) - 1  # the digital link takes more symbols than this one has
    assert measured == {(attack.name, defense.name) for attack in ATTACKS for defense in asked if attack.applies(defense)}
    assert {row.defense for row in rows if row.attack == "bob"} == set(SETTINGS.defenses)
    assert {attack.name for attack in ATTACKS if attack.game} == {row.attack for row in games}


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_decoder_that_overflows_gives_pictures_that_can_be_scored(setting, broken):
    """In half precision one may, of rows that are no picture's; what is no number is grey there."""
    scene = Scene(*setting, SETTINGS)
    whole = scene._decode

    def overflowing(*inputs):
        pictures = whole(*inputs).copy()
        pictures[0, 0, :2, :3] = broken
        return pictures

    scene._decode = overflowing
    cell = scene.place.cell("no-key", "mix", 20.0)
    found, _ = answer(scene, cell)
    assert np.isfinite(found).all()
    assert found[0, 0, 0, 0] == {np.nan: 0.5, np.inf: 1.0, -np.inf: 0.0}[broken]
    assert content(scene, cell)


def test_who_wins_where_it_must_and_what_mix_leaves(done):
    rows = {(row.attack, row.defense): row for row in done[1]}
    # Bob's decoder sees what Bob sees, and the same with a reused V under every one of the paper's modes
    assert abs(rows["no-key", "none"].below_bob_db) < 0.5
    for defense in PAPER_MODES:
        assert rows["reused-scheme", defense].below_bob_db < 1.0, defense
    for attack in ("no-key", "row-ordering", "four-packets"):
        # this small link sees little itself, and a dozen pictures vary
        assert rows[attack, "none"].above_mean_picture_db > 2
        assert rows[attack, "mix"].above_mean_picture_db < 1
        assert rows[attack, "none"].matching_advantage_db > 2
        assert abs(rows[attack, "mix"].matching_advantage_db) < 3 * rows[attack, "mix"].matching_advantage_95
    games = {(game.attack, game.name, game.defense): game for game in done[2]}
    for attack in ("identification", "stored-frame"):
        assert games[attack, "top-1", "none"].value > 0.9
        assert games[attack, "top-1", "mix"].low < 1 / 12


def test_a_cell_that_is_there_is_not_measured_again(done, setting):
    scene = Scene(*setting, SETTINGS)
    cell = scene.place.cell("no-key", "mix", 20.0)
    file = done[0] / file_name(cell)
    before = file.stat().st_mtime_ns
    measure(scene, cell, file)
    assert file.stat().st_mtime_ns == before


def test_every_precision_that_is_asked_for_is_attacked_on_its_own_engine(setting):
    received = {}
    for precision in ("fp32", "int8"):
        scene = Scene(*setting, dataclasses.replace(SETTINGS, precisions=(precision,)))
        received[precision], _ = answer(scene, scene.place.cell("no-key", "none", 60.0))
    difference = np.abs(received["fp32"] - received["int8"])
    assert difference.max() > 1e-4  # two engines
    assert difference.mean() < 0.1  # of one model


def test_a_cell_that_was_interrupted_is_measured_again_by_the_same_process(setting):
    """As in a notebook. Its session is the same: Bob has to take the frames again."""
    scene = Scene(*setting, SETTINGS)
    for cell in (scene.place.cell("bob", "mix", None), scene.place.cell("integrity", "permute+substitute", 20.0)):
        assert content(scene, cell) == content(scene, cell)


def test_a_matrix_holds_the_control_of_every_attack_in_it():
    asked = dataclasses.replace(
        SETTINGS, defenses=("mix",), attacks=("row-ordering", "identification"), precisions=("fp32", "int8")
    )
    places = [Place("link", 10.0, "openvino", precision, "awgn", "awgn") for precision in asked.precisions]
    found = [cell for place in places for cell in cells(asked, place)]
    assert len(found) == len(set(found)) == len({file_name(cell) for cell in found})
    for precision in ("fp32", "int8"):
        assert {(cell.attack, cell.defense) for cell in found if cell.precision == precision} == {
            ("mean-picture", "none"), ("bob", "none"), ("bob", "permute"), ("bob", "mix"),
            ("row-ordering", "permute"), ("row-ordering", "mix"), ("identification", "none"), ("identification", "mix"),
        }  # fmt: skip


def test_every_control_is_a_defence_that_the_attack_applies_to():
    for attack in ATTACKS:
        assert attack.applies(BY_NAME[attack.control]), attack.name
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def test_whole_groups_are_received_and_eve_practises_under_her_own_key(setting):
    bundle, images, attacker_images = setting
    scene = Scene(bundle, images, attacker_images, SETTINGS)
    assert scene.received_rows(images, BY_NAME["mix"], 10, 1).shape == (12, 1, 8, 24)
    assert scene.received_rows(images, BY_NAME["permute+substitute"], 10, 1).shape == (6, 2, 8, 24)
    alices, eves = (scene.received_rows(images, BY_NAME["mix"], 60, 1, key) for key in (None, bytes(32)))
    assert abs(np.corrcoef(alices.ravel(), eves.ravel())[0, 1]) < 0.1
    swapped = images.reshape(6, 2, *images.shape[1:])[:, ::-1].reshape(images.shape)
    assert np.array_equal(scene.best_order(swapped, 2), images)


def test_a_packet_holds_all_that_is_on_air(setting):
    """Also what mix adds: its power, exact, is that of the whole frame and of no part of it."""
    scene = Scene(*setting, SETTINGS)
    packets = scene.packets(setting[1], np.arange(12), BY_NAME["mix"], math.inf, 1)
    assert packets.shape == (12, 1, 86, 24)  # 2,048 reals in rows of 24
    assert np.abs(2 * np.square(packets, dtype=np.float64).sum((1, 2, 3)) / 2048 - 1).max() < 1e-8


def test_what_needs_no_channel_is_measured_once():
    asked = dataclasses.replace(SETTINGS, attacks=("stored-frame", "no-key"), defenses=("mix",), eve_snrs=(0.0, 20.0))
    place = Place("link", 10.0, "openvino", "fp32", "awgn", "awgn")
    snrs = {name: {cell.eve_snr for cell in cells(asked, place) if cell.attack == name} for name in asked.attacks}
    assert snrs == {"stored-frame": {20.0}, "no-key": {0.0, 20.0}}


@pytest.mark.parametrize(("name", "read"), [("cell.npz", read_reconstructions), ("cell.json", read_games)])
def test_a_damaged_cell_is_named(tmp_path, name, read):
    (tmp_path / name).write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(AuditError, match=f"{name} is damaged"):
        read(tmp_path / name)

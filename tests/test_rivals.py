"""Rival defences: what they do to symbols and pictures, who can undo it, and an audit that sets them beside the link's own."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semseal.runtime.audit.cost import costs_of
from semseal.runtime.audit.matrix import FULL, QUICK
from semseal.runtime.audit.practice import known_db
from semseal.runtime.audit.recorded import audit_recording
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.scene import Scene
from semseal.runtime.bundle import open_bundle
from semseal.runtime.channel import awgn, draw_noise
from semseal.runtime.defense.defenses import BY_NAME, DEFENSES, MODES
from semseal.runtime.defense.superposition import CLOUD_POWER, cancel, superpose
from semseal.runtime.defense.symbols import permute, restore
from semseal.runtime.errors import AuditError
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures

KEY, OTHER = bytes(range(32)), bytes(32)
RIVALS = tuple(defense.name for defense in DEFENSES if defense.rival)
keys = st.binary(min_size=32, max_size=32)


def drawn(n, seed=0):
    """Symbols complex64 [n] of power 1."""
    reals = np.random.default_rng(seed).standard_normal(2 * n, np.float32)
    return (reals / np.sqrt(2 * np.square(reals).mean())).view(np.complex64)


def test_the_link_sends_no_rival_and_an_audit_takes_them_where_they_are_asked_for():
    assert RIVALS == ("symbol-permutation", "superposition", "digital")
    assert FULL.defenses == QUICK.defenses == MODES
    assert not set(MODES) & set(RIVALS)


@given(keys, st.integers(1, 300), st.integers(0, 99))
def test_a_permutation_is_undone_by_its_key_and_keeps_every_value(key, n, seed):
    symbols = drawn(n, seed)
    sent = permute(symbols, key)
    assert np.array_equal(restore(sent, key), symbols)
    assert np.array_equal(np.sort(sent), np.sort(symbols))


def test_another_key_does_not_restore_the_order_and_every_place_is_as_likely():
    symbols = drawn(2000)
    wrong = restore(permute(symbols, KEY), OTHER)
    assert abs(np.vdot(symbols, wrong)) / len(symbols) < 0.1
    moved = np.stack(
        [permute(np.arange(5, dtype=np.complex64), bytes([i, j, *KEY[2:]])).real for i in range(99) for j in range(99)]
    )
    for place in moved.T:  # 9801 draws: five standard deviations are 2 %
        assert np.abs(np.bincount(place.astype(int)) / len(place) - 0.2).max() < 0.02


@settings(max_examples=30)
@given(keys, st.integers(256, 2000), st.integers(0, 99))
def test_clouds_come_off_without_a_key_where_there_is_no_noise(key, n, seed):
    symbols = drawn(n, seed)
    sent = superpose(symbols, key)
    assert np.square(np.abs(sent)).mean() == pytest.approx(1, abs=1e-4)
    # their limit and the unit power leave this much of the symbols' own; mistaken clouds would leave ten times as much
    assert np.square(np.abs(cancel(sent) - symbols)).mean() < 0.1


def test_most_of_the_power_is_cloud_and_taken_off():
    n = 4096
    symbols = drawn(n)
    sent = superpose(symbols, KEY)
    clouds = np.sqrt(CLOUD_POWER / 2) * (np.sign(sent.real) + 1j * np.sign(sent.imag))
    assert np.square(np.abs(sent - clouds)).mean() == pytest.approx(1 - CLOUD_POWER, abs=0.02)
    assert 0.9 < np.vdot(symbols, cancel(sent)).real / n < 1  # their limit takes a little
    # other clouds under another key, which is of no use to who has it
    assert np.vdot(sent, superpose(symbols, OTHER)).real / n == pytest.approx(1 - CLOUD_POWER, abs=0.05)
    assert np.array_equal(cancel(sent, KEY), cancel(sent, OTHER))


def test_one_symbol_by_hand():
    """Alone it is its own Fourier transform: 0.387 of it on a cloud at 0.652 in I and in Q."""
    on_air = np.array([0.652 + 0.387 * 0.5 + 1j * (-0.652 + 0.387 * 0.25)], np.complex64)
    sign = np.sign(cancel(np.array([0.652 + 0.1 - 0.652j], np.complex64)).real[0])  # the public one
    assert cancel(on_air) * sign == pytest.approx(np.array([0.5 + 0.25j]), abs=0.01)


def test_the_worse_eve_receives_the_fewer_clouds_she_takes_off():
    symbols, left = drawn(8192), []
    for snr_db in (0, 10, 20, 40):
        received = awgn(superpose(symbols, KEY)[None], draw_noise(1, 8192, np.random.default_rng(1)), snr_db)[0]
        left.append(np.square(np.abs(cancel(received) - symbols)).mean())
    assert left == sorted(left, reverse=True)
    assert left[0] > 4  # times the power of the symbols
    assert left[-1] < 0.04


# the digital link


@pytest.fixture(scope="module")
def digital():
    pytest.importorskip("sionna", reason="sionna-no-rt is not installed: in the source folder, pip install '.[radio]'")
    from semseal.runtime.audit.digitalrival import DigitalLink

    return DigitalLink(4000, 10.0, 96, 64)


@pytest.fixture(scope="module")
def picture():
    return open_pictures("photos", "valid").take(1, 96, 64)[0]


def test_a_picture_arrives_under_its_key_and_no_other(digital, picture):
    sent = digital.conceal(picture, KEY)
    assert sent.shape == (4000,)
    assert np.square(np.abs(sent)).mean() == pytest.approx(1, abs=0.05)
    received = awgn(sent[None], draw_noise(1, 4000, np.random.default_rng(2)), 10.0)[0]
    seen = digital.reveal(received, KEY)
    assert psnr(picture[None], seen[None])[0] > 25
    assert digital.reveal(received, OTHER) is None
    assert digital.reveal(np.roll(received, 1), KEY) is None


def test_nothing_of_the_picture_is_in_the_symbols(digital, picture):
    one, two = digital.conceal(picture, KEY), digital.conceal(picture, OTHER)
    grey = digital.conceal(np.full_like(picture, 0.5), KEY)
    assert len(one) == len(grey)
    for other in (two, grey):
        assert abs(np.vdot(one, other)) / len(one) < 0.1


def test_the_cliff(digital, picture):
    sent = digital.conceal(picture, KEY)[None]
    seen = {
        snr_db: digital.reveal(awgn(sent, draw_noise(1, 4000, np.random.default_rng(3)), snr_db)[0], KEY)
        for snr_db in (6, 10, 30)
    }
    assert seen[6] is None
    assert np.array_equal(seen[10], seen[30])


def test_what_no_digital_frame_can_carry(digital):
    from semseal.runtime.audit.digitalrival import DigitalLink

    with pytest.raises(AuditError, match="in 40 channel uses carries no byte"):
        DigitalLink(40, 10.0, 96, 64)
    with pytest.raises(AuditError, match="slow enough for -10 dB"):
        DigitalLink(4000, -10.0, 96, 64)
    small = DigitalLink(100, 10.0, 96, 64)
    noise = np.random.default_rng(4).random((3, 96, 64), np.float32)
    assert small.reveal(small.conceal(noise, KEY), KEY) is None  # no quality fits


# audits


def test_an_audit_sets_rivals_beside_the_modes(small_bundle, tmp_path):
    asked = dataclasses.replace(
        FULL, pictures=12, optimised_pictures=6, attacker_pictures=80, trials=40, eve_snrs=(0.0, 30.0),
        attacks=("no-key", "identification"), defenses=("none", "mix", "symbol-permutation", "superposition"),
    )  # fmt: skip
    results = audit([small_bundle], "photos", tmp_path, asked)
    rows = {(row.attack, row.defense, row.eve_snr): row for row in results.rows}
    games = {(game.defense, game.eve_snr): game for game in results.games if game.name == "top-1"}
    # Bob loses nothing by an order and much by clouds; an Eve who receives better than he does sees better through them
    assert abs(rows["bob", "symbol-permutation", None].psnr - rows["bob", "none", None].psnr) < 0.5
    assert rows["bob", "superposition", None].psnr < rows["bob", "none", None].psnr
    assert rows["no-key", "superposition", 30.0].psnr > rows["bob", "superposition", None].psnr
    assert rows["no-key", "superposition", 30.0].psnr > rows["no-key", "superposition", 0.0].psnr + 0.5
    assert rows["no-key", "symbol-permutation", 30.0].psnr < rows["no-key", "none", 30.0].psnr - 2
    # the values of single symbols are enough to name a picture
    assert games["symbol-permutation", 30.0].low > 3 / 12 > games["mix", 30.0].low
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert [cost["defense"] for cost in costs] == list(asked.defenses)
    assert all(cost["ms_low"] <= cost["ms"] <= cost["ms_high"] for cost in costs)
    uses = {cost["defense"]: cost["channel_uses"] for cost in costs}
    assert uses["none"] == uses["symbol-permutation"] == uses["superposition"] < uses["mix"]
    for name in ("report.html", "tables.md"):
        page = (tmp_path / name).read_text()
        assert "Leakage against cost" in page
        assert "ermutation of single symbols" in page
        assert all(f"{cost['ms']:.1f} [{cost['ms_low']:.1f}" in page for cost in costs)
    before = (tmp_path / "costs.json").stat().st_mtime_ns
    audit([small_bundle], "photos", tmp_path, asked)
    assert (tmp_path / "costs.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("snr_db", "channel"), [(0.0, "awgn"), (10.0, "awgn"), (np.inf, "awgn"), (10.0, "rayleigh")])
def test_eve_knows_how_much_noise_an_undone_defence_leaves(small_bundle, snr_db, channel):
    """More than she received: that of the clouds she mistakes, and all of it louder."""
    images = open_pictures("photos", "valid").take(24, 32, 24)
    asked = dataclasses.replace(QUICK, pictures=12, channels=(channel,), eve_antennas=2)
    scene = Scene(open_bundle(small_bundle), images[:12], images[12:], asked)
    clouds = BY_NAME["superposition"]
    for defense in DEFENSES:
        if not defense.keyless:
            assert known_db(scene, defense, snr_db) == scene.combined_db(snr_db)
    left = scene.received_rows(scene.images, clouds, snr_db, 1)[:, 0] - scene.clean_rows(scene.images)
    found = known_db(scene, clouds, snr_db)
    assert found == pytest.approx(-10 * np.log10(2 * np.square(left).mean()), abs=1.5)
    assert found < scene.combined_db(snr_db) - 3
    assert found == known_db(scene, clouds, snr_db)


def test_costs_that_are_damaged_are_named(small_bundle, tmp_path):
    images = open_pictures("photos", "valid").take(12, 32, 24)
    scene = Scene(open_bundle(small_bundle), images, images, dataclasses.replace(QUICK, pictures=12))
    (tmp_path / "costs.json").write_text("[{}]")
    with pytest.raises(AuditError, match=r"costs\.json is damaged"):
        costs_of(scene, ("mix",), tmp_path / "costs.json")


def test_no_recording_is_under_a_rival(small_bundle, tmp_path):
    with pytest.raises(AuditError, match="digital: no transmitter sends that"):
        audit_recording(small_bundle, tmp_path / "air", "photos", tmp_path / "out", QUICK, ("mix", "digital"))


def test_a_digital_link_is_refused_before_anything_is_measured_where_it_cannot_be_had(small_bundle, tmp_path):
    pytest.importorskip("sionna", reason="sionna-no-rt is not installed: in the source folder, pip install '.[radio]'")
    asked = dataclasses.replace(QUICK, defenses=("digital",), attacks=("no-key",))
    with pytest.raises(AuditError, match="no use for a rayleigh channel"):
        audit([small_bundle], "photos", tmp_path / "out", dataclasses.replace(asked, channels=("rayleigh",)))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_the_digital_link_is_asked_for_no_snr_that_it_cannot_be_had_at(edge_bundle, tmp_path):
    """Leaving it out is no way: Bob is measured under every defence of the folder, at every SNR."""
    pytest.importorskip("sionna", reason="sionna-no-rt is not installed: in the source folder, pip install '.[radio]'")
    out = tmp_path / "out"
    asked = dataclasses.replace(
        QUICK, pictures=6, attacker_pictures=40, attacks=("no-key",), defenses=("none", "digital"), main_snrs=(20.0,)
    )
    audit([edge_bundle], "photos", out, asked)
    before = sorted(file.name for file in (out / "cells").iterdir())
    for defenses in (("none",), ("none", "digital")):
        lower = dataclasses.replace(asked, defenses=defenses, main_snrs=(-20.0,))
        with pytest.raises(AuditError, match="slow enough for -20 dB") as raised:
            audit([edge_bundle], "photos", out, lower)
        assert "choose another --out" in raised.value.hint
        assert sorted(file.name for file in (out / "cells").iterdir()) == before
    audit([edge_bundle], "photos", tmp_path / "other", dataclasses.replace(asked, defenses=("none",), main_snrs=(-20.0,)))

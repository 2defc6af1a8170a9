"""What single packets of the mix give away, without noise, at the smallest size, where it shows most."""

import math

import numpy as np
import pytest
from mixes import SMALLEST, gaussian, keys_for, unit
from semseal.runtime.defense import mix as mixing
from semseal.runtime.defense.mix import MixKeys, factors, hadamard, mix, normalize
from semseal.runtime.errors import EngineError

STEPS = ("column signs", "C one", "signs 0", "AB one", "rows", "signs 1", "columns", "C two", "signs 2", "AB two", "signs 3",
         "C three", "signs 4")  # fmt: skip


def without(y, keys, step=None, n=SMALLEST):
    """``mix`` once more, any one step of it left out."""
    a, b, c = factors(n)
    batch = len(y)
    h_a, h_b, h_c = (hadamard(m).astype(np.float32) / np.float32(math.sqrt(m)) for m in (a, b, c))
    x = np.concatenate([y, keys.pads], axis=1).reshape(batch, a * b, c)
    for name in STEPS:
        if name == step:
            continue
        if name == "column signs":
            x = x * keys.column_signs.swapaxes(1, 2)
        elif name.startswith("signs"):
            x = x * keys.signs[:, int(name[-1])].reshape(x.shape)
        elif name == "rows":
            x = x[np.arange(batch)[:, None], keys.rows]
        elif name == "columns":
            x = np.take_along_axis(x, keys.columns.argsort(1)[:, None], axis=2)
        elif name.startswith("C"):
            x = x @ h_c
        else:
            x = (h_b @ (h_a @ x.reshape(batch, a, b * c)).reshape(batch, a, b, c)).reshape(batch, a * b, c)
    return normalize(x.reshape(batch, -1))[0]


def test_left_out_nothing_it_is_the_mix():
    y, keys = unit(gaussian(3, SMALLEST)), keys_for(SMALLEST, range(3))
    assert np.abs(without(y, keys) - mix(y, keys)).max() < 2e-5


def chosen(name):
    """Features [SMALLEST] that an Eve would choose; a row is 16 reals."""
    y = np.zeros(SMALLEST)
    if name == "one":
        y[992] = 1
    elif name == "two":
        y[992:994] = 1  # of one row
    elif name == "four":
        y[80:84] = 1
    elif name == "same column":
        y[[3 * 16 + 1, 4 * 16 + 1]] = 1
    elif name == "column":
        y[3::16] = 1
    elif name == "walsh":
        y = np.tile([(-1.0) ** (i & 5).bit_count() for i in range(16)], SMALLEST // 16)
    elif name == "equal":
        y += 1
    elif name == "few values":
        y = np.random.default_rng(1).choice([-1.0, 0, 1], SMALLEST)
    return unit(y[None])[0]


INPUTS = ("zero", "one", "two", "four", "same column", "column", "walsh", "equal", "few values")


def squares(x):
    return np.square(x.reshape(len(x), 128, 16).astype(np.float64)) * 2


def walsh_power(energies, h):
    """Auto-correlation of energies [packets, m] over all exclusive-or distances but 0; [packets, m - 1]."""
    spectrum = np.square((energies - energies.mean(1, keepdims=True)) @ h)
    return (spectrum @ h)[:, 1:] / spectrum.sum(1, keepdims=True)


def kurtosis(x):
    return np.square(squares(x)).mean((1, 2))


def lattice(x):
    """The share of neighbours, in order of size, that are as good as equal."""
    size = np.sort(np.abs(x), axis=1)
    return (np.diff(size) < 1e-6 * size[:, 1:]).mean(1)


def column_energies(x):
    return squares(x).mean(1).var(1)


def column_energies_undone(x):
    """With the last public transform undone."""
    return column_energies((x.reshape(-1, 16) @ hadamard(16).astype(np.float32) / 4).reshape(x.shape))


def row_energies(x):
    return squares(x).mean(2).var(1)


def row_distances(x):
    """All distances, squared."""
    return np.square(walsh_power(squares(x).mean(2), hadamard(128))).sum(1)


def row_distance_7(x):
    """The distance of the rows 3 and 4."""
    return walsh_power(squares(x).mean(2), hadamard(128))[:, 6]


def inside_rows(x):
    """Correlation of squares in one row, at each distance; [packets, 15]."""
    spectrum = np.square((squares(x) - 1) @ hadamard(16))
    return (spectrum.sum(1) @ hadamard(16))[:, 1:] / spectrum.sum((1, 2))[:, None]


def inside_rows_at_all(x):
    return np.square(inside_rows(x)).sum(1)


def inside_rows_fours(x):
    """Distances 4, 8 and 12 against the others."""
    found = inside_rows(x)
    return found[:, [3, 7, 11]].mean(1) - np.delete(found, [3, 7, 11], axis=1).mean(1)


STATISTICS = (kurtosis, lattice, column_energies, column_energies_undone, row_energies, row_distances, row_distance_7,
              inside_rows_at_all, inside_rows_fours)  # fmt: skip
PACKETS = 2000


def z_score(one, other):
    spread = math.sqrt(one.var() / len(one) + other.var() / len(other))
    return 0.0 if one.mean() == other.mean() else abs(one.mean() - other.mean()) / spread


@pytest.fixture(scope="module")
def plenty():
    """Keys of PACKETS packets, and of as many others."""
    return keys_for(SMALLEST, range(PACKETS)), keys_for(SMALLEST, range(PACKETS, 2 * PACKETS))


def repeated(name):
    return np.broadcast_to(chosen(name), (PACKETS, SMALLEST))


@pytest.fixture(scope="module")
def ordinary(plenty):
    return mix(unit(gaussian(PACKETS, SMALLEST)), plenty[1])


@pytest.mark.parametrize("name", INPUTS)
def test_chosen_features_come_out_like_any_other(name, plenty, ordinary):
    sent = mix(repeated(name), plenty[0])
    scores = {statistic.__name__: z_score(statistic(sent), statistic(ordinary)) for statistic in STATISTICS}
    assert max(scores.values()) < 4, scores  # of nine statistics and nine inputs


def test_energy_is_the_same_for_all(plenty, ordinary):
    """Version 1 left 4e-7 of the power that depended on the picture."""
    for name in ("zero", "one", "equal"):
        sent = mix(repeated(name), plenty[0])
        energy = [np.square(x, dtype=np.float64).sum(1) / 1024 - 1 for x in (sent, ordinary)]
        assert max(np.abs(e).max() for e in energy) < 1e-8
        assert z_score(*energy) < 4


@pytest.mark.parametrize(
    ("step", "name", "statistic"),
    [
        ("column signs", "equal", row_distances),
        ("C one", "column", row_distances),
        ("signs 0", "column", row_energies),
        ("AB one", "one", kurtosis),
        ("rows", "same column", row_distance_7),
        ("signs 1", "one", inside_rows_at_all),
        ("columns", "four", inside_rows_fours),
        ("C two", "two", inside_rows_at_all),
        ("signs 2", "two", inside_rows_at_all),
        ("AB two", "one", row_energies),
        ("signs 3", "one", column_energies),
        ("C three", "four", column_energies),
        ("signs 4", "four", column_energies_undone),
    ],
)
def test_a_step_left_out_would_show(step, name, statistic, plenty, ordinary):
    score = z_score(statistic(without(repeated(name), plenty[0], step)), statistic(ordinary))
    assert score > (4 if step == "columns" else 6)  # and below 4 with all steps, see above


def test_pads_left_out_would_show(plenty, ordinary):
    keys = plenty[0]
    silent = MixKeys(keys.signs, keys.column_signs, np.zeros_like(keys.pads), keys.rows, keys.columns)
    with np.errstate(all="ignore"), pytest.raises(EngineError, match="energy nan"):
        mix(repeated("zero"), silent)
    assert z_score(lattice(mix(repeated("two"), silent)), lattice(ordinary)) > 100


def test_exact_power_left_out_would_show(plenty, monkeypatch):
    monkeypatch.setattr(mixing, "normalize", lambda x: (x, np.ones(len(x))))
    one, zero = (np.square(mix(repeated(name), plenty[0]), dtype=np.float64).sum(1) for name in ("one", "zero"))
    scale = one.mean()
    assert np.abs(one / scale - 1).max() > 1e-7
    # the first, float32 normalisation, without which the grain of what is mixed would tell how loud it was
    assert np.abs(zero / scale - 1).max() < 1e-5

import numpy as np
import pytest
from semseal.runtime.metrics import mean, psnr, ssim


def test_psnr_known_answers():
    a = np.zeros((2, 3, 16, 16), np.float32)
    b = a.copy()
    b[0] += 0.1
    assert psnr(a, b) == pytest.approx([20.0, np.inf], abs=1e-5)


def test_ssim_of_equal_and_of_unrelated_pictures():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 32, 32), np.float32), rng.random((2, 3, 32, 32), np.float32)
    assert ssim(a, a) == pytest.approx([1.0, 1.0])
    assert np.abs(ssim(a, b)).max() < 0.1


def test_ssim_of_flat_pictures_is_the_luminance_term():
    a, b = np.full((1, 3, 16, 16), 0.2, np.float32), np.full((1, 3, 16, 16), 0.6, np.float32)
    c1 = 0.01**2
    assert ssim(a, b)[0] == pytest.approx((2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1), rel=1e-4)


def test_interval_is_students():
    found = mean(np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.value == 2.5
    assert found.half_width == pytest.approx(3.182446 * 1.290994 / 2, rel=1e-5)
    assert mean(np.array([7.0])).half_width is None


def test_interval_covers_the_truth_95_times_in_100():
    rng = np.random.default_rng(0)
    inside = sum(abs(m.value) <= m.half_width for m in (mean(rng.standard_normal(8)) for _ in range(2000)))
    assert 0.935 < inside / 2000 < 0.965

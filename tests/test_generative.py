"""The generative Eve: what her models of pictures learn, what guides them, what she is given, and where they are kept."""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from semseal.runtime.attacks import flow, generative
from semseal.runtime.audit import networks
from semseal.runtime.audit.matrix import QUICK
from semseal.runtime.audit.run import audit
from semseal.runtime.errors import AuditError
from semseal.runtime.metrics import psnr

SIZES = flow.FlowSettings(width=8, steps=150, batch=8)
HEIGHT, WIDTH = 14, 12  # no multiple of a patch


def bars(count, seed):
    """Pictures of one coloured bar on grey: three numbers behind each."""
    rng = np.random.default_rng(seed)
    pictures = np.full((count, 3, HEIGHT, WIDTH), 0.5, np.float32)
    for picture in pictures:
        first = rng.integers(HEIGHT - 4)
        picture[rng.integers(3), first : first + 4] = rng.choice([0.1, 0.9])
    return pictures


@pytest.fixture(scope="module")
def prior():
    model = flow.new_flow(flow.shape_of(HEIGHT, WIDTH), SIZES.width, 0)
    return model, flow.train(model, bars(200, 0), SIZES, 0)


def halved(images, index):
    """A transmitter for the tests: the means of 2 x 2 pixels around grey, as [batch, N, 2]."""
    means = torch.nn.functional.avg_pool2d(images - 0.5, 2)
    return 2 * means.reshape(len(images), -1, 2)


def test_training_lowers_the_loss(prior):
    losses = prior[1]
    assert len(losses) == SIZES.steps
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])


def test_training_and_sampling_repeat_themselves(prior):
    again = flow.new_flow(flow.shape_of(HEIGHT, WIDTH), SIZES.width, 0)
    few = dataclasses.replace(SIZES, steps=3)
    other = flow.new_flow(flow.shape_of(HEIGHT, WIDTH), SIZES.width, 0)
    assert flow.train(again, bars(50, 0), few, 0) == flow.train(other, bars(50, 0), few, 0)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), other.state_dict().values(), strict=True))
    one, two = (flow.sample(prior[0], None, 3, 4, 1, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (3, 3, HEIGHT, WIDTH)
    assert not np.array_equal(one, flow.sample(prior[0], None, 3, 4, 1, seed=6))


def test_what_is_received_guides(prior):
    model, sent = prior[0], bars(6, 9)
    received = halved(torch.from_numpy(sent), None).numpy().reshape(6, -1).view(np.complex64)
    settings = generative.GuidedSettings(8, 6, 10)
    found = generative.restore(model, halved, received, bars(12, 5), 60.0, 1, settings, 0)
    unguided = flow.sample(model, None, 6, 8, 1, 0)
    assert found.shape == sent.shape
    assert psnr(sent, found).mean() > psnr(sent, unguided).mean() + 6
    again = generative.restore(model, halved, received, bars(12, 5), 60.0, 1, settings, 0)
    np.testing.assert_array_equal(found, again)


def test_symbols_that_fit_no_picture_are_trusted_less(prior):
    model, sent = prior[0], bars(6, 9)
    clean = halved(torch.from_numpy(sent), None).numpy().reshape(6, -1).view(np.complex64)
    hidden = np.random.default_rng(1).permutation(clean.T).T.copy()
    settings = generative.GuidedSettings(8, 6, 10)
    seen, invented = (
        generative.restore(model, halved, symbols, bars(12, 5), 60.0, 1, settings, 0) for symbols in (clean, hidden)
    )
    misfit = [
        np.square(halved(torch.from_numpy(found), None).numpy().reshape(6, -1) - symbols.view(np.float32)).mean()
        for found, symbols in ((seen, clean), (invented, hidden))
    ]
    assert misfit[1] > 4 * misfit[0]

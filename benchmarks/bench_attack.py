"""White-box inversion against the loop that anyone would write: float32, NCHW, eager autograd, torch.optim.Adam.

Both attack the same pictures with the same weights for the same number of steps. They are timed in turns, in a new random
order each round, so that a slow moment of the machine meets both; read the ratio, which is of the medians. Before that each
runs to the end once, and ours must reach as low an objective and as good a picture: pytest --benchmark -m attack -s
"""

import dataclasses
import math
import time

import numpy as np
import pytest
import torch
from link_peers import paper_network
from rich.console import Console
from semseal.runtime import channel
from semseal.runtime.attacks import whitebox
from semseal.runtime.audit.surrogate import Surrogate
from semseal.runtime.bundle import open_bundle, packaged_bundle
from semseal.runtime.link import Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures
from semseal.train.loss import total_variation

BUNDLE = packaged_bundle("photos-10db")
PICTURES = 8
ROUNDS, STEPS = 7, 10  # timed: this often, so many steps
SHORT = 2  # rounds where --benchmark-max-time asks for little
FULL = dataclasses.replace(whitebox.FAST, steps=80, lr=0.1)


@pytest.fixture(scope="module")
def received():
    """The pictures float32 [8, 3, 180, 180], and their symbols complex64 [8, N] as Eve receives them at 10 dB."""
    images = open_pictures("photos", "valid").take(PICTURES, 180, 180)
    symbols = np.stack([frame.symbols for frame in Transmitter(BUNDLE).send(images)])
    return images, channel.awgn(symbols, channel.draw_noise(*symbols.shape, np.random.default_rng(0)), 10.0)


@pytest.fixture(scope="module")
def model():
    """The model as it was trained, with the weights that the packaged graph holds."""
    return paper_network(open_bundle(BUNDLE)).requires_grad_(False)


def plain(model, received, start, settings):
    """Eq. (5) as ``whitebox.invert`` has it."""
    target = torch.from_numpy(received.view(np.float32).reshape(len(received), -1, 2))
    x = torch.from_numpy(np.tile(start, (len(received), 1, 1, 1))).requires_grad_()
    optimizer = torch.optim.Adam([x])
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        loss = objective(model, x, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return x.detach().numpy()


def objective(model, x, target):
    return (model.encode(x) - target).square().sum() + total_variation(x).sum()


@pytest.mark.attack
@pytest.mark.parametrize("threads", [1, 2])
def test_white_box(benchmark, received, model, threads, own):
    images, symbols = received
    start = open_pictures("photos", "test").take(40, 180, 180).mean(axis=0)
    surrogate = Surrogate(open_bundle(BUNDLE).graph("transmitter"))
    run = {
        "plain": lambda settings: plain(model, symbols, start, settings),
        "ours": lambda settings: whitebox.invert(surrogate, symbols, start, 45, settings),
    }
    rounds = SHORT if own else ROUNDS
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = {name: invert(FULL) for name, invert in run.items()}
        few = dataclasses.replace(FULL, steps=STEPS)
        rng = np.random.default_rng(0)
        seconds = {name: np.empty(rounds) for name in run}
        for i in range(rounds):
            for name in rng.permutation(list(run)):
                begun = time.perf_counter()
                run[name](few)
                seconds[name][i] = time.perf_counter() - begun
        benchmark.pedantic(run["ours"], (few,), rounds=rounds)
    finally:
        torch.set_num_threads(before)

    target = torch.from_numpy(symbols.view(np.float32).reshape(PICTURES, -1, 2))
    with torch.no_grad():
        reached = {name: objective(model, torch.from_numpy(answer), target).item() for name, answer in found.items()}
    assert reached["ours"] < 1.01 * reached["plain"]
    quality = {name: psnr(images, answer).mean() for name, answer in found.items()}
    assert quality["ours"] > quality["plain"] - 0.2

    speed = {name: PICTURES * STEPS / float(np.median(taken)) for name, taken in seconds.items()}
    ratio = speed["ours"] / speed["plain"]
    benchmark.extra_info.update(threads=threads, picture_steps_per_second=speed, times_as_fast=ratio, psnr=quality)
    Console().print(
        f"\nwhite-box, {threads} thread(s), steps a second: {speed['ours']:.0f}, plain {speed['plain']:.0f}: {ratio:.2f}x;"
        f" after {FULL.steps} steps {quality['ours']:.2f} dB, plain {quality['plain']:.2f} dB"
    )

import dataclasses

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from semseal.runtime import channel
from semseal.runtime.attacks import blackbox, rowmatching, whitebox
from semseal.runtime.audit.surrogate import Surrogate
from semseal.runtime.bundle import open_bundle, packaged_bundle
from semseal.runtime.link import Transmitter
from semseal.runtime.metrics import psnr, ssim
from semseal.runtime.pictures import open_pictures

SHIPPED = packaged_bundle("photos-10db")


@pytest.fixture(scope="module")
def received():
    """Three photographs and what Eve receives of them at 10 dB, without a defence."""
    images = open_pictures("photos", "valid").take(3, 180, 180)
    symbols = np.stack([frame.symbols for frame in Transmitter(SHIPPED).send(images)])
    return images, channel.awgn(symbols, channel.draw_noise(*symbols.shape, np.random.default_rng(0)), 10.0)


@pytest.fixture(scope="module")
def surrogate():
    return Surrogate(open_bundle(SHIPPED).graph("transmitter"))


def test_surrogate_is_the_engine(received, surrogate):
    images = received[0]
    expected = np.stack([frame.symbols for frame in Transmitter(SHIPPED).send(images)])
    index = torch.arange(3 * 45, dtype=torch.int32).reshape(3, 45)
    with torch.no_grad():
        ours = surrogate(torch.from_numpy(images), index).numpy()
    assert np.abs(ours[..., 0] + 1j * ours[..., 1] - expected).max() < 1e-4


@pytest.mark.parametrize("side", ["transmitter", "receiver"])
def test_surrogate_runs_both_sides_of_any_bundle(small_bundle, small_images, side):
    graph = open_bundle(small_bundle).graph(side)
    surrogate = Surrogate(graph)
    index = torch.arange(16, dtype=torch.int32).reshape(2, 8)
    x = torch.from_numpy(small_images(2)) if side == "transmitter" else torch.randn(2, 96, 2)
    from semseal.runtime.engine import open_engine

    expected = open_engine("onnxruntime-cpu", graph)(x.numpy(), index.numpy())
    assert np.abs(surrogate(x, index).detach().numpy() - expected).max() < 1e-4


def test_surrogate_is_differentiable(surrogate):
    x = torch.rand(1, 3, 180, 180, requires_grad=True)
    surrogate(x, torch.arange(45, dtype=torch.int32)[None])[0, :100].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.25, 1.0, 1.75])
def test_prelu_is_torchs_and_so_is_its_gradient(slope):
    x = torch.randn(3, 4, 5, 7, requires_grad=True)
    slopes, direction = torch.tensor([slope, 0.1, 0.6, -1.0]), torch.randn(3, 4, 5, 7)
    node = helper.make_node("PRelu", ["x", "slopes"], ["y"])
    ours = _graph([node], slopes.reshape(4, 1, 1).numpy())(x)
    expected = torch.nn.functional.prelu(x, slopes)
    assert torch.allclose(ours, expected, atol=1e-6)
    gradients = [torch.autograd.grad(y, x, direction)[0] for y in (ours, expected)]
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("slope", [-0.5, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("used_twice", [False, True])
def test_a_maximum_with_a_multiple_is_one(slope, used_twice):
    """Up to slope 1 it is a PReLU and may be computed as one, above it is not."""
    nodes = [
        helper.make_node("Mul", ["x", "slopes"], ["scaled"]),
        helper.make_node("Max", ["x", "scaled"], ["y" if not used_twice else "larger"]),
    ]
    if used_twice:
        nodes.append(helper.make_node("Add", ["larger", "scaled"], ["y"]))
    x = torch.randn(2, 4, 5, 7)
    slopes = np.full((4, 1, 1), slope, np.float32)
    expected = torch.maximum(x, slope * x) + used_twice * slope * x
    assert torch.allclose(_graph(nodes, slopes)(x), expected, atol=1e-6)


def test_a_maximum_of_three_is_no_prelu():
    nodes = [
        helper.make_node("Mul", ["x", "slopes"], ["scaled"]),
        helper.make_node("Add", ["x", "slopes"], ["moved"]),
        helper.make_node("Max", ["x", "moved", "scaled"], ["y"]),
    ]
    x, slopes = torch.randn(2, 4, 5, 7), np.full((4, 1, 1), 0.5, np.float32)
    expected = torch.stack([x, x + 0.5, 0.5 * x]).amax(0)
    assert torch.allclose(_graph(nodes, slopes)(x), expected, atol=1e-6)


def _graph(nodes, slopes):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(slopes, "slopes")])
    return Surrogate(helper.make_model(graph).SerializeToString())


def test_white_box_wins_without_a_defence(received, surrogate):
    images, symbols = received
    settings = dataclasses.replace(whitebox.FAST, steps=80, lr=0.1)
    start = open_pictures("photos", "test").take(40, 180, 180).mean(axis=0)
    done = []
    answer = whitebox.invert(surrogate, symbols, start, 45, settings, advance=done.append)
    assert answer.shape == images.shape
    assert 0 <= answer.min() <= answer.max() <= 1
    assert sum(done) == 80 * 3
    assert psnr(images, answer).min() > 17
    assert ssim(images, answer).min() > 0.4


@pytest.fixture
def small(small_bundle, small_images):
    """The surrogate of the small link, five pictures, and their symbols as they were sent."""
    images = small_images(5)
    symbols = np.stack([frame.symbols for frame in Transmitter(small_bundle).send(images)])
    return Surrogate(open_bundle(small_bundle).graph("transmitter")), images, symbols


GREY = np.full((3, 32, 24), 0.5, np.float32)


def test_white_box_images_of_a_batch_do_not_influence_each_other(small):
    surrogate, _, symbols = small
    settings = dataclasses.replace(whitebox.FAST, steps=20)
    together = whitebox.invert(surrogate, symbols, GREY, 8, settings)
    apart = whitebox.invert(surrogate, symbols, GREY, 8, settings, batch=2)
    assert np.allclose(together, apart, atol=0.02)


@pytest.mark.parametrize(("settings", "first"), [(whitebox.FAST, GREY), (whitebox.PAPER, 0 * GREY)])
def test_the_white_box_starts_from_the_given_image_and_the_papers_from_zero(small, settings, first):
    surrogate, _, symbols = small
    answer = whitebox.invert(surrogate, symbols, GREY, 8, dataclasses.replace(settings, steps=0))
    assert np.array_equal(answer, np.broadcast_to(first, (5, 3, 32, 24)))


def test_the_papers_white_box_moves_at_most_its_step_size(small):
    surrogate, _, symbols = small
    answer = whitebox.invert(surrogate, symbols, GREY, 8, dataclasses.replace(whitebox.PAPER, steps=10))
    assert 0.005 < answer.max() < 0.011  # from zero, ten steps of 1e-3


def test_row_matching_puts_shuffled_rows_back(received, surrogate):
    """From a faded copy of the picture, which says what the rows look like."""
    image, symbols = received[0][:1], received[1][:1]
    rows = symbols.view(np.float32).reshape(1, 1, 45, 720)
    shuffled = np.random.default_rng(0).permutation(rows, axis=2)
    start = 0.4 + 0.2 * image[0]
    settings = dataclasses.replace(whitebox.FAST, steps=60, lr=0.1)
    answer = rowmatching.invert(surrogate, shuffled, start, settings)[:, 0]
    unmatched = whitebox.invert(surrogate, shuffled.reshape(1, -1).view(np.complex64), start, 45, settings)
    assert psnr(image, answer) > psnr(image, start[None]) + 3
    assert psnr(image, answer) > psnr(image, unmatched) + 3


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_smoothing_is_the_gradient_of_the_training_losss_total_variation(beta):
    """The two count the last row and column differently, unless these repeat the ones before."""
    from semseal.train.loss import total_variation

    # far apart: the two round the square root off differently near 0
    x = torch.randperm(2 * 3 * 9 * 7).float().reshape(2, 3, 9, 7).requires_grad_()
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    gradient = torch.zeros_like(padded)
    whitebox.add_smoothing(padded.detach(), gradient, 0.7, beta)
    (ours,) = torch.autograd.grad(padded, x, gradient)
    (expected,) = torch.autograd.grad(0.7 * total_variation(x, beta).sum(), x)
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_black_box_wins_without_a_defence_and_learns_from_what_it_received(received):
    images, symbols = received
    attacker = open_pictures("photos", "test").take(40, 180, 180, seed=1)
    sent = np.stack([frame.symbols for frame in Transmitter(SHIPPED).send(attacker)])
    network = blackbox.new_network(45, 45, 16, 180, 180, seed=0)
    before = psnr(images, blackbox.invert(network, symbols))
    blackbox.train_inverse(network, sent, attacker, steps=120, seed=0)
    answer = blackbox.invert(network, symbols)
    assert answer.shape == images.shape
    assert psnr(images, answer).mean() > before.mean() + 3
    assert psnr(images, answer).mean() > 17


def test_black_box_is_reproducible(small_bundle, small_images):
    symbols = np.stack([frame.symbols for frame in Transmitter(small_bundle).send(small_images(8))])
    answers = []
    for _ in range(2):
        network = blackbox.new_network(8, 6, 4, 32, 24, seed=3)
        blackbox.train_inverse(network, symbols, small_images(8), steps=10, seed=3)
        answers.append(blackbox.invert(network, symbols))
    assert np.array_equal(*answers)

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from semseal.runtime import channel
from semseal.runtime.attacks import blackbox, whitebox
from semseal.runtime.attacks.surrogate import Surrogate, UnsupportedGraphError
from semseal.runtime.bundle import open_bundle, packaged_bundle
from semseal.runtime.link import Transmitter
from semseal.runtime.metrics import psnr, ssim
from semseal.runtime.pictures import open_pictures

SHIPPED = packaged_bundle("photos-10db")


@pytest.fixture(scope="module")
def heard():
    """Three photographs and what Eve hears of them at 10 dB, without a defence."""
    images = open_pictures("photos", "valid").take(3, 180, 180)
    symbols = np.stack([frame.symbols for frame in Transmitter(SHIPPED).send(images)])
    return images, channel.awgn(symbols, channel.draw_noise(*symbols.shape, np.random.default_rng(0)), 10.0)


@pytest.fixture(scope="module")
def surrogate():
    return Surrogate(open_bundle(SHIPPED).graph("transmitter"))


def test_surrogate_is_the_engine(heard, surrogate):
    images = heard[0]
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


def test_an_unknown_operator_is_named():
    node = helper.make_node("Einsum", ["x", "x"], ["y"], equation="ij,ij->i")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    with pytest.raises(UnsupportedGraphError, match="Einsum"):
        Surrogate(onnx.ModelProto.SerializeToString(model))


def test_white_box_wins_without_a_defence(heard, surrogate):
    images, symbols = heard
    settings = dataclasses.replace(whitebox.FAST, steps=80, lr=0.1)
    done = []
    answer = whitebox.invert(surrogate, symbols, 180, 180, 45, settings, advance=done.append)
    assert answer.shape == images.shape
    assert 0 <= answer.min() <= answer.max() <= 1
    assert sum(done) == 80 * 3
    assert psnr(images, answer).min() > 17
    assert ssim(images, answer).min() > 0.4


def test_white_box_images_of_a_batch_do_not_influence_each_other(small_bundle, small_images):
    surrogate = Surrogate(open_bundle(small_bundle).graph("transmitter"))
    symbols = np.stack([frame.symbols for frame in Transmitter(small_bundle).send(small_images(5))])
    settings = dataclasses.replace(whitebox.FAST, steps=20)
    together = whitebox.invert(surrogate, symbols, 32, 24, 8, settings)
    apart = whitebox.invert(surrogate, symbols, 32, 24, 8, settings, batch=2)
    assert np.allclose(together, apart, atol=0.02)


def test_the_papers_white_box_moves_at_most_its_step_size(small_bundle, small_images):
    surrogate = Surrogate(open_bundle(small_bundle).graph("transmitter"))
    symbols = np.stack([frame.symbols for frame in Transmitter(small_bundle).send(small_images(1))])
    answer = whitebox.invert(surrogate, symbols, 32, 24, 8, dataclasses.replace(whitebox.PAPER, steps=10))
    assert 0.005 < answer.max() < 0.011  # from zero, ten steps of 1e-3


def test_total_variation_is_the_training_losss():
    from semseal.train.loss import total_variation

    x = torch.rand(2, 3, 9, 7)
    x[:, :, -1] = x[:, :, -2]
    x[:, :, :, -1] = x[:, :, :, -2]  # the two differ only in the last row and column
    inner = total_variation(x[:, :, :-1, :-1]).sum()
    assert whitebox.total_variation(x, 1.0).item() == pytest.approx(inner.item(), rel=1e-4)


def test_black_box_wins_without_a_defence_and_learns_from_what_it_heard(heard):
    images, symbols = heard
    own = open_pictures("photos", "test").take(40, 180, 180, seed=1)
    sent = np.stack([frame.symbols for frame in Transmitter(SHIPPED).send(own)])
    network = blackbox.new_network(45, 45, 16, 180, 180, seed=0)
    before = psnr(images, blackbox.invert(network, symbols))
    blackbox.train_inverse(network, sent, own, steps=120, seed=0)
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

"""The attacks' networks run on any device: nothing that is computed mixes what lies on two.

There is no second device on a machine without a GPU but ``meta``, where tensors have shapes and no numbers. PyTorch itself
checks few operations there, so ``OneDevice`` does.
"""

import numpy as np
import pytest
import torch
from graphs import F32, I64, apart, model, written
from semseal.runtime.attacks import learned, rowmatching
from semseal.runtime.attacks.accelerator import best_device
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.audit.operators import OPERATORS
from semseal.runtime.audit.surrogate import Surrogate
from semseal.runtime.bundle import open_bundle, packaged_bundle
from test_surrogate import CASES, name_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
COPIES = ("aten::_to_copy", "aten::copy_")


class OneDevice(TorchDispatchMode):
    """Fails where an operation takes tensors of two devices. A single number may lie on the processor, as CUDA takes it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in given if tensor.ndim or tensor.device.type != "cpu"}
        assert len(devices) < 2 or function.name().split(".")[0] in COPIES, f"{function} takes tensors of {devices}"
        return function(*args, **(kwargs or {}))


def forward_and_back(graph, *inputs):
    tensors = [torch.from_numpy(np.array(value)).to(META) for value in inputs]
    tensors[0].requires_grad_()
    with OneDevice():
        result = Surrogate(graph)(*tensors)
        assert result.device == META
        if result.requires_grad:
            torch.autograd.grad(result.sum(), tensors[0])


def test_the_check_itself_sees_two_devices():
    here, there = torch.ones(3, 3), torch.ones(3, 3, device=META)
    with OneDevice(), pytest.raises(AssertionError, match="takes tensors of"):
        there @ here


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_an_operator_runs_where_its_picture_is(case):
    operator, x, constants, attributes = case
    forward_and_back(model(operator, x, constants, **attributes), x)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name.startswith("Reduce")])
def test_a_reduction_runs_where_its_picture_is(name):
    x = np.abs(apart(2, 3, 4)) + F32(0.2)
    forward_and_back(model(name, x, (I64([1]),), opset=20, keepdims=1), x)


PADDED, SLICED = (I64([0, 0, 1, 2, 0, 0, 1, 2]),), (I64([5, 0]), I64([0, 4]), I64([2, 3]), I64([-2, 3]))
RESIZED = (None, F32([1, 1, 1.5, 2]))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding_runs_where_its_picture_is(mode):
    forward_and_back(model("Pad", apart(2, 3, 6, 4), PADDED, mode=mode), apart(2, 3, 6, 4))
    uneven = (I64([0, 1, 0, 0, 0, 0, 0, 1]),)
    forward_and_back(model("Pad", apart(2, 3, 6, 4), uneven, mode=mode), apart(2, 3, 6, 4))


def test_slices_with_steps_and_resized_pictures_stay_where_they_are():
    forward_and_back(model("Slice", apart(2, 3, 6, 4), SLICED), apart(2, 3, 6, 4))
    forward_and_back(model("Resize", apart(2, 3, 6, 4), RESIZED, mode="linear"), apart(2, 3, 6, 4))


def test_shapes_stay_on_the_processor_where_they_are_read_and_numbers_of_them_join_the_picture():
    graph = written(
        "zero = Constant <value_ints = [0]> () rest = Constant <value_ints = [-1]> () s = Shape(x) n = Gather(s, zero) "
        "to = Concat <axis = 0> (n, rest) flat = Reshape(x, to) size = Cast <to = 1> (n) y = Mul(flat, size)"
    )
    forward_and_back(graph, apart(2, 3, 8))


@pytest.mark.parametrize("name", ["edge", "edge-quality", "photos-10db"])
def test_the_packaged_transmitters_run_where_their_pictures_are(name):
    bundle = open_bundle(packaged_bundle(name))
    images = np.zeros((2, 3, bundle.height, bundle.width), np.float32)
    index = np.arange(2 * bundle.h, dtype=np.int32).reshape(2, -1)
    told = [np.full(2, 10, np.float32)] if bundle.has_scale else []
    for precision in ("fp32", "int8"):
        forward_and_back(bundle.graph("transmitter", precision), images, index, *told)


def test_what_an_attack_gives_is_an_array_on_the_processor():
    rng = np.random.default_rng(0)
    images = rng.random((4, 3, 8, 6), np.float32)
    rows = rng.standard_normal((4, 2, 4, 6)).astype(np.float32)
    network = learned.Inverse(2, 4, 3, 2, 8, 6, ordered=False)
    learned.train(network, lambda chosen, rng: rows[chosen[:, 0] % 4], images, steps=2, seed=0)
    assert next(network.parameters()).device.type == best_device().type
    assert isinstance(learned.invert(network, rows), np.ndarray)

    def transmitter(x, index):
        assert x.device.type == index.device.type == best_device().type
        return x.reshape(len(x), -1)[:, :24].reshape(len(x), -1, 2)

    found = rowmatching.invert(transmitter, rows, images[0], WhiteBoxSettings(steps=3, lr=0.1, annealed=True))
    assert isinstance(found, np.ndarray)
    assert found.shape == (4, 2, 3, 8, 6)

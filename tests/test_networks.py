"""Pairs as other projects publish them: packed, the bundle gives what ONNX Runtime gives for the files themselves."""

import numpy as np
import onnxruntime
import pytest
from networks import NETWORKS
from semseal.export.pack import pack
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import owner_key

KEY = bytes(range(32))
# largest difference to the files' own pictures, and the mean one; int8 rounds each of few and random weights
ALLOWED = {"fp32": (5e-4, 5e-5), "fp16": (0.01, 1e-3), "int8": (0.4, 0.04)}
OF_MIX = 0.15, 0.02  # its own: drawn pads change the power of so few symbols by some percent


@pytest.fixture(scope="module", params=NETWORKS)
def packed(request, tmp_path_factory):
    """The files, and their bundle."""
    folder = tmp_path_factory.mktemp("pair")
    files = NETWORKS[request.param]()
    paths = folder / "t.onnx", folder / "r.onnx"
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return files, pack(*paths, folder / "bundle", 10.0, ("fp16", "int8"), signing_key=owner_key())


def file_alone(data, inputs):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: one[None]})[0] for one in inputs])


def through_the_files(files, gain, images):
    """Without noise, at unit power in between."""
    features = file_alone(files[0], images)
    axes = tuple(range(1, features.ndim))
    power = 2 * np.square(features.astype(np.float64)).mean(axes, keepdims=True)
    return file_alone(files[1], (features / np.sqrt(power) * gain).astype(np.float32)).clip(0, 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_link_gives_what_the_files_give(packed, precision):
    files, bundle = packed
    images = open_pictures("photos", "test").take(3, bundle.height, bundle.width, seed=5)
    expected = through_the_files(files, bundle.manifest["packed"]["gain"], images)
    largest, mean = ALLOWED[precision]
    for engine in ("onnxruntime-cpu", "openvino"):
        for defense in ("none", "mix"):
            frames = Transmitter(bundle.path, KEY, defense, engine, precision).send(images)
            given = Receiver(bundle.path, KEY, engine, precision).receive(frames)
            difference = np.abs(given - expected)
            more = OF_MIX if defense == "mix" else (0, 0)
            assert difference.max() < largest + more[0], (engine, defense)
            assert difference.mean() < mean + more[1], (engine, defense)


def test_the_files_are_of_their_kind():
    import onnx

    def operators(data):
        return {node.op_type for node in onnx.load_model_from_string(data).graph.node}

    transformer = onnx.load_model_from_string(NETWORKS["vision transformer"]()[0]).graph
    constants = {t.name: list(t.dims) for t in transformer.initializer}
    constants |= {n.output[0]: list(n.attribute[0].t.dims) for n in transformer.node if n.op_type == "Constant"}
    scalars = [n for n in transformer.node if n.op_type == "Gather" and constants.get(n.input[1]) == []]
    assert len(scalars) >= 4  # q, k, v and the class token
    assert "InstanceNormalization" in operators(NETWORKS["u-net"]()[0])
    assert {"Pad", "Transpose"} <= operators(NETWORKS["keras"]()[0])
    half = onnx.load_model_from_string(NETWORKS["half"]()[0])
    with pytest.raises(onnx.checker.ValidationError, match="topologically sorted"):
        onnx.checker.check_model(half)

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from semseal.runtime.pictures import open_pictures
from semseal.train.config import ModelConfig
from semseal.train.edge import MAX_DB, MIN_DB, EdgeCodec, depth_to_space, space_to_depth, to_unit_power


def blocks_of(images):
    """[n, 3, 4h, 4w] to [n, h, w, 48]; a block's values row by row, then column by column, then colour by colour."""
    n, _, height, width = images.shape
    parts = images.reshape(n, 3, height // 4, 4, width // 4, 4).transpose(0, 2, 4, 3, 5, 1)
    return parts.reshape(n, height // 4, width // 4, 48)


def pictures_of(blocks):
    n, h, w, _ = blocks.shape
    return blocks.reshape(n, h, w, 4, 4, 3).transpose(0, 5, 1, 3, 2, 4).reshape(n, 3, 4 * h, 4 * w)


@pytest.fixture(scope="module")
def photographs():
    """Crops of library photographs that the codecs of this file start from."""
    return open_pictures("photos", "train").take(20, 32, 32, seed=3).astype(np.float64)


def codec(photographs, height=32, width=32, c=16, seed=0):
    torch.manual_seed(seed)
    model = EdgeCodec(ModelConfig(height=height, width=width, c=c, network="edge"))
    model.start_linear(blocks_of(photographs).reshape(-1, 48))
    return model.eval()


def disturb(model, seed=1):
    """Every weight moved, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.03 * torch.randn(weights.shape, generator=generator)
    return model


def linear_code(train, images, drawn, snr_db, c, like):
    """The block KLT with power lambda^-1/4, power 1, and the linear MMSE, in float64; ``like`` [c, 48] gives the signs only."""
    values = blocks_of(train).reshape(-1, 48)
    mean = values.mean(0)
    spectrum, vectors = np.linalg.eigh(np.cov(values.T, bias=True))
    spectrum, basis = spectrum[::-1][:c], vectors[:, ::-1][:, :c]
    basis = basis * np.sign(np.einsum("ck,kc->c", like, basis))
    features = (blocks_of(images) - mean) @ basis * spectrum**-0.25  # [n, h, w, c]
    scale = 1 / np.sqrt(2 * np.mean(features**2, axis=(1, 2, 3), keepdims=True))
    noise = 10 ** (-snr_db / 10) / 2  # in a real part
    received = scale * features + drawn.reshape(features.shape) * np.sqrt(noise)
    variance = np.sqrt(spectrum)  # of a feature
    estimate = received * scale * variance / (scale**2 * variance + noise)
    return pictures_of(mean + (estimate * spectrum**0.25) @ basis.T), scale.reshape(-1)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
@pytest.mark.parametrize(("height", "width", "c"), [(32, 32, 16), (16, 24, 8), (4, 4, 2), (32, 32, 48)])
def test_step_zero_is_the_linear_code(photographs, height, width, c, snr_db):
    model = codec(photographs, height, width, c)
    images = open_pictures("photos", "valid").take(3, height, width)
    drawn = np.random.default_rng(5).standard_normal((3, height // 4, width // 4 * c))
    expected, scale = linear_code(
        photographs, images.astype(np.float64), drawn, snr_db, c, model.encoder.linear.weight.detach().numpy()[:, :, 0, 0]
    )
    told, noise = torch.full((3,), snr_db), torch.full((3,), 10 ** (-snr_db / 10))
    with torch.no_grad():
        _, found = to_unit_power(model.encode_rows(torch.from_numpy(images), told))
        answer = model(torch.from_numpy(images), told, noise, torch.from_numpy(drawn).float())
    assert found.numpy() == pytest.approx(scale, rel=1e-3)
    assert np.abs(answer.numpy() - expected).max() < 2e-3
    error, best = ((x - images) ** 2 for x in (answer.numpy(), expected))
    assert error.mean() <= best.mean() * 1.0001


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_the_network_adds_in_units_of_what_the_linear_code_errs_by(photographs, snr_db):
    model = codec(photographs)
    images = torch.from_numpy(photographs).float()  # those whose statistics it knows
    told = torch.full((len(images),), snr_db)
    drawn = torch.randn(len(images), 8, 8 * 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scale = torch.full((len(images),), float(to_unit_power(model.encode_rows(images, told))[1].mean()))  # one error for all
        noise = 10 ** (-told / 10)
        features = model.encode_rows(images, told)
        received = features * scale[0] + drawn * (noise[0] / 2).sqrt()
        linear = model.decode_rows(received, torch.stack([scale, noise, told], dim=1))
        model.decoder.last.bias.fill_(1)
        unit = model.decode_rows(received, torch.stack([scale, noise, told], dim=1)) - linear
    errors = blocks_of((linear - images).numpy()).reshape(-1, 48)
    expected = blocks_of(unit.numpy()).reshape(-1, 48)
    assert np.sqrt(np.square(errors).mean(0)) == pytest.approx(expected.mean(0), rel=0.1)


def through(operator, array, **attributes):
    node = helper.make_node(operator, ["x"], ["y"], blocksize=4, **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("x", "y")]
    graph = helper.make_graph([node], "one", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": array})[0]


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 3, 16, 24), (3, 3, 20, 4)])
def test_space_to_depth_is_that_of_onnx_and_has_an_inverse(shape):
    images = np.random.default_rng(0).random(shape, np.float32)
    depth = space_to_depth(torch.from_numpy(images))
    assert np.array_equal(depth.numpy(), through("SpaceToDepth", images))
    assert np.array_equal(depth.permute(0, 2, 3, 1).numpy(), blocks_of(images))
    assert np.array_equal(depth_to_space(depth).numpy(), images)
    assert np.array_equal(through("DepthToSpace", depth.contiguous().numpy(), mode="DCR"), images)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 36), (20, 12), (32, 24)])
def test_any_multiple_of_four_goes_through_with_power_one(photographs, height, width):
    model = disturb(codec(photographs, height, width))
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    told = torch.tensor([0.0, 20.0])
    with torch.no_grad():
        rows, scale = to_unit_power(model.encode_rows(images, told))
        assert rows.shape == (2, height // 4, width // 4 * 16)
        assert (2 * rows.double().square().mean(dim=(1, 2))).numpy() == pytest.approx(1, abs=1e-6)
        side = torch.stack([scale, 10 ** (-told / 10), told], dim=1)
        assert model.decode_rows(rows, side).shape == images.shape
        symbols = model.encode(images, told)
        assert symbols.shape == (2, height * width // 2, 2)
        shown = model.decode(symbols * scale[:, None, None], side)
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_one_codec_serves_every_size(photographs):
    """A picture beyond the reach of the convolutions changes nothing: large pictures need no tiles."""
    model = disturb(codec(photographs))
    wide = torch.rand(1, 3, 16, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = model.encode_rows(wide, torch.tensor([10.0]))
        left = model.encode_rows(wide[..., :96], torch.tensor([10.0]))
    assert torch.allclose(rows[..., : 16 * 16], left[..., : 16 * 16], atol=1e-5)


def test_bob_undoes_scale_and_gains(photographs):
    model = codec(photographs, c=48)  # all coefficients, so nothing but the channel can lose anything
    with torch.no_grad():
        model.gains.slope.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.5)
        model.gains.bend.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.2)
        images = torch.from_numpy(open_pictures("photos", "valid").take(3, 32, 32))
        told = torch.tensor([-3.0, 10.0, 24.0])
        rows, scale = to_unit_power(model.encode_rows(images, told))
        features = rows.unflatten(2, (-1, 48)).permute(0, 3, 1, 2)
        known = ((told - 10) / 10).reshape(-1, 1, 1, 1)
        nothing = torch.full((3, 1, 1, 1), -60.0)  # ln of the noise's power
        answer = model.decoder(features, scale.reshape(-1, 1, 1, 1), nothing, known, model.gains(known))
    assert torch.allclose(answer, images, atol=1e-4)


def test_what_is_told_beyond_the_range_counts_as_its_end(photographs):
    model = disturb(codec(photographs))
    images = torch.from_numpy(open_pictures("photos", "valid").take(2, 32, 32))
    with torch.no_grad():
        for beyond, end in ((80.0, MAX_DB), (-80.0, MIN_DB)):
            far, near = (torch.full((2,), db) for db in (beyond, end))
            assert torch.equal(model.encode_rows(images, far), model.encode_rows(images, near))
            rows, scale = to_unit_power(model.encode_rows(images, near))
            one, two = (torch.stack([scale, 10 ** (-db / 10), db], dim=1) for db in (far, near))
            assert torch.allclose(model.decode_rows(rows, one), model.decode_rows(rows, two), atol=1e-6)
        assert not torch.equal(
            model.encode_rows(images, torch.full((2,), 0.0)), model.encode_rows(images, torch.full((2,), 20.0))
        )


@pytest.mark.parametrize("snr_db", [-80.0, 10.0, 80.0])
def test_black_white_and_flat_pictures_are_finite(photographs, snr_db):
    mean = photographs.mean(axis=(0, 2, 3))
    flat = [np.zeros(3), np.ones(3), np.full(3, 0.5), mean]
    images = torch.from_numpy(np.stack(flat)).float()[:, :, None, None].expand(-1, -1, 32, 32)
    block = torch.from_numpy(blocks_of(photographs).reshape(-1, 48).mean(0)).float()  # no feature at all
    images = torch.cat([images, depth_to_space(block[None, :, None, None].expand(1, 48, 8, 8))])
    for model in (codec(photographs), disturb(codec(photographs))):
        told = torch.full((5,), snr_db)
        drawn = torch.randn(5, 8, 8 * 16, generator=torch.Generator().manual_seed(0))
        answer = model(images, told, 10 ** (-told / 10), drawn)
        answer.square().mean().backward()
        assert answer.isfinite().all()
        assert all(weights.grad.isfinite().all() for weights in model.parameters())


def test_more_blocks_at_bob_start_as_good_as_the_run_they_come_from(photographs):
    small = disturb(codec(photographs))
    torch.manual_seed(9)
    large = EdgeCodec(ModelConfig(height=32, width=32, network="edge", receiver_blocks=4))
    large.load_state_dict({**large.state_dict(), **large.fitting(small.state_dict())})
    images = torch.from_numpy(open_pictures("photos", "valid").take(2, 32, 32))
    told = torch.tensor([0.0, 20.0])
    drawn = torch.randn(2, 8, 8 * 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (model(images, told, 10 ** (-told / 10), drawn) for model in (small, large))
    assert torch.equal(one, two)


@pytest.mark.parametrize("c", [8, 24, 16])
def test_what_does_not_fit_starts_at_the_linear_code(photographs, c):
    large = disturb(EdgeCodec(ModelConfig(height=32, width=32, network="edge", receiver_blocks=2)))
    model, fresh = codec(photographs, c=c), codec(photographs, c=c)
    model.load_state_dict({**model.state_dict(), **model.fitting(large.state_dict())})
    side = torch.tensor([[1.0, 0.1, 10.0]])
    rows = torch.randn(1, 8, 8 * c, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if c != 16:
            assert torch.equal(model.decode_rows(rows, side), fresh.decode_rows(rows, side))
    assert not model.decoder.last.weight.any()  # it had two blocks before it, and now has one
    assert torch.equal(model.encoder.first.weight, large.encoder.first.weight)


@pytest.mark.parametrize("blocks", [1, 4])
def test_int8_begins_with_the_same_answers_in_nearer_ranges(photographs, blocks):
    torch.manual_seed(0)
    model = EdgeCodec(ModelConfig(height=32, width=32, network="edge", receiver_blocks=blocks, int8=True))
    model.start_linear(blocks_of(photographs).reshape(-1, 48))
    with torch.no_grad():
        for name, weights in model.decoder.named_parameters():
            if "log_step" not in name and "weight" in name:
                weights.mul_(torch.logspace(-1, 1, len(weights))[torch.randperm(len(weights))].reshape(-1, 1, 1, 1))
        model.decoder.last.weight.normal_(0, 0.01)
    images = torch.from_numpy(photographs[:8]).float()
    told = torch.linspace(0, 20, 8)
    given = (images, told, 10 ** (-told / 10), torch.randn(8, 8, 8 * 16, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        before, apart = model.eval()(*given), model._largest(given)
        model.train().set_int8_steps(images, given[2], given[3])
        assert model.training  # or the rounding would not be trained with
        after, nearer = model.eval()(*given), model._largest(given)
        rounded = model.train()(*given)
    assert torch.allclose(before, after, atol=1e-4)
    assert nearer["first"].max() < 1.01 * nearer["first"].min()
    assert (nearer["last"].max() / nearer["last"].median()) < (apart["last"].max() / apart["last"].median())
    for name, (step, _) in model.int8_steps().items():
        assert step == pytest.approx(float(nearer[name.removeprefix("decoder.").removesuffix(".weight")].max() / 127), rel=1e-4)
    assert 0 < (rounded - after).square().mean().sqrt() < 0.2 * after.std()

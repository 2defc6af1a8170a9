import pytest
import torch
from semseal.train.config import ModelConfig
from semseal.train.loss import psnr, reconstruction_loss, total_variation
from semseal.train.model import DeepJSCC, normalize_power


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DeepJSCC(ModelConfig(height=20, width=28, c=6)).eval()


def test_the_papers_sizes():
    config = ModelConfig()
    assert (config.h, config.w, config.n_symbols) == (45, 45, 16200)
    assert config.bandwidth_ratio == pytest.approx(1 / 6)
    shapes = [tuple(m.weight.shape) for m in DeepJSCC(config).modules() if isinstance(m, torch.nn.Conv2d)]
    assert shapes == [(16, 3, 5, 5), (32, 16, 5, 5), (32, 32, 5, 5), (32, 32, 5, 5), (16, 32, 5, 5)]


@pytest.mark.parametrize("bad", [{"height": 30}, {"width": 0}, {"c": 3}, {"c": 0}])
def test_shapes_that_do_not_fit_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        ModelConfig(**bad)


@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_power_and_range(model, batch):
    x = torch.rand(batch, 3, 20, 28)
    symbols = model.encode(x)
    assert symbols.shape == (batch, 5 * 7 * 3, 2)
    assert symbols.square().sum(-1).mean(-1).tolist() == pytest.approx([1.0] * batch, abs=1e-6)
    out = model.decode(symbols)
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= 1


def test_symbol_order_is_row_by_row_with_the_channel_fastest(model):
    x = torch.rand(2, 3, 20, 28)
    features = model.channel_encoder(model.semantic_encoder(x))  # [batch, c, h, w]
    symbols = model.encode(x)
    scale = symbols[1, 0, 0] / features[1, 0, 0, 0]
    row, column, c = 3, 2, 6
    start = (row * 7 + column) * c // 2
    expected = features[1, :, row, column] * scale
    assert torch.allclose(symbols[1, start : start + c // 2].flatten(), expected, atol=1e-6)
    assert torch.allclose(model.encode_rows(x)[1, row].reshape(7, 6)[column], expected, atol=1e-6)


def test_power_of_a_zero_image_is_finite():
    assert torch.equal(normalize_power(torch.zeros(1, 2, 4)), torch.zeros(1, 2, 4))


def test_total_variation_known_answer():
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 1, 1] = 3.0  # (0,1) sees 3 below, (1,0) sees 3 to the right, (1,1) sees -3 both ways
    assert total_variation(x, 1.0).item() == pytest.approx(3 + 3 + 18**0.5, abs=1e-4)
    assert total_variation(x, 2.0).item() == pytest.approx(9 + 9 + 18, abs=1e-4)


def test_total_variation_of_a_flat_picture_has_a_finite_gradient():
    x = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    total_variation(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0])
def test_lambda_is_in_the_papers_unit(beta):
    x, x_hat = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    loss, mse = reconstruction_loss(x, x_hat, lam=0.7, beta=beta)
    in_255 = (255 * x - 255 * x_hat).square().sum(dim=(1, 2, 3)) + 0.7 * total_variation(255 * x_hat, beta)
    assert loss.item() == pytest.approx(in_255.mean().item() / 255**2 / (3 * 8 * 8), rel=1e-5)
    assert mse.item() == pytest.approx((x - x_hat).square().mean().item())


def test_psnr():
    assert psnr(torch.tensor(0.01)).item() == pytest.approx(20.0)

"""The training loss, Eq. (2) and (3) of the paper."""

import torch
from torch import Tensor


def total_variation(x: Tensor, beta: float = 1.0) -> Tensor:
    """Eq. (3): the sum over pixels (i, j) and colours of (dy² + dx²)^(beta/2), for each image [batch].

    A pixel without a lower or right neighbour has difference 0 there. The 1e-12 keeps the gradient finite on flat areas.
    """
    dy = x.diff(dim=2, append=x[:, :, -1:])
    dx = x.diff(dim=3, append=x[:, :, :, -1:])
    return (dy.square() + dx.square() + 1e-12).pow(beta / 2).sum(dim=(1, 2, 3))


def reconstruction_loss(x: Tensor, x_hat: Tensor, lam: float, beta: float) -> tuple[Tensor, Tensor]:
    """The loss that the link is trained on, Eq. (2): ||x - x̂||² + lambda T(x̂), with T of Eq. (3); and the mean square error.

    Images are in 0..1 here, lambda (``lam``) is in the paper's unit, for pixels in 0..255. Its loss equals
    255² (||x - x̂||² + lambda 255^(beta-2) T(x̂)) of images in 0..1. The common factor 255² is left out and both terms are
    divided by the 3 height width values of an image, so that the gradient's norm does not depend on the image size.
    """
    mse = (x - x_hat).square().mean()
    tv = total_variation(x_hat, beta).mean() / x[0].numel()
    return mse + lam * 255 ** (beta - 2) * tv, mse


def log_loss(x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over images of ln(mean square error + 1e-5), and the mean square error.

    A dB is worth the same at every SNR, so that images sent with much noise do not drown the others; 1e-5 is 50 dB.
    """
    errors = (x - x_hat).square().mean(dim=(1, 2, 3))
    return (errors + 1e-5).log().mean(), errors.mean()


def psnr(mse: Tensor) -> Tensor:
    """PSNR in dB of a mean square error of values in 0..1."""
    return -10 * torch.log10(mse)

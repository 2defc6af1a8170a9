"""How good pictures are: PSNR, SSIM, MS-SSIM of each."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_msssim import ms_ssim
from semseal.runtime import metrics

MS_SSIM_SIDE = 161  # pixels; less is too small for its five scales

Images = NDArray[np.float32]  # [n, 3, height, width] in 0..1


@dataclass(frozen=True)
class Scores:
    """Of each picture; [n]. ``ms_ssim`` is NaN where the pictures are too small for it."""

    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    ms_ssim: NDArray[np.float64]


def score(images: Images, answers: Images) -> Scores:
    """How good ``answers`` are."""
    if min(images.shape[2:]) < MS_SSIM_SIDE:
        scales = np.full(len(images), np.nan)
    else:
        pairs = zip(np.array_split(images, len(images)), np.array_split(answers, len(images)), strict=True)
        found = [ms_ssim(torch.from_numpy(a), torch.from_numpy(b), data_range=1.0, size_average=False) for a, b in pairs]
        scales = torch.cat(found).double().numpy()
    return Scores(metrics.psnr(images, answers), metrics.ssim(images, answers), scales)

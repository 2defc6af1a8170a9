"""Where the attacks' networks run: on a GPU where PyTorch can use one, else on the processor."""

import torch


def best_device() -> torch.device:
    """The first GPU that PyTorch can use, else the processor. ``CUDA_VISIBLE_DEVICES=`` keeps a run on the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

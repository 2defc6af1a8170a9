"""Where the attacks' networks run: on a GPU where PyTorch can use one, else on the processor."""

import torch


def best_device() -> torch.device:
    """The first GPU that PyTorch can use, else the processor. ``CUDA_VISIBLE_DEVICES=`` keeps a run on the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pictures_at_once() -> int:
    """How many pictures a search takes together: a GPU is idle with few."""
    return 16 if best_device().type == "cpu" else 100

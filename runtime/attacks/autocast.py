"""The precision in which the attacks' networks run: bf16 where the device has instructions for it, else float32."""

import torch
from semseal.runtime.attacks.accelerator import best_device


def bf16_where_native() -> torch.autocast:
    """A context in which layers run in bf16 if that is faster on ``best_device``. Their results may come out in bf16."""
    if best_device().type == "cuda":
        return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_bf16_supported(including_emulation=False))
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=native)

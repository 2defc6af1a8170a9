"""The arithmetic of the attacks' networks: bf16 where the processor multiplies it natively, float32 elsewhere."""

import torch


def fast_convolutions() -> torch.autocast:
    """A context in which layers run in bf16 if that is faster here; what enters and leaves stays float32 by the caller."""
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=native)

"""The precision in which the attacks' networks run: bf16 where the processor has native instructions for it, else float32."""

import torch


def bf16_where_native() -> torch.autocast:
    """A context in which layers run in bf16 if that is faster on this processor. Their results may come out in bf16."""
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=native)

"""For on_gpu.py, in a process of its own: the paper's network in torch on this GPU, one line of JSON for each measurement.

    device     microseconds between events: eager, in a CUDA graph, torch.compile in a CUDA graph
    request    wall time of one picture, bytes in pinned memory to symbols in pinned memory and the copies that a caller makes

The weights are random: they change no time.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from semseal.train.config import ModelConfig
from semseal.train.model import DeepJSCC


class Encode(torch.nn.Module):
    """Bytes [batch, height, width, 3] to symbols."""

    def __init__(self, model: DeepJSCC, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() / 255).to(self.dtype, memory_format=torch.channels_last)
        return self.model.encode(images).float()


class Decode(torch.nn.Module):
    """Symbols to bytes."""

    def __init__(self, model: DeepJSCC, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        images = self.model.decode(symbols.to(self.dtype)).float()
        return (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def graphed(run: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(5):
            run(given)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = run(given)
    return graph, answer


def device_us(work: Callable[[], Any], rounds: int = 60) -> float:
    taken = []
    for round_ in range(rounds + 10):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        if round_ >= 10:
            taken.append(start.elapsed_time(end) * 1e3)
    return float(np.median(taken))


def request_us(graph: torch.cuda.CUDAGraph, given: torch.Tensor, answer: torch.Tensor, data: np.ndarray) -> float:
    """NumPy array to NumPy array, with the same copies as an engine makes."""
    there, back = torch.empty_like(given, device="cpu").pin_memory(), torch.empty_like(answer, device="cpu").pin_memory()
    from_host, to_host, taken = there.numpy(), back.numpy(), []
    for round_ in range(1050):
        start = time.perf_counter()
        np.copyto(from_host, data)
        given.copy_(there, non_blocking=True)
        graph.replay()
        back.copy_(answer, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        to_host.copy()
        if round_ >= 50:
            taken.append(time.perf_counter() - start)
    return float(np.median(taken)) * 1e6


def main() -> None:
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rng = np.random.default_rng(0)
    for dtype, batch, side in [
        (d, b, s) for b in (1, 64) for d in (torch.float32, torch.float16) for s in ("transmitter", "receiver")
    ]:
        model = (
            DeepJSCC(ModelConfig(180, 180, 16)).eval().requires_grad_(False).cuda().to(dtype, memory_format=torch.channels_last)
        )
        module = (Encode if side == "transmitter" else Decode)(model, dtype)
        pixels = rng.integers(0, 255, (batch, 180, 180, 3), np.uint8)
        symbols = rng.standard_normal((batch, 16200, 2), np.float32)
        data = pixels if side == "transmitter" else symbols
        given = torch.from_numpy(data).cuda()
        row = {"side": side, "dtype": str(dtype), "batch": batch, "torch": torch.__version__}
        with torch.no_grad():
            eager = device_us(lambda module=module, given=given: module(given))
            graph, answer = graphed(module, given)
            row |= {"eager_us": eager, "graph_us": device_us(graph.replay)}
            if batch == 1:
                row["graph_request_us"] = request_us(graph, given, answer, data)
            print(json.dumps(row), flush=True)
            try:
                began = time.perf_counter()
                quick = torch.compile(module)
                graph, answer = graphed(quick, given)
                row |= {"compile_s": time.perf_counter() - began, "compiled_graph_us": device_us(graph.replay)}
                if batch == 1:
                    row["compiled_request_us"] = request_us(graph, given, answer, data)
            except Exception as error:  # of the compiler, whatever its kind
                row["reason"] = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps({**row, "final": True}), flush=True)


if __name__ == "__main__":
    main()

"""What NVRTC makes of a CUDA source before ptxas does; cuda.core asks a driver before it gives PTX, NVRTC itself does not."""

from collections.abc import Sequence

from cuda.bindings import nvrtc


def entries_of(source: str, macros: Sequence[tuple[str, str]], arch: str) -> dict[str, str]:
    """The PTX of each kernel."""
    options = [f"--gpu-architecture=compute_{arch.removeprefix('sm_')}", "--std=c++17"]
    options += [f"-D{name}={value}" for name, value in macros]
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = b" " * size
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    return {part.split("(")[0].strip(): part for part in ptx.decode().split(".entry ")[1:]}

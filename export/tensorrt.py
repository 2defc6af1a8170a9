"""A graph -> a TensorRT plan, by the API that TensorRT 10, TensorRT 11 and TensorRT-RTX share.

tensorrt        plans for the GPU it builds on, one TensorRT version, one operating system and processor
tensorrt-rtx    plans for the GPUs named in ``capabilities``, also on a machine without a GPU; compilation is completed where
                they are loaded

Networks are strongly typed: the precision of a layer is that of its tensors in the graph (casts for FP16, Q/DQ for INT8), and
there is no flag that changes it. TF32 is switched off, so that a plan of a float32 graph computes in float32.

The scheme index stays an input; ``semseal.export.cut`` takes it off for a kernel that does its work outside the plan.

A plan is executable code: load only one whose digest is in a manifest that you trust.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from semseal.runtime.bundle import Bundle, check_free, write_bundle
from semseal.runtime.errors import EngineError
from semseal.runtime.gpu.engines import TENSORRT, deserialize, refuse_unserved_gpu, rtx_capabilities, tensorrt_library
from semseal.runtime.pixels import with_pixels

SIDES = ("transmitter", "receiver", "transmitter-mix", "receiver-mix")
WORKSPACE_BYTES = 2**30  # scratch memory that a plan may ask for; a Jetson's GPU shares it with the CPU


def build_plan(
    engine: str, graph: bytes, batch: tuple[int, int, int] = (1, 1, 64), capabilities: Sequence[int] | None = None
) -> bytes:
    """The plan of an ONNX graph whose dynamic axes are named ``batch`` and ``frames``.

    ``batch`` is the smallest, the optimal and the largest number of images; ``frames`` goes up to twice the largest, because a
    partner's frame is gathered from without being decoded. ``capabilities`` (tensorrt-rtx only) are compute capabilities,
    86 for 8.6; None: the GPU of this machine. Raises EngineError: package missing, a GPU that the engine does not run on, graph
    refused (with the node), build failed.
    """
    _check_options(engine, batch, capabilities)
    trt, logger, builder, network, _parser = _parse(engine, graph)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # otherwise the inspector lists no layers
    config.clear_flag(trt.BuilderFlag.TF32)
    if engine == "tensorrt-rtx":
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # otherwise it cannot be captured in a CUDA graph
        _target(trt, config, capabilities)

    config.add_optimization_profile(profile(builder, network, batch))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failed_build(engine, trt, _logged_errors(logger), capabilities)
    return bytes(plan)


def _failed_build(engine: str, trt: Any, errors: str, capabilities: Sequence[int] | None) -> EngineError:
    hint = "semseal doctor tells what works on this machine"
    if "FP32 GEMM is not supported" in errors:  # on compute capability 7.5
        hint = (
            "leave 75 out: TensorRT-RTX multiplies no float32 matrices there, as mix does; use onnxruntime-cuda on such a GPU"
        )
    elif engine == "tensorrt-rtx" and capabilities is None:
        hint = "pass capabilities, such as (86, 89, 120); the program: --capability 86 --capability 89"
    return EngineError(f"{engine} {trt.__version__} cannot build the graph here: {errors or 'it gave no reason'}", hint)


def _check_options(engine: str, batch: tuple[int, int, int], capabilities: Sequence[int] | None) -> None:
    """Raises EngineError for options that do not go together."""
    smallest, optimal, largest = batch
    if not 1 <= smallest <= optimal <= largest:
        raise EngineError(f"batch must be 1 <= smallest <= optimal <= largest, got {batch}", "the default is 1, 1, 64")
    if engine == "tensorrt" and capabilities is not None:
        raise EngineError(
            f"tensorrt builds for the GPU of this machine, not for capabilities {list(capabilities)}",
            "leave capabilities out, or use tensorrt-rtx",
        )
    if engine != "tensorrt-rtx":
        return
    trt, _ = tensorrt_library(engine)
    if capabilities is None:
        refuse_unserved_gpu(trt)
        return
    served = rtx_capabilities(trt)
    missing = [capability for capability in capabilities if capability not in served]
    if missing or not capabilities:
        raise EngineError(
            f"tensorrt-rtx {trt.__version__} builds nothing for compute capability {missing[0] if missing else 'none'}",
            f"choose among {', '.join(map(str, served))}; on other NVIDIA GPUs use the engine onnxruntime-cuda",
        )


def profile(builder: Any, network: Any, batch: tuple[int, int, int]) -> Any:
    """The optimisation profile: the smallest, optimal and largest shape of every input. Raises EngineError."""
    smallest, optimal, largest = batch
    sizes = {"batch": batch, "frames": (smallest, optimal, 2 * largest)}
    made = builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        shape = [tensor.get_dimension_name(axis) if size < 0 else size for axis, size in enumerate(tensor.shape)]
        unknown = [axis for axis in shape if not isinstance(axis, int) and axis not in sizes]
        if unknown:
            raise EngineError(
                f"input {tensor.name} has the dynamic axis {unknown[0]!r}", "fix its size: only batch and frames may vary"
            )
        made.set_shape(tensor.name, *([sizes[axis][k] if axis in sizes else axis for axis in shape] for k in range(3)))
    return made


def add_plans(
    bundle: Bundle,
    out: Path,
    engine: str,
    signing_key: Ed25519PrivateKey | None,
    batch: tuple[int, int, int] = (1, 1, 64),
    capabilities: Sequence[int] | None = None,
    force: bool = False,
    tell: Callable[[str, int], None] | None = None,
) -> Bundle:
    """A copy of a bundle with the plans of all its graphs, as ``plan_files`` makes them, signed by ``signing_key``.

    For a device whose plans cannot be built elsewhere. Neither torch nor ONNX is needed. ``force`` replaces a bundle at
    ``out``, whole. Raises EngineError as ``build_plan`` and BundleError as ``write_bundle``; nothing is written then.
    """
    check_free(out, force)  # before the minutes that the rest may take
    files = {name: bundle.read(name) for name in bundle.manifest["files"]}
    graphs = {(side, name): bundle.graph(side, name) for name in bundle.manifest["precisions"] for side in SIDES}
    engines = [*dict.fromkeys([*bundle.manifest.get("engines", []), engine])]
    files |= plan_files(engine, graphs, batch, capabilities, tell)
    return write_bundle(out, files, {**bundle.manifest, "engines": engines}, signing_key, force=force)


def plan_files(
    engine: str,
    graphs: Mapping[tuple[str, str], bytes],
    batch: tuple[int, int, int] = (1, 1, 64),
    capabilities: Sequence[int] | None = None,
    tell: Callable[[str, int], None] | None = None,
) -> dict[str, bytes]:
    """Plans and their reports for graphs by (side, precision): a bundle's files by name.

    Two plans of each graph: as it is, and with pictures as bytes (``SIDE-pixels``). ``tell`` is called with the name and the
    size of each plan once it is built. Raises EngineError.
    """
    files = {}
    for (side, precision), graph in graphs.items():
        for kind, program in ((side, graph), (f"{side}-pixels", with_pixels(graph))):
            plan = build_plan(engine, program, batch, capabilities)
            name = f"engines/{kind}.{precision}.{engine}.engine"
            files[name], files[f"{name}.json"] = plan, json.dumps(layer_report(engine, plan, program), indent=1).encode()
            if tell is not None:
                tell(name, len(plan))
    return files


def layer_report(engine: str, plan: bytes, graph: bytes) -> dict[str, Any]:
    """What is in the plan of ``graph``, for the JSON file beside it.

    ``inputs`` and ``outputs`` with name, dtype and shape (axes that vary by their name), ``bytes``, ``layers`` of the network
    that the plan was built from, and ``inspector``: what TensorRT made of them, read from the loaded plan. Loading needs a GPU;
    without one ``inspector`` is null and ``inspector_reason`` says why. Raises EngineError as ``build_plan``.
    """
    trt, _logger, _builder, network, _parser = _parse(engine, graph)
    inspector, reason = None, None
    try:
        loaded = deserialize(engine, plan)
        inspector = json.loads(loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    except EngineError as error:
        reason = f"the inspector needs a GPU that the plan was built for: {error.message}"
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return {
        "engine": engine,
        "version": trt.__version__,
        "bytes": len(plan),
        "inputs": [_tensor(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "layers": [
            {
                "name": layer.name,
                "type": layer.type.name.lower(),
                "precision": _dtype(layer.get_output(0)),
                "outputs": [_tensor(layer.get_output(k)) for k in range(layer.num_outputs)],
            }
            for layer in layers
        ],
        "inspector": inspector,
        "inspector_reason": reason,
    }


def _parse(engine: str, graph: bytes) -> tuple[Any, Any, Any, Any, Any]:
    """The module, its logger, builder, network and parser (which owns the network's weights)."""
    if engine not in TENSORRT:
        raise EngineError(f"{engine!r} builds no plans", f"plans are built by {' or '.join(TENSORRT)}")
    trt, logger = tensorrt_library(engine)
    logger.errors.clear()
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # TensorRT's builder looks for a GPU; the binding raises what it likes
        raise EngineError(
            f"{engine} {trt.__version__} cannot start its builder: {_logged_errors(logger) or error}",
            "build on a machine with an NVIDIA GPU",
        ) from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        reasons = "; ".join(_reason(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(
            f"{engine} {trt.__version__} refuses the graph: {reasons or 'it is no ONNX model'}",
            "use operators that TensorRT has, or another engine",
        )
    return trt, logger, builder, network, parser


def _logged_errors(logger: Any) -> str:
    """The errors since the last parse, without those that only say that there is no GPU to ask for its memory."""
    return "; ".join(error for error in dict.fromkeys(logger.errors) if not error.startswith("[checkMacros"))


def _reason(error: Any) -> str:
    """One error of the ONNX parser, with the node."""
    text, *_ = " ".join(error.desc().split()).split(" [checkMacros")  # the rest is about a GPU, which parsing does not need
    reason = "TensorRT has no such operator" if text == "false" else text
    return f"node {error.node_name()} ({error.node_operator()}): {reason}" if error.node_operator() else reason


def _target(trt: Any, config: Any, capabilities: Sequence[int] | None) -> None:
    names = ["CURRENT"] if capabilities is None else [f"SM{capability}" for capability in dict.fromkeys(capabilities)]
    config.num_compute_capabilities = len(names)
    for i, name in enumerate(names):
        config.set_compute_capability(trt.ComputeCapability.__members__[name], i)


def _tensor(tensor: Any) -> dict[str, Any]:
    """Name, dtype and shape; an axis that varies is its name, or -1 inside the network, where it has none."""
    shape = [(tensor.get_dimension_name(axis) or -1) if size < 0 else size for axis, size in enumerate(tensor.shape)]
    return {"name": tensor.name, "dtype": _dtype(tensor), "shape": shape}


def _dtype(tensor: Any) -> str:
    """The name that NumPy uses: float32, float16, int8."""
    name: str = tensor.dtype.name.lower()
    return {"float": "float32", "half": "float16"}.get(name, name)

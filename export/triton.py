"""A bundle -> a model repository for NVIDIA's Triton Inference Server: the two graphs of a link, one model each.

    DIR/NAME-transmitter-mix-fp32/config.pbtxt       tensors, batching, where it runs; the digest of the model of each version
                                  1/model.onnx       or model.plan
    DIR/NAME-receiver-mix-fp32/...

Keys stay inputs: whoever asks derives them (docs/wire.md) and sends them with the picture, so the server and the way to it see
both. What the host does in a link, setting the power in double precision and sealing the header, the client does here.

Triton's dynamic batcher joins requests of different clients into one run, and the index of a graph counts the rows of all
images of a run. So the graphs that are served count the rows of each image for itself, and whatever a client sends as an index,
it gets rows of its own images only. Plans are served as they are: they take one request at a time, whose images they number.

The rules of a repository are those of Triton's model_repository.md and model_configuration.md. ``benchmarks/on_triton.py`` asks
a server and compares what it answers with the link.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.bundle import Bundle
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.errors import BundleError, GraphError
from semseal.runtime.files import check_writable, named, write_atomically
from semseal.runtime.onnxwrite import FLOAT, INT8, INT32, INT64, UINT8, Node, axes_of, integer, kind_of, take_apart, tensor
from semseal.runtime.pixels import with_pixels

MAX_BATCH = 64  # images in one run; what plans are built for
VERSIONS = 2  # of a model that are served: a receiver goes on with the last until every transmitter has the newest
BACKENDS = {  # engine -> its name there, where it runs, what else its configuration says
    "onnxruntime-cpu": ("onnxruntime", "KIND_CPU", ""),
    "openvino": ("onnxruntime", "KIND_CPU", "cpu_execution_accelerator [ { name: \"openvino\" } ]"),
    "onnxruntime-cuda": ("onnxruntime", "KIND_GPU", ""),
    "onnxruntime-tensorrt": ("onnxruntime", "KIND_GPU", "gpu_execution_accelerator [ { name: \"tensorrt\" } ]"),
    "tensorrt": ("tensorrt", "KIND_GPU", ""),
}  # fmt: skip
_TYPES = {FLOAT: "TYPE_FP32", UINT8: "TYPE_UINT8", INT8: "TYPE_INT8", INT32: "TYPE_INT32"}
_INDICES = ("index", "mix_rows")  # inputs that count rows
_DIGEST = re.compile(r'key: "semseal_digest_(\d+)" value: \{ string_value: "([0-9a-f]{64})" \}')


@dataclass(frozen=True)
class Served:
    """A model of the repository, and what became of it: its ``version`` there, and whether that is ``new``."""

    name: str
    version: int
    new: bool


def write_repository(
    bundle: Bundle,
    out: Path,
    precisions: Sequence[str] = ("fp32",),
    engine: str = "onnxruntime-cpu",
    defense: str = "mix",
    pixels: bool = False,
    force: bool = False,
) -> list[Served]:
    """Write the transmitter and the receiver of a bundle, in every precision that is named, into a model repository.

    ``defense`` mix: the graphs that mix; any other: the plain ones. ``pixels``: those whose pictures are bytes. Other models
    that lie in ``out`` stay. A model that is there already gets a further version, or is left as it is where its newest version
    is the same file. ``force`` replaces a model that is there, with all of its versions.

    Raises BundleError for what the bundle does not have, a folder in the bundle, an engine that Triton has no back end for, and
    where a model of that name is there that takes or gives something else.
    """
    if engine not in BACKENDS:
        raise BundleError(
            f"Triton has no back end for {engine}", f"serve the link on one of {', '.join(BACKENDS)}: --triton-engine"
        )
    check_place(out, bundle.path)
    kinds = ("-mix" if BY_NAME[defense].mixes else "") + ("-pixels" if pixels else "")
    prepared = []
    for precision in precisions:
        for side in ("transmitter", "receiver"):
            name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{bundle.path.absolute().name}-{side}{kinds}-{precision}")
            prepared.append((name, *_program(bundle, side, precision, engine, BY_NAME[defense].mixes, pixels)))
    written = [_prepare(out / name, config, force) for name, _, config in prepared]  # refuses before anything is written
    with named(out):
        return [
            _write(out / name, program, config, bundle.digest.hex(), digests, BACKENDS[engine][0])
            for (name, program, config), digests in zip(prepared, written, strict=True)
        ]


def check_place(out: Path, bundle: Path) -> None:
    """Raises BundleError for a repository in the bundle that it is made of; OSError where it cannot be written."""
    if out.resolve().is_relative_to(bundle.resolve()):
        raise BundleError(
            f"{out} lies in the bundle, which would have files then that it does not list", "choose another --triton"
        )
    check_writable(out)


def rows_of_each_image(graph: bytes) -> bytes:
    """A graph whose index counts the rows of each image from 0, so that the images of several requests can share a run.

    A number outside of an image's rows counts on around the clock: no index reaches the rows of another image.
    """
    parts, rest = take_apart(graph)
    name = next(name for name in _INDICES if name in parts.inputs)
    count = axes_of(parts.inputs[name])[1]
    if not isinstance(count, int):
        raise GraphError(f"the graph's {name} is of no fixed size", "make the bundle again")
    here = f"{name}/here"
    for node in parts.nodes:
        node.inputs[:] = [here if taken == name else taken for taken in node.inputs]
    constants: dict[str, NDArray[Any]] = {
        "count": np.array(count),
        "0": np.array(0),
        "1": np.array(1),
        "column": np.array([-1, 1]),
    }
    parts.constants |= {f"{name}/{what}": tensor(f"{name}/{what}", value) for what, value in constants.items()}
    steps = [
        ("Shape", [name], "sizes", b""),  # of [batch, count]
        ("Gather", [f"{name}/sizes", f"{name}/0"], "batch", integer("axis", 0)),
        ("Range", [f"{name}/0", f"{name}/batch", f"{name}/1"], "images", b""),
        ("Reshape", [f"{name}/images", f"{name}/column"], "images_down", b""),
        ("Mul", [f"{name}/images_down", f"{name}/count"], "first", b""),  # row of each image, [batch, 1]
        ("Cast", [name], "wide", integer("to", INT64)),
        ("Mod", [f"{name}/wide", f"{name}/count"], "own", b""),
        ("Add", [f"{name}/own", f"{name}/first"], "row", b""),
        ("Cast", [f"{name}/row"], "here", integer("to", INT32)),
    ]
    nodes = [Node(kind, taken, [f"{name}/{given}"], f"index/{kind}_{given}", rest) for kind, taken, given, rest in steps]
    parts.nodes = nodes + parts.nodes
    return parts.encoded(rest)


def _program(bundle: Bundle, side: str, precision: str, engine: str, mixes: bool, pixels: bool) -> tuple[bytes, str]:
    """What is served, and its configuration but for the name and the versions."""
    side += "-mix" if mixes else ""
    graph = bundle.graph(side, precision)
    graph = with_pixels(graph) if pixels else graph
    if engine == "tensorrt":
        return bundle.program(side, precision, engine, pixels), _configuration(graph, engine)
    graph = rows_of_each_image(graph)
    return graph, _configuration(graph, engine)


def _configuration(graph: bytes, engine: str) -> str:
    """That of a graph: what Triton takes and gives for each image, and how it runs."""
    backend, kind, accelerator = BACKENDS[engine]
    parts, _ = take_apart(graph)
    lines = [f'backend: "{backend}"', f"max_batch_size: {MAX_BATCH}"]
    for what, values in (("input", parts.inputs), ("output", parts.outputs)):
        lines += [f"{what} [", ",\n".join(_tensor(name, value) for name, value in values.items()), "]"]
    lines.append(f"instance_group [ {{ count: 1 kind: {kind} }} ]")
    if backend != "tensorrt":
        lines.append("dynamic_batching { }")
    if accelerator:
        lines.append(f"optimization {{ execution_accelerators {{ {accelerator} }} }}")
    lines.append(f"version_policy: {{ latest {{ num_versions: {VERSIONS} }} }}")
    rows = "request" if backend == "tensorrt" else "image"
    lines.append(f'parameters {{ key: "semseal_rows_of_each" value: {{ string_value: "{rows}" }} }}')
    return "\n".join(lines) + "\n"


def _tensor(name: str, declared: bytes) -> str:
    """One input or output. Triton has no tensor without axes for each image: it is [1] there, and [] for the engine."""
    axes = axes_of(declared)[1:]
    reshape = "" if axes else " reshape: { shape: [ ] }"
    return (
        f'  {{ name: "{name}" data_type: {_TYPES[kind_of(declared)]} dims: [ {", ".join(map(str, axes or [1]))} ]{reshape} }}'
    )


def _prepare(model: Path, config: str, force: bool) -> dict[int, str]:
    """The digests of the versions that are there, and stay. Raises BundleError for another model of that name."""
    if not os.path.lexists(model) or force:
        return {}
    try:
        there = (model / "config.pbtxt").read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        there = ""
    # its name and the digests are of that model and its versions; all else is how it is asked
    body = "".join(
        line for line in there.splitlines(keepends=True) if not line.startswith("name:") and not _DIGEST.search(line)
    )
    if body != config:
        raise BundleError(
            f"{model} is there, and is another model: another engine or other tensors",
            "choose another folder for --triton, or replace it, with all of its versions, with --force",
        )
    return {int(version): digest for version, digest in _DIGEST.findall(there)}


def _write(model: Path, program: bytes, config: str, digest: str, digests: dict[int, str], backend: str) -> Served:
    """The model's next version. A server that looks meanwhile finds the old versions, or those and the new one, whole."""
    file = "model.plan" if backend == "tensorrt" else "model.onnx"
    versions = sorted(int(entry.name) for entry in model.glob("[1-9]*") if entry.name.isdecimal()) if digests else []
    if (
        versions
        and digests.get(versions[-1]) == digest
        and _sha256(model / str(versions[-1]) / file) == hashlib.sha256(program).digest()
    ):
        return Served(model.name, versions[-1], False)
    version = versions[-1] + 1 if versions else 1
    kept = {number: digest for number, digest in digests.items() if number in versions} | {version: digest}
    lines = [
        f'parameters {{ key: "semseal_digest_{number}" value: {{ string_value: "{kept[number]}" }} }}\n'
        for number in sorted(kept)
    ]
    text = (f'name: "{model.name}"\n{config}' + "".join(lines)).encode()
    model.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_workplace(model.parent.absolute()), prefix=".semseal.") as partial:
        new = Path(partial) / str(version)
        new.mkdir()
        write_atomically(new / file, program)
        if versions:
            write_atomically(model / "config.pbtxt", text)
            os.replace(new, model / str(version))
            return Served(model.name, version, True)
        whole = Path(partial) / "model"
        whole.mkdir()
        os.replace(new, whole / str(version))
        write_atomically(whole / "config.pbtxt", text)
        if os.path.lexists(model):
            os.replace(model, Path(partial) / "old")
        os.replace(whole, model)
    return Served(model.name, version, True)


def _workplace(repository: Path) -> Path:
    """Beside the repository, where no server takes a folder for a model; in it where that cannot be, as at a mount point."""
    beside = repository.parent
    return beside if beside.stat().st_dev == repository.stat().st_dev and os.access(beside, os.W_OK | os.X_OK) else repository


def _sha256(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return None

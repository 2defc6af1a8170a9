"""Mutated and generated ONNX files through the packer: none may end in a traceback, take long or take much memory.

    python tests/fuzz_onnx.py --files 20000 --out findings          half of them mutated, half generated; an hour or more
    python tests/fuzz_onnx.py --case generated:4711 --out findings  one of them again, and its two files

    mutated      a pair that packs, changed in one file: fields of its protobuf messages removed, repeated, swapped and set to
                 values at the edge, or its bytes flipped, cut and spliced
    generated    a pair around one to three operators of an opset from 11 to 23, with inputs of any type and attributes drawn

A case is its kind and number; the same number makes the same files, as long as the pairs that it begins with, torch and onnx
stay the same. Cases run in a worker, a process that may take MEMORY_BYTES; more than TIMEOUT_S of the processor is a finding.
Each goes through ``check_onnx`` and ``attempt``, which ``pack`` runs in a process of its own; of what packs, the graphs with
mixing and bytes are made, and every tenth time those in fp16 and int8. What is not refused by a GraphError that names the side,
in one line and with a hint, is a finding: its files and its traceback are written down. So is a worker that breaks down, unless
``pack`` itself says so in an error.
"""

import argparse
import contextlib
import json
import random
import resource
import select
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from networks import NETWORKS
from onnx import TensorProto, defs, helper, numpy_helper
from semseal.export.pack.bounded import MEMORY_BYTES, attempt, pack_bounded
from semseal.export.quantize import to_fp16, to_int8
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import EngineError, GraphError
from semseal.runtime.mixing import with_mix
from semseal.runtime.onnxfile import check_onnx
from semseal.runtime.pixels import with_pixels

TIMEOUT_S = 30
FINE = ("packed", "refused", "broken down")
OPSETS = range(11, 24)
CASES = Path(__file__).parent / "cases"

Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of a case: "packed", "refused", "broken down", or a finding, with its detail."""

    case: str
    kind: str
    detail: str
    seconds: float  # of the processor
    peak: int  # bytes

    @property
    def is_finding(self) -> bool:
        return self.kind not in FINE


# ---- the files ----


@cache
def bases() -> list[Pair]:
    """Pairs that pack."""
    pairs = [(folder / "t.onnx", folder / "r.onnx") for folder in sorted(CASES.iterdir())]
    files = [(t.read_bytes(), r.read_bytes()) for t, r in pairs if t.exists() and r.exists()]
    return files + [make() for make in NETWORKS.values()]


def files_of(case: str) -> Pair:
    """The files of a case, ``mutated:NUMBER`` or ``generated:NUMBER``."""
    kind = case.partition(":")[0]
    rng = random.Random(case)
    pair = list(rng.choice(bases()))
    side = rng.randrange(2)
    pair[side] = mutated(pair[side], rng) if kind == "mutated" else generated(side, rng)
    if kind == "generated":
        pair[1 - side] = flat(1 - side)
    return pair[0], pair[1]


NUMBERS = [0, 1, -1, 2, 3, 4, 7, 8, 64, 255, 2**16, 2**31 - 1, -(2**31), 2**32, 2**40, 2**62, -(2**63), 2**63 - 1]
FLOATS = [0.0, -1.0, 1e-45, 1e30, float("inf"), float("nan"), 0.5]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a model after one to four changes of one sort."""
    if rng.random() < 0.25:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            _change_bytes(changed, rng)
        return bytes(changed)
    model = onnx.load_model_from_string(data)
    for _ in range(rng.randint(1, 4)):
        _change_message(model, rng)
    try:
        return model.SerializeToString()
    except ValueError:  # a mutation that protobuf does not write
        return data[: len(data) // 2]


def _change_bytes(data: bytearray, rng: random.Random) -> None:
    # among the first and last bytes there is more structure than in the weights between them
    end = len(data) - 1
    place = rng.choice([rng.randint(0, end), rng.randint(0, min(end, 200)), rng.randint(max(0, end - 300), end)])
    what = rng.randrange(5)
    if what == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif what == 1:
        data[place] = rng.choice([0, 1, 127, 128, 255])
    elif what == 2:
        del data[place : place + rng.randint(1, 40)]
    elif what == 3:
        data[place:place] = rng.randbytes(rng.randint(1, 12))
    else:
        start = rng.randint(0, end)
        data[place:place] = data[start : start + rng.randint(1, 60)]
    if not data:
        data.append(0)


def _messages(message) -> Iterator:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _change_message(model, rng: random.Random) -> None:
    message = rng.choice(list(_messages(model)))
    field = rng.choice(message.DESCRIPTOR.fields)
    if rng.random() < 0.8 and message.ListFields():
        field = rng.choice(message.ListFields())[0]  # one that is there
    values = getattr(message, field.name)
    if not field.is_repeated:
        if rng.random() < 0.3:
            message.ClearField(field.name)
        elif field.message_type is not None:
            values.SetInParent()
        else:
            setattr(message, field.name, _value(model, field, values, rng))
        return
    what = rng.randrange(4)
    if what == 0 or not values:
        if field.message_type is not None:
            values.add()
        else:
            values.append(_value(model, field, None, rng))
    elif what == 1:
        del values[rng.randrange(len(values))]
    elif what == 2:
        values.append(values[rng.randrange(len(values))])
    elif field.message_type is None:
        place = rng.randrange(len(values))
        values[place] = _value(model, field, values[place], rng)
    else:
        i, j = rng.randrange(len(values)), rng.randrange(len(values))
        kept = type(values[i])()
        kept.CopyFrom(values[i])
        values[i].CopyFrom(values[j])
        values[j].CopyFrom(kept)


def _value(model, field, now, rng: random.Random):
    """A value for a field: one at the edge, or one that another place has."""
    if field.enum_type is not None:
        return rng.choice(field.enum_type.values).number
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.type == field.TYPE_BYTES:
        return rng.choice([b"", b"\xff", rng.randbytes(8), bytes(now or b"")[:-1], bytes(now or b"") + b"\0"])
    if field.cpp_type == field.CPPTYPE_STRING:
        names = [name for node in model.graph.node for name in (*node.input, *node.output, node.op_type)]
        return rng.choice([*names, "", "x", "Ĉu ne", "../x", "a" * 300, "\n"])
    edges = {
        field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        field.CPPTYPE_UINT32: (0, 2**32 - 1),
        field.CPPTYPE_UINT64: (0, 2**64 - 1),
    }
    low, high = edges.get(field.cpp_type, (-(2**63), 2**63 - 1))
    number = rng.choice([*NUMBERS, rng.randint(0, 30), (now or 0) + 1, (now or 0) - 1])
    return min(max(number, low), high)


# ---- generated graphs ----

IMAGE, HEIGHT = [3, 8, 8], 8
TYPES = {f"tensor({name.lower()})": number for name, number in TensorProto.DataType.items()}


def flat(side: int) -> bytes:
    """The plain other half of a generated pair: pictures as they are, or what is given squeezed into 0..1."""
    body = "k = Constant<value_float = 1.0>() y = Mul(x, k)" if side == 0 else "y = Sigmoid(x)"
    text = f'<ir_version: 10, opset_import: ["" : 17]> g (float[n,3,8,8] x) => (float[n,3,8,8] y) {{ {body} }}'
    return onnx.parser.parse_model(text).SerializeToString()


@cache
def _operators(opset: int) -> list[str]:
    return sorted(
        {schema.name for schema in defs.get_all_schemas_with_history() if schema.domain == "" and schema.since_version <= opset}
    )


def generated(side: int, rng: random.Random) -> bytes:
    """x, one to three operators drawn, y; half of the time with x added."""
    opset = rng.choice(OPSETS)
    nodes, weights = [], []
    last, kind = "x", TensorProto.FLOAT
    for step in range(rng.choice([1, 1, 2, 3])):
        schema = defs.get_schema(rng.choice(_operators(opset)), opset, "")
        chosen: dict[str, int] = {}
        inputs = [_input(schema, i, step, last, kind, chosen, nodes, weights, rng) for i in range(_count(schema, rng))]
        outputs = [f"out{step}_{i}" for i in range(max(1, schema.min_output))]
        node = helper.make_node(schema.name, inputs, outputs, f"node{step}")
        for name, attribute in sorted(schema.attributes.items()):
            if attribute.required or rng.random() < 0.3:
                with contextlib.suppress(ValueError, TypeError):
                    node.attribute.append(_attribute(name, attribute, rng))
        nodes.append(node)
        last = outputs[0]
        kind = chosen.get(schema.outputs[0].type_str, TYPES.get(schema.outputs[0].type_str, TensorProto.FLOAT))
    nodes.append(helper.make_node("Cast", [last], ["real"], to=TensorProto.FLOAT))
    last = "real"
    if rng.random() < 0.5:
        nodes.append(helper.make_node("Add", ["x", "real"], ["sum"]))
        last = "sum"
    if side == 1:
        nodes.append(helper.make_node("Sigmoid", [last], ["bounded"]))
        last = "bounded"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    batch = rng.choice(["n", "n", 1, -1])
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *IMAGE])]
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, rng.choice([None, [batch, *IMAGE]]))
    graph = helper.make_graph(nodes, "g", ends, [given], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=rng.choice([7, 8, 10]))
    return model.SerializeToString()


def _count(schema, rng: random.Random) -> int:
    most = min(schema.max_input, schema.min_input + 2, 6)
    return rng.randint(schema.min_input, max(schema.min_input, most))


def _input(schema, i, step, last, kind, chosen, nodes, weights, rng: random.Random) -> str:
    """The name of an input: what came last, cast to a type that fits, or a constant."""
    formal = schema.inputs[min(i, len(schema.inputs) - 1)]
    allowed = [TYPES[name] for name in sorted(formal.types) if name in TYPES]
    if not allowed:
        return last
    wanted = chosen.get(formal.type_str) or (
        TensorProto.FLOAT if TensorProto.FLOAT in allowed and rng.random() < 0.6 else rng.choice(allowed)
    )
    if rng.random() < 0.05:
        wanted = rng.choice(sorted(TYPES.values()))
    chosen.setdefault(formal.type_str, wanted)
    if i == 0 or rng.random() < 0.15:
        if wanted == kind:
            return last
        nodes.append(helper.make_node("Cast", [last], [f"cast{step}_{i}"], to=wanted))
        return f"cast{step}_{i}"
    if formal.option == defs.OpSchema.FormalParameterOption.Optional and rng.random() < 0.4:
        return ""
    weights.append(_constant(f"w{step}_{i}", wanted, rng))
    return weights[-1].name


def _constant(name: str, kind: int, rng: random.Random) -> TensorProto:
    shape = rng.choice(
        [[], [1], [2], [3], [4], [8], [0], [1, 3, 8, 8], [3, 8, 8], [3, 1, 1], [8, 8], [4, 3, 3, 3], [3, 3, 1, 1], [3, 4, 2, 2]]
    )
    size = int(np.prod(shape))
    if kind == TensorProto.STRING:
        return helper.make_tensor(name, kind, shape, ["a"] * size)
    if kind in (TensorProto.INT64, TensorProto.INT32) and rng.random() < 0.7:
        values = [
            rng.choice(
                [
                    0,
                    1,
                    -1,
                    2,
                    3,
                    8,
                    *([2**20, 2**31 - 1, 2**40 if kind == TensorProto.INT64 else 5] if rng.random() < 0.1 else []),
                ]
            )
            for _ in range(size)
        ]
    else:
        values = [rng.choice([0, 1, 1, 2, 0.5, 3]) for _ in range(size)]
    try:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        return numpy_helper.from_array(np.array(values, np.float64).reshape(shape).astype(dtype), name)
    except (KeyError, TypeError, ValueError):
        return helper.make_tensor(name, TensorProto.FLOAT, shape, values)


def _attribute(name: str, attribute, rng: random.Random):
    numbers = [0, 1, 2, 3, -1, 4, 8] * 3 + [2**20, 2**40, -7]
    words = [
        "constant",
        "reflect",
        "edge",
        "nearest",
        "linear",
        "cubic",
        "SAME_UPPER",
        "VALID",
        "half_pixel",
        "NOTSET",
        "DCR",
        "ij,jk->ik",
        "none",
    ]
    kinds = defs.OpSchema.AttrType
    if attribute.type == kinds.INT:
        to = [int(number) for number in TYPES.values()]
        return helper.make_attribute(name, rng.choice(to if name in ("to", "dtype") else numbers))
    if attribute.type == kinds.INTS:
        return helper.make_attribute(name, [rng.choice(numbers) for _ in range(rng.choice([1, 2, 2, 4, 4, 8]))])
    if attribute.type == kinds.FLOAT:
        return helper.make_attribute(name, rng.choice([0.0, 1.0, 0.5, -1.0, 1e-5]))
    if attribute.type == kinds.FLOATS:
        return helper.make_attribute(name, [0.5, 1.0, 2.0][: rng.randint(1, 3)])
    if attribute.type == kinds.STRING:
        return helper.make_attribute(name, rng.choice(words))
    if attribute.type == kinds.TENSOR:
        return helper.make_attribute(name, _constant("t", rng.choice([1, 6, 7, 9, 10]), rng))
    raise ValueError(f"no value for {name}")


# ---- what becomes of them ----


def run_case(case: str) -> Outcome:
    """A case in this process."""
    files = files_of(case)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the largest memory so far
    start = time.process_time()
    try:
        kind, detail = _through(files, deep=random.Random(case).random() < 0.1)
    except Exception:
        kind, detail = "traceback", traceback.format_exc()
    return Outcome(case, kind, detail, time.process_time() - start, _peak())


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _through(files: Pair, deep: bool) -> tuple[str, str]:
    for data in files:
        with contextlib.suppress(GraphError):
            check_onnx(data)
    try:
        packed = attempt(*files)
    except GraphError as error:
        named = error.message.startswith(("transmitter", "receiver"))
        if not named or not error.hint or "\n" in error.message + error.hint:
            return "unclear", repr(error)
        return "refused", str(error)
    graphs = {"transmitter": packed.transmitter, "receiver": packed.receiver}
    symbols = np.zeros((1, packed.layout.n_symbols, 2), np.float32)
    index = np.arange(packed.layout.h, dtype=np.int32)[None]
    for side, graph in graphs.items():
        check_onnx(graph)
        with_pixels(with_mix(graph, side, packed.layout.h, packed.layout.row_width, packed.layout.c))
        if not deep:
            continue
        given = symbols if side == "receiver" else np.full((1, 3, packed.height, packed.width), 0.5, np.float32)
        first = "symbols" if side == "receiver" else "image"
        with contextlib.suppress(GraphError, EngineError):
            open_engine("onnxruntime-cpu", to_fp16(graph), 1)(given, index)
        with contextlib.suppress(GraphError, EngineError):
            open_engine("onnxruntime-cpu", to_int8(graph, [{first: given, "index": index}]), 1)(given, index)
    return "packed", ""


def worker() -> None:
    """Takes cases, one a line, and answers each with a line of JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        print(json.dumps(run_case(line.strip()).__dict__), file=answers, flush=True)


def run(cases: list[str]) -> Iterator[Outcome]:
    """The outcomes of cases in a worker, one after the other; a worker that is ended is replaced."""
    process = None
    for case in cases:
        if process is None:
            process = subprocess.Popen(
                [sys.executable, __file__, "--worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{case}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], 10 * TIMEOUT_S)  # others may use the processor too
        line = process.stdout.readline() if ready else ""
        if line:
            outcome = Outcome(**json.loads(line))
            if outcome.seconds > TIMEOUT_S or outcome.peak > MEMORY_BYTES:
                outcome = Outcome(case, "too much", outcome.kind, outcome.seconds, outcome.peak)
            yield outcome
            continue
        process.kill()
        process.wait()
        yield _broken_down(case) if ready else Outcome(case, "too long", "", 0.0, 0)
        process = None
    if process is not None:
        process.communicate()


def _broken_down(case: str) -> Outcome:
    """A case that ended its worker, through the packer's own process."""
    try:
        pack_bounded(*files_of(case))
        return Outcome(case, "crash", "behind the packer", 0.0, 0)
    except GraphError as error:
        return Outcome(case, "broken down" if "broke down" in error.message else "crash", str(error), 0.0, 0)
    except Exception:
        return Outcome(case, "crash", traceback.format_exc(), 0.0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200, help="how many, half of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", action="append", default=[], help="these cases instead")
    parser.add_argument("--out", type=Path, default=Path("findings"), help="folder for findings and the log")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker()
    options.out.mkdir(parents=True, exist_ok=True)
    cases = options.case or [
        f"{kind}:{options.first + i}" for i in range(options.files // 2) for kind in ("mutated", "generated")
    ]
    counts: Counter[str] = Counter()
    slowest = largest = 0.0
    with open(options.out / "log.jsonl", "a") as log:
        for outcome in run(cases):
            counts[outcome.kind] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.peak)
            print(json.dumps(outcome.__dict__), file=log, flush=True)
            if outcome.is_finding or options.case:
                name = outcome.case.replace(":", "-")
                for side, data in zip("tr", files_of(outcome.case), strict=True):
                    (options.out / f"{name}.{side}.onnx").write_bytes(data)
                print(f"{outcome.case}: {outcome.kind}: {outcome.detail[-2000:]}", flush=True)
            if sum(counts.values()) % 500 == 0:
                print(dict(counts), f"slowest {slowest:.1f} s, largest {largest / 2**30:.2f} GiB", flush=True)
    print(f"{sum(counts.values())} files: {dict(counts)}; slowest {slowest:.1f} s, largest memory {largest / 2**30:.2f} GiB")
    sys.exit(any(kind not in FINE for kind in counts))


if __name__ == "__main__":
    main()

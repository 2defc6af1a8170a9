"""ModelAudit beside ``semseal check``, on the packaged bundles and on graphs that reach outside of themselves.

python beside_modelaudit.py MODELAUDIT FOLDER: its program, and a folder for the graphs. Exits with 1 where they disagree on
what both know.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from semseal import check
from semseal.runtime.bundle import MODELS, open_bundle
from semseal.runtime.errors import GraphError
from semseal.runtime.onnxfile import check_onnx


def graphs() -> Iterator[tuple[str, bool, bool, bytes]]:
    """What is in it, whether it is refused by check_onnx (B06) and by ModelAudit, and the graph."""
    plain = open_bundle("photos-10db").graph("receiver")
    yield "plain", False, False, plain
    for location in ("../../../etc/passwd", "weights.bin"):
        model = onnx.load_model_from_string(plain)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location
        yield f"external data in {location}", True, True, model.SerializeToString()
    yield "python", True, True, _with(plain, "PyOp", "ai.onnx.contrib", module="os", func="system")
    yield "another domain", False, False, _with(plain, "Other", "com.example")  # for the engine, which has no such operator
    yield "compiled engine", True, False, _with(plain, "EPContext", "com.microsoft", ep_cache_context="a.plan", embed_mode=0)
    yield "half", True, True, plain[: len(plain) // 2]
    yield "pickle", True, True, b"\x80\x04cposix\nsystem\n"


def _with(plain: bytes, operator: str, domain: str, **attributes: Any) -> bytes:
    model = onnx.load_model_from_string(plain)
    model.graph.node.append(helper.make_node(operator, [model.graph.output[0].name], ["more"], domain=domain, **attributes))
    model.opset_import.append(helper.make_opsetid(domain, 1))
    data: bytes = model.SerializeToString()
    return data


def found_by(program: str, path: Path, report: Path) -> list[str]:
    """What ModelAudit warns of or more. It exits with 2 where some of its checks do not apply, which is no finding."""
    command = [program, "scan", "--quiet", "--format", "json", "--output", str(report), str(path)]
    subprocess.run(command, capture_output=True, timeout=300)
    return [
        issue["message"] for issue in json.loads(report.read_text())["issues"] if issue["severity"] not in ("info", "debug")
    ]


def main(program: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    wrong = []
    for bundle in sorted(MODELS.iterdir()):
        theirs, ours = found_by(program, bundle, folder / "report.json"), check(bundle.name)
        print(f"{bundle.name}: ModelAudit {theirs or 'clean'}, semseal check {'clean' if ours.clean else ours.findings}")
        wrong += [bundle.name] if theirs or not ours.clean else []
    for what, refused, warned, data in graphs():
        place = folder / what.partition(" in ")[0].replace(" ", "-")
        place.mkdir(exist_ok=True)
        (place / "receiver.fp32.onnx").write_bytes(data)
        try:
            check_onnx(data)
            said = ""
        except GraphError as error:
            said = error.message
        theirs = found_by(program, place, folder / "report.json")
        print(f"{what}: semseal {said or 'passes'}; ModelAudit {theirs[:1] or 'passes'}")
        wrong += [what] if bool(said) != refused or bool(theirs) != warned else []
    if wrong:
        sys.exit(f"not as expected: {', '.join(wrong)}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

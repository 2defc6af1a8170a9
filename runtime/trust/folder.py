"""Rules about a bundle's folder: who signed it, what lies in it, what its manifest and its graphs say."""

import json
import math
import re
from typing import Any

from semseal.runtime import signing
from semseal.runtime.bundle import ENGINES, GRAPH_NAME, MANIFEST, PRECISIONS, SIGNATURE
from semseal.runtime.defense import mix
from semseal.runtime.errors import BundleError, GraphError, KeyFileError, SigningError
from semseal.runtime.mixing import MIN_CHECKED_CHANNELS, MIN_CHECKED_REALS
from semseal.runtime.onnxfile import check_onnx
from semseal.runtime.onnxwrite import Graph, axes_of, take_apart
from semseal.runtime.trust.constants import holds_order, holds_secret, holds_signs, numbers_in_graph, numbers_in_json
from semseal.runtime.trust.deployment import Deployment, Entry, read_regular
from semseal.runtime.trust.finding import Outcome, Problem
from semseal.runtime.trust.keyset import written
from semseal.runtime.trust.newest import newer_than

FORMAT_OF_MIX_1 = 3  # the last bundle format whose graphs mixed by version 1
MAX_SEARCHED_BYTES = 2**28  # of a file beside the bundle
LEFT_OVER = re.compile(
    r"(?P<of>.+)(~|\.(bak|orig|old|save|tmp|swp))|\.(?P<hidden>.+)\.([0-9a-f]{8}|[a-z0-9_]{8}|sw[a-p])|\.?#.+|\.room\..+",
    re.DOTALL,
)
_HEX = re.compile(r"[0-9a-f]{64}")


# the folder


def is_linked(d: Deployment) -> Outcome:
    return [
        Problem(entry.name, f"is a {entry.kind}, and only regular files are followed")
        for entry in d.entries
        if entry.kind not in ("file", "folder")
    ] + [
        Problem(entry.name, f"has {entry.status.st_nlink} names: a hard link elsewhere changes it too")
        for entry in d.entries
        if entry.kind == "file" and entry.status.st_nlink > 1 and not d.is_packaged  # as installers that share files make them
    ]


def is_unpinned(d: Deployment) -> Outcome:
    if d.is_packaged:
        return []
    try:
        signing.pinned_owner(d.asked.owner)
    except SigningError as error:
        return [Problem("", error.message)]
    return []


def is_unsigned(d: Deployment) -> Outcome:
    try:
        return [] if d.text else [Problem(MANIFEST, "is empty")]
    except BundleError as error:
        return [Problem(SIGNATURE, error.message)]


def is_unlisted(d: Deployment) -> Outcome:
    known = {MANIFEST, SIGNATURE, *d.bundle.manifest["files"]}
    if d.is_packaged:
        known -= {SIGNATURE}
    folders = {ENGINES} if any(name.startswith(f"{ENGINES}/") for name in known) else set()
    return [
        Problem(entry.name, f"is a {entry.kind} that the manifest does not list")
        for entry in d.entries
        if entry.kind in ("file", "folder")
        and entry.name not in (known if entry.kind == "file" else folders)
        and not is_left_over(entry)
    ]


def is_changed(d: Deployment) -> Outcome:
    problems = []
    for name in d.bundle.manifest["files"]:
        try:
            d.bundle.read(name)
        except BundleError as error:
            problems.append(Problem(name, error.message))
    return problems


def is_left_over(entry: Entry) -> bool:
    return entry.kind != "link" and LEFT_OVER.fullmatch(entry.name.rpartition("/")[2]) is not None


def left_over(d: Deployment) -> Outcome:
    """Temporary files and copies by editors: in the bundle, in the deployment's folder, beside both and the key file."""
    problems = [Problem(entry.name, "is left over from writing or editing") for entry in d.entries if is_left_over(entry)]
    problems += [Problem(str(d.asked.folder / entry.name), "is left over from writing or editing")
                 for entry in d.beside if d.asked.folder is not None and is_left_over(entry)]  # fmt: skip
    for path in [d.path] * (not d.is_packaged) + [path for path in (d.asked.keys,) if path is not None]:
        folder = path.absolute().parent
        if d.asked.folder is not None and folder.is_relative_to(d.asked.folder.absolute()):
            continue  # seen above
        try:
            names = sorted(other.name for other in folder.iterdir())
        except OSError:
            continue
        for name in names:
            found = LEFT_OVER.fullmatch(name)
            if found is not None and path.name in (found["of"], found["hidden"]):
                problems.append(Problem(str(folder / name), f"is left over from writing or editing {path.name}"))
    return problems


# the manifest


def is_old_mix(d: Deployment) -> Outcome:
    if _format(d) == FORMAT_OF_MIX_1:
        return [Problem(MANIFEST, f"is of format {FORMAT_OF_MIX_1}, whose graphs mix by version 1")]
    return []


def is_loose(d: Deployment) -> Outcome:
    if _format(d) == FORMAT_OF_MIX_1:
        return []
    try:
        bundle = d.bundle
    except BundleError as error:
        return [Problem(MANIFEST, error.message)]
    return [Problem(MANIFEST, what) for what in (*_twice(d.text), *_loose(bundle.manifest))]


def _format(d: Deployment) -> Any:
    try:
        found = json.loads(d.text)
    except (ValueError, RecursionError):
        return None
    return found.get("format") if isinstance(found, dict) else None


def _twice(text: bytes) -> list[str]:
    """What JSON leaves to its reader: a name that is there twice, numbers that are none."""
    found: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in items]
        found.extend(f"names {name!r} twice" for name in dict.fromkeys(names) if names.count(name) > 1)
        return dict(items)

    def constant(name: str) -> float:
        found.append(f"holds {name}, which is no number of JSON")
        return math.nan

    json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    return found


def _loose(manifest: dict[str, Any]) -> list[str]:
    """Values of another type than the format has, which a reader converts or passes over."""
    found = []
    model = manifest["model"]
    for name in ("height", "width", "h", "w", "c"):
        if type(model.get(name)) is not int:
            found.append(f"model.{name} is no whole number")
    if type(manifest["format"]) is not int:
        found.append("format is no whole number")
    if not isinstance(model.get("digest"), str) or not _HEX.fullmatch(model["digest"]):
        found.append("model.digest is not 64 digits of lower case hex")
    snrs = manifest["snr_db"]
    if not isinstance(snrs, list) or len(snrs) != 2 or not all(type(snr) in (int, float) for snr in snrs):
        found.append("snr_db is not two numbers")
    for field, known in (("precisions", PRECISIONS), ("engines", None)):
        names = manifest.get(field, [])
        if not isinstance(names, list) or len(set(map(str, names))) < len(names) or not all(isinstance(x, str) for x in names):
            found.append(f"{field} is no list of different names")
        elif known is not None and not set(names) <= set(known):
            found.append(f"{field} has {', '.join(sorted(set(names) - set(known)))}, which is none")
    for name, entry in manifest["files"].items():
        if set(entry) != {"sha256", "size"}:
            found.append(f"files: {name} has other fields than sha256 and size")
        if not isinstance(entry["sha256"], str) or not _HEX.fullmatch(entry["sha256"]):
            found.append(f"files: the sha256 of {name} is not 64 digits of lower case hex")
    if not found:
        graphs = {name.split(".")[1] for name in manifest["files"] if GRAPH_NAME.fullmatch(name)}
        if graphs != set(manifest["precisions"]):
            found.append(f"precisions are {', '.join(manifest['precisions'])}, the graphs are {', '.join(sorted(graphs))}")
    return found


def is_older(d: Deployment) -> Outcome:
    try:
        newest = newer_than(d.bundle, d.asked.owner)
    except (KeyFileError, OSError) as error:
        return [Problem(MANIFEST, f"whether it is the newest cannot be told: {getattr(error, 'message', error)}")]
    if newest is None:
        return []
    made = f"of {written(d.bundle.created)}" if d.bundle.created else "without a date"
    return [Problem(MANIFEST, f"is {made}, and one of its owner, of {written(newest)}, was opened here")]


# the graphs


def is_unsafe(d: Deployment) -> Outcome:
    problems = []
    for (side, precision), data in d.graphs.items():
        try:
            check_onnx(data)
            take_apart(data)
        except (GraphError, UnicodeDecodeError) as error:
            problems.append(
                Problem(f"{side}.{precision}.onnx", getattr(error, "message", "the graph is damaged: a name is no text"))
            )
    return problems


def is_misshapen(d: Deployment) -> Outcome:
    bundle, problems = d.bundle, []
    picture, symbols = [3, bundle.height, bundle.width], [bundle.n_symbols, 2]
    for (side, precision), data in d.graphs.items():
        graph = _graph(data)
        if graph is None:
            continue
        ends = {"image": picture, "symbols": symbols, "index": [bundle.h], "snr_db": [], "side_information": [3]}
        given, taken = ("image", "symbols") if side == "transmitter" else ("symbols", "image")
        declared = {**graph.inputs, **graph.outputs}
        for name in (given, taken):
            if name not in (graph.inputs if name == given else graph.outputs):
                problems.append(Problem(f"{side}.{precision}.onnx", f"has no {name} where it should"))
        for name, value in declared.items():
            axes = axes_of(value)
            if name in ends and axes[1:] != ends[name]:
                problems.append(
                    Problem(
                        f"{side}.{precision}.onnx",
                        f"{name} is {_shown(axes)}, the manifest's model has {_shown(['batch', *ends[name]])}",
                    )
                )
    return problems


def is_keyless(d: Deployment) -> Outcome:
    """Graphs and plans that do not take what is secret as an input, or do not use it."""
    problems, told = [], {"transmitter": "snr_db", "receiver": "side_information"}
    for (side, precision), data in d.graphs.items():
        graph = _graph(data)
        if graph is None:
            continue
        wanted = ["index"] + ([told[side]] if d.bundle.has_scale else [])
        for name in wanted:
            used = any(name in node.inputs for node in graph.nodes)
            if name not in graph.inputs or name in graph.constants or not used:
                what = "does not use its input" if name in graph.inputs and not used else "does not take"
                problems.append(Problem(f"{side}.{precision}.onnx", f"{what} {name}"))
    for name, data in d.files.items():
        if not name.endswith(".engine.json"):
            continue
        try:
            inputs = [str(entry["name"]) for entry in json.loads(data)["inputs"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            problems.append(Problem(name, "does not tell the inputs of its plan"))
            continue
        secret = ["mix_rows", "mix_columns", "mix_column_signs", "mix_signs0"] if "-mix" in name else ["index"]
        problems += [Problem(name, f"its plan does not take {missing}") for missing in secret if missing not in inputs]
    return problems


def is_small_for_mix(d: Deployment) -> Outcome:
    reals = 2 * d.bundle.n_symbols
    if not d.mixes:
        return []
    if reals > mix.MAX_REALS:
        return [Problem(MANIFEST, f"its images have {reals} reals, mix takes {mix.MAX_REALS} at most")]
    if reals < MIN_CHECKED_REALS:
        return [Problem(MANIFEST, f"its images have {reals} reals, fewer than {MIN_CHECKED_REALS}: what goes on air is mostly "
                                  "padding, and symbols of another key are not told from its own")]  # fmt: skip
    return []


def is_untested(d: Deployment) -> Outcome:
    channels = int(d.bundle.manifest["model"]["c"])
    if not d.mixes or 2 * d.bundle.n_symbols < MIN_CHECKED_REALS or channels >= MIN_CHECKED_CHANNELS:
        return []
    return [Problem(MANIFEST, f"its features have {channels} channels, fewer than {MIN_CHECKED_CHANNELS}: the receiver cannot "
                              "tell symbols that were mixed under another key from its own")]  # fmt: skip


# what is secret, as a constant


def holds_key(d: Deployment) -> Outcome:
    if d.asked.keys is None:
        return "no key file was named (--keys FILE)"
    if not d.secrets:
        return f"{d.asked.keys} holds no key that could be looked for"
    problems = []
    for path, data in _searched(d).items():
        if any(holds_secret(data, _numbers(path, data), secret) for secret in d.secrets):
            problems.append(Problem(path, "holds the key of the key file"))
    return problems


def holds_orders(d: Deployment) -> Outcome:
    sizes = [d.bundle.h]
    if 2 * d.bundle.n_symbols <= mix.MAX_REALS:
        a, b, c = mix.factors(2 * d.bundle.n_symbols)
        sizes += [a * b, c]
    return [
        Problem(path, f"holds an order of {size} rows as a constant")
        for path, data in _searched(d).items()
        if (size := holds_order(data, _numbers(path, data), sizes)) is not None
    ]


def holds_constant_signs(d: Deployment) -> Outcome:
    reals = min(2 * d.bundle.n_symbols, mix.MAX_REALS)
    return [
        Problem(path, "holds random signs as a constant")
        for path, data in _searched(d).items()
        if holds_signs(data, _numbers(path, data), reals)
    ]


def _searched(d: Deployment) -> dict[str, bytes]:
    """Listed files, the manifest, and what else is deployed but key files."""
    found = {MANIFEST: d.text, **d.files}
    listed = set(found)
    for entry in d.entries:
        if entry.kind == "file" and entry.name not in listed:
            found[entry.name] = read_regular(d.path / entry.name, MAX_SEARCHED_BYTES) or b""
    for entry in d.beside:
        assert d.asked.folder is not None
        path = d.asked.folder / entry.name
        if entry.kind == "file" and (d.asked.keys is None or path.absolute() != d.asked.keys.absolute()):
            found[str(path)] = read_regular(path, MAX_SEARCHED_BYTES) or b""
    return found


def _numbers(path: str, data: bytes) -> list[Any]:
    if path.endswith(".onnx"):
        try:
            return numbers_in_graph(data)
        except GraphError:
            return []  # no graph of the bundle's: those were looked at before
    return numbers_in_json(data) if path.endswith(".json") else []


def _graph(data: bytes) -> Graph | None:
    try:
        return take_apart(data)[0]
    except (GraphError, UnicodeDecodeError):
        return None  # which ``is_unsafe`` says


def _shown(axes: list[Any]) -> str:
    return f"[{', '.join(map(str, axes))}]"

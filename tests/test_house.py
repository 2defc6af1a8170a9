"""The house itself: which module may import which, how long things are, and the words that are no longer used.

Every import counts, also those inside functions; only what stands under ``if TYPE_CHECKING`` is for the type checker alone.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# from the ground up; whoever stands in a line may import from the lines above it, and from its own room
ORDER = (
    ("runtime.errors",),
    (
        "runtime.environment",
        "runtime.libraries",
        "runtime.files",
        "runtime.frame",
        "runtime.onnxfile",
        "runtime.metrics",
        "runtime.channel",
        "runtime.progress",
        "runtime.jpegfile",
        "runtime.svg",
    ),
    ("runtime.ofdm",),
    ("runtime.radio",),
    ("runtime.picturefile", "runtime.picturefolder"),
    ("runtime.pictures", "runtime.pictureclasses"),
    ("runtime.onnxwrite",),
    ("runtime.defense", "runtime.pixels"),
    ("runtime.mixing",),
    ("runtime.gpu",),
    ("runtime.engine", "runtime.signing"),
    ("runtime.trust.privatefile",),
    ("runtime.trust.keyset",),
    ("runtime.trust.linkkeys", "runtime.trust.replay"),
    ("runtime.bundle",),
    ("runtime.owned", "runtime.options", "runtime.trust.newest"),
    ("runtime.decoding",),
    ("runtime.receiver",),
    ("runtime.link",),
    ("runtime.roundtrip",),
    ("runtime.net",),
    ("runtime.doctor", "runtime.attacks", "runtime.trust"),
    ("runtime.audit", "runtime.bench"),
    ("train",),
    ("export",),
    ("runtime.cli_audit", "runtime.keycommands"),
    ("runtime.cli", "runtime.api"),
)
FOLDERS = ("train", "export", "runtime")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60


def module_of(file: Path) -> str:
    """``runtime.bundle`` for runtime/bundle.py; a folder's own name for its __init__."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that is run, so without the bodies of ``if TYPE_CHECKING``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from statements(other)
        else:
            yield from statements(child)


def found_imports(source: str) -> set[str]:
    """The dotted names that a source imports, ``a.b`` for ``from a import b``."""
    names = set()
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        # import_module("semseal.runtime.errors") and the table of runtime/api name modules in strings
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"semseal(\.\w+)+", node.value):
            names.add(node.value)
    return names


@cache
def imports(module: str) -> frozenset[str]:
    return frozenset(found_imports(MODULES[module].read_text()))


@cache
def inner(module: str) -> frozenset[str]:
    """The modules of the project that a module imports."""
    found = set()
    for name in imports(module):
        if name.startswith("semseal."):
            name = name.removeprefix("semseal.")
            # a name inside a module, or the module itself
            known = name if name in MODULES else name.rpartition(".")[0]
            assert known in MODULES, f"{module} imports {name}, which is not there"
            found.add(known)
    return frozenset(found - {module})


def room(module: str) -> str:
    """The part of ORDER that a module belongs to, a module's own before its folder's; empty for the packages' own __init__."""
    parts = [name for line in ORDER for name in line if module == name or module.startswith(f"{name}.")]
    assert parts or module == "runtime", f"{module} has no place in ORDER"
    assert len(set(parts)) == len(parts), f"{module} has two places in ORDER"
    return max(parts, key=len, default="")


def floor(module: str) -> int:
    return next((i for i, line in enumerate(ORDER) if room(module) in line), -1)


def test_the_reader_of_imports_sees_lazy_ones_and_not_those_of_the_type_checker():
    source = """
import numpy as np, a.b
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from semseal.runtime import link
else:
    import c
def f():
    from semseal.runtime.bundle import Bundle
    if f:
        import d
load("semseal.runtime.errors")
"""
    assert found_imports(source) == {"numpy", "a.b", "typing.TYPE_CHECKING", "c", "semseal.runtime.bundle.Bundle", "d",
                                     "semseal.runtime.errors"}  # fmt: skip


def test_there_is_no_circle():
    try:
        order = list(TopologicalSorter({module: inner(module) for module in MODULES}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) == len(MODULES) > 50


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_goes_upwards(module):
    upwards = [other for other in inner(module) if room(other) != room(module) and floor(other) >= floor(module)]
    assert upwards == []


@pytest.mark.parametrize("module", MODULES)
def test_only_the_program_imports_train_and_export(module):
    used = {room(other) for other in inner(module)} & {"train", "export"}
    if module != "runtime.cli" and room(module) not in ("train", "export"):
        assert not used


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) == "runtime.attacks"])
def test_attacks_are_functions_of_arrays(module):
    of_the_project = {room(other) for other in inner(module)}
    assert of_the_project <= {"runtime.attacks", "runtime.metrics", "runtime.defense", "runtime.errors"}
    others = {name.partition(".")[0] for name in imports(module)} - set(sys.stdlib_module_names) - {"semseal"}
    assert others <= {"numpy", "scipy", "sklearn", "torch"}


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("runtime")])
def test_no_torch_outside_attacks_and_audit(module):
    if room(module) not in ("runtime.attacks", "runtime.audit"):
        assert "torch" not in {name.partition(".")[0] for name in imports(module)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_and_functions_are_short(file):
    source = file.read_text()
    assert len(source.splitlines()) <= MAX_MODULE_LINES
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: lines for node in functions if (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES}
    assert long == {}


def test_every_folder_is_a_package_that_is_installed():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent for file in FILES}
    for folder in folders:
        assert (folder / "__init__.py").is_file()
    names = {str(folder.relative_to(ROOT)): "semseal." + ".".join(folder.relative_to(ROOT).parts) for folder in folders}
    names["runtime/api"] = "semseal"  # the root of the package
    assert setup["package-dir"] == {name: folder for folder, name in names.items()}
    assert sorted(setup["packages"]) == sorted(names.values())


def test_the_old_words_are_gone():
    words = re.compile(rf"\b({'|'.join(('hea' + 'rd', 'men' + 'd', 'men' + 'ds'))})\b")
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.py")]
    for folder in (*FOLDERS, "benchmarks", "tests", "docs"):
        files += [file for kind in ("py", "md", "html") for file in (ROOT / folder).rglob(f"*.{kind}")]
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in sorted(files)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if words.search(line)
    ]
    assert found == []

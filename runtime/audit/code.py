"""The code that a figure depends on: a module and everything of semseal that it imports, found by reading the imports."""

import ast
import hashlib
import threading
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PARSER = threading.Lock()  # up to 3.11 Python counts the depth of all threads' trees together, and raises SystemError


@cache
def digest_of_code(module: str) -> str:
    """SHA-256 over the sources of ``module`` and of the modules of semseal that it imports, directly or not."""
    found, waiting = {}, [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _source(name)
            waiting += _imports(found[name])
    digests = (hashlib.sha256(found[name]).digest() for name in sorted(found))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _source(module: str) -> bytes:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_bytes()


def _imports(source: bytes) -> Iterator[str]:
    """The modules of semseal that a source imports, those inside functions too."""
    with _PARSER:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.startswith("semseal.") and _is_module(name))


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, and it a name in there
        return False

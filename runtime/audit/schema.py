"""The JSON schema of results.json, made from the dataclasses that are written there, and the same check without a library.

Results and what is in it ──┬─ schema ──── docs/results.schema.json (JSON Schema 2020-12), for other people's programs
                            └─ mismatch ── what Results.from_json refuses

    python -m semseal.runtime.audit.results > docs/results.schema.json     after a change of a field; a test says when
"""

import dataclasses
import types
import typing
from typing import Any

from semseal.runtime.audit.settings import NO_NOISE

VERSION = 1  # of the form of results.json: one more with every change that a reader of the one before would not take
ENUMS = {
    ("PictureRow", "verdict"): ("sees", "nothing", "open", "void"),
    ("GameRow", "verdict"): ("sees", "nothing", "open", "void"),
    ("GameRow", "measure"): ("rate", "area", "balanced", "dB", "t"),
    ("Ordering", "verdict"): ("holds", "fails", "open"),
    ("Results", "what"): ("semseal audit",),
}
_NAMES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def schema(document: type) -> dict[str, Any]:
    """JSON Schema of a dataclass as ``json.dumps(dataclasses.asdict(...))`` writes it: every field is there, and no other."""
    definitions: dict[str, Any] = {}
    whole = _of(document, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:semseal:results:{VERSION}",
        "title": f"results.json of semseal audit, version {VERSION}",
        **whole,
        "$defs": dict(sorted(definitions.items())),
    }


def _of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # its place, should it hold itself
            members = {name: _of(inner, definitions) for name, inner in fields_of(kind).items()}
            members |= {name: _with_no_noise(members[name]) for name in ("eve_snr", "eve_snrs") if name in members}
            for name, values in ((name, values) for (owner, name), values in ENUMS.items() if owner == kind.__name__):
                members[name] = {"enum": [*values, None] if _optional(fields_of(kind)[name]) else [*values]}
            definitions[kind.__name__] = {
                "type": "object",
                "properties": members,
                "required": list(members),
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin is tuple:
        assert arguments[1:] == (...,), f"{kind} has no schema"
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_of(part, definitions) for part in arguments]}
    return {"type": _NAMES[kind]} if kind is not object else {}


def _with_no_noise(member: dict[str, Any]) -> dict[str, Any]:
    """An SNR of Eve's, or a list of them, that may also be NO_NOISE."""
    if "items" in member:
        return {**member, "items": _with_no_noise(member["items"])}
    return {"anyOf": [*member.get("anyOf", [member]), {"const": NO_NOISE}]}


def mismatch(value: Any, kind: Any, at: str = "") -> str:
    """Where a JSON value is not of this kind and why, empty if it is: the same answer as the schema's.

    An SNR of Eve's without noise is infinite here, as ``Results`` holds it.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        members = fields_of(kind)
        if not isinstance(value, dict) or value.keys() != members.keys():
            odd = members.keys() ^ value.keys() if isinstance(value, dict) else members.keys()
            return f"{at or 'it'}: {', '.join(sorted(map(str, odd)))} missing or unknown"
        return _first(
            mismatch(inner, members[name], f"{at}.{name}".lstrip("."))
            or ("" if inner is None else _unlisted(kind.__name__, name, inner, at))
            for name, inner in value.items()
        )
    if origin is tuple:
        if not isinstance(value, list):
            return f"{at}: no list"
        return _first(mismatch(inner, arguments[0], f"{at}[{i}]") for i, inner in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            return f"{at}: no object"
        return _first(mismatch(inner, arguments[1], f"{at}[{name!r}]") for name, inner in value.items())
    if origin in (types.UnionType, typing.Union):
        found = [mismatch(value, part, at) for part in arguments]
        return "" if "" in found else found[0]
    return "" if _is(value, kind) else f"{at}: {value!r:.40} is no {_NAMES[kind]}"


def fields_of(kind: type) -> dict[str, Any]:
    """The fields of a dataclass and their types."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _first(complaints: typing.Iterator[str]) -> str:
    return next(filter(None, complaints), "")


def _is(value: Any, kind: Any) -> bool:
    """Numbers as JSON Schema counts them: 2.0 is an integer, and true is none."""
    if kind is int:
        return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    if kind is float:
        return not isinstance(value, bool) and isinstance(value, int | float)
    return kind is object or isinstance(value, kind)


def _unlisted(owner: str, name: str, value: Any, at: str) -> str:
    allowed = ENUMS.get((owner, name))
    return (
        "" if allowed is None or value in allowed else f"{at}.{name}: {value!r:.40} is none of {', '.join(allowed)}".lstrip(".")
    )


def _optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)

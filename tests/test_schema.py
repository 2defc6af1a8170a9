"""The published schema of results.json: up to date, true of what an audit writes, and false of what is not that."""

import copy
import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
from semseal.runtime.audit.matrix import FULL
from semseal.runtime.audit.results import Results
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.schema import mismatch, schema
from semseal.runtime.errors import AuditError

DOCS = Path(__file__).parent.parent / "docs"
PUBLISHED = json.loads((DOCS / "results.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(PUBLISHED)

TINY = dataclasses.replace(
    FULL, pictures=6, optimised_pictures=6, attacker_pictures=60, eve_snrs=(10.0,), defenses=("none", "mix"),
    attacks=("no-key", "identification"),
)  # fmt: skip


@pytest.fixture(scope="module")
def written(small_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "out"
    audit([small_bundle], "photos", out, TINY, budgets={"identification": 0.5})
    return json.loads((out / "results.json").read_text())


def test_the_published_schema_is_that_of_the_dataclasses():
    jsonschema.Draft202012Validator.check_schema(PUBLISHED)
    assert schema(Results) == PUBLISHED, "python -m semseal.runtime.audit.results > docs/results.schema.json"


def test_what_an_audit_writes_is_valid(written):
    VALIDATOR.validate(written)
    assert mismatch(written, Results) == ""
    assert written["gate"]
    assert written["games"]


@pytest.fixture(scope="module")
def whole(written):
    """The same with an ordering, and of each list only the first and the last, which are what is changed below."""
    committed = json.loads((DOCS / "results-eves.json").read_text())
    return ends({**written, "orderings": committed["orderings"][:1]})


def ends(value):
    if isinstance(value, dict):
        return {name: ends(held) for name, held in value.items()}
    return [ends(held) for held in (value if len(value) < 3 else (value[0], value[-1]))] if isinstance(value, list) else value


def current():
    """The committed results of an audit by this version."""
    for file in sorted(DOCS.glob("results-*.json")):
        try:
            Results.from_json(file.read_text())
        except AuditError:
            continue
        yield file


@pytest.mark.parametrize("file", current(), ids=lambda file: file.name)
def test_committed_results_of_this_version_are_valid(file):
    VALIDATOR.validate(json.loads(file.read_text()))


def places(value, at=()):
    """Every place in a document; of a list the first and the last."""
    yield at
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*at, name))
    if isinstance(value, list):
        for i in sorted({0, len(value) - 1} if value else set()):
            yield from places(value[i], (*at, i))


def changed(document, at, change):
    """A copy with ``change(parent, key)`` done at a place."""
    copied = copy.deepcopy(document)
    parent = copied
    for key in at[:-1]:
        parent = parent[key]
    change(parent, at[-1])
    return copied


def set_to(value):
    return lambda parent, key: parent.__setitem__(key, copy.deepcopy(value))


CHANGES = (
    *(set_to(value) for value in ({"a": 1}, ["a"], [], True, None, 1, 1.5, "x")),
    lambda parent, key: parent.pop(key),
    lambda parent, key: parent.update(more=1) if isinstance(parent, dict) else parent.append({}),
)


def test_the_schema_and_from_json_refuse_the_same_documents(whole):
    VALIDATOR.validate(whole)
    refused = 0
    for at in list(places(whole))[1:]:
        for change in CHANGES:
            document = changed(whole, at, change)
            valid = VALIDATOR.is_valid(document)
            assert valid == (mismatch(document, Results) == ""), at
            if not valid:
                refused += 1
                with pytest.raises(AuditError, match="not the results of an audit by this version"):
                    Results.from_json(json.dumps(document))
    assert refused > 1000


@pytest.mark.parametrize(("member", "name"), [("rows", "verdict"), ("games", "measure"), ("orderings", "verdict")])
def test_a_word_that_is_none_of_the_known_is_refused(whole, member, name):
    document = copy.deepcopy(whole)
    document[member][-1][name] = "secure"
    assert not VALIDATOR.is_valid(document)
    with pytest.raises(AuditError, match="'secure' is none of"):
        Results.from_json(json.dumps(document))


@pytest.mark.parametrize("document", [None, [], 3, "text", {}, {"what": "semseal audit"}])
def test_other_documents_are_refused(document):
    assert not VALIDATOR.is_valid(document)
    with pytest.raises(AuditError, match="not the results of an audit"):
        Results.from_json(json.dumps(document))

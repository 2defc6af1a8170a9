"""results.json: written once, and read back."""

import json
from pathlib import Path

import pytest
from madeup import EVERY_ATTACK, made_up
from semseal.runtime.audit.attacks import BY_NAME
from semseal.runtime.audit.results import Results
from semseal.runtime.defense.defenses import BY_NAME as DEFENSE_BY_NAME
from semseal.runtime.errors import AuditError

ROOT = Path(__file__).parent.parent


def test_what_was_written_is_read_back():
    results = made_up(11, EVERY_ATTACK)
    assert Results.from_json(results.to_json()) == results


@pytest.mark.parametrize("name", ["eves", "snrs"])
def test_results_in_the_documentation_are_read_to_the_last_byte(name):
    text = (ROOT / f"docs/results-{name}.json").read_text()
    results = Results.from_json(text)
    assert results.to_json() == text
    for row in (*results.rows, *results.games):
        assert row.defense in DEFENSE_BY_NAME
        assert row.attack in BY_NAME or (row.attack in ("bob", "mean-picture") and row.verdict is None)
    assert set(results.settings.attacks) <= set(BY_NAME)
    for game in results.games:
        assert game.measure == ("rate" if game.attack in ("identification", "stored-frame") else "area")


def older(found):
    found["settings"]["eve_pictures"] = found["settings"].pop("attacker_pictures")


def without_rows(found):
    del found["rows"]


def with_more(found):
    found["rows"][0]["nearer_db"] = 1.0


def rows_of_text(found):
    found["rows"] = ["white-box"]


@pytest.mark.parametrize("change", [older, without_rows, with_more, rows_of_text])
def test_results_of_another_version_are_refused(change):
    found = json.loads(made_up(11).to_json())
    change(found)
    with pytest.raises(AuditError, match="not the results of an audit by this version"):
        Results.from_json(json.dumps(found))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"rows": [], "settings": 3}'])
def test_what_is_no_result_at_all_is_refused(text):
    with pytest.raises(AuditError, match="not the results of an audit"):
        Results.from_json(text)

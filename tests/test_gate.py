"""Budgets on made-up audits: what is compared, what is refused, the words, and the JUnit file."""

import dataclasses
import xml.etree.ElementTree as ET

import pytest
import xmlschema
from madeup import EVERY_ATTACK, PICTURES, changed, made_up
from semseal.runtime.audit.gate import FIGURES, check_budgets, complaint, judge, line, write_junit
from semseal.runtime.audit.results import GameRow, Results
from semseal.runtime.audit.wording import beside
from semseal.runtime.errors import AuditError

# the shape that Jenkins, GitLab and GitHub's actions read: suites, a suite with counts, cases with at most one outcome
SCHEMA = """<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <xs:complexType name="outcome" mixed="true">
    <xs:attribute name="message" type="xs:string"/><xs:attribute name="type" type="xs:string"/>
  </xs:complexType>
  <xs:attributeGroup name="counts">
    <xs:attribute name="name" type="xs:string"/><xs:attribute name="time" type="xs:decimal"/>
    <xs:attribute name="tests" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="failures" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="errors" type="xs:nonNegativeInteger" use="required"/>
  </xs:attributeGroup>
  <xs:complexType name="case"><xs:sequence>
    <xs:choice minOccurs="0"><xs:element name="failure" type="outcome"/><xs:element name="error" type="outcome"/></xs:choice>
    <xs:element name="system-out" type="xs:string" minOccurs="0"/>
  </xs:sequence>
    <xs:attribute name="name" type="xs:string" use="required"/><xs:attribute name="classname" type="xs:string" use="required"/>
    <xs:attribute name="time" type="xs:decimal"/>
  </xs:complexType>
  <xs:complexType name="suite"><xs:sequence>
    <xs:element name="properties" minOccurs="0"><xs:complexType><xs:sequence>
      <xs:element name="property" maxOccurs="unbounded"><xs:complexType>
        <xs:attribute name="name" type="xs:string" use="required"/><xs:attribute name="value" type="xs:string" use="required"/>
      </xs:complexType></xs:element>
    </xs:sequence></xs:complexType></xs:element>
    <xs:element name="testcase" type="case" maxOccurs="unbounded"/>
  </xs:sequence><xs:attributeGroup ref="counts"/><xs:attribute name="skipped" type="xs:nonNegativeInteger"/></xs:complexType>
  <xs:element name="testsuites"><xs:complexType>
    <xs:sequence><xs:element name="testsuite" type="suite" maxOccurs="unbounded"/></xs:sequence>
    <xs:attributeGroup ref="counts"/>
  </xs:complexType></xs:element>
</xs:schema>"""


def games(results: Results, where, **values) -> Results:
    """The results with other ``values`` in those games that ``where`` picks."""
    rows = tuple(dataclasses.replace(game, **values) if where(game) else game for game in results.games)
    assert rows != results.games
    return dataclasses.replace(results, games=rows)


def judged(results: Results, *, defenses=("mix",), **budgets: float):
    settings = dataclasses.replace(results.settings, defenses=defenses)
    found = judge(budgets, results, settings, results.every_place)
    return found[0] if len(found) == 1 else found


MADE = made_up(11, EVERY_ATTACK)


def naming(game: GameRow) -> bool:
    return game.attack == "identification" and game.defense == "mix"


def test_a_budget_is_about_the_upper_end():
    results = games(MADE, naming, value=0.01, low=0.0, high=0.02)
    gate = judged(results, identification=0.02)
    assert (gate.passed, gate.figure, gate.reason) == (True, 0.02, "")
    assert not judged(results, identification=0.0199).passed
    row = next(row for row in MADE.rows if (row.attack, row.defense) == ("no-key", "mix"))
    gate = judged(MADE, psnr=20.0)
    assert gate.figure >= row.psnr + row.psnr_95
    assert gate.passed


def test_an_eve_who_is_always_wrong_knows_as_much():
    results = games(MADE, lambda game: (game.attack, game.defense) == ("linkability", "mix"), value=0.4, low=0.3, high=0.5)
    assert judged(results, linkability=0.65).figure == pytest.approx(0.7)


def test_distinguishing_is_about_all_pairs_and_naming_about_the_rate_alone():
    pair = next(game for game in MADE.games if (game.attack, game.defense) == ("distinguishing", "mix"))
    other = dataclasses.replace(pair, name="other", value=0.9, low=0.88, high=0.92)
    results = dataclasses.replace(MADE, games=(*MADE.games, other))
    assert judged(results, distinguishing=0.6).figure == 0.92
    named = next(filter(naming, MADE.games))
    other = dataclasses.replace(named, name="true positives at 1 % false", value=0.9, high=0.95)
    results = dataclasses.replace(MADE, games=(*MADE.games, other))
    assert judged(results, identification=0.5).figure == named.high


@pytest.mark.parametrize(
    ("change", "defenses", "passed", "reason"),
    [
        ({}, ("mix",), True, ""),
        ({}, ("permute", "mix"), False, ""),  # Eve wins under permutation
        ({}, ("none", "mix"), True, ""),  # the link without a defence is not judged
        ({"verdict": "void", "control_won": False}, ("mix",), False, "is void"),
        ({"verdict": "sees", "control_won": False}, ("mix",), False, "is void"),  # who fails her control may be outdone
        ({"eve_snr": 20.0}, ("mix",), False, "was not measured"),  # where it was asked for
        ({"engine": "openvino"}, ("mix",), False, "was not measured"),
        ({"bundle": "other"}, ("mix",), False, "was not measured"),
    ],
)
def test_what_was_not_measured_or_is_void_is_never_passed(change, defenses, passed, reason):
    results = games(MADE, naming, **change) if change else MADE
    gate = judged(results, defenses=defenses, identification=0.1)
    assert gate.passed is passed
    assert reason in gate.reason
    if reason:
        assert gate.figure is None
        assert line(gate).startswith("gate: fail: identification: no figure, budget 0.1; identification under mix, ")


def test_a_void_attack_on_pictures_fails_and_names_itself():
    results = changed(MADE, lambda row: (row.attack, row.defense) == ("set-inverse", "mix"), verdict="void")
    gate = judged(results, psnr=99.0)
    assert (gate.passed, gate.figure) == (False, None)
    assert gate.reason.startswith("set-inverse under mix, made-up on onnxruntime-cpu fp32, main 10 dB, Eve 10 dB, is void")
    assert "over" not in line(gate)
    skipped = dataclasses.replace(
        MADE,
        rows=tuple(row for row in MADE.rows if row.attack != "white-box"),
        skipped={"white-box and row-matching on made-up, onnxruntime-cpu fp32": "it cannot be differentiated"},
    )
    assert "it cannot be differentiated" in judged(skipped, psnr=99.0).reason


def test_misuse_is_not_held_against_a_defence():
    assert "leaked-scale" not in FIGURES
    worst = max(row.psnr + row.psnr_95 for row in MADE.rows if row.attack == "reused-stream" and row.defense == "mix")
    assert judged(MADE, psnr=99.0).figure < worst


@pytest.mark.parametrize(
    ("budgets", "attacks", "defenses", "words"),
    [
        ({"guess": 0.5}, EVERY_ATTACK, ("mix",), "no budget is named 'guess'"),
        ({"identification": 30.0}, EVERY_ATTACK, ("mix",), "identification=30 decides nothing"),
        ({"linkability": -0.1}, EVERY_ATTACK, ("mix",), "linkability=-0.1 decides nothing"),
        ({"ssim": 1.5}, EVERY_ATTACK, ("mix",), "ssim=1.5 decides nothing"),
        ({"psnr": float("inf")}, EVERY_ATTACK, ("mix",), "psnr=inf decides nothing"),
        ({"advantage": float("nan")}, EVERY_ATTACK, ("mix",), "advantage=nan decides nothing"),
        ({"linkability": 0.5}, ("identification",), ("mix",), "judges the attack 'linkability'"),
        ({"psnr": 15}, ("identification",), ("mix",), "judges attacks that end in pictures"),
        ({"identification": 0.5}, PICTURES, ("mix",), "judges the attack 'identification'"),
        ({"identification": 0.5}, EVERY_ATTACK, ("none",), "none is measured"),
    ],
)
def test_a_budget_that_nothing_can_decide_is_refused(budgets, attacks, defenses, words):
    with pytest.raises(AuditError, match=words) as raised:
        check_budgets(budgets, dataclasses.replace(MADE.settings, attacks=attacks, defenses=defenses))
    assert raised.value.hint


@pytest.mark.parametrize(
    ("value", "bound", "digits", "shown"),
    [
        (15.04, 15, 1, "15.04"), (15.0, 15, 1, "15.0"), (14.97, 15, 1, "14.97"), (14.94, 15, 1, "14.9"),
        (0.0200004, 0.02, 4, "0.0200004"), (0.02, 0.02, 4, "0.0200"), (3.0, float("inf"), 1, "3.0"),
        (0.1 + 0.2, 0.3, 4, "0.30000000000000004"),
    ],
)  # fmt: skip
def test_a_figure_is_not_rounded_across_its_bound(value, bound, digits, shown):
    assert beside(value, bound, digits) == shown


def test_a_line_says_pass_or_fail_with_figure_bound_and_place():
    results = games(MADE, naming, value=0.01, high=0.020004)
    gate = judged(results, identification=0.02)
    where = "(identification, mix, made-up on onnxruntime-cpu fp32, main 10 dB, Eve 10 dB)"
    assert line(gate) == f"gate: fail: identification 0.020004 > 0.02 {where}"
    message, hint = complaint([gate])
    assert message == (
        "over the leakage budget: Eve's rate in naming the picture may be as high as 0.020004 (upper 95 % bound), "
        "the budget is 0.02"
    )
    assert "measure on more --pictures" in hint  # it is mix already
    assert line(judged(results, identification=0.5)).startswith("gate: pass: identification 0.0200 <= 0.5 ")


def test_the_gate_is_in_results_and_on_the_page(tmp_path):
    gates = judged(MADE, identification=0.5, linkability=0.1)
    results = dataclasses.replace(MADE, gate=gates)
    assert Results.from_json(results.to_json()) == results
    bare = dataclasses.replace(results, orderings=())
    assert [gate.passed for gate in bare.gate] == [True, False]


def test_junit_has_a_case_for_each_budget_and_the_common_shape(tmp_path):
    void = changed(MADE, lambda row: (row.attack, row.defense) == ("set-inverse", "mix"), verdict="void")
    void = dataclasses.replace(void, data="folder:a&b<c>\x01")
    results = dataclasses.replace(void, gate=judged(void, identification=0.5, linkability=0.1, psnr=99.0))
    write_junit(tmp_path / "gate.xml", results)
    xmlschema.XMLSchema(SCHEMA).validate(tmp_path / "gate.xml")
    (suite,) = ET.parse(tmp_path / "gate.xml").getroot()
    assert {name: suite.get(name) for name in ("tests", "failures", "errors")} == {"tests": "3", "failures": "2", "errors": "0"}
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert cases["identification"].find("failure") is None
    assert cases["linkability"].find("failure").get("type") == "budget"
    assert cases["psnr"].find("failure").get("type") == "unmeasured"
    for gate in results.gate:
        assert cases[gate.name].findtext("system-out") == line(gate)
    properties = {found.get("name"): found.get("value") for found in suite.iter("property")}
    assert properties["data"] == "folder:a&b<c>\ufffd"
    assert properties["bundles"] == "made-up"


def test_a_schema_that_knows_no_failures_would_refuse_it(tmp_path):
    results = dataclasses.replace(MADE, gate=(judged(MADE, linkability=0.1),))
    write_junit(tmp_path / "gate.xml", results)
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        xmlschema.XMLSchema(SCHEMA.replace('name="failure"', 'name="fault"')).validate(tmp_path / "gate.xml")

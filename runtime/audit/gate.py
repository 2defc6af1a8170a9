"""The gate: figures of an audit against the largest that may be, and the same as a JUnit file.

    a game      by the name of its attack: how often, or how surely, Eve wins, under the defence where she does best;
                of integrity it is in dB, of timing the t of a test
    psnr        Eve's mean PSNR in dB, by the attack that does best; so are ssim and advantage, her matching advantage in dB

What is compared is the upper end of the 95 % interval, wherever there is one; of an area under the ROC curve that of the side
it is on, as an Eve who is always wrong knows as much. A budget is about every defence, place and SNR of Eve's that the command
asked for, but neither about the link without a defence nor about misuse. For identification and stored-frame it is about the
rate of naming the picture, for distinguishing about all pairs. What was not measured, or is void because the attack failed
where it must win, has no figure: such a budget is not kept.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from semseal.runtime.audit.attacks import ATTACKS, BY_NAME, Attack, snrs_of
from semseal.runtime.audit.results import GameRow, Gate, PictureRow, Results, cell_of
from semseal.runtime.audit.settings import Cell, Place, Settings, eve_at
from semseal.runtime.audit.wording import beside
from semseal.runtime.defense.defenses import BY_NAME as DEFENSES
from semseal.runtime.errors import AuditError
from semseal.runtime.files import write_atomically, xml_text

Row = GameRow | PictureRow


@dataclasses.dataclass(frozen=True)
class _Figure:
    """What a budget of this name is about: of which attacks, and which figure of a row, with its upper end."""

    what: str
    attacks: tuple[str, ...]
    upper: Callable[[Row], float | None]  # None: this row is not meant
    unit: str = ""
    least: float = 0.0
    most: float = 1.0


def _area(row: Row) -> float | None:
    assert isinstance(row, GameRow)
    return max(row.high, 1 - row.low) if row.measure == "area" else row.high


def _top(row: Row) -> float | None:
    assert isinstance(row, GameRow)
    return row.high if row.name == "top-1" else None


def _upper_of(name: str) -> Callable[[Row], float | None]:
    def upper(row: Row) -> float | None:
        value, half = getattr(row, name), getattr(row, f"{name.removesuffix('_db')}_95")
        return None if value is None else float(value) + float(half or 0.0)

    return upper


def _game(attack: Attack) -> _Figure:
    named = attack.name in ("identification", "stored-frame")
    what = {
        "identification": "Eve's rate in naming the picture",
        "stored-frame": "Eve's rate in naming the picture from stored frames",
    }
    of = what.get(attack.name, f"Eve's success in {attack.name}"), (attack.name,), _top if named else _area
    unit, least, most = {"integrity": (" dB", -math.inf, math.inf), "timing": ("", 0.0, math.inf)}.get(
        attack.name, ("", 0.0, 1.0)
    )
    return _Figure(*of, unit, least, most)


_PICTURES = tuple(attack.name for attack in ATTACKS if not attack.game and not attack.misuse)
FIGURES = {attack.name: _game(attack) for attack in ATTACKS if attack.game and not attack.misuse} | {
    "psnr": _Figure("Eve's PSNR", _PICTURES, _upper_of("psnr"), " dB", -math.inf, math.inf),
    "ssim": _Figure("Eve's SSIM", _PICTURES, _upper_of("ssim"), least=-1.0),
    "advantage": _Figure("Eve's matching advantage", _PICTURES, _upper_of("matching_advantage_db"), " dB", -math.inf, math.inf),
}


def check_budgets(budgets: Mapping[str, float], settings: Settings) -> None:
    """Raises AuditError for a budget that has no such name or bound, or whose attack or defence is not measured."""
    for name, bound in budgets.items():
        if name not in FIGURES:
            raise AuditError(f"no budget is named {name!r}", f"choose among {', '.join(FIGURES)}")
        least, most = FIGURES[name].least, FIGURES[name].most
        if not (math.isfinite(bound) and least <= bound <= most):
            among = f"from {least:g} to {most:g}" if math.isfinite(most) else "finite"
            percent = f": {bound:g} % is {name}={bound / 100:g}" if 1 < bound <= 100 and most == 1 else ""
            raise AuditError(f"--budget {name}={bound:g} decides nothing", f"give a value that is {among}{percent}")
        if not set(FIGURES[name].attacks) & set(settings.attacks):
            other = "attacks that end in pictures" if len(FIGURES[name].attacks) > 1 else f"the attack {name!r}"
            raise AuditError(
                f"--budget {name} judges {other}, which this audit leaves out",
                f"measure both: leave out --attack, or add --attack {FIGURES[name].attacks[0]}",
            )
        if not _judged(settings):
            raise AuditError(
                f"--budget {name} judges what Eve gets under a defence; none is measured", "measure both: add --defense mix"
            )


def judge(budgets: Mapping[str, float], results: Results, settings: Settings, places: Sequence[Place]) -> tuple[Gate, ...]:
    """Whether each budget is kept by what ``settings`` asked for at ``places``; earlier runs are not judged again."""
    return tuple(_judge(name, bound, results, settings, places) for name, bound in budgets.items())


def _judge(name: str, bound: float, results: Results, settings: Settings, places: Sequence[Place]) -> Gate:
    figure = FIGURES[name]
    found: dict[Cell, list[Row]] = {}
    for row in results.judged:
        found.setdefault(cell_of(row), []).append(row)
    worst: tuple[float, Cell] | None = None
    gaps = []
    for cell in _cells(figure, settings, places):
        rows = [(upper, row) for row in found.get(cell, []) if (upper := figure.upper(row)) is not None]
        if not rows or any(_is_void(row) for _, row in rows):
            gaps.append(
                (cell, "is void: it failed where it must win" if rows else why_missing(cell, results) or "was not measured")
            )
            continue
        for upper, _ in rows:
            if worst is None or upper > worst[0]:
                worst = upper, cell
    if worst is not None and worst[0] > bound:  # over, whatever was not measured
        return Gate(name, bound, worst[0], False, figure.what, "", worst[1])
    if gaps or worst is None:
        if not gaps:
            return Gate(name, bound, None, False, figure.what, "nothing was measured", None)
        missing, why = gaps[0]
        more = f", and {len(gaps) - 1} more" if len(gaps) > 1 else ""
        where = f"{missing.attack} under {DEFENSES[missing.defense].title}, {_place(missing)}"
        return Gate(name, bound, None, False, figure.what, f"{where}, {why}{more}", missing)
    return Gate(name, bound, worst[0], True, figure.what, "", worst[1])


def _judged(settings: Settings) -> list[str]:
    return [defense for defense in settings.defenses if defense != "none"]


def _cells(figure: _Figure, settings: Settings, places: Sequence[Place]) -> list[Cell]:
    return [
        place.cell(name, defense, snr)
        for place in places
        for name in figure.attacks
        if name in settings.attacks
        for snr in snrs_of(BY_NAME[name], settings)
        for defense in _judged(settings)
        if BY_NAME[name].applies(DEFENSES[defense])
    ]


def _is_void(row: Row) -> bool:
    """Also of a game that Eve won, when she lost her control: she may be outdone."""
    return row.verdict == "void" or (isinstance(row, GameRow) and not row.control_won)


def why_missing(cell: Cell, results: Results) -> str:
    """Why a cell that was asked for has no figure, as far as that is known."""
    place = f"on {cell.bundle}, {cell.engine} {cell.precision}"
    reasons = (
        reason
        for what, reason in results.skipped.items()
        if what == cell.attack or (cell.attack in what and what.endswith(place))
    )
    return next((f"could not be measured: {reason}" for reason in reasons), "")


def _place(cell: Cell) -> str:
    eve = "" if cell.eve_snr is None else f", {eve_at(cell.eve_snr)}"
    return f"{cell.bundle} on {cell.engine} {cell.precision}, main {cell.main_snr:g} dB{eve}"


# in words


def line(gate: Gate) -> str:
    """One line: pass or fail, the figure and its bound, and where."""
    if gate.figure is None or gate.cell is None:
        return f"gate: fail: {gate.name}: no figure, budget {gate.bound:g}; {gate.reason}"
    unit = FIGURES[gate.name].unit
    sign = "<=" if gate.figure <= gate.bound else ">"
    where = f"{gate.cell.attack}, {DEFENSES[gate.cell.defense].title}, {_place(gate.cell)}"
    word = "pass" if gate.passed else "fail"
    return f"gate: {word}: {gate.name} {beside(gate.figure, gate.bound, 4)}{unit} {sign} {gate.bound:g}{unit} ({where})"


def complaint(gates: Sequence[Gate]) -> tuple[str, str]:
    """Message and hint for those that are not kept."""
    failed = [gate for gate in gates if not gate.passed]
    said = []
    for gate in failed:
        unit = FIGURES[gate.name].unit
        what = f"was not measured ({gate.reason})"
        if gate.figure is not None:
            what = f"may be as high as {beside(gate.figure, gate.bound, 4)}{unit} (upper 95 % bound)"
        said.append(f"{gate.what} {what}, the budget is {gate.bound:g}{unit}")
    if all(gate.figure is None for gate in failed):
        hint = "measure it: leave out --quick, which gives attacks too few steps, or choose attacks with --attack"
    elif any(gate.cell is not None and DEFENSES[gate.cell.defense].broken for gate in failed):
        hint = "choose a defence that holds (mix), or measure on more --pictures, which narrows the bound"
    else:
        hint = "measure on more --pictures, which narrows the bound; if it stays, Eve sees that much: do not deploy this link"
    return f"over the leakage budget: {'; '.join(said)}", hint


def write_junit(file: Path, results: Results) -> None:
    """The gate as JUnit XML: one suite, a test case for each budget, those not kept as failures. OSError with the path."""
    counts = {"tests": len(results.gate), "failures": sum(not gate.passed for gate in results.gate), "errors": 0}
    told = {"name": "semseal audit", **{name: str(count) for name, count in counts.items()}}
    document = ElementTree.Element("testsuites", told)
    suite = ElementTree.SubElement(document, "testsuite", told)
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in {
        "bundles": ", ".join(dict.fromkeys(bundle.name for bundle in results.bundles)),
        "data": results.data,
        "pictures": str(results.settings.pictures),
        "seed": str(results.settings.seed),
    }.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": xml_text(value)})
    for gate in results.gate:
        case = ElementTree.SubElement(suite, "testcase", {"name": gate.name, "classname": "semseal-audit"})
        said = xml_text(line(gate))
        if not gate.passed:
            kind = "unmeasured" if gate.figure is None else "budget"
            failure = ElementTree.SubElement(case, "failure", {"type": kind, "message": said})
            failure.text = xml_text(complaint([gate])[0])
        ElementTree.SubElement(case, "system-out").text = said
    ElementTree.indent(document)
    write_atomically(file, ElementTree.tostring(document, "utf-8", xml_declaration=True) + b"\n")

"""The verdicts of an audit as sentences: the headline, what it does not cover, and figures in words."""

import math

from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.results import PictureRow, Results
from semseal.runtime.audit.verdict import Verdict, verdicts
from semseal.runtime.defense.defenses import BY_NAME

FEW_PICTURES = 100
MAX_DIGITS = 17  # of a float; more tell no two apart
MATCHING_ADVANTAGE = (
    "matching advantage: how many dB an answer is closer to the picture sent than to others, beyond easy pictures and easy "
    "answers; 0 for an Eve who learned nothing"
)


def headline(results: Results) -> list[str]:
    """The verdict for a reader in a hurry: what falls and to what, what holds and how far, what was not found out."""
    found = verdicts(results)
    fallen: dict[str | None, list[Verdict]] = {}
    for verdict in found:
        if verdict.word == "falls" and verdict.defense != "none":
            sees = verdict.worst is not None and verdict.worst.verdict == "sees"
            fallen.setdefault(verdict.worst.attack if verdict.worst and sees else None, []).append(verdict)
    sentences = [_falls(attack, group) for attack, group in fallen.items()]
    sentences += [_stands(verdict) for verdict in found if verdict.word != "falls"]
    for verdict in found:
        if verdict.defense == "none" and verdict.worst and verdict.word == "falls":
            worst = verdict.worst
            sentences.append(f"Without a defence Eve gets {worst.psnr:.1f} dB ({worst.attack}), {_beside_bob(worst)}.")
    return sentences


def _falls(attack: str | None, group: list[Verdict]) -> str:
    """That the defences of ``group`` fall to ``attack``, or to games alone."""
    names = listed([BY_NAME[verdict.defense].title for verdict in group])
    text = f"{names[0].upper()}{names[1:]} fall{'s' if len(group) == 1 else ''}"
    if attack is None:
        return f"{text}: Eve gets no picture, but wins games without the key."
    worst = max((verdict.worst for verdict in group if verdict.worst), key=lambda row: row.matching_advantage_db or 0.0)
    return (
        f"{text} to an Eve without the key: with {attack} she gets {worst.psnr:.1f} dB, {_beside_bob(worst)}, "
        f"a matching advantage of {worst.matching_advantage_db:z.1f} dB."
    )


def _stands(verdict: Verdict) -> str:
    """What is said of a defence that does not fall."""
    title = BY_NAME[verdict.defense].title
    name = f"{title[0].upper()}{title[1:]}"
    if verdict.word == "undecided":
        total = verdict.nothing + verdict.open
        return (
            f"{name} is undecided: {verdict.nothing} of {total} measurements saw next to nothing; "
            "the others need more pictures or trials."
        )
    if verdict.word in ("void", "not measured"):
        return f"{name} is {verdict.word}: nothing here says whether it holds."
    text = f"{name} {verdict.word.replace(' with gaps', ', with gaps,')} against what was measured here: "
    text += "the one measurement" if verdict.nothing == 1 else f"all {verdict.nothing} measurements"
    text += " saw next to nothing"
    if verdict.named and verdict.named.control_won:
        text += f"; Eve names the picture at most {at_most(verdict.named.high)} % of the time"
    return text + ". That is no proof."


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _beside_bob(row: PictureRow) -> str:
    """How far a row is from Bob, over the same pictures."""
    below = row.below_bob_db or 0.0
    if abs(below) < 0.05:
        return "as much as Bob"
    return f"{abs(below):.1f} dB {'less' if below > 0 else 'more'} than Bob"


def limits(results: Results) -> list[str]:
    """What the verdict does not cover."""
    settings, found = results.settings, verdicts(results)
    said = []
    if settings.pictures < FEW_PICTURES:
        few = f", {settings.optimised_pictures} for {names}" if (names := optimised(results)) else ""
        said.append(f"{settings.pictures} pictures{few}: the intervals are wide.")
    if any(row.verdict is not None for row in results.rows):
        # where none of n pictures leaks, at most 3 / n of all do, with 95 % confidence
        rare = f"one picture in {settings.pictures // 3}"
        fewer = settings.optimised_pictures // 3
        if optimised(results) and fewer != settings.pictures // 3:
            rare += f", and in {fewer} for {optimised(results)},"
        said.append(f"These are means over pictures: a leak of fewer than {rare} may have been missed.")
    void = sorted({name for verdict in found for name in verdict.void})
    if void:
        said.append(
            f"Void, in whole or in part: {listed(void)}. Each failed, or was not tried, where it must win, so its low figures "
            "show nothing."
        )
    missing = sorted({name for verdict in found for name in verdict.missing})
    if missing:
        everywhere = len(results.bundles) * len(settings.eve_snrs) * len(settings.precisions) == 1
        measured = {row.attack for row in results.judged}
        if never := [name for name in missing if name not in measured]:
            said.append(f"Not measured: {listed(never)}.")
        if partly := [name for name in missing if name in measured]:
            said.append(f"Not measured under every defence{'' if everywhere else ' and at every place'}: {listed(partly)}.")
    said += _apart(results)
    gains = [(verdict.defense, verdict.misuse.matching_advantage_db) for verdict in found if verdict.misuse]
    if gains:
        told = listed([f"{gain:.1f} dB under {BY_NAME[name].title}" for name, gain in gains])
        said.append(
            f"Not judged: one key for several packets, which semseal never sends. It gives Eve a matching advantage of {told}."
        )
    return said


def _apart(results: Results) -> list[str]:
    """What attacks found that are no eavesdropper's, so that no defence falls or holds by them."""
    said = []
    for attack in (attack for attack in ATTACKS if attack.apart):
        rows = [row for row in results.games if row.attack == attack.name and row.defense != "none"]
        seen: dict[str, list[str]] = {}
        for row in rows:
            if row.verdict == "sees":
                seen.setdefault(BY_NAME[row.defense].title, []).append(row.name)
        for title, names in seen.items():
            said.append(f"Apart from eavesdropping, under {title} {attack.apart} ({listed(list(dict.fromkeys(names)))}).")
        if unclear := {row.name for row in rows if row.verdict in ("open", "void")}:
            said.append(f"Apart from eavesdropping, {attack.name} is undecided or void for {listed(sorted(unclear))}.")
    return said


def optimised(results: Results | None = None) -> str:
    """The attacks that take few pictures; of ``results`` those that were measured, "" for none."""
    measured = None if results is None else {row.attack for row in results.judged}
    names = [attack.name for attack in ATTACKS if attack.optimised and (measured is None or attack.name in measured)]
    return listed(names) if names else ""


def convincing(row: PictureRow) -> str:
    """What is said beside the pictures of an Eve who invents what she does not know."""
    half = "" if row.matching_advantage_95 is None else f" ± {row.matching_advantage_95:.1f}"
    figures = f"matching advantage {row.matching_advantage_db:+z.1f}{half} dB"
    if row.named is not None and row.named_chance is not None:
        figures += f", the right one named {percent(row.named)} % of the time, by chance {percent(row.named_chance)} %"
    if row.verdict == "sees":
        return f"{row.attack}: what Eve does not know she invents, and here she knows something: {figures}."
    if row.verdict == "nothing":
        said = "her pictures are wrong, however convincing they look, each one of nobody that was sent"
        return f"{row.attack}: {said}: {figures}."
    reason = {"open": "too few pictures tell whether any of it is right", "void": "void, so it shows nothing"}[
        row.verdict or "void"
    ]
    return f"{row.attack}: her pictures may look convincing; {reason}: {figures}."


def counts(verdict: Verdict) -> str:
    """What is behind the word: figures that count, then attacks that do not."""
    parts = [(verdict.sees, "saw something"), (verdict.nothing, "saw nothing"), (verdict.open, "open")]
    parts += [(len(verdict.void), "void"), (len(verdict.missing), "not measured")]
    return ", ".join(f"{count} {what}" for count, what in parts if count)


def at_most(rate: float) -> str:
    """An upper bound in per cent with two digits, rounded up so that it stays one."""
    digits = 1 if rate < 0.099 else 0
    return f"{math.ceil(round(100 * rate * 10**digits, 6)) / 10**digits:.{digits}f}"


def percent(rate: float) -> str:
    """A rate in per cent with two digits."""
    return f"{100 * rate:.1f}" if rate < 0.0995 else f"{100 * rate:.0f}"


def beside(value: float, bound: float, digits: int) -> str:
    """A figure with as many digits, at least ``digits``, as it takes to be seen on its side of a bound."""
    while digits < MAX_DIGITS:
        shown = float(f"{value:.{digits}f}")
        if (shown > bound, shown < bound) == (value > bound, value < bound):
            break
        digits += 1
    return f"{value:.{digits}f}"

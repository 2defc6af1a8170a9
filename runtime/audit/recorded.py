"""What Eve gets who recorded a link: attacks of the table, on symbols that were on air and not on any that are sent for her.

    recording ── frames, in their order ── attacks, for each defence that may be behind ── reconstructions ── report.html
    pictures that were sent, where somebody has them ── places ── PSNR, SSIM, matching advantage, verdict ── results.json

Eve has the bundle and images of her own, whose frames she makes herself. A recording has no header: she does not know the
defence beyond what the number of symbols tells, and no scale. Her SNR she measures, as what the power of all frames exceeds 1
by; in a recording without noise she takes hers for 40 dB, unless she knows of none (``Settings.eve_snrs`` infinite). Without
the pictures that were sent nothing can be scored.

The positive control is simulated: the same attack on the same pictures at the same SNR, under a defence that it must break.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from semseal.runtime import metrics
from semseal.runtime.audit.attacks import ATTACKS, BY_NAME
from semseal.runtime.audit.cell import matching_advantage
from semseal.runtime.audit.links import Link, check, links
from semseal.runtime.audit.recordedpage import RecordedResults, RecordedRow, write_page
from semseal.runtime.audit.recordedscene import Case, RecordedScene, attackers, choose, estimated_snr_db, pictures_sent
from semseal.runtime.audit.recording import Recording, read_recording
from semseal.runtime.audit.results import Reconstructions
from semseal.runtime.audit.run import PACKAGES
from semseal.runtime.audit.scene import QUIET_DB, Images, finite
from semseal.runtime.audit.settings import Settings
from semseal.runtime.audit.taken import MIN_PICTURES
from semseal.runtime.audit.verdict import control_won, judge_pictures, with_control, word_of
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense import mix
from semseal.runtime.defense.defenses import BY_NAME as DEFENSES
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.environment import environment
from semseal.runtime.errors import AuditError
from semseal.runtime.files import check_writable, shown, write_atomically
from semseal.runtime.progress import told

RECORDED = tuple(attack.name for attack in ATTACKS if attack.recorded)
DEFAULT = ("none", "permute+substitute", "mix")  # what Eve supposes, as far as the number of symbols lets her
WHAT = "semseal audit --recording"
SHOWN = 12  # pictures of each attack on the page
UNKNOWN = "the pictures that were sent are not known: --sent names them"
UNALIGNED = "no frame can be aligned with the pictures of --sent"
_WHATEVER = ("white-box", "no-key")  # these do the same whatever she supposes
_CONTROL = "control"

Key = tuple[str, str]  # an attack, and the defence that it supposes or _CONTROL


def audit_recording(
    bundle: Path,
    recording: Path,
    data: str,
    out: Path,
    settings: Settings,
    supposed: Sequence[str] = (),
    sent: Sequence[Path] = (),
) -> RecordedResults:
    """Attack a recording, and write ``out``/results.json and report.html.

    ``supposed`` are the defences that Eve takes into account; none: ``DEFAULT``, as far as they fit. ``sent`` are pictures,
    folders or videos as ``semseal send`` was given them.

    Raises AuditError for a recording that cannot be attacked with this bundle and for an ``out`` with other files,
    PictureError for too few pictures, EngineError where the engine cannot be had.
    """
    _check_out(out)
    if unsent := [name for name in supposed if DEFENSES[name].rival]:
        raise AuditError(f"{', '.join(unsent)}: no transmitter sends that", f"choose --defense among {', '.join(MODES)}")
    opened = open_bundle(bundle)
    link = links([opened], settings)[0]
    check([link], settings)
    sizes = dict.fromkeys(MODES, opened.n_symbols) | {"mix": mix.padded_size(2 * opened.n_symbols) // 2}
    found = read_recording(recording, set(sizes.values()), {sizes[name] for name in supposed})
    fitting = [name for name in supposed or DEFAULT if sizes[name] == found.n]
    if not fitting:
        message = f"{shown(recording)}: a frame has {found.n} symbols, as under {', '.join(supposed)} it has not"
        raise AuditError(message, "leave out --defense, or name the bundle whose link was recorded")
    if not set(settings.attacks) & set(RECORDED):
        raise AuditError(f"{', '.join(settings.attacks)}: not for recordings", f"choose from {', '.join(RECORDED)}")
    wanted = tuple(name for name in settings.attacks if name in RECORDED)
    stored = settings.eve_snrs == (math.inf,)
    settings = dataclasses.replace(settings, attacks=wanted, defenses=tuple(fitting), eve_snrs=())
    left_out = dict(found.left_out)
    sent_pictures = pictures_sent(found, opened, sent, settings.pictures, left_out) if sent else {}
    streams = {DEFENSES[name].streams for name in fitting}
    choices = choose(found, streams, list(sent_pictures), settings.pictures, left_out)
    attacker_images, skipped = attackers(data, settings, opened)
    left_out |= skipped
    largest = max(choices.values(), key=lambda chosen: len(chosen.frames))
    snr_db, place = estimated_snr_db(largest.symbols, recording), link.places(settings)[0]
    if stored and snr_db is not None:
        raise AuditError(f"{shown(recording)} has noise, about that of {snr_db:.1f} dB", "leave out --eve-snr none")
    if snr_db is None:
        place = dataclasses.replace(place, eve_channel="awgn", eve_antennas=1)
    case = Case(opened, place, settings, attacker_images, snr_db, choices, sent_pictures, stored)
    shots = _attacked(case, [name for name in fitting if DEFENSES[name].streams in choices], left_out)
    reason = "" if sent_pictures else UNALIGNED if sent else UNKNOWN
    results = _results(case, link, found, shots, reason, left_out)
    results = dataclasses.replace(results, recording=shown(recording), data=shown(data), sent=tuple(map(shown, sent)) or None)
    out.mkdir(parents=True, exist_ok=True)
    shown_first = {"sent": case.images(largest)[:SHOWN]} if sent_pictures else {}
    shown_first |= {", supposing ".join(key): answers[:SHOWN] for key, answers in shots.items() if key[1] != _CONTROL}
    write_page(out / "report.html", results, shown_first)
    write_atomically(out / "results.json", results.to_json().encode())
    return results


def _results(
    case: Case, link: Link, found: Recording, shots: dict[Key, Images], reason: str, left_out: dict[str, str]
) -> RecordedResults:
    """Without the names that the user gave; ``reason``: why nothing can be scored."""
    rows, verdict = _rows(case, shots, reason)
    few = f"of fewer than {MIN_PICTURES} pictures there is no verdict" if verdict is None else None
    quiet = f"no noise can be told in it: {QUIET_DB:g} dB or more, and she takes hers for {QUIET_DB:g}"
    if case.stored:
        quiet = "it has no noise, as she knows"
    return RecordedResults(
        what=WHAT,
        environment=environment(PACKAGES),
        bundle=link.name,
        digest=case.bundle.digest.hex(),
        engine=case.place.engine,
        precision=case.place.precision,
        recording="",
        role=found.role,
        model=found.model,
        symbols=found.n,
        frames=len(found.frames),
        attacked=len(case.largest.frames),
        snr_db=case.snr_db,
        snr_missing=quiet if case.snr_db is None else None,
        eve_channel=case.place.eve_channel,
        data="",
        sent=None,
        verdict=verdict,
        verdict_missing=reason or few,
        rows=rows,
        left_out=left_out,
        settings=case.settings,
    )


def _check_out(out: Path) -> None:
    """Empty, or that of a recording: what was made of one before is replaced."""
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    earlier = out / "results.json"
    if there and earlier.is_file():
        with open(earlier, "rb") as file:
            if f'"what": "{WHAT}"'.encode() in file.read(100):
                there -= {"results.json", "report.html"}
    if out.is_file() or there:
        raise AuditError(f"{out} is neither empty nor of a recording", "choose another --out")
    check_writable(out / "results.json")


def _attacked(case: Case, supposed: Sequence[str], left_out: dict[str, str]) -> dict[Key, Images]:
    """What each attack gives for each defence that she supposes; ``_CONTROL`` stands for what it gives where it must win."""
    attacks = [BY_NAME[name] for name in case.settings.attacks]
    scenes = {streams: RecordedScene(case, chosen) for streams, chosen in case.choices.items()}
    anew = RecordedScene(case, case.largest, anew=True)
    if any(attack.optimised for attack in attacks) and (reason := anew.agreement_or_reason()[1]):
        left_out |= {attack.name: reason for attack in attacks if attack.optimised}
        attacks = [attack for attack in attacks if not attack.optimised]
    work: list[tuple[Key, RecordedScene, str]] = []
    for attack in attacks:
        behind = supposed[:1] if attack.name in _WHATEVER else supposed
        work += [((attack.name, name), scenes[DEFENSES[name].streams], name) for name in behind]
        if len(case.sent) >= MIN_PICTURES:
            work.append(((attack.name, _CONTROL), anew, attack.control))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    found = {}
    with Progress(*columns, transient=True) as progress, told(progress):
        bar = progress.add_task("audit", total=sum(BY_NAME[name].cost(case.settings) for (name, _), _, _ in work))
        for key, scene, defense in work:
            progress.update(bar, description=", ".join(key))
            snr_db = math.inf if case.stored else min(QUIET_DB if case.snr_db is None else case.snr_db, QUIET_DB)
            cell = case.place.cell(key[0], defense, snr_db)
            answer = BY_NAME[key[0]].run(scene, cell, lambda seconds: None)
            assert not isinstance(answer, tuple)  # no game is recorded
            found[key] = finite(answer)
            progress.advance(bar, BY_NAME[key[0]].cost(case.settings))
    return found


def _rows(case: Case, shots: dict[Key, Images], reason: str) -> tuple[tuple[RecordedRow, ...], str | None]:
    """A row for the mean picture and each attack, and the verdict on the recording; None where there is none."""
    if reason:
        rows = [RecordedRow(*key, pictures=len(found), missing=reason) for key, found in shots.items()]
        return tuple(rows), None
    judged = len(case.sent) >= MIN_PICTURES
    among = sum(supposed != _CONTROL for _, supposed in shots)
    images = case.images(case.largest)
    mean_picture = np.broadcast_to(case.attacker_images.mean(axis=0), images.shape).astype(np.float32)
    floor = _scored(images, mean_picture, 1)
    rows = [_row(("mean-picture", "none"), floor)]
    for (attack, supposed), found in shots.items():
        if supposed == _CONTROL:
            continue
        streams = DEFENSES[supposed].streams
        scored = _scored(case.images(case.choices[streams])[: len(found)], found, streams)
        row = _row((attack, supposed), scored)
        if judged and len(found) >= MIN_PICTURES:
            control = shots[attack, _CONTROL]
            won = control_won(_scored(images[: len(control)], control, 1), floor)
            advantage = metrics.mean(scored.advantage)
            row = dataclasses.replace(
                row,
                matching_advantage_db=advantage.value,
                matching_advantage_95=advantage.half_width,
                control=BY_NAME[attack].control,
                verdict=with_control(judge_pictures(scored, among), won),
            )
        rows.append(row)
    words = [row.verdict for row in rows if row.verdict is not None]
    return tuple(rows), word_of(words, missing=True) if words else None


def _scored(sent: Images, found: Images, streams: int) -> Reconstructions:
    enough = len(found) >= MIN_PICTURES
    advantage = matching_advantage(sent, found, streams) if enough else np.empty(0)
    return Reconstructions(metrics.psnr(sent, found), metrics.ssim(sent, found), advantage, found[:SHOWN])


def _row(key: Key, scored: Reconstructions) -> RecordedRow:
    psnr, ssim = metrics.mean(scored.psnr), metrics.mean(scored.ssim)
    return RecordedRow(*key, psnr.n, psnr.value, psnr.half_width, ssim.value, ssim.half_width)

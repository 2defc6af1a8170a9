"""The verbs ``audit`` and ``demo`` of the program: options into settings, and the gate into an exit code."""

import dataclasses
import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console
from semseal.runtime.bundle import PRECISIONS
from semseal.runtime.channel import CHANNELS, MAX_SNR_DB
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.engine import ENGINES
from semseal.runtime.files import check_file_writable
from semseal.runtime.ofdm import ESTIMATIONS, Radio
from semseal.runtime.options import (
    BUNDLE,
    FOLDER,
    NEW_FILE,
    POSITIVE,
    PRECISION,
    SEED,
    SNR,
    EveSnr,
    LazyChoice,
    NumberRange,
    UserPath,
    example,
)
from semseal.runtime.radio import CHANNELS as RADIO_CHANNELS

if TYPE_CHECKING:
    from semseal.runtime.audit.settings import Settings

out = Console(emoji=False)
KNOWN_CHANNELS = (*CHANNELS, *RADIO_CHANNELS)
_ONE_OF = ("engines", "precisions", "main_snrs")  # of the options of ``audit``, with --recording


def _attacks() -> Sequence[str]:
    from semseal.runtime.audit.attacks import BY_NAME

    return tuple(BY_NAME)


class Budget(click.ParamType):
    """RATE, which is identification=RATE, or NAME=VALUE. What names there are, the audit knows."""

    name = "budget"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        name, sign, number = str(value).rpartition("=")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):
            self.fail(f"{value!r} is not RATE or NAME=VALUE, such as 0.02 or linkability=0.55", param, ctx)
        return (name if sign else "identification"), bound


class Cluster(click.ParamType):
    """``local``, or the address of a Ray client server."""

    name = "local|ray://HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        found = str(value)
        address = re.fullmatch(r"ray://(?:[^\s:/@]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", found)
        if found != "local" and not (address and 0 < int(address[1]) < 2**16):
            self.fail(f"{value!r} is neither local nor ray://HOST:PORT, such as ray://head:10001", param, ctx)
        return found


@click.command(
    epilog=example(
        "semseal audit edge --data photos --out audit --quick",
        "semseal audit edge --data photos --out audit --quick --defense mix --budget 0.3",
        "semseal audit own edge --data photos --out both --engine openvino --precision int8",
        "semseal audit edge --recording air --sent photographs --data photos --out recorded --quick",
    )
)
@click.argument("bundles", nargs=-1, required=True, type=BUNDLE, metavar="BUNDLE...")
@click.option("--data", required=True, metavar="SPEC", help="photos, celeba:FOLDER or folder:FOLDER")
@click.option("--out", "folder", required=True, type=FOLDER, metavar="DIR", help="folder of the results")
@click.option("--quick", is_flag=True, help="few pictures and steps: minutes on 2 cores, wide intervals")
@click.option("--pictures", type=int, help="held-out pictures to measure on  [default: 200, with --quick 16]")
@click.option(
    "--attacker-pictures",
    type=int,
    help="other pictures, that Eve trains on  [default: 800, with --quick 200; fewer, and said, where there are no more]",
)
@click.option(
    "--defense",
    "defenses",
    multiple=True,
    type=click.Choice(list(BY_NAME)),
    help="measure only this defence; may be repeated  [default: all that the link can send, not those of others]",
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    type=LazyChoice(_attacks),
    help="measure only this attack; may be repeated  [default: all]",
)
@click.option(
    "--eve-snr",
    "eve_snrs",
    type=EveSnr(-MAX_SNR_DB, MAX_SNR_DB),
    metavar="DB",
    multiple=True,
    help="Eve's SNR in dB, or none: she has stored frames, without noise; may be repeated  [default: 0 10 20, with --quick 10]",
)
@click.option(
    "--main-snr",
    "main_snrs",
    type=SNR,
    multiple=True,
    help="Bob's SNR in dB, with a bundle for a range of them; may be repeated  [default: the middle]",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(ENGINES),
    help="what runs Alice and Bob; may be repeated  [default: the one whose plans the bundle holds, else onnxruntime-cpu]",
)
@click.option("--precision", "precisions", multiple=True, type=PRECISION, help="may be repeated  [default: fp32]")
@click.option(
    "--channel",
    "channels",
    multiple=True,
    type=click.Choice(KNOWN_CHANNELS),
    help="from Alice to Bob, tdl and cdl with the extra radio; may be repeated  [default: what the link was trained for]",
)
@click.option("--eve-channel", type=click.Choice(KNOWN_CHANNELS), help="from Alice to Eve  [default: as Bob's]")
@click.option("--eve-antennas", type=click.IntRange(1, 64), default=1, show_default=True, help="of Eve's, which she combines")
@click.option(
    "--estimation",
    type=click.Choice(ESTIMATIONS),
    help="over tdl and cdl: how Bob and Eve get to know their channels  [default: lmmse]",
)
@click.option("--delay-spread", type=POSITIVE, metavar="NS", help="over tdl and cdl, in ns  [default: 100]")
@click.option("--speed", type=NumberRange(0), metavar="KMH", help="over tdl and cdl, in km/h  [default: 3]")
@click.option(
    "--jobs",
    type=click.IntRange(1, 4096),
    help="cells at once, which share the cores  [default: 1, on a cluster one for each core]",
)
@click.option("--cluster", type=Cluster(), help="measure on a Ray cluster: local, which is this machine, or ray://HOST:PORT")
@click.option(
    "--white-box",
    type=click.Choice(["fast", "paper"]),
    default="fast",
    show_default=True,
    help="fast: 300 annealed steps of 0.05; paper: Adam 1e-3",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=Budget(),
    metavar="[NAME=]VALUE",
    help="exit with 1 if the upper 95 % bound of a figure is above VALUE under any defence measured: an attack that is a "
    "game (identification, linkability, ...), psnr, ssim or advantage; VALUE alone is identification; may be repeated",
)
@click.option("--junit", type=NEW_FILE, metavar="FILE", help="write the budgets as JUnit XML")
@click.option("--seed", type=SEED, default=0, show_default=True, help="of all that is random: noise, keys, networks")
@click.option(
    "--paper", is_flag=True, help="measure all that docs/security.md and docs/results.md show; says first what that takes"
)
@click.option(
    "--recording",
    type=NEW_FILE,
    metavar="NAME",
    help="attack what semseal send or receive --record wrote; --defense is then what Eve supposes",
)
@click.option(
    "--sent",
    multiple=True,
    type=UserPath(path_type=Path),
    metavar="PICTURES",
    help="with --recording: what semseal send was given, to score what Eve gets; may be repeated",
)
def audit(
    bundles: tuple[str, ...],
    data: str,
    folder: Path,
    jobs: int | None,
    cluster: str | None,
    budgets: tuple[tuple[str, float], ...],
    junit: Path | None,
    paper: bool,
    recording: Path | None,
    sent: tuple[Path, ...],
    **asked: Any,
) -> None:
    """Attack deployed engines and tabulate what leaks: Tables I to IV of the paper, and adaptive attacks.

    BUNDLE is a folder, or edge, edge-quality, photos-10db for those that are packaged; several stand side by side.
    The same command continues an interrupted audit.
    """
    settings = _settings(**asked)
    if recording is not None:
        refused = {"--budget": budgets, "--junit": junit, "--jobs": (jobs or 1) > 1, "--cluster": cluster, "--paper": paper}
        _audit_recording(bundles, recording, sent, data, folder, settings, asked, refused)
        return
    if sent:
        raise click.UsageError("--sent goes with --recording")
    if paper:
        _audit_paper(bundles, data, folder, jobs, cluster, settings, asked | {"budgets": budgets, "junits": junit})
        return
    _check_gate(settings, budgets, junit)
    from semseal.runtime.audit.gate import complaint, write_junit
    from semseal.runtime.audit.run import audit as run_audit
    from semseal.runtime.audit.tables import print_results

    try:
        results = run_audit([Path(name) for name in bundles], data, folder, settings, jobs, dict(budgets), cluster)
    except KeyboardInterrupt:
        click.echo("\nthe same command continues where this one stopped", err=True)
        raise
    print_results(out, results, folder, settings)
    if junit is not None:
        write_junit(junit, results)
    if not all(gate.passed for gate in results.gate):
        message, hint = complaint(results.gate)
        click.echo(f"error: {message}\nhint: {hint}", err=True)
        sys.exit(1)


def _audit_paper(
    bundles: tuple[str, ...],
    data: str,
    folder: Path,
    jobs: int | None,
    cluster: str | None,
    settings: "Settings",
    asked: dict[str, Any],
) -> None:
    """Measure every part of the whole, after saying what is left of it. ``asked`` are the options as given."""
    own = ("attacks", "defenses", "eve_snrs", "precisions", "budgets", "junits")
    if given := [f"--{name[:-1].replace('_', '-')}" for name in own if asked[name]]:
        raise click.UsageError(f"{', '.join(given)}: not with --paper, which chooses that itself")
    if asked["white_box"] != "fast":
        raise click.UsageError("--white-box: not with --paper, which measures both")
    from semseal.runtime.audit.whole import audit_everything, check_ends, estimates

    paths = [Path(name) for name in bundles]
    check_ends(data, folder)
    left = estimates(paths, folder, settings)
    for estimate in left:
        out.print(f"{estimate.part.title}: {estimate.cells} cells, about {_hours(estimate.seconds)} on two cores")
    out.print(f"all: {sum(e.cells for e in left)} cells, about {_hours(sum(e.seconds for e in left))} on two cores")
    try:
        audit_everything(
            paths, data, folder, settings, jobs, cluster, options=_as_given(("data", "folder", "jobs", "cluster", "paper"))
        )
    except KeyboardInterrupt:
        click.echo("\nthe same command continues where this one stopped", err=True)
        raise
    out.print(
        f"all tables: {folder / 'paper.md'}    reports: {', '.join(str(folder / e.part.name / 'report.html') for e in left)}"
    )


def _as_given(without: Sequence[str]) -> str:
    """The options of this command as they were given, but for some."""
    context, words = click.get_current_context(), list[str]()
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not isinstance(option, click.Option) or not given or name in without:
            continue
        values = context.params[name] if option.multiple else (context.params[name],)
        words += [option.opts[0]] if option.is_flag else [word for value in values for word in (option.opts[0], f"{value}")]
    return shlex.join(words)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _audit_recording(
    bundles: tuple[str, ...],
    recording: Path,
    sent: tuple[Path, ...],
    data: str,
    folder: Path,
    settings: "Settings",
    asked: dict[str, Any],
    refused: dict[str, Any],
) -> None:
    """Attack what was recorded. ``asked`` are the options as given, ``refused`` some that mean nothing here."""
    # Eve measures hers; only that there is no noise she may know
    measured = [snr for snr in asked["eve_snrs"] if snr != math.inf]
    refused |= {"--eve-snr": measured, "--channel": asked["channels"], "--eve-antennas": asked["eve_antennas"] > 1}
    if given := [option for option, value in refused.items() if value]:
        raise click.UsageError(f"{', '.join(given)}: not with --recording")
    several = {"BUNDLE": bundles, **{f"--{name[:-1].replace('_', '-')}": asked[name] for name in _ONE_OF}}
    if given := [option for option, value in several.items() if len(value) > 1]:
        raise click.UsageError(f"{', '.join(given)}: one with --recording")
    from semseal.runtime.audit.recorded import RECORDED, audit_recording
    from semseal.runtime.audit.recordedpage import print_recorded

    if unfit := [name for name in asked["attacks"] if name not in RECORDED]:
        raise click.UsageError(f"--attack {unfit[0]} takes more than a recording; these do not: {', '.join(RECORDED)}")
    results = audit_recording(
        Path(bundles[0]), recording, data, folder, settings, tuple(dict.fromkeys(asked["defenses"])), sent
    )
    print_recorded(out, results, folder)


def _check_gate(settings: "Settings", budgets: tuple[tuple[str, float], ...], junit: Path | None) -> None:
    """Wrong usage of the gate, told before anything is measured."""
    from semseal.runtime.audit.gate import check_budgets
    from semseal.runtime.errors import AuditError

    names = [name for name, _ in budgets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.UsageError(f"--budget {twice[0]} is given twice")
    if junit is not None and not budgets:
        raise click.UsageError("--junit writes what becomes of budgets: give one, such as --budget identification=0.02")
    if junit is not None and not junit.absolute().parent.is_dir():
        raise click.UsageError(f"--junit {junit}: the folder {junit.parent} is not there")
    if junit is not None:
        check_file_writable(junit)  # before the minutes or hours that the audit takes
    try:
        check_budgets(dict(budgets), settings)
    except AuditError as error:
        raise click.UsageError(f"{error.message}; {error.hint}") from None


def _settings(
    quick: bool,
    pictures: int | None,
    attacker_pictures: int | None,
    defenses: tuple[str, ...],
    attacks: tuple[str, ...],
    eve_snrs: tuple[float, ...],
    main_snrs: tuple[float, ...],
    engines: tuple[str, ...],
    precisions: tuple[str, ...],
    channels: tuple[str, ...],
    eve_channel: str | None,
    eve_antennas: int,
    estimation: str | None,
    delay_spread: float | None,
    speed: float | None,
    white_box: str,
    seed: int,
) -> "Settings":
    """What the options of ``audit`` ask for."""
    from semseal.runtime.attacks import whitebox
    from semseal.runtime.audit.matrix import FULL, QUICK, with_gpu
    from semseal.runtime.audit.taken import MIN_ATTACKER_PICTURES

    settings = dataclasses.replace(QUICK if quick else FULL, seed=seed)
    if white_box == "paper":
        settings = dataclasses.replace(settings, whitebox=whitebox.PAPER)
    if pictures is not None:
        if pictures < 6 or pictures % 2:
            raise click.UsageError(f"--pictures must be even, as they are sent in pairs, and at least 6, got {pictures}")
        few = min(pictures, settings.optimised_pictures)
        settings = dataclasses.replace(settings, pictures=pictures, optimised_pictures=few)
    if attacker_pictures is not None:
        if attacker_pictures < MIN_ATTACKER_PICTURES:
            raise click.UsageError(f"--attacker-pictures must be at least {MIN_ATTACKER_PICTURES}, got {attacker_pictures}")
        settings = dataclasses.replace(settings, attacker_pictures=attacker_pictures)
    if not quick:
        settings = with_gpu(settings)
    if eve_snrs:
        settings = dataclasses.replace(settings, eve_snrs=tuple(sorted(set(eve_snrs))))
    channels = tuple(dict.fromkeys(channels))
    settings = dataclasses.replace(
        settings,
        main_snrs=tuple(sorted(set(main_snrs))),
        channels=channels,
        eve_channel=eve_channel,
        eve_antennas=eve_antennas,
        radio=_radio(channels, eve_channel, estimation, delay_spread, speed),
    )

    def chosen(names: tuple[str, ...], known: Sequence[str], default: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in known if name in names) or default  # in the order of the table

    return dataclasses.replace(
        settings,
        defenses=chosen(defenses, tuple(BY_NAME), settings.defenses),
        attacks=chosen(attacks, FULL.attacks, settings.attacks),
        precisions=chosen(precisions, PRECISIONS, settings.precisions),
        engines=chosen(engines, ENGINES, ()),
    )


def _radio(
    channels: tuple[str, ...], eve_channel: str | None, estimation: str | None, delay_spread: float | None, speed: float | None
) -> Radio:
    """What the options change of an OFDM radio; they are wrong usage where no channel goes through one."""
    given = {"estimation": estimation, "delay_spread_ns": delay_spread, "speed_kmh": speed}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not {*channels, eve_channel} & set(RADIO_CHANNELS):
        raise click.UsageError("--estimation, --delay-spread and --speed go with --channel or --eve-channel tdl-... or cdl-...")
    return Radio(**given)  # type: ignore[arg-type]


@click.command(epilog=example("semseal demo --out demo"))
@click.option("--out", "folder", type=FOLDER, default="demo", show_default=True, metavar="DIR", help="folder of the results")
def demo(folder: Path) -> None:
    """The main job on a packaged model and library photographs: link, defences, attacks; one to three minutes."""
    from semseal.runtime.audit.matrix import DEMO
    from semseal.runtime.audit.run import audit as run_audit
    from semseal.runtime.audit.tables import print_results
    from semseal.runtime.bundle import packaged_bundle

    out.print(
        "Alice sends photographs to Bob over a 10 dB channel; Eve listens at 10 dB and attacks, without a "
        "defence, with the paper's and with mix."
    )
    print_results(out, run_audit([packaged_bundle("edge")], "photos", folder, DEMO), folder, DEMO)

"""The ``semseal`` program. Each verb is a plain function elsewhere; this file only reads options and prints.

A verb imports what it needs when it runs, so that ``semseal keygen`` works where torch is not installed.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from semseal.runtime.audit.matrix import Settings
    from semseal.runtime.bundle import Bundle

out = Console(emoji=False)

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="semseal")
def cli() -> None:
    """Semantic communication links: train, deploy, protect, and measure what an eavesdropper sees."""


@cli.command()
@click.option("--preset", required=True, help="paper-0db, paper-10db, paper-20db, photos-0db, photos-10db, photos-20db")
@click.option("--data", required=True, metavar="SPEC", help="photos, celeba:FOLDER or folder:FOLDER")
@click.option("--out", "run", required=True, type=FOLDER, metavar="RUN", help="run folder to write")
@click.option("--resume", is_flag=True, help="continue an interrupted run; same --preset and options")
@click.option("--init", type=FOLDER, metavar="RUN", help="start from this run's weights; with another --c, those that fit")
@click.option("--channel", type=click.Choice(["awgn", "rayleigh", "multipath"]), help="main channel  [default: awgn]")
@click.option("--c", type=int, help="feature channels: bandwidth ratio c/96  [default: 16]")
@click.option("--steps", type=int, help="updates")
@click.option("--batch", type=int, help="pictures per update, over all devices")
@click.option("--lr", type=float, help="peak step size of Adam")
@click.option("--precision", type=click.Choice(["32-true", "bf16-mixed"]), help="arithmetic of the layers")
@click.option("--devices", type=int, default=1, show_default=True, help="processes or GPUs on this machine")
def train(
    preset: str, data: str, run: Path, resume: bool, init: Path | None, c: int | None, devices: int, **overrides: Any
) -> None:
    """Train a link and write a run folder."""
    from semseal.train.config import PRESETS, ModelConfig, TrainConfig
    from semseal.train.fit import train as fit

    if preset not in PRESETS:
        raise click.UsageError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    chosen = {**PRESETS[preset], **{name: value for name, value in overrides.items() if value is not None}}
    config = TrainConfig(**chosen)
    if c is not None:
        config = dataclasses.replace(config, model=ModelConfig(c=c))
    try:
        fit(config, data, run, resume=resume, init=init, devices=devices)
    except KeyboardInterrupt:
        click.echo(f"\ncontinue with --resume from the last checkpoint (one every {config.save_every} steps)", err=True)
        raise


class Listed(click.Command):
    """Lets an option that may be repeated take several values in a row: ``--precision fp32 fp16``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeated = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spelled: list[str] = []
        option, taken = "", 0
        for arg in args:
            if arg.startswith("-"):
                option, taken = arg, 0
            elif option in repeated:
                spelled += [option] * (taken > 0)
                taken += 1
            spelled.append(arg)
        return super().parse_args(ctx, spelled)


def _deployed(command: Any) -> Any:
    """The options of what is written into a bundle."""
    for option in (
        click.option("--out", "bundle", required=True, type=FOLDER, metavar="BUNDLE", help="bundle folder to write"),
        click.option(
            "--precision",
            "precisions",
            multiple=True,
            type=click.Choice(["fp32", "fp16", "int8"]),
            help="one or more; fp32 is always made  [default: all]",
        ),
        click.option(
            "--engine",
            "engines",
            multiple=True,
            type=click.Choice(["tensorrt", "tensorrt-rtx"]),
            help="also build the plans of these engines; an ONNX graph serves the others",
        ),
        click.option(
            "--capability",
            "capabilities",
            multiple=True,
            type=int,
            help="GPUs that tensorrt-rtx builds for, such as 86 89 120  [default: the one here]",
        ),
        click.option("--sign", type=FILE, metavar="KEY", help="owner's signing key  [default: yours, made at first use]"),
    ):
        command = option(command)
    return command


@cli.command(cls=Listed)
@click.argument("run", type=FOLDER)
@_deployed
def export(run: Path, bundle: Path, sign: Path | None, **deployed: Any) -> None:
    """Turn a run into a signed bundle and print what each precision costs in dB."""
    from semseal.export.bundle import export_run
    from semseal.runtime.signing import owner_key

    key = owner_key(sign)
    _print_made(export_run(run, bundle, **_chosen(deployed), signing_key=key), key)


@cli.command(cls=Listed)
@click.option("--transmitter", required=True, type=FILE, metavar="T.onnx", help="image [batch, 3, H, W] in 0..1 to features")
@click.option("--receiver", required=True, type=FILE, metavar="R.onnx", help="features back to the image")
@click.option("--snr", type=float, default=10.0, show_default=True, help="main channel's SNR in dB that it is meant for")
@_deployed
def pack(transmitter: Path, receiver: Path, snr: float, bundle: Path, sign: Path | None, **deployed: Any) -> None:
    """Bring your own model: any pair of ONNX files becomes a bundle, with power normalisation and the scheme index."""
    from semseal.export.pack import pack as make
    from semseal.runtime.signing import owner_key

    key = owner_key(sign)
    made = make(transmitter, receiver, bundle, snr, **_chosen(deployed), signing_key=key)
    for note in made.manifest["packed"]["notes"]:
        out.print(note, markup=False, soft_wrap=True)
    _print_made(made, key)


def _chosen(deployed: dict[str, Any]) -> dict[str, Any]:
    from semseal.export.bundle import PRECISIONS

    if deployed["capabilities"] and "tensorrt-rtx" not in deployed["engines"]:
        raise click.UsageError("--capability is for --engine tensorrt-rtx")
    return {**deployed, "precisions": deployed["precisions"] or PRECISIONS}


def _print_made(bundle: "Bundle", key: "Ed25519PrivateKey") -> None:
    from semseal.runtime.signing import VARIABLE, public_text

    _print_parity(bundle)
    plans = [name for name in bundle.manifest["files"] if name.endswith(".engine")]
    for name in plans:
        out.print(f"{name}: {bundle.manifest['files'][name]['size'] / 1e6:.2f} MB")
    out.print(f"signed; on another machine first: export {VARIABLE}={public_text(key)}", markup=False, soft_wrap=True)


def _print_parity(bundle: "Bundle") -> None:
    parity = bundle.manifest["parity"]
    reference, *rows = parity["rows"]
    pictures = f"{parity['pictures']} pictures of {parity['data']}"
    table = Table(
        title=f"{bundle.path}: PSNR in dB on {pictures}, difference from the reference; "
        f"bandwidth ratio {bundle.bandwidth_ratio:.4f}"
    )
    for column in ("engine", "transmitter", "receiver"):
        table.add_column(column, no_wrap=True)
    for snr in reference["psnr"]:
        table.add_column(f"{snr} dB", justify="right")
    names = [reference[column] for column in ("engine", "transmitter", "receiver")]
    table.add_row(*names, *(f"{psnr:.2f}" for psnr in reference["psnr"].values()))
    for row in rows:
        names = [row[column] for column in ("engine", "transmitter", "receiver")]
        table.add_row(*names, *(f"{psnr - reference['psnr'][snr]:+.4f}" for snr, psnr in row["psnr"].items()))
    out.print(table)
    for name, difference in parity["differences"].items():
        low, high = difference["power_per_symbol"]
        out.print(
            f"{name}: largest difference of a symbol {difference['max_symbol_error']:.2e}, of a picture "
            f"{difference['max_image_error']:.2e}; power per symbol {low:.6f} to {high:.6f}",
            soft_wrap=True,
        )
    for graph, providers in parity["providers"].items():
        counts = ", ".join(f"{sum(operators.values())} nodes on {name}" for name, operators in providers.items())
        out.print(f"{graph}.onnx in ONNX Runtime: {counts}", soft_wrap=True)


@cli.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--data", required=True, metavar="SPEC", help="photos, celeba:FOLDER or folder:FOLDER")
@click.option("--out", "folder", required=True, type=FOLDER, metavar="DIR", help="folder of the results")
@click.option("--quick", is_flag=True, help="few pictures and steps: minutes on 2 cores, wide intervals")
@click.option("--pictures", type=int, help="held-out pictures to measure on  [default: 200, with --quick 16]")
@click.option("--defense", "defenses", multiple=True, help="measure only this defence; may be repeated  [default: all]")
@click.option("--attack", "attacks", multiple=True, help="measure only this attack; may be repeated  [default: all]")
@click.option("--eve-snr", "eve_snrs", type=float, multiple=True, help="Eve's SNR in dB; may be repeated  [default: 0 10 20]")
@click.option("--precision", "precisions", multiple=True, help="fp32, fp16 or int8; may be repeated  [default: fp32]")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="processes that share the cores")
@click.option(
    "--white-box",
    type=click.Choice(["fast", "paper"]),
    default="fast",
    show_default=True,
    help="fast: 300 annealed steps of 0.05; paper: Adam 1e-3",
)
@click.option(
    "--budget",
    type=click.FloatRange(0, 1),
    metavar="RATE",
    help="exit with 1 if the upper 95 % bound of Eve's rate in naming the picture is above RATE under any defence measured",
)
@click.option("--seed", type=int, default=0, show_default=True)
def audit(
    bundles: tuple[str, ...],
    data: str,
    folder: Path,
    quick: bool,
    pictures: int | None,
    defenses: tuple[str, ...],
    attacks: tuple[str, ...],
    eve_snrs: tuple[float, ...],
    precisions: tuple[str, ...],
    jobs: int,
    white_box: str,
    budget: float | None,
    seed: int,
) -> None:
    """Attack deployed engines and tabulate what leaks: Tables I to IV of the paper, and Eves who adapt.

    One BUNDLE for each main-channel SNR: a folder, or photos-0db, photos-10db, photos-20db for those that are packaged.
    The same command continues an interrupted audit.
    """
    from semseal.runtime.attacks import whitebox
    from semseal.runtime.audit.matrix import ATTACKS, DEFENSES, FULL, PRECISIONS, QUICK
    from semseal.runtime.audit.run import audit as run_audit
    from semseal.runtime.audit.verdict import worst_rate

    settings = dataclasses.replace(QUICK if quick else FULL, seed=seed)
    if white_box == "paper":
        settings = dataclasses.replace(settings, whitebox=whitebox.PAPER)
    if pictures is not None:
        if pictures < 6 or pictures % 2:
            raise click.UsageError(f"--pictures must be even, as they are sent in pairs, and at least 6, got {pictures}")
        few = min(pictures, settings.optimised_pictures)
        settings = dataclasses.replace(settings, pictures=pictures, optimised_pictures=few)
    for option, chosen, known in (
        ("defense", defenses, DEFENSES),
        ("attack", attacks, ATTACKS),
        ("precision", precisions, PRECISIONS),
    ):
        for name in chosen:
            if name not in known:
                raise click.UsageError(f"--{option} must be one of {', '.join(known)}, got {name!r}")
        if chosen:
            part = {f"{option}s": tuple(name for name in known if name in chosen)}
            settings = dataclasses.replace(settings, **part)  # type: ignore[arg-type]
    if eve_snrs:
        settings = dataclasses.replace(settings, eve_snrs=tuple(sorted(set(eve_snrs))))
    judged = tuple(defense for defense in settings.defenses if defense != "none")
    if budget is not None and ("which" not in settings.attacks or not judged):
        raise click.UsageError("--budget judges the attack 'which' under a defence; measure both")
    try:
        results = run_audit([Path(name) for name in bundles], data, folder, settings, jobs)
    except KeyboardInterrupt:
        click.echo("\nthe same command continues where this one stopped", err=True)
        raise
    _print_results(results, folder, settings)
    if budget is not None:
        games = results["games"]  # those of earlier runs too
        games = [game for game in games if game["eve_snr"] in settings.eve_snrs and game["precision"] in settings.precisions]
        worst = worst_rate(games, judged)
        if worst is None or worst > budget:
            found = "was not measured" if worst is None else f"may be as high as {worst:.4f} (upper 95 % bound)"
            raise RuntimeError(f"over the leakage budget: Eve's rate in naming the picture {found}, the budget is {budget:g}")


@cli.command()
@click.option("--out", "folder", type=FOLDER, default="demo", show_default=True, metavar="DIR", help="folder of the results")
def demo(folder: Path) -> None:
    """The main job on a packaged model and library photographs: link, defence, both attacks; about a minute."""
    from semseal.runtime.audit.matrix import DEMO
    from semseal.runtime.audit.run import audit as run_audit
    from semseal.runtime.bundle import packaged_bundle

    out.print(
        "Alice sends photographs to Bob over a 10 dB channel; Eve listens at 10 dB and attacks, without and with the "
        "paper's defence."
    )
    _print_results(run_audit([packaged_bundle("photos-10db")], "photos", folder, DEMO), folder, DEMO)


def _print_results(results: dict[str, Any], folder: Path, asked: "Settings") -> None:
    from semseal.runtime.audit.standing import headline, limits
    from semseal.runtime.audit.tables import (
        FOOTNOTE,
        leakage_tables,
        mains,
        paper_defenses,
        paper_table,
        tally_table,
        verdict_table,
    )

    settings = results["settings"]
    if paper_defenses(results):
        for main in mains(results):
            out.print(paper_table(results, main))
    snr, precision = max(asked.eve_snrs), asked.precisions[0]
    for table in leakage_tables(results, snr, precision):
        out.print(table)
    out.print(FOOTNOTE, soft_wrap=True)
    if len(settings["eve_snrs"]) * len(settings["precisions"]) > 1:
        out.print(f"above: Eve at {snr:g} dB, {precision} engines; the others are in the report", soft_wrap=True)
    if results["orderings"]:
        out.print(tally_table(results))
    for name, reason in results["skipped"].items():
        out.print(f"skipped {name}: {reason}", markup=False, soft_wrap=True)
    out.print(
        f"{settings['pictures']} {results['pictures']}; white-box on {settings['optimised_pictures']}; "
        f"SSIM: {results['ssim']}; seed {settings['seed']}",
        soft_wrap=True,
    )
    out.print(verdict_table(results))
    for sentence in headline(results) + limits(results):
        out.print(sentence, markup=False, soft_wrap=True)
    out.print(f"pictures and tables: {folder / 'report.html'}    figures: {folder / 'results.json'}", soft_wrap=True)


@cli.command()
def doctor() -> None:
    """Tell which engines and devices work on this machine, and what mends the others."""
    from semseal.runtime.doctor import examine, show, works

    findings = examine()
    show(findings, out)
    if not works(findings):
        sys.exit(1)


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def keygen(file: Path) -> None:
    """Make a new key file that only you can read."""
    from semseal.runtime.defense.keys import generate_key, write_key

    write_key(file, generate_key())
    out.print(f"{file}: new key, mode 0600; whoever has this file can read the link")


def main() -> None:
    """Run the program; an expected failure prints ``error:`` and exits 1, wrong usage exits 2 by click's custom."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; nothing is half written", err=True)
        sys.exit(130)
    except ModuleNotFoundError as error:
        click.echo(f"error: this command needs the package {error.name}", err=True)
        click.echo("hint: in the source folder, pip install '.[cpu,train,audit]'", err=True)
        sys.exit(1)
    except (ValueError, RuntimeError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)

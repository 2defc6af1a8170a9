"""The ``semseal`` program. Each verb is a plain function elsewhere; this file only reads options and prints.

A verb imports what it needs when it runs, so that ``semseal keygen`` works where torch is not installed.

    exit code 0   done and clean
              1   a finding: over a budget, or no engine that works
              2   wrong usage
              3   could not be done: bad input, a missing engine, a full disk
            130   interrupted

What is neither of these is a bug, and shows as one: with its traceback.
"""

import dataclasses
import errno
import functools
import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from semseal.runtime.bench.command import bench
from semseal.runtime.bundle import PRECISIONS
from semseal.runtime.cli_audit import audit, demo
from semseal.runtime.errors import SemsealError
from semseal.runtime.files import shown
from semseal.runtime.keycommands import keygen, keys
from semseal.runtime.net.commands import receive, send
from semseal.runtime.options import (
    BUNDLE,
    FILE,
    FOLDER,
    PLAN_ENGINES,
    POSITIVE,
    SNR,
    LazyChoice,
    Size,
    deployable,
    example,
    served,
    written,
)
from semseal.runtime.trust.command import check

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from semseal.runtime.bundle import Bundle

out = Console(emoji=False)


def _presets() -> Sequence[str]:
    from semseal.train.config import PRESETS

    return tuple(PRESETS)


def _channels() -> Sequence[str]:
    from semseal.train.config import CHANNELS

    return CHANNELS


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example("semseal demo", "semseal audit edge --data photos --out audit --quick"),
)
@click.version_option(package_name="semseal")
def cli() -> None:
    """Semantic communication links: train, deploy, protect, and measure what an eavesdropper sees."""


@cli.command(epilog=example("semseal train --preset edge --data folder:photographs --out run"))
@click.option("--preset", required=True, type=LazyChoice(_presets), help="what is trained, and how long; edge-quality: --init")
@click.option("--data", required=True, metavar="SPEC", help="photos, celeba:FOLDER or folder:FOLDER")
@click.option("--out", "run", required=True, type=FOLDER, metavar="RUN", help="run folder to write")
@click.option("--resume", is_flag=True, help="continue an interrupted run; same --preset and options")
@click.option("--init", type=FOLDER, metavar="RUN", help="start from the weights of this run that fit")
@click.option("--channel", type=LazyChoice(_channels), help="main channel; tdl and cdl: extra radio  [default: awgn]")
@click.option("--c", type=int, help="feature channels: bandwidth ratio c/96  [default: 16]")
@click.option("--steps", type=int, help="updates")
@click.option("--batch", type=int, help="pictures per update, over all devices")
@click.option("--lr", type=POSITIVE, help="peak step size of Adam")
@click.option("--precision", type=click.Choice(["32-true", "bf16-mixed"]), help="arithmetic of the layers")
@click.option("--save-every", type=int, help="steps from one checkpoint to the next; Ctrl-C writes one too")
@click.option("--seed", type=int, help="of all that is random: weights, crops, noise  [default: 0]")
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True, help="processes or GPUs on this machine")
def train(
    preset: str, data: str, run: Path, resume: bool, init: Path | None, c: int | None, devices: int, **overrides: Any
) -> None:
    """Train a link and write a run folder."""
    from semseal.train.config import PRESETS, TrainConfig
    from semseal.train.fit import train as fit

    chosen = {**PRESETS[preset], **{name: value for name, value in overrides.items() if value is not None}}
    try:
        config = TrainConfig(**chosen)
        if c is not None:
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, c=c))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        fit(config, data, run, resume=resume, init=init, devices=devices)
    except KeyboardInterrupt as stop:
        if (run / "config.json").exists():
            click.echo(f"\n{stop or 'the last checkpoint, if one was written, is good'}; continue with --resume", err=True)
        raise


@cli.command(
    epilog=example(
        "semseal export run --out bundle --precision fp32 --precision int8",
        "semseal export edge --size 1080x1920 --out hd",
        "semseal export bundle --triton models --oms bundle.sig",
    )
)
@click.argument("source", type=BUNDLE, metavar="RUN|BUNDLE")
@click.option("--size", type=Size(), metavar="HEIGHTxWIDTH", help="of the pictures, multiples of 4  [default: as trained]")
@click.option(
    "--calibration", metavar="SPEC", help="pictures that int8 is calibrated on and parity measured on  [default: photos]"
)
@functools.partial(deployable, out_required=False)
@served
def export(
    source: str,
    size: tuple[int, int] | None,
    calibration: str | None,
    bundle: Path | None,
    sign: Path | None,
    force: bool,
    triton: Path | None,
    oms: Path | None,
    **options: Any,
) -> None:
    """Turn a run into a signed bundle and print what each precision costs in dB.

    With --size, also a bundle of an edge network, such as the packaged edge: the same weights for pictures of another size.
    With --triton or --oms and without --out, write what other programs take of a bundle that is there.
    """
    from semseal.runtime.bundle import check_free, open_bundle
    from semseal.runtime.signing import owner_key

    serving = {name.removeprefix("triton_"): options.pop(name) for name in ("triton_engine", "triton_defense", "triton_pixels")}
    _check_goals(source, size, calibration, bundle, triton, oms, options, serving)
    if bundle is None:
        made, key = open_bundle(source), owner_key(sign) if oms else None
    else:
        chosen = _chosen(options)
        check_free(bundle, force)  # before the minutes that the rest takes
        _check_places(bundle, triton, oms)
        key = owner_key(sign)
        made = _made(source, size, bundle, **chosen, calibration=calibration or "photos", signing_key=key, force=force)
        _print_made(made, key)
    if triton is not None:
        from semseal.export.triton import write_repository

        asked = {name: value for name, value in serving.items() if value}
        precisions = options["precisions"] or ("fp32",)
        for model in write_repository(made, triton, precisions, **asked, force=force):
            _say(f"{triton / model.name}: version {model.version}{'' if model.new else ', which is there already'}")
    if oms is not None and key is not None:
        from semseal.export.oms import write_model_signature

        public = write_model_signature(made, oms, key)
        verify = ("model_signing", "verify", "key", made.path, "--signature", oms, "--public_key", public)
        _say(f"signed; {shlex.join(map(str, verify))}")


def _check_places(bundle: Path, triton: Path | None, oms: Path | None) -> None:
    from semseal.export import oms as signature
    from semseal.export import triton as repository

    if triton is not None:
        repository.check_place(triton, bundle)
    if oms is not None:
        signature.check_place(oms, bundle)


def _made(source: str, size: tuple[int, int] | None, bundle: Path, **deployed: Any) -> "Bundle":
    from semseal.export.bundle import export_bundle, export_run
    from semseal.runtime.bundle import open_bundle
    from semseal.runtime.progress import stages

    with stages("export") as tell:
        if size is not None and not (Path(source) / "config.json").exists():
            return export_bundle(open_bundle(source), bundle, size, **deployed, tell=tell)
        return export_run(Path(source), bundle, size, **deployed, tell=tell)


def _check_goals(
    source: str,
    size: tuple[int, int] | None,
    calibration: str | None,
    bundle: Path | None,
    triton: Path | None,
    oms: Path | None,
    options: dict[str, Any],
    serving: dict[str, Any],
) -> None:
    """Raises UsageError for options of what is not asked for."""
    if triton is None and any(serving.values()):
        raise click.UsageError("--triton-engine, --triton-defense and --triton-pixels are for --triton DIR")
    if bundle is not None:
        if serving["engine"] == "tensorrt" and "tensorrt" not in options["engines"]:
            raise click.UsageError("--triton-engine tensorrt serves the bundle's plans: give --engine tensorrt, too")
        return
    if triton is None and oms is None:
        raise click.UsageError("nothing to write: give --out BUNDLE, or of a bundle that is there --triton DIR or --oms SIG")
    if size or calibration or options["engines"] or options["capabilities"]:
        raise click.UsageError("--size, --calibration, --engine and --capability make a bundle: give --out BUNDLE")
    if (Path(source) / "config.json").exists():
        raise click.UsageError(f"{source} is a run, and a bundle is made of it first: give --out BUNDLE")


@cli.command(epilog=example("semseal pack --transmitter encoder.onnx --receiver decoder.onnx --out bundle --snr 10"))
@click.option("--transmitter", required=True, type=FILE, metavar="T.onnx", help="image [batch, 3, H, W] in 0..1 to features")
@click.option("--receiver", required=True, type=FILE, metavar="R.onnx", help="features back to the image")
@click.option("--snr", type=SNR, default=10.0, show_default=True, help="main channel's SNR in dB that it is meant for")
@deployable
def pack(transmitter: Path, receiver: Path, snr: float, bundle: Path, sign: Path | None, force: bool, **deployed: Any) -> None:
    """Bring your own model: any pair of ONNX files becomes a bundle, with power normalisation and the scheme index."""
    from semseal.export.pack import pack as make
    from semseal.runtime.bundle import check_free
    from semseal.runtime.signing import owner_key

    chosen = _chosen(deployed)
    check_free(bundle, force)
    key = owner_key(sign)
    made = make(transmitter, receiver, bundle, snr, **chosen, signing_key=key, force=force)
    for note in made.manifest["packed"]["notes"]:
        _say(note)
    _print_made(made, key)


@cli.command(epilog=example("semseal build edge --out link --engine tensorrt-rtx --capability 86 --capability 120"))
@click.argument("source", type=BUNDLE, metavar="BUNDLE")
@written
@click.option("--engine", required=True, type=PLAN_ENGINES, help="the engine that runs the plans")
def build(source: str, bundle: Path, engine: str, capabilities: tuple[int, ...], sign: Path | None, force: bool) -> None:
    """Copy a bundle and add the TensorRT plans of all its graphs.

    BUNDLE is a folder, or edge, edge-quality, photos-10db for those that are packaged; it is verified first, and the copy
    is signed with your key. tensorrt builds for the GPU of this machine and no other; tensorrt-rtx needs none to build.
    """
    from semseal.export.tensorrt import add_plans
    from semseal.runtime.bundle import check_free, open_bundle
    from semseal.runtime.signing import owner_key

    _check_capabilities(capabilities, (engine,))
    check_free(bundle, force)  # before a key is made
    original, key = open_bundle(source), owner_key(sign)
    add_plans(original, bundle, engine, key, capabilities=capabilities or None, force=force, tell=_print_plan)
    _print_pin(key)


def _chosen(deployed: dict[str, Any]) -> dict[str, Any]:
    _check_capabilities(deployed["capabilities"], deployed["engines"])
    return {**deployed, "precisions": deployed["precisions"] or PRECISIONS}


def _check_capabilities(capabilities: tuple[int, ...], engines: Sequence[str]) -> None:
    if capabilities and "tensorrt-rtx" not in engines:
        raise click.UsageError("--capability is for --engine tensorrt-rtx")


def _print_made(bundle: "Bundle", key: "Ed25519PrivateKey") -> None:
    _print_parity(bundle)
    for name, entry in bundle.manifest["files"].items():
        if name.endswith(".engine"):
            _print_plan(name, entry["size"])
    _print_pin(key)


def _print_plan(name: str, size: int) -> None:
    _say(f"{name}: {size / 1e6:.2f} MB")


def _print_pin(key: "Ed25519PrivateKey") -> None:
    from semseal.runtime.signing import VARIABLE, public_text

    _say(f"signed; on another machine first: export {VARIABLE}={public_text(key)}")


def _print_parity(bundle: "Bundle") -> None:
    parity = bundle.manifest["parity"]
    reference, *rows = parity["rows"]
    pictures = f"{parity['pictures']} pictures of {'a folder' if parity['data'] == 'folder' else parity['data']}"
    title = (
        f"{bundle.path}: PSNR in dB on {pictures}, difference from the reference; bandwidth ratio {bundle.bandwidth_ratio:.4f}"
    )
    table = Table(title=Text(shown(title)))  # names as they are: in a str, what stands in brackets is markup
    for column in ("engine", "transmitter", "receiver"):
        table.add_column(column, no_wrap=True)
    for snr in reference["psnr"]:
        table.add_column(f"{snr} dB", justify="right")
    names = [reference[column] for column in ("engine", "transmitter", "receiver")]
    table.add_row(*names, *(f"{psnr:.2f}" for psnr in reference["psnr"].values()))
    for row in rows:
        names = [row[column] for column in ("engine", "transmitter", "receiver")]
        table.add_row(*names, *(_difference(psnr - reference["psnr"][snr]) for snr, psnr in row["psnr"].items()))
    out.print(table)
    for name, difference in parity["differences"].items():
        low, high = difference["power_per_symbol"]
        _say(
            f"{name}: largest difference of a symbol {difference['max_symbol_error']:.2e}, of a picture "
            f"{difference['max_image_error']:.2e}; power per symbol {low:.6f} to {high:.6f}"
        )
    for name, reason in parity.get("refused", {}).items():  # bundles of earlier versions do not have it
        _say(f"{name}: not measured, it does not run this graph: {reason}")
    for graph, providers in parity["providers"].items():
        counts = ", ".join(f"{sum(operators.values())} nodes on {name}" for name, operators in providers.items())
        _say(f"{graph}.onnx in ONNX Runtime: {counts}")


def _difference(db: float) -> str:
    """In dB with its sign, and none where nothing is left of it."""
    return f"{db:+.4f}" if abs(db) >= 0.00005 else "0.0000"


def _say(line: str) -> None:
    """Print a line that may hold any name."""
    out.print(Text(shown(line)), soft_wrap=True)


cli.add_command(audit)
cli.add_command(demo)


@cli.command(epilog=example("semseal doctor"))
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
def doctor(as_json: bool) -> None:
    """Tell which engines and devices work on this machine, and how to fix the others; exit with 1 if no engine works."""
    from semseal.runtime.doctor import examine, show, works

    findings = examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        show(findings, out)
    if not works(findings):
        sys.exit(1)


cli.add_command(bench)
cli.add_command(check)
cli.add_command(keygen)
cli.add_command(keys)
cli.add_command(send)
cli.add_command(receive)

# packages that extras bring, by the name of their import; where a verb needs an extra whole, that is told by the verb
EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "safetensors", "scipy", "skimage", "sklearn"), "cpu,train,audit"),
    **dict.fromkeys(("lightning_fabric", "onnxscript"), "cpu,train"),
    **dict.fromkeys(("jinja2", "joblib", "matplotlib"), "cpu,audit"),
    **dict.fromkeys(("psutil", "hdrh"), "cpu,bench"),
    "cyclonedx": "check",
    **dict.fromkeys(("av", "prometheus_client", "sigmf"), "net"),
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
}
EXTRAS_OF_VERBS = {
    **dict.fromkeys(("demo", "audit"), "cpu,audit"),
    **dict.fromkeys(("train", "export", "pack"), "cpu,train"),
    "bench": "cpu,bench",
}
REFUSALS = {
    errno.ENOSPC: "free some space there, or choose another folder",
    errno.EDQUOT: "free some space there, or choose another folder",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another file system",
    errno.ENOTDIR: "a part of this name is a file, or a link that leads nowhere: choose another folder",
    errno.EISDIR: "this is a folder: choose the name of a file",
    errno.ENOENT: "check the name; a folder that a file goes into must be there",
    errno.EEXIST: "choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "links in this name lead to themselves: choose another name",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a place where you may read and write, or change its mode",
    errno.EPERM: "choose a place where you may read and write, or change its mode",
}


def _complain(message: str, hint: str) -> None:
    click.echo(f"error: {shown(message)}", err=True)
    if hint:
        click.echo(f"hint: {shown(hint)}", err=True)


def _is_of_memory(error: Exception) -> bool:
    """Whether memory has run out: NumPy's and Python's own error, PyTorch's on a GPU and on the CPU."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)


def main() -> None:
    """Run the program. What is expected to fail prints ``error:`` and ``hint:``; anything else escapes with its traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a locale that lacks a character, or a name that is no text
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as stop:
        if isinstance(stop.__cause__, EOFError):  # click takes that for an end of input, and no verb asks for any
            raise stop.__cause__ from None
        click.echo("interrupted; nothing is half written", err=True)
        sys.exit(130)
    except SemsealError as error:
        _complain(error.message, error.hint)
        sys.exit(3)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        verb = next(iter(sys.argv[1:]), "")
        extra = EXTRAS[package] if "," not in EXTRAS[package] else EXTRAS_OF_VERBS.get(verb, EXTRAS[package])
        _complain(f"this command needs the package {package}", f"in the source folder, pip install '.[{extra}]'")
        sys.exit(3)
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        _complain(
            f"this machine has too little memory: {error}", "ask for less at once: fewer or smaller pictures, a smaller batch"
        )
        sys.exit(3)
    except OSError as error:
        named = isinstance(error.filename, str | bytes)
        if not named and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = os.fsdecode(error.filename) if named else "what is printed here"
        _complain(f"{error.strerror}: {where}", REFUSALS.get(error.errno or 0, ""))
        sys.exit(3)

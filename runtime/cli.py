"""The ``semseal`` program. Each verb is a plain function elsewhere; this file only reads options and prints.

A verb imports what it needs when it runs, so that ``semseal keygen`` works where torch is not installed.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

out = Console()
err = Console(stderr=True)

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="semseal")
def cli() -> None:
    """Semantic communication links: train, deploy, protect, and measure what an eavesdropper sees."""


@cli.command()
@click.option("--preset", required=True, help="paper-0db, paper-10db, paper-20db, photos-0db, photos-10db, photos-20db")
@click.option("--data", required=True, metavar="SPEC", help="photos, celeba:FOLDER or folder:FOLDER")
@click.option("--out", "run", required=True, type=FOLDER, metavar="RUN", help="run folder to write")
@click.option("--resume", is_flag=True, help="continue an interrupted run; same --preset and options")
@click.option("--init", type=FOLDER, metavar="RUN", help="start from the weights of this run")
@click.option("--channel", type=click.Choice(["awgn", "rayleigh", "multipath"]), help="main channel  [default: awgn]")
@click.option("--c", type=int, help="feature channels: bandwidth ratio c/96  [default: 16]")
@click.option("--steps", type=int, help="updates")
@click.option("--batch", type=int, help="pictures per update, over all devices")
@click.option("--lr", type=float, help="peak step size of Adam")
@click.option("--precision", type=click.Choice(["32-true", "bf16-mixed"]), help="arithmetic of the layers")
@click.option("--devices", type=int, default=1, show_default=True, help="processes or GPUs on this machine")
def train(preset: str, data: str, run: Path, resume: bool, init: Path | None, c: int | None, devices: int,
          **overrides: Any) -> None:
    """Train a link and write a run folder."""
    from semseal.train.config import PRESETS, ModelConfig, TrainConfig
    from semseal.train.fit import train as fit

    if preset not in PRESETS:
        raise click.UsageError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    chosen = {**PRESETS[preset], **{name: value for name, value in overrides.items() if value is not None}}
    config = TrainConfig(**chosen)
    if c is not None:
        config = dataclasses.replace(config, model=ModelConfig(c=c))
    fit(config, data, run, resume=resume, init=init, devices=devices)


@cli.command()
@click.argument("run", type=FOLDER)
@click.option("--out", "bundle", required=True, type=FOLDER, metavar="BUNDLE", help="bundle folder to write")
def export(run: Path, bundle: Path) -> None:
    """Turn a run into a bundle and print how exactly the graphs match."""
    from semseal.export.bundle import export_run

    made = export_run(run, bundle)
    parity = made.manifest["parity"]
    table = Table(title=f"{bundle}: parity on {parity['pictures']} pictures, bandwidth ratio {made.bandwidth_ratio:.4f}")
    for column in ("SNR", "torch", "onnxruntime-cpu fp32", "difference"):
        table.add_column(column, justify="right")
    for row in parity["psnr"]:
        torch_psnr, engine_psnr = row["torch_psnr"], row["onnxruntime-cpu_psnr"]
        table.add_row(f"{row['snr_db']:.0f} dB", f"{torch_psnr:.3f} dB", f"{engine_psnr:.3f} dB",
                      f"{engine_psnr - torch_psnr:+.5f} dB")
    out.print(table)
    out.print(f"largest difference: symbols {parity['max_symbol_error']:.2e}, pictures {parity['max_image_error']:.2e}")


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
        err.print("interrupted; nothing is half written, and --resume or the same command continues")
        sys.exit(130)
    except ModuleNotFoundError as error:
        err.print(f"error: this command needs the package {error.name}")
        err.print("hint: pip install 'semseal[cpu,train,audit]'", markup=False)
        sys.exit(1)
    except (ValueError, RuntimeError, OSError) as error:
        err.print(f"error: {error}", markup=False, highlight=False)
        sys.exit(1)

"""The options that several verbs share, and the types of what they take."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from semseal.runtime.bundle import PRECISIONS
from semseal.runtime.channel import MAX_SNR_DB
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.engine import ENGINES, MAX_THREADS
from semseal.runtime.files import expanded


class UserPath(click.Path):
    """A path; ``~`` at its start is the home folder, which no shell puts there behind ``--out=``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expanded(_given(self, value, param, ctx)), param, ctx)


class BundleName(click.ParamType):
    """A bundle's folder, or the name of a packaged one."""

    name = "bundle"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(_given(self, value, param, ctx))


def _given(kind: click.ParamType, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    """The name as it was given, but not an empty one: to the system that is the current folder."""
    if value == "":
        kind.fail("the name is empty; was a variable of the shell not set?", param, ctx)
    return value


BUNDLE = BundleName()
FOLDER = UserPath(file_okay=False, path_type=Path)
FILE = UserPath(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = UserPath(dir_okay=False, path_type=Path)
PRECISION = click.Choice(PRECISIONS)
PLAN_ENGINES = click.Choice([engine for engine in ENGINES if engine.startswith("tensorrt")])  # the others run the graphs


class _Finite(click.ParamType):
    """Mixed into a type of numbers: not nan, which click finds within any bounds, and not inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class NumberRange(_Finite, click.FloatRange):
    """A finite number within bounds."""


class EveSnr(NumberRange):
    """A number of dB, or none: frames without noise, which is an infinite SNR."""

    name = "dB or none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return math.inf if value == "none" else super().convert(value, param, ctx)


SEED = click.IntRange(0, 2**63 - 1)  # what NumPy and PyTorch take
SNR = NumberRange(-MAX_SNR_DB, MAX_SNR_DB)
POSITIVE = NumberRange(0, min_open=True)
THREADS = click.IntRange(1, MAX_THREADS)


class LazyChoice(click.ParamType):
    """A click.Choice whose names are imported when they are first asked for, not when the program starts."""

    name = "choice"

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self._names = names

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # click 8.2 and later pass ctx
        return f"[{'|'.join(self._names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return click.Choice(self._names()).convert(value, param, ctx)


class Size(click.ParamType):
    """HEIGHTxWIDTH in pixels."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(value))
        if found is None:
            self.fail(f"{value!r} is not HEIGHTxWIDTH, such as 1080x1920", param, ctx)
        return int(found[1]), int(found[2])


def example(*lines: str) -> str:
    """The end of a verb's --help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def written(command: Any, out_required: bool = True) -> Any:
    """The options of every verb that writes a bundle."""
    return with_options(
        command,
        click.option("--out", "bundle", required=out_required, type=FOLDER, metavar="BUNDLE", help="bundle folder to write"),
        click.option(
            "--capability",
            "capabilities",
            multiple=True,
            type=int,
            help="a GPU that tensorrt-rtx builds for, such as 89 for 8.9; may be repeated  [default: the one here]",
        ),
        click.option("--sign", type=FILE, metavar="KEY", help="owner's signing key  [default: yours, made at first use]"),
        click.option("--force", is_flag=True, help="replace the bundle that is there, whole"),
    )


def deployable(command: Any, out_required: bool = True) -> Any:
    """The options of what is made from graphs."""
    return with_options(
        written(command, out_required),
        click.option(
            "--precision",
            "precisions",
            multiple=True,
            type=PRECISION,
            help="may be repeated; fp32 is always made  [default: all]",
        ),
        click.option(
            "--engine",
            "engines",
            multiple=True,
            type=PLAN_ENGINES,
            help="also build the plans of this engine; may be repeated; the other engines run the ONNX graphs",
        ),
    )


def served(command: Any) -> Any:
    """The options of what is made for other programs."""
    return with_options(
        command,
        click.option(
            "--triton", type=FOLDER, metavar="DIR", help="write models for Triton Inference Server into this repository"
        ),
        click.option(
            "--triton-engine",
            type=click.Choice([engine for engine in ENGINES if engine != "tensorrt-rtx"]),
            help="what Triton runs them on; tensorrt: the bundle's plans  [default: onnxruntime-cpu]",
        ),
        click.option("--triton-defense", type=click.Choice(MODES), help="as deployed  [default: mix]"),
        click.option("--triton-pixels", is_flag=True, help="pictures as bytes, [height, width, 3]"),
        click.option(
            "--oms", type=NEW_FILE, metavar="SIG", help="sign the bundle for OpenSSF's model_signing; the key: SIG.pem"
        ),
    )


def with_options(command: Any, *options: Any) -> Any:
    for option in reversed(options):  # as stacked decorators apply
        command = option(command)
    return command

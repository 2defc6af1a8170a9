"""``semseal check``: the options; what they ask for is in ``check``."""

import sys
from pathlib import Path
from typing import Any

import click
from semseal.runtime.channel import CHANNELS
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.engine import ENGINES
from semseal.runtime.options import BUNDLE, FILE, FOLDER, NEW_FILE, POSITIVE, PRECISION, NumberRange, UserPath, example
from semseal.runtime.trust.finding import FORMATS


@click.command(
    epilog=example(
        "semseal check edge",
        "semseal check bundle --keys alice.key --folder /srv/link --runs-only --results audit/results.json",
        "semseal check bundle --format sarif --out check.sarif --waivers waivers.toml",
    )
)
@click.argument("bundle", type=BUNDLE, metavar="BUNDLE")
@click.option("--keys", type=UserPath(path_type=Path), metavar="FILE", help="key file of the link")
@click.option("--two-way", is_flag=True, help="both ends of the link send")
@click.option("--receives", is_flag=True, help="this end receives")
@click.option("--state", type=UserPath(path_type=Path), metavar="FILE", help="replay window of this end, Receiver(state=)")
@click.option("--folder", type=FOLDER, metavar="DIR", help="what else is deployed: key files, caches, frames")
@click.option("--runs-only", is_flag=True, help="this machine only runs the link, so no owner's private key belongs here")
@click.option("--owner", metavar="KEY", help="public key that signed the bundle, or its file")
@click.option("--defense", type=click.Choice(MODES), default="mix", show_default=True, help="as deployed")
@click.option("--engine", type=click.Choice(ENGINES), default="onnxruntime-cpu", show_default=True, help="as deployed")
@click.option("--precision", type=PRECISION, default="fp32", show_default=True, help="as deployed")
@click.option("--channel", type=click.Choice(CHANNELS), help="from Alice to Bob  [default: as trained]")
@click.option("--eve-channel", type=click.Choice(CHANNELS), help="from Alice to Eve  [default: as Bob's]")
@click.option("--results", type=FILE, metavar="RESULTS.json", help="of semseal audit")
@click.option("--budget", type=NumberRange(0, 1), metavar="RATE", help="of Eve's naming the picture, upper 95 % bound")
@click.option("--benchmark", type=FILE, metavar="RESULTS.json", help="of semseal bench")
@click.option("--deadline-ms", type=POSITIVE, help="of the benchmark")
@click.option("--waivers", type=FILE, metavar="FILE", help="findings that somebody answers for, in TOML")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("--out", type=NEW_FILE, metavar="FILE", help="write it there  [default: print it]")
def check(bundle: str, form: str, out: Path | None, **asked: Any) -> None:
    """Look for known mistakes in a bundle and in how it is deployed; exit with 1 for a finding.

    BUNDLE is a folder, or edge, edge-quality, photos-10db for those that are packaged. Nothing in it is parsed before its
    signature holds. What could not be looked at is listed with the reason.
    """
    from semseal.runtime.files import check_file_writable, write_atomically
    from semseal.runtime.trust.check import deployment, examine
    from semseal.runtime.trust.formats import summary, written

    if out is not None:
        check_file_writable(out)
    waivers = asked.pop("waivers")
    d = deployment(bundle, **asked)
    report = examine(d, waivers)
    text = written(d, report, form)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomically(out, text.encode())
        click.echo(f"{summary(report)}; written to {out}")
    if not report.clean:
        sys.exit(1)

"""Results of a benchmark -> report.html, self-contained: no script, no font, no picture from elsewhere."""

from importlib.resources import files

from semseal.runtime.bench import figures, report
from semseal.runtime.bench.measure import P90_SAMPLES, P99_SAMPLES
from semseal.runtime.bench.results import Results, Row, Where, by_form

FORMS_SHOWN = 5  # lines in one figure of spread


def page(results: Results) -> str:
    """The page as text."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("semseal.runtime.bench").joinpath("templates/report.html").read_text())
    forms = list(by_form(results.rows).items())
    best = results.rates[0].where if results.rates else None
    return template.render(
        results=results,
        machine=report.machine_lines(results.machine),
        ceilings=report.ceiling_lines(results.ceilings),
        noise=[report.noise_line(noise) for noise in results.noise],
        forms=forms,
        best=best,
        link=next((row for row in results.rows if row.where == best and row.stage == "link"), None),
        number=report.number,
        waterfalls=[(where, figures.waterfall(rows)) for where, rows in forms if _has(rows, "send", "channel", "receiver")],
        spreads=_spreads(forms),
        throughput=_throughput(results),
        rates=[(rates, figures.request_rates(rates)) for rates in results.rates if rates.curve],
        roofline=_roofline(results),
        wants={"p90": P90_SAMPLES, "p99": P99_SAMPLES},
    )


def _has(rows: list[Row], *stages: str) -> bool:
    return set(stages) <= {row.stage for row in rows if row.time is not None}


def _spreads(forms: list[tuple[Where, list[Row]]]) -> list[tuple[str, str]]:
    """A figure for each of send, receive and link: a line for each form of one image, at most FORMS_SHOWN to a figure."""
    drawn = []
    for stage in ("send", "receive", "link"):
        lines = {
            f"{where.engine} {where.precision}, {where.defense}": row.quantiles_ms
            for where, rows in forms
            for row in rows
            if where.batch == 1 and row.stage == stage and row.quantiles_ms
        }
        names = list(lines)
        for start in range(0, len(names), FORMS_SHOWN):
            drawn.append((stage, figures.spread({name: lines[name] for name in names[start : start + FORMS_SHOWN]})))
    return drawn


def _throughput(results: Results) -> tuple[Where, str] | None:
    """Of the form that was measured with the most batches."""
    links = [row for row in results.rows if row.stage == "link" and row.images_per_s]
    forms: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in links:
        forms.setdefault((row.where.engine, row.where.precision, row.where.defense), {})[row.where.batch] = row
    most = max(forms.values(), key=len, default={})
    if len(most) < 2:
        return None
    batches = sorted(most)
    return most[batches[0]].where, figures.throughput(batches, [most[batch].images_per_s or 0.0 for batch in batches])


def _roofline(results: Results) -> str | None:
    """The networks of one image without a defence, or under the first that was measured."""
    rows = [row for row in results.rows if row.stage in ("transmitter", "receiver") and row.where.batch == 1]
    rows = [row for row in rows if row.operations and row.bytes and row.time is not None]
    first = next((row.where.defense for row in rows), None)
    rows = [row for row in rows if row.where.defense == first]
    return figures.roofline(rows, results.ceilings) if rows else None

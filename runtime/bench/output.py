"""Results of a benchmark -> the files that others read.

results.json                     everything; what was not measured is null with a reason
bencher.json                     Bencher's metric format: p50 in nanoseconds, with p90 or the largest as the upper value
github-action-benchmark.json     its customSmallerIsBetter
report.html                      distributions, the waterfall of stages, throughput, request rates, roofline (``page``)
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from semseal.runtime.bench.page import page
from semseal.runtime.bench.results import Results, Row
from semseal.runtime.files import write_atomically


def write(folder: Path, results: Results) -> list[Path]:
    """Write the files; a comparison has no report.html. Returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.json": json.dumps(results.document(), indent=1, allow_nan=False),
        "bencher.json": json.dumps(bencher(results.rows), indent=1),
        "github-action-benchmark.json": json.dumps(github_action(results.rows), indent=1),
    }
    if results.rows:
        texts["report.html"] = page(results)
    for name, text in texts.items():
        write_atomically(folder / name, (text + "\n").encode())
    return [folder / name for name in texts]


def bencher(rows: Iterable[Row]) -> dict[str, Any]:
    """https://bencher.dev/docs/reference/bencher-metric-format: latency in nanoseconds by the name of a benchmark."""
    found = {}
    for row, time in _timed(rows):
        metric = {"value": time.p50_ms * 1e6}
        upper = time.p90_ms if time.p90_ms is not None else time.max_ms
        found[_name(row)] = {"latency": {**metric, **({} if upper is None else {"upper_value": upper * 1e6})}}
    return found


def github_action(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """https://github.com/benchmark-action/github-action-benchmark: an array of what is better when it is smaller."""
    return [
        {"name": _name(row), "unit": "ms", "value": time.p50_ms, "extra": f"n {time.n}, p90 {time.p90_ms}, p99 {time.p99_ms}"}
        for row, time in _timed(rows)
    ]


def _timed(rows: Iterable[Row]) -> Iterator[tuple[Row, Any]]:
    return ((row, row.time) for row in rows if row.time is not None and row.time.n)


def _name(row: Row) -> str:
    return f"{row.where}, {row.stage}"

"""How long `load_runs` takes: `python -m benchmarks.load_runs [--runs 10000]`.

Writes that many run folders of a made-up sweep (records with every field of the schema) and reads
them, once as folders and once as the table that `analysis.collect` makes of them. One core is used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.collect import collect
from analysis.records import load_curves, load_runs
from scaling.runs.fields import COST_FIELDS, RESULT_FIELDS, Field
from scaling.runs.record import Record, Status

_ROWS_PER_CURVE = 120
_CURVES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    n_runs: int = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder, "sweep")
        _timed(f"write {n_runs} run folders", lambda: _write(sweep, n_runs))
        _timed(f"load_runs, {n_runs} run folders", lambda: load_runs(sweep))
        table = Path(folder, "runs.csv")
        _timed("collect them into a table", lambda: collect([str(sweep)], table))
        print(f"{'size of the table':<40}{table.stat().st_size / 1e6:8.2f} MB")
        _timed("load_runs, the table", lambda: load_runs(table))
        runs = [f"{i:012x}" for i in range(min(n_runs, _CURVES))]
        _timed(
            f"load_curves, {len(runs)} runs x {_ROWS_PER_CURVE} rows",
            lambda: load_curves(sweep, runs=runs),
        )


def _timed(what: str, action: Callable[[], object]) -> None:
    begun, begun_cpu = time.perf_counter(), time.process_time()
    action()
    wall, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    print(f"{what:<40}{wall:8.2f} s, {cpu:.2f} s of them computing", flush=True)


def _write(sweep: Path, n_runs: int) -> None:
    """Runs of distinct sizes and losses, so that none is a copy; the first ones with curves."""
    for i in range(n_runs):
        folder = sweep / f"{i:012x}"
        folder.mkdir(parents=True)
        result = {name: _filler(field) for name, field in RESULT_FIELDS.items()}
        result |= {"n_latents": 256 + i, "k": 4, "tokens": 250_000, "tokens_requested": 250_000}
        result |= {"normalized_mse": 0.2 + 0.5 * i / n_runs, "dead_fraction": 0.1}
        cost = {name: _filler(field) for name, field in COST_FIELDS.items()}
        record = Record(folder.name, "sweep", Status.done, result, cost)
        (folder / "record.json").write_text(json.dumps(record.to_json(), indent=2))
        if i < _CURVES:
            (folder / "metrics.jsonl").write_text(_metrics())


def _filler(field: Field) -> Any:
    values = {int: 7, float: 0.25, str: "a text of usual length", bool: False, list: [1, 1]}
    return values.get(field.types[0], {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"})


def _metrics() -> str:
    names = ("loss", "normalized_mse", "aux_loss", "grad_norm", "dead_fraction", "lr")
    row = {f"train/{name}": 0.123456789012345 for name in names}
    steps = range(1, _ROWS_PER_CURVE + 1)
    return "".join(json.dumps({"tokens": 256 * step, "step": step, **row}) + "\n" for step in steps)


if __name__ == "__main__":
    main()

"""Runs into one small table: `python -m analysis.collect SOURCE... --csv OUT`.

A table that is there already is added to: rows of the same run_id are replaced, others stay.
`load_runs` reads it back as it would read the runs.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from analysis.command import command_line, run
from analysis.files import check_target
from analysis.records.collected import merged, read_rows, write_rows
from analysis.records.sources import origins


@command_line
def collect_command(argv: Sequence[str] | None = None) -> None:
    """Write the table and say what is in it."""
    options = _parser().parse_args(argv)
    print(collect(options.source, options.csv))


def collect(sources: Sequence[str], table: Path) -> str:
    """Add the runs of `sources` to `table`; what came of it, in one line.

    Raises:
        TableError: a source has no runs, or checkpoints of one; the table is unreadable, or its
            folder not writable.
    """
    check_target(table)
    old = read_rows(table) if table.exists() else []
    new = [row for origin in origins(sources) for row in origin.rows()]
    rows = merged(old, new)
    write_rows(table, rows)
    statuses = Counter(row["status"] for row in rows).most_common()
    found = ", ".join(f"{count} {status}" for status, count in statuses)
    return f"{table}: {len(rows)} runs ({found}), {len(rows) - len(old)} of them added"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.collect", description="Collect runs into one CSV table."
    )
    parser.add_argument("source", nargs="+", help="sweep folder, table, wandb:ENTITY/PROJECT, ...")
    parser.add_argument("--csv", required=True, type=Path, help="the table to write or add to")
    return parser


if __name__ == "__main__":
    run(collect_command)

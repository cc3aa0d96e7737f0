"""The command: a workspace for one sweep or several, to a file or to W&B."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from analysis.command import check_paths, command_line, write_json
from analysis.dashboards.cells import Sweep, read_sweep
from analysis.errors import TableError
from analysis.records.columns import DEFAULT_LOSS, LOSSES

# As in conf/logger and the mirror.
_DEFAULT_PROJECT = "sae-scaling"


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    """Build the workspace, write it, push it."""
    _dashboard(_parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.dashboards", description="A W&B workspace for sweeps."
    )
    parser.add_argument(
        "sweeps", nargs="+", metavar="SWEEP", help="RUNS_DIR/SWEEP, or the name of one elsewhere"
    )
    parser.add_argument("--entity", help="owner of the project (default: the runs', WANDB_ENTITY)")
    parser.add_argument("--project", help="W&B project (default: the one the runs name)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write it there; asks no network")
    parser.add_argument("--push", action="store_true", help="save it as a view of the project")
    parser.add_argument("--replace", metavar="URL", help="with --push: in place of this view")
    parser.add_argument("--loss", default=DEFAULT_LOSS, choices=LOSSES)
    parser.add_argument(
        "--group-by",
        nargs="+",
        default=(),
        choices=("n", "k", "tokens", "seed"),
        help="group the run table: panels then show means of the groups",
    )
    parser.add_argument("--tag", help="only runs with this tag")
    return parser


def _dashboard(options: argparse.Namespace) -> None:
    check_paths(options)
    if options.json is None and not options.push:
        raise TableError(
            "nothing to do: give --json OUT to write the workspace, --push to save it."
        )
    if options.replace is not None and not options.push:
        raise TableError("--replace changes a view in W&B; give --push with it.")
    sweeps = [read_sweep(source) for source in options.sweeps]
    entity = options.entity or _agreed(sweeps, "entity") or os.environ.get("WANDB_ENTITY")
    if options.push and not entity:
        raise TableError(
            "a view needs the owner of its project, and neither the runs nor WANDB_ENTITY name "
            "one; give --entity, your user or team in W&B."
        )
    _send(options, sweeps, entity or "")


def _send(options: argparse.Namespace, sweeps: list[Sweep], entity: str) -> None:
    try:
        from analysis.dashboards import workspace
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("wandb"):
            raise
        raise TableError(
            "dashboards need wandb-workspaces, which is not installed; "
            "pip install 'sae-scaling[dashboards]', or that package by itself."
        ) from error
    look = workspace.Look(options.loss, tuple(options.group_by), options.tag)
    project = options.project or _agreed(sweeps, "project") or _DEFAULT_PROJECT
    built = workspace.build(sweeps, entity, project, look)
    if options.json is not None:
        write_json(options.json, workspace.as_json(built))
        print(f"workspace of {_described(sweeps)}: {options.json}")
    if options.push:
        print(f"workspace of {_described(sweeps)}: {workspace.push(built, options.replace)}")


def _agreed(sweeps: list[Sweep], key: str) -> str | None:
    """What the plans say. TableError where sweeps are in different projects: a view has one."""
    named = {value for sweep in sweeps if (value := getattr(sweep, key))}
    if len(named) > 1:
        raise TableError(
            f"the sweeps name several values of logger.{key} ({', '.join(sorted(named))}), and a "
            f"view shows one project; give --{key}, or make a view for each."
        )
    return next(iter(named), None)


def _described(sweeps: list[Sweep]) -> str:
    return " and ".join(
        f"{sweep.name} ({len(sweep.cells)} runs)" if sweep.cells else sweep.name for sweep in sweeps
    )

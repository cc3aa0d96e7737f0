"""Evaluate finished runs: `python -m scaling.evaluate RUN_OR_SWEEP... [metrics=NAMES] [KEY=VALUE]`.

Writes evaluation.json into each run's folder, metric by metric: what is there already, measured
with the same settings, is not measured again, so an evaluation that was stopped goes on where it
was. Runs that share their activations share the text, the subject model and its residual stream.

Exit code 0: all metrics asked for are there. 1: something of them could not be measured, as the
lines say. 2: nothing was tried, since what was asked for cannot be. 130: interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaling import evaluate_runs
from scaling.errors import UserError
from scaling.evaluation import options as evaluation_options
from scaling.evaluation.screen import Screen
from scaling.malloc import keep_pages
from scaling.runs.record import Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.runs.wandb_mirror import Cursor
from scaling.sweep.mirror import Mirror, WandbOptions

SEND_WITHIN_S = 120.0


def main(arguments: list[str] | None = None) -> int:
    keys = "\n  ".join(["keys and their defaults:", *evaluation_options.known_keys()])
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=keys, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", metavar="RUN_OR_SWEEP | KEY=VALUE")
    given = parser.parse_args(arguments).what
    overrides = [text for text in given if "=" in text and not Path(text).exists()]
    keep_pages()  # logits of megabytes come and go with every batch
    screen = Screen()
    try:
        options = evaluation_options.parsed(overrides)
        found = _found([Path(text) for text in given if text not in overrides])
        readable = {folder: status for folder in found if (status := _status(folder, screen))}
        folders = _done(readable, screen)
        all_there = evaluate_runs.Evaluation(options, screen).of(folders)
        all_there = all_there and len(readable) == len(found)
        _mirror(folders, screen)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: what is measured stays; the same command goes on.", file=sys.stderr)
        return 130
    return 0 if all_there else 1


def _found(paths: Sequence[Path]) -> list[RunFolder]:
    """The runs in the folders given, each a run or a sweep, none twice.

    Raises:
        UserError: one holds no run, or none is given.
    """
    found: dict[Path, RunFolder] = {}
    for path in paths:
        is_run = (path / "plan.json").exists()
        runs = [RunFolder(path.absolute())] if is_run else SweepStore(path.absolute()).folders()
        if not runs:
            raise UserError(f"{path} is no run and no sweep: give RUNS_DIR/SWEEP[/RUN_ID].")
        found |= {folder.path.resolve(): folder for folder in runs}
    if not found:
        raise UserError("give the folder of a run or of a sweep.")
    return list(found.values())


def _status(folder: RunFolder, screen: Screen) -> Status | None:
    """None, and a line that says why, where it cannot be read: the other runs go on."""
    try:
        return folder.status()
    except UserError as error:
        screen.say(f"{folder.run_id}: {error}")
    except OSError as error:
        screen.say(f"{folder.run_id}: {folder.record_path} cannot be read ({error.strerror}).")
    return None


def _done(statuses: Mapping[RunFolder, Status], screen: Screen) -> list[RunFolder]:
    """Those that are finished.

    Raises:
        UserError: none is.
    """
    done = [folder for folder, status in statuses.items() if status is Status.done]
    if not statuses:
        raise UserError("no run is left whose record can be read.")
    if not done:
        raise UserError(
            f"none of {len(statuses)} runs is done: only what is trained can be evaluated."
        )
    if len(done) < len(statuses):
        screen.say(f"{len(statuses) - len(done)} of {len(statuses)} runs are not done: left out.")
    return done


def _mirror(folders: Sequence[RunFolder], screen: Screen) -> None:
    """Send what W&B lacks of runs that were launched with logger=wandb."""
    unsent = [folder for folder in folders if _unsent(folder)]
    loggers = {folder.path.parent: _logger_of(folder) for folder in unsent}
    for sweep, logger in loggers.items():
        options = WandbOptions(
            project=logger["project"],
            entity=logger.get("entity"),
            tags=logger.get("tags", ()),
            finish_within_s=SEND_WITHIN_S,
        )
        with _mode_of(sweep):
            warning = Mirror.start(SweepStore(sweep), options).finish()
        if warning is not None:
            screen.say(warning)


@contextmanager
def _mode_of(sweep: Path) -> Iterator[None]:
    """Offline where the sweep's launches were, unless WANDB_MODE says something."""
    was_offline = any(sweep.glob("wandb/offline-run-*")) and not any(sweep.glob("wandb/run-*"))
    if "WANDB_MODE" in os.environ or not was_offline:
        yield
        return
    os.environ["WANDB_MODE"] = "offline"
    try:
        yield
    finally:
        del os.environ["WANDB_MODE"]


def _unsent(folder: RunFolder) -> bool:
    # Not only what was measured just now: an evaluation that was stopped has sent nothing.
    return _logger_of(folder).get("name") == "wandb" and Cursor.of(folder).lacks(folder)


def _logger_of(folder: RunFolder) -> dict[str, Any]:
    """Empty where the plan does not say, or is damaged, which was told before."""
    try:
        logger = folder.read_plan()["config"]["logger"]
    except (UserError, OSError, KeyError, TypeError):
        return {}
    return logger if isinstance(logger, dict) and "project" in logger else {}


if __name__ == "__main__":
    sys.exit(main())

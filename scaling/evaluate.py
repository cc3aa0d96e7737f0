"""Evaluate finished runs: `python -m scaling.evaluate RUN_OR_SWEEP... [metrics=NAMES] [KEY=VALUE]`.

Writes evaluation.json into each run's folder, metric by metric: what is there already, measured
with the same settings, is not measured again, so an evaluation that was stopped goes on where it
was. Runs that share their activations share the text, the subject model and its residual stream.

Exit code 0: all metrics asked for are there. 1: something of them could not be measured, as the
lines say. 2: nothing was tried, since what was asked for cannot be. 130: interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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
        folders = _done([Path(text) for text in given if text not in overrides], screen)
        all_there = evaluate_runs.Evaluation(options, screen).of(folders)
        _mirror(folders, screen)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: what is measured stays; the same command goes on.", file=sys.stderr)
        return 130
    return 0 if all_there else 1


def _done(paths: Sequence[Path], screen: Screen) -> list[RunFolder]:
    """The finished runs in the folders given, each a run or a sweep, none twice.

    Raises:
        UserError: one holds no run, or none is finished.
    """
    found: dict[Path, RunFolder] = {}
    for path in paths:
        is_run = (path / "plan.json").exists()
        runs = [RunFolder(path.absolute())] if is_run else SweepStore(path.absolute()).folders()
        if not runs:
            raise UserError(f"{path} is no run and no sweep: give RUNS_DIR/SWEEP[/RUN_ID].")
        found |= {folder.path.resolve(): folder for folder in runs}
    done = [folder for folder in found.values() if folder.status() is Status.done]
    if not done:
        raise UserError(
            f"none of {len(found)} runs is done: only what is trained can be evaluated."
            if found
            else "give the folder of a run or of a sweep."
        )
    if len(done) < len(found):
        screen.say(f"{len(found) - len(done)} of {len(found)} runs are not done: left out.")
    return done


def _mirror(folders: Sequence[RunFolder], screen: Screen) -> None:
    """Send what W&B lacks of runs that were launched with logger=wandb."""
    loggers = {folder.path.parent: _logger_of(folder) for folder in folders if _unsent(folder)}
    for sweep, logger in loggers.items():
        options = WandbOptions(
            project=logger["project"],
            entity=logger.get("entity"),
            tags=logger.get("tags", ()),
            finish_within_s=SEND_WITHIN_S,
        )
        warning = Mirror.start(SweepStore(sweep), options).finish()
        if warning is not None:
            screen.say(warning)


def _unsent(folder: RunFolder) -> bool:
    # Not only what was measured just now: an evaluation that was stopped has sent nothing.
    return _logger_of(folder).get("name") == "wandb" and Cursor.of(folder).lacks(folder)


def _logger_of(folder: RunFolder) -> dict[str, Any]:
    return folder.read_plan()["config"].get("logger", {})


if __name__ == "__main__":
    sys.exit(main())

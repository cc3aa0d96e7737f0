"""Evaluate finished runs: `python -m scaling.evaluate RUN_OR_SWEEP... [metrics=NAMES] [KEY=VALUE]`.

Writes evaluation.json into each run's folder, metric by metric: what is there already, measured
with the same settings, is not measured again, so an evaluation that was stopped goes on where it
was. Runs that share their activations share the text, the subject model and its residual stream.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from scaling import run_weights
from scaling.config import HarvestConfig
from scaling.errors import UserError
from scaling.evaluation import options as evaluation_options
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Metric, Subject
from scaling.evaluation.registry import METRICS
from scaling.evaluation.results import Results, identity
from scaling.hardware import peak_memory_bytes, reset_peak_memory
from scaling.runs.record import Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.lease import Lease

LEASE_TIMEOUT_S = 60.0
FOLDER = "evaluation"
"""Within a run's: the lease of who evaluates it, and what metrics keep besides numbers."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", metavar="RUN_OR_SWEEP | KEY=VALUE")
    given = parser.parse_args(arguments).what
    overrides = [text for text in given if "=" in text and not Path(text).exists()]
    console = Console()
    try:
        options = evaluation_options.parsed(overrides)
        folders = _done([Path(text) for text in given if text not in overrides], console)
        return _evaluate(folders, options, console)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _done(paths: Sequence[Path], console: Console) -> list[RunFolder]:
    """The finished runs in the folders given, each a run or a sweep.

    Raises:
        UserError: one holds no run, or none is finished.
    """
    found: list[RunFolder] = []
    for path in paths:
        is_run = (path / "plan.json").exists()
        runs = [RunFolder(path.absolute())] if is_run else SweepStore(path.absolute()).folders()
        if not runs:
            raise UserError(f"{path} is no run and no sweep: give RUNS_DIR/SWEEP[/RUN_ID].")
        found += runs
    done = [folder for folder in found if folder.status() is Status.done]
    if not done:
        raise UserError(
            f"none of {len(found)} runs is done: only what is trained can be evaluated."
            if found
            else "give the folder of a run or of a sweep."
        )
    if len(done) < len(found):
        console.print(f"{len(found) - len(done)} of {len(found)} runs are not done: left out.")
    return done


def _evaluate(folders: Sequence[RunFolder], options: Any, console: Console) -> int:
    """Every wanted metric of every run; 0, or 1 where some could not be measured."""
    metrics = _possible(options, console)
    materials: dict[str, Material | None] = {}
    all_well = True
    for number, folder in enumerate(folders, start=1):
        with_what = materials.setdefault(_source_of(folder), _material(folder, options))
        console.print(f"[{number}/{len(folders)}] {folder.run_id}", highlight=False)
        lease = Lease.acquire(folder.path / FOLDER, timeout_s=LEASE_TIMEOUT_S)
        if lease is None:
            console.print("  another process is evaluating it: left to that one")
            continue
        with lease:
            all_well &= _evaluate_run(folder, metrics, with_what, options, console)
    return 0 if all_well else 1


def _possible(options: Any, console: Console) -> list[Metric]:
    """The metrics asked for whose packages are there; the others are named."""
    metrics = []
    for name in options.metrics:
        metric = METRICS[name][0]()
        missing = [p for p in metric.packages if importlib.util.find_spec(p) is None]
        if missing:
            console.print(
                f"{name} is skipped: it needs {', '.join(missing)}. "
                f"pip install {' '.join(missing)} adds it."
            )
        else:
            metrics.append(metric)
    return metrics


def _source_of(folder: RunFolder) -> str:
    plan = folder.read_plan()
    return str((plan["source"]["eval_hash"], plan["source"].get("content_hash")))


def _material(folder: RunFolder, options: Any) -> Material | None:
    """None of activations that no language model made."""
    from omegaconf import OmegaConf

    from scaling.activations.request import make_request

    config = run_weights.plan_of(folder).config
    if "layer" not in config["activations"]:
        return None
    made: Any = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(HarvestConfig), config["activations"])
    )
    return Material(
        make_request(made, Path(options.data_dir or config["data_dir"])),
        n_contexts=options.contexts,
        batch_contexts=options.batch_contexts,
        dtype=options.dtype,
        device=options.device,
    )


def _evaluate_run(
    folder: RunFolder,
    metrics: Sequence[Metric],
    material: Material | None,
    options: Any,
    console: Console,
) -> bool:
    """Whether all that can be measured of it was."""
    results = Results(folder)
    run = None
    for metric in metrics:
        wanted = _identity(metric, folder, options)
        if results.has(metric.name, wanted):
            console.print(f"  {metric.name}: done before", highlight=False)
            continue
        if material is None:
            console.print(f"  {metric.name}: skipped, these activations are of no language model")
            continue
        run = run or Subject(
            folder.run_id,
            folder.path / FOLDER,
            run_weights.load_run(folder, averaged=options.averaged),
        )
        _measure(metric, run, material, options, results, wanted, console)
    return True


def _measure(
    metric: Metric,
    run: Subject,
    material: Material,
    options: Any,
    results: Results,
    wanted: str,
    console: Console,
) -> None:
    own = getattr(options, metric.name)
    reset_peak_memory(options.device)
    started = time.monotonic()
    measured = metric.measure(run, material, own, lambda done, total: None)
    seconds = time.monotonic() - started
    how = {
        "version": metric.version,
        "settings": dict(metric.settings(own)),
        "contexts": options.contexts,
        "weights": "averaged" if options.averaged else "raw",
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(options.device),
    }
    results.put(metric.name, wanted, measured, how)
    numbers = ", ".join(
        f"{name} {'undefined' if value is None else format(value, '.4g')}"
        for name, value in measured.numbers.items()
    )
    console.print(f"  {metric.name}: {numbers}  ({seconds:.1f} s)", highlight=False)


def _identity(metric: Metric, folder: RunFolder, options: Any) -> str:
    return identity(
        metric.name,
        metric.version,
        settings=dict(metric.settings(getattr(options, metric.name))),
        run=folder.run_id,
        contexts=options.contexts,
        batch_contexts=options.batch_contexts,
        dtype=options.dtype,
        averaged=options.averaged,
    )


if __name__ == "__main__":
    sys.exit(main())

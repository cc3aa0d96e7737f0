"""From composed points to an exit code: validate all, prepare the data, plan all, then execute.

Nothing is trained, and nothing harvested, before every point has passed every check.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from rich.console import Console

from scaling.activations.build import Description, describe
from scaling.activations.source import SourceSpec
from scaling.autoencoder_config import TopKConfig
from scaling.choices import DeadTreatment, KernelsName, LauncherName, LoggerName, Precision
from scaling.config import ActivationsConfig, RunConfig
from scaling.errors import UserError
from scaling.launchers.choice import Launcher, launcher_for, runs_elsewhere
from scaling.plan import RunPlan
from scaling.runs.provenance import now
from scaling.runs.record import FINAL
from scaling.runs.store import SweepStore
from scaling.sweep.estimate import makespan_s, with_estimates
from scaling.sweep.execute import ExecuteOptions, Summary
from scaling.sweep.execution import (
    check_execution,
    check_kept,
    native_problem,
    planned_device,
)
from scaling.sweep.footprint import check_memory
from scaling.sweep.mirror import WandbOptions
from scaling.sweep.packing import grouping_for
from scaling.sweep.planner import make_plan
from scaling.sweep.preparation import harvest_bar
from scaling.sweep.preview import print_harvest, print_preview
from scaling.sweep.stop import announced
from scaling.sweep.tokens import settle_tokens
from scaling.sweep.validate import check_folders, check_numbers, check_shared, validate


def launch(points: Sequence[RunConfig], console: Console | None = None) -> int:
    """Carry out a command line. Returns the exit code: 0 all done, 1 some failed, 130 stopped.

    Raises:
        UserError: something is wrong with a point or its data; no run has been started.
    """
    console = console or Console()
    for point in points:
        check_numbers(point)
    describe_once = _Descriptions()
    wanted = settle_tokens(points, lambda point: describe_once(point).d_model)
    if not wanted:
        raise UserError(
            f"sweep.where={points[0].sweep.where!r} leaves none of {len(points)} points. Widen it."
        )
    check_shared(wanted)
    check_folders(wanted[0])
    shared = wanted[0]
    if excluded := len(points) - len(wanted):
        console.print(f"{excluded} of {len(points)} grid points left out by sweep.where")
    descriptions = {_key(point.activations): describe_once(point) for point in wanted}
    for point in wanted:
        found = descriptions[_key(point.activations)]
        validate(point, n_train=found.n_train)
        check_execution(point)
        check_memory(point, found.d_model, source_bytes=found.memory_bytes)
    launcher = launcher_for(shared.launcher)
    store = SweepStore(Path(shared.runs_dir) / shared.sweep_name)
    if shared.dry_run:
        plans = _plans(wanted, {key: _preview_spec(d) for key, d in descriptions.items()})
        estimated, sources = with_estimates(plans), list(descriptions.values())
        workers, slots = _workers(plans), _slots(plans)
        groups = grouping_for(estimated, workers)(estimated)
        print_preview(estimated, sources, workers, console, slots=slots, groups=groups)
        launcher.preview(plans, store, console)
        return 0
    launcher.check()
    _tell_of_inert_auxk(wanted, console)
    for found in descriptions.values():
        print_harvest(found, console)
    with announced(store):
        return _carry_out(wanted, store, launcher, console)


def _carry_out(
    points: Sequence[RunConfig], store: SweepStore, launcher: Launcher, console: Console
) -> int:
    """From points that passed every check to trained runs and an exit code."""
    shared, started_s = points[0], time.monotonic()
    plans = _plans(points, _prepare_all(points, store, launcher, console))
    prepared_s = time.monotonic()
    pending = {plan.run_id for plan in plans if store.folder(plan.run_id).status() not in FINAL}
    for run_id in sorted(pending):
        check_kept(store.folder(run_id), here=shared.launcher.name is LauncherName.local)
    _tell_of_slow_kernels(shared, console)
    plans = _estimated(plans, pending)
    _tell_of_shared_cores(plans, console)
    _refuse_long(shared, [plan for plan in plans if plan.run_id in pending])
    summary = launcher.execute(plans, store, _options(shared, plans), console)
    _note_launch(store, summary, prepare_s=prepared_s - started_s)
    return summary.exit_code


def _tell_of_inert_auxk(points: Sequence[RunConfig], console: Console) -> None:
    """A window longer than the run is allowed, but seldom meant."""
    inert = [point for point in points if _never_dead(point)]
    if inert:
        console.print(
            f"note: in {len(inert)} of {len(points)} runs train.tokens is below "
            f"autoencoder.dead_after_tokens={inert[0].autoencoder.dead_after_tokens}: "  # type: ignore[attr-defined]
            "no latent is ever called dead and AuxK never acts. Short runs set a short window "
            "(the demo: 5000).",
            style="yellow",
        )


def _tell_of_slow_kernels(shared: RunConfig, console: Console) -> None:
    """kernels=auto gives the same numbers without a compiler, but takes longer."""
    chosen = shared.kernels is KernelsName.auto and shared.numerics.precision is Precision.float32
    if chosen and planned_device(shared) == "cpu" and (problem := native_problem()):
        console.print(f"note: kernels=torch, the slower way: {problem}.", style="yellow")


def _never_dead(point: RunConfig) -> bool:
    ae = point.autoencoder
    return (
        isinstance(ae, TopKConfig)
        and ae.dead_treatment is DeadTreatment.auxk
        and ae.aux_coef > 0
        and point.train.tokens <= ae.dead_after_tokens
    )


def _note_launch(store: SweepStore, summary: Summary, *, prepare_s: float) -> None:
    """One line of RUNS_DIR/SWEEP/launches.jsonl: what this launch did and how long it took."""
    note = {
        "finished_at": now(),
        "prepare_s": prepare_s,
        "train_s": summary.wall_s,
        "n_runs": len(summary.rows),
        "n_skipped": summary.skipped,
        "exit_code": summary.exit_code,
    }
    # A note for people: a disk too full for it must not make a finished sweep a failed one.
    with suppress(OSError), (store.path / "launches.jsonl").open("a") as notes:
        notes.write(json.dumps(note) + "\n")


def _key(config: ActivationsConfig) -> str:
    return json.dumps(asdict(config), sort_keys=True)


class _Descriptions:
    """Each distinct source, described once and only when it is asked for."""

    def __init__(self) -> None:
        self._known: dict[str, Description] = {}

    def __call__(self, point: RunConfig) -> Description:
        key = _key(point.activations)
        if key not in self._known:
            self._known[key] = describe(point.activations, Path(point.data_dir))
        return self._known[key]


def _prepare_all(
    points: Sequence[RunConfig], store: SweepStore, launcher: Launcher, console: Console
) -> dict[str, SourceSpec]:
    """Each distinct source, harvested and verified once."""
    specs: dict[str, SourceSpec] = {}
    for point in points:
        if (key := _key(point.activations)) not in specs:
            with harvest_bar(console) as tell:
                data_dir = Path(point.data_dir)
                specs[key] = launcher.prepare(point.activations, data_dir, store, tell)
    return specs


def _preview_spec(found: Description) -> SourceSpec:
    """What stands for data that is not harvested yet, where only its shape matters."""
    if found.spec is not None:
        return found.spec
    described = {"memory_bytes": found.memory_bytes}
    shape = (found.d_model, found.n_train, found.n_eval)
    return SourceSpec("store", "", "", *shape, description=described)


def _plans(points: Sequence[RunConfig], specs: dict[str, SourceSpec]) -> list[RunPlan]:
    """One plan for each distinct run, in the order of the points.

    Before their data is there its hash is not known: then the key stands for it.
    """
    distinct: dict[tuple[str, str], RunPlan] = {}
    for point in points:
        plan = make_plan(point, specs[key := _key(point.activations)])
        distinct["" if plan.source.content_hash else key, plan.run_id] = plan
    return list(distinct.values())


def _estimated(plans: Sequence[RunPlan], pending: set[str]) -> list[RunPlan]:
    """Estimates for the runs that are left: what is done needs no timing."""
    left = with_estimates([plan for plan in plans if plan.run_id in pending])
    by_id = {plan.run_id: plan for plan in left}
    return [by_id.get(plan.run_id, plan) for plan in plans]


def _refuse_long(config: RunConfig, pending: Sequence[RunPlan]) -> None:
    limit = config.sweep.max_hours
    if limit is None or not pending:
        return
    if any(plan.estimated_s is None for plan in pending):
        raise UserError(
            f"sweep.max_hours={limit} cannot be checked: these runs cannot be timed on this "
            "machine (no GPU, or too little memory). Leave it out: scaling.budget predicts times."
        )
    workers = _workers(pending)
    groups = grouping_for(pending, workers)(pending)
    hours = makespan_s(groups, workers, _slots(pending)) / 3600
    if hours > limit:
        raise UserError(
            f"sweep.max_hours={limit}: {len(pending)} runs are estimated to take {hours:.2f} hours "
            "on this machine. Raise the limit, or lower train.tokens or the number of points."
        )


def _workers(plans: Sequence[RunPlan]) -> int:
    """Runs at a time: launcher.workers, or as many as there are slots."""
    if plans and (elsewhere := runs_elsewhere(plans[0].config["launcher"])):
        return elsewhere
    workers = plans[0].config["launcher"]["workers"] if plans else None
    return _hardware_slots(plans) if workers is None else workers


def _slots(plans: Sequence[RunPlan]) -> int:
    """Processes at a time: one per GPU, or as many as the cores hold, or one per worker."""
    if plans and (elsewhere := runs_elsewhere(plans[0].config["launcher"])):
        return elsewhere * max(plan.world_size for plan in plans)
    return max(_hardware_slots(plans), _workers(plans))


def _hardware_slots(plans: Sequence[RunPlan]) -> int:
    if not plans:
        return 1
    execution = plans[0].execution
    if execution.device == "cuda":
        return torch.cuda.device_count()
    return max(1, len(psutil.Process().cpu_affinity()) // execution.threads)


def _tell_of_shared_cores(plans: Sequence[RunPlan], console: Console) -> None:
    """Allowed, as results do not depend on it, but slow."""
    slots = _slots(plans)
    if large := [plan for plan in plans if plan.world_size > slots]:
        most = max(plan.world_size for plan in large)
        console.print(
            f"note: {len(large)} of {len(plans)} runs have up to {most} processes of "
            f"launcher.threads={plans[0].execution.threads} on cores for {slots}: they share the "
            "cores, and each runs alone.",
            style="yellow",
        )


def _options(config: RunConfig, plans: Sequence[RunPlan]) -> ExecuteOptions:
    logger, on_gpu = config.logger, plans[0].execution.device == "cuda"
    wandb = WandbOptions(project=logger.project, entity=logger.entity, tags=logger.tags)
    workers = _workers(plans)
    return ExecuteOptions(
        workers=workers,
        slots=_slots(plans),
        threads=config.launcher.threads,
        retries=config.launcher.retries,
        lease_timeout_s=config.launcher.lease_timeout_s,
        devices=[str(i) for i in range(torch.cuda.device_count())] if on_gpu else None,
        wandb=wandb if logger.name is LoggerName.wandb else None,
        grouping=grouping_for(plans, workers),
    )

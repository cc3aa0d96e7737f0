"""What dry_run=true prints: the runs and what they would cost, without starting any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from scaling.activations.build import Description
from scaling.budget import GIB, rank_bytes
from scaling.plan import MeshPlan, RunPlan, short
from scaling.sweep.estimate import makespan_s
from scaling.sweep.footprint import plan_shape
from scaling.sweep.groups import Group, each_alone
from scaling.sweep.planner import BYTES_PER_VALUE
from scaling.sweep.table import add_by_architecture
from scaling.train.architectures import n_params

BYTES_PER_FINAL_PARAM = 8
"""Raw and averaged weights in float32, kept after a run; checkpoints come and go."""

_IN_COLUMNS = {"n_latents", "k", "penalty", "target_l0", "tokens", "flops", "lr", "lr_scale"}
"""Keys of a plan's config that a column of the table shows, or follows from."""


def print_preview(
    plans: Sequence[RunPlan],
    sources: Sequence[Description],
    workers: int,
    console: Console,
    *,
    slots: int | None = None,
    groups: Sequence[Group] | None = None,
) -> None:
    """Runs, tokens, FLOPs, time, memory and disk, and what would have to be harvested first."""
    groups = each_alone(plans) if groups is None else groups
    console.print(_table(plans))
    flops = sum(plan.tokens * _flops_sparse(plan) for plan in plans)
    memory = sorted((group.memory_bytes for group in groups), reverse=True)[:workers]
    disk = sum(BYTES_PER_FINAL_PARAM * n_params(plan) for plan in plans)
    at_a_time = sum(sorted((len(group.plans) for group in groups), reverse=True)[:workers])
    passing = sorted((_checkpoints_bytes(plan) for plan in plans), reverse=True)[:at_a_time]
    console.print(
        f"{len(plans)} runs, {short(sum(plan.tokens for plan in plans))} tokens, "
        f"{flops:.2e} FLOPs ({_convention(plans)}), {_time(groups, workers, slots)}, "
        f"{sum(memory) / GIB:.1f} GiB memory at most, "
        f"{disk / GIB:.2f} GiB disk for the final weights and {sum(passing) / GIB:.2f} GiB for "
        "checkpoints that come and go."
    )
    for line in [*_also_varied(plans), *_meshes(plans), *_multiplexed(groups)]:
        console.print(line)
    for source in sources:
        print_harvest(source, console)
    console.print("dry_run=true: nothing was harvested or trained.")


def _also_varied(plans: Sequence[RunPlan]) -> list[str]:
    """Keys that no column shows and that tell rows apart: seeds, treatments."""
    values: dict[str, dict[str, None]] = {}
    for plan in plans:
        for group in ("autoencoder", "train", "numerics"):
            for name, value in plan.config.get(group, {}).items():
                if name not in _IN_COLUMNS:
                    values.setdefault(f"{group}.{name}", {})[str(value)] = None
    varied = [f"{key}={','.join(seen)}" for key, seen in values.items() if len(seen) > 1]
    return ["Also varied: " + " ".join(varied)] if varied else []


def _multiplexed(groups: Sequence[Group]) -> list[str]:
    """The groups of several runs, each with what it takes, and what its runs would take alone."""
    together = [group for group in groups if len(group.plans) > 1]
    if not together:
        return []
    lines = [
        f"{len(group.plans)} runs by turns in one process ({_sizes(group)}): "
        f"{group.memory_bytes / GIB:.2f} GiB, instead of "
        f"{sum(plan.estimated_memory_bytes for plan in group.plans) / GIB:.2f} GiB in processes "
        "of their own."
        for group in together
    ]
    n_alone = len(groups) - len(together)
    share = "1 run shares its" if n_alone == 1 else f"{n_alone} runs share their"
    return [*lines, f"{share} batches with no other."] if n_alone else lines


def _sizes(group: Group) -> str:
    """Which widths, with how many runs of each: "3 of n=256, 1 of relu n=512"."""
    widths: Counter[str] = Counter()
    for plan in group.plans:
        assert isinstance(plan, RunPlan)
        widths[plan.autoencoder.title] += 1
    return ", ".join(f"{count} of {title}" for title, count in widths.items())


def _meshes(plans: Sequence[RunPlan]) -> list[str]:
    """Ranks and the largest memory of one, for each mesh of several processes."""
    largest: dict[MeshPlan, int] = {}
    for plan in plans:
        if plan.mesh.world_size > 1:
            rank = rank_bytes(plan_shape(plan))
            largest[plan.mesh] = max(largest.get(plan.mesh, 0), rank)
    return [
        f"mesh.dp={mesh.dp} mesh.latent={mesh.latent}: {mesh.world_size} ranks per run, "
        f"{size / GIB:.2f} GiB each at most. python -m scaling.budget says what takes how much."
        for mesh, size in sorted(largest.items(), key=lambda item: item[0].world_size)
    ]


def print_harvest(source: Description, console: Console) -> None:
    """What would be harvested, and on which disk; of a live stream, what is made while training."""
    if source.note:
        console.print(source.note)
    if not source.ready:
        console.print(
            f"To harvest first: {source.harvest_tokens_missing:,} activation vectors, "
            f"{source.disk_bytes_needed / GIB:.2f} GiB disk "
            f"({source.disk_bytes_free / GIB:.1f} GiB free). Run ids are known after that."
        )


def _time(groups: Sequence[Group], workers: int, slots: int | None) -> str:
    if any(group.estimated_s is None for group in groups):
        return f"{workers} at a time (not timed here: python -m scaling.budget predicts)"
    hours = makespan_s(groups, workers, slots) / 3600
    return f"about {hours:.2f} hours with {workers} at a time (estimated from timed steps)"


def _table(plans: Sequence[RunPlan]) -> Table:
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)  # fits 80 columns
    for name in ("run", "n", "k", "tokens", "steps", "lr", "FLOPs", "GiB", "s (est.)"):
        table.add_column(name, justify="left" if name == "run" else "right")
    by_kind = [(plan.autoencoder.name, _cells(plan)) for plan in sorted(plans, key=_by_size)]
    add_by_architecture(table, by_kind)
    return table


def _by_size(plan: RunPlan) -> tuple[float, ...]:
    ae = plan.autoencoder
    aim = ae.options.get("target_l0") or 0.0
    return ae.n_latents, ae.widest_code, aim, ae.penalty or 0.0, plan.tokens, plan.train.lr


def _cells(plan: RunPlan) -> list[str]:
    return [
        plan.run_id if plan.source.content_hash else "-",
        str(plan.autoencoder.n_latents),
        plan.autoencoder.sparsity,
        f"{plan.tokens:,}",
        f"{plan.train.steps:,}",
        f"{plan.train.lr:.3g}",
        f"{plan.tokens * _flops_sparse(plan):.2e}",
        f"{plan.estimated_memory_bytes / GIB:.2f}",
        "-" if plan.estimated_s is None else f"{plan.estimated_s:.0f}",
    ]


def _convention(plans: Sequence[RunPlan]) -> str:
    """An outcome is not known before: then the count is an upper bound, and said to be."""
    bound = any(plan.autoencoder.k is None for plan in plans)
    return "sparse convention" + (", at most: where a penalty decides, L0 = n is assumed" * bound)


def _flops_sparse(plan: RunPlan) -> int:
    return plan.autoencoder.flops_sparse(plan.source.d_model)


def _checkpoints_bytes(plan: RunPlan) -> int:
    """Weights, two moments and the average, as often as checkpoints are kept, and one being
    written."""
    bytes_per_param = 4 * BYTES_PER_VALUE[plan.numerics.precision]
    return (plan.observe.keep_checkpoints + 1) * bytes_per_param * n_params(plan)

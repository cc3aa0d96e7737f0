"""The runs themselves: which were left out, what they cost, where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from analysis.counts import short_count
from analysis.records.table import Dropped
from analysis.report import page
from analysis.report.sections.cells import amount, plain
from analysis.study.study import Study


def excluded(study: Study, n_records: int) -> Iterator[str]:
    yield from left_out(study.table.dropped, len(study.table), n_records)


def left_out(dropped: Sequence[Dropped], n_used: int, n_records: int) -> Iterator[str]:
    yield page.paragraph(
        f"{n_used} of {n_records} runs are used." + ("" if dropped else " None was excluded.")
    )
    if dropped:
        yield page.table(("run", "reason"), dropped)


def cost(costs: dict[str, Any]) -> Iterator[str]:
    yield page.table(("quantity", "value"), [(name, amount(name, v)) for name, v in costs.items()])
    yield page.paragraph(
        "Summed over the runs used. train_s is the training loop with its evaluations and "
        "checkpoints, wall_s also opening, the final measurement and earlier attempts; elapsed_s "
        "runs from the first start to the last end, pauses included. peak_memory_bytes is the "
        "largest of any run's process, an upper bound: it counts memory-mapped activations and "
        "what earlier runs of the same worker had taken.",
        "soft",
    )


def provenance(facts: dict[str, Any]) -> Iterator[str]:
    yield page.table(("what", "value"), [(name, plain(value)) for name, value in facts.items()])


def budget_note(study: Study, trained: list[int]) -> str:
    """Said once: budgets are named by what was asked for, and whole batches make a bit less."""
    if study.budget is None:
        return "Budgets are those asked for where whole batches come within 1% of them."
    budget, counts = short_count(study.budget), " or ".join(f"{count:,}" for count in trained)
    return (
        f"D = {budget} tokens is the budget that most values of n share; runs of other budgets "
        f"enter the laws with tokens only. Budgets are those asked for: runs of {budget} trained "
        f"{counts} tokens in whole batches."
    )

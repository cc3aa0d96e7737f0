"""The runs of a sweep as rows for people, from their files alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scaling.autoencoder_plan import sparsity_of
from scaling.errors import UserError
from scaling.runs.record import Status
from scaling.runs.store import RunFolder

_STYLES = {
    Status.done: "green",
    Status.failed: "bold red",
    Status.diverged: "magenta",
    Status.running: "cyan",
    Status.preempted: "yellow",
    Status.planned: "dim",
}


@dataclass(frozen=True)
class RunRow:
    run_id: str
    architecture: str
    """As in `autoencoder=NAME`; a plan that does not say is of TopK."""
    n_latents: int | None
    k: int | None
    options: dict[str, Any]
    """Of this architecture alone: its penalty, for one."""
    tokens: int | None
    """Planned, in whole steps."""
    seed: int | None
    status: Status
    result: dict[str, Any]
    cost: dict[str, Any]
    error: str | None = None

    @classmethod
    def of(cls, folder: RunFolder) -> RunRow:
        """Raises `UserError` when a file of the run is damaged."""
        plan, record = folder.read_plan(), folder.read_record()
        autoencoder, train = plan.get("autoencoder", {}), plan.get("train", {})
        return cls(
            run_id=folder.run_id,
            architecture=autoencoder.get("name", "topk"),
            n_latents=autoencoder.get("n_latents"),
            k=autoencoder.get("k"),
            options=autoencoder.get("options", {}),
            tokens=train["steps"] * train["batch_tokens"] if "steps" in train else None,
            seed=train.get("seed"),
            status=record.status,
            result=record.result,
            cost=record.cost,
            error=f"{record.error.type}: {record.error.message}" if record.error else None,
        )

    @property
    def sparsity(self) -> str:
        return sparsity_of(self.k, self.options)

    @classmethod
    def anyhow(cls, folder: RunFolder) -> RunRow:
        """The same; a file that is damaged or gone is this run's failure, and nobody else's."""
        try:
            return cls.of(folder)
        except (UserError, OSError) as error:
            return cls(
                run_id=folder.run_id,
                architecture="?",
                n_latents=None,
                k=None,
                options={},
                tokens=None,
                seed=None,
                status=Status.failed,
                result={},
                cost={},
                error=str(error),
            )

    def line(self) -> str:
        """For people: "n=4096 k=16 tokens=500,000  done  normalized_mse 0.1234  12.3 s", and
        "relu n=4096 λ=0.05 tokens=..." of another architecture than TopK."""
        named = "" if self.architecture == "topk" else f"{self.architecture} "
        sparsity = f"k={self.k}" if self.k is not None else self.sparsity
        size = f"{named}n={self.n_latents} {sparsity} tokens={_count(self.tokens)}"
        parts = [size, str(self.status)]
        if self.result.get("normalized_mse") is not None:
            parts.append(f"normalized_mse {self.result['normalized_mse']:.4f}")
        if "wall_s" in self.cost:
            parts.append(f"{self.cost['wall_s']:.1f} s")
        if self.error:
            parts.append(self.error.partition("\n")[0])
        return "  ".join(parts)


def print_table(rows: Sequence[RunRow], console: Console) -> None:
    """All rows by size, and below them what went wrong."""
    console.print(runs_table(rows))
    for row in rows:
        if row.error:
            console.print(f"{row.run_id} {row.line()}", style="red", markup=False, soft_wrap=True)


def runs_table(rows: Sequence[RunRow]) -> Table:
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)  # fits 80 columns
    for name in ("run", "n", "k", "tokens", "normalized_mse", "l0", "dead", "status", "s"):
        table.add_column(name, justify="left" if name in ("run", "status") else "right")
    add_by_architecture(
        table, [(row.architecture, _cells(row)) for row in sorted(rows, key=_by_size)]
    )
    return table


def add_by_architecture(table: Table, rows: Sequence[tuple[str, Sequence[str | Text]]]) -> None:
    """Rows with the architecture of each; where there are several, each below its name."""
    kinds = sorted({kind for kind, _ in rows})
    for kind in kinds:
        if len(kinds) > 1:
            table.add_row(Text(kind, style="bold"))
        for _, cells in (row for row in rows if row[0] == kind):
            table.add_row(*cells)


def _by_size(row: RunRow) -> tuple[float, ...]:
    aim, penalty = (row.options.get(key) or 0.0 for key in ("target_l0", "penalty"))
    return row.n_latents or 0, row.k or 0, aim, penalty, row.tokens or 0, row.seed or 0


def _cells(row: RunRow) -> list[str | Text]:
    result = row.result
    return [
        row.run_id,
        _or_dash(row.n_latents, str),
        row.sparsity,
        _count(row.tokens),
        _or_dash(result.get("normalized_mse"), "{:.4f}".format),
        _or_dash(result.get("l0"), "{:.1f}".format),
        _or_dash(result.get("dead_fraction"), "{:.1%}".format),
        Text(row.status, style=_STYLES[row.status]),
        _or_dash(row.cost.get("wall_s"), "{:.1f}".format),
    ]


def _count(number: int | None) -> str:
    return _or_dash(number, "{:,}".format)


def _or_dash(value: Any, spell: Callable[[Any], str]) -> str:
    return "-" if value is None else spell(value)

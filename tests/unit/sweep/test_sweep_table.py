import io
from collections.abc import Iterable

from rich.console import Console

from scaling.runs.record import Status
from scaling.sweep.table import RunRow, runs_table


def _row(run_id: str, architecture: str, k: int | None = None, **options: float) -> RunRow:
    return RunRow(run_id, architecture, 64, k, options, 300, 0, Status.done, {}, {})


def _printed(rows: Iterable[RunRow]) -> list[list[str]]:
    """Words of each line below the head, empty ones left out."""
    out = io.StringIO()
    Console(file=out, width=80).print(runs_table([*rows]))
    return [line.split() for line in out.getvalue().splitlines() if line.strip()][2:]


def test_runs_without_k_are_told_apart_by_what_they_pay_or_aim_at() -> None:
    rows = [_row("b", "relu", penalty=0.2), _row("a", "relu", penalty=0.05)]
    assert [line[2] for line in _printed(rows)] == ["λ=0.05", "λ=0.2"]
    assert rows[0].line() == "relu n=64 λ=0.2 tokens=300  done"
    assert _row("c", "jumprelu", penalty=0.1, target_l0=16).sparsity == "L0=16"
    assert _row("d", "topk", 4).line() == "n=64 k=4 tokens=300  done"


def test_a_mixed_sweep_has_each_architecture_below_its_name() -> None:
    rows = [_row("a", "topk", 4), _row("b", "gated", penalty=0.1), _row("c", "topk", 8)]
    assert [line[0] for line in _printed(rows)] == ["gated", "b", "topk", "a", "c"]
    assert [line[0] for line in _printed(rows[:1])] == ["a"]

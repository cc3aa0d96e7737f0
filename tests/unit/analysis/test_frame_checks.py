"""Tables that are no tables of runs, told from the columns beside the numbers."""

from __future__ import annotations

import pandas as pd
import pytest
from fabricate import PLANTED, demo_cells, losses_of

from analysis.errors import TableError
from analysis.records.frame_checks import check_frame
from analysis.records.mixtures import SAME_FOR_ALL
from analysis.records.table import table_from_frame

CELLS = demo_cells()


def _frame() -> pd.DataFrame:
    frame = pd.DataFrame(CELLS).rename(columns={"n": "n_latents"})
    return frame.assign(normalized_mse=losses_of(PLANTED, CELLS, 0.005), seed=0)


@pytest.mark.parametrize("column", [*SAME_FOR_ALL])
def test_losses_of_several_kinds(column: str) -> None:
    frame = _frame().assign(**{column: ["a"] * 50 + ["b"] * 6})
    with pytest.raises(
        TableError, match=rf"it: the runs mix {column}: a \(50 runs\), b \(6 runs\)"
    ):
        table_from_frame(frame, source="it")
    assert len(table_from_frame(frame.assign(**{column: "a"}), source="it")) == 56
    check_frame(frame, source="it", allow=(column,))


def test_a_value_that_is_missing_is_another_kind() -> None:
    frame = _frame().assign(normalization=["unit_norm"] * 55 + [None])
    with pytest.raises(TableError, match="not recorded"):
        table_from_frame(frame, source="it")


def test_a_row_without_a_result_mixes_nothing() -> None:
    frame = _frame().assign(eval_hash=["e"] * 55 + [None], status=["done"] * 55 + ["failed"])
    assert len(table_from_frame(frame, source="it")) == 55


def test_a_run_at_several_budgets_is_checkpoints() -> None:
    frame = _frame().assign(run_id=[f"{c.n}-{c.k}" for c in CELLS])
    with pytest.raises(
        TableError, match=r"run 1024-16 is there .*done at 3 .*checkpoints of one run"
    ):
        table_from_frame(frame, source="it")


def test_raw_and_averaged_losses_in_one_long_table() -> None:
    """Such a table repeats each run_id; the message must be of the loss, not of checkpoints."""
    raw = _frame().assign(run_id=[f"run{i}" for i in range(56)], loss_name="normalized_mse")
    averaged = raw.assign(loss_name="normalized_mse_ema", normalized_mse=raw.normalized_mse * 1.01)
    with pytest.raises(TableError, match=r"mix loss_name.*Raw and averaged"):
        table_from_frame(pd.concat([raw, averaged]), source="it")
    assert len(table_from_frame(raw, source="it")) == 56


@pytest.mark.parametrize("column", ["checkpoint", "step"])
def test_checkpoints_of_one_run_passed_as_runs(column: str) -> None:
    frame = _frame().assign(**{column: [cell.tokens // 256 for cell in CELLS]})
    with pytest.raises(TableError, match=rf"3 rows of n_latents 256, .*differ in {column}"):
        table_from_frame(frame, source="it")


@pytest.mark.parametrize("response", ["loss", "tokens"])
@pytest.mark.parametrize("left", [["k"], ["n_latents"], []])
def test_a_table_without_sizes_is_told_what_it_lacks(left: list[str], response: str) -> None:
    frame = _frame().assign(step=range(56))[[*left, "tokens", "normalized_mse", "step"]]
    lacking = "k" if "n_latents" in left else "n_latents or n"
    with pytest.raises(TableError, match=f"it has no column {lacking}; its columns are"):
        table_from_frame(frame, source="it", response=response)


def test_runs_with_their_last_step_are_no_checkpoints() -> None:
    steps = [cell.tokens // 256 for cell in CELLS]
    named = _frame().assign(step=steps, run_id=[f"run{i}" for i in range(56)])
    assert len(table_from_frame(named, source="it")) == 56
    assert len(table_from_frame(_frame().assign(steps=steps), source="it")) == 56
    seeds = _frame().assign(step=steps, seed=range(56))  # each row of a seed of its own
    assert len(table_from_frame(seeds, source="it")) == 56


def _statuses(**counts: int) -> list[str]:
    named = [status for status, count in counts.items() for _ in range(count)]
    return named + ["done"] * (56 - len(named))


def test_more_than_a_fifth_rejected() -> None:
    too_many = _frame().assign(status=_statuses(diverged=8, failed=4))
    with pytest.raises(
        TableError, match=r"it: 12 of 56 runs that came to an end .*status is diverged \(8\)"
    ):
        table_from_frame(too_many, source="it")
    few = table_from_frame(_frame().assign(status=_statuses(diverged=11)), source="it")
    assert len(few) == 45
    assert len(few.dropped) == 11
    check_frame(too_many, source="it", allow=("rejected",))


def test_unfinished_runs_are_no_rejected_ones() -> None:
    frame = _frame().assign(status=_statuses(planned=20, running=5, preempted=5))
    assert len(table_from_frame(frame, source="it")) == 26
    # Of the runs that ended, 3 of 11 failed.
    with pytest.raises(TableError, match="3 of 11 runs that came to an end"):
        table_from_frame(frame.assign(status=_statuses(planned=45, failed=3)), source="it")

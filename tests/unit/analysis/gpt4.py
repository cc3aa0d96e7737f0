"""The paper's GPT-4 points, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.records.table import RunTable, read_table

POINTS = Path(__file__).parents[2] / "data" / "gao2024_gpt4_lnk.csv"


def gpt4_table() -> RunTable:
    return read_table(POINTS)


def with_losses(table: RunTable, loss: np.ndarray) -> RunTable:
    return RunTable(table.points, loss, table.runs, table.loss_name, table.seeds)

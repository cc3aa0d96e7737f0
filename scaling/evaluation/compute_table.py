"""The pretraining compute that reaches a loss, from a user's table of models and their losses.

A CSV file with the columns `compute` (any unit, only ratios are used) and `ce` (nats per token, of
the same kind of text and context as the evaluation's). Between rows ln compute is linear in ln ce,
which keeps the order of the rows; outside of them there is no value (Gao et al. 2024, section 4.1:
the loss with reconstructions as that of a model trained with less compute).
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scaling.errors import UserError
from scaling.storage.hashing import canonical_json, sha256_hex

COLUMNS = ("compute", "ce")


class OutsideTable(Exception):
    """A loss that no two rows of the table enclose."""


@dataclass(frozen=True)
class ComputeTable:
    """Rows by falling loss: compute rises with each."""

    computes: tuple[float, ...]
    ces: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> ComputeTable:
        """Raises `UserError` where it is no such table."""
        try:
            with path.open(newline="") as file:
                rows = [[float(row[column]) for column in COLUMNS] for row in csv.DictReader(file)]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise _refused(
                path, f"it cannot be read as one ({type(error).__name__}: {error})"
            ) from error
        if len(rows) < 2:
            raise _refused(path, f"it has {len(rows)} rows, and between two of them is a value")
        if not all(math.isfinite(value) and value > 0 for row in rows for value in row):
            raise _refused(path, "it has values that are not above 0")
        rows.sort()
        for (low, ce_low), (high, ce_high) in pairwise(rows):
            if not (low < high and ce_low > ce_high):
                raise _refused(path, f"from compute {low:g} to {high:g} ce does not fall")
        return cls(tuple(row[0] for row in rows), tuple(row[1] for row in rows))

    @property
    def digest(self) -> str:
        """Names the numbers in it."""
        return sha256_hex(canonical_json([self.computes, self.ces]))[:12]

    def compute(self, ce: float) -> float:
        """What reaches that loss. Raises `OutsideTable`."""
        pairs = zip(self.ces, self.computes, strict=True)
        for (ce_0, c_0), (ce_1, c_1) in pairwise(pairs):
            if ce_1 <= ce <= ce_0:
                share = math.log(ce_0 / ce) / math.log(ce_0 / ce_1)
                return c_0 * (c_1 / c_0) ** share
        raise OutsideTable(
            f"the compute table spans losses of {self.ces[-1]:.4g} to {self.ces[0]:.4g}, and not "
            f"{ce:.4g}: add rows that enclose it"
        )


def _refused(path: Path, why: str) -> UserError:
    return UserError(
        f"downstream.compute_table={path}: {why}. Give a CSV file with the columns "
        f"{' and '.join(COLUMNS)}, where more compute has a lower ce."
    )

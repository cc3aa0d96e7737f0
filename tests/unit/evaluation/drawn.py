"""What analysis says that a metric's standard errors are of, against what the metric says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.quality.metrics import QUALITIES
from scaling.evaluation.metric import Measured
from scaling.runs.evaluation_columns import OWN


def check_drawn(measured: Measured) -> None:
    """Each column that a report shows has the error that the report names, and no other has one."""
    shown = {one.column: one.drawn for one in QUALITIES}
    said = {name: over for name, (_, over) in measured.standard_errors.items() if name in shown}
    defined = [name for name, value in measured.numbers.items() if value is not None]
    assert said == {name: shown[name] for name in defined if shown.get(name)}
    assert set(measured.draws) >= {name for name, over in said.items() if over not in OWN}
    assert measured.units, "whoever compares runs asks which units these are"


def ratio_error(above: Sequence[float], below: Sequence[float]) -> float:
    """Of sum(above) / sum(below), as of pairs drawn at random."""
    ratio, n = sum(above) / sum(below), len(below)
    squares = sum((a - ratio * b) ** 2 for a, b in zip(above, below, strict=True))
    return math.sqrt(squares * n / (n - 1)) / sum(below)

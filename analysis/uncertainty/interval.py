"""The ends of an interval, as a value that all kinds of intervals share."""

from __future__ import annotations

from typing import NamedTuple

from analysis.laws.forms import Array


class Interval(NamedTuple):
    """Ends of intervals at M points, [M] each, in the units of the response."""

    low: Array
    high: Array

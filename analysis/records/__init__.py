"""Runs and their curves, from wherever they are kept, as DataFrames (docs/loading.md)."""

from analysis.records.curves import load_curves
from analysis.records.load import load_runs

__all__ = ["load_curves", "load_runs"]

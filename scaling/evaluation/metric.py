"""What a metric is: a name, the packages it needs, its settings, and numbers of one run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from scaling.evaluation.estimate import Baseline, Estimate, Floats, StandardError

if TYPE_CHECKING:
    from scaling.evaluation.material import Material
    from scaling.interchange.model import LoadedAutoencoder

_NOTHING: Mapping[str, Any] = MappingProxyType({})
Told = Callable[[int, int], None]
"""Gets how much is done, and of how much."""
Stage = Callable[[str], AbstractContextManager[Told]]
"""Shows what is being done, for as long as its context lasts."""


def untold(done: int, total: int) -> None:
    """A `Told` where nobody looks on."""


@dataclass(frozen=True)
class Subject:
    """One run as metrics see it."""

    run_id: str
    folder: Path
    """For what a metric keeps besides numbers: files named after it."""
    autoencoder: LoadedAutoencoder
    identity: str = ""
    """Of the metric's numbers: what it keeps in `folder` for the next try is named or marked by
    it, so that other settings, text or weights do not take it up."""


@dataclass(frozen=True)
class Measured:
    """What a metric found out about one run."""

    numbers: Mapping[str, float | None]
    """Columns of evaluation.json: names that begin with the metric's own prefix. None = not
    defined here, and `notes` says why."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What goes beside them: counts, tables. JSON. `undefined`, where it is there, maps names of
    numbers that are None to the reason."""
    standard_errors: Mapping[str, StandardError] = field(default_factory=dict)
    """Of the numbers that have one: how far another draw of the same kind would move them."""
    baselines: Mapping[str, Mapping[str, Baseline]] = field(default_factory=dict)
    """Of a number: what it is to be compared with, by name."""
    draws: Mapping[str, Floats] = field(default_factory=dict, compare=False)
    """Of a number: what each unit that was drawn for all runs moves it by, [U]."""
    units: str = field(default="", compare=False)
    """Which these are: equal where other runs have the same."""

    @classmethod
    def of(
        cls,
        estimates: Mapping[str, Estimate],
        notes: Mapping[str, Any] = _NOTHING,
        *,
        baselines: Mapping[str, Mapping[str, Estimate]] = _NOTHING,
        exact: Mapping[str, float | None] = _NOTHING,
        units: str = "",
    ) -> Measured:
        """The columns `estimates` with their standard errors, and those that have none. `units` is
        of those estimates whose units are the same for all runs."""
        errors = {
            column: StandardError(error, one.over)
            for column, one in estimates.items()
            if one.value is not None and (error := one.standard_error) is not None
        }
        beside = {
            column: {
                name: baseline
                for name, other in of_column.items()
                if (baseline := estimates[column].against(other)) is not None
            }
            for column, of_column in baselines.items()
        }
        numbers = {column: one.value for column, one in estimates.items()}
        of_units = {column: one.draws_U for column, one in estimates.items()}
        draws = {column: draws_U for column, draws_U in of_units.items() if draws_U is not None}
        return cls({**numbers, **exact}, notes, errors, beside, draws, units)


class Metric(Protocol):
    """One way of measuring. Instances hold no state."""

    name: str
    version: int
    """Raise it when the same settings would give other numbers."""
    packages: tuple[str, ...]
    """Modules beyond the project's own dependencies, as "module" or "module:what pip calls it";
    where one is missing the metric is skipped."""
    on_text: bool
    """Whether it needs the subject model and its text. Planted activations have none: a metric
    that does not need them gets `Material` whose batches are held-out vectors alone."""

    def settings(self, options: Any) -> Mapping[str, Any]:
        """What of the options determines its numbers: their identity, with name and version."""
        ...

    def measure(self, run: Subject, material: Material, options: Any, told: Told) -> Measured:
        """The numbers of one run."""
        ...


@runtime_checkable
class InParts(Protocol):
    """A metric that is measured without those of its parts that cannot be had."""

    def left_out(self, options: Any) -> str:
        """Of what the options ask for: a line with the remedy; "" where nothing is."""
        ...


def missing_packages(metric: Metric) -> list[str]:
    """Of those that it needs, what pip would have to install."""
    pairs = [package.partition(":") for package in metric.packages]
    absent = [(module, pip) for module, _, pip in pairs if importlib.util.find_spec(module) is None]
    return [pip or module for module, pip in absent]

"""What a metric is: a name, the packages it needs, its settings, and numbers of one run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from scaling.evaluation.material import Material
    from scaling.interchange.model import LoadedAutoencoder

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
    """What goes beside them: counts, baselines, tables. JSON. `undefined`, where it is there, maps
    names of numbers that are None to the reason."""


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

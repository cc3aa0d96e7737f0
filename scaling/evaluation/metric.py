"""What a metric is: a name, the packages it needs, its settings, and numbers of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from scaling.evaluation.material import Material
    from scaling.interchange.model import LoadedAutoencoder

Told = Callable[[int, int], None]
"""Gets how much is done, and of how much."""


@dataclass(frozen=True)
class Subject:
    """One run as metrics see it."""

    run_id: str
    folder: Path
    """Of the run; what is kept besides numbers goes into its sub-folder `evaluation`."""
    autoencoder: LoadedAutoencoder


@dataclass(frozen=True)
class Measured:
    """What a metric found out about one run."""

    numbers: Mapping[str, float | None]
    """Columns of evaluation.json: names that begin with the metric's own prefix. None = not
    defined here, and `notes` says why."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What goes beside them: counts, baselines, tables. JSON."""


class Metric(Protocol):
    """One way of measuring. Instances hold no state."""

    name: str
    version: int
    """Raise it when the same settings would give other numbers."""
    packages: tuple[str, ...]
    """Beyond the project's own dependencies; where one is missing the metric is skipped."""
    on_text: bool
    """Whether it needs the subject model and its text (planted activations have none)."""

    def settings(self, options: Any) -> Mapping[str, Any]:
        """What of the options determines its numbers: their identity, with name and version."""
        ...

    def measure(self, run: Subject, material: Material, options: Any, told: Told) -> Measured:
        """The numbers of one run."""
        ...

"""From a user's `activations` config to a source: describe, prepare, open.

The only module of this package that others call. Heavy imports (torch, transformers) happen inside
the branch that needs them, so that planning over a finished store costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.activations.source import ActivationSource, SourceSpec
from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.config import ActivationsConfig


@dataclass(frozen=True)
class Progress:
    """How far a preparation has come; reported about once a second."""

    phase: str
    """"convert", "tokenize", "harvest", "shuffle" or "verify"."""
    done: int
    total: int
    unit: str
    """"tokens", "documents" or "bytes"."""


@dataclass(frozen=True)
class Description:
    """What a source is and what it would still cost, found out without computing anything."""

    d_model: int
    n_train: int | None
    """Training vectors the runs will see; None = unlimited."""
    n_eval: int
    ready: bool
    """Nothing to harvest: `spec` is known."""
    spec: SourceSpec | None
    harvest_tokens_missing: int = 0
    disk_bytes_needed: int = 0
    disk_bytes_free: int = 0


ProgressCallback = Callable[[Progress], None]


def describe(config: ActivationsConfig, data_dir: Path) -> Description:
    """What `config` asks for and what is missing; computes and writes nothing.

    Raises:
        UserError: for anything wrong that can be seen now: a missing model folder or text, a layer
            the model does not have, a disk too small.
    """
    from scaling.config import PlantedConfig

    match config:
        case PlantedConfig():
            from scaling.activations.planted import planted_spec

            return _ready(planted_spec(config))
        case _:
            raise _unknown(config)


def prepare(
    config: ActivationsConfig,
    data_dir: Path,
    *,
    progress: ProgressCallback,
    verify: bool = True,
) -> SourceSpec:
    """Make the source exist (harvest what is missing) and return its spec.

    With `verify`, every byte that runs will read is checked against its recorded hash.

    Raises:
        UserError: as `describe`, and for corrupt shards, non-finite activations, a full disk, or
            text too short for `activations.max_tokens`.
    """
    from scaling.config import PlantedConfig

    match config:
        case PlantedConfig():
            from scaling.activations.planted import planted_spec

            return planted_spec(config)
        case _:
            raise _unknown(config)


def open_source(spec: SourceSpec) -> ActivationSource:
    """Open a prepared source for reading; any number of processes may.

    Raises:
        UserError: where the store is gone or is not the one the spec names.
    """
    match spec.kind:
        case "planted":
            from scaling.activations.planted import PlantedSource

            return PlantedSource(spec)
        case _:
            raise UserError(f"activations kind {spec.kind!r} is unknown: use planted or store.")


def _ready(spec: SourceSpec) -> Description:
    return Description(
        d_model=spec.d_model, n_train=spec.n_train, n_eval=spec.n_eval, ready=True, spec=spec
    )


def _unknown(config: ActivationsConfig) -> UserError:
    return UserError(
        f"activations.source={config.source!r} is unknown: use activations=planted, embedded, "
        "store or hf."
    )
